"""The Browse tab: two stored results side by side, filtered, one problem at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from kit.app.browse import matching, pairs
from kit.app.browse.layout import ANY, HEADERS, Parts, bullets, counts_table, sentence
from kit.app.browse.pairs import Case, Filter, Selection
from kit.app.compare.stored import is_of, reading_of, stored_pairs
from kit.app.inert import printable, short
from kit.app.library.results import FoundResults, Stored, find_stored
from kit.app.options import AppOptions
from kit.app.pair_view import PairView
from kit.app.parts import QUIET
from kit.app.verdicts import badge_of
from kit.errors import KitError

PAGE = 20  # rows of the table
_QUIET = QUIET | {"concurrency_limit": None}

Updates = dict[Any, Any]


@dataclass(frozen=True, slots=True)
class BrowseView:
    """What other tabs need of this one."""

    parts: Parts
    refresh_on: Callable[[Any], None]  # search the folders anew at an event, such as `select`
    picked: list[Any]  # events after which `reading` has what is to be read in Compare


def build(options: AppOptions, pair: PairView, reading: gr.State) -> BrowseView:
    """The tab's components and events; it is empty until an event given to `refresh_on`."""
    parts = Parts()

    def choose_at(trigger: Any, fn: Callable[..., Updates], inputs: Sequence[Any]) -> Any:
        changed = [*parts.all, *pair.both]
        done = gr.on(trigger, fn, list(inputs), changed, trigger_mode="always_last", **_QUIET)
        return done.then(partial(_show, parts), parts.choice, parts.all, **_QUIET)

    results = [parts.group, parts.left, parts.right]
    for part in results:
        choose = partial(_choose, parts, pair, part)
        choose_at(part.input, choose, [parts.found, *results, *pair.both])
    refresh, asked = partial(_refresh, parts, options, pair), [parts.group, *pair.both]
    choose_at([parts.refresh.click, *(side.change for side in pair.both)], refresh, asked)
    # a pasted text is no `input` for a textbox; nothing but the user changes it
    chosen = [part.input for part in parts.filters if part is not parts.text]
    gr.on(
        [*chosen, parts.text.change, parts.page.input],
        partial(_show, parts),
        [*parts.choice, parts.page],
        parts.all,
        trigger_mode="always_last",
        **_QUIET,
    )

    def pick(event: gr.SelectData, *choice: Any) -> Any:
        return _reading(pair, int(event.row_value[0]) - 1, *choice)

    picked = [
        parts.table.select(pick, parts.choice, reading, **_QUIET),
        parts.read.click(partial(_reading, pair, 0), parts.choice, reading, **_QUIET),
    ]
    return BrowseView(parts, lambda trigger: choose_at(trigger, refresh, asked), picked)


def _refresh(
    parts: Parts, options: AppOptions, pair: PairView, group: str | None, *sides: str
) -> Updates:
    """What there is, and of it the pair that the page is about."""
    found = find_stored(options.roots)
    n = len(found.faults)
    label = "1 file cannot be shown" if n == 1 else f"{n} files cannot be shown"
    left = right = None
    with suppress(KitError):  # of a path that is no adapter: a run says so
        both = stored_pairs(found.stored, *pair.choices(*sides))
        ours = [both_ for both_ in both if both_[0].group == group] or both
        left, right = (one.label for one in ours[0]) if ours else (None, None)
        group = ours[0][0].group if ours else group
    updates = {
        parts.found: found,
        parts.faults_box: gr.Accordion(label, visible=bool(n)),
        parts.faults: bullets(found.faults),
        **_choose(parts, pair, None, found, group, left, right),
    }
    if not found.stored:
        updates[parts.note] = sentence(
            f"There are no results in {options.runs} yet: make some, for example with "
            "kit evaluate RUN --data gsm8k, and refresh."
        )
    return updates


def _choose(
    parts: Parts,
    pair: PairView,
    changed: Any,
    found: FoundResults,
    group: str | None,
    left: str | None = None,
    right: str | None = None,
    *before: str,
) -> Updates:
    """Fill the three lists; a choice that is no longer there gives way to the first.

    `changed` is what the user has chosen from, None: nothing; the whole page is about that choice.
    Two sides that would become the same change places: `before` is the pair of the page.
    """
    groups = list(dict.fromkeys(stored.group for stored in found.stored))
    if not groups:
        empty = gr.Dropdown([], value=None)
        return dict.fromkeys((parts.group, parts.left, parts.right), empty)
    group = group if group in groups else groups[0]
    lefts = [stored for stored in found.stored if stored.group == group]
    ours, theirs = _named(lefts, left), _named(lefts, right)
    if ours is not None and ours == theirs and len(before) == 2:
        old_left, old_right = _of(pair, lefts, before)
        if changed is parts.right:
            ours = old_right if old_right != theirs else old_left
        else:
            theirs = old_left if old_left != ours else old_right
    ours = ours or matching.first_choice(lefts)
    rights = matching.comparable(ours, lefts)
    if theirs not in rights:
        theirs = matching.nearest(ours, rights) if rights else None
    updates = {
        parts.group: gr.Dropdown([(printable(one), one) for one in groups], value=group),
        parts.left: _offer(lefts, ours),
        parts.right: _offer([*rights, ours] if rights else [], theirs),
        parts.note: sentence(matching.explain(ours, lefts)),
    }
    if changed is not None and theirs is not None:
        for side, stored in zip(pair.both, (ours, theirs), strict=True):
            known = next((c for c in pair.desk.known if is_of(stored, c)), None)
            if known is not None:
                updates[side] = gr.update(value=known.label)
    return updates


def _of(pair: PairView, stored: Sequence[Stored], labels: Sequence[str]) -> list[Stored | None]:
    """The results of the page's pair, where there are some."""
    with suppress(KitError):
        return [
            next((one for one in stored if is_of(one, choice)), None)
            for choice in pair.choices(*labels)
        ]
    return [None, None]


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


def _show(parts: Parts, *choice: Any) -> Updates:
    """All below the choice of results. `choice`: parts.choice, then perhaps the table's page."""
    asked, (page, *_) = choice[: len(parts.choice)], (*choice[len(parts.choice) :], 1)
    hidden = gr.Column(visible=False)
    try:
        selection = _select(*asked)
    except KitError as error:
        return {parts.note: sentence(str(error)), parts.pairs: hidden}
    if selection is None:
        return {parts.pairs: hidden}
    wanted, pages = selection.wanted, max(1, -(-len(selection.cases) // PAGE))
    page = max(1, min(int(page or 1), pages))
    return {
        parts.pairs: gr.Column(visible=True),
        parts.category: _values(selection.pairing.categories, wanted.category),
        parts.difficulty: _values(selection.pairing.difficulties, wanted.difficulty),
        parts.counts: counts_table(selection) + bullets(selection.pairing.remarks),
        parts.table: _table(selection.cases, PAGE * (page - 1)),
        parts.page: gr.Number(page, label=f"Page, of {pages:,}", visible=pages > 1),
        parts.read: gr.Button(interactive=bool(selection.cases)),
    }


def _reading(pair: PairView, at: int, *choice: Any) -> Any:
    """The matching pairs, to be read from one of them on; nothing where there are none."""
    try:
        selection = _select(*choice)
    except KitError as error:
        raise gr.Error(str(error), print_exception=False) from error
    if selection is None or not selection.cases:
        return gr.skip()
    known = pair.desk.known
    return reading_of(selection.pairing, selection.cases, known, min(at, len(selection.cases) - 1))


def _values(names: Sequence[str], value: str | None) -> gr.Dropdown:
    choices = [(ANY, ANY), *((printable(name), name) for name in names)]
    return gr.Dropdown(choices, value=value if value in names else ANY, visible=bool(names))


def _table(cases: Sequence[Case], first: int) -> gr.Dataframe:
    """The page of the pairs that begins with one."""
    rows = [
        [
            f"{number}",
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
