"""What a report is made from: arms of runs that differ in nothing but the seed, and a base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kit.config import Config
from kit.errors import ResultsError
from kit.evaluation.results import Result
from kit.run_json import status_of

BASE = "base"  # the name under which the bare base stands in tables


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished result file with the verdicts of each problem."""

    result: Result
    verdicts: pd.DataFrame
    """By temperature and problem id: `strict` and `lenient`, means over samples."""

    @property
    def temperatures(self) -> list[float]:
        return self.result.temperatures

    def problems(self, temperature: float) -> pd.DataFrame:
        """The verdicts at one temperature, by problem id in rising order."""
        return self.verdicts.loc[temperature]


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What one run folder holds, as far as the run has come."""

    path: Path
    config: Config
    description: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[str, Measured]  # by data set, with its tag
    command: str  # what made it

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def status(self) -> str:
        return status_of(self.description) if self.description else "not started"

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return max((record["step"] for record in self.metrics), default=0)


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs that differ in nothing but the seed."""

    name: str
    runs: dict[int, TrainedRun]  # by seed, rising

    @property
    def config(self) -> Config:
        return next(iter(self.runs.values())).config


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a report is made from."""

    arms: list[Arm]
    base_results: dict[str, Measured]
    comparisons: dict[Path, dict[str, Any]]  # compare.json files
    remarks: list[str]

    @property
    def runs(self) -> list[TrainedRun]:
        return [run for arm in self.arms for run in arm.runs.values()]

    @property
    def data(self) -> list[str]:
        """Names of the data sets, with their tags, in rising order."""
        names = {name for run in self.runs for name in run.results}
        return sorted(names | self.base_results.keys())

    def subjects(self, data: str) -> dict[str, dict[int | None, Measured]]:
        """Base and arms measured on a data set: name -> seed -> result; the base has no seed."""
        found: dict[str, dict[int | None, Measured]] = {}
        if data in self.base_results:
            found[BASE] = {None: self.base_results[data]}
        for arm in self.arms:
            results: dict[int | None, Measured] = {
                seed: run.results[data] for seed, run in arm.runs.items() if data in run.results
            }
            if results:
                found[arm.name] = results
        return found

    def temperatures(self, data: str) -> dict[str, set[float]]:
        """Those at which base and arms were measured on a data set, by name."""
        return {
            name: {t for measured in seeds.values() for t in measured.temperatures}
            for name, seeds in self.subjects(data).items()
        }

    def told_temperature(self, data: str) -> float:
        """The one at which answers are told: that of most arms, of several the lowest."""
        measured = self.temperatures(data)
        had = Counter(t for name, found in measured.items() for t in found if name != BASE)
        every = set[float]().union(*measured.values())
        return max(every, key=lambda t: (had[t], t in measured.get(BASE, ()), -t))


# what two results must share before their figures may stand side by side
SETTINGS = ("system_prompt", "max_new_tokens", "top_p", "seed", "split", "limit")


def check(evidence: Evidence) -> None:
    """Raises ResultsError where bases, settings or problems differ."""
    _check_base(evidence)
    for data in evidence.data:
        results = [
            measured for seeds in evidence.subjects(data).values() for measured in seeds.values()
        ]
        _check_settings(data, results)
        _check_problems(results)


def _check_base(evidence: Evidence) -> None:
    """One base model, revision and quantization in all runs and results."""
    stated: dict[str, dict[Any, Path]] = {}
    for what, value, path in _stated(evidence):
        values = stated.setdefault(what, {})
        values.setdefault(value, path)
        if len(values) > 1:
            first, where = next(iter(values.items()))
            raise ResultsError(
                f"a report compares adapters of one base, but its {what} is {first} in {where} "
                f"and {value} in {path}; report them separately"
            )


def _stated(evidence: Evidence) -> Iterator[tuple[str, Any, Path]]:
    for run in evidence.runs:
        yield "id", run.config.model.id, run.path
        yield "quantization", run.config.model.quantization, run.path
        base = run.description.get("base") or {}
        if "revision" in base:  # a run that never started knows none
            yield "revision", base["revision"], run.path
    for data in evidence.data:
        for seeds in evidence.subjects(data).values():
            for measured in seeds.values():
                target, path = measured.result.record["target"], measured.result.path
                yield "id", measured.result.base, path
                yield "quantization", target.get("quantization"), path
                yield "revision", target.get("base_revision"), path


def _check_settings(data: str, results: list[Measured]) -> None:
    first = results[0].result
    for measured in results:
        result = measured.result
        for setting in SETTINGS:
            expected, got = _shared(first, setting), _shared(result, setting)
            if expected != got:
                raise ResultsError(
                    f"{data} was evaluated with {setting} {expected!r} in {first.path} but {got!r} "
                    f"in {result.path}; evaluate all arms with the same settings"
                )


def _shared(result: Result, setting: str) -> Any:
    """A setting of an evaluation; of the system prompt what is not the arm's own guidelines'."""
    return result.shared_prompt if setting == "system_prompt" else result.settings.get(setting)


def _check_problems(results: list[Measured]) -> None:
    """Every arm must have seen the same problems: comparisons are paired."""
    first: dict[float, tuple[pd.Index, Path]] = {}
    for measured in results:
        for temperature in measured.temperatures:
            ids, path = measured.problems(temperature).index, measured.result.path
            expected, where = first.setdefault(temperature, (ids, path))
            if not ids.equals(expected):
                odd = ids.symmetric_difference(expected)
                raise ResultsError(
                    f"{path} and {where} hold different problems ({len(odd)} are in one of them "
                    f"only, the first is {odd[0]!r}); evaluate all arms on the same problems"
                )
