"""compare.json: what a comparison says of itself, read without training anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kit.errors import ResultsError
from kit.reading import parse_json

COMPARE_SCHEMA = 1  # raised when a field changes its meaning
COMPARE_FACTS: dict[str, Any] = {
    **dict.fromkeys(("arms", "runs", "base"), dict),
    "status": str,
    "command": str | None,
}


def read_comparison(path: Path) -> dict[str, Any]:
    """A compare.json, {} where there is none; ResultsError where it is damaged."""
    if not os.path.lexists(path):
        return {}
    try:
        record = parse_json(path.read_bytes())
        _check_comparison(record)
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ResultsError(
            f"{path} is damaged: {error}; delete it, and the kit compare that made it writes it "
            "again (what is finished is not done again)"
        ) from None
    return record


def _check_comparison(record: Any) -> None:
    """Raise ValueError for what no kit compare of this schema wrote."""
    if not isinstance(record, dict):
        raise ValueError("it must hold a JSON object")
    if record.get("schema") is not COMPARE_SCHEMA:
        raise ValueError(f"it has schema {record.get('schema')!r}, this kit reads {COMPARE_SCHEMA}")
    for name, kind in COMPARE_FACTS.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{name} is {str(record.get(name))[:80]!r}")
    seeds = record["runs"].values()
    paths = [path for runs in seeds if isinstance(runs, dict) for path in runs.values()]
    paths.append(record["base"].get("results"))
    if not all(isinstance(runs, dict) for runs in seeds) or not all(map(_is_inside, paths)):
        raise ValueError("its runs are no folders in it")
    seconds = record.get("seconds", {})
    if not isinstance(seconds, dict) or not all(
        isinstance(value, int | float) for value in seconds.values()
    ):
        raise ValueError("its seconds are no numbers")


def _is_inside(path: object) -> bool:
    """Whether a relative path stays in its folder."""
    return isinstance(path, str) and not Path(path).is_absolute() and ".." not in Path(path).parts
