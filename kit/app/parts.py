"""What several tabs are made of: badges, notices, tables, prose, and events of the page's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from kit.app.inert import LATEX_DELIMITERS, escaped
from kit.app.verdicts import Badge
from kit.errors import KitError

Update = dict[Any, Any]  # what components show next, by component
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = QUIET | {"queue": False}
BARE: dict[str, Any] = {"show_label": False, "container": False}  # of a field, its name unseen
PROSE: dict[str, Any] = {  # of a gr.Markdown that shows what `inert_markdown` gives
    "latex_delimiters": LATEX_DELIMITERS,
    "sanitize_html": True,
    "line_breaks": True,
}
MARKS = {"right": "✓", "format": "✓", "wrong": "✗", "missing": "–", "truncated": "…"}

STYLE = """
.kit-badge { display: inline-block; padding: .1em .6em; border-radius: 1em; font-weight: 600;
  background: #6b7280; color: #fff; }
.kit-badge-right { background: #14713d; }
.kit-badge-wrong { background: #b42318; }
.kit-badge-format, .kit-badge-missing, .kit-badge-truncated { background: #8a4b08; }
.kit-badge-unjudged { background: #4b5563; }
.kit-notice { margin: 0; padding: .6em .8em; border-radius: 6px; background: #e6ebf2;
  color: #16181d; }
.dark .kit-notice { background: #2e323b; color: #f4f5f7; }
.kit-notice[role=alert] { background: #fde8e6; color: #7a1a10; }
.dark .kit-notice[role=alert] { background: #4a1510; color: #ffd9d4; }
.kit-table {
  display: block; width: auto; overflow-x: auto; border-collapse: collapse; font-size: .9em;
}
.kit-table :is(th, td) { text-align: left; padding: .2em 1.2em .2em 0; font-weight: 400; }
.gradio-container :is(table, tr, th, td) { border-color: var(--border-color-primary) !important; }
.gradio-container .kit-table :is(tr, th, td) { border-width: 0 0 1px; }
"""


def badge_html(badge: Badge) -> str:
    mark = MARKS.get(badge.kind, "")
    text = f'<span class="kit-badge-text">{escape(badge.text)}</span>'
    return f'<span class="kit-badge kit-badge-{badge.kind}">{mark} {text}</span>'


def notice_html(error: KitError) -> str:
    """An error, where the page would show what it prevents."""
    said = re.sub("`([^`]+)`", r"<code>\1</code>", escaped(str(error)))
    return f'<p class="kit-notice" role="alert">{said}</p>'


def said_html(text: str) -> str:
    """How far something is, or how it ended, in the same place."""
    return f'<p class="kit-notice" role="status">{escaped(text)}</p>'


def table_html(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; the first one of a row says what it is about."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escaped(first)}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="kit-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
