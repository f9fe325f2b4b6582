"""run.json: what a run says of itself, and the status read from it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from kit.reading import parse_json

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")
NOT_STARTED = "not started"
# the types of what it may hold
FACTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "started", "hardware", "parent", "problems", "error"), (str,)),
    **dict.fromkeys(("versions", "git", "base", "memory"), (dict,)),
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
    """Commit and dirtiness of the checkout this kit runs from; None outside one, installed into the
    environment of somebody's own checkout for example."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent.resolve():
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
