"""What the model is asked and what it says, without the libraries that run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kit.model.rollout import Completion

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Job:
    """What all sides are asked, with the same random numbers."""

    messages: Sequence[Message]
    adapters: Mapping[str, str | None]  # by side: folder or hub id; None: the bare base
    temperature: float
    max_new_tokens: int
    seed: int
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """What each side has said so far; `scores` once all have ended."""

    completions: dict[str, tuple[Completion, ...]]  # by side, one per sample
    seconds: dict[str, tuple[float, ...]]  # until each one's newest token
    scores: dict[str, ScoredAnswer] = field(default_factory=dict)  # of each side's first sample
    hashes: dict[str, str | None] = field(default_factory=dict)  # of the adapters that said it


LEFT, RIGHT, BASE_SIDE = "left", "right", "base"


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its log-probability under each model that was asked."""

    text: str  # what it adds to the completion; "" where it is part of an unfinished character
    logprobs: Mapping[str, float]  # nats at temperature 1, by side: LEFT, RIGHT, BASE_SIDE
    alternatives: tuple[tuple[str, float], ...]  # (text, probability), likeliest first


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer, token by token; the stop token included."""

    tokens: tuple[Token, ...]
    kl_to_base: float  # nats per token: exact over the vocabulary, mean over the tokens

    @property
    def mean_logprob(self) -> dict[str, float]:
        """Nats per token at temperature 1, by side."""
        sides = self.tokens[0].logprobs
        return {s: sum(t.logprobs[s] for t in self.tokens) / len(self.tokens) for s in sides}
