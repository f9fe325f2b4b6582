"""The training loop: steps, stopping, progress. Several arms take their steps together.

The step itself is in kit.grpo, what belongs to one arm in kit.arm. Arms that train together share
one base in memory and see the same problems; their completions are sampled in one batch, their
updates are taken in turn, and each ends as it would have ended alone.
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

from kit.arm import Arm
from kit.config import Config
from kit.data import TrainingData, load_training_data
from kit.errors import ConfigError, TrainingError
from kit.hardware import peak_memory_mb, reset_peak_memory
from kit.models import TRAINED, Base, load_base
from kit.rollout import Sampled, Sampling, count_tokens, sample
from kit.runs import RunFolder

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

# arms that train together sample together, on the same problems
SHARED = ("method", "model", "data", "rollout")
SHOWN = {
    "reward": "reward/mean",
    "accuracy": "accuracy/strict",
    "tokens": "completion/mean_tokens",
    "loss": "sft/loss",
    "tok/s": "time/rollout_tokens_per_second",
}
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

    Raises ConfigError when they differ in what has to be shared. An arm that fails while others
    train is left out of the remaining steps, with status "failed" in its run.json.
    """
    _check_shared(configs)
    accelerators = [
        Accelerator(
            log_with=config.train.report_to or None,
            project_dir=config.output,
            cpu=not torch.cuda.is_available(),
        )
        for config in configs
    ]
    runs = [RunFolder(config.output or "runs/unnamed") for config in configs]
    with ExitStack() as locks:
        if accelerators[0].is_main_process:
            for run, config in zip(runs, configs, strict=True):
                locks.callback(run.open(config, resume).release)
        accelerators[0].wait_for_everyone()
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
    data = load_training_data(configs[0], base.tokenizer)
    if accelerators[0].is_main_process:
        for run in runs:
            run.keep_to(data.train_set.problems)
    trainer = Trainer(base, data)
    try:
        for config, run, accelerator in zip(configs, runs, accelerators, strict=True):
            trainer.add(config, run, accelerator)
        trainer.run_to_end()
    except KeyboardInterrupt:
        trainer.describe(status="interrupted")
        raise
    except BaseException:
        trainer.describe(status="failed")
        raise
    finally:
        trainer.close()


class Trainer:
    """The loop around the steps of one arm or several."""

    def __init__(self, base: Base, data: TrainingData) -> None:
        self.base = base
        self.data = data
        self.model: PeftModel | None = None
        self.arms: list[Arm] = []  # those that still train
        self.stopping = False

    def add(self, config: Config, run: RunFolder, accelerator: Accelerator) -> None:
        """Put another arm's adapter on the base."""
        # PEFT takes no dots in names, which run folders may have
        name = f"arm{len(self.arms)}" if self.arms else TRAINED
        arm = Arm(
            config, run, accelerator, self.base, self.data, adapter_name=name, model=self.model
        )
        self.model = arm.policy.peft
        self.arms.append(arm)

    def run_to_end(self) -> None:
        """All remaining steps; Ctrl-C ends it after the step at hand, with a checkpoint."""
        log.info("%s", self.base.hardware.reason)
        self._set_gradient_checkpointing(True)
        steps = self.config.train.steps
        for arm in self.arms:
            others = [str(other.run.path) for other in self.arms if other is not arm]
            # fresh adapters say what the base says: one look is enough
            arm.begin(others, with_preflight=arm is self.arms[0])
        with self._stop_on_signal(), self._progress() as bar:
            for step in range(self.first_step, steps):
                metrics = self._step(step)
                self._show(bar, list(metrics.values()))
                stopping = self._after_step(step + 1)
                if stopping and step + 1 < steps:
                    self._say_interrupted(step + 1)
                    return
        for arm in self.arms:
            arm.finish()

    def describe(self, **facts: Any) -> None:
        """Merge facts into the run.json of every arm that still trains."""
        for arm in self.arms:
            arm.describe(**facts)

    def close(self) -> None:
        """Take the adapters off the base again, so that others can use it."""
        if self.model is not None:
            self._set_gradient_checkpointing(False)
            self.model.unload()
        self.base.model.eval()
        for arm in self.arms:
            if arm.config.train.report_to:
                arm.accelerator.end_training()

    @property
    def config(self) -> Config:
        """The configuration of the first arm, for what all have in common."""
        return self.arms[0].config

    @property
    def first_step(self) -> int:
        return min(arm.first_step for arm in self.arms)

    # --- the loop's parts ------------------------------------------------------------------------

    def _step(self, step: int) -> dict[Arm, dict[str, float]]:
        """Sample for every arm at once, then let each learn; arms resumed further on wait."""
        device = self.base.hardware.device
        reset_peak_memory(device)
        arms = [arm for arm in self.arms if arm.first_step <= step]
        requests = [arm.method.requests(step) for arm in arms]
        started = time.perf_counter()
        completions = sample(
            self.arms[0].policy,
            list(itertools.chain.from_iterable(requests)),
            Sampling.from_config(self.config.rollout),
        )
        seconds = time.perf_counter() - started
        tokens = count_tokens(completions)
        remaining = iter(completions)
        metrics: dict[Arm, dict[str, float]] = {}
        for arm, asked in zip(arms, requests, strict=True):
            mine = list(itertools.islice(remaining, len(asked)))
            started = time.perf_counter()
            arm.policy.activate()
            try:
                metrics[arm] = arm.method.learn(step, Sampled(asked, mine, tokens / seconds))
            except TrainingError as error:
                if len(self.arms) == 1:
                    raise
                self._give_up(arm, error)
                continue
            # sampling took all arms' time together; each is charged for its own tokens
            share = seconds * count_tokens(mine) / max(1, tokens)
            metrics[arm]["time/step_seconds"] = share + time.perf_counter() - started
            metrics[arm]["memory/peak_mb"] = peak_memory_mb(device)
            arm.record(step + 1, metrics[arm])
        return metrics

    def _after_step(self, done: int) -> bool:
        """Validate and save where it is time; returns whether the user asked to stop."""
        train = self.config.train
        last = done == train.steps
        arms = [arm for arm in self.arms if arm.first_step < done]
        if last or (train.validate_every and done % train.validate_every == 0):
            for arm in arms:
                arm.validate(done)
        stopping = self._must_stop()
        if last or stopping or done % train.checkpoint_every == 0:
            for arm in arms:
                arm.save(done)
        return stopping

    def _give_up(self, arm: Arm, error: TrainingError) -> None:
        log.error("%s failed and is left out from here on: %s", arm.run.path, error)
        arm.describe(status="failed", error=str(error))
        self.arms.remove(arm)

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
        how = (
            f"continue with: kit train {self.arms[0].run.path} --resume"
            if len(self.arms) == 1
            else "the same command continues"
        )
        log.warning("stopped after step %d; %s", steps, how)

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
        names = [arm.run.label for arm in self.arms]
        return tqdm(
            total=self.config.train.steps,
            initial=self.first_step,
            desc=names[0] if len(names) == 1 else f"{len(names)} arms",
            unit="step",
            disable=not self.arms[0].accelerator.is_main_process,
        )

    def _show(self, bar: tqdm, metrics: Sequence[dict[str, float]]) -> None:
        """The means over the arms."""
        shown = {}
        for label, key in SHOWN.items():
            values = [own[key] for own in metrics if key in own]
            if values:
                shown[label] = f"{sum(values) / len(values):.3g}"
        bar.set_postfix(shown, refresh=False)
        bar.update()


def _check_shared(configs: Sequence[Config]) -> None:
    """Refuse arms that could not share problems, rollouts and a schedule."""
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
