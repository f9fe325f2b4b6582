"""Find what is spelled most like a name or a path that is not there."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

NEAR = 0.7  # of difflib's likeness: one slip in a word of four letters


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`, did you mean 'rank'?`: the known name that is spelled most like it; "" where none is."""
    near = _spelled_like(given, known)
    return f", did you mean {near!r}?" if near else ""


def _spelled_like(given: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest, if one is near: difflib counts letters that were swapped as
    two slips."""
    names = list(known)
    swapped = (name for name in names if sorted(name) == sorted(given))
    return next(iter(difflib.get_close_matches(given, names, 1, NEAR)), next(swapped, None))


def did_you_mean_path(given: str | Path) -> str:
    """The same of files and folders that exist; "" where the given one does or none is alike."""
    near = _nearest(Path(given))
    return f", did you mean {str(near)!r}?" if near and near != Path(given) else ""


def _nearest(path: Path) -> Path | None:
    """The path, or the one there is that is spelled most like it, folder by folder.

    What is named without a folder is looked for in configs/ and runs/ too.
    """
    if os.path.exists(path):
        return path
    folder = None if path == path.parent else _nearest(path.parent)
    if folder is None:
        return None
    folders = [folder] if folder.name else [folder, folder / "configs", folder / "runs"]
    known = {
        name.removesuffix(".yaml"): within / name for within in folders for name in _names(within)
    }
    near = _spelled_like(path.name.removesuffix(".yaml"), known)
    return known[near] if near else None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
