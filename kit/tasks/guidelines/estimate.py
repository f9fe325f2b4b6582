"""An estimate before the first equation, compared with the answer after the last one."""

from __future__ import annotations

import re
from fractions import Fraction

from kit.guideline import Estimate
from kit.tasks.guidelines.attempt import NOTHING, Attempt, Finding, changes_nothing, numbers_in

MAX_LINE = 300  # characters of a line that are read
LEAST_WORDS = 2  # of a comparison, besides its heading
_ESTIMATE = re.compile(r"\W{0,8}estimate[*_ ]{0,4}:([^\n]*)", re.IGNORECASE)
_COMPARE = re.compile(r"\W{0,8}compare[*_ ]{0,4}:([^\n]*)", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")


def estimate(attempt: Attempt, settings: Estimate) -> Finding:
    """0, 0.5 or 1: the estimate is half, comparing it the other; without it there is none."""
    first = next((n for n, steps in enumerate(attempt.steps) if steps), len(attempt.lines))
    place, value = _estimated(attempt, before=first)
    if value is None or attempt.answer is None or not _is_near(value, attempt.answer, settings):
        return NOTHING
    compared = _compared(attempt, value)
    return Finding(0.5, [place]) if compared is None else Finding(1.0, [place, compared])


def _estimated(attempt: Attempt, before: int) -> tuple[int, Fraction | None]:
    """Line and value of the one estimate; a second one, or two numbers in it, are guesses."""
    found = [
        (number, numbers_in(said[1]))
        for number, line in enumerate(attempt.lines)
        if (said := _ESTIMATE.match(line[:MAX_LINE]))
    ]
    if len(found) != 1 or found[0][0] >= before or len(found[0][1]) != 1:
        return 0, None
    return found[0][0], next(iter(found[0][1]))


def _is_near(value: Fraction, answer: Fraction, settings: Estimate) -> bool:
    """Without signs, which are not estimated."""
    return abs(value - abs(answer)) <= settings.tolerance * abs(answer)


def _compared(attempt: Attempt, value: Fraction) -> int | None:
    """The line after an equation with the answer that has both numbers, and words."""
    answer = abs(attempt.answer or Fraction(0))
    last = max(
        (
            number
            for number, steps in enumerate(attempt.steps)
            for step in steps
            if step.is_right and step.is_computed and not changes_nothing(step)
            if abs(step.result) == answer
        ),
        default=None,
    )
    if last is None:
        return None
    for number in range(last + 1, len(attempt.lines)):
        said = _COMPARE.match(attempt.lines[number][:MAX_LINE])
        if said and {answer, value} <= numbers_in(said[1]):
            return number if len(set(_WORD.findall(said[1].casefold()))) >= LEAST_WORDS else None
    return None
