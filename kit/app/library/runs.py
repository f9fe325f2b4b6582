"""Training runs below the app's folders: found, read while they are being written, compared.

A run may be half-written, damaged or made by somebody else; what is wrong is said, the rest shown.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from kit.app.inert import printable, short
from kit.app.library.folders import FILES, changed, version
from kit.app.library.roots import read_run_config
from kit.app.verdicts import badge
from kit.config import Config
from kit.errors import RunError
from kit.reading import read_metrics
from kit.recipe import differences
from kit.run_json import NOT_STARTED, parse_description, status_of
from kit.tasks.verifiers import Verdict

LARGEST_LOG = 64 << 20  # bytes of a .jsonl that is read
LARGEST = 256 << 10  # bytes of another file; usual are 1-2 KB
EXPECTED = FILES[:3]  # samples are optional
LONGEST_FAULT = 300  # characters of a message that may quote a file


@dataclass(frozen=True, slots=True)
class Run:
    """What the files of a run folder hold at this moment."""

    config: Config | None
    status: str
    metrics: Sequence[dict[str, Any]]
    samples: Sequence[dict[str, Any]]
    changed: float  # seconds since 1970
    missing: tuple[str, ...]  # files that are not there (yet)
    faults: tuple[str, ...]  # what is wrong with those that are

    @property
    def step(self) -> int:
        """Steps finished."""
        return max((step for record in self.metrics if (step := step_of(record))), default=0)


@dataclass(frozen=True, slots=True)
class Sample:
    """A recorded completion and what was made of it."""

    question: str
    answer: str
    completion: str
    verdict: str
    facts: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one file holds, and what is wrong with it."""

    value: Any
    faults: tuple[str, ...] = ()


def read_run(path: Path) -> Run:
    """Read what is there; files that have not changed since the last time are not read again."""
    parsers = (_parse_config, _parse_description, _parse_lines, _parse_lines)
    parts = {name: _read(path / name, parse) for name, parse in zip(FILES, parsers, strict=True)}
    config, description, metrics, samples = (
        part.value if part else None for part in parts.values()
    )
    return Run(
        config=config,
        status=status_of(description or {}) if parts["run.json"] else NOT_STARTED,
        metrics=metrics or (),
        samples=samples or (),
        changed=changed(path),
        missing=tuple(name for name in EXPECTED if parts[name] is None),
        faults=tuple(fault for part in parts.values() if part for fault in part.faults),
    )


def sample_steps(run: Run) -> list[int]:
    """The steps of which completions were recorded, in order."""
    return sorted({step for record in run.samples if (step := step_of(record))})


def samples_at(run: Run, step: int) -> list[Sample]:
    """The completions recorded in a step."""
    return [_sample(record) for record in run.samples if step_of(record) == step]


def differing_rows(a: Run, b: Run) -> list[list[str]]:
    """Setting and both values, where two runs differ in more than their folders.

    Raises RunError when the configuration of one cannot be read.
    """
    if a.config is None or b.config is None:
        which = "first" if a.config is None else "second"
        raise RunError(f"the configuration of the {which} run cannot be read; choose another run")
    found = differences(a.config, b.config)
    return [[key, _shown(x), _shown(y)] for key, (x, y) in found.items() if key != "output"]


def number(value: object) -> float | None:
    """A finite number as a float; None for everything else a JSON file may hold in its place."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def step_of(record: dict[str, Any]) -> int | None:
    """The step a line belongs to."""
    step = record.get("step")
    # what a browser counts exactly; True is an integer to Python
    return step if type(step) is int and 0 <= step < 2**53 else None


def _read(path: Path, parse: Callable[[Path], Part]) -> Part | None:
    """None where there is no such file."""
    if not os.path.lexists(path):
        return None
    now = version(path)
    if not path.is_file() or not path.resolve().is_relative_to(path.parent.resolve()):
        return Part(None, (f"{path.name} is not a file in this folder and is not read",))
    limit = LARGEST_LOG if path.suffix == ".jsonl" else LARGEST
    if now[1] > limit:
        return Part(None, (f"{path.name} has more than {limit >> 10} KiB and is not read",))
    return _read_version(path, parse, now)


@lru_cache(maxsize=256)
def _read_version(path: Path, parse: Callable[[Path], Part], _now: tuple[int, int]) -> Part:
    """The file as it was at that time and size."""
    try:
        return parse(path)
    except OSError as error:
        return Part(None, (f"{path.name} cannot be read: {error.strerror}",))
    except RecursionError:
        return Part(None, (f"{path.name} is nested too deeply",))
    except (ValueError, yaml.YAMLError) as error:  # ConfigError is a ValueError
        return Part(None, (f"{path.name} is not usable: {short(str(error), LONGEST_FAULT)}",))


def _parse_config(path: Path) -> Part:
    return Part(read_run_config(path))


def _parse_description(path: Path) -> Part:
    return Part(parse_description(path.read_bytes()))


def _parse_lines(path: Path) -> Part:
    faults: list[str] = []
    records = read_metrics(path, faults)
    lines = [fault.removeprefix(f"{path.parent}{os.sep}") for fault in faults]
    more = [f"{path.name}: {len(lines) - 3} more lines like this"] if len(lines) > 3 else []
    return Part(tuple(records), (*lines[:3], *more))


def _sample(record: dict[str, Any]) -> Sample:
    strict, lenient = (record.get(name) is True for name in ("strict", "lenient"))
    verdict = Verdict(
        strict, lenient, None, lenient_answer=""
    )  # which answers were found is not kept
    said = badge(verdict, is_judged=True, truncated=record.get("truncated") is True)
    known = {key: number(record.get(key)) for key in ("reward", "advantage")}
    facts = [f"{key} {value:.3g}" for key, value in known.items() if value is not None]
    parts = record.get("parts")
    for name, value in parts.items() if isinstance(parts, dict) else ():
        if weighed := number(value):
            facts.append(f"{name} {weighed:.3g}")
    question, answer, completion = (
        str(record.get(key, "not recorded")) for key in ("question", "answer", "completion")
    )
    return Sample(question, answer, completion, said.text, ", ".join(facts))


def _shown(value: object) -> str:
    return "none" if value is None else printable(str(value))
