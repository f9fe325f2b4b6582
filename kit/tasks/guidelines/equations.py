"""Equations that stand alone in a line, come out, and lead to the stated answer."""

from __future__ import annotations

from fractions import Fraction

from kit.guideline import Equations
from kit.tasks.guidelines.attempt import (
    NOTHING,
    Attempt,
    Finding,
    are_retold,
    changes_nothing,
    numbers_in,
    spellings,
)
from kit.tasks.steps import Step


def equations(attempt: Attempt, settings: Equations) -> Finding:
    """The share of good lines among those that count for or against it.

    Good is an equation that the answer, or a later good one, takes its number from. What computes
    with the answer, to check it, counts neither way, nor does what changes nothing, nor one told
    before in another spelling.
    """
    lines, retold = _lines_with_equations(attempt)
    if not lines:
        return NOTHING
    end = _end(attempt, lines)
    wanted = {end}
    good: list[int] = []
    neutral = 0
    for number, step in reversed(lines.items()):
        if step is None:
            continue
        operands = numbers_in(step.expression)
        is_wanted = abs(step.result) in wanted
        if number in retold or changes_nothing(step) or (not is_wanted and end in operands):
            neutral += 1
        elif is_wanted:
            good.append(number)
        if is_wanted:
            wanted |= operands
    return Finding(len(good) / (len(lines) - neutral), sorted(good)) if good else NOTHING


def _lines_with_equations(attempt: Attempt) -> tuple[dict[int, Step | None], set[int]]:
    """Each line's one equation, and the lines that only tell one again in another spelling.

    It is None where a line has several equations, a wrong one, or one told before as it is.
    """
    found: dict[int, Step | None] = {}
    retold: set[int] = set()
    told: set[Fraction | str] = set()
    for number, steps in enumerate(attempt.steps):
        if steps:
            step = steps[0]
            alone = len(steps) == 1 and step.is_right and step.is_computed
            found[number] = step if alone and step.expression not in told else None
            retold |= {number} if are_retold(steps, told) else set()
            told |= spellings(steps)
    return found, retold


def _end(attempt: Attempt, lines: dict[int, Step | None]) -> Fraction:
    """What the equations are to lead to: the answer, or the last result where that is no number."""
    if attempt.answer is not None:
        return abs(attempt.answer)
    return next((abs(step.result) for step in reversed(lines.values()) if step), Fraction(0))
