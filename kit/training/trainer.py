"""The training loop: steps, stopping, progress. Several learners take their steps together.

The step itself is in kit.training.grpo, what belongs to one adapter in kit.training.learner. Arms
that train together share one base in memory and see the same problems; their completions are
sampled in one batch, their updates are taken in turn, and each ends as it would have ended alone.
"""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from kit.config import Config
from kit.errors import (
    ConfigError,
    KitError,
    NotFiniteError,
    OutOfMemoryError,
    RunError,
    TrainingError,
    is_out_of_memory,
    room_for,
)
from kit.model.base import Base, load_base
from kit.model.hardware import empty_cache, limited, peak_memory_mb, reset_peak_memory
from kit.model.lora import TRAINED
from kit.model.rollback import rolled_back
from kit.model.rollout import Sampled, Sampling, count_tokens, sample
from kit.runs import RunFolder
from kit.stopping import HANGUP, on_signals
from kit.tasks.sources import check_named
from kit.training.data import TrainingData, load_data_of_arms
from kit.training.learner import Learner
from kit.training.remarks import say_cut_off
from kit.training.room import settle

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

# learners that train together sample together, on the same problems
SHARED = ("method", "model", "data", "rollout", "memory_budget")
SHOWN = {
    "reward": "reward/mean",
    "accuracy": "accuracy/strict",
    "tokens": "completion/mean_tokens",
    "loss": "sft/loss",
    "dpo margin": "dpo/margin",
    "kto margin": "kto/margin",
    "tok/s": "time/rollout_tokens_per_second",
}
LESS_MEMORY = (
    "What needs less and changes no result, added to the command: rollout.dequantize=never "
    "rollout.max_rows=1 train.micro_batch_tokens=1024 train.logprob_chunk=64 "
    "model.gradient_checkpointing=true. If that is not enough, begin a new run (output=…) with a "
    "lower rollout.max_new_tokens, data.max_prompt_tokens or lora.rank, or a smaller model"
)
SHARED_TRAIN = ("steps", "seed", "validate_every", "checkpoint_every")


def train(config: Config, *, resume: bool = False, base: Base | None = None) -> RunFolder:
    """Train an adapter as the configuration says and leave it in the run folder.

    `base` may be passed when it is loaded already; adapters are taken off it again at the end.
    Raises KitError subclasses for everything a user can mend.
    """
    return train_together([config], resume=resume, base=base)[0]


def train_together(
    configs: Sequence[Config], *, resume: bool = False, base: Base | None = None
) -> list[RunFolder]:
    """Train an adapter for each configuration, all on one base and the same problems.

    Raises ConfigError when they differ in what has to be shared. One that fails while others train
    is left out of the remaining steps, with status "failed" in its run.json.
    """
    for config in configs:
        if not isinstance(config, Config):
            raise ConfigError(
                f"a configuration is what kit.load_config returns, got {config!r:.80}"
            )
    _check_shared(configs)
    check_named(configs[0].data.name)
    if base is not None and base.id != configs[0].model.id:
        raise ConfigError(
            f"the base that was passed is {base.id}, but the configuration's model.id is "
            f"{configs[0].model.id}; pass that base, or none"
        )
    accelerators = [
        Accelerator(
            log_with=config.train.report_to or None,
            project_dir=config.output,
            cpu=not torch.cuda.is_available(),
        )
        for config in configs
    ]
    device = accelerators[0].device
    asked, configs = configs, settle(configs, device, base)
    runs = [RunFolder(config.output or "runs/unnamed") for config in configs]
    with ExitStack() as locks:
        if accelerators[0].is_main_process:
            for run, config in zip(runs, asked, strict=True):
                locks.callback(run.open(config, resume).release)
            locks.enter_context(_ends_noted(runs))
        accelerators[0].wait_for_everyone()
        with limited(configs[0].memory_budget, device):
            _train_together(configs, runs, accelerators, base)
    return runs


def _train_together(
    configs: Sequence[Config],
    runs: Sequence[RunFolder],
    accelerators: Sequence[Accelerator],
    base: Base | None,
) -> None:
    """The run folders are this process's own by now."""
    device = accelerators[0].device
    base = base or load_base(configs[0].model, device if device.type == "cuda" else None)
    data = load_data_of_arms(configs, base.tokenizer)
    if accelerators[0].is_main_process:
        for run in runs:
            run.keep_to(data[0].train_set.problems)
    trainer = Trainer(base)
    try:
        with room_for("putting the adapter on the base", LESS_MEMORY):
            for arm in zip(configs, runs, accelerators, data, strict=True):
                trainer.add(*arm)
        trainer.run_to_end()
    finally:
        trainer.close()


@contextmanager
def _ends_noted(runs: Sequence[RunFolder]) -> Iterator[None]:
    """Say in run.json how an attempt ended that did not come to its end."""
    try:
        yield
    except BaseException as error:
        for run in runs:
            run.note_end(error)
        raise


class Trainer:
    """The loop around the steps of one learner or several."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.model: PeftModel | None = None
        self.learners: list[Learner] = []  # those that still train
        self.stopping = False
        self.said_cut_off = False

    def add(
        self, config: Config, run: RunFolder, accelerator: Accelerator, data: TrainingData
    ) -> None:
        """Put another learner's adapter on the base."""
        # PEFT takes no dots in names, which run folders may have
        name = f"arm{len(self.learners)}" if self.learners else TRAINED
        with rolled_back(self.model or self.base.model):
            learner = Learner(
                config, run, accelerator, self.base, data, adapter_name=name, model=self.model
            )
        self.model = learner.policy.peft
        self.learners.append(learner)

    def run_to_end(self) -> None:
        """All remaining steps; Ctrl-C ends it after the step at hand, with a checkpoint."""
        log.info("%s", self.base.hardware.reason)
        self._set_gradient_checkpointing(True)
        steps = self.config.train.steps
        with room_for("looking at the model before training", LESS_MEMORY):
            for learner in self.learners:
                others = [str(other.run.path) for other in self.learners if other is not learner]
                # fresh adapters say what the base says: one look is enough
                learner.begin(others, with_preflight=learner is self.learners[0])
        with self._stop_on_signal(), self._progress() as bar:
            for step in range(self.first_step, steps):
                metrics = self._step(step)
                self._show(bar, list(metrics.values()))
                stopping = self._after_step(step + 1)
                if stopping and step + 1 < steps:
                    self._say_interrupted(step + 1)
                    return
        with room_for("saving the adapter", self._how_to_go_on):
            for learner in self.learners:
                learner.finish()

    def describe(self, **facts: Any) -> None:
        """Merge facts into the run.json of every learner that still trains."""
        for learner in self.learners:
            learner.describe(**facts)

    def close(self) -> None:
        """Take the adapters off the base again, so that others can use it."""
        if self.model is not None:
            self._set_gradient_checkpointing(False)
            self.model.unload()
        self.base.model.eval()
        for learner in self.learners:
            if learner.config.train.report_to:
                learner.accelerator.end_training()

    @property
    def config(self) -> Config:
        """The configuration of the first learner, for what all have in common."""
        return self.learners[0].config

    @property
    def first_step(self) -> int:
        return min(learner.first_step for learner in self.learners)

    # --- the loop's parts ------------------------------------------------------------------------

    def _step(self, step: int) -> dict[Learner, dict[str, float]]:
        """Sample for every learner at once, then let each learn; those resumed further on wait."""
        reset_peak_memory(self.base.hardware.device)
        learners = [learner for learner in self.learners if learner.first_step <= step]
        done = dict.fromkeys(learners, step)
        with self._rescue(f"step {step + 1}", done):
            sampled, seconds = self._sample(step, learners)
            tokens = sum(count_tokens(own.completions) for own in sampled.values())
            metrics: dict[Learner, dict[str, float]] = {}
            for learner, own in sampled.items():
                # sampling took all learners' time together; each is charged for its own tokens
                share = seconds * count_tokens(own.completions) / max(1, tokens)
                with self._left_out_if_it_fails(learner):
                    metrics[learner] = self._learn(step, learner, own, share)
                    done[learner] = step + 1
        return metrics

    def _sample(
        self, step: int, learners: Sequence[Learner]
    ) -> tuple[dict[Learner, Sampled], float]:
        """What each learner asked for, and the seconds; those that compute NaN are left out."""
        started = time.perf_counter()
        while True:
            asked = {
                learner: learner.requests(step) for learner in learners if learner in self.learners
            }
            requests = list(itertools.chain.from_iterable(asked.values()))
            try:
                completions = sample(
                    self.learners[0].policy, requests, Sampling.from_config(self.config.rollout)
                )
                break
            except NotFiniteError as error:
                whose = {learner.policy.trained: learner for learner in asked}
                learner = whose[error.request.adapter]
                problem = learner.problem_of(error.request)
                with self._left_out_if_it_fails(learner):
                    raise TrainingError(f"step {step + 1}, problem {problem}: {error}") from error
        seconds = time.perf_counter() - started
        self.said_cut_off = self.said_cut_off or say_cut_off(completions)
        if completions and step == self.first_step:
            self.describe(decoding=self.base.replay.said)
        speed = count_tokens(completions) / seconds
        remaining = iter(completions)
        return {
            learner: Sampled(own, list(itertools.islice(remaining, len(own))), speed)
            for learner, own in asked.items()
        }, seconds

    def _learn(
        self, step: int, learner: Learner, sampled: Sampled, seconds: float
    ) -> dict[str, float]:
        """One learner's updates; where they fail, they are undone. `seconds` its sampling took."""
        started = time.perf_counter()
        undo = learner.undo()
        learner.policy.activate()
        try:
            metrics = learner.method.learn(step, sampled)
            learner.check_weights(step)
            learner.check_trained(step, metrics, undo)
        except Exception:
            empty_cache(self.base.hardware.device)
            undo()
            raise
        metrics["time/step_seconds"] = seconds + time.perf_counter() - started
        metrics["memory/peak_mb"] = peak_memory_mb(self.base.hardware.device)
        learner.record(step + 1, metrics)
        return metrics

    def _after_step(self, done: int) -> bool:
        """Validate and save where it is time; returns whether the user asked to stop."""
        train = self.config.train
        last = done == train.steps
        learners = [learner for learner in self.learners if learner.first_step < done]
        if last or (train.validate_every and done % train.validate_every == 0):
            with self._rescue(f"validation after {done} steps", dict.fromkeys(learners, done)):
                for learner in learners:
                    learner.owes_validation = True
                for learner in learners:
                    with self._left_out_if_it_fails(learner):
                        learner.validate(done)
        stopping = self._must_stop()
        if last or stopping or done % train.checkpoint_every == 0:
            for learner in learners:
                if learner in self.learners:
                    learner.save(done)
        return stopping

    # --- what fails ------------------------------------------------------------------------------

    @contextmanager
    def _rescue(self, where: str, done: dict[Learner, int]) -> Iterator[None]:
        """Save what is done when something fails inside, so that it is not done again.

        `done` is changed inside: the steps that are in each learner's weights.
        """
        try:
            yield
        except Exception as error:
            saved = self._save(done)
            if not is_out_of_memory(error):
                raise
            said = str(error) if isinstance(error, KitError) else "out of memory"
            raise OutOfMemoryError(f"{where}: {said}. {saved} {LESS_MEMORY}") from error

    def _save(self, done: dict[Learner, int]) -> str:
        """Checkpoints of the steps that none holds yet; says how to go on from them."""
        steps = max((done[learner] for learner in self.learners if learner in done), default=0)
        try:
            for learner in self.learners:
                if done.get(learner, 0) > learner.saved:
                    learner.save(done[learner])
        except RunError as error:  # what is failing already is what has to be said
            log.error("%s", error)
            return f"Not all of the {steps} steps before are saved. {self._how_to_go_on}."
        said = f"The {steps} steps before are saved; {self._how_to_go_on}."
        log.warning("%s", said)
        return said

    @contextmanager
    def _left_out_if_it_fails(self, learner: Learner) -> Iterator[None]:
        """A learner that fails to train leaves the others to go on; alone, it ends the training."""
        try:
            yield
        except TrainingError as error:
            if len(self.learners) == 1:
                raise
            self._give_up(learner, error)

    def _give_up(self, learner: Learner, error: TrainingError) -> None:
        log.error("%s failed and is left out from here on: %s", learner.run.path, error)
        learner.describe(status="failed", error=str(error), resumable=False)
        self.learners.remove(learner)

    def _set_gradient_checkpointing(self, on: bool) -> None:
        if not self.config.model.gradient_checkpointing:
            return
        model = self.base.model
        if on:
            model.train()  # transformers checkpoints in training mode only
        if self.base.unsloth is not None:
            return  # which has a switch of its own
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    # --- stopping and progress -------------------------------------------------------------------

    def _must_stop(self) -> bool:
        """Whether any process was asked to stop; all agree on it."""
        self.stopping = any(gather_object([self.stopping]))
        return self.stopping

    def _say_interrupted(self, steps: int) -> None:
        self.describe(status="interrupted", steps=steps)
        log.warning("stopped after step %d; %s", steps, self._how_to_go_on)

    @property
    def _how_to_go_on(self) -> str:
        if len(self.learners) > 1:
            return "the same command continues"
        return f"continue with: kit train {self.learners[0].run.path} --resume"

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM or a closed terminal: finish the step and save. Ctrl-C or SIGTERM a
        second time: stop at once. A closed terminal is told twice, by the shell and the system."""
        asked: set[int] = set()

        def ask(number: int) -> None:
            if number != HANGUP and asked - {HANGUP}:
                raise KeyboardInterrupt
            asked.add(number)
            if not self.stopping:
                tqdm.write("finishing this step, then saving; press Ctrl-C again to stop at once")
            self.stopping = True

        with on_signals(ask, signal.SIGINT, signal.SIGTERM, HANGUP):
            yield

    def _progress(self) -> tqdm:
        names = [learner.run.label for learner in self.learners]
        return tqdm(
            total=self.config.train.steps,
            initial=self.first_step,
            desc=names[0] if len(names) == 1 else f"{len(names)} arms",
            unit="step",
            disable=not self.learners[0].accelerator.is_main_process,
        )

    def _show(self, bar: tqdm, metrics: Sequence[dict[str, float]]) -> None:
        """The means over the learners."""
        shown = {}
        for label, key in SHOWN.items():
            values = [own[key] for own in metrics if key in own]
            if values:
                shown[label] = f"{sum(values) / len(values):.3g}"
        bar.set_postfix(shown, refresh=False)
        bar.update()


def _check_shared(configs: Sequence[Config]) -> None:
    """Refuse learners that could not share problems, rollouts and a schedule."""
    first, *others = configs
    for other in others:
        differing = [key for key in SHARED if getattr(other, key) != getattr(first, key)]
        differing += [
            f"train.{key}"
            for key in SHARED_TRAIN
            if getattr(other.train, key) != getattr(first.train, key)
        ]
        if differing:
            raise ConfigError(
                f"{first.output} and {other.output} differ in {', '.join(differing)}, which arms "
                "that train together must share; train them separately"
            )
    outputs = [config.output for config in configs]
    if len(set(outputs)) < len(outputs):
        raise ConfigError(f"every arm needs an output folder of its own, got {outputs}")
