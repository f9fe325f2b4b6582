"""Log-probabilities of whole completions, under the policy that learns and under its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.model.policy import Policy
from kit.training.optimizer import Optimizer


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and a completion of it, as token ids; the completion has its end of turn."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def whole_logprobs(policy: Policy, rows: Sequence[Row], adapter: str, chunk: int) -> Tensor:
    """(B,) float32: of each completion the sum over its tokens, at temperature 1."""
    batch = policy.batch([row.prompt for row in rows], [row.completion for row in rows])
    logprobs, _ = policy.logprobs(batch, adapter, chunk=chunk)
    return logprobs.sum(dim=1)


@torch.no_grad()
def fixed_logprobs(
    policy: Policy, optimizer: Optimizer, rows: Sequence[Row], adapter: str, chunk: int
) -> Tensor:
    """The same without gradient, in micro-batches, on the CPU; of no rows an empty one."""
    found = torch.zeros(len(rows))

    def compute(places: list[int]) -> None:
        own = whole_logprobs(policy, [rows[i] for i in places], adapter, chunk)
        found[places] = own.cpu()

    prompts = policy.shared([row.prompt for row in rows])
    optimizer.in_micro_batches([len(row) for row in rows], compute, prompts)
    return found
