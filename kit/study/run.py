"""Do the runs of a study, in parts, alone or beside other processes that do them too."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kit.errors import RunError, TrainingError
from kit.evaluation.results import Result
from kit.evaluation.subjects import Subject
from kit.files import only_one, remove
from kit.runs import LOCK, writing
from kit.study.cells import Cell
from kit.study.declared import Declaration, begin
from kit.study.folder import StudyFolder, time_of
from kit.study.plan import duration, plan
from kit.study.records import measure
from kit.threads import check_one_process

if TYPE_CHECKING:  # torch, which run_study() imports once nothing can be refused without it
    from kit.model.base import Base

log = logging.getLogger(__name__)

PAUSE = 5.0  # seconds between looks at what others have finished


def run_study(
    declaration: Declaration,
    output: Path,
    *,
    budget: float | None = None,
    command: str | None = None,
) -> bool:
    """Do what is not done yet; False where it was stopped, by the user or by its budget.

    `budget`: seconds after which no further runs are begun. What is finished is not done again.
    Raises ConfigError under a launcher, RunError where the folder holds another study.
    """
    check_one_process("kit study")
    begin(output, declaration)
    folder = StudyFolder(output, declaration)
    print(plan(folder, budget), flush=True)
    if not folder.pending():
        return True
    from kit.model.base import load_base

    started = time.monotonic()
    worker = Worker(folder, load_base(declaration.base.model), command)
    worker.evaluate_base()
    while folder.pending():
        left = None if budget is None else budget - (time.monotonic() - started)
        if not worker.next_runs(left):
            return False
    return True


class Worker:
    """One process at a study: claims runs, trains them together, evaluates, records."""

    def __init__(self, folder: StudyFolder, base: Base, command: str | None) -> None:
        self.folder = folder
        self.base = base
        self.command = command
        self.settings = folder.declaration.settings
        self.shared = folder.declaration.base  # what holds for every arm

    def evaluate_base(self) -> Result:
        """The bare base on the evaluation's problems, once; other processes wait for it."""
        place = self.folder.base
        busy = RunError(f"another process holds {place / LOCK}")
        with writing(place), only_one(place / LOCK, busy, wait=-1):
            model = self.shared.model
            prompt = self.shared.data.system_prompt
            (result,) = self._evaluate([Subject("base", model, None, prompt, place / "eval")])
        return result

    def next_runs(self, left: float | None) -> bool:
        """Do the runs that come next; False where the user stopped it or time is up.

        `left`: seconds of the budget.
        """
        with self.folder.claimed() as cells:
            expected = time_of(self.folder, cells) or 0.0
            if left is not None and expected > left:
                print(f"the budget is used up; the same command continues {self.folder.path}")
                return False
            if not cells:
                time.sleep(PAUSE)  # others are at what is left, or at what it waits for
                return True
            print(self._progress(cells), flush=True)
            return self._do(cells)

    def _do(self, cells: Sequence[Cell]) -> bool:
        started = time.monotonic()
        if not self._train(cells):
            print(f"stopped; the same command continues {self.folder.path}")
            return False
        results = self._evaluate_fresh(cells)
        seconds = (time.monotonic() - started) / len(cells)
        for cell in cells:
            self._keep(cell, results.get(cell), seconds)
        return True

    def _train(self, cells: Sequence[Cell]) -> bool:
        """Whether all have ended. One that failed has: that is a result too."""
        from kit.training.trainer import train_together

        configs = [
            self.folder.config(cell) for cell in cells if not self.folder.run(cell).has_ended
        ]
        try:
            if configs:
                train_together(configs, resume=True, base=self.base)
        except TrainingError as error:
            log.error("%s", error)
        return all(self.folder.run(cell).has_ended for cell in cells)

    def _evaluate_fresh(self, cells: Sequence[Cell]) -> dict[Cell, Result]:
        """The adapters of fresh seeds on the test problems, together."""
        fresh = [c for c in cells if c.is_fresh and self.folder.run(c).status == "finished"]
        if not fresh:
            return {}
        model, arms = self.shared.model, self.folder.declaration.configs
        subjects = [
            Subject.of_run(str(cell), self.folder.run(cell), model, arms[cell.arm])
            for cell in fresh
        ]
        return dict(zip(fresh, self._evaluate(subjects), strict=True))

    def _evaluate(self, subjects: Sequence[Subject]) -> list[Result]:
        from kit.evaluation.benchmark import benchmark

        evaluation = self.settings.evaluation.within(self.shared.memory_budget)
        return benchmark(
            *(subjects, [self.shared.data], evaluation),
            base=self.base,
            command=self.command,
            functions=True,
        )

    def _keep(self, cell: Cell, result: Result | None, seconds: float) -> None:
        """Write the record, then delete what nobody needs any more."""
        run = self.folder.run(cell)
        record = measure(
            cell,
            self.folder.rate(cell),
            run,
            result,
            level=self.settings.level,
            seconds=seconds,
        )
        record.write(run.path)
        remove(run.checkpoints)
        if not cell.is_fresh:
            remove(run.adapter)

    def _progress(self, cells: Sequence[Cell]) -> str:
        pending = self.folder.pending()
        done, total = len(self.folder.cells) - len(pending), len(self.folder.cells)
        first, *others = cells
        arms = ", ".join([str(first), *(cell.arm for cell in others)])
        left = time_of(self.folder, pending)
        known = "" if left is None else f"; about {duration(left)} left for one process"
        return f"[{done} of {total} done{known}] {arms}"
