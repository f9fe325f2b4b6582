"""cell.json: what a run of a study left, so that reports read nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import ResultsError
from kit.evaluation.results import Result
from kit.files import write_atomically
from kit.reading import parse_json, read_metrics
from kit.runs import RunFolder, writing
from kit.study.cells import Cell

NAME = "cell.json"
SCHEMA = 1  # raised when a field changes its meaning
MEASURES = ("strict", "lenient")
WINDOW = 5  # steps whose mean accuracy has to reach the level

Verdicts = dict[str, dict[str, str]]  # temperature -> measure -> right samples of each problem


@dataclass(frozen=True, slots=True)
class Record:
    """What one run left. Figures are None where the run failed before there were any."""

    arm: str
    staleness: int
    seed: int
    rate: float
    is_fresh: bool
    status: str  # finished or failed
    error: str | None
    problems: str | None  # hash of what was trained on
    rollouts: int
    updates: int  # that changed the weights
    validation: dict[str, float]  # by measure, after the last step
    level_step: int | None  # first step at which accuracy while training reached the level
    largest_ratio: float | None  # of any step, current policy to old one
    mismatch: float | None  # |log ratio to the sampler|, mean over tokens and steps
    silenced: float | None  # share of tokens without a gradient, mean over steps
    k3_to_base: float | None  # in the last step, nats per token
    seconds: float  # its share of what training and evaluation took
    asked: str | None  # hash of the evaluation's problems, where it was evaluated
    verdicts: Verdicts

    @property
    def has_failed(self) -> bool:
        return self.status != "finished"

    def write(self, folder: Path) -> None:
        record = {"schema": SCHEMA, **dataclasses.asdict(self)}
        with writing(folder / NAME):
            write_atomically(folder / NAME, json.dumps(record) + "\n")


def read_record(path: Path) -> Record:
    """A cell.json; ResultsError where it is damaged."""
    try:
        record = parse_json(path.read_bytes())
        if record.pop("schema", None) != SCHEMA:
            raise ValueError(f"this kit reads schema {SCHEMA}")
        return Record(**record)
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{path} is damaged: {error}; delete its folder, and the run is done again"
        ) from None


def measure(
    cell: Cell,
    rate: float,
    run: RunFolder,
    result: Result | None,
    *,
    level: float,
    seconds: float,
) -> Record:
    """Read what a run that has ended left; `result` is its evaluation, where it had one.

    Raises ResultsError for one that was not trained with the `rate` that the study has for it.
    """
    about, trained = run.read_description(), run.load_config().optim.learning_rate
    if trained != rate:
        raise ResultsError(
            f"{run.path} was trained with optim.learning_rate={trained:g}, where the study has "
            f"{rate:g}; delete the folder, and the run is done again"
        )
    metrics = read_metrics(run.metrics) if run.metrics.is_file() else []
    steps = [record for record in metrics if "accuracy/lenient" in record]
    last = [record for record in metrics if record["step"] == about.get("steps")]
    validated = next((record for record in last if "validation/strict" in record), {})
    updated = [record for record in steps if record.get("update/skipped") == 0]
    return Record(
        arm=cell.arm,
        staleness=cell.staleness,
        seed=cell.seed,
        rate=trained,
        is_fresh=cell.is_fresh,
        status="finished" if run.status == "finished" else "failed",
        error=about.get("error"),
        problems=about.get("problems"),
        rollouts=len(steps),
        updates=sum(cell.staleness - int(record["update/not_finite"]) for record in updated),
        validation={m: validated[f"validation/{m}"] for m in MEASURES if validated},
        level_step=_level_step(steps, level),
        largest_ratio=max(_values(steps, "ratio/max"), default=None),
        mismatch=_mean(_values(steps, "ratio/mismatch_token")),
        silenced=_mean(_values(steps, "ratio/zero_gradient_share")),
        k3_to_base=next(reversed(_values(steps, "policy/k3_to_base")), None),
        seconds=seconds,
        asked=None if result is None else problems_of(result),
        verdicts={} if result is None else verdicts_of(result),
    )


def verdicts_of(result: Result) -> Verdicts:
    """How many samples of each problem are right, a digit each, problems in the order of ids."""
    found: Verdicts = {}
    for temperature in result.temperatures:
        counts: dict[str, dict[str, int]] = {m: {} for m in MEASURES}
        for row in result.rows(temperature):
            for m in MEASURES:
                counts[m][str(row["id"])] = counts[m].get(str(row["id"]), 0) + int(row[m])
        found[f"{temperature:g}"] = {
            m: "".join(str(counts[m][problem]) for problem in sorted(counts[m])) for m in MEASURES
        }
    return found


def problems_of(result: Result) -> str:
    """Hash of the problems of an evaluation."""
    rows = result.rows(result.temperatures[0])
    asked = sorted({(str(row["id"]), row["question"]) for row in rows})
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def shares(verdicts: Verdicts, temperature: float, measure: str, samples: int) -> NDArray[Any]:
    """Each problem's share of right samples, (P,)."""
    digits = verdicts[f"{temperature:g}"][measure]
    return np.array([int(digit) for digit in digits]) / (samples if temperature > 0 else 1)


def _level_step(steps: Sequence[Mapping[str, Any]], level: float) -> int | None:
    """The last step of the first window whose mean accuracy reaches the level."""
    accuracies = [record["accuracy/lenient"] for record in steps]
    for end in range(WINDOW, len(steps) + 1):
        if np.mean(accuracies[end - WINDOW : end]) >= level:
            return steps[end - 1]["step"]
    return None


def _values(steps: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Those that are recorded, and finite."""
    return [record[key] for record in steps if key in record and np.isfinite(record[key])]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
