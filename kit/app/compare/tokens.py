"""The tokens of a shown completion, as the page needs them: text, and who finds them how likely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEFT, RIGHT, BASE_SIDE = "left", "right", "base"


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its log-probability under each model that was asked."""

    text: str  # what it adds to the completion; "" where it is part of an unfinished character
    logprobs: Mapping[str, float]  # nats at temperature 1, by side: LEFT, RIGHT, BASE_SIDE
    alternatives: tuple[tuple[str, float], ...]  # (text, probability), likeliest first


@dataclass(frozen=True, slots=True)
class Scores:
    """One answer, token by token; the stop token included."""

    tokens: tuple[Token, ...]
    kl_to_base: float  # nats per token: exact over the vocabulary, mean over the tokens

    @property
    def mean_logprob(self) -> dict[str, float]:
        """Nats per token at temperature 1, by side."""
        sides = self.tokens[0].logprobs
        return {s: sum(t.logprobs[s] for t in self.tokens) / len(self.tokens) for s in sides}
