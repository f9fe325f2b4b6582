"""Read what may be damaged: JSON, lines of it, and the hash of a file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from kit.errors import RunError

LONGEST_INTEGER = 100  # digits; JSON numbers beyond are damage, and no float takes them
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, maybe with the other half


def digest(path: Path, length: int | None = None) -> str:
    """SHA-256 of a file, or of its first `length` bytes."""
    found = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """A JSON value; ValueError, in one line, for everything that is none or that json.loads takes
    in silence: a key that is there twice, a number that is too large, half of a surrogate pair."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            parse_int=_parse_integer,
            parse_float=_parse_float,
        )
        if _ESCAPED_HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which no file takes") from None
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return record


def _parse_integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"the number {digits[:20]}… is too large")
    return int(digits)


def _parse_float(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def read_metrics(path: str | Path, faults: list[str] | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl or samples.jsonl; a last line cut off by a crash is left out.

    Raises RunError for a damaged line; with `faults` it is said there, and the others are returned.
    """
    try:
        *lines, _ = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            if not isinstance(record, dict):
                raise TypeError("not an object")
            records.append(record)
        except (ValueError, TypeError) as error:
            fault = f"{path}, line {number} is not a JSON object"
            if faults is None:
                raise RunError(fault) from error
            faults.append(fault)
    return records
