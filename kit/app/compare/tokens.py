"""A completion token by token, and how likely each model finds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kit.app.inert import printable
from kit.errors import AdapterError

SHOWN = 24  # characters of a token where it is quoted


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


def log_ratio(token: Token, index: int, side: str, reference: str) -> float:
    """log π_side - log π_reference of one token, in nats.

    Raises AdapterError when one of the two is not a finite number.
    """
    for name in (side, reference):
        if not math.isfinite(token.logprobs[name]):
            raise AdapterError(
                f"token {index + 1} has the log-probability {token.logprobs[name]} under {name}, "
                "which no sound model gives; check the adapter with `kit verify`"
            )
    return token.logprobs[side] - token.logprobs[reference]


def quoted(text: str) -> str:
    """A token's text in one line, shortened, its line breaks visible."""
    text = printable(text).replace("\n", "↵").replace("\t", "⇥")
    if not text:
        return "(part of a character)"
    return f"“{text[:SHOWN]}…”" if len(text) > SHOWN else f"“{text}”"
