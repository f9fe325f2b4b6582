"""Stored results of evaluations: found under the app's folders and read, broken ones reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from kit.app.library.folders import walk
from kit.errors import ResultsError
from kit.evaluation.results import find_result, read_rows
from kit.guideline import without_parts

MAX_DEPTH = 8  # folders below a root that are searched
SKIPPED = {"adapter", "checkpoints"}  # folders that hold no results, but many files
FILES_KEPT = 8  # files of completions in memory; 1,319 problems with 16 samples take about 50 MB

_Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]


@checked(frozen=True, slots=True)
class Target:
    """What was evaluated."""

    name: StrictStr
    adapter: StrictStr | None  # folder or hub id; None: the bare base
    adapter_sha256: StrictStr | None
    base: StrictStr
    guidelines: dict[StrictStr, StrictStr] = field(default_factory=dict)  # what each adds, by name


@checked(frozen=True, slots=True)
class Settings:
    """How it was sampled; docs/results.md."""

    system_prompt: StrictStr
    max_new_tokens: StrictInt
    top_p: float
    seed: StrictInt
    split: StrictStr
    problems: dict[str, Any]
    temperatures: list[_Finite]


@checked(frozen=True, slots=True)
class About:
    """The parts of a result file that are shown."""

    status: StrictStr
    data: StrictStr
    tag: StrictStr | None
    started: StrictStr | None
    n: StrictInt  # problems
    seen_in_training: StrictInt | None  # how many of them; None: not known
    target: Target
    settings: Settings

    @property
    def shared_prompt(self) -> str:
        """The system prompt without what the target's own guidelines add to it."""
        return without_parts(self.settings.system_prompt, self.target.guidelines.values())


@checked(frozen=True, slots=True)
class Attempt:
    """One completion of a problem with its verdicts: a row of docs/results.md."""

    id: StrictStr
    temperature: _Finite
    sample: StrictInt
    question: StrictStr
    answer: StrictStr  # the gold answer
    category: StrictStr
    difficulty: StrictStr
    completion: StrictStr
    tokens: StrictInt
    truncated: StrictBool
    strict_answer: StrictStr | None
    lenient_answer: StrictStr | None
    strict: StrictBool
    lenient: StrictBool


@dataclass(frozen=True, slots=True)
class Version:
    """A file as it was when it was looked at: another version is read anew."""

    path: Path
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Version:
        """OSError where there is no file."""
        state = path.stat()
        return cls(path, state.st_mtime_ns, state.st_size)


@dataclass(frozen=True, slots=True)
class Attempts:
    """The rows of a .jsonl, and what is wrong with the lines that are none."""

    rows: tuple[Attempt, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """One target's completions of one data set at one temperature."""

    name: str  # the run's folder below its root, and the tag; unlike any other of its data set
    about: About
    temperature: float
    completions: Version

    @property
    def group(self) -> str:
        """Data set and temperature, as they are offered for choice."""
        return f"{self.about.data} · temperature {self.temperature:g}"

    @property
    def label(self) -> str:
        """Unlike any other stored result's."""
        return f"{self.name} · {self.group}"


@dataclass(frozen=True, slots=True)
class FoundResults:
    """All stored results, and what is wrong with the files that cannot be shown."""

    stored: tuple[Stored, ...]
    faults: tuple[str, ...]


_ABOUT = TypeAdapter(About)
_ATTEMPT = TypeAdapter(Attempt)


def find_stored(roots: Iterable[Path]) -> FoundResults:
    """Search folders, resolved, for result files; one that is not there yet holds none.

    Links are not followed, so nothing outside the roots is read.
    """
    roots = tuple(roots)
    faults: list[str] = []
    found: dict[Path, tuple[str, About, Version]] = {}
    for root in roots:
        for path in _result_files(root, faults):
            try:
                about = _read_about(Version.of(path))
                if about is not None:
                    completions = Version.of(path.with_suffix(".jsonl"))
                    found.setdefault(path, (_name(path, root, roots, about), about, completions))
            except ResultsError as error:
                faults.append(str(error))
            except OSError as error:
                faults.append(f"cannot read {error.filename}: {error.strerror}")
    return FoundResults(tuple(_one_by_temperature(found.values())), tuple(dict.fromkeys(faults)))


@lru_cache(maxsize=FILES_KEPT)
def read_attempts(completions: Version) -> Attempts:
    """Every row of a .jsonl; ResultsError where the file cannot be read at all."""
    faults: list[str] = []
    attempts = []
    for row in read_rows(completions.path, faults):
        try:
            attempts.append(_ATTEMPT.validate_python(row))
        except ValidationError as error:
            faults.append(f"{completions.path}: {_first_fault(error)} in the row of {row['id']!r}")
    return Attempts(tuple(attempts), tuple(faults))


def _result_files(root: Path, faults: list[str]) -> Iterator[Path]:
    """JSON files that have completions beside them, or lie in a folder for results."""

    def report(error: OSError) -> None:
        faults.append(f"cannot search {error.filename}: {error.strerror}")

    for folder, _, files in walk(root, MAX_DEPTH, SKIPPED, report):
        is_expected = "eval" in folder.relative_to(root).parts
        for path in (folder / name for name in sorted(files) if name.endswith(".json")):
            completions = path.with_suffix(".jsonl")
            is_linked = path.is_symlink() or completions.is_symlink()
            if (is_expected or completions.name in files) and not is_linked:
                yield path


@lru_cache(maxsize=1024)
def _read_about(file: Version) -> About | None:
    """None for a JSON file of something else; ResultsError for broken results."""
    result = find_result(file.path)
    try:
        return None if result is None else _ABOUT.validate_python(result.record)
    except ValidationError as error:
        raise ResultsError(f"{file.path}: {_first_fault(error)}; evaluate anew") from None


def _name(path: Path, root: Path, roots: tuple[Path, ...], about: About) -> str:
    parts = path.parent.relative_to(root).parts
    parts = parts[:-1] if parts[-1:] == ("eval",) else parts
    if len(roots) > 1 or not parts:
        parts = (root.name, *parts)
    return "/".join(parts) + (f" (tag {about.tag})" if about.tag else "")


def _one_by_temperature(found: Iterable[tuple[str, About, Version]]) -> Iterator[Stored]:
    """Names that would be equal within a data set are numbered."""
    used: set[str] = set()
    for name, about, completions in sorted(found, key=lambda entry: entry[0]):
        for temperature in sorted(set(about.settings.temperatures)):
            stored, number = Stored(name, about, temperature, completions), 2
            while stored.label in used:
                stored = Stored(f"{name} ({number})", about, temperature, completions)
                number += 1
            used.add(stored.label)
            yield stored


def _first_fault(error: ValidationError) -> str:
    """One line, without the value: it may be long."""
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc']))} is not usable ({fault['msg']})"
