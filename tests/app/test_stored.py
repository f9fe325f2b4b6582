"""Stored answers in the Compare tab: the base's beside them, and what their tokens are worth."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from kit.app.compare.setup import BASE_SIDE, LEFT
from kit.app.compare.stored import Reading, open_reading
from kit.app.compare.view import CompareView
from kit.app.library.adapters import Choice, find
from kit.app.options import AppOptions
from kit.app.pair_view import PairView
from kit.app.session import Session
from tests.app.test_browse import row, write

NONE = "No stored answer of the base; Run asks it."


def view_on(runs: Path) -> CompareView:
    """The tab on results of "Qwen", which is not loaded."""
    options = AppOptions(runs=runs, base="Qwen")
    with gr.Blocks():
        desk = Session(options, find(options))
        return CompareView(desk, PairView(desk))


def reading_of(runs: Path) -> Reading:
    sides = (
        Choice(name, str(runs / name / "adapter"), "Qwen", "", None, str(runs / name), None)
        for name in ("one", "two")
    )
    found = open_reading([runs], *sides)
    assert found is not None
    return found


def values_of(view: CompareView, reading: Reading, *, blind: bool = False) -> dict[Any, Any]:
    """What the page sends in where the base's box is ticked."""
    values = {part: part.value for part in (*view.asked, *view.looks)}
    return values | {
        view.reading: reading,
        view.pair.with_base: True,
        view.pair.blind: blind,
    }


def spelled(view: CompareView, update: dict[Any, Any], side: str = BASE_SIDE) -> str:
    """What stands in a side's column."""
    cells = re.findall(f"kit-cell kit-is-{side}[^>]*>(.*?)</div>", update[view.reader.text])
    texts = (html.unescape(re.sub("<[^>]*>", "", cell)) for cell in cells)
    return " ".join(texts).replace("first difference", "").strip()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two results that differ on two problems, and a comparison's base on the first of these."""
    write(tmp_path / "one", [row(1), row(2)])
    write(tmp_path / "two", [row(n, completion=f"{n}\n#### 4") for n in (1, 2)], sha256="cd" * 32)
    said = row(1, completion="The base said 4\n#### 4")
    write(tmp_path / "base" / "eval", [said], adapter=None, started="2026-01-02")
    return tmp_path


def test_the_bases_stored_answer_stands_beside_the_pairs(runs: Path) -> None:
    view = view_on(runs)
    values = values_of(view, reading_of(runs))
    update = view._based(values)
    assert spelled(view, update) == "The base said 4 #### 4"
    assert "kit-badge-right" in update[view.reader.heads].split('id="kit-base"')[1]
    assert update[view.shown].comparison.hashes[BASE_SIDE] is None
    moved = view._moving(1)(values)
    assert spelled(view, moved) == NONE and spelled(view, moved, LEFT) == "#### 4"
    without = view._based(values | {view.pair.with_base: False})
    assert "kit-is-base" not in without[view.reader.heads]
    assert view.desk._engine is None  # no model was asked for


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"max_new_tokens": 32}},
        {"settings": {"temperatures": [0.5]}},
        {"settings": {"seed": 1}},
        {"settings": {"system_prompt": "Think."}},
        {"data": "svamp"},
        {"rows": [row(1, question="Another with this id?")]},
    ],
)
def test_an_answer_to_something_else_is_not_the_bases(runs: Path, other: dict[str, Any]) -> None:
    write(runs / "base" / "eval", adapter=None, **other)
    view = view_on(runs)
    assert spelled(view, view._based(values_of(view, reading_of(runs)))) == NONE


def test_of_several_the_one_of_the_same_evaluation_is_shown_then_the_newest(runs: Path) -> None:
    view = view_on(runs)
    for day, words in (("2026-01-03", "newer"), ("2026-01-01", "older")):
        rows = [row(1, completion=words), row(2, completion=words)]
        write(runs / words / "eval", rows, adapter=None, started=day)
        write(runs / "tagged" / words, rows, adapter=None, started="2027-01-01", tag="other")
    values = values_of(view, reading_of(runs))
    assert spelled(view, view._based(values)) == "newer"
    write(runs / "newer" / "eval", [row(2)], adapter=None, started="2026-01-03")
    assert spelled(view, view._based(values)) == "The base said 4 #### 4"


def test_a_pair_of_the_base_itself_has_its_answer_too(runs: Path) -> None:
    view = view_on(runs)
    sides = (view.desk.known[0], reading_of(runs).sides[0])
    found = open_reading([runs], *sides)
    assert found is not None
    update = view._based(values_of(view, found))
    assert spelled(view, update) == spelled(view, update, LEFT) == "The base said 4 #### 4"


def test_a_base_that_is_not_stored_dims_no_line_and_colours_none(runs: Path) -> None:
    view = view_on(runs)
    reading = replace(reading_of(runs), at=1)
    text = view._based(values_of(view, reading))[view.reader.text]
    assert text.count("kit-same") == 1  # the sides' last line


def test_blind_nothing_of_the_base_is_there(runs: Path) -> None:
    view = view_on(runs)
    values = values_of(view, reading_of(runs), blind=True)
    assert view._based(values) == gr.skip()
    update = view._blinded(values)
    assert "base" not in update[view.reader.heads] + update[view.reader.text].casefold()
    assert BASE_SIDE not in update[view.shown].comparison.answers


def test_what_was_run_keeps_its_columns(runs: Path) -> None:
    view = view_on(runs)
    values = values_of(view, reading_of(runs))
    shown = view._based(values)[view.shown]
    ran = replace(shown, comparison=replace(shown.comparison, prompt="as it was sent"))
    assert view._based(values | {view.shown: ran}) == gr.skip()
    assert view._based(values | {view.reading: None}) == gr.skip()
