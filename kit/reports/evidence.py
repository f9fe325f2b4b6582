"""What a report is made from: arms of runs that differ in nothing but the seed, and a base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kit.config import Config
from kit.evaluation.results import Result
from kit.runs import status_of

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
class Run:
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
    runs: dict[int, Run]  # by seed, rising

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
    def runs(self) -> list[Run]:
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
