"""The parts of a solution: each begun by its heading, in order, with content of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from kit.guideline import Sections
from kit.tasks.guidelines.attempt import (
    NOTHING,
    RUN,
    Attempt,
    Finding,
    changes_nothing,
    claim,
    numbers_of,
    runs_of,
    words_in,
)
from kit.tasks.steps import Step

LEAST_WORDS = 3  # different ones, that a part must have and no other part has
MAX_HEADING = 80  # characters of a line in which its heading must end


@dataclass(slots=True)
class _Part:
    heading: str
    line: int  # where it begins
    words: set[str] = field(default_factory=set)
    lines: list[int] = field(default_factory=list)


def sections(attempt: Attempt, settings: Sections) -> Finding:
    """The share of parts that are filled; 0 where they do not come in their order, each once."""
    parts = _split(attempt, settings.headings)
    order = [settings.headings.index(part.heading) for part in parts]
    if order != sorted(set(order)):
        return NOTHING
    filled = [part for i, part in enumerate(parts) if _is_filled(attempt, settings, parts, i)]
    lines = [line for part in filled for line in part.lines]
    return Finding(len(filled) / len(settings.headings), sorted(lines))


def _split(attempt: Attempt, headings: Sequence[str]) -> list[_Part]:
    """The parts as they come; what stands before the first is of none."""
    any_heading = "|".join(f"({re.escape(heading)})" for heading in headings)
    begins = re.compile(
        rf"\W{{0,8}}(?:[0-9]{{1,2}}\W{{1,4}})?(?:{any_heading})[*_ ]{{0,4}}(?::|\Z)", re.IGNORECASE
    )
    parts: list[_Part] = []
    for number, line in enumerate(attempt.lines):
        begun = begins.match(line[:MAX_HEADING])
        if begun and begun.lastindex:
            parts.append(_Part(headings[begun.lastindex - 1], number))
            line = line[begun.end() :]
        if parts and line and not attempt.answers_in(number) and not attempt.is_echo(line):
            parts[-1].words |= _written(attempt, line)
            parts[-1].lines.append(number)
    return parts


def _written(attempt: Attempt, line: str) -> set[str]:
    """The words and numbers of a line, but for letters alone and what is copied from the prompt."""
    words = words_in(line)
    runs = (range(i, i + RUN) for i, run in enumerate(runs_of(words)) if run in attempt.asked_runs)
    copied = {i for run in runs for i in run}
    kept = (word for i, word in enumerate(words) if i not in copied)
    return {word for word in kept if len(word) > 1 or word.isnumeric()}


def _is_filled(attempt: Attempt, settings: Sections, parts: Sequence[_Part], i: int) -> bool:
    others = (part.words for j, part in enumerate(parts) if j != i)
    own = parts[i].words.difference(*others)
    if parts[i].heading in settings.computed:
        return _computes(attempt, parts[i], before=parts[:i])
    return len(own) >= LEAST_WORDS and not own <= attempt.asked_words


def _computes(attempt: Attempt, part: _Part, before: Sequence[_Part]) -> bool:
    """Whether it holds a right equation of the answer and a known number, which none before is."""
    earlier = [step for p in before for line in p.lines for step in attempt.steps[line]]
    told = {claim(step) for step in earlier}
    known = attempt.given.union(*(numbers_of(step) for step in earlier))
    return any(
        step.is_right
        and step.is_computed
        and not changes_nothing(step)
        and claim(step) not in told
        and _ties(step, attempt.answer, known)
        for line in part.lines
        for step in attempt.steps[line]
    )


def _ties(step: Step, answer: Fraction | None, known: set[Fraction]) -> bool:
    """Whether an equation has the answer in it, and one of the known numbers beside it."""
    numbers = numbers_of(step)
    if answer is None:  # it is no number
        return bool(numbers & known)
    return abs(answer) in numbers and bool((numbers - {abs(answer)}) & known)
