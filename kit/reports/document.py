"""What a report consists of: sections of text, tables and figures, each with where it came from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.reports.figures import Drawing

SHOWN = 2  # files and commands named in a caption; report.json names all
NONE = "-"


@dataclass(frozen=True, slots=True)
class Origin:
    """The files a table or figure was made from, and the commands that made those files."""

    files: tuple[Path, ...] = ()
    commands: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: Iterable[Path], commands: Iterable[str | None] = ()) -> Origin:
        """Each once, in the order they come; commands that are not known are left out."""
        known = (command for command in commands if command)
        return cls(tuple(dict.fromkeys(files)), tuple(dict.fromkeys(known)))

    def relative(self, folder: Path) -> list[str]:
        """The files as seen from a folder."""
        return [Path(os.path.relpath(file, folder)).as_posix() for file in self.files]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    name: str  # in report.json
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    origin: Origin
    note: str = ""
    folded: bool = False  # long: folded away in the page, left out of the terminal


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing and what it shows in words."""

    name: str  # of the file, without its ending
    title: str
    drawing: Drawing
    origin: Origin
    note: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph, or a list of sentences under a title."""

    sentences: Sequence[str]
    is_list: bool = False
    title: str = ""


Block = Table | Figure | Text


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)

    def say(self, sentences: str) -> None:
        """Add a paragraph."""
        self.blocks.append(Text([sentences]))


def percent(value: float | None) -> str:
    """A share as a percentage without its sign: the header has it."""
    return number(None if value is None else 100 * value, 1)


def number(value: float | None, digits: int = 0) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before a zero


def interval(bounds: Sequence[float] | None) -> str:
    """Bounds of a share, as percentages."""
    return "" if bounds is None else f" [{percent(bounds[0])}, {percent(bounds[1])}]"


def share(found: Mapping[str, Any] | None) -> str:
    """A share with its spread over seeds (`sd`) and interval (`ci95`), as far as there are any."""
    if found is None or found["value"] is None:
        return NONE
    spread = "" if found.get("sd") is None else f" ± {percent(found['sd'])}"
    return f"{percent(found['value'])}{spread}{interval(found.get('ci95'))}"
