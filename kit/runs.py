"""A run is a folder that explains itself: created once, resumed on request, never overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from kit.config import Config, build_config, differences
from kit.errors import RunError

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
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")


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
        """running, finished, interrupted, killed or failed; "unknown" where nothing says so."""
        return status_of(self.read_description())

    @property
    def has_results(self) -> bool:
        """Whether there is anything to lose: a run that failed before its first step has none."""
        return self.exists and (self.metrics.is_file() or any(self.checkpoints.glob("step-*")))

    @property
    def _is_occupied(self) -> bool:
        if not self.path.is_dir():
            return self.path.exists()
        return any(path.name != LOCK for path in self.path.iterdir())

    def open(self, config: Config, resume: bool) -> FileLock:
        """Create the folder, or accept an existing one for resuming; release the lock at the end.

        Raises RunError when it holds a run and `resume` is off, a run of another configuration,
        or something that is not a run; when another process trains in it; or when it cannot be
        written.
        """
        if self.has_results:
            self._accept(config, resume)
        elif not self.exists and self._is_occupied:
            raise RunError(f"{self.path} exists and is not a run folder; choose another output=…")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            lock.acquire(timeout=0)
            self.checkpoints.mkdir(exist_ok=True)
            write_atomically(
                self.path / "config.yaml",
                yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
            )
        except Timeout:
            raise RunError(
                f"another process is training in {self.path}; wait for it, or choose another "
                "output=…"
            ) from None
        except OSError as error:
            raise RunError(f"cannot write the run folder {self.path}: {error.strerror}") from error
        return lock

    def load_config(self) -> Config:
        """The resolved configuration the run was started with."""
        path = self.path / "config.yaml"
        if not path.is_file():
            raise RunError(f"{self.path} is not a run folder: config.yaml is missing")
        return build_config(yaml.safe_load(path.read_text(encoding="utf-8")))

    def describe(self, **facts: Any) -> None:
        """Merge facts into run.json."""
        record = self.read_description() | facts
        write_atomically(self.path / "run.json", json.dumps(record, indent=2) + "\n")

    def read_description(self) -> dict[str, Any]:
        path = self.path / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def keep_to(self, problems: Mapping[str, Iterable[str]]) -> None:
        """Record which problems are trained on: `question` and `answer` of each, in their order.

        Raises RunError when the run was begun with others.
        """
        texts = [list(problems[column]) for column in ("question", "answer")]
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        if self.has_results and self.read_description().get("problems", digest) != digest:
            raise RunError(
                f"{self.path} was begun with other problems than data.name and data.data_dir hold "
                "now; put those back, or choose another output=…"
            )
        self.describe(problems=digest)

    def truncate(self, steps: int) -> None:
        """Forget what was recorded after `steps` steps: it will be written again."""
        for path in (self.metrics, self.samples, self.nonfinite):
            if path.is_file():
                lines = path.read_text(encoding="utf-8").split("\n")
                kept = [line for line in lines if _step_of(line) <= steps]
                write_atomically(path, "".join(line + "\n" for line in kept))

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


def read_metrics(path: str | Path, faults: list[str] | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl or samples.jsonl; a last line cut off by a crash is left out.

    Raises RunError for a damaged line; with `faults` it is said there, and the others are returned.
    """
    *lines, _ = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError("not an object")
            records.append(record)
        except (ValueError, TypeError, RecursionError) as error:
            fault = f"{path}, line {number} is not a JSON object"
            if faults is None:
                raise RunError(fault) from error
            faults.append(fault)
    return records


def append_json(path: Path, records: list[dict[str, Any]]) -> None:
    """Append records to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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


def _step_of(line: str) -> float:
    """The step of a JSON line; a line cut off by a crash belongs to no step worth keeping."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
