"""Stored answers in the Compare tab: the base's beside them, and what their tokens are worth."""

from __future__ import annotations

import html
import re
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from kit.app.compare.comparison import Comparison
from kit.app.compare.read_events import ReadEvents
from kit.app.compare.run_events import RunEvents
from kit.app.compare.score_events import ScoreEvents
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT
from kit.app.compare.stored import Reading, open_reading
from kit.app.compare.stored_page import StoredPage
from kit.app.compare.tokens import ScoredAnswer, Token
from kit.app.compare.view import CompareView
from kit.app.library.adapters import Choice, find
from kit.app.options import AppOptions
from kit.app.pair_view import PairView
from kit.app.session import Session
from kit.errors import ModelError
from tests.app.test_browse import row, write

REQUEST: Any = SimpleNamespace(session_hash="mine")
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
    update = ReadEvents(view).based(values)
    assert spelled(view, update) == "The base said 4 #### 4"
    assert "kit-badge-right" in update[view.reader.heads].split('id="kit-base"')[1]
    assert update[view.shown].comparison.hashes[BASE_SIDE] is None
    moved = ReadEvents(view).move(values, 1)
    assert spelled(view, moved) == NONE and spelled(view, moved, LEFT) == "#### 4"
    without = ReadEvents(view).based(values | {view.pair.with_base: False})
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
    assert spelled(view, ReadEvents(view).based(values_of(view, reading_of(runs)))) == NONE


def test_of_several_the_one_of_the_same_evaluation_is_shown_then_the_newest(runs: Path) -> None:
    view = view_on(runs)
    for day, words in (("2026-01-03", "newer"), ("2026-01-01", "older")):
        rows = [row(1, completion=words), row(2, completion=words)]
        write(runs / words / "eval", rows, adapter=None, started=day)
        write(runs / "tagged" / words, rows, adapter=None, started="2027-01-01", tag="other")
    values = values_of(view, reading_of(runs))
    assert spelled(view, ReadEvents(view).based(values)) == "newer"
    write(runs / "newer" / "eval", [row(2)], adapter=None, started="2026-01-03")
    assert spelled(view, ReadEvents(view).based(values)) == "The base said 4 #### 4"


def test_a_pair_of_the_base_itself_has_its_answer_too(runs: Path) -> None:
    view = view_on(runs)
    sides = (view.desk.known[0], reading_of(runs).sides[0])
    found = open_reading([runs], *sides)
    assert found is not None
    update = ReadEvents(view).based(values_of(view, found))
    assert spelled(view, update) == spelled(view, update, LEFT) == "The base said 4 #### 4"


def test_a_base_that_is_not_stored_dims_no_line_and_colours_none(runs: Path) -> None:
    view = view_on(runs)
    reading = replace(reading_of(runs), at=1)
    text = ReadEvents(view).based(values_of(view, reading))[view.reader.text]
    assert text.count("kit-same") == 1  # the sides' last line


def test_a_base_that_cannot_be_read_leaves_the_pair(runs: Path) -> None:
    (rows,) = (runs / "base" / "eval").glob("*.jsonl")
    rows.unlink()
    rows.mkdir()
    view = view_on(runs)
    update = ReadEvents(view).based(values_of(view, reading_of(runs)))
    assert spelled(view, update, LEFT) and spelled(view, update) == NONE
    assert "cannot read the completions" in update[view.notice]["value"]


def test_blind_nothing_of_the_base_is_there(runs: Path) -> None:
    view = view_on(runs)
    values = values_of(view, reading_of(runs), blind=True)
    assert ReadEvents(view).based(values) == gr.skip()
    update = ReadEvents(view).blinded(values)
    assert "base" not in update[view.reader.heads] + update[view.reader.text].casefold()
    assert BASE_SIDE not in update[view.shown].comparison.answers


def test_in_a_session_the_right_answer_is_not_in_the_page_but_judges_what_is_run(
    runs: Path,
) -> None:
    view = view_on(runs)
    values = values_of(view, reading_of(runs), blind=True)
    update = StoredPage(view).show(values[view.reading], values)
    assert update[view.problem.gold]["value"] == ""
    said, problem = update[view.reading].case.left, view.problem
    asked = values | {
        view.reading: update[view.reading],
        view.pair.with_base: False,
        **dict.fromkeys(problem.taken),
        problem.question: said.question,
    }
    assert RunEvents(view).setup(asked).gold == said.answer
    assert RunEvents(view).setup(asked | {problem.question: "another"}).gold is None
    assert RunEvents(view).setup(asked | {problem.gold: "5"}).gold == "5"
    told = StoredPage(view).show(update[view.reading], values | {view.pair.blind: False})
    assert told[problem.gold]["value"] == said.answer


def opened(view: CompareView, **query: str) -> dict[Any, Any]:
    """The page as it opens at an address."""
    view.desk._choices |= {side.label: side for side in reading_of(view.desk.options.runs).sides}
    request: Any = SimpleNamespace(query_params={"left": "one", "right": "two"} | query)
    return ReadEvents(view).open(request)


def test_an_address_has_problem_sample_and_base(runs: Path) -> None:
    for name, start in (("one", ""), ("two", "So ")):
        sampled = [row(1, sample=n, completion=f"{start}{n}\n#### 4") for n in range(3)]
        write(runs / name, sampled, sha256="ab" * 32 if name == "one" else "cd" * 32)
    view = view_on(runs)
    shown = opened(view, problem="gsm8k/1", sample="2")
    assert spelled(view, shown, LEFT) == "2 #### 4"
    assert 'data-problem="gsm8k/1" data-sample="2"' in shown[view.reader.heads]
    assert not shown[view.pair.with_base]
    first = opened(view, problem="gsm8k/1", base="on")
    assert spelled(view, first, RIGHT) == "So 0 #### 4"
    assert 'data-problem="gsm8k/1" data-sample=""' in first[view.reader.heads]
    assert first[view.pair.with_base] and spelled(view, first) == "The base said 4 #### 4"
    assert spelled(view, opened(view, problem="gsm8k/1", sample="nine"), LEFT)


def test_a_name_that_is_not_here_is_said_with_the_pair_that_is_shown(runs: Path) -> None:
    view = view_on(runs)
    notice = opened(view, right="<b>")[view.notice]
    assert notice["visible"] and "&lt;b&gt; is not among the adapters here; " in notice["value"]
    left, right = view.pair.both
    assert f"{left.value} and {right.value} are shown" in notice["value"]
    both = opened(view, left="a" * 99, right="b", problem="gsm8k/1")[view.notice]["value"]
    assert f"{'a' * 60}… and b are not among the adapters here; " in both
    notice = opened(view, problem="nope")[view.notice]
    assert "problem nope is not among the stored ones of this pair" in notice["value"]
    assert not opened(view, problem="gsm8k/1")[view.notice]["visible"]
    assert not opened(view)[view.notice]["visible"]


def test_what_was_run_keeps_its_columns(runs: Path) -> None:
    view = view_on(runs)
    values = values_of(view, reading_of(runs))
    shown = ReadEvents(view).based(values)[view.shown]
    ran = replace(shown, comparison=replace(shown.comparison, prompt="as it was sent"))
    assert ReadEvents(view).based(values | {view.shown: ran}) == gr.skip()
    assert ReadEvents(view).based(values | {view.reading: None}) == gr.skip()


def test_a_problem_of_ones_own_is_no_stored_pair(runs: Path) -> None:
    view, reading = view_on(runs), reading_of(runs)
    values = values_of(view, reading)
    shown = ReadEvents(view).based(values)[view.shown]
    now = 'aria-pressed="true"'
    assert now in view.show(shown, reading, values)[view.vote.strip]
    setup = replace(shown.comparison.setup, question="My own?", problem=None)
    own = replace(shown, comparison=replace(shown.comparison, setup=setup))
    assert now not in view.show(own, reading, values)[view.vote.strip]
    for question, is_read in ((reading.case.left.question, True), ("My own?", False)):
        waiting = view.show(None, reading, values | {view.problem.question: question})
        assert (now in waiting[view.vote.strip]) == is_read


def test_progress_is_no_refusal_and_ends(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, reading = view_on(runs), reading_of(runs)
    view.desk._choices |= {side.label: side for side in reading.sides}
    values = values_of(view, reading) | dict(zip(view.pair.both, ("one", "two"), strict=True))
    values |= {view.count: 2, view.problem.source: "a_b<i>"}
    monkeypatch.setattr(view.desk, "evaluate", lambda *_: iter([1, 2]))
    monkeypatch.setattr("kit.app.compare.run_events.open_reading", lambda *_: reading)
    updates = [*RunEvents(view).run_many(values, REQUEST)]
    assert [update[view.notice].get("value") for update in updates] == [
        f'<p class="kit-notice" role="status">{said}</p>'
        for said in (
            "2 problems wait for the model …",
            "1 of 2 problems of a_b&lt;i&gt; …",
            "2 of 2 problems of a_b&lt;i&gt;",
        )
    ] + [None]
    refused = view.refuse(ModelError("no"))[view.notice]["value"]
    assert refused == '<p class="kit-notice" role="alert">no</p>'


# --- what their tokens are worth ------------------------------------------------------------------


class Scorer:
    """An engine that finds each token of a side as likely as any; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, said: Comparison, sample: int) -> dict[str, ScoredAnswer]:
        self.asked += said.answers
        logprobs = {LEFT: -1.0, RIGHT: -2.0, BASE_SIDE: -3.0}
        texts = {side: answers[sample].completion.text for side, answers in said.answers.items()}
        return {
            side: ScoredAnswer((Token(text, logprobs, ()),), 0.5) for side, text in texts.items()
        }


def scoring(runs: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CompareView, Any, Scorer]:
    """The tab, what its page sends in with Heat picked on a stored pair, and its engine."""
    view, scorer = view_on(runs), Scorer()
    monkeypatch.setattr(view.desk, "engine", lambda: scorer)
    reading = reading_of(runs)
    view.desk._choices |= {side.label: side for side in reading.sides}
    values = values_of(view, reading) | {view.reader.views: "Heat"}
    update = ReadEvents(view).based(values)
    return view, values | {view.shown: update[view.shown]}, scorer


def scored(view: CompareView, values: dict[Any, Any], stop_at: int | None = None) -> dict[Any, Any]:
    """What the page shows at the end; Stop is pressed at one of the updates."""
    page: dict[Any, Any] = {}
    for number, update in enumerate(ScoreEvents(view).score(values, REQUEST)):
        page |= update
        if number == stop_at:
            view.desk.stop("mine")
    return page | ScoreEvents(view).take(values | {view.scored: page.get(view.scored)})


def test_heat_of_stored_answers_is_computed_when_it_is_picked(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, values, scorer = scoring(runs, monkeypatch)
    before = values[view.shown]
    assert "kit-token" not in view.reader.written(before)[view.reader.text]
    wanted = ScoreEvents(view).want(values)
    assert wanted[view.wanted] and "wait for the model" in wanted[view.notice]["value"]
    page = scored(view, values)
    assert scorer.asked == [LEFT, RIGHT, BASE_SIDE]  # one at a time
    assert "kit-at-left-0" in page[view.reader.text] and "kit-like-left" in page[view.reader.text]
    assert page[view.reader.box] == gr.update(visible=True)
    assert page[view.notice] == gr.update(visible=False)
    after = page[view.shown]
    assert replace(after.comparison, scores={}) == before.comparison
    assert ScoreEvents(view).want(values | {view.shown: after}) == gr.skip()


def test_tokens_are_scored_beside_a_base_that_is_not_stored(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, values, scorer = scoring(runs, monkeypatch)
    values[view.shown] = ReadEvents(view).move(values, 1)[view.shown]
    page = scored(view, values)
    assert scorer.asked == [LEFT, RIGHT] and "kit-at-right-0" in page[view.reader.text]
    assert spelled(view, page) == NONE
    assert "likelier under base" not in html.unescape(page[view.reader.text])


@pytest.mark.parametrize("view_name", ["Text", "Diff"])
def test_other_views_ask_for_no_model_and_say_nothing_of_scores(
    runs: Path, monkeypatch: pytest.MonkeyPatch, view_name: str
) -> None:
    view, values, _ = scoring(runs, monkeypatch)
    other = values | {view.reader.views: view_name}
    assert ScoreEvents(view).look(other) == {view.notice: gr.update(visible=False)}
    assert ScoreEvents(view).look(other | {view.shown: None}) == gr.skip()
    assert view.wanted in ScoreEvents(view).look(values)
    assert ScoreEvents(view).want(values | {view.reader.views: view_name}) == gr.skip()
    assert ScoreEvents(view).want(values | {view.shown: None}) == gr.skip()


def test_before_a_blind_vote_nothing_is_scored(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, values, scorer = scoring(runs, monkeypatch)
    values[view.pair.blind] = True
    values[view.shown] = ReadEvents(view).blinded(values)[view.shown]
    assert ScoreEvents(view).want(values) == gr.skip()
    assert list(ScoreEvents(view).score(values, REQUEST)) == []  # whoever sends the event
    assert scorer.asked == []
    text = view.reader.written(values[view.shown])[view.reader.text]
    assert "before a blind vote" in text


def test_scores_of_a_pair_that_is_no_longer_read_are_not_shown(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, values, _ = scoring(runs, monkeypatch)
    *_, last = ScoreEvents(view).score(values, REQUEST)
    moved = ReadEvents(view).move(values, 1)
    left = ScoreEvents(view).take(
        values | {view.shown: moved[view.shown], view.scored: last[view.scored]}
    )
    assert left == {view.notice: gr.update(visible=False)}


def test_stop_ends_scoring_between_two_sides(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, values, scorer = scoring(runs, monkeypatch)
    waits = threading.Event()
    score = scorer.score

    def slowly(said: Comparison, sample: int) -> dict[str, ScoredAnswer]:
        if scorer.asked:
            waits.wait(60)
        return score(said, sample)

    monkeypatch.setattr(scorer, "score", slowly)
    page: dict[Any, Any] = {}
    for update in ScoreEvents(view).score(values, REQUEST):
        page |= update
        if scorer.asked:
            view.desk.stop("mine")
            waits.set()
    assert len(scorer.asked) < 3 and page[view.scored] is None
    assert "stopped" in page[view.notice]["value"]
    assert ScoreEvents(view).take(values | page) == gr.skip()
    view.desk.stop("mine")
    assert "stopped" in scored(view, values)[view.notice]["value"]  # before its turn had come


def test_only_what_the_page_offers_is_put_on_the_base(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result file may name any adapter: it is read, and loads nothing."""
    view, values, scorer = scoring(runs, monkeypatch)
    del view.desk._choices["two"]
    page = scored(view, values)
    assert "two cannot be put on Qwen" in page[view.notice]["value"]
    assert "--adapters" in page[view.notice]["value"] and scorer.asked == []


@pytest.mark.parametrize("kind", [ModelError, ZeroDivisionError])
def test_what_goes_wrong_while_scoring_leaves_nothing_waiting(
    runs: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    view, values, scorer = scoring(runs, monkeypatch)

    def fails(said: Comparison, sample: int) -> dict[str, ScoredAnswer]:
        raise kind("out of memory")

    monkeypatch.setattr(scorer, "score", fails)
    page: dict[Any, Any] = {}
    with pytest.raises(kind) if kind is ZeroDivisionError else nullcontext():
        for update in ScoreEvents(view).score(values, REQUEST):
            page |= update
    said = page[view.notice]
    assert "out of memory" in said["value"] if kind is ModelError else not said["visible"]
