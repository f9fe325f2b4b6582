"""The Browse tab: two stored results side by side, filtered, one problem at a time."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from kit.app.browse import matching, pairs
from kit.app.browse.layout import (
    ANY,
    DOWNLOAD,
    HEADERS,
    Parts,
    badge_of,
    bullets,
    counts_table,
    problem_foot,
    sentence,
    side_head,
)
from kit.app.browse.pairs import Case, Filter, Selection
from kit.app.exports import comparator_json, file_name, json_text, pair_json, pair_markdown
from kit.app.inert import inert_markdown, printable, short
from kit.app.library.results import FoundResults, Stored, find_stored
from kit.app.options import AppOptions
from kit.app.parts import QUIET
from kit.errors import KitError
from kit.files import write_atomically

PAGE = 20  # rows of the table
_CLICK = f"() => document.querySelector('#{DOWNLOAD}').click()"
_QUIET = QUIET | {"concurrency_limit": None}

Updates = dict[Any, Any]
Export = Callable[[Selection, Case], tuple[str, str]]  # -> name and content of a file


@dataclass(frozen=True, slots=True)
class BrowseView:
    """What the Compare tab needs, and what fills this one."""

    live: gr.Button  # "Run this one live"
    selected: gr.State  # the shown problem: question, answer, data, system_prompt; None: none
    _refresh: Callable[[Any], None]

    def refresh_on(self, trigger: Any) -> None:
        """Search the folders anew at an event, such as the tab's `select`."""
        self._refresh(trigger)


def build(options: AppOptions) -> BrowseView:
    """The tab's components and events; it is empty until an event given to `refresh_on`."""
    parts = Parts()

    def choose_at(trigger: Any, fn: Callable[..., Updates], inputs: Sequence[Any]) -> None:
        done = gr.on(trigger, fn, list(inputs), parts.all, **_QUIET)
        done.then(partial(_show, parts, _stay), parts.choice, parts.all, **_QUIET)

    def show_at(trigger: Any, move: Callable[..., int], *extra: Any) -> None:
        shown, inputs = partial(_show, parts, move), [*parts.choice, *extra]
        gr.on(trigger, shown, inputs, parts.all, trigger_mode="always_last", **_QUIET)

    results = [parts.group, parts.left, parts.right]
    for part, kept in ((parts.group, 1), (parts.left, 3), (parts.right, 3)):
        choose_at(part.input, partial(_choose, parts), [parts.found, *results[:kept]])
    refresh = partial(_refresh, parts, options)
    choose_at(parts.refresh.click, refresh, results)
    # a pasted text is no `input` for a textbox; nothing but the user changes it
    chosen = [part.input for part in parts.filters if part is not parts.text]
    show_at([*chosen, parts.text.change], _stay)
    show_at(parts.previous.click, lambda at: at - 1)
    show_at(parts.following.click, lambda at: at + 1)
    show_at(parts.position.input, lambda at, number: (number or 1) - 1, parts.position)

    def pick(event: gr.SelectData, *choice: Any) -> Updates:
        number = re.sub(r"\D", "", str(event.row_value[0]))  # without the mark of the shown one
        return _show(parts, lambda at: int(number) - 1, *choice)

    parts.table.select(pick, parts.choice, parts.all, **_QUIET)
    for button, export in (
        (parts.as_markdown, _as_markdown),
        (parts.as_json, _as_json),
        (parts.as_comparator, _as_comparator),
    ):
        write = partial(_write, parts, export)
        written = button.click(write, [parts.folder, *parts.choice], parts.all, **_QUIET)
        written.success(None, js=_CLICK, api_visibility="private")
    return BrowseView(
        parts.live, parts.selected, lambda trigger: choose_at(trigger, refresh, results)
    )


def _refresh(
    parts: Parts, options: AppOptions, group: str | None, left: str | None, right: str | None
) -> Updates:
    found = find_stored(options.roots)
    n = len(found.faults)
    label = "1 file cannot be shown" if n == 1 else f"{n} files cannot be shown"
    updates = {
        parts.found: found,
        parts.faults_box: gr.Accordion(label, visible=bool(n)),
        parts.faults: bullets(found.faults),
        **_choose(parts, found, group, left, right),
    }
    if not found.stored:
        updates[parts.note] = sentence(
            f"There are no results in {options.runs} yet: make some, for example with "
            "kit evaluate RUN --data gsm8k, and refresh."
        )
    return updates


def _choose(
    parts: Parts,
    found: FoundResults,
    group: str | None,
    left: str | None = None,
    right: str | None = None,
) -> Updates:
    """Fill the three lists; a choice that is no longer there gives way to the first."""
    groups = list(dict.fromkeys(stored.group for stored in found.stored))
    if not groups:
        empty = gr.Dropdown([], value=None)
        return dict.fromkeys((parts.group, parts.left, parts.right), empty)
    group = group if group in groups else groups[0]
    lefts = [stored for stored in found.stored if stored.group == group]
    ours = _named(lefts, left) or matching.first_choice(lefts)
    rights = matching.comparable(ours, lefts)
    theirs = _named(rights, right) or (matching.nearest(ours, rights) if rights else None)
    return {
        parts.group: gr.Dropdown([(printable(one), one) for one in groups], value=group),
        parts.left: _offer(lefts, ours),
        parts.right: _offer(rights, theirs),
        parts.note: sentence(matching.explain(ours, lefts)),
    }


def _offer(stored: Sequence[Stored], value: Stored | None) -> gr.Dropdown:
    choices = [(printable(one.name), one.label) for one in stored]
    return gr.Dropdown(choices, value=value.label if value else None)


def _named(stored: Sequence[Stored], label: str | None) -> Stored | None:
    return next((one for one in stored if one.label == label), None)


def _select(
    found: FoundResults, left: str | None, right: str | None, *filters: Any
) -> Selection | None:
    """The matching pairs; None while there are no two results."""
    ours, theirs = _named(found.stored, left), _named(found.stored, right)
    if ours is None or theirs is None:
        return None
    return pairs.select(pairs.pair_up(ours, theirs), Filter(*filters))


def _stay(at: int) -> int:
    return at


def _show(parts: Parts, move: Callable[..., int], *choice: Any) -> Updates:
    """All below the choice of results. `choice`: parts.choice, then what `move` takes."""
    *asked, key = choice[: len(parts.choice)]
    hidden = gr.Column(visible=False)
    nothing = {parts.case: hidden, parts.selected: None, parts.key: None}
    try:
        selection = _select(*asked)
    except KitError as error:
        return {parts.note: sentence(str(error)), parts.pairs: hidden, **nothing}
    if selection is None:
        return {parts.pairs: hidden, **nothing}
    wanted, last = selection.wanted, len(selection.cases) - 1
    at = move(selection.position(key), *choice[len(parts.choice) :])
    at = max(min(at, last), 0)
    return {
        parts.pairs: gr.Column(visible=True),
        parts.category: _values(selection.pairing.categories, wanted.category),
        parts.difficulty: _values(selection.pairing.difficulties, wanted.difficulty),
        parts.counts: counts_table(selection) + bullets(selection.pairing.remarks),
        parts.table: _table(selection.cases, at),
        **(_show_case(parts, selection, at) if selection.cases else nothing),
    }


def _show_case(parts: Parts, selection: Selection, at: int) -> Updates:
    pairing, case, n = selection.pairing, selection.cases[at], len(selection.cases)
    about = pairing.left.about
    return {
        parts.case: gr.Column(visible=True),
        parts.previous: gr.Button(interactive=at > 0),
        parts.following: gr.Button(interactive=at < n - 1),
        parts.position: gr.Number(at + 1, label=f"Shown pair, of {n:,}"),
        parts.question: inert_markdown(case.left.question),
        parts.gold: problem_foot(pairing, case),
        parts.left_head: f"Left: {side_head(pairing.left.name, case.left)}",
        parts.left_text: inert_markdown(case.left.completion),
        parts.right_head: f"Right: {side_head(pairing.right.name, case.right)}",
        parts.right_text: inert_markdown(case.right.completion),
        parts.key: case.key,
        parts.selected: {
            "question": case.left.question,
            "answer": case.left.answer,
            "data": about.data,
            "system_prompt": about.settings.system_prompt,
        },
    }


def _values(names: Sequence[str], value: str | None) -> gr.Dropdown:
    choices = [(ANY, ANY), *((printable(name), name) for name in names)]
    return gr.Dropdown(choices, value=value if value in names else ANY, visible=bool(names))


def _table(cases: Sequence[Case], at: int) -> gr.Dataframe:
    """The page of the pairs that holds the shown one."""
    first = at // PAGE * PAGE
    rows = [
        [
            f"▶ {number}" if number == at + 1 else f"{number}",
            short(case.left.question, 90),
            short(case.left.answer, 30),
            *(_answer(side) for side in (case.left, case.right)),
        ]
        for number, case in enumerate(cases[first : first + PAGE], start=first + 1)
    ]
    shown = f"{first + 1:,} to {first + len(rows):,} of {len(cases):,}" if rows else "none"
    return gr.Dataframe(rows, headers=HEADERS, label=f"Matching pairs: {shown}")


def _answer(attempt: pairs.Attempt) -> str:
    answer = attempt.lenient_answer
    verdict = badge_of(attempt).text
    return verdict if answer is None else f"{short(answer, 24)} ({verdict})"


def _write(
    parts: Parts, export: Export, folder: tempfile.TemporaryDirectory[str] | None, *choice: Any
) -> Updates:
    """Write an export into the session's folder and hand it to the hidden download button."""
    *asked, key = choice
    try:
        selection = _select(*asked)
    except KitError as error:
        raise gr.Error(str(error), print_exception=False) from error
    if selection is None or not selection.cases:
        raise gr.Error("No pair matches, so there is nothing to save.", print_exception=False)
    name, text = export(selection, selection.cases[selection.position(key)])
    folder = folder or tempfile.TemporaryDirectory(prefix="kit-browse-")
    path = Path(folder.name, name)
    write_atomically(path, text)
    download = gr.DownloadButton(value=str(path), visible="hidden")
    return {parts.folder: folder, parts.download: download}


def _as_markdown(selection: Selection, case: Case) -> tuple[str, str]:
    pair = pairs.compared(selection.pairing, case)
    return _name(selection, *case.key, ending="md"), pair_markdown(pair) + "\n"


def _as_json(selection: Selection, case: Case) -> tuple[str, str]:
    record = pair_json(pairs.compared(selection.pairing, case))
    return _name(selection, *case.key, ending="json"), json_text(record)


def _as_comparator(selection: Selection, case: Case) -> tuple[str, str]:
    pairing = selection.pairing
    record = comparator_json(
        [pairs.compared(pairing, one) for one in selection.cases],
        pairing.left.name,
        pairing.right.name,
        measure=selection.wanted.measure,
        source=pairing.left.group,
    )
    return _name(selection, pairing.left.group, ending="comparator.json"), json_text(record)


def _name(selection: Selection, *words: Any, ending: str) -> str:
    names = (selection.pairing.left.name, "vs", selection.pairing.right.name)
    return file_name(*map(str, words), *names, ending=ending)
