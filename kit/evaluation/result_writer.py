"""The result files of one target on one data set in the making: what is there, what is missing.

An evaluation is a grid of problems, temperatures and samples that may only grow. Finished rows are
appended to the .jsonl; the .json says from the start what they belong to, and at last the figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.config import DataConfig
from kit.errors import DataError, ResultsError
from kit.evaluation.results import (
    SCHEMA,
    Key,
    Row,
    claimed,
    digests,
    key_of,
    read_result,
    read_rows,
    writing,
)
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import PROBLEM_FIELDS
from kit.files import append_json, sync_folder, write_atomically
from kit.recipe import flatten
from kit.tasks.guidelines import Follower
from kit.tasks.problems import ProblemSet

_GOES_ON = "; once that is mended, the same command goes on from the last row written"
MAY_GROW = {"settings.temperatures", "settings.samples", "settings.limit"}
MAY_MOVE = {"target.name", "target.run", "target.adapter"}  # its weights are told by their hash

Mark = tuple[int, int]  # time of the last change, size


@dataclass(slots=True)
class ResultWriter:
    """Rows that are there and keys of rows that are missing, in step with both files."""

    path: Path  # the .json
    record: dict[str, Any]
    settings: EvalSettings  # grown to cover what is there
    problem_set: ProblemSet
    problems: dict[str, Row]  # by id
    rows: dict[Key, Row]
    missing: set[Key]
    seen: tuple[Mark, Mark]  # both files when they were read
    followers: Sequence[Follower] = ()  # of the guidelines that answers are looked at by

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other evaluations off these files.

        Raises ResultsError while one is at them, or has been since they were read.
        """
        busy = (
            f"another evaluation is writing {self.path}; wait for it, or keep yours apart with "
            "--tag NAME"
        )
        with claimed(self.path, busy, _GOES_ON):
            if _marks(self.path) != self.seen:
                raise ResultsError(
                    f"another evaluation has written {self.path} since this one began; the same "
                    "command goes on from what is there now"
                )
            yield

    def check_revision(self, revision: str | None) -> None:
        """Raise ResultsError where the rows there are from another revision of the base."""
        before = self.record["target"]["base_revision"]
        if before and revision and before != revision:
            raise _refusal(self.path, {"target.base_revision": (before, revision)})

    def start(self, revision: str | None, hardware: str, facts: dict[str, Any]) -> None:
        """Announce what will be sampled; `facts` are versions, git, command and started."""
        before, started = self.record["hardware"], self.record["started"]
        if before not in (None, hardware):  # the last digits of rows may differ
            hardware = f"{before}; then {hardware}"
        self.record |= facts | {"started": started or facts["started"], "hardware": hardware}
        self.record["target"]["base_revision"] = revision
        with writing(self.path, _GOES_ON):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.rows:  # a last row may have been cut off
                size = self._completions.read_bytes().rfind(b"\n") + 1
                os.truncate(self._completions, size)
            else:
                self._completions.unlink(missing_ok=True)
                sync_folder(self.path.parent)
            self._save()

    def add(self, rows: list[Row], seconds: float, tokens: int) -> None:
        """Append finished rows. `tokens` were sampled, for all targets, in `seconds`."""
        before = self.record["seconds"]
        tokens += round(before * (self.record["tokens_per_second"] or 0))
        self.record["seconds"] = before + seconds
        self.record["tokens_per_second"] = tokens / self.record["seconds"]
        with writing(self.path, _GOES_ON):
            append_json(self._completions, rows)
            self._save()
        for row in rows:
            self.rows[key_of(row)] = row
            self.missing.remove(key_of(row))

    def finish(self, figures: list[dict[str, Any]]) -> None:
        """Write the figures, an entry for each temperature."""
        self.record |= {"status": "finished", "results": figures}
        with writing(self.path, _GOES_ON):
            self.record["digests"] = digests(self.record, self._completions)
            self._save()

    @property
    def _completions(self) -> Path:
        return self.path.with_suffix(".jsonl")

    def _save(self) -> None:
        write_atomically(self.path, json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")


def open_writer(
    path: Path,
    target: dict[str, Any],
    config: DataConfig,
    asked: EvalSettings,
    load: Callable[[int | None], ProblemSet],
    *,
    tag: str | None = None,
    overwrite: bool = False,
    followers: Sequence[Follower] = (),
) -> ResultWriter:
    """Compare what is asked for with what is there; nothing is written yet.

    `target` is that field of the result file, `load` gives the problems within a limit; answers
    are looked at by `followers`, and counted again where that was not done before. Raises
    ResultsError where rows of other settings are there, or rows would be needed that were not
    asked for; DataError where problems cannot be told apart.
    """
    seen = _marks(path)
    before = None if overwrite else _read_before(path)
    settings = asked.joined(before["settings"]) if before else asked
    record = _new_record(target, config, settings, tag)
    if before:
        record = _continued(path, before, record)
    problem_set = load(settings.limit)
    problems: dict[str, Row] = {problem["id"]: problem for problem in problem_set.problems}
    if len(problems) < len(problem_set.problems):
        raise DataError(f"{config.name} has several problems with one id; give each its own")
    grid = _grid(settings, problems)
    rows: dict[Key, Row] = {}
    if before:
        rows = _rows_before(path, problems, grid)
        if not grid - rows.keys() <= _grid(asked, load(asked.limit).problems["id"]):
            raise _may_only_grow(path, before["settings"], record["settings"])
    missing = grid - rows.keys()
    guidelines = {each.name: each.guideline.model_dump(mode="json") for each in followers}
    counted = record.get("guidelines", {})
    if missing or any(counted.get(name) != values for name, values in guidelines.items()):
        record |= {"status": "running", "n": len(problems), "results": [], "digests": None}
        record = {key: value for key, value in record.items() if key != "guidelines"}
        record |= {"guidelines": guidelines} if guidelines else {}
    return ResultWriter(
        *(path, record, settings, problem_set, problems, rows, missing, seen), followers
    )


def _continued(path: Path, before: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The record that is there, with the target and settings that are asked for now."""
    _check_same(path, before, asked)
    known = asked["target"]["base_revision"] or before["target"].get("base_revision")
    target = asked["target"] | {"base_revision": known}
    return before | {"target": target, "settings": asked["settings"]}


def _marks(path: Path) -> tuple[Mark, Mark]:
    """Time and size of both files, zeros where there is none."""
    found = []
    for file in (path, path.with_suffix(".jsonl")):
        try:
            state = file.stat()
            found.append((state.st_mtime_ns, state.st_size))
        except OSError:
            found.append((0, 0))
    return found[0], found[1]


def _grid(settings: EvalSettings, ids: Iterable[str]) -> set[Key]:
    return {
        (id_, temperature, sample)
        for id_ in ids
        for temperature in settings.temperature
        for sample in range(settings.samples_at(temperature))
    }


def _new_record(
    target: dict[str, Any], config: DataConfig, settings: EvalSettings, tag: str | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "status": "running",
        "data": config.name,
        "tag": tag,
        "n": None,
        "seen_in_training": None,
        "target": dict(target),
        "settings": {
            "system_prompt": config.system_prompt,
            "problems": config.model_dump(mode="json", include=PROBLEM_FIELDS),
            **settings.model_dump(exclude={"temperature", "samples", "limit", "leave_out"}),
            **({"leave_out": settings.leave_out} if settings.leave_out else {}),
            "temperatures": settings.temperature,
            "samples": settings.samples,
            "limit": settings.limit,
        },
        **dict.fromkeys(("hardware", "versions", "git", "command", "started")),
        "seconds": 0.0,
        "tokens_per_second": None,
        "results": [],
        "digests": None,
    }


def _read_before(path: Path) -> dict[str, Any] | None:
    """The record that is there, if any."""
    if path.exists():
        return read_result(path).record
    if path.with_suffix(".jsonl").exists():
        raise ResultsError(
            f"{path.with_suffix('.jsonl')} is there without {path.name}, so nobody knows how it "
            "was sampled; move it away or add --overwrite"
        )
    return None


def _check_same(path: Path, before: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ResultsError where the rows that are there are no part of what is asked for."""

    def identity(record: dict[str, Any]) -> dict[str, Any]:
        return flatten({key: record[key] for key in ("data", "target", "settings")})

    old, new = identity(before), identity(wanted)
    different = {
        key: (old.get(key), new.get(key))
        for key in sorted((old.keys() | new.keys()) - MAY_GROW - MAY_MOVE)
        if old.get(key) != new.get(key)
    }
    # not known before the base is loaded, nor for a folder
    if None in different.get("target.base_revision", ()):
        del different["target.base_revision"]
    if different:
        raise _refusal(path, different)


def _refusal(path: Path, different: dict[str, tuple[Any, Any]]) -> ResultsError:
    listed = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in different.items())
    return ResultsError(
        f"{path} holds results of other settings ({listed}); keep both with --tag NAME, or replace "
        "those there with --overwrite"
    )


def _rows_before(path: Path, problems: dict[str, Row], grid: set[Key]) -> dict[Key, Row]:
    """The rows that are there, checked against the problems they claim to answer."""
    completions = path.with_suffix(".jsonl")
    rows = {key_of(row): row for row in read_rows(completions)} if completions.exists() else {}
    for key, row in rows.items():
        problem = problems.get(row["id"], {})
        if key not in grid or any(row[k] != problem[k] for k in ("question", "answer")):
            raise ResultsError(
                f"{completions} has an answer to {row['id']!r}, which is not the problem it was "
                "or is left out now; the data, or what leave_out names, have changed: keep both "
                "results with --tag NAME, or replace those there with --overwrite"
            )
    return rows


def _may_only_grow(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> ResultsError:
    return ResultsError(
        f"{path} holds {_in_words(there)}, which may only grow: ask for {_in_words(asked)}, keep "
        "these results apart with --tag NAME, or replace those there with --overwrite"
    )


def _in_words(settings: dict[str, Any]) -> str:
    """The part of the settings that may grow, as it is asked for."""
    temperatures = ",".join(map(str, settings["temperatures"]))
    limit = f"limit={settings['limit']}" if settings["limit"] else "no limit"
    return f"temperature={temperatures} samples={settings['samples']} {limit}"
