"""One token of a shown completion, as the page needs it: its text and who finds it how likely."""

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
