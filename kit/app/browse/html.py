"""HTML of the Browse tab: verdicts, counts and messages, with every text of a file escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from kit.app.browse.pairs import Case, Pairing, Selection
from kit.app.compare.columns import badge_html
from kit.app.inert import printable
from kit.app.library.results import Attempt, Stored
from kit.app.verdicts import Badge, badge
from kit.tasks.verifiers import Verdict

MESSAGES = 8  # that are shown; the others are counted

_CELL = "padding:4px 8px;border:1px solid var(--border-color-primary);text-align:right"


def side_head(side: str, stored: Stored, attempt: Attempt) -> str:
    """Who wrote a completion, whether it is right, its answer and length."""
    answer = attempt.lenient_answer
    found = "" if answer is None else f"answer <strong>{escaped(short(answer, 60))}</strong> · "
    cut = ", cut off" if attempt.truncated else ""
    return (
        f"{side}: <strong>{escaped(stored.name)}</strong><br>"
        f"{badge_html(badge_of(attempt))} {found}{attempt.tokens:,} tokens{cut}"
    )


def problem_foot(pairing: Pairing, case: Case) -> str:
    """The gold answer, and which problem it is."""
    about = [case.left.id, case.left.category, case.left.difficulty]
    if pairing.left.temperature > 0:
        about.append(f"sample {case.left.sample}")
    where = escaped(" · ".join(filter(None, about)))
    answer = escaped(case.left.answer) or "none; the task itself judges"
    return f"Gold answer: <strong>{answer}</strong><br><small>{where}</small>"


def counts_table(selection: Selection) -> str:
    """Two by two; the outcome that is chosen does not change it."""
    counts = selection.counts
    if not counts.total:
        return sentence("No pair matches: clear the search or choose another category.")

    def row(name: str, *numbers: int) -> str:
        cells = "".join(f'<td style="{_CELL}">{n:,}</td>' for n in numbers)
        return f'<tr><th scope="row" style="{_CELL}">{name}</th>{cells}</tr>'

    measure = selection.wanted.measure
    return (
        f'<table style="border-collapse:collapse"><caption style="text-align:left">'
        f"{counts.total:,} pairs by the {measure} verdict</caption>"
        f'<tr><td style="{_CELL}"></td><th scope="col" style="{_CELL}">Right correct</th>'
        f'<th scope="col" style="{_CELL}">Right wrong</th></tr>'
        f"{row('Left correct', counts.both, counts.left)}"
        f"{row('Left wrong', counts.right, counts.neither)}</table>"
    )


def bullets(messages: Sequence[str]) -> str:
    """A list of the first MESSAGES, and how many more there are."""
    shown = [*messages[:MESSAGES]]
    if len(messages) > MESSAGES:
        shown.append(f"and {len(messages) - MESSAGES} more")
    items = "".join(f"<li>{escaped(message)}</li>" for message in shown)
    return f"<ul>{items}</ul>" if items else ""


def sentence(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


def badge_of(attempt: Attempt) -> Badge:
    verdict = Verdict(
        attempt.strict, attempt.lenient, attempt.strict_answer, attempt.lenient_answer
    )
    return badge(verdict, is_judged=True, truncated=attempt.truncated)


def escaped(text: str) -> str:
    return html.escape(printable(text))


def short(text: str, length: int) -> str:
    """On one line, cut off at `length` characters."""
    line = " ".join(printable(text[: 4 * length]).split())
    return line if len(line) <= length and len(text) <= 4 * length else f"{line[:length]}…"
