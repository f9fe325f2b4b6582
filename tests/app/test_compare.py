"""The Compare tab without a browser: what its events answer, whatever goes wrong."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from kit.app import session as desk_module
from kit.app.compare.analysis_view import TO_BASE
from kit.app.compare.comparison import Answer, Comparison, Shown, finish, to_pair
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT
from kit.app.compare.tokens import ScoredAnswer, Token
from kit.app.compare.view import CompareView
from kit.app.library.adapters import find
from kit.app.options import AppOptions
from kit.app.session import Session
from kit.errors import ConfigError, ModelError, ResultsError
from kit.model.rollout import Completion
from kit.preferences.votes import append_vote, read_votes

REQUEST = SimpleNamespace(session_hash="mine")
TEXTS = {LEFT: "3 + 4 = 7\n#### 7", RIGHT: "#### 8", BASE_SIDE: "#### 9"}


@pytest.fixture
def view(tmp_path):
    """The tab on the bare base, which is not loaded."""
    options = AppOptions(runs=tmp_path)
    with gr.Blocks():
        return CompareView(Session(options, find(options)))


def values_of(view, **changes):
    """What the page sends in; `changes` by the names of the view's components."""
    components = [
        *(view.left, view.right, view.with_base, view.blind, view.temperature),
        *(view.max_new_tokens, view.samples, view.seed, view.system_prompt, view.sample),
        *(view.shown, *view.problem.taken, *view.analysis.controls),
    ]
    values = {component: component.value for component in components}
    values |= {view.problem.question: "What is 3 + 4?", view.problem.gold: "7"}
    return values | {getattr(view, name): value for name, value in changes.items()}


def scores_of(**logprobs):
    """Of one token."""
    return ScoredAnswer((Token("x", logprobs, (("x", 1.0),)),), kl_to_base=logprobs[BASE_SIDE])


def written(view, samples=1, **changes):
    """A comparison as it is while the answers are being written."""
    temperature = 1.0 if samples > 1 else 0.0
    setup = view._setup(values_of(view, samples=samples, temperature=temperature, **changes))
    answers = {
        side: tuple(
            Answer(Completion([1, 2], [-0.5, -1.5], False, f"{TEXTS[side]}{'0' * i}"), 0.5)
            for i in range(samples)
        )
        for side in setup.sides
    }
    return Comparison(setup, "<prompt>", answers, dict.fromkeys(setup.sides))


def finished(view, **changes):
    scores = {side: scores_of(left=-1.0, right=-2.0, base=-3.0) for side in TEXTS}
    return finish(replace(written(view, **changes), scores={0: scores}), view.desk.judge)


def run(view, values):
    """What the page shows at the end of a run."""
    page = {}
    for update in view._run(values, REQUEST):
        page |= update
    return page


def comes(view, monkeypatch, *comparisons, error=None):
    """Let the model say this."""

    def run(setup):
        yield from comparisons
        if error is not None:
            raise error

    monkeypatch.setattr(view.desk, "engine", lambda: SimpleNamespace(run=run))


# --- votes ---------------------------------------------------------------------------------------


def test_clicks_at_once_are_one_vote_that_all_of_them_show(view, monkeypatch):
    def slowly(path, vote):
        time.sleep(0.05)
        append_vote(path, vote)

    monkeypatch.setattr(desk_module, "append_vote", slowly)
    shown = Shown(finished(view), (RIGHT, LEFT), is_blind=True)
    together, cast = threading.Barrier(3), []

    def click(column):
        together.wait()
        cast.append(view.vote._cast(shown, column))

    threads = [threading.Thread(target=click, args=(c,)) for c in ("left", "tie", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (vote,), unreadable = read_votes(view.desk.options.votes)
    assert unreadable == 0
    assert cast == [replace(shown, vote=vote.vote)] * 3


def test_a_vote_that_cannot_be_written_can_be_cast_again(view):
    shown = Shown(finished(view), is_blind=True)
    view.desk.options.votes.mkdir()
    refused = view.vote._cast(shown, "left")
    assert "Not counted" in refused[view.vote.result]["value"]
    view.desk.options.votes.rmdir()
    assert view.vote._cast(shown, "right").vote == "right"
    assert [vote.vote for vote in read_votes(view.desk.options.votes)[0]] == ["right"]


def test_votes_that_cannot_be_read_do_not_hide_whose_the_answers_were(view, monkeypatch):
    def unreadable(comparison):
        raise ResultsError("cannot read the votes")

    monkeypatch.setattr(view.desk, "score", unreadable)
    text = view.vote.show(Shown(finished(view), is_blind=True, vote="left"))[view.vote.result]
    assert "A was **base**" in text["value"] and "cannot read the votes" in text["value"]


def test_a_click_for_nothing_changes_nothing(view):
    done = finished(view)
    for shown in (None, Shown(done), Shown(done, is_blind=True, vote="left")):
        assert view.vote._cast(shown, "left") == gr.skip()


def test_stopped_answers_are_neither_voted_on_nor_exported(view, monkeypatch):
    stopped = finish(written(view), view.desk.judge, is_stopped=True)
    for comparison in (written(view), stopped):
        with pytest.raises(ConfigError, match="only complete answers are voted on"):
            view.desk.vote(comparison, 0, "left", blind=True)
    assert not view.desk.options.votes.exists()
    comes(view, monkeypatch, stopped)
    page = run(view, values_of(view, blind=True))
    assert page[view.vote.box] == gr.update(visible=False)
    assert "stopped" in page[view.vote.result]["value"] and page[view.vote.result]["visible"]
    assert page[view.names[0]] == "### Answer A"
    page = run(view, values_of(view))
    assert page[view.shown].history == () and page[view.export.box] == gr.update(visible=False)
    comes(view, monkeypatch, finished(view))
    page = run(view, values_of(view, shown=page[view.shown]))
    assert len(page[view.shown].history) == 1 and page[view.export.box]["visible"]


def test_the_bases_column_is_closed_until_the_vote(view, monkeypatch):
    writing = view._written(Shown(written(view, with_base=True), is_blind=True))
    assert view.texts[1] in writing and view.texts[2] not in writing
    comes(view, monkeypatch, finished(view, with_base=True))
    values = values_of(view, with_base=True, blind=True)
    for update in view._run(values, REQUEST):
        assert update.get(view.boxes[2]) in (None, gr.update(visible=False))
        assert not update.get(view.finals[2])
    voted = view._show(replace(update[view.shown], vote="left"), values)
    assert voted[view.boxes[2]] == gr.update(visible=True)
    assert "9" in voted[view.finals[2]]


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_refusal_clears_the_badges_and_keeps_the_history(view):
    before = Shown(finished(view), history=(to_pair(finished(view), 0),))
    page = run(view, values_of(view, shown=before) | {view.problem.question: " "})
    assert "the problem is empty" in page[view.notice]["value"] and page[view.notice]["visible"]
    assert [page[status] for status in view.statuses] == ["", "", ""]
    assert page[view.shown] is before and page[view.export.box] == gr.update(visible=False)


def test_an_error_leaves_what_was_written_and_judges_it(view, monkeypatch):
    comes(view, monkeypatch, written(view), error=ModelError("out of memory"))
    page = run(view, values_of(view))
    assert "out of memory" in page[view.notice]["value"]
    assert "kit-badge-right" in page[view.statuses[0]]
    assert "kit-badge-wrong" in page[view.statuses[1]]
    assert "7" in page[view.finals[0]] and "8" in page[view.finals[1]]
    assert page[view.shown].comparison.is_stopped


@pytest.mark.parametrize("said", [0, 1])
def test_a_fault_of_the_app_is_no_secret_but_leaves_no_badge_waiting(view, monkeypatch, said):
    comes(view, monkeypatch, *[written(view)] * said, error=ZeroDivisionError("a fault"))
    page = {}
    with pytest.raises(ZeroDivisionError):
        for update in view._run(values_of(view), REQUEST):
            page |= update
    statuses = "".join(page[status] for status in view.statuses[:2])
    assert "waiting" not in statuses and "writing" not in statuses
    assert ("kit-badge-right" in statuses) == bool(said)


def test_a_token_without_a_probability_costs_only_what_needs_it(view, monkeypatch):
    broken = {
        LEFT: scores_of(left=math.nan, right=-2.0, base=-3.0),
        RIGHT: scores_of(left=-1.0, right=-2.0, base=-3.0),
    }
    comes(view, monkeypatch, replace(finished(view), scores={0: broken}))
    page = run(view, values_of(view))
    maps, reason = view.analysis.maps, "log-probability nan under left"
    assert page[view.analysis.box] == gr.update(visible=True)
    assert "#### " in page[view.analysis.difference]
    assert reason in page[maps[LEFT]] and "kit-heat" not in page[maps[LEFT]]
    assert "kit-heat" in page[maps[RIGHT]] and "kit-notice" not in page[maps[RIGHT]]
    assert reason in page[view.analysis.chart]
    values = values_of(view) | {view.analysis.side: RIGHT, view.analysis.colours: TO_BASE}
    assert "<svg" in view.analysis.show(page[view.shown], values)[view.analysis.chart]
    pair = to_pair(page[view.shown].comparison, 0)
    assert (pair.left.mean_logprob, pair.left.kl_to_base) == (None, -3.0)
    for button in (view.export.json, view.export.comparator):
        json.loads(
            Path(page[button]["value"]).read_text(encoding="utf-8"),
            parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
        )


# --- several samples -----------------------------------------------------------------------------


def test_the_slider_picks_a_sample_and_is_not_set_by_that(view, monkeypatch):
    done = finished(view, samples=3)
    more = {side: scores_of(left=-1.0, right=-2.0, base=-4.0) for side in TEXTS}
    monkeypatch.setattr(
        view.desk, "scored", lambda c, sample: replace(c, scores=c.scores | {sample: more})
    )
    update = view._pick_sample(values_of(view, shown=Shown(done), sample=3))
    assert "700" in update[view.finals[0]]
    assert update[view.shown].sample == 2 and view.sample not in update
    for shown in (None, update[view.shown]):
        assert view._pick_sample(values_of(view, shown=shown, sample=3)) == gr.skip()


def test_a_sample_that_cannot_be_scored_is_shown_all_the_same(view, monkeypatch):
    def fails(comparison, sample):
        raise ModelError("out of memory")

    shown = Shown(finished(view, samples=2))
    monkeypatch.setattr(view.desk, "scored", fails)
    update = view._pick_sample(values_of(view, shown=shown, sample=2))
    assert "70" in update[view.finals[0]] and "out of memory" in update[view.notice]["value"]
    assert update[view.analysis.box] == gr.update(visible=False)
    monkeypatch.undo()
    update = view._pick_sample(values_of(view, shown=update[view.shown], sample=1))
    assert update[view.notice] == gr.update(visible=False)
    assert update[view.analysis.box] == gr.update(visible=True)
