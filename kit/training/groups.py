"""The completions of a step, those of a group side by side, and what is known about each.

B rows, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kit.model.rollout import Completion, count_tokens

Problem = Mapping[str, Any]  # a row of the problem set


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one process sampled in a step: B rows."""

    problems: list[Problem]  # (B,) each problem once for every completion
    prompts: list[tuple[int, ...]]  # (B,) token ids
    completions: list[Completion]  # (B,)
    advantages: Tensor  # (B,) float32
    reference: list[Tensor] = field(default_factory=list)  # (B,) log-probs; none until computed

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def tokens(self) -> int:
        """Completion tokens, stop tokens included."""
        return count_tokens(self.completions)

    @property
    def lengths(self) -> list[int]:
        """(B,) tokens of prompt and completion."""
        pairs = zip(self.prompts, self.completions, strict=True)
        return [len(prompt) + len(completion.tokens) for prompt, completion in pairs]

    @property
    def sampler(self) -> list[Tensor]:
        """(B,) what the sampler recorded: log-probabilities of a completion's tokens."""
        return [torch.tensor(completion.logprobs) for completion in self.completions]

    def select(self, rows: Sequence[int]) -> Rollout:
        """The rollout of these rows alone, in this order."""
        return Rollout(
            problems=[self.problems[i] for i in rows],
            prompts=[self.prompts[i] for i in rows],
            completions=[self.completions[i] for i in rows],
            advantages=self.advantages[list(rows)],
            reference=[self.reference[i] for i in rows] if self.reference else [],
        )

    @property
    def tokens_of(self) -> list[list[int]]:
        """(B,) token ids of the completions."""
        return [completion.tokens for completion in self.completions]
