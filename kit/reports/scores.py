"""The figures of every arm on every data set and temperature, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.evaluation.stats import Proportion, seeds_and_problems
from kit.reports.document import Origin
from kit.reports.evidence import Evidence, Measured

MEASURES = ("strict", "lenient")


@dataclass(frozen=True, slots=True)
class Score:
    """One arm (or the base) on one data set at one temperature."""

    data: str
    temperature: float
    arm: str
    measured: dict[int | None, Measured]  # by seed; the base has none
    figures: dict[str, Any]  # JSON-ready
    origin: Origin

    def record(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "temperature": self.temperature,
            "arm": self.arm,
            "seeds": [seed for seed in self.measured if seed is not None],
            **self.figures,
        }


def measure_scores(evidence: Evidence) -> list[Score]:
    """By data set, temperature and arm, the base first."""
    scores = []
    for data in evidence.data:
        subjects = evidence.subjects(data)
        temperatures = {
            t for seeds in subjects.values() for m in seeds.values() for t in m.temperatures
        }
        for temperature in sorted(temperatures):
            for arm, seeds in subjects.items():
                there = {s: m for s, m in seeds.items() if temperature in m.temperatures}
                if there:
                    scores.append(_score(data, temperature, arm, there))
    return scores


def verdicts(measured: Iterable[Measured], temperature: float, measure: str) -> np.ndarray:
    """(S, P): each problem's mean verdict under each seed, problems in the order of their ids."""
    return np.stack([m.problems(temperature)[measure].to_numpy() for m in measured])


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are not None."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _score(data: str, temperature: float, arm: str, measured: dict[int | None, Measured]) -> Score:
    entries = [m.result.at(temperature) for m in measured.values()]
    figures: dict[str, Any] = {
        "samples": max(entry["samples"] for entry in entries),
        "problems": measured[next(iter(measured))].result.record["n"],
    }
    seen = [m.result.record["seen_in_training"] for m in measured.values()]
    figures["seen_in_training"] = max((n for n in seen if n is not None), default=None)
    for measure in MEASURES:
        if len(entries) == 1:
            interval, sd = entries[0][measure]["ci95"], None
        else:
            interval = _interval_over_seeds(verdicts(measured.values(), temperature, measure))
            sd = statistics.stdev(entry[measure]["value"] for entry in entries)
        figures[measure] = {
            "value": mean(entry[measure]["value"] for entry in entries),
            "ci95": interval,
            "sd": sd,
            "per_seed": [entry[measure]["value"] for entry in entries],
        }
    for share in ("format", "truncated"):
        figures[share] = mean(entry[share]["value"] for entry in entries)
    for what in ("mean", "median", "p95"):
        figures[f"tokens_{what}"] = mean(entry["tokens"][what] for entry in entries)
    for kind in ("pass_at", "majority_at"):
        figures[kind] = {measure: _over_k(entries, kind, measure) for measure in MEASURES}
    figures["slices"] = _slices(entries)
    figures["reasoning"] = _reasoning(entries)
    figures["adherence"] = _adherence(entries)
    return Score(
        data,
        temperature,
        arm,
        measured,
        figures,
        Origin.of(
            (m.result.path for m in measured.values()),
            (m.result.record["command"] for m in measured.values()),
        ),
    )


def _interval_over_seeds(verdicts_S_P: np.ndarray) -> list[float]:
    """Bounds of the mean over seeds and problems."""
    if np.ptp(verdicts_S_P) == 0:  # equal values show no spread: seeds count as one
        problems = verdicts_S_P.shape[1]
        return list(Proportion(round(verdicts_S_P.mean() * problems), problems).interval)
    estimate = seeds_and_problems(verdicts_S_P)
    return [estimate.low, estimate.high]


def _over_k(
    entries: Sequence[Mapping[str, Any]], kind: str, measure: str
) -> dict[str, dict[str, Any]]:
    """Estimates for each number of samples that all seeds have; an interval for one seed only."""
    tables = [entry[kind][measure] for entry in entries]
    return {
        k: {
            "value": mean(table[k]["value"] for table in tables),
            "ci95": tables[0][k]["ci95"] if len(tables) == 1 else None,
        }
        for k in sorted(tables[0], key=int)
        if all(k in table for table in tables)
    }


def _slices(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By kind and name: `n` problems and the mean accuracies."""
    first = entries[0]["slices"]
    return {
        kind: {
            name: {
                "n": part["n"],
                **{
                    measure: {
                        "value": mean(e["slices"][kind][name][measure]["value"] for e in entries),
                        "ci95": part[measure]["ci95"] if len(entries) == 1 else None,
                    }
                    for measure in MEASURES
                },
            }
            for name, part in parts.items()
        }
        for kind, parts in first.items()
    }


def _reasoning(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over seeds; of a share its value."""

    def value(measure: Any) -> float | None:
        return measure["value"] if isinstance(measure, Mapping) else measure

    return {
        key: mean(value(e["reasoning"][key]) for e in entries) for key in entries[0]["reasoning"]
    }


def _adherence(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By guideline that all seeds were looked at for: mean, spread and each seed's value."""
    tables = [entry.get("adherence", {}) for entry in entries]
    found = {}
    for name in tables[0]:
        if all(name in table for table in tables):
            values = [table[name]["value"] for table in tables]
            known = [value for value in values if value is not None]
            sd = statistics.stdev(known) if len(known) > 1 else None
            found[name] = {"value": mean(values), "sd": sd, "per_seed": values}
    return found


def origin(scores: Iterable[Score]) -> Origin:
    """Of all these together."""
    scores = list(scores)
    return Origin.of(
        (file for score in scores for file in score.origin.files),
        (command for score in scores for command in score.origin.commands),
    )


def label(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"
