"""Figures and tables alone, as a paper takes them: SVG and PDF, LaTeX and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kit.errors import ResultsError
from kit.files import write_atomically
from kit.reports.document import Figure, Section, Table
from kit.reports.page import plain, table_markdown

# what LaTeX would not print as it is
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"},
    }
)


def write_for_paper(folder: Path, sections: Sequence[Section]) -> Path:
    """Write every figure and table of these sections into a folder; ResultsError where the disk
    refuses it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in _files(sections):
            write_atomically(folder / re.sub(r"[^\w.-]", "_", name), content)
    except OSError as error:
        raise ResultsError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def _files(sections: Sequence[Section]) -> Iterator[tuple[str, str | bytes]]:
    """Names and contents."""
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Figure):
            yield f"{block.name}.svg", block.drawing.svg
            yield f"{block.name}.pdf", block.drawing.pdf
        elif isinstance(block, Table):
            yield f"{block.name}.tex", to_latex(block)
            yield f"{block.name}.md", f"{table_markdown(block)}\n\n{plain(block.note)}\n"


def to_latex(table: Table) -> str:
    """A `table` for the package booktabs, with title and note as its caption."""
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(table.header),
        r"\midrule",
        *map(_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_text(f'{table.title}. {table.note}')}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_text, cells)) + r" \\"


def _text(text: str) -> str:
    return plain(text).translate(LATEX)
