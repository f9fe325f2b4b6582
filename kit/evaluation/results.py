"""Result files of evaluations: where they are, what they hold, and reading them without a model.

docs/results.md explains every field.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.config import READERS
from kit.errors import ConfigError, ResultsError
from kit.files import lock_of, only_one
from kit.guideline import without_parts
from kit.reading import digest, parse_json

SCHEMA = 2  # raised when a field changes its meaning

Row = dict[str, Any]
Key = tuple[str, float, int]  # (id, temperature, sample)

# each field, and what it may be
FIELD_TYPES: dict[str, Any] = {
    "schema": object,
    **dict.fromkeys(("status", "data"), str),
    "tag": str | None,
    **dict.fromkeys(("n", "seen_in_training"), int | None),
    **dict.fromkeys(("target", "settings"), dict),
    "hardware": str | None,
    **dict.fromkeys(("versions", "git"), object),
    **dict.fromkeys(("command", "started"), str | None),
    **dict.fromkeys(("seconds", "tokens_per_second"), int | float | None),
    "results": list,
}
ROW_TYPES: dict[str, Any] = {
    **{"id": object, "temperature": int | float, "sample": int, "question": str, "answer": object},
    **dict.fromkeys(("category", "difficulty"), str | None),
    **{"completion": str, "tokens": int, "truncated": bool},
    **dict.fromkeys(("strict_answer", "lenient_answer"), str | None),
    **dict.fromkeys(("strict", "lenient"), bool),
}
FIELDS, ROW_FIELDS = tuple(FIELD_TYPES), tuple(ROW_TYPES)


@dataclass(frozen=True, slots=True)
class Result:
    """One target on one data set: the figures, and the completions they were counted on."""

    path: Path  # the .json
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the run, adapter or base."""
        return self._of_target("name")

    @property
    def data(self) -> str:
        return self.record["data"]

    @property
    def base(self) -> str:
        return self._of_target("base")

    def _of_target(self, field: str) -> str:
        value = self.record["target"].get(field)
        if not isinstance(value, str):
            raise _unusable(self.path, f": its target has no {field}", self.data)
        return value

    @property
    def settings(self) -> dict[str, Any]:
        return self.record["settings"]

    @property
    def shared_prompt(self) -> str | None:
        """The system prompt without what the target's own guidelines add to it."""
        prompt, added = self.settings.get("system_prompt"), self.record["target"].get("guidelines")
        if not isinstance(prompt, str) or not isinstance(added, dict):
            return prompt
        return without_parts(prompt, map(str, added.values()))

    @property
    def temperatures(self) -> list[float]:
        """Those there are figures of, in rising order; none while the evaluation is running."""
        return [entry["temperature"] for entry in self.record["results"]]

    def at(self, temperature: float) -> dict[str, Any]:
        """The figures of one temperature."""
        for entry in self.record["results"]:
            if entry["temperature"] == temperature:
                return entry
        there = ", ".join(f"{t:g}" for t in self.temperatures) or "none"
        raise ResultsError(
            f"{self.path} has no figures at temperature {temperature:g}; there are {there}"
        )

    def rows(self, temperature: float | None = None) -> list[Row]:
        """The completions, of one temperature or of all, in the order they were finished."""
        rows = read_rows(self.path.with_suffix(".jsonl"))
        return [row for row in rows if temperature in (None, row["temperature"])]


def digests(record: dict[str, Any], completions: Path) -> dict[str, str]:
    """Hashes of the figures in a record and of the completions they were counted on."""
    return {"figures": _digest_of_figures(record), "rows": digest(completions)}


def result_path(folder: Path, data: str, tag: str | None = None) -> Path:
    """Where the figures on a data set go: `<data>[.<tag>].json`; the completions lie beside it."""
    if tag is not None and not re.fullmatch(r"[\w-]+", tag):
        raise ConfigError(f"a tag may have letters, digits, '_' and '-', got {tag!r}")
    path = Path(data)
    stem = re.sub(r"[^\w.-]", "_", path.stem if path.suffix.lower() in READERS else data)
    return folder / f"{stem}.{tag}.json" if tag else folder / f"{stem}.json"


def read_result(path: str | Path) -> Result:
    """Read a result file; ResultsError when it is missing, broken or of another schema."""
    result = find_result(Path(path))
    if result is None:
        raise _unusable(Path(path), " holds no results")
    return result


def find_result(path: Path) -> Result | None:
    """The result in a JSON file, None where it is one of something else; raises as `read_result`.

    Files of something else may have a schema too, but no data set.
    """
    record = _read_json(path)
    if not isinstance(record, dict) or "schema" not in record:
        return None
    if not isinstance(record.get("data"), str):
        return None
    if fault := _fault_of(record):
        raise _unusable(path, fault, record["data"])
    return Result(path, record)


def find_results(folder: str | Path) -> list[Result]:
    """All results in a folder such as a run's `eval`, sorted by name; [] where there is none."""
    return list(filter(None, map(find_result, sorted(Path(folder).glob("*.json")))))


def _fault_of(record: dict[str, Any]) -> str | None:
    """What is wrong with a record's schema, fields or figures; None: nothing."""
    if record["schema"] != SCHEMA:
        return f" has schema {record['schema']}, this kit reads {SCHEMA}"
    if lacking := [field for field in FIELDS if field not in record]:
        return f" lacks {', '.join(lacking)}"
    for name, kind in FIELD_TYPES.items():
        if not isinstance(record[name], kind) or type(record[name]) is bool:
            return f": {name} is not usable"
    if not all(isinstance(entry, dict) and "temperature" in entry for entry in record["results"]):
        return ": its figures have no temperature"
    saved = record.get("digests")
    if saved is None:  # it is still running, or of an older version of this kit
        return None
    if not isinstance(saved, dict) or saved.get("figures") != _digest_of_figures(record):
        return ": its figures were changed after they were counted"
    return None


def _digest_of_figures(record: dict[str, Any]) -> str:
    figures = json.dumps([record["n"], record["results"]], sort_keys=True)
    return hashlib.sha256(figures.encode()).hexdigest()


def read_rows(path: Path, faults: list[str] | None = None) -> list[Row]:
    """The completions in a .jsonl.

    What follows the last line break was cut off by a crash and is left out. ResultsError for
    everything else that is no row, for a row that is there twice, and where the figures beside
    them were counted on others; where there is a list for `faults`, that is added to it in words
    and the rest is read.
    """

    def complain(fault: str, advice: str) -> None:
        if faults is None:
            raise ResultsError(
                f"{fault}{advice}, or replace the results with --overwrite"
            ) from None
        faults.append(fault)

    try:
        content = path.read_bytes()
    except OSError as error:
        lacking = f"; make them with: {_anew(path)}" if error.errno == errno.ENOENT else ""
        raise ResultsError(
            f"cannot read the completions {path}: {error.strerror}{lacking}"
        ) from error
    rows: dict[Key, Row] = {}
    # completions may hold other line separators
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = _parse_row(line)
            if rows.setdefault(key_of(row), row) is not row:
                raise ValueError(f"{key_of(row)} a second time; did two evaluations write at once?")
        except ValueError as error:
            complain(f"{path}, line {number} is not usable: {error}", ". Mend the line")
    if not _is_as_counted(path, content):
        complain(f"{path} was changed after its figures were counted", "; put it back")
    return list(rows.values())


def _is_as_counted(completions: Path, content: bytes) -> bool:
    """Whether completions are those that the finished figures beside them were counted on; True
    where nobody has noted which those were."""
    try:
        saved = parse_json(completions.with_suffix(".json").read_bytes())["digests"]["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return hashlib.sha256(content).hexdigest() == saved


def key_of(row: Row) -> Key:
    return row["id"], row["temperature"], row["sample"]


def fields_of(key: Key) -> Row:
    """The part of a row that is its key."""
    return dict(zip(("id", "temperature", "sample"), key, strict=True))


def _parse_row(line: bytes) -> Row:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError("a row must be a JSON object")
    lacking = [field for field in ROW_FIELDS if field not in row]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if any(isinstance(part, (list, dict)) for part in key_of(row)):
        raise ValueError("its id, temperature and sample must be plain values")
    for name, kind in ROW_TYPES.items():
        if not isinstance(row[name], kind) or (type(row[name]) is bool) != (kind is bool):
            raise ValueError(f"its {name} is not usable")
        if kind is int and abs(row[name]) >= 2**53:
            raise ValueError(f"its {name} is too large")
    return row


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ResultsError(
            f"there are no results at {path} ({error.strerror}); make them with: {_anew(path)}"
        ) from None
    except ValueError as error:
        raise _unusable(path, f" is not valid JSON ({error})") from None


def _unusable(path: Path, fault: str, data: str | None = None) -> ResultsError:
    return ResultsError(f"{path}{fault}; make it anew with: {_anew(path, data)}")


def _anew(path: Path, data: str | None = None) -> str:
    """The command that makes these results, as far as their place tells."""
    run = path.parent.parent
    target = run if (run / "config.yaml").is_file() else "RUN_OR_ADAPTER"
    known = result_path(path.parent, data).stem if data else path.stem.partition(".")[0]
    tag = path.stem.removeprefix(known).lstrip(".")
    is_there = any(path.with_suffix(ending).exists() for ending in (".json", ".jsonl"))
    options = (f" --tag {tag}" if tag else "") + (" --overwrite" if is_there else "")
    return f"kit evaluate {target} --data {data or known}{options}"


@contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """ResultsError, with what to do then, where the disk refuses what is written inside."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}{advice}") from error


@contextmanager
def claimed(path: Path, busy: str, advice: str = "") -> Iterator[None]:
    """Keep others off a file; ResultsError, saying `busy`, while one is at it."""
    with ExitStack() as held:
        with writing(path, advice):
            held.enter_context(only_one(lock_of(path), ResultsError(busy)))
        yield
