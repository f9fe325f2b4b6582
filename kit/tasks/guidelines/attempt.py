"""A completion as checks see it: its own lines, its equations, and the answer it states."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from kit.tasks.answers import extract_lenient_text, parse_number
from kit.tasks.arithmetic import ending, tokenize
from kit.tasks.functions import Messages
from kit.tasks.steps import MAX_CHARS, Step, find_steps
from kit.tasks.verifiers import Verdict

MAX_LINES = 200  # of a text, that are read
LONG_LINE = 16  # characters from which on a line that is part of the prompt is copied from it
RUN = 5  # words in a row that the prompt has, too, are copied from it
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_OPERAND = re.compile(rf"(?<!\^ )(?<![0-9.])(?:{_NUMBER.pattern})")  # no exponent
_MARK = re.compile(r"\W{0,8}####")


@dataclass(frozen=True)
class Attempt:
    """What a model wrote, beside what it was asked and what its answer is worth.

    The text is hostile: what stands beyond the first MAX_CHARS characters and MAX_LINES lines is
    not looked at.
    """

    text: str
    problem: Mapping[str, Any]
    prompt: Messages
    verdict: Verdict

    @cached_property
    def lines(self) -> list[str]:
        """Each line; empty where it only says again what the prompt says."""
        lines = self.text[:MAX_CHARS].split("\n")[:MAX_LINES]
        return ["" if self.is_echo(line) else line for line in lines]

    @cached_property
    def steps(self) -> list[list[Step]]:
        """The equations of each line."""
        return [find_steps(line) for line in self.lines]

    @cached_property
    def states_an_answer(self) -> bool:
        """Whether it says itself which is its answer, right or wrong: a number in prose is none,
        nor is one that the prompt has."""
        marked = (line for line in self.text.split("\n") if "####" in line)
        if self.verdict.strict_answer is not None and not all(map(self.is_echo, marked)):
            return True
        own = "\n".join(self.lines)
        return self.verdict.lenient_answer is not None and extract_lenient_text(own) is not None

    @cached_property
    def answer(self) -> Fraction | None:
        """The answer it states; None where that is no number."""
        found = self.verdict.strict_answer or self.verdict.lenient_answer
        return None if found is None else parse_number(found)

    @cached_property
    def question(self) -> str:
        return str(self.problem["question"])[:MAX_CHARS]

    @cached_property
    def given(self) -> set[Fraction]:
        """The numbers in the question, without their signs."""
        return numbers_in(self.question)

    def answers_in(self, line: int) -> bool:
        """Whether a line is where the answer is marked by `####`."""
        return _MARK.match(self.lines[line]) is not None

    def is_echo(self, line: str) -> bool:
        """Whether a line is one of the prompt's, or a long part of it."""
        plain = _plain(line)
        return plain in self._asked or (len(plain) >= LONG_LINE and plain in self._all_asked)

    @cached_property
    def asked_words(self) -> frozenset[str]:
        """The words and numbers of the prompt."""
        return frozenset(words_in(self._prompted))

    @cached_property
    def asked_runs(self) -> frozenset[Sequence[str]]:
        """Each RUN words in a row of the prompt."""
        return frozenset(runs_of(words_in(self._prompted)))

    @cached_property
    def _asked(self) -> frozenset[str]:
        return frozenset(map(_plain, self._prompted.split("\n")))

    @cached_property
    def _all_asked(self) -> str:
        return _plain(self._prompted)

    @cached_property
    def _prompted(self) -> str:
        return "\n".join(str(message.get("content", "")) for message in self.prompt)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says of a completion: from 0 to 1, and by which of its lines."""

    value: float | None  # None: it does not apply
    lines: Sequence[int] = ()


NOTHING = Finding(0.0)
DOES_NOT_APPLY = Finding(None)


def words_in(text: str) -> list[str]:
    """The words and numbers of a text, in order, in small letters."""
    return _WORD.findall(text.casefold())


def runs_of(words: Sequence[str]) -> list[Sequence[str]]:
    """Each RUN words in a row."""
    return [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]


def numbers_in(text: str) -> set[Fraction]:
    """The numbers of a short text, without their signs; those of too many digits are left out."""
    read = (parse_number(number) for number in _NUMBER.findall(text.replace(",", "")))
    return {abs(number) for number in read if number is not None}


def numbers_of(step: Step) -> set[Fraction]:
    """Those on both sides of an equation, without their signs."""
    return numbers_in(step.expression) | {abs(step.result)}


def claim(step: Step) -> Fraction | str:
    """What an equation computes, the same however it is written: `3 * 4`, `(4) * 3.0 + 0`.

    It is computed with other numbers in the place of its own but 0 and 1, with which two
    expressions agree where they agree with all; as it is written where that cannot be.
    """
    others = _OPERAND.sub(lambda number: str(_other(Fraction(number[0]))), step.expression)
    found = ending(tokenize(others), percent=Fraction(1, 100))
    return step.expression if found is None else found.value


def spellings(steps: Iterable[Step]) -> set[Fraction | str]:
    """What tells equations again: as they are written, and what they compute."""
    return {form for step in steps for form in (step.expression, claim(step))}


def are_retold(steps: Sequence[Step], told: Set[Fraction | str]) -> bool:
    """Whether right equations were all told before, and each in another spelling: two things may
    be computed by the same numbers."""
    return all(s.is_right and s.expression not in told and claim(s) in told for s in steps)


def changes_nothing(step: Step) -> bool:
    """Whether an equation has its result among its own numbers, and no others that matter."""
    result = abs(step.result)
    numbers = numbers_in(step.expression)
    if result not in numbers:
        return False
    beside = numbers - {result, Fraction(0), Fraction(1)}
    return not beside or (result != 0 and claim(step) in (_other(result), -_other(result)))


def _other(number: Fraction) -> int:
    """A number that has nothing to do with this one, and always the same; 0 and 1 stay."""
    return int(number) if number in (0, 1) else zlib.crc32(str(number).encode())


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
