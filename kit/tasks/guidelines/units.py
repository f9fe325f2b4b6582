"""Whether the results of equations say what they are counted or measured in."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from kit.guideline import Units
from kit.tasks.guidelines.attempt import (
    DOES_NOT_APPLY,
    NOTHING,
    Attempt,
    Finding,
    are_retold,
    spellings,
)
from kit.tasks.units import is_unit, kinds, measure

MAX_UNIT = 40  # characters after a result in which its unit stands
_CURRENCY = re.compile(r"[$€£¥]")
_RESULT = re.compile(r"(?P<sign>[$€£¥])? {0,2}-?[0-9][0-9,]{0,30}(?:\.[0-9]{1,30})?(?P<after>.*)")
_WORDS = re.compile(r" {0,2}\(?(%|[^\W\d_]+)((?: [^\W\d_]+){0,2})")
_TELLING = re.compile(r"(?!in\b)[^\W\d_]{2,}", re.IGNORECASE)  # `in`, `s` are seldom units
_AT_A_NUMBER = re.compile(r"[0-9][ -]?([^\W\d_]{1,2})(?![^\W\d_])")


def units(attempt: Attempt, settings: Units) -> Finding:
    """The share of lines with equations, all right and new, whose last result has a unit.

    Those told before in another spelling count neither way.
    """
    if not (_kinds(attempt.question) or _things(attempt.question)):
        return DOES_NOT_APPLY
    told: set[Fraction | str] = set()
    named, counted = [], 0
    for number, steps in enumerate(attempt.steps):
        if not steps or are_retold(steps, told):
            continue
        counted += 1
        is_new = not any(step.expression in told for step in steps)
        told |= spellings(steps)
        if is_new and all(step.is_right for step in steps) and _names(attempt, number):
            named.append(number)
    return Finding(len(named) / counted, named) if named else NOTHING


def _names(attempt: Attempt, line: int) -> bool:
    """Whether a unit stands at the number after the last equals sign of a line."""
    result = _RESULT.match(attempt.lines[line].rpartition("=")[2].lstrip()[: 3 * MAX_UNIT])
    if result is None:
        return False
    if result["sign"]:
        return bool(_CURRENCY.search(attempt.question)) or "dollar" in attempt.question.casefold()
    words = _WORDS.match(result["after"][:MAX_UNIT])
    if words is None:
        return False
    said = f"{words[1]} {words[2]}".replace("%", "percent").split()
    return any(_is_named(" ".join(said[: n + 1]), attempt.question) for n in range(len(said)))


def _is_named(unit: str, question: str) -> bool:
    """A unit of measure, or a thing that the question counts; all of it of the question's kinds."""
    measured = (kinds(word) for word in unit.split() if measure(word))
    if not is_unit(unit) or not all(kind & _kinds(question) for kind in measured):
        return False
    return measure(unit) is not None or bool(_things(unit) & _things(question))


@lru_cache(maxsize=1024)
def _kinds(question: str) -> frozenset[str]:
    """What the question has units of measure of, or words for."""
    words = [word.casefold() for word in _TELLING.findall(question.replace("%", " percent "))]
    short = _AT_A_NUMBER.findall(question)
    money = ["dollar"] if _CURRENCY.search(question) else []
    return frozenset().union(*map(kinds, [*words, *short, *money]))


@lru_cache(maxsize=1024)
def _things(text: str) -> frozenset[str]:
    """The words that may be units, singular."""
    words = (word.casefold() for word in _TELLING.findall(text))
    return frozenset(word.removesuffix("s") for word in words if is_unit(word))
