"""Two stored results side by side: their pairs, what filters let through, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import Literal

from kit.app.exports import ComparedPair, ComparedSide, Measure
from kit.app.library.folders import natural
from kit.app.library.results import Attempt, Stored, Version, read_attempts
from kit.tasks.answers import numbers_equal, parse_number

PAIRS_KEPT = 4  # joined results in memory; they share their rows with the files kept

_number = lru_cache(maxsize=20_000)(parse_number)  # few answers are given often

Outcome = Literal["all", "both", "left", "right", "neither", "differ"]
CaseKey = tuple[str, int]  # (id, sample)


@dataclass(frozen=True, slots=True)
class Case:
    """One sample of one problem by both sides."""

    left: Attempt
    right: Attempt

    @property
    def key(self) -> CaseKey:
        return self.left.id, self.left.sample

    def outcome(self, measure: Measure) -> Outcome:
        """Which side is right."""
        left, right = getattr(self.left, measure), getattr(self.right, measure)
        if left and right:
            return "both"
        return "left" if left else "right" if right else "neither"

    def answers_differ(self, measure: Measure) -> bool:
        """Numbers are compared by value, other answers by their text, as majority votes do."""
        left, right = (getattr(side, f"{measure}_answer") for side in (self.left, self.right))
        if left is None or right is None or left.strip() == right.strip():
            return (left is None) != (right is None)
        ours, theirs = _number(left), _number(right)
        return ours is None or theirs is None or not numbers_equal(ours, theirs)


@dataclass(frozen=True, slots=True)
class Pairing:
    """All pairs of two results, by problem and sample."""

    left: Stored
    right: Stored
    cases: tuple[Case, ...]
    categories: tuple[str, ...]
    difficulties: tuple[str, ...]
    remarks: tuple[str, ...]  # what was left out, and why


@dataclass(frozen=True, slots=True)
class Filter:
    """Which pairs are shown; None, "" and categories that there are none of: any."""

    measure: Measure = "strict"
    outcome: Outcome = "all"
    category: str | None = None
    difficulty: str | None = None
    text: str = ""  # in the question or a completion, whatever its case


@dataclass(frozen=True, slots=True)
class Counts:
    """How pairs came out."""

    both: int = 0
    left: int = 0
    right: int = 0
    neither: int = 0

    @property
    def total(self) -> int:
        return self.both + self.left + self.right + self.neither


@dataclass(frozen=True, slots=True)
class Selection:
    """The pairs that a filter lets through.

    `counts` are of all outcomes: of what the filter's other conditions let through.
    """

    pairing: Pairing
    wanted: Filter
    cases: tuple[Case, ...]
    counts: Counts


def pair_up(left: Stored, right: Stored) -> Pairing:
    """Pair what both sides have; ResultsError where a file cannot be read."""
    cases, faults = _join(left.completions, right.completions, left.temperature)
    remarks = []
    for side in (left, right):
        about = side.about
        if about.status != "finished":
            remarks.append(f"the evaluation of {side.name} is not finished")
        if about.seen_in_training:
            seen = f"{about.seen_in_training} of the {about.n} problems"
            remarks.append(f"{side.name} was trained on {seen}")
    return Pairing(
        left,
        right,
        cases,
        _values(case.left.category for case in cases),
        _values(case.left.difficulty for case in cases),
        (*remarks, *faults),
    )


def select(pairing: Pairing, wanted: Filter) -> Selection:
    """The pairs a filter lets through, in order."""
    category = wanted.category if wanted.category in pairing.categories else None
    difficulty = wanted.difficulty if wanted.difficulty in pairing.difficulties else None
    text = wanted.text.strip().casefold()
    among = [
        (case, case.outcome(wanted.measure))
        for case in pairing.cases
        if category in (None, case.left.category)
        and difficulty in (None, case.left.difficulty)
        and (not text or _mentions(case, text))
    ]
    if wanted.outcome == "differ":
        cases = [case for case, _ in among if case.answers_differ(wanted.measure)]
    else:
        cases = [case for case, outcome in among if wanted.outcome in ("all", outcome)]
    counts: Counter[str] = Counter(outcome for _, outcome in among)
    return Selection(pairing, wanted, tuple(cases), Counts(**counts))


def compared(pairing: Pairing, case: Case) -> ComparedPair:
    """One pair for an export."""
    left, right = pairing.left, pairing.right
    ours, theirs = left.about, right.about
    bases = {"base": ours.target.base}
    if ours.target.base != theirs.target.base:
        bases = {"left base": ours.target.base, "right base": theirs.target.base}
    return ComparedPair(
        question=case.left.question,
        system_prompt=ours.settings.system_prompt,
        prompt=None,
        answer=case.left.answer,
        settings={
            "data": ours.data,
            "split": ours.settings.split,
            **bases,
            "temperature": left.temperature,
            "sample": case.left.sample,
            "top_p": ours.settings.top_p,
            "max_new_tokens": ours.settings.max_new_tokens,
            "seed": ours.settings.seed,
            "left evaluated": ours.started,
            "right evaluated": theirs.started,
        },
        left=_side(left, case.left),
        right=_side(right, case.right),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        id=case.left.id,
        category=case.left.category,
        difficulty=case.left.difficulty,
    )


def _side(stored: Stored, attempt: Attempt) -> ComparedSide:
    return ComparedSide(
        name=stored.name,
        adapter=stored.about.target.adapter,
        adapter_sha256=stored.about.target.adapter_sha256,
        completion=attempt.completion,
        strict_answer=attempt.strict_answer,
        lenient_answer=attempt.lenient_answer,
        strict=attempt.strict,
        lenient=attempt.lenient,
        tokens=attempt.tokens,
        truncated=attempt.truncated,
    )


@lru_cache(maxsize=PAIRS_KEPT)
def _join(
    left: Version, right: Version, temperature: float
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The pairs in order, and what was left out."""
    sides: list[dict[CaseKey, Attempt]] = []
    remarks: list[str] = []
    for completions in (left, right):
        attempts = read_attempts(completions)
        remarks += attempts.faults
        sides.append(
            {(row.id, row.sample): row for row in attempts.rows if row.temperature == temperature}
        )
    ours, theirs = sides
    both = [Case(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()]
    cases = [case for case in both if _same_problem(case)]
    left_out = {
        "on the left only": len(ours) - len(both),
        "on the right only": len(theirs) - len(both),
        "of a problem that is another one on the right": len(both) - len(cases),
    }
    remarks += [f"{n} completions are {what}" for what, n in left_out.items() if n]
    cases.sort(key=lambda case: (natural(case.left.id), case.left.id, case.left.sample))
    return tuple(cases), tuple(remarks)


def _same_problem(case: Case) -> bool:
    """Ids are counted in some data sets, and the data may have changed in between."""
    return (case.left.question, case.left.answer) == (case.right.question, case.right.answer)


def _mentions(case: Case, text: str) -> bool:
    texts = case.left.question, case.left.completion, case.right.completion
    return any(text in one.casefold() for one in texts)


def _values(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if name}, key=natural))
