"""The training loop: steps, validation, checkpoints, progress. The step itself is in kit.grpo."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from kit.checkpoint import latest_checkpoint, load_checkpoint, save_adapter, save_checkpoint
from kit.config import Config, flatten
from kit.data import ProblemSet, drop_long_prompts, load_problems, split_validation
from kit.errors import RunError
from kit.evaluate import Evaluation, evaluate
from kit.grpo import GRPO
from kit.hardware import peak_memory_mb, reset_peak_memory
from kit.models import TRAINED, Base, add_lora, load_base
from kit.optimizer import Optimizer
from kit.policy import Policy
from kit.preflight import TRUNCATED_WARNING, preflight
from kit.rewards import build_reward
from kit.rollout import Sampling
from kit.runs import RunFolder, append_json, environment
from kit.sft import SFT

log = logging.getLogger(__name__)

VALIDATION_SEED = 7


class Method(Protocol):
    """What the loop repeats."""

    def step(self, step: int) -> dict[str, float]: ...


def train(config: Config, *, resume: bool = False, base: Base | None = None) -> RunFolder:
    """Train an adapter as the configuration says and leave it in the run folder.

    `base` may be passed when it is loaded already; adapters are taken off it again at the end.
    Raises KitError subclasses for everything a user can mend.
    """
    accelerator = Accelerator(
        log_with=config.train.report_to or None,
        project_dir=config.output,
        cpu=not torch.cuda.is_available(),
    )
    run = RunFolder(config.output or "runs/unnamed")
    if accelerator.is_main_process:
        run.open(config, resume)
    accelerator.wait_for_everyone()
    trainer = Trainer(config, run, accelerator, base)
    try:
        trainer.run_to_end()
    except KeyboardInterrupt:
        trainer.describe(status="interrupted")
        raise
    except BaseException:
        trainer.describe(status="failed")
        raise
    finally:
        trainer.close()
    return run


class Trainer:
    """One run on one base: the loop around the step of a method."""

    def __init__(
        self, config: Config, run: RunFolder, accelerator: Accelerator, base: Base | None = None
    ) -> None:
        self.config = config
        self.run = run
        self.accelerator = accelerator
        self.stopping = False
        self.best: float | None = None
        self.warned: set[str] = set()
        _warn_about(config)
        device = accelerator.device if accelerator.device.type == "cuda" else None
        self.base = base or load_base(config.model, device)
        self.train_set, self.validation = self._load_data()
        self.reward = build_reward(config.reward, self.train_set.verifier)
        self.policy = Policy(
            self.base, add_lora(self.base, config.lora, config.train.seed, config.model.adapter)
        )
        if config.model.gradient_checkpointing:
            self.policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
            self.policy.causal.train()  # transformers checkpoints in training mode only
        self.optimizer = Optimizer(
            self.policy.trainable, config, accelerator, self.base.hardware.scales_loss
        )
        self.method = self._method()
        self.first_step = self._restore()

    def run_to_end(self) -> None:
        """All remaining steps; Ctrl-C ends it after the step at hand, with a checkpoint."""
        train = self.config.train
        self.describe(
            status="running",
            **environment(),
            base={"id": self.base.id, "revision": self.base.revision},
            hardware=self.base.hardware.reason,
            seed=train.seed,
            parent=self.config.model.adapter,
        )
        log.info("%s", self.base.hardware.reason)
        if self.config.train.report_to:
            # trackers take flat tables of plain values
            settings = {key: str(value) for key, value in flatten(self.config.model_dump()).items()}
            self.accelerator.init_trackers("gr-pspo", settings)
        if self.first_step == 0:
            self._preflight()
            self._validate(0)
        with self._stop_on_signal(), self._progress() as bar:
            for step in range(self.first_step, train.steps):
                metrics = self._timed_step(step)
                done = step + 1
                last = done == train.steps
                self._record(done, metrics, bar)
                if last or (train.validate_every and done % train.validate_every == 0):
                    self._validate(done)
                stopping = self._must_stop()
                if last or stopping or done % train.checkpoint_every == 0:
                    self._save(done)
                if stopping and not last:
                    self.describe(status="interrupted", steps=done)
                    log.warning(
                        "stopped after step %d; continue with: kit train %s --resume",
                        done,
                        self.run.path,
                    )
                    return
        self._finish()

    def describe(self, **facts: Any) -> None:
        """Merge facts into run.json, from the main process."""
        if self.accelerator.is_main_process:
            self.run.describe(**facts)

    def close(self) -> None:
        """Take the adapters off the base again, so that another run can use it."""
        if self.config.model.gradient_checkpointing:
            self.policy.causal.gradient_checkpointing_disable()
        self.policy.peft.unload()
        self.base.model.eval()
        if self.config.train.report_to:
            self.accelerator.end_training()

    # --- setting up ------------------------------------------------------------------------------

    def _load_data(self) -> tuple[ProblemSet, ProblemSet | None]:
        data = self.config.data
        problems, dropped = drop_long_prompts(
            load_problems(data, seed=self.config.train.seed),
            self.base.tokenizer,
            data.max_prompt_tokens,
        )
        if dropped:
            log.warning(
                "%d problems with prompts over %d tokens are left out",
                dropped,
                data.max_prompt_tokens,
            )
        if data.validation_size == 0:
            return problems, None
        return split_validation(problems, data.validation_size, self.config.train.seed)

    def _method(self) -> Method:
        problems = self.train_set.problems
        if self.config.method == "sft":
            return SFT(self.config, self.policy, self.optimizer, problems, self.accelerator)
        return GRPO(
            self.config,
            self.policy,
            self.optimizer,
            problems,
            self.reward,
            self.accelerator,
            self.run,
        )

    def _restore(self) -> int:
        """Load the newest checkpoint, if any; returns the step to go on with."""
        path = latest_checkpoint(self.run.checkpoints)
        if path is None:
            self._forget_after(-1)  # even the validation before the first step is repeated
            return 0
        state = load_checkpoint(path, self.policy.peft)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self._forget_after(state["step"])
        log.info("resuming from %s", path)
        return state["step"]

    def _forget_after(self, steps: int) -> None:
        if self.accelerator.is_main_process:
            self.run.truncate(steps)

    def _preflight(self) -> None:
        if self.config.method == "grpo" and self.config.train.preflight_problems:
            found = preflight(self.config, self.policy, self.train_set.problems, self.reward)
            if self.accelerator.is_main_process:
                print(found, flush=True)

    # --- the loop's parts ------------------------------------------------------------------------

    def _timed_step(self, step: int) -> dict[str, float]:
        device = self.base.hardware.device
        reset_peak_memory(device)
        started = time.perf_counter()
        metrics = self.method.step(step)
        metrics["time/step_seconds"] = time.perf_counter() - started
        metrics["memory/peak_mb"] = peak_memory_mb(device)
        return metrics

    def _record(self, step: int, metrics: dict[str, float], bar: tqdm) -> None:
        if self.accelerator.is_main_process:
            append_json(self.run.metrics, [{"step": step, **metrics}])
        if self.config.train.report_to:
            self.accelerator.log(metrics, step=step)
        shown = {
            "reward": metrics.get("reward/mean"),
            "accuracy": metrics.get("accuracy/strict"),
            "tokens": metrics.get("completion/mean_tokens"),
            "loss": metrics.get("sft/loss"),
            "tok/s": metrics.get("time/rollout_tokens_per_second"),
        }
        bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items() if v is not None}, refresh=False)
        bar.update()
        if metrics.get("completion/truncated_share", 0) > TRUNCATED_WARNING:
            self._warn_once(
                "more than %.0f %% of the completions are cut off at rollout.max_new_tokens=%d and "
                "mostly count as wrong; raise it",
                100 * TRUNCATED_WARNING,
                self.config.rollout.max_new_tokens,
            )

    def _warn_once(self, message: str, *values: object) -> None:
        if message not in self.warned:
            self.warned.add(message)
            log.warning(message, *values)

    def _validate(self, step: int) -> None:
        """Greedy accuracy on held-out problems after `step` steps; the best adapter is kept."""
        if self.validation is None or not self.config.train.validate_every:
            return
        result = evaluate(
            self.policy,
            TRAINED,
            self.validation,
            Sampling(
                max_new_tokens=self.config.rollout.max_new_tokens,
                temperature=0.0,
                max_rows=self.config.rollout.max_rows,
                dequantize=self.config.rollout.dequantize,
            ),
            seed=VALIDATION_SEED,
            accelerator=self.accelerator,
        )
        score = (result.strict if self.config.reward.strict else result.lenient).value
        self._record_validation(step, result)
        # an untrained adapter is no candidate; of equals the later one is kept
        if step > 0 and (self.best is None or score >= self.best):
            self.best = score
            self._save_adapter()

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
        append_json(self.run.metrics, [record])
        tqdm.write(
            f"after {step} steps: held-out accuracy {result.strict} strict, {result.lenient} "
            f"lenient, {result.mean_tokens:.0f} tokens"
        )

    def _save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            state = {"optimizer": self.optimizer.state_dict(), "best": self.best}
            keep = self.config.train.keep_checkpoints
            save_checkpoint(self.run.checkpoints, step, self.policy.peft, state, keep)

    def _save_adapter(self) -> None:
        if self.accelerator.is_main_process:
            try:
                save_adapter(self.policy.peft, self.run.adapter)
            except OSError as error:
                raise RunError(f"could not save {self.run.adapter}: {error.strerror}") from error

    def _finish(self) -> None:
        steps = self.config.train.steps
        if self.best is None:  # there was no validation
            self._save_adapter()
        self.describe(status="finished", steps=steps, best_validation=self.best)

    # --- stopping and progress -------------------------------------------------------------------

    def _must_stop(self) -> bool:
        """Whether any process was asked to stop; all agree on it."""
        self.stopping = any(gather_object([self.stopping]))
        return self.stopping

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """First Ctrl-C or SIGTERM: finish the step and save. Second: stop at once."""

        def ask(number: int, _frame: object) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            tqdm.write("finishing this step, then saving; press Ctrl-C again to stop at once")

        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            before = {number: signal.signal(number, ask) for number in numbers}
        except ValueError:  # not the main thread: the caller handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _progress(self) -> tqdm:
        return tqdm(
            total=self.config.train.steps,
            initial=self.first_step,
            desc=self.run.path.name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a crash is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number + 1 < len(lines):
                raise RunError(f"{path}, line {number + 1} is not valid JSON") from error
    return records


def _warn_about(config: Config) -> None:
    """Say in words what would puzzle a user later."""
    if config.optim.learning_rate <= 2e-6:
        log.warning(
            "optim.learning_rate=%g is a full fine-tuning rate; LoRA learns next to nothing "
            "below about 1e-5",
            config.optim.learning_rate,
        )
    if config.method != "grpo":
        return
    if config.train.updates_per_rollout == 1 and config.objective.resolved_old_policy == "sampler":
        log.info(
            "One update per rollout: every ratio is 1, so no trust region acts and clip, noclip "
            "and pspo differ by a constant factor only. Set train.updates_per_rollout=2 to "
            "compare them."
        )
    if config.rollout.top_p < 1 or config.rollout.top_k > 0:
        log.warning(
            "top_p or top_k truncates what is sampled, but log-probabilities are those of the "
            "whole distribution: the gradient is slightly biased"
        )
