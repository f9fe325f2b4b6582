"""What the model is asked and what it says, without the libraries that run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kit.app.compare.tokens import Scores

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
    scores: dict[str, Scores] = field(default_factory=dict)  # of each side's first sample
    hashes: dict[str, str | None] = field(default_factory=dict)  # of the adapters that said it
