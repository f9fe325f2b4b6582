"""Differences between arms on the same problems: how large, how sure, and in words.

A family of tests is one pair of arms and one measure, over all data sets and temperatures; Holm's
correction is within a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.evaluation.stats import ENOUGH_SEEDS, Difference, holm, mcnemar_exact, paired_difference
from kit.reports.document import NONE, Figure, Section, Table, Text, interval, percent
from kit.reports.evidence import BASE, Arm, Evidence
from kit.reports.figures import Dot, Style, draw_dots
from kit.reports.scores import MEASURES, Score, label, origin, verdicts

REFERENCE = "clip"


@dataclass(frozen=True, slots=True)
class Contrast:
    """One arm against another on one data set at one temperature."""

    a: Score
    b: Score
    measure: str
    seeds: tuple[int, ...]  # those both have; all of a's where b is the base
    difference: Difference
    per_seed_p: dict[int, float]  # McNemar's, where there is one verdict per problem
    corrected_p: float
    family: int  # tests that were corrected together
    data_sets: int  # among them

    @property
    def is_shown(self) -> bool:
        return self.difference.is_shown(self.corrected_p)

    @property
    def finding(self) -> str:
        if self.difference.has_too_few_seeds:
            return "too few seeds"
        if not self.is_shown:
            return "no difference shown"
        return "higher" if self.difference.value > 0 else "lower"

    @property
    def where(self) -> str:
        return f"{self.a.data} ({self.measure}, {label(self.a.temperature)})"

    def __str__(self) -> str:
        """The finding as a sentence, which claims no more than was measured."""
        d = self.difference
        one_seed = d.seeds == 1
        a, b = (_adapter(s.arm) if one_seed else s.arm for s in (self.a, self.b))
        value, bounds = d.value, (d.low, d.high)
        if self.is_shown:
            if value < 0:
                value, bounds = -value, (-d.high, -d.low)
            correction = "" if self.family == 1 else f" (Holm over {self._tests()})"
            text = (
                f"{a} is {self.finding} than {b} on {self.where} by {percent(value)} points"
                f"{interval(bounds)}, {_p_text(self.corrected_p)}{correction}"
            )
        else:
            text = (
                f"{self.finding}{self._for_methods()} between {a} and {b} on {self.where}: "
                f"{percent(value)} points{interval(bounds)}"
            )
            if d.only_a == d.only_b == 0:
                text += ", as both were right on the same problems"
        if one_seed:
            text += (
                "; one seed: this is about one adapter, not about a method"
                if self.b.arm == BASE
                else "; one seed: this compares two adapters, not two methods"
            )
        return text

    def _for_methods(self) -> str:
        if not self.difference.has_too_few_seeds:
            return ""
        return f" ({self.difference.seeds} of {ENOUGH_SEEDS}) to claim a difference"

    def _tests(self) -> str:
        if self.family == self.data_sets:
            return f"{self.data_sets} data sets"
        return f"{self.family} tests on {self.data_sets} data set{'s' * (self.data_sets > 1)}"

    def record(self) -> dict[str, Any]:
        d = self.difference
        return {
            "a": self.a.arm,
            "b": self.b.arm,
            "data": self.a.data,
            "temperature": self.a.temperature,
            "measure": self.measure,
            "seeds": list(self.seeds),
            "problems": d.problems,
            "difference": d.value,
            "ci95": [d.low, d.high],
            "p": d.p,
            "test": d.test,
            "tests": d.tests,
            "p_holm": self.corrected_p,
            "family": self.family,
            "only_a": d.only_a,
            "only_b": d.only_b,
            "mcnemar_p_per_seed": {str(seed): p for seed, p in self.per_seed_p.items()},
            "finding": self.finding,
            "sentence": str(self),
        }


def compare_arms(evidence: Evidence, scores: Sequence[Score]) -> list[Contrast]:
    """Every arm against the reference arm, then every arm against the base."""
    names = [arm.name for arm in evidence.arms]
    reference = _reference(evidence).name
    pairs = [(name, reference) for name in names if name != reference]
    pairs += [(name, BASE) for name in names]
    return [
        comparison
        for a, b in pairs
        for measure in MEASURES
        for comparison in _family(a, b, measure, scores)
    ]


def describe_answers(
    evidence: Evidence, comparisons: Sequence[Contrast], looks: dict[str, Style]
) -> Section:
    """What a report opens with: what was found in words, and one figure of all differences."""
    section = Section("Answers")
    at = {data: evidence.told_temperature(data) for data in evidence.data}
    told = [c for c in comparisons if c.a.temperature == at[c.a.data]]
    told = told or list(comparisons)  # of arms that share no seed, and a base without that one
    if told:
        for b in _opponents(told):
            mine = sorted((c for c in told if c.b.arm == b), key=lambda c: not c.is_shown)
            title = f"Against {_against(b)}"
            section.blocks.append(Text([f"{c}." for c in mine], is_list=True, title=title))
        section.blocks.append(_figure(told, looks))
    else:
        section.say("Nothing to compare: no two arms were evaluated on the same data.")
    reference = _reference(evidence)
    alone = [a.name for a in evidence.arms if not a.runs.keys() & reference.runs.keys()]
    if alone:
        section.say(
            f"Not compared with {reference.name}, because they share no seed with it: "
            f"{', '.join(alone)}."
        )
    if evidence.remarks:
        section.blocks.append(Text(evidence.remarks, is_list=True, title="To bear in mind"))
    return section


def describe_differences(comparisons: Sequence[Contrast]) -> Section:
    """Every comparison in full, and how it was tested."""
    section = Section("Differences")
    section.say(
        "All arms answered the same problems, so differences are taken problem by "
        "problem. In brackets the 95 % interval of the difference in percentage points, "
        "for other seeds and other problems (with one seed for other problems alone). A "
        "difference counts as shown where its interval excludes 0 and every test's p, "
        "corrected by Holm's method, is below 0.05; over several seeds it is one of two "
        f"methods, and needs {ENOUGH_SEEDS} of them. "
        "Corrected together are the tests of one pair of arms and one measure over all "
        "data sets and temperatures; that there are several pairs is not corrected for. "
        "\u201cNo difference shown\u201d does not mean that there is none: the interval "
        "says how large it may be."
    )
    section.blocks.extend(_table(b, comparisons) for b in _opponents(comparisons))
    return section


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _reference(evidence: Evidence) -> Arm:
    return next((arm for arm in evidence.arms if arm.name == REFERENCE), evidence.arms[0])


def _family(a: str, b: str, measure: str, scores: Sequence[Score]) -> list[Contrast]:
    """All comparisons of one pair and measure, their p corrected together."""
    of_b = {(s.data, s.temperature): s for s in scores if s.arm == b}
    found = []
    for left in (s for s in scores if s.arm == a):
        right = of_b.get((left.data, left.temperature))
        if right is None:
            continue
        seeds = _common_seeds(left, right)
        if seeds:
            found.append((left, right, seeds, *_test(left, right, seeds, measure)))
    corrected = holm([difference.p for *_, difference, _ in found])
    data_sets = len({left.data for left, *_ in found})
    return [
        Contrast(left, right, measure, seeds, difference, per_seed, p, len(found), data_sets)
        for (left, right, seeds, difference, per_seed), p in zip(found, corrected, strict=True)
    ]


def _common_seeds(left: Score, right: Score) -> tuple[int, ...]:
    mine = [seed for seed in left.measured if seed is not None]
    if right.arm == BASE:
        return tuple(mine)
    return tuple(seed for seed in mine if seed in right.measured)


def _test(
    left: Score, right: Score, seeds: Sequence[int], measure: str
) -> tuple[Difference, dict[int, float]]:
    """The difference over all seeds, and McNemar's p of each where there is one verdict each."""
    others = [None] * len(seeds) if right.arm == BASE else seeds
    a = verdicts([left.measured[seed] for seed in seeds], left.temperature, measure)
    b = verdicts([right.measured[seed] for seed in others], right.temperature, measure)
    per_seed = {}
    if np.isin([a, b], (0, 1)).all():
        per_seed = {seed: mcnemar_exact(a[i], b[i]) for i, seed in enumerate(seeds)}
    return paired_difference(a, b), per_seed


def _opponents(comparisons: Sequence[Contrast]) -> list[str]:
    """What arms are compared with."""
    return list(dict.fromkeys(c.b.arm for c in comparisons))


def _against(b: str) -> str:
    return "the base" if b == BASE else b


def _figure(comparisons: Sequence[Contrast], looks: dict[str, Style]) -> Figure:
    """A panel for each opponent, a row for each arm, strict and lenient."""
    several = len({c.a.data for c in comparisons}) > 1
    panels: dict[str, dict[str, list[Dot]]] = {}
    for b in _opponents(comparisons):
        rows = panels.setdefault(f"against {_against(b)}", {})
        for c in sorted((c for c in comparisons if c.b.arm == b), key=lambda c: c.a.data):
            d = c.difference
            name = f"{c.a.arm} on {c.a.data}" if several else c.a.arm
            dot = Dot(c.a.arm, d.value, (d.low, d.high), is_hollow=c.measure == "lenient")
            rows.setdefault(name, []).append(dot)
    return Figure(
        name="differences",
        title="Paired differences",
        drawing=draw_dots(panels, looks, unit="percentage points", zero_line=True),
        origin=origin(score for c in comparisons for score in (c.a, c.b)),
        note="Filled: strict; hollow: lenient; lines: 95 % intervals, not corrected for the number "
        "of tests.",
    )


def _table(b: str, comparisons: Sequence[Contrast]) -> Table:
    mine = [c for c in comparisons if c.b.arm == b]
    return Table(
        name=f"differences from {b}",
        title=f"Every comparison with {_against(b)}",
        header=(
            *("arm", "data", "temperature", "measure", "seeds", "points", "95 % interval"),
            *("p", "p (Holm)", "test", "better / worse", "McNemar's p per seed", "finding"),
        ),
        rows=[_row(c) for c in mine],
        origin=origin(score for c in mine for score in (c.a, c.b)),
        note="p: the larger one where two tests are named. Better / worse: pairs of problem "
        "and seed on which only one of the two is right (or right more often).",
        folded=True,
    )


def _row(c: Contrast) -> tuple[str, ...]:
    d = c.difference
    return (
        c.a.arm,
        c.a.data,
        f"{c.a.temperature:g}",
        c.measure,
        ", ".join(map(str, c.seeds)),
        percent(d.value),
        interval((d.low, d.high)).strip(),
        f"{d.p:.4f}",
        f"{c.corrected_p:.4f}",
        d.test,
        f"{d.only_a} / {d.only_b}",
        ", ".join(f"{seed}: {p:.4f}" for seed, p in c.per_seed_p.items()) or NONE,
        c.finding + (" (one seed)" if d.seeds == 1 else ""),
    )


def _adapter(name: str) -> str:
    return "the base" if name == BASE else f"the {name} adapter"
