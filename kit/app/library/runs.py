"""Training runs below the app's folders: found, read while they are being written, compared.

A run may be half-written, damaged or made by somebody else; what is wrong is said, the rest shown.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from kit.app.inert import printable
from kit.app.verdicts import FORMAT_MISSED, RIGHT, TRUNCATED, WRONG
from kit.config import Config, read_yaml
from kit.errors import ConfigError, RunError
from kit.files import read_metrics
from kit.recipe import build_config, differences
from kit.runs import NOT_STARTED, parse_description, status_of

log = logging.getLogger(__name__)

DEPTH = 5  # folders below a root that are searched
SKIPPED = {"checkpoints", "adapter"}  # many files, none of them of interest here
LARGEST_LOG = 64 << 20  # bytes of a .jsonl that is read
LARGEST = 256 << 10  # bytes of another file; usual are 1-2 KB
DEEPEST = 10  # sections and lists in each other; the kit writes five at most
FILES = ("config.yaml", "run.json", "metrics.jsonl", "samples.jsonl")
EXPECTED = FILES[:3]  # samples are optional
LONGEST_FAULT = 300  # characters of a message that may quote a file
PRESELECTED = 8  # at most


@dataclass(frozen=True, slots=True)
class Folder:
    """A run folder, a comparison or a report's folder."""

    path: Path  # absolute, without links
    name: str  # below its root; no other folder found with it has the same
    changed: float  # seconds since 1970


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


def walk(roots: Sequence[Path]) -> Iterator[tuple[Path, Path, set[str]]]:
    """Root, folder and the names of its files; links are not followed, hidden folders left out."""
    for root in roots:
        if not root.is_dir():
            continue
        for name, folders, files in os.walk(root, onerror=_warn):
            folder = Path(name)
            deep = len(folder.relative_to(root).parts) >= DEPTH
            folders[:] = [] if deep else sorted(filter(_is_searched, folders))
            yield root, folder, set(files)


def find(roots: Sequence[Path], marker: str) -> list[Folder]:
    """The folders that hold a file `marker`, by name."""
    found: dict[Path, Folder] = {}
    names: set[str] = set()
    for root, path, files in walk(roots):
        if marker not in files or path in found:
            continue
        name = root.name if path == root else str(path.relative_to(root))
        name = name if name not in names else str(path)
        names.add(name)
        found[path] = Folder(path, name, _changed(path, (*FILES, marker)))
    return sorted(found.values(), key=lambda folder: folder.name)


def find_runs(roots: Sequence[Path]) -> list[Folder]:
    """Every folder with a config.yaml, half-written ones included."""
    return find(roots, "config.yaml")


def preselect(runs: Sequence[Folder]) -> list[Folder]:
    """The newest run and those it is to be seen with: the arms of its comparison that have the
    same seed, or else the runs beside it."""
    if not runs:
        return []
    newest = max(runs, key=lambda run: run.changed).path
    comparison = newest.parent.parent
    if (comparison / "compare.json").is_file():
        beside = [run for run in runs if run.path.parent.parent == comparison]
        group = [run for run in beside if run.path.name == newest.name]
    else:
        group = [run for run in runs if run.path.parent == newest.parent]
    chosen = sorted(group, key=lambda run: -run.changed)[:PRESELECTED]
    return [run for run in group if run in chosen]


def short_names(names: Sequence[str]) -> list[str]:
    """Without the leading folders that all have in common; a legend has little room."""
    parents = [os.path.dirname(name) for name in names]
    if not names or not all(parents) or any(os.path.isabs(name) for name in names):
        return list(names)
    common = os.path.commonpath(parents)
    return [os.path.relpath(name, common) if common else name for name in names]


def fingerprint(paths: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Equal as long as no file of these runs has changed."""
    return tuple(_version(path / name) for path in paths for name in FILES)


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
        changed=_changed(path, FILES),
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


def _is_searched(name: str) -> bool:
    # bytes that are no text stand as surrogates, which cannot be sent to the page
    is_text = not any("\ud800" <= character <= "\udfff" for character in name)
    return is_text and name not in SKIPPED and not name.startswith(".")


def _warn(error: OSError) -> None:
    log.warning("cannot look into %s: %s", error.filename, error.strerror)


def _version(path: Path) -> tuple[int, int]:
    """Time and size of a file; zeros where there is none."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def _changed(path: Path, names: Sequence[str]) -> float:
    return max(_version(path / name)[0] for name in names) / 1e9


def _read(path: Path, parse: Callable[[Path], Part]) -> Part | None:
    """None where there is no such file."""
    if not os.path.lexists(path):
        return None
    changed, size = _version(path)
    if not path.is_file() or not path.resolve().is_relative_to(path.parent.resolve()):
        return Part(None, (f"{path.name} is not a file in this folder and is not read",))
    limit = LARGEST_LOG if path.suffix == ".jsonl" else LARGEST
    if size > limit:
        return Part(None, (f"{path.name} has more than {limit >> 10} KiB and is not read",))
    return _read_version(path, parse, changed, size)


@lru_cache(maxsize=256)
def _read_version(path: Path, parse: Callable[[Path], Part], _changed: int, _size: int) -> Part:
    """The file as it was at that time and size."""
    try:
        return parse(path)
    except OSError as error:
        return Part(None, (f"{path.name} cannot be read: {error.strerror}",))
    except RecursionError:
        return Part(None, (f"{path.name} is nested too deeply",))
    except (ValueError, yaml.YAMLError) as error:  # ConfigError is a ValueError
        reason = " ".join(str(error).split())
        shown = reason if len(reason) <= LONGEST_FAULT else f"{reason[:LONGEST_FAULT]}…"
        return Part(None, (f"{path.name} is not usable: {shown}",))


def _parse_config(path: Path) -> Part:
    text = path.read_text(encoding="utf-8")
    _check_yaml(text)
    return Part(build_config(read_yaml(path)))


def _check_yaml(text: str) -> None:
    """Raise ConfigError for what makes a few lines take hours or all memory."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError("it holds YAML aliases, which the kit never writes")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"it is nested more than {DEEPEST} deep")


def _parse_description(path: Path) -> Part:
    return Part(parse_description(path.read_bytes()))


def _parse_lines(path: Path) -> Part:
    faults: list[str] = []
    records = read_metrics(path, faults)
    lines = [fault.removeprefix(f"{path.parent}{os.sep}") for fault in faults]
    more = [f"{path.name}: {len(lines) - 3} more lines like this"] if len(lines) > 3 else []
    return Part(tuple(records), (*lines[:3], *more))


def _sample(record: dict[str, Any]) -> Sample:
    if record.get("strict") is True:
        verdict = RIGHT
    elif record.get("lenient") is True:
        verdict = FORMAT_MISSED
    else:
        verdict = TRUNCATED if record.get("truncated") is True else WRONG
    known = {key: number(record.get(key)) for key in ("reward", "advantage")}
    facts = [f"{key} {value:.3g}" for key, value in known.items() if value is not None]
    parts = record.get("parts")
    for name, value in parts.items() if isinstance(parts, dict) else ():
        if weighed := number(value):
            facts.append(f"{name} {weighed:.3g}")
    question, answer, completion = (
        str(record.get(key, "not recorded")) for key in ("question", "answer", "completion")
    )
    return Sample(question, answer, completion, verdict.text, ", ".join(facts))


def _shown(value: object) -> str:
    return "none" if value is None else printable(str(value))
