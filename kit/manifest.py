"""A checkpoint's manifest: size and hash of its files, and of the run's records at that time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.reading import digest, parse_json

MANIFEST = "manifest.json"  # of a checkpoint
MANIFEST_SCHEMA = 1  # raised when a field changes its meaning


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest: `files` and `records` by name, with size and hash, and `settings`;
    ValueError or OSError where it is none."""
    manifest = parse_json(path.read_bytes())
    try:
        if manifest["schema"] != MANIFEST_SCHEMA:
            raise ValueError(
                f"it has schema {manifest['schema']!r}, this kit reads {MANIFEST_SCHEMA}"
            )
        if not isinstance(manifest["settings"], dict):
            raise ValueError("its settings are none")
        if type(manifest.get("hardware", "")) is not str:
            raise ValueError("its hardware is none")
        marks = [*manifest["files"].values(), *manifest["records"].values()]
        if any(type(m["size"]) is not int or type(m["sha256"]) is not str for m in marks):
            raise ValueError("its sizes and hashes are of another type")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no manifest of a checkpoint ({error!r})") from None
    return manifest


def mark_of(path: Path) -> dict[str, Any]:
    """Size and hash of a file as it is now."""
    size = path.stat().st_size
    return {"size": size, "sha256": digest(path, size)}


def begins_as(path: Path, mark: Mapping[str, Any]) -> bool:
    """Whether a file begins with what it held when the mark was made; more may follow."""
    try:
        there = path.stat().st_size if path.is_file() else -1
        return there >= mark["size"] and digest(path, mark["size"]) == mark["sha256"]
    except OSError:
        return False
