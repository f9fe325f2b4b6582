"""A study's folder: what is done in it, which rates are tuned, and who is at which run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kit.config import Config
from kit.errors import RunError
from kit.evaluation.results import Result, read_result, result_path
from kit.files import lock_of, only_one
from kit.runs import LOCK, RunFolder, writing
from kit.study.cells import Cell, cells, config_of
from kit.study.declared import Declaration
from kit.study.records import NAME, Record, read_record


class StudyFolder:
    """The runs of a study. Several processes may work in it: each claims the runs it is at."""

    def __init__(self, path: Path, declaration: Declaration) -> None:
        self.path = path
        self.declaration = declaration
        self.base = path / "base"  # where the bare base's answers are
        self.cells = list(cells(declaration))
        self._records: dict[Cell, Record] = {}

    def run(self, cell: Cell) -> RunFolder:
        return RunFolder(self.path / cell.place)

    def config(self, cell: Cell) -> Config:
        """RuntimeError for a fresh seed whose rate is not tuned yet."""
        return config_of(self.declaration, cell, self.path, self.rate(cell))

    def rate(self, cell: Cell) -> float:
        rate = cell.rate or self.tuned(cell.arm, cell.staleness)
        if rate is None:
            raise RuntimeError(f"the rate of {cell} is not tuned yet")
        return rate

    def records(self) -> dict[Cell, Record]:
        """Of every run that has ended, in their order."""
        for cell in self.cells:
            if cell not in self._records and (self.path / cell.place / NAME).exists():
                self._records[cell] = read_record(self.path / cell.place / NAME)
        return {cell: self._records[cell] for cell in self.cells if cell in self._records}

    def base_result(self) -> Result | None:
        """What was measured of the bare base; None while it is not."""
        path = result_path(self.base / "eval", self.declaration.base.data.name)
        result = read_result(path) if path.exists() else None
        return result if result and result.record["status"] == "finished" else None

    def tuned(self, arm: str, staleness: int) -> float | None:
        """The rate that the study's rule chooses; None while it cannot choose yet."""
        scores = self.tuning_scores(arm, staleness)
        settings = self.declaration.settings
        if len(scores) < len(settings.rates_at(staleness)):
            return None
        return max(sorted(scores), key=lambda rate: scores[rate])  # of equals the first

    def tuning_scores(self, arm: str, staleness: int) -> dict[float, float]:
        """Mean validation accuracy of each rate all of whose tuning runs have ended."""
        tuning = self.declaration.settings.tuning
        found: dict[float, list[float]] = {}
        for cell, record in self.records().items():
            if (cell.arm, cell.staleness) == (arm, staleness) and cell.rate is not None:
                found.setdefault(cell.rate, []).append(record.validation.get(tuning.measure, 0.0))
        return {
            rate: statistics.fmean(values)
            for rate, values in found.items()
            if len(values) == len(tuning.seeds)
        }

    def pending(self) -> list[Cell]:
        """Runs that have not ended, those first that are to be done first."""
        done = self.records()
        return [cell for cell in self.cells if cell not in done]

    @contextmanager
    def claimed(self) -> Iterator[list[Cell]]:
        """Runs to be done next, together, which no other process is at; [] where there are none
        at the moment."""
        with ExitStack() as held:
            yield self._claim(held)

    def _claim(self, held: ExitStack) -> list[Cell]:
        claimed: list[Cell] = []
        busy = RunError(f"another process holds {self.path / LOCK}")
        with writing(self.path), only_one(self.path / LOCK, busy, wait=-1):
            for cell in self.pending():
                if claimed and cell.group != claimed[0].group:
                    break
                if cell.rate is None and self.tuned(cell.arm, cell.staleness) is None:
                    continue  # another process is at its tuning
                if self._takes(cell, held):
                    claimed.append(cell)
                if len(claimed) == self.declaration.settings.together:
                    break
        return claimed

    def _takes(self, cell: Cell, held: ExitStack) -> bool:
        place = self.path / cell.place
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_of(place))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        if (place / NAME).exists():  # another process has just ended it
            lock.release()
            return False
        held.callback(lock.release)
        return True


def time_of(folder: StudyFolder, pending: Sequence[Cell]) -> float | None:
    """Seconds of all these runs, one after the other; None where nothing is known of some."""
    each = times_of(folder, pending)
    return None if None in each else sum(filter(None, each))


def times_of(folder: StudyFolder, pending: Sequence[Cell]) -> list[float | None]:
    """Seconds of each of these runs: as others took in this study, or as its file says.

    Runs that are evaluated too stand for those that are not, and the other way round, until both
    are measured.
    """
    measured: dict[tuple[int, bool], list[float]] = {}
    for cell, record in folder.records().items():
        measured.setdefault((cell.staleness, cell.is_fresh), []).append(record.seconds)
    known = {key: statistics.fmean(values) for key, values in measured.items()}

    def found(cell: Cell) -> float | None:
        said = folder.declaration.settings.seconds.get(cell.staleness)
        near = known.get((cell.staleness, not cell.is_fresh), said)
        return known.get((cell.staleness, cell.is_fresh), near)

    return [found(cell) for cell in pending]
