"""The answers to a study's questions: paired differences of arms, how sure they are, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.evaluation.stats import ENOUGH_SEEDS, Difference, family_p, paired_difference
from kit.reports.document import interval, percent
from kit.reports.scores import label
from kit.study.declared import ALL, BASE, Question
from kit.study.evidence import StudyEvidence

SHOWN = ("higher", "lower")
NOT_SHOWN = "no difference shown"
TOO_FEW = "too few seeds"
NOT_YET = "nothing claimed yet"  # some of the declared seeds have not ended


@dataclass(frozen=True, slots=True)
class Contrast:
    """One arm against another, or against the base, at one staleness."""

    left: str
    right: str
    staleness: int
    difference: Difference
    seeds: int  # declared; the difference is over those that both arms have ended
    corrected_p: float  # over all contrasts its question asks for

    @property
    def finding(self) -> str:
        if self.seeds < ENOUGH_SEEDS:
            return TOO_FEW
        if not self.is_complete:
            return NOT_YET
        if self.difference.is_shown(self.corrected_p):
            return SHOWN[self.difference.value < 0]
        return NOT_SHOWN

    @property
    def is_complete(self) -> bool:
        """Whether all declared seeds are in it."""
        return self.difference.seeds == self.seeds

    @property
    def pair(self) -> str:
        return f"{self.left} - {self.right}"

    @property
    def points(self) -> str:
        """`+1.2 [-0.3, 2.7]`."""
        d = self.difference
        return f"{'+' if d.value > 0 else ''}{percent(d.value)}{interval((d.low, d.high))}"

    @property
    def said(self) -> str:
        """Pair and points, and how many seeds are there where some are not."""
        there = f" ({self.difference.seeds} of {self.seeds} seeds)"
        return f"{self.pair} {self.points}" + ("" if self.is_complete else there)

    def record(self) -> dict[str, Any]:
        d = self.difference
        return {
            **{"left": self.left, "right": self.right, "staleness": self.staleness},
            **{"difference": d.value, "ci95": [d.low, d.high], "seeds": d.seeds},
            **{"problems": d.problems, "differing": d.differing, "tests": d.tests, "p": d.p},
            **{"seeds_declared": self.seeds, "p_holm": self.corrected_p, "finding": self.finding},
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """A question with what decides it."""

    question: Question
    temperature: float
    contrasts: tuple[Contrast, ...]
    missing: tuple[str, ...]  # what is not measured yet

    @property
    def asked(self) -> str:
        return f"({self.question.name}) {self.question.asks}"

    @property
    def sentences(self) -> list[str]:
        """The answer in words, which claims no more than was measured."""
        if not self.contrasts:
            return ["Nothing is measured yet."]
        parts = [self._at(s) for s in dict.fromkeys(c.staleness for c in self.contrasts)]
        if self.missing:
            parts.append(f"Not measured yet: {', '.join(self.missing)}.")
        return [self._answer, *parts, self._how]

    def __str__(self) -> str:
        return " ".join([self.asked, *self.sentences])

    @property
    def _answer(self) -> str:
        shown = sum(contrast.finding in SHOWN for contrast in self.contrasts)
        if all(contrast.finding == TOO_FEW for contrast in self.contrasts):
            return "Too few seeds to claim anything."
        if all(contrast.finding == NOT_YET for contrast in self.contrasts):
            return "Nothing is claimed yet."
        if not shown:
            return "No difference shown."
        return f"{shown} of {self._tests} differences shown."

    @property
    def _tests(self) -> int:
        """Comparisons that are asked for, measured or not."""
        return len(self.contrasts) + len(self.missing)

    def _at(self, staleness: int) -> str:
        here = [contrast for contrast in self.contrasts if contrast.staleness == staleness]
        parts = []
        for finding in (*SHOWN, NOT_SHOWN, NOT_YET, TOO_FEW):
            found = [c.said for c in here if c.finding == finding]
            parts += [f"{finding}: {', '.join(found)}"] if found else []
        return f"At staleness {staleness}, {'; '.join(parts)}."

    @property
    def _how(self) -> str:
        seeds = [contrast.difference.seeds for contrast in self.contrasts]
        counted = f"{min(seeds)}" if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)}"
        corrected = f", Holm over {self._tests} tests" if self._tests > 1 else ""
        return (
            f"Points of {self.question.measure} accuracy, {label(self.temperature)}, with 95 % "
            f"intervals for other seeds and problems; {counted} seeds{corrected}."
        )

    def record(self) -> dict[str, Any]:
        return {
            "question": self.question.model_dump(mode="json"),
            "temperature": self.temperature,
            "contrasts": [contrast.record() for contrast in self.contrasts],
            "missing": list(self.missing),
            "sentence": str(self),
        }


def judge(evidence: StudyEvidence) -> list[Verdict]:
    """Every question of the study, as far as it is measured."""
    return [_verdict(question, evidence) for question in evidence.settings.questions]


def _verdict(question: Question, evidence: StudyEvidence) -> Verdict:
    temperature = question.temperature
    if temperature is None:
        temperature = evidence.settings.evaluation.temperature[0]
    asked = [
        (left, right, staleness)
        for staleness in question.staleness or evidence.settings.staleness
        for left, right in _pairs(question, list(evidence.arms))
    ]
    found = {
        key: difference
        for key in asked
        if (difference := _difference(*key, question.measure, temperature, evidence)) is not None
    }
    seeds = len(evidence.settings.seeds)
    whole = {key: difference for key, difference in found.items() if difference.seeds == seeds}
    corrected = family_p(list(whole.values()), missing=len(asked) - len(whole))
    p_of = dict(zip(whole, corrected, strict=True))
    contrasts = [
        Contrast(*key, difference, seeds, p_of.get(key, 1.0)) for key, difference in found.items()
    ]
    missing = [
        f"{left} - {right} at {s}" for left, right, s in asked if (left, right, s) not in found
    ]
    return Verdict(question, temperature, tuple(contrasts), tuple(missing))


def _pairs(question: Question, arms: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [
        (arm, right)
        for left, right in question.pairs
        for arm in (arms if left == ALL else [left])
        if arm != right
    ]
    return list(dict.fromkeys(pairs))


def _difference(
    left: str, right: str, staleness: int, measure: str, temperature: float, evidence: StudyEvidence
) -> Difference | None:
    """Over the seeds both have; None where they share fewer than two, or the base is missing."""
    of_left = evidence.verdicts(left, staleness, measure, temperature)
    of_right: Mapping[int, NDArray[Any]]
    if right == BASE:
        base = evidence.base_verdicts(measure, temperature)
        of_right = {} if base is None else dict.fromkeys(of_left, base)
    else:
        of_right = evidence.verdicts(right, staleness, measure, temperature)
    seeds = [seed for seed in of_left if seed in of_right]
    if not seeds:
        return None
    return paired_difference(
        np.stack([of_left[seed] for seed in seeds]), np.stack([of_right[seed] for seed in seeds])
    )
