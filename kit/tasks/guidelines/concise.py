"""How short the shortest right answer to a problem is beside each right one."""

from __future__ import annotations

from collections.abc import Sequence

from kit.guideline import Concise
from kit.tasks.guidelines.attempt import DOES_NOT_APPLY, Attempt, Finding


def concise(group: Sequence[Attempt], settings: Concise) -> list[Finding]:
    """Lengths are in characters; a wrong answer is never rewarded for being short."""
    right = [attempt.verdict.lenient and attempt.states_an_answer for attempt in group]
    lengths = [len(attempt.text) for attempt, counts in zip(group, right, strict=True) if counts]
    if len(lengths) < 2:
        return [DOES_NOT_APPLY] * len(group)
    return [
        Finding(min(lengths) / len(attempt.text)) if counts else DOES_NOT_APPLY
        for attempt, counts in zip(group, right, strict=True)
    ]
