"""What a study has measured so far, and whether what it compares may be compared."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import ResultsError
from kit.study.cells import Cell
from kit.study.declared import StudySettings
from kit.study.folder import StudyFolder
from kit.study.records import Record, Verdicts, problems_of, shares, verdicts_of


@dataclass(frozen=True, slots=True)
class StudyEvidence:
    """The records of a study's runs, and the verdicts of its bare base."""

    settings: StudySettings
    arms: tuple[str, ...]
    cells: tuple[Cell, ...]  # all there are to be
    records: dict[Cell, Record]
    tuned: dict[tuple[str, int], float | None]  # by arm and staleness; None: not chosen yet
    tuning: dict[tuple[str, int], dict[float, float]]  # validation accuracy of each rate
    base: Verdicts | None

    def fresh(self, arm: str, staleness: int) -> list[Record]:
        """By seed, as far as they have ended."""
        return [
            record
            for cell, record in self.records.items()
            if cell.is_fresh and (cell.arm, cell.staleness) == (arm, staleness)
        ]

    def verdicts(
        self, arm: str, staleness: int, measure: str, temperature: float
    ) -> dict[int, NDArray[Any]]:
        """Each problem's share of right samples by seed, (P,). A run that failed has none right:
        nobody could use what it left."""
        found = {}
        for record in self.fresh(arm, staleness):
            if record.verdicts:
                found[record.seed] = self._shares(record.verdicts, temperature, measure)
            elif self.base is not None:
                found[record.seed] = np.zeros(len(self._shares(self.base, temperature, measure)))
        return found

    def base_verdicts(self, measure: str, temperature: float) -> NDArray[Any] | None:
        return None if self.base is None else self._shares(self.base, temperature, measure)

    def base_mean(self, measure: str, temperature: float) -> float | None:
        verdicts = self.base_verdicts(measure, temperature)
        return None if verdicts is None else float(verdicts.mean())

    def _shares(self, verdicts: Verdicts, temperature: float, measure: str) -> NDArray[Any]:
        return shares(verdicts, temperature, measure, self.settings.evaluation.samples)

    def is_at_edge(self, arm: str, staleness: int) -> str:
        """`smallest` or `largest`, where the tuned rate is that of several; else empty."""
        rates, rate = self.settings.rates_at(staleness), self.tuned[arm, staleness]
        if rate is None or len(rates) == 1 or rate not in (rates[0], rates[-1]):
            return ""
        return "smallest" if rate == rates[0] else "largest"

    def has_fallen(self, record: Record) -> bool:
        """Whether lenient accuracy ended below the base's, at the lowest temperature."""
        temperature = self.settings.evaluation.temperature[0]
        base = self.base_mean("lenient", temperature)
        if base is None:
            return False
        if not record.verdicts:
            return True
        return bool(self._shares(record.verdicts, temperature, "lenient").mean() < base)


def gather(folder: StudyFolder) -> StudyEvidence:
    """Read what is done; ResultsError where runs that are compared were not treated alike."""
    settings = folder.declaration.settings
    arms = tuple(folder.declaration.configs)
    grid = [(arm, staleness) for arm in arms for staleness in settings.staleness]
    result = folder.base_result()
    evidence = StudyEvidence(
        settings,
        arms,
        tuple(folder.cells),
        folder.records(),
        {key: folder.tuned(*key) for key in grid},
        {key: folder.tuning_scores(*key) for key in grid},
        None if result is None else verdicts_of(result),
    )
    asked = set() if result is None else {problems_of(result)}
    asked |= {record.asked for record in evidence.records.values() if record.asked}
    _one("the evaluation's problems", asked)
    _check_fair(evidence)
    return evidence


def _check_fair(evidence: StudyEvidence) -> None:
    """The same problems for a seed, the same rollouts, the tuned rate: or it is refused."""
    finished = [record for record in evidence.records.values() if not record.has_failed]
    for seed in {record.seed for record in finished}:
        _one(f"problems of seed {seed}", {r.problems for r in finished if r.seed == seed})
    for record in finished:
        where = f"{record.arm}, staleness {record.staleness}, seed {record.seed}"
        expected = evidence.settings.rollouts_at(record.staleness)
        if record.rollouts != expected:
            raise ResultsError(f"{where}: {record.rollouts} rollouts instead of {expected}")
        if record.is_fresh and record.rate != evidence.tuned[record.arm, record.staleness]:
            raise ResultsError(
                f"{where}: trained with {record.rate:g}, which is not the tuned rate"
            )


def _one(what: str, values: Iterable[Any]) -> None:
    values = set(values)
    if len(values) > 1:
        raise ResultsError(
            f"{what} are not the same in all runs; delete those that were made with other data"
        )


def fairness(evidence: StudyEvidence) -> list[str]:
    """What was checked and found equal, and what differs, in sentences."""
    settings = evidence.settings
    rollouts = ", ".join(f"{settings.rollouts_at(s)} at staleness {s}" for s in settings.staleness)
    rates = "; ".join(
        f"{', '.join(f'{rate:g}' for rate in settings.rates_at(s))} at staleness {s}"
        for s in settings.staleness
    )
    return [
        "All runs of a seed learned from the same problems in the same order, and all adapters and "
        "the base were measured on the same problems: checked by hashes.",
        f"Every finished run had the same number of rollouts ({rollouts}), each used as often as "
        "the staleness says.",
        *_updates(evidence),
        f"Every arm could choose from the same rates ({rates}) on the same "
        f"{len(settings.tuning.seeds)} tuning seeds; fresh seeds had no part in that. "
        "Verdicts are of arms with the rates that were chosen, not of the best ones.",
        *_edges(evidence),
        *_failed(evidence),
        *_unfinished(evidence),
    ]


def _updates(evidence: StudyEvidence) -> list[str]:
    """Updates that were taken: fewer where a rollout had nothing to teach."""
    said = []
    for staleness in evidence.settings.staleness:
        of_arms = {
            arm: statistics.fmean(r.updates for r in records)
            for arm in evidence.arms
            if (records := [r for r in evidence.fresh(arm, staleness) if not r.has_failed])
        }
        if of_arms:
            low, high = min(of_arms.values()), max(of_arms.values())
            whole = staleness * evidence.settings.rollouts_at(staleness)
            said.append(
                f"Updates taken at staleness {staleness}, means of the arms: {low:.0f} to "
                f"{high:.0f} of {whole}; a rollout whose rewards are all alike teaches nothing."
            )
    return said


def _edges(evidence: StudyEvidence) -> list[str]:
    found = [
        f"{arm} at {staleness} ({edge})"
        for arm, staleness in evidence.tuned
        if (edge := evidence.is_at_edge(arm, staleness))
    ]
    if not found:
        return []
    return [
        f"The tuned rate is at the edge of the grid, so that another one may be better: "
        f"{', '.join(found)}."
    ]


def _failed(evidence: StudyEvidence) -> list[str]:
    failed = [str(cell) for cell, record in evidence.records.items() if record.has_failed]
    if not failed:
        return []
    return [
        f"{len(failed)} runs failed, which counts as no problem right: {'; '.join(failed[:10])}"
        + (" …" if len(failed) > 10 else ".")
    ]


def _unfinished(evidence: StudyEvidence) -> list[str]:
    left = len(evidence.cells) - len(evidence.records)
    return [f"{left} of {len(evidence.cells)} runs are not done yet."] if left else []
