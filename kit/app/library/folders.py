"""The folders below the app's roots, and which of them hold a run, a comparison or a report."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

DEPTH = 5  # folders below a root that are searched for markers
SKIPPED = {"checkpoints", "adapter"}  # many files, none of them of interest here
COMPARISON = "compare.json"
FILES = ("config.yaml", "run.json", "metrics.jsonl", "samples.jsonl")  # of a run
PRESELECTED = 8  # at most


@dataclass(frozen=True, slots=True)
class Folder:
    """A run folder, a comparison or a report's folder."""

    path: Path  # absolute, without links
    name: str  # below its root; no other folder found with it has the same
    changed: float  # seconds since 1970

    @property
    def option(self) -> tuple[str, str]:
        """As it is offered for choice: what is read, and what that stands for."""
        return self.name, str(self.path)


def walk(
    root: Path, depth: int, skipped: Collection[str], trouble: Callable[[OSError], object]
) -> Iterator[tuple[Path, list[str], set[str]]]:
    """A folder and those up to `depth` below it: path, names of folders, names of files.

    Each comes before those in it, by name; what is taken out of its list of folders is not
    searched. Hidden and `skipped` ones are left out, links are listed and not followed. Nothing
    for a root that is not there; `trouble` gets what cannot be listed.
    """
    if not root.is_dir():
        return
    for path, folders, files in os.walk(root, onerror=trouble):
        folder = Path(path)
        is_deep = len(folder.relative_to(root).parts) >= depth
        wanted = (name for name in folders if name not in skipped and name[0] != ".")
        folders[:] = [] if is_deep else sorted(wanted)
        yield folder, folders, set(files)


def find(roots: Sequence[Path], marker: str) -> list[Folder]:
    """The folders that hold a file `marker`, by name."""
    found: dict[Path, Folder] = {}
    names: set[str] = set()
    for root in roots:
        for path, _, files in walk(root, DEPTH, SKIPPED, _warn):
            name = root.name if path == root else str(path.relative_to(root))
            if marker not in files or path in found or not _is_text(name):
                continue
            name = name if name not in names else str(path)
            names.add(name)
            found[path] = Folder(path, name, changed(path, (*FILES, marker)))
    return sorted(found.values(), key=lambda folder: natural(folder.name))


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
    if (comparison / COMPARISON).is_file():
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


def display_names(names: Sequence[str], most: int = 28) -> list[str]:
    """Names of at most `most` characters, where that tells them apart: without the leading folders
    that those in folders share, and with the middle left out of what is still too long, or else
    what is before and after the place where they part."""
    inside = [name for name in names if "/" in name]
    short = dict(zip(inside, short_names(inside), strict=True))
    whole = [short.get(name, name) for name in names]
    if len(set(whole)) < len(whole):
        whole = list(names)
    alike: dict[str, list[str]] = {}
    for name in whole:
        ends = name[: most // 2], name[-(most - most // 2 - 1) :]
        alike.setdefault(name if len(name) <= most else "…".join(ends), []).append(name)
    shown: dict[str, str] = {}
    for cut, group in alike.items():
        columns = enumerate(zip(*group, strict=False))
        first = max(0, next((i for i, column in columns if len({*column}) > 1), 0) - 5)
        last = first + most - 2
        parts = [f"…{name[first:last]}{'…' * (len(name) > last)}" for name in group]
        if len({*parts}) == len(group):
            shown |= dict(zip(group, [cut] if len(group) == 1 else parts, strict=True))
    return [shown.get(name, name) for name in whole]


def natural(name: str) -> list[str]:
    """Sorts '2 steps' before '11 steps'."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def fingerprint(paths: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Equal as long as no file of these runs has changed."""
    return tuple(version(path / name) for path in paths for name in FILES)


def version(path: Path) -> tuple[int, int]:
    """Time and size of a file; zeros where there is none."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def changed(path: Path, names: Sequence[str] = FILES) -> float:
    """When one of these files in a folder last was."""
    return max(version(path / name)[0] for name in names) / 1e9


def _is_text(name: str) -> bool:
    """Bytes that are no text stand as surrogates, which cannot be sent to the page."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _warn(error: OSError) -> None:
    log.warning("cannot look into %s: %s", error.filename, error.strerror)
