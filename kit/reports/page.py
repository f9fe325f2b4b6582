"""Write a report as Markdown, as one HTML page that needs nothing else, and for the terminal."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import tabulate

from kit.reports.document import SHOWN, Block, Figure, Origin, Section, Table, Text

FIGURES = "figures"


def to_html(title: str, sections: Sequence[Section], folder: Path, command: str) -> str:
    """One page with styles and pictures inside; all text is escaped."""
    return _render("page.html.jinja", folder, title=title, sections=sections, command=command)


def sections_html(sections: Sequence[Section]) -> str:
    """What is between the page's title and its end, for another page: without where it is from."""
    return _render(
        "sections.html.jinja",
        Path(),
        sections=[
            Section(
                s.title,
                [b if isinstance(b, Text) else replace(b, origin=Origin()) for b in s.blocks],
            )
            for s in sections
        ],
    )


def to_markdown(title: str, sections: Sequence[Section], folder: Path, command: str) -> str:
    """Figures are linked from `figures/` beside it."""
    parts = [f"# {_escape(title)}", f"Made by: {_escape(command)}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block_to_markdown(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def to_terminal(sections: Sequence[Section]) -> str:
    """Text and tables; what is folded away in the page is left out."""
    parts = []
    for section in sections:
        shown = [_block_to_terminal(block) for block in section.blocks]
        parts.append("\n\n".join([section.title.upper(), *filter(None, shown)]))
    return "\n\n\n".join(parts)


def figure_path(figure: Figure) -> str:
    """Relative to the report; names of data sets may hold what file systems do not like."""
    name = re.sub(r"[^\w.-]", "_", figure.name)
    return f"{FIGURES}/{name}.svg"


def plain(text: str) -> str:
    """On one line, and without the control characters that steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _render(template: str, folder: Path, **shown: Any) -> str:
    environment = Environment(
        loader=PackageLoader("kit.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": plain,
        "data_uri": _data_uri,
        "anchor": _anchor,
        "runs": _runs,
        "kind": lambda block: type(block).__name__,
        "files": lambda origin: _files(origin, folder),
        "all_files": lambda origin: origin.relative(folder),
    }
    return environment.get_template(template).render(**shown)


def _files(origin: Origin, folder: Path) -> str:
    return _some(origin.relative(folder))


def _some(items: Sequence[str]) -> str:
    """The first few; all are in report.json."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(plain(item) for item in items[:SHOWN]) + more


def _block_to_markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Text):
        lead = "* " if block.is_list else ""
        title = f"**{_escape(block.title)}**\n\n" if block.title else ""
        return title + "\n".join(lead + _escape(sentence) for sentence in block.sentences)
    caption = _caption(block, folder)
    if isinstance(block, Figure):
        return f"![{_escape(block.title)}]({quote(figure_path(block))})\n\n{caption}"
    table = table_markdown(block)
    title = _escape(block.title)
    if block.folded:
        return f"<details><summary>{title}</summary>\n\n{table}\n\n{caption}\n\n</details>"
    return f"**{title}**\n\n{table}\n\n{caption}"


def table_markdown(table: Table) -> str:
    """Header and rows."""
    return tabulate(
        [[_escape(cell) for cell in row] for row in table.rows],
        headers=[_escape(cell) for cell in table.header],
        tablefmt="github",
        disable_numparse=True,
    )


def _caption(block: Table | Figure, folder: Path) -> str:
    title = block.title if block.title.endswith("?") else f"{block.title}."
    lines = [_escape(title)] if isinstance(block, Figure) else []
    lines.append(_escape(block.note))
    if block.origin.files:
        lines.append(f"From: {_escape(_files(block.origin, folder))}")
    if block.origin.commands:
        lines.append(f"Made by: {_escape(_some(block.origin.commands))}")
    return "  \n".join(line for line in lines if line)


def _block_to_terminal(block: Block) -> str:
    if isinstance(block, Text):
        lead = "  * " if block.is_list else ""
        lines = [plain(block.title)] if block.title else []
        return "\n".join([*lines, *(lead + plain(sentence) for sentence in block.sentences)])
    if isinstance(block, Figure) or block.folded:
        return ""
    return f"{plain(block.title)}\n" + tabulate(
        [[plain(cell) for cell in row] for row in block.rows],
        headers=[plain(cell) for cell in block.header],
        disable_numparse=True,
    )


def _escape(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no links, no new cells."""
    text = plain(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("|", "\\|").replace("](", "]\\(").replace("![", "!\\[")


def _runs(blocks: Sequence[Block]) -> list[list[Block]]:
    """Neighbouring figures together: the page lays them out side by side."""
    return [list(run) for _, run in groupby(blocks, lambda block: isinstance(block, Figure))]


def _data_uri(figure: Figure) -> str:
    picture = base64.b64encode(figure.drawing.svg).decode("ascii")
    return f"data:image/svg+xml;base64,{picture}"


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())
