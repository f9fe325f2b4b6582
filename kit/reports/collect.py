"""Find runs and their result files and sort them into arms."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kit.arms import OWN
from kit.compare_json import read_comparison
from kit.errors import ResultsError
from kit.evaluation.results import Result, find_results
from kit.reading import read_metrics
from kit.recipe import differences
from kit.reports.evidence import BASE, Arm, Evidence, Measured, TrainedRun, check
from kit.reports.figures import short_names
from kit.reports.scores import label
from kit.runs import RunFolder
from kit.spelling import did_you_mean_path


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run folder; arm and command where a comparison names them."""

    path: Path
    arm: str | None = None
    command: str | None = None


def collect(paths: Sequence[str | Path]) -> Evidence:
    """Read run folders, folders of `kit compare`, and result folders of a bare base.

    Raises ResultsError for a path that is none of these, bases or settings that differ, and
    result files that do not fit their rows; other KitErrors for files that cannot be read.
    """
    comparisons: dict[Path, dict[str, Any]] = {}
    remarks: list[str] = []
    found: list[FoundRun] = []
    base_folders: list[Path] = []
    for path in map(Path, paths):
        if (path / "compare.json").is_file():
            comparisons[path / "compare.json"] = record = read_comparison(path / "compare.json")
            found += _runs_of(record, path, remarks)
            base_folders.append(path / record["base"]["results"])
        elif RunFolder(path).exists:
            found.append(FoundRun(path))
        elif find_results(path / "eval") or find_results(path):
            base_folders.append(path)
        else:
            raise ResultsError(
                f"nothing to report in {path}{did_you_mean_path(path)}: neither a run folder "
                "(config.yaml), nor one of `kit compare` (compare.json), nor results of a base "
                "(eval/*.json)"
            )
    if not found:
        raise ResultsError("nothing to report: no run folder among what was given")
    runs = [(run.arm, _read_run(run, remarks)) for run in _once(found)]
    evidence = Evidence(
        _sort_into_arms(runs), _read_base(base_folders, remarks), comparisons, remarks
    )
    check(evidence)
    remarks += _unshared(evidence)
    return evidence


def _unshared(evidence: Evidence) -> Iterator[str]:
    """What was not measured of every arm that was evaluated, and what is told instead."""
    evaluated = {arm.name for arm in evidence.arms if any(run.results for run in arm.runs.values())}
    for data in evidence.data:
        measured, told = evidence.temperatures(data), evidence.told_temperature(data)
        if without := sorted(evaluated - measured.keys()):
            yield f"{data}: not evaluated of {', '.join(without)}"
        arms = {name: found for name, found in measured.items() if name != BASE}
        for t in sorted(t for t in set[float]().union(*arms.values()) if t <= told):
            if without := [name for name, found in arms.items() if t not in found]:
                instead = f", so {label(told)} is told" if t < told else ""
                yield f"{data}, {label(t)}: not measured of {', '.join(without)}{instead}"
        if told not in measured.get(BASE, {told}):
            yield f"{data}, {label(told)}: not measured of the base"


def _runs_of(record: Mapping[str, Any], folder: Path, remarks: list[str]) -> Iterator[FoundRun]:
    """The runs of a comparison that have been started."""
    if record["status"] != "finished":
        remarks.append(f"{folder}: the comparison is not finished (status: {record['status']})")
    for arm, seeds in record["runs"].items():
        for seed, path in seeds.items():
            if RunFolder(folder / path).exists:
                yield FoundRun(folder / path, arm, record["command"])
            else:
                remarks.append(f"{arm}, seed {seed}: not started")


def _once(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Each folder once, as a comparison names it where one does."""
    known: dict[Path, FoundRun] = {}
    for run in runs:
        path = run.path.resolve()
        if path not in known or known[path].arm is None:
            known[path] = run
    return list(known.values())


def _read_run(found: FoundRun, remarks: list[str]) -> TrainedRun:
    path, folder = found.path, RunFolder(found.path)
    run = TrainedRun(
        path=path,
        config=folder.load_config(),
        description=folder.read_description(),
        metrics=_read_metrics(folder, remarks),
        results=_read_results(path / "eval", remarks),
        command=found.command or shlex.join(["kit", "train", str(path / "config.yaml")]),
    )
    remarks += [f"{path}: {remark}" for remark in run.description.get("remarks", [])]
    remarks += [
        f"{path}: {name} was changed or lost after it was written"
        for name in folder.altered_records()
    ]
    if run.status != "finished":
        remarks.append(
            f"{path}: training is not finished (status: {run.status}, step {run.steps} of "
            f"{run.config.train.steps})"
        )
    if not run.results:
        remarks.append(f"{path}: no finished evaluation; kit evaluate {path} --data …")
    return run


def _read_metrics(folder: RunFolder, remarks: list[str]) -> list[dict[str, Any]]:
    if not folder.metrics.is_file():
        return []
    metrics = read_metrics(folder.metrics)
    for number, record in enumerate(metrics, start=1):
        odd = [key for key, value in record.items() if not isinstance(value, int | float)]
        step = record.get("step")
        if odd or type(step) is not int or not 0 <= step < 2**53:
            raise ResultsError(
                f"{folder.metrics}, line {number}: {', '.join(odd) or 'step'} is no number; put "
                "the file back, or leave this run out"
            )
    if not folder.metrics.read_bytes().endswith(b"\n"):
        remarks.append(f"{folder.metrics}: the last line is cut off and left out")
    return metrics


def _read_results(folder: Path, remarks: list[str]) -> dict[str, Measured]:
    """The finished result files in a folder, by file name without its ending."""
    found = {}
    for result in find_results(folder):
        if result.record["status"] == "finished":
            found[result.path.stem] = Measured(result, _read_verdicts(result))
        else:
            remarks.append(
                f"{result.path}: the evaluation is not finished and is left out; repeat its "
                f"command to go on: {result.record['command']}"
            )
    return found


def _read_verdicts(result: Result) -> pd.DataFrame:
    """Means over samples by temperature and problem; they must agree with the figures."""
    rows = [
        (row["temperature"], str(row["id"]), float(row["strict"]), float(row["lenient"]))
        for row in result.rows()
    ]
    table = pd.DataFrame(rows, columns=["temperature", "id", "strict", "lenient"])
    verdicts = table.groupby(["temperature", "id"]).mean()
    for temperature in result.temperatures:
        figures = result.at(temperature)
        here = table[table["temperature"] == temperature]
        for measure in ("strict", "lenient"):
            found = (int(here[measure].sum()), len(here))
            stated = _counts(result, figures.get(measure))
            if found != stated:
                raise ResultsError(
                    f"{result.path} counts {stated[0]} of {stated[1]} {measure} at temperature "
                    f"{temperature:g}, its rows {found[0]} of {found[1]}; evaluate anew"
                )
    return verdicts


def _counts(result: Result, share: Any) -> tuple[Any, Any]:
    try:
        return share["count"], share["n"]
    except (KeyError, TypeError):
        raise ResultsError(f"{result.path} has figures without counts; evaluate anew") from None


def _read_base(folders: Sequence[Path], remarks: list[str]) -> dict[str, Measured]:
    results: dict[str, Measured] = {}
    for folder in folders:
        found = _read_results(folder / "eval", remarks) or _read_results(folder, remarks)
        for data, measured in found.items():
            if measured.result.record["target"].get("adapter") is not None:
                raise ResultsError(
                    f"{measured.result.path} is of an adapter outside a run folder; a report "
                    "compares runs, and bare bases with them"
                )
            known = results.setdefault(data, measured)
            if not known.verdicts.equals(measured.verdicts):
                raise ResultsError(
                    f"{known.result.path} and {measured.result.path} are two different results of "
                    "one base; give one of them"
                )
    return results


def _sort_into_arms(runs: Sequence[tuple[str | None, TrainedRun]]) -> list[Arm]:
    """Runs of one configuration, seed and output apart, form an arm."""
    groups: list[list[tuple[str | None, TrainedRun]]] = []
    for name, run in runs:
        for group in groups:
            if not differences(group[0][1].config, run.config).keys() - OWN:
                group.append((name, run))
                break
        else:
            groups.append([(name, run)])
    arms: list[Arm] = []
    given = [_given_name(group) for group in groups]
    short = short_names(given)
    for group, name in zip(groups, given, strict=True):
        by_seed: dict[int, TrainedRun] = {}
        for _, run in sorted(group, key=lambda member: member[1].seed):
            other = by_seed.setdefault(run.seed, run)
            if other is not run:
                raise ResultsError(
                    f"{other.path} and {run.path} have the same configuration and seed {run.seed}; "
                    "give one of them"
                )
        arms.append(Arm(_unused(short[name], {BASE, *(arm.name for arm in arms)}), by_seed))
    return arms


def _given_name(group: Sequence[tuple[str | None, TrainedRun]]) -> str:
    """What a comparison calls an arm, else what its folder is called like."""
    given = next((name for name, _ in group if name), None)
    return given or _arm_name(group[0][1].path)


def _arm_name(path: Path) -> str:
    """The folder's name without a seed; the parent's where nothing else is in it."""
    path = path.resolve()
    return re.sub(r"(^|[-_.])(seed|s)[-_]?\d+$", "", path.name) or path.parent.name


def _unused(name: str, used: set[str]) -> str:
    number = 2
    unused = name
    while unused in used:
        unused, number = f"{name} ({number})", number + 1
    return unused
