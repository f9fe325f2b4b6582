"""A run is a folder that explains itself: created once, resumed on request, never overwritten."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml
from filelock import FileLock, Timeout

from kit.config import Config
from kit.errors import (
    AdapterError,
    ConfigError,
    OutOfMemoryError,
    RewardError,
    RunError,
    TrainingError,
    first_line,
)
from kit.files import append_json, restore_folder, write_atomically
from kit.manifest import MANIFEST, begins_as, mark_of, read_manifest
from kit.reading import parse_json
from kit.recipe import build_config
from kit.run_json import NOT_STARTED, parse_description, status_of
from kit.run_settings import binding_differences, binding_settings
from kit.yaml_text import read_yaml

log = logging.getLogger(__name__)

LOCK = ".lock"
SHOWN = 80  # characters of a setting in a message
# what ends a run without its own doing: mended, the run goes on, in a comparison too
INTERRUPTIONS = (OutOfMemoryError, RewardError, RunError)
# what an attempt leaves that was killed before there was a config.yaml
OWN_REMAINS = {LOCK, "config.yaml.part", "run.json.part"}


class RunFolder:
    """Paths and records of one run: config.yaml, run.json, metrics.jsonl, samples.jsonl, …"""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.nonfinite = self.path / "nonfinite.jsonl"
        self.preferences = self.path / "preferences.jsonl"

    @property
    def label(self) -> str:
        """The folder's name; of a comparison's runs, which are called like their seed, arm too."""
        name = self.path.name
        return f"{self.path.parent.name}/{name}" if name.startswith("seed-") else name

    @property
    def exists(self) -> bool:
        return (self.path / "config.yaml").is_file()

    @property
    def status(self) -> str:
        """running, finished, interrupted, killed or failed; "not started" without a run.json,
        "unknown" where that does not say."""
        record = self.read_description()
        return status_of(record) if self.is_described else NOT_STARTED

    @property
    def is_described(self) -> bool:
        """Whether there is a run.json, of whatever kind."""
        return os.path.lexists(self.path / "run.json")

    @property
    def has_ended(self) -> bool:
        """Whether it is finished, or training itself failed: going on would fail again.

        What was stopped by something else (a full disk, say) can go on.
        """
        record = self.read_description()
        failed = record.get("status") == "failed" and not record.get("resumable")
        return failed or status_of(record) == "finished"

    @property
    def has_results(self) -> bool:
        """Whether there is anything to lose: a run that failed before its first step has none."""
        return self.exists and (self.metrics.is_file() or any(self.checkpoints.glob("step-*")))

    @property
    def _is_occupied(self) -> bool:
        if not self.path.is_dir():
            return os.path.lexists(self.path)
        for path in self.path.iterdir():
            is_empty = path == self.checkpoints and path.is_dir() and not any(path.iterdir())
            if path.name not in OWN_REMAINS and not is_empty:
                return True
        return False

    def check_free(self, config: Config, resume: bool) -> None:
        """Raise RunError where `open` would not take the folder for what it holds."""
        if self.has_results:
            self._accept(config, resume)
        elif not self.exists and self._is_occupied:
            raise RunError(f"{self.path} exists and is not a run folder; choose another output=…")

    def open(self, config: Config, resume: bool) -> FileLock:
        """Create the folder, or accept an existing one for resuming; release the lock at the end.

        Raises RunError when it holds a run and `resume` is off, a run of another configuration,
        or something that is not a run; when another process trains in it; or when it cannot be
        written.
        """
        with writing(self.path):
            self.check_free(config, resume)
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunError(
                    f"another process is training in {self.path}; wait for it, or choose another "
                    "output=…"
                ) from None
            try:
                settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
                write_atomically(self.path / "config.yaml", settings)
                self.checkpoints.mkdir(exist_ok=True)
                restore_folder(self.adapter)
            except BaseException:
                lock.release()
                raise
        return lock

    def load_config(self) -> Config:
        """The resolved configuration the run was started with; RunError where it is no file,
        ConfigError where it holds none."""
        path = self.path / "config.yaml"
        if not path.is_file():
            raise RunError(f"{self.path} is not a run folder: config.yaml is missing")
        try:
            return build_config(read_yaml(path))
        except ConfigError as error:
            prefix = "" if str(path) in str(error) else f"{path} is not usable: "
            raise ConfigError(f"{prefix}{error}") from None

    def describe(self, **facts: Any) -> None:
        """Merge facts into run.json; RunError when it is damaged or cannot be written."""
        record = self.read_description()
        if facts.get("status") not in (None, "failed"):  # what was wrong is over
            record = {k: v for k, v in record.items() if k not in ("error", "resumable")}
        record |= facts
        with writing(self.path / "run.json"):
            write_atomically(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def read_description(self) -> dict[str, Any]:
        """run.json, {} where there is none; RunError where it is damaged."""
        path = self.path / "run.json"
        if not self.is_described:
            return {}
        try:
            return parse_description(path.read_bytes())
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise RunError(
                f"{path} is damaged: {error}. Mend it, or delete it: it is written again when the "
                "run goes on with --resume"
            ) from None

    def append(self, path: Path, records: Sequence[dict[str, Any]]) -> None:
        """Append to one of the run's records; RunError when it cannot be written."""
        with writing(path):
            append_json(path, records)

    def note_end(self, error: BaseException) -> None:
        """Say in run.json how an attempt ended that did not come to its end.

        What is known of an earlier one stays, where this one had not begun to train.
        """
        try:
            if self.read_description().get("status") not in (None, "running"):
                return
            if isinstance(error, KeyboardInterrupt):
                self.describe(status="interrupted")
            elif isinstance(error, INTERRUPTIONS):
                self.describe(status="interrupted", error=first_line(error))
            else:
                is_final = isinstance(error, TrainingError)
                self.describe(status="failed", error=first_line(error), resumable=not is_final)
        except RunError as trouble:  # the error that ended the attempt is the one to be seen
            log.warning("how the run ended could not be noted: %s", trouble)

    def keep_to(self, problems: Mapping[str, Iterable[str]]) -> None:
        """Record which problems are trained on: `question` and `answer` of each, in their order.

        Raises RunError when the run was begun with others.
        """
        texts = [list(problems[column]) for column in ("question", "answer")]
        self._keep_to("problems", texts, "data.name and data.data_dir hold")

    @property
    def kept_preferences(self) -> Path | None:
        """The copy of what is learned from, which training goes on with; None before it began."""
        return self.preferences if self.has_results and self.preferences.is_file() else None

    @property
    def learned_from_preferences(self) -> bool:
        """Whether it learns from preferences, or has a copy of some."""
        return self.preferences.is_file() or self.load_config().learns_from_preferences

    def keep_preferences(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keep a copy of the preferences that are trained on: votes.jsonl grows.

        Raises RunError when the run was begun with others.
        """
        self._keep_to("preferences", lines, f"{self.preferences.name} and preferences.source hold")
        if self.kept_preferences is None:
            with writing(self.preferences):
                text = "".join(json.dumps(line) + "\n" for line in lines)
                write_atomically(self.preferences, text)

    def _keep_to(self, what: str, values: Any, where: str) -> None:
        found = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        if self.has_results and self.read_description().get(what, found) != found:
            raise RunError(
                f"{self.path} was begun with other {what} than {where} now; put those back, or "
                "choose another output=…"
            )
        self.describe(**{what: found})

    @property
    def records(self) -> tuple[Path, ...]:
        """The files that grow with every step."""
        return self.metrics, self.samples, self.nonfinite

    def check_settings(self, config: Config, step: int, before: Mapping[str, Any]) -> None:
        """Raise RunError where a checkpoint was trained with other settings than `config`.

        What only one of them knows is of another version of this kit.
        """
        now = binding_settings(config)
        changed = [key for key in now.keys() & before.keys() if now[key] != before[key]]
        if changed:
            listed = "; ".join(f"{key}: {before[key]!r} -> {now[key]!r}" for key in sorted(changed))
            raise RunError(
                f"{self.path / 'config.yaml'} is not what the run was trained with up to step "
                f"{step} ({listed}); it was cut off or edited: put these settings back"
            )

    def record_marks(self) -> dict[str, dict[str, Any]]:
        """Size and hash of each record as it is now, for a checkpoint."""
        return {path.name: mark_of(path) for path in self.records if path.is_file()}

    def changed_records(self, marks: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Names of the records that do not begin with what they held when `marks` were taken."""
        return [
            path.name
            for path in self.records
            if path.name in marks and not begins_as(path, marks[path.name])
        ]

    def altered_records(self) -> list[str]:
        """Names of the records that are not as the newest checkpoint left them."""
        manifests = sorted(self.checkpoints.glob(f"step-*/{MANIFEST}"))
        try:
            return self.changed_records(read_manifest(manifests[-1])["records"])
        except (IndexError, OSError, ValueError):  # damage there is said when training goes on
            return []

    def truncate(self, steps: int) -> None:
        """Forget what was recorded after `steps` steps: it will be written again."""
        for path in self.records:
            with writing(path):
                if not path.exists():
                    continue
                *lines, rest = path.read_bytes().split(b"\n")  # rest: cut off by a crash
                steps_of = [_step_of(line) for line in lines]
                kept = [
                    line
                    for line, step in zip(lines, steps_of, strict=True)
                    if step is not None and step <= steps
                ]
                if lost := steps_of.count(None):
                    log.warning("%s: %d lines that cannot be read are dropped", path, lost)
                if rest or len(kept) < len(lines):
                    write_atomically(path, b"".join(line + b"\n" for line in kept))

    def _accept(self, config: Config, resume: bool) -> None:
        if changed := binding_differences(self.load_config(), config):
            listed = "; ".join(
                f"{key}: {_short(old)} -> {_short(new)}" for key, (old, new) in changed.items()
            )
            raise RunError(
                f"{self.path} holds a run of another configuration: choose another output=…, or "
                f"run it with its own settings. What differs: {listed}"
            )
        if not resume:
            raise RunError(
                f"{self.path} already holds a run (status: {self.status}); add --resume to "
                "continue it or choose another output=…"
            )


def _short(value: object) -> str:
    return shorten(repr(value), SHOWN, placeholder=" …")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """RunError, in one line, for what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; once that is mended (a full disk: "
            "free some space) the same command goes on; kit train with --resume"
        ) from error


def _step_of(line: bytes) -> int | None:
    """The step of a JSON line; None for one that is damaged."""
    try:
        step = parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def lineage(path: str | Path) -> list[RunFolder]:
    """A run, and the runs that its adapter went on from, as far as their folders are there."""
    found: list[RunFolder] = []
    run: RunFolder | None = RunFolder(path)
    while run and run.exists and not any(run.path.samefile(other.path) for other in found):
        found.append(run)
        parent = run.load_config().model.adapter
        run = RunFolder(Path(parent).expanduser().parent) if parent else None
    return found


def check_has_adapter(run: RunFolder) -> None:
    """AdapterError for a run that was stopped before it had one."""
    if not run.adapter.is_dir():
        try:
            status = run.status
        except RunError:  # run.json is damaged
            status = "unknown"
        advice = (
            "wait for its first validation, or its end"
            if status == "running"
            else f"go on with: kit train {run.path} --resume"
        )
        raise AdapterError(f"{run.path} has no adapter yet (status: {status}); {advice}")
