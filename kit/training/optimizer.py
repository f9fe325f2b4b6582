"""One optimizer step: gradients gathered in micro-batches, checked, clipped and applied.

The losses of all micro-batches on all processes add up to the step's loss, so gradients are
summed, never averaged; they are exchanged once per step, which for LoRA is a few megabytes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from kit.config import OptimConfig, TrainConfig
from kit.errors import OutOfMemoryError, TrainingError, is_out_of_memory, room_for
from kit.model.batching import micro_batches
from kit.model.hardware import empty_cache
from kit.model.packing import packed_batches

log = logging.getLogger(__name__)

# Gradients of float16 activations are tiny; the scaler finds its own scale from here.
INITIAL_LOSS_SCALE = 2.0**12

Extra = TypeVar("Extra")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What an optimizer step did."""

    loss: float  # summed over all micro-batches of this process
    grad_norm: float  # over all processes, before clipping; inf or nan when not finite
    learning_rate: float
    applied: bool


class Optimizer:
    """AdamW over the trainable weights, with loss scaling, clipping and retries."""

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        optim_config: OptimConfig,
        train_config: TrainConfig,
        accelerator: Accelerator,
        scales_loss: bool,
        updates: int | None = None,
    ) -> None:
        """`updates`: of the whole run, for the schedule; None: as many as its rollouts give."""
        if not parameters:
            raise TrainingError("no weight is trainable; check lora.targets")
        self.parameters = list(parameters)
        self.optim_config = optim_config
        self.train_config = train_config
        self.accelerator = accelerator
        self.updates = 0
        self.total = updates or train_config.steps * train_config.updates_per_rollout
        self.nonfinite_in_a_row = 0
        self.budget = train_config.micro_batch_tokens
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, init_scale=INITIAL_LOSS_SCALE, enabled=scales_loss
        )
        # makes its scale, which a process without rows in the first update undoes too
        self.scaler.scale(torch.zeros((), device=accelerator.device))
        self._adam = _adamw(self.parameters, optim_config)

    def step(
        self,
        lengths: Sequence[int],
        loss_of: Callable[[list[int]], tuple[Tensor, Extra]],
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> tuple[UpdateResult, list[Extra]]:
        """Run `loss_of` on micro-batches of the rows and apply the summed gradient.

        Args:
            lengths: tokens of each row of this process; may be empty on some processes.
            loss_of: row indices -> (their share of the step's loss, anything to be returned).
            prompts: of each row, where rows of a micro-batch that have the same compute it once.

        A step that runs out of memory is repeated with half the micro-batch; OutOfMemoryError where
        a single row is too much. A gradient that is not finite is not applied: see
        `check_progress`.
        """

        def backward(rows: list[int]) -> tuple[float, Extra]:
            loss, extra = loss_of(rows)
            self.scaler.scale(loss).backward()
            return loss.item(), extra

        results = self.in_micro_batches(lengths, backward, prompts)
        self._sum_over_processes()
        self.scaler.unscale_(self._adam)
        clip = self.optim_config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, clip).item()
        rate = self._set_learning_rate()
        applied = math.isfinite(norm)
        if applied:
            # the first time, it takes room for the moments
            with room_for("applying an update", "set optim.name=adamw_8bit or lower lora.rank"):
                self.scaler.step(self._adam)
        self.scaler.update()
        self._adam.zero_grad(set_to_none=True)
        self.updates += 1
        self.nonfinite_in_a_row = 0 if applied else self.nonfinite_in_a_row + 1
        loss = sum(loss for loss, _ in results)
        return UpdateResult(loss, norm, rate, applied), [extra for _, extra in results]

    def in_micro_batches(
        self,
        lengths: Sequence[int],
        function: Callable[[list[int]], Result],
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """`function` of the rows of every micro-batch; all again with half of the tokens, and
        with gradients cleared, when memory runs out. `prompts` as in `step`."""
        while True:
            if prompts is None:
                batches = micro_batches(lengths, self.budget)
            else:
                batches = packed_batches(prompts, lengths, self.budget)
            try:
                return [function(rows) for rows in batches]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # the traceback would keep the graph's tensors alive during the retry
                error.__traceback__ = None
                self._halve(batches)

    def check_progress(self, where: str) -> None:
        """Raise TrainingError after `train.max_nonfinite` updates in a row that were not finite."""
        if self.nonfinite_in_a_row >= self.train_config.max_nonfinite:
            raise TrainingError(
                f"{where}: {self.nonfinite_in_a_row} updates in a row had a loss or gradient that "
                "is not finite (nonfinite.jsonl has their rows). Lower optim.learning_rate, or try "
                "model.dtype=float32"
            )

    def skip(self) -> None:
        """Count an update without signal, so that the schedule goes on."""
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "adam": self._adam.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "budget": self.budget,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        if state["scaler"]:  # empty where the run did not scale its losses up to here
            self.scaler.load_state_dict(state["scaler"])
        self.updates = state["updates"]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        # the halvings are kept, and so is what the user has lowered since
        self.budget = min(state["budget"], self.train_config.micro_batch_tokens)

    def _halve(self, batches: list[list[int]]) -> None:
        self._adam.zero_grad(set_to_none=True)
        empty_cache(self.accelerator.device)
        if max(len(rows) for rows in batches) == 1:
            raise OutOfMemoryError("out of memory with a single completion in the micro-batch")
        self.budget //= 2
        log.warning("out of memory: repeating the step with %d tokens at once", self.budget)

    def _sum_over_processes(self) -> None:
        # a process without rows has no gradient; every process takes part in the sum
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        if self.accelerator.num_processes > 1:
            flat = torch.cat([grad.flatten() for grad in grads])
            flat = self.accelerator.reduce(flat, reduction="sum")
            sizes = [grad.numel() for grad in grads]
            grads = [g.view_as(p) for g, p in zip(flat.split(sizes), self.parameters, strict=True)]
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    def _set_learning_rate(self) -> float:
        rate = learning_rate(self.updates, self.total, self.optim_config)
        for group in self._adam.param_groups:
            group["lr"] = rate
        return rate


def learning_rate(update: int, total: int, config: OptimConfig) -> float:
    """Learning rate of update 0, 1, … of `total`: linear warm-up, then the schedule."""
    warmup = round(config.warmup_fraction * total)
    if update < warmup:
        return config.learning_rate * (update + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.learning_rate
    done = min(1.0, (update - warmup) / max(1, total - warmup))
    share = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * share


def _adamw(parameters: list[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw_8bit":
        import bitsandbytes as bnb

        return bnb.optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)
