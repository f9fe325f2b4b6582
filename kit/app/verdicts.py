"""Whether an answer is right, and how the page says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.app.library.results import Attempt
from kit.config import AnswerKind
from kit.tasks.answers import parse_number
from kit.tasks.problems import VERIFIERS
from kit.tasks.verifiers import Row, Verdict, Verifier, task_answers


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict in a word or two; `kind` decides its colour."""

    kind: str
    text: str


RIGHT = Badge("right", "right")
FORMAT_MISSED = Badge("format", "right, not as #### answer")
WRONG = Badge("wrong", "wrong")
NO_ANSWER = Badge("missing", "no answer")
TRUNCATED = Badge("truncated", "cut off")
UNJUDGED = Badge("unjudged", "not judged")


@dataclass(frozen=True, slots=True)
class Standard:
    """What answers to one problem are judged by."""

    verifier: Verifier
    row: Row
    decides: bool  # False: answers are found, but nobody knows which are right

    def judge(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text."""
        return self.verifier.verify_many(texts, [self.row] * len(texts))


class Judge:
    """Has the verifiers that compare with a gold answer."""

    def __init__(self) -> None:
        self._verifiers = {kind: make() for kind, make in VERIFIERS.items()}

    def standard(self, gold: str | None, kind: AnswerKind | None = None) -> Standard:
        """Comparison with a gold answer; without one nothing is right, but answers are found.

        `kind` is that of the problem's data set. Answers to other problems are compared as
        numbers where the gold answer is one, else as LaTeX.
        """
        if kind is None:
            kind = "number" if gold is None or parse_number(gold) is not None else "latex"
        return Standard(self._verifiers[kind], {"answer": gold or ""}, decides=gold is not None)


class NoVerifier:
    """Finds answers to a problem that only its task could judge; none of them is right."""

    def verify(self, completion: str, row: Row) -> Verdict:
        return Verdict(False, False, *task_answers(completion))

    def verify_many(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        return [self.verify(text, row) for text, row in zip(completions, rows, strict=True)]


def badge(verdict: Verdict, *, is_judged: bool, truncated: bool) -> Badge:
    """What the page says of an answer; `is_judged`: whether it could be decided."""
    if is_judged and verdict.strict:
        return RIGHT
    if is_judged and verdict.lenient:
        return FORMAT_MISSED
    if truncated:
        return TRUNCATED
    if verdict.lenient_answer is None:
        return NO_ANSWER
    return WRONG if is_judged else UNJUDGED


def verdict_of(attempt: Attempt) -> Verdict:
    """The verdict that was stored with an answer."""
    return Verdict(attempt.strict, attempt.lenient, attempt.strict_answer, attempt.lenient_answer)


def badge_of(attempt: Attempt) -> Badge:
    return badge(verdict_of(attempt), is_judged=True, truncated=attempt.truncated)
