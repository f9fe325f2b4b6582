"""A study's folder as its runs leave it, with made-up verdicts and no training."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.study.cells import Cell
from kit.study.declared import Declaration, begin
from kit.study.folder import StudyFolder
from kit.study.records import MEASURES, Record, problems_of
from tests.reports.test_reports import write_result

RATE_WORTH = {0: 0.5, 1: 0.7, 2: 0.6}  # validation accuracy of the rates, in rising order


def write_records(
    declaration: Declaration,
    folder: Path,
    accuracy: Callable[[str, int], float],
    *,
    base: float = 0.4,
    problems: int = 60,
    only: Callable[[Cell], bool] = lambda cell: True,
    **fields: Any,
) -> StudyFolder:
    """Every cell as if done, and the bare base; `accuracy` of an arm at a staleness is its runs'.

    `only` chooses the cells; other keyword arguments replace fields of every record.
    """
    begin(folder, declaration)
    study = StudyFolder(folder, declaration)
    _write_base(study, base, problems)
    result = study.base_result()
    asked = problems_of(result) if result else None
    rates = sorted(declaration.settings.learning_rates)
    for cell in study.cells:
        if not only(cell):
            continue
        rng = np.random.default_rng(zlib.crc32(str(cell).encode()))
        rate = cell.rate or study.rate(cell)
        record = Record(
            arm=cell.arm,
            staleness=cell.staleness,
            seed=cell.seed,
            rate=rate,
            is_fresh=cell.is_fresh,
            status="finished",
            error=None,
            problems=f"problems of {cell.seed}",
            rollouts=declaration.settings.rollouts_at(cell.staleness),
            updates=cell.staleness * declaration.settings.rollouts_at(cell.staleness),
            validation=dict.fromkeys(MEASURES, RATE_WORTH[rates.index(rate)]),
            level_step=7,
            largest_ratio=float(np.exp(rng.normal(np.log(1 + cell.staleness), 0.5))),
            mismatch=0.01 * cell.staleness,
            silenced=0.05,
            k3_to_base=float(np.exp(rng.normal(-5, 0.5))) * cell.staleness,
            seconds=10.0 * cell.staleness,
            asked=asked if cell.is_fresh else None,
            verdicts=_verdicts(declaration, accuracy(cell.arm, cell.staleness), problems, rng)
            if cell.is_fresh
            else {},
        )
        path = folder / cell.place
        path.mkdir(parents=True, exist_ok=True)
        replace(record, **fields).write(path)
    return study


def _verdicts(
    declaration: Declaration, accuracy: float, problems: int, rng: np.random.Generator
) -> dict[str, dict[str, str]]:
    """Problems of a fixed difficulty; a seed's chance of each is near the arm's accuracy."""
    found = {}
    for temperature in declaration.settings.evaluation.temperature:
        hardness = np.random.default_rng(0).uniform(-0.3, 0.3, problems)
        right = rng.random(problems) < np.clip(accuracy + hardness + rng.normal(0, 0.02), 0, 1)
        digits = "".join("1" if r else "0" for r in right)
        found[f"{temperature:g}"] = dict.fromkeys(MEASURES, digits)
    return found


def _write_base(study: StudyFolder, accuracy: float, problems: int = 60) -> None:
    """A finished result of the bare base."""
    right = np.random.default_rng(1).random(problems) < accuracy
    write_result(
        study.base / "eval",
        {t: [[int(r)] for r in right] for t in study.declaration.settings.evaluation.temperature},
        adapter=None,
    )
