"""Whether an answer is right, and how the page says so."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from kit.answers import parse_number
from kit.sources import KNOWN
from kit.verifiers import LatexVerifier, NumberVerifier, Verdict


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


class Judge:
    """Judges texts against a gold answer, as `kit evaluate` does on the same data set."""

    def __init__(self) -> None:
        self._number, self._latex = NumberVerifier(), LatexVerifier()
        self._lock = threading.Lock()  # the LaTeX verifier talks to one process of its own

    def judge(self, texts: Sequence[str], gold: str | None, data: str | None) -> list[Verdict]:
        """One verdict per text; without a gold answer nothing is right, but answers are found.

        `data` is the data set the problem is from. Answers to other problems are compared as
        numbers where the gold answer is one, else as LaTeX.
        """
        latex = (
            KNOWN[data].verifier == "latex"
            if data in KNOWN
            else gold is not None and parse_number(gold) is None
        )
        rows = [{"answer": gold or ""}] * len(texts)
        if not latex:
            return self._number.verify_many(texts, rows)
        with self._lock:
            return self._latex.verify_many(texts, rows)


def badge(verdict: Verdict, *, is_judged: bool, truncated: bool) -> Badge:
    """What the page says of an answer; `is_judged`: there is a gold answer to compare with."""
    if is_judged and verdict.strict:
        return RIGHT
    if is_judged and verdict.lenient:
        return FORMAT_MISSED
    if truncated:
        return TRUNCATED
    if verdict.lenient_answer is None:
        return NO_ANSWER
    return WRONG if is_judged else UNJUDGED
