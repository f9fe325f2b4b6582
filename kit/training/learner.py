"""One learner: an adapter with its data, method, optimizer, records and checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from kit.adapters.card import write_card
from kit.adapters.save import save_adapter
from kit.config import Config
from kit.errors import NotFiniteError, TrainingError
from kit.estimate.fit import chosen
from kit.evaluation.figures import Evaluation, evaluate
from kit.model.adapter_files import adapter_fault
from kit.model.base import Base
from kit.model.finite import first_bad_weight
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampled, Sampling
from kit.recipe import flatten
from kit.run_json import environment, this_process
from kit.run_settings import binding_settings
from kit.runs import RunFolder
from kit.tasks.problems import ProblemSet
from kit.tasks.rewards import build_reward
from kit.training.checkpoint import load_newest, remove_old, save_checkpoint
from kit.training.data import TrainingData
from kit.training.dpo import DPO
from kit.training.examples import load_labelled, load_pairs
from kit.training.grpo import GRPO
from kit.training.kto import KTO
from kit.training.optimizer import Optimizer
from kit.training.preflight import TRUNCATED_WARNING, preflight
from kit.training.remarks import warn_about
from kit.training.sft import SFT
from kit.training.undo import Undo

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

VALIDATION_SEED = 7


class Method(Protocol):
    """What is repeated: learn from what was sampled, or from what is given."""

    def learn(self, step: int, sampled: Sampled) -> dict[str, float]: ...


class Learner:
    """Everything one configuration needs besides the base it shares with others."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        accelerator: Accelerator,
        base: Base,
        data: TrainingData,
        *,
        adapter_name: str,
        model: PeftModel | None,
    ) -> None:
        """`model`: the base with the adapters of other learners, if there are any."""
        self.config = config
        self.run = run
        self.accelerator = accelerator
        self.base = base
        self.data = data
        self.best: float | None = None
        self.warned: set[str] = set()
        self.seen_to_learn = False
        warn_about(config)
        self.reward = build_reward(config.reward, data.train_set.verifier, config.guidelines)
        seed = config.train.seed
        model = add_lora(
            base, config.lora, seed, config.model.adapter, name=adapter_name, model=model
        )
        self.policy = Policy(base, model, adapter_name)
        self.optimizer = Optimizer(
            self.policy.trainable,
            config.optim,
            config.train,
            accelerator,
            base.hardware.scales_loss,
            config.train.steps * config.updates_per_step,
        )
        self.method = self._method()
        self.owes_validation = False
        self.first_step = self._restore()
        self.saved = self.first_step  # steps that a checkpoint, or the configuration, holds

    def begin(self, companions: Sequence[str], *, with_preflight: bool) -> None:
        """Describe the run; before the first step, look at the policy as it is."""
        self.describe(
            status="running",
            error=None,
            **environment(),
            process=this_process(),
            base={"id": self.base.id, "revision": self.base.revision},
            hardware=self.base.hardware.reason,
            memory={"budget": self.config.memory_budget, **chosen(self.config)},
            seed=self.config.train.seed,
            parent=self.config.model.adapter,
            trained_with=list(companions),
        )
        if self.config.train.report_to:
            # trackers take flat tables of plain values
            settings = {key: str(value) for key, value in flatten(self.config.model_dump()).items()}
            self.accelerator.init_trackers("gr-pspo", settings)
        if self.first_step == 0:
            if with_preflight:
                self._preflight()
            self.validate(0)
        elif self.owes_validation:  # it was what failed
            self.validate(self.first_step)

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step, counted from 1."""
        if self.accelerator.is_main_process:
            self.run.append(self.run.metrics, [{"step": step, **metrics}])
        if self.config.train.report_to:
            self.accelerator.log(metrics, step=step)
        if metrics.get("completion/truncated_share", 0) > TRUNCATED_WARNING:
            self._warn_once(
                "more than %.0f %% of the completions are cut off at rollout.max_new_tokens=%d and "
                "mostly count as wrong; raise it",
                100 * TRUNCATED_WARNING,
                self.config.rollout.max_new_tokens,
            )

    def validate(self, step: int) -> None:
        """Greedy accuracy on held-out problems after `step` steps; the best adapter is kept.

        Raises TrainingError, with the problem, when the model's numbers are not finite.
        """
        self.owes_validation = False
        if self.data.validation is None or not self.config.train.validate_every:
            return
        self.owes_validation = True  # until it is done
        try:
            result = self._evaluate(self.data.validation)
        except NotFiniteError as error:
            raise TrainingError(f"validation after {step} steps, {error}") from error
        self.owes_validation = False
        score = (result.strict if self.config.reward.strict else result.lenient).value
        self._record_validation(step, result)
        # an untrained adapter is no candidate; of equals the later one is kept
        if step > 0 and (self.best is None or score >= self.best):
            self.best = score
            self._save_adapter()

    def check_weights(self, step: int) -> None:
        """Raise TrainingError when the updates of a step left weights that are not finite."""
        weights = self.policy.trained_weights
        # of all at once first: one wait for the device
        if math.isfinite(torch.nn.utils.get_total_norm(weights.values(), norm_type=math.inf)):
            return
        raise TrainingError(
            f"step {step + 1}: its updates left NaN or infinite numbers in "
            f"{first_bad_weight(weights)}, so they are not kept; lower optim.learning_rate"
        )

    def check_trained(self, step: int, metrics: dict[str, float], before: Undo) -> None:
        """Raise TrainingError when the first updates with a gradient left all weights as they were.

        Only of updates that cannot round away: the weights are float32, and Adam changes them by
        about the learning rate whatever the gradient's size.
        """
        if self.seen_to_learn or metrics.get("update/not_finite", 1) > 0:
            return
        if metrics["update/grad_norm"] < 1e-4 or metrics["update/learning_rate"] < 1e-7:
            return
        if not before.weights_changed:
            raise TrainingError(
                f"step {step + 1}: an update with a gradient of norm "
                f"{metrics['update/grad_norm']:.2g} changed no weight of the adapter: what is "
                "updated is not what the model computes with. Set model.backend=transformers, or "
                "install the versions in constraints.txt"
            )
        self.seen_to_learn = True

    def undo(self) -> Undo:
        """To be called for going back to what is now."""
        return Undo(self.policy, self.optimizer)

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps."""
        if self.accelerator.is_main_process:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "owes_validation": self.owes_validation,
            }
            keep = self.config.train.keep_checkpoints
            about = {
                "records": self.run.record_marks(),
                "settings": binding_settings(self.config),
                "hardware": self.base.hardware.in_words,
            }
            save_checkpoint(self.run.checkpoints, step, self.policy, state, keep, about)
        self.saved = step

    def finish(self) -> None:
        if self.best is None:  # there was no validation
            self._save_adapter()
        steps = self.config.train.steps
        if self.accelerator.is_main_process:  # a kill may have come between saving and removing
            remove_old(self.run.checkpoints, steps, self.config.train.keep_checkpoints)
        self.describe(status="finished", steps=steps, best_validation=self.best)
        if self.accelerator.is_main_process:
            write_card(self.run)

    def describe(self, **facts: Any) -> None:
        """Merge facts into run.json, from the main process."""
        if self.accelerator.is_main_process:
            self.run.describe(**facts)

    def requests(self, step: int) -> list[Request]:
        """What is to be sampled for a step; nothing where completions are given."""
        return self.method.requests(step) if isinstance(self.method, GRPO) else []

    def problem_of(self, request: Request) -> str:
        """The id of the problem that one of its requests was made for."""
        assert isinstance(self.method, GRPO)  # nothing else samples
        return self.method.problem_of(request)

    # --- setting up ------------------------------------------------------------------------------

    def _method(self) -> Method:
        config, problems = self.config, self.data.train_set.problems
        if config.learns_from_preferences:
            return self._preference_method()
        if config.method == "sft":
            return SFT(
                config.train,
                self.policy,
                self.optimizer,
                problems,
                self.accelerator,
                config.rollout.max_new_tokens,
            )
        return GRPO(
            config.rollout,
            config.objective,
            config.train,
            self.policy,
            self.optimizer,
            problems,
            self.reward,
            self.accelerator,
            self.run,
        )

    def _preference_method(self) -> DPO | KTO:
        config, source = self.config, self.run.kept_preferences
        settings = (config.preferences, config.train, self.policy, self.optimizer)
        if config.method == "dpo":
            pairs = load_pairs(config, self.base, self.data.validation, source)
            self._keep([pair.read.line() for pair in pairs])
            return DPO(*settings, pairs, self.accelerator)
        examples = load_labelled(config, self.base, self.data.validation, source)
        self._keep([example.read.line() for example in examples])
        return KTO(*settings, examples, self.accelerator)

    def _keep(self, preferences: Sequence[dict[str, Any]]) -> None:
        if self.accelerator.is_main_process:
            self.run.keep_preferences(preferences)

    def _restore(self) -> int:
        """Load the newest checkpoint, if any; returns the step to go on with."""
        state = load_newest(self.run.checkpoints, self.policy, self.optimizer)
        if state is None:
            self._forget_after(-1)  # even the validation before the first step is repeated
            return 0
        self.run.check_settings(self.config, state["step"], state["settings"])
        self._check_records(state["step"], state["records"])
        self._check_hardware(state["step"], state["hardware"])
        self.owes_validation = state["owes_validation"]
        self._forget_after(state["step"])
        self.best = state["best"]
        if self.best is not None and (fault := adapter_fault(str(self.run.adapter))):
            log.warning(
                "the best adapter so far cannot be used (%s); the next that is measured, or the "
                "last, takes its place",
                fault,
            )
            self.best = None
        return state["step"]

    def _check_records(self, step: int, marks: dict[str, dict[str, Any]]) -> None:
        """Say, here and in run.json, which records are not as the checkpoint left them."""
        changed = self.run.changed_records(marks)
        if not changed or not self.accelerator.is_main_process:
            return
        self._remark(
            f"{', '.join(changed)}: changed or lost after it was written; found when training went "
            f"on from step {step}"
        )

    def _check_hardware(self, step: int, before: str | None) -> None:
        """Say so where the steps to come are computed on something else than those before."""
        now = self.base.hardware.in_words
        if before in (None, now) or not self.accelerator.is_main_process:
            return
        self._remark(
            f"this run was trained on {before} up to step {step}; it goes on on {now}, which "
            "rounds otherwise: it will not end where it would have ended on either"
        )

    def _remark(self, remark: str) -> None:
        log.warning("%s: %s", self.run.path, remark)
        known = self.run.read_description().get("remarks") or []
        self.run.describe(remarks=[*known, remark])

    def _forget_after(self, steps: int) -> None:
        if self.accelerator.is_main_process:
            self.run.truncate(steps)

    def _preflight(self) -> None:
        config, problems = self.config, self.data.train_set.problems
        if config.method == "grpo" and config.train.preflight_problems:
            found = preflight(config.rollout, config.train, self.policy, problems, self.reward)
            if self.accelerator.is_main_process:
                print(found, flush=True)

    def _evaluate(self, problems: ProblemSet) -> Evaluation:
        rollout = self.config.rollout
        sampling = Sampling(
            max_new_tokens=rollout.max_new_tokens,
            temperature=0.0,
            max_rows=rollout.max_rows,
            dequantize=rollout.dequantize,
            cuda_graph=rollout.cuda_graph,
        )
        return evaluate(
            self.policy,
            self.policy.trained,
            problems,
            sampling,
            seed=VALIDATION_SEED,
            accelerator=self.accelerator,
        )

    # --- records ---------------------------------------------------------------------------------

    def _record_validation(self, step: int, result: Evaluation) -> None:
        if not self.accelerator.is_main_process:
            return
        record = {
            "step": step,
            "validation/strict": result.strict.value,
            "validation/lenient": result.lenient.value,
            "validation/mean_tokens": result.mean_tokens,
            "validation/truncated_share": result.truncated.value,
        }
        self.run.append(self.run.metrics, [record])
        tqdm.write(
            f"{self.run.label}, after {step} steps: held-out accuracy, greedy on {result.strict.n} "
            f"problems, {result.strict} strict, {result.lenient} lenient, "
            f"{result.mean_tokens:.0f} tokens"
        )

    def _save_adapter(self) -> None:
        if self.accelerator.is_main_process:
            save_adapter(self.policy, self.run.adapter)

    def _warn_once(self, message: str, *values: object) -> None:
        if message not in self.warned:
            self.warned.add(message)
            log.warning(message, *values)
