"""Preference files and data sets of the hub in TRL's format: their rows, read one by one."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kit.config import READERS, DataConfig
from kit.errors import DataError
from kit.preferences.gathered import EQUAL_TEXTS, UNREADABLE, PreferenceData, count_contradictions
from kit.preferences.records import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    Example,
    LabelledCompletion,
    PreferencePair,
    Row,
    parse_labelled,
    parse_pair,
)
from kit.reading import parse_json
from kit.tasks.splits import read_file, read_split

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w.-]+))?")
SUFFIXES = (*READERS, ".json")


def read_rows(source: str, data_dir: str | None) -> tuple[Sequence[Row], int]:
    """The rows of a file or of a data set on the hub, and how many lines are none.

    A data set of the hub is `owner/name[:config][@split]`, without a split its training split; it
    is looked for in `data_dir` where that is given. DataError for what cannot be read at all.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        return _json_rows(path)
    if suffix == ".csv":
        return _csv_rows(path), 0
    if suffix in READERS:
        return list(read_file(path)), 0
    hub = HUB_ID.fullmatch(source)
    if path.exists() or hub is None:
        raise DataError(
            f"{source!r} is no source of preferences: name votes.jsonl, a {', '.join(SUFFIXES)} "
            "file, or a data set of the hub as owner/name[:config][@split]"
        )
    hub_id, hub_config, split = hub.groups()
    where = DataConfig(name=hub_id, split=split, data_dir=data_dir)
    advice = f"name one of them as {hub_id}@SPLIT"
    return list(read_split(hub_id, hub_id, hub_config, where, None, advice)[0]), 0


def pairs_of_rows(
    source: str, rows: Sequence[Row], unreadable: int, system_prompt: str
) -> PreferenceData[PreferencePair]:
    """The pairs in rows that have `chosen` and `rejected`; DataError where none has."""
    if not _has(rows, PAIR_COLUMNS):
        if _has(rows, LABEL_COLUMNS):
            raise DataError(
                f"{source} labels completions one by one, which makes no pairs: train on it with "
                "method: kto"
            )
        raise _without_columns(source, rows)
    found, dropped = _parsed(rows, unreadable, lambda row: parse_pair(row, system_prompt))
    pairs = [pair for pair in found if pair.chosen != pair.rejected]
    if len(pairs) < len(found):
        dropped[EQUAL_TEXTS] = len(found) - len(pairs)
    return PreferenceData(source, tuple(pairs), dropped, count_contradictions(pairs))


def labelled_of_rows(
    source: str, rows: Sequence[Row], unreadable: int, system_prompt: str
) -> PreferenceData[LabelledCompletion]:
    """The labelled completions in rows; of pairs, chosen is true and rejected is false."""
    if _has(rows, LABEL_COLUMNS):
        found, dropped = _parsed(rows, unreadable, lambda row: parse_labelled(row, system_prompt))
        return PreferenceData(source, tuple(found), dropped, count_contradictions(found))
    if not _has(rows, PAIR_COLUMNS):
        raise _without_columns(source, rows)
    return unpaired(pairs_of_rows(source, rows, unreadable, system_prompt))


def unpaired(data: PreferenceData[PreferencePair]) -> PreferenceData[LabelledCompletion]:
    """Both completions of each pair, one by one."""
    examples = tuple(example for pair in data.examples for example in pair.labelled())
    return PreferenceData(data.source, examples, data.dropped, count_contradictions(examples))


def _parsed(
    rows: Iterable[Row], unreadable: int, parse: Callable[[Row], Example]
) -> tuple[list[Example], Counter[str]]:
    """The rows that can be read, and how many cannot."""
    found = []
    for row in rows:
        try:
            found.append(parse(row))
        except ValueError:
            unreadable += 1
    return found, Counter({UNREADABLE: unreadable} if unreadable else {})


def _json_rows(path: Path) -> tuple[Sequence[Row], int]:
    """JSON lines, a list of objects, or one object alone."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    whole = _json_or_none(content) if path.suffix.lower() == ".json" else None
    if isinstance(whole, list | dict):
        values = whole if isinstance(whole, list) else [whole]
    else:
        values = [_json_or_none(line) for line in content.split(b"\n") if line.strip()]
    if not values:
        raise DataError(f"{path} is empty")
    rows: list[Row] = [value for value in values if isinstance(value, dict)]
    return rows, len(values) - len(rows)


def _csv_rows(path: Path) -> list[Row]:
    """Every cell is text, whatever it looks like, but for labels."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[Row] = [row | _label(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"{path} is not valid CSV: {error}") from None
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def _label(row: dict[str, str]) -> dict[str, Any]:
    text = str(row.get("label")).lower()
    return {"label": text == "true"} if text in ("true", "false") else {}


def _json_or_none(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def _has(rows: Iterable[Row], columns: Sequence[str]) -> bool:
    return any(all(column in row for column in columns) for row in rows)


def _without_columns(source: str, rows: Sequence[Row]) -> DataError:
    columns = [str(column)[:40] for column in dict.fromkeys(name for row in rows for name in row)]
    there = ", ".join(name if name.isprintable() else repr(name) for name in columns[:20])
    return DataError(
        f"{source} has {f'the columns {there}' if there else 'no row that can be read'}; "
        "preferences need prompt, chosen, rejected, or prompt, completion, label"
    )
