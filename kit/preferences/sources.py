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
from kit.terminal import one_line

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w.-]+))?")
SUFFIXES = (*READERS, ".json")
LONGEST_FAULT = 200  # characters of why a line cannot be read


def read_rows(source: str, data_dir: str | None) -> tuple[Sequence[Row], list[str]]:
    """The rows of a file or of a data set on the hub, and why the other lines are none.

    A data set of the hub is `owner/name[:config][@split]`, without a split its training split; it
    is looked for in `data_dir` where that is given. DataError for what cannot be read at all.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        return _json_rows(path)
    if suffix == ".csv":
        return _csv_rows(path), []
    if suffix in READERS:
        return list(read_file(path)), []
    hub = HUB_ID.fullmatch(source)
    if path.exists() or hub is None:
        raise DataError(
            f"{source!r} is no source of preferences: name votes.jsonl, a {', '.join(SUFFIXES)} "
            "file, or a data set of the hub as owner/name[:config][@split]"
        )
    hub_id, hub_config, split = hub.groups()
    where = DataConfig(name=hub_id, split=split, data_dir=data_dir)
    advice = f"name one of them as {hub_id}@SPLIT"
    return list(read_split(hub_id, hub_id, hub_config, where, None, advice)[0]), []


def pairs_of_rows(
    source: str, rows: Sequence[Row], faults: Sequence[str], system_prompt: str
) -> PreferenceData[PreferencePair]:
    """The pairs in rows that have `chosen` and `rejected`; DataError where few or none have.

    `faults` are why other lines are no rows.
    """
    with_pair, with_label = (_count(rows, columns) for columns in (PAIR_COLUMNS, LABEL_COLUMNS))
    if with_label > with_pair:
        raise DataError(
            f"{source} labels completions one by one, which makes no pairs: train on it with "
            "method: kto"
        )
    if not with_pair:
        raise _without_columns(source, rows, faults)
    found, faults = _parsed(rows, faults, lambda row: parse_pair(row, system_prompt))
    pairs = [pair for pair in found if pair.chosen != pair.rejected]
    dropped = +Counter({UNREADABLE: len(faults), EQUAL_TEXTS: len(found) - len(pairs)})
    contradictory = count_contradictions(pairs)
    return PreferenceData(source, tuple(pairs), dropped, contradictory, next(iter(faults), ""))


def labelled_of_rows(
    source: str, rows: Sequence[Row], faults: Sequence[str], system_prompt: str
) -> PreferenceData[LabelledCompletion]:
    """The labelled completions in rows; where most are pairs, chosen is true and rejected false."""
    with_pair, with_label = (_count(rows, columns) for columns in (PAIR_COLUMNS, LABEL_COLUMNS))
    if with_pair > with_label:
        return unpaired(pairs_of_rows(source, rows, faults, system_prompt))
    if not with_label:
        raise _without_columns(source, rows, faults)
    found, faults = _parsed(rows, faults, lambda row: parse_labelled(row, system_prompt))
    dropped, contradictory = +Counter({UNREADABLE: len(faults)}), count_contradictions(found)
    return PreferenceData(source, tuple(found), dropped, contradictory, next(iter(faults), ""))


def unpaired(data: PreferenceData[PreferencePair]) -> PreferenceData[LabelledCompletion]:
    """Both completions of each pair, one by one."""
    examples = tuple(example for pair in data.examples for example in pair.labelled())
    contradictory = count_contradictions(examples)
    return PreferenceData(data.source, examples, data.dropped, contradictory, data.first_fault)


def _parsed(
    rows: Iterable[Row], faults: Iterable[str], parse: Callable[[Row], Example]
) -> tuple[list[Example], tuple[str, ...]]:
    """The rows that can be read, and why the others cannot, after the `faults` of before."""
    found, said = [], [*faults]
    for row in rows:
        try:
            found.append(parse(row))
        except ValueError as error:
            said.append(one_line(str(error), LONGEST_FAULT))
    return found, tuple(said)


def _json_rows(path: Path) -> tuple[Sequence[Row], list[str]]:
    """JSON lines, a list of objects, or one object alone."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    whole = _json_or_fault(content) if path.suffix.lower() == ".json" else None
    if isinstance(whole, list | dict):
        values = whole if isinstance(whole, list) else [whole]
    else:
        values = [_json_or_fault(line) for line in content.split(b"\n") if line.strip()]
    if not values:
        raise DataError(f"{path} is empty")
    rows: list[Row] = [value for value in values if isinstance(value, dict)]
    faults = [value for value in values if not isinstance(value, dict)]
    return rows, [f"no JSON object{f' ({v})' if isinstance(v, ValueError) else ''}" for v in faults]


def _csv_rows(path: Path) -> list[Row]:
    """Every cell is text, whatever it looks like and however long, but for labels."""
    csv.field_size_limit(2**31 - 1)  # of the process; 131,072 characters else
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # as Excel writes it
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


def _json_or_fault(line: bytes) -> Any:
    """The value, or the ValueError that says why it is none."""
    try:
        return parse_json(line)
    except ValueError as error:
        return error


def _count(rows: Iterable[Row], columns: Sequence[str]) -> int:
    return sum(all(column in row for column in columns) for row in rows)


def _without_columns(source: str, rows: Sequence[Row], faults: Sequence[str]) -> DataError:
    columns = [str(column)[:40] for column in dict.fromkeys(name for row in rows for name in row)]
    there = ", ".join(name if name.isprintable() else repr(name) for name in columns[:20])
    why = f" (the first: {faults[0]})" if faults else ""
    return DataError(
        f"{source} has {f'the columns {there}' if there else f'no row that can be read{why}'}; "
        "preferences need prompt, chosen, rejected, or prompt, completion, label"
    )
