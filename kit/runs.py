"""A run is a folder that explains itself: created once, resumed on request, never overwritten."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from kit.config import Config, read_yaml
from kit.errors import (
    AdapterError,
    ConfigError,
    OutOfMemoryError,
    ResultsError,
    RewardError,
    RunError,
    TrainingError,
    first_line,
)
from kit.files import append_json, digest, parse_json, restore_folder, write_atomically
from kit.recipe import build_config, differences, flatten

log = logging.getLogger(__name__)

# settings that may change between the parts of one run without making it another experiment
MAY_CHANGE = {
    # of these nothing but the memory depends, and the last digits
    "model.gradient_checkpointing",
    "rollout.dequantize",
    "rollout.max_rows",
    "train.logprob_chunk",
    "train.micro_batch_tokens",
    "data.data_dir",  # where a copy of the same problems is: see keep_to
    "model.path",
    "output",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.report_to",
    "train.steps",
}
LOCK = ".lock"
# what ends a run without its own doing: mended, the run goes on, in a comparison too
INTERRUPTIONS = (OutOfMemoryError, RewardError, RunError)
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")
NOT_STARTED = "not started"
# what an attempt leaves that was killed before there was a config.yaml
OWN_REMAINS = {LOCK, "config.yaml.part", "run.json.part"}
# the types of what run.json may hold
MANIFEST = "manifest.json"  # of a checkpoint
MANIFEST_SCHEMA = 1  # both schemas are raised when a field changes its meaning
COMPARE_SCHEMA = 1  # of compare.json
COMPARE_FACTS: dict[str, Any] = {
    **dict.fromkeys(("arms", "runs", "base"), dict),
    "status": str,
    "command": str | None,
}
FACTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "started", "hardware", "parent", "problems", "error"), (str,)),
    **dict.fromkeys(("versions", "git", "base"), (dict,)),
    **dict.fromkeys(("seed", "steps"), (int,)),
    "best_validation": (int, float),
    "resumable": (bool,),
    **dict.fromkeys(("trained_with", "remarks"), (list,)),
}
MAY_BE_NULL = {"git", "parent", "best_validation", "error"}
PARTS: dict[str, dict[str, Any]] = {
    "git": {"commit": str, "dirty": bool},
    "base": {"id": str, "revision": str | None},
}


class RunFolder:
    """Paths and records of one run: config.yaml, run.json, metrics.jsonl, samples.jsonl, …"""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.nonfinite = self.path / "nonfinite.jsonl"

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

    def open(self, config: Config, resume: bool) -> FileLock:
        """Create the folder, or accept an existing one for resuming; release the lock at the end.

        Raises RunError when it holds a run and `resume` is off, a run of another configuration,
        or something that is not a run; when another process trains in it; or when it cannot be
        written.
        """
        with writing(self.path):
            if self.has_results:
                self._accept(config, resume)
            elif not self.exists and self._is_occupied:
                raise RunError(
                    f"{self.path} exists and is not a run folder; choose another output=…"
                )
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
        found = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        if self.has_results and self.read_description().get("problems", found) != found:
            raise RunError(
                f"{self.path} was begun with other problems than data.name and data.data_dir hold "
                "now; put those back, or choose another output=…"
            )
        self.describe(problems=found)

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
        return {
            path.name: {"size": (size := path.stat().st_size), "sha256": digest(path, size)}
            for path in self.records
            if path.is_file()
        }

    def changed_records(self, marks: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Names of the records that do not begin with what they held when `marks` were taken."""
        changed = []
        for path in self.records:
            mark = marks.get(path.name)
            try:
                there = path.stat().st_size if path.is_file() else -1
                is_same = mark is None or (
                    there >= mark["size"] and digest(path, mark["size"]) == mark["sha256"]
                )
            except OSError:
                is_same = False
            if not is_same:
                changed.append(path.name)
        return changed

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
        changed = differences(self.load_config(), config)
        changed = {key: values for key, values in changed.items() if key not in MAY_CHANGE}
        if changed:
            listed = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
            raise RunError(
                f"{self.path} holds a run of another configuration ({listed}); "
                "choose another output=… or run it with its own settings"
            )
        if not resume:
            raise RunError(
                f"{self.path} already holds a run (status: {self.status}); add --resume to "
                "continue it or choose another output=…"
            )


def binding_settings(config: Config) -> dict[str, Any]:
    """The settings that stay the same as long as a run lasts, by their dotted names."""
    flat = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in MAY_CHANGE}


def parse_description(text: bytes) -> dict[str, Any]:
    """The facts in a run.json; ValueError for what is none, or of another type."""
    record = parse_json(text)
    if not isinstance(record, dict):
        raise ValueError("it must hold a JSON object")
    for name in FACTS.keys() & record.keys():
        value = record[name]
        if value is None and name in MAY_BE_NULL:
            continue
        if not isinstance(value, FACTS[name]) or (type(value) is bool and name != "resumable"):
            raise ValueError(
                f"{name} is {str(value)[:80]!r}, which is no {FACTS[name][0].__name__}"
            )
        for part, wanted in PARTS.get(name, {}).items():
            if not isinstance(record[name].get(part, ...), wanted):
                raise ValueError(f"{name} has no {part}, or one of another type")
    return record


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest: `files` and `records` by name, with size and hash, and `settings`;
    ValueError or OSError where it is none."""
    manifest = parse_json(path.read_bytes())
    try:
        if manifest["schema"] != MANIFEST_SCHEMA:
            raise ValueError(
                f"it has schema {manifest['schema']!r}, this kit reads {MANIFEST_SCHEMA}"
            )
        if not isinstance(manifest["settings"], dict):
            raise ValueError("its settings are none")
        marks = [*manifest["files"].values(), *manifest["records"].values()]
        if any(type(m["size"]) is not int or type(m["sha256"]) is not str for m in marks):
            raise ValueError("its sizes and hashes are of another type")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no manifest of a checkpoint ({error!r})") from None
    return manifest


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


def read_comparison(path: Path) -> dict[str, Any]:
    """A compare.json, {} where there is none; ResultsError where it is damaged."""
    if not os.path.lexists(path):
        return {}
    try:
        record = parse_json(path.read_bytes())
        _check_comparison(record)
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ResultsError(
            f"{path} is damaged: {error}; delete it, and the kit compare that made it writes it "
            "again (what is finished is not done again)"
        ) from None
    return record


def _check_comparison(record: Any) -> None:
    """Raise ValueError for what no kit compare of this schema wrote."""
    if not isinstance(record, dict):
        raise ValueError("it must hold a JSON object")
    if record.get("schema") != COMPARE_SCHEMA:
        raise ValueError(f"it has schema {record.get('schema')!r}, this kit reads {COMPARE_SCHEMA}")
    for name, kind in COMPARE_FACTS.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{name} is {str(record.get(name))[:80]!r}")
    seeds = record["runs"].values()
    paths = [path for runs in seeds if isinstance(runs, dict) for path in runs.values()]
    paths.append(record["base"].get("results"))
    if not all(isinstance(runs, dict) for runs in seeds) or not all(map(_is_inside, paths)):
        raise ValueError("its runs are no folders in it")
    if not all(isinstance(value, int | float) for value in record.get("seconds", {}).values()):
        raise ValueError("its seconds are no numbers")


def _is_inside(path: object) -> bool:
    """Whether a relative path stays in its folder."""
    return isinstance(path, str) and not Path(path).is_absolute() and ".." not in Path(path).parts


def this_process() -> dict[str, Any]:
    """What tells later whether the process that wrote a run.json is still there."""
    return {"host": platform.node(), "pid": os.getpid()}


def status_of(record: dict[str, Any]) -> str:
    """The status in a run.json; "killed" where it says "running" but the process is gone.

    Only the machine that the process ran on can tell.
    """
    status, process = record.get("status"), record.get("process")
    if not isinstance(process, dict) or process.get("host") != platform.node():
        process = None
    if status == "running" and process and process.get("pid") not in psutil.pids():
        return "killed"
    return status if isinstance(status, str) else "unknown"


def environment() -> dict[str, Any]:
    """Versions and git state, for run.json."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    return {"versions": versions, "git": _git_state(), "started": time.strftime("%FT%T%z")}


def _git_state() -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout this kit runs from; None outside one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _step_of(line: bytes) -> int | None:
    """The step of a JSON line; None for one that is damaged."""
    try:
        step = parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def check_has_adapter(run: RunFolder) -> None:
    """AdapterError for a run that was stopped before it had one."""
    if not run.adapter.is_dir():
        try:
            status = run.status
        except RunError:  # run.json is damaged
            status = "unknown"
        raise AdapterError(
            f"{run.path} has no adapter yet (status: {status}); go on with: "
            f"kit train {run.path} --resume"
        )
