"""The Compare tab without a browser: what its events answer, whatever goes wrong."""

from __future__ import annotations

import html
import json
import math
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from kit.app import session as desk_module
from kit.app.compare.analysis_view import TO_BASE, _pictures
from kit.app.compare.comparison import Answer, Comparison, Shown, finish, to_pair
from kit.app.compare.read_events import ReadEvents
from kit.app.compare.run_events import RunEvents
from kit.app.compare.score_events import ScoreEvents
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT
from kit.app.compare.tokens import ScoredAnswer, Token
from kit.app.compare.view import CompareView
from kit.app.library.adapters import find
from kit.app.options import AppOptions
from kit.app.pair_view import PairView
from kit.app.session import Session
from kit.errors import ConfigError, ModelError
from kit.model.rollout import Completion
from kit.preferences.votes import read_votes, voting

REQUEST = SimpleNamespace(session_hash="mine")
TEXTS = {LEFT: "3 + 4 = 7\n#### 7", RIGHT: "#### 8", BASE_SIDE: "#### 9"}


@pytest.fixture
def view(tmp_path):
    """The tab on the bare base, which is not loaded."""
    options = AppOptions(runs=tmp_path)
    with gr.Blocks():
        desk = Session(options, find(options))
        return CompareView(desk, PairView(desk))


def values_of(view, **changes):
    """What the page sends in; `changes` by the names of the view's components."""
    components = [*view.asked, *view.looks, *view.problem.taken]
    components += [view.problem.source, view.problem.search]
    values = {component: component.value for component in components}
    values |= {view.problem.question: "What is 3 + 4?", view.problem.gold: "7"}
    own = {name: getattr(view, name, None) or getattr(view.pair, name) for name in changes}
    return values | {own[name]: value for name, value in changes.items()}


def pick(view, shown, number):
    """What a click on a sample's dot shows."""
    values = {control: control.value for control in view.reader.controls}
    event = SimpleNamespace(sample=number)
    return ScoreEvents(view).pick_sample(values | {view.shown: shown}, event)


def spelled(page, view):
    """The text that is read, without its marks."""
    return html.unescape(re.sub("<[^>]*>", "", page[view.reader.text]))


def scores_of(**logprobs):
    """Of one token."""
    return ScoredAnswer((Token("x", logprobs, (("x", 1.0),)),), kl_to_base=logprobs[BASE_SIDE])


def written(view, samples=1, **changes):
    """A comparison as it is while the answers are being written."""
    temperature = 1.0 if samples > 1 else 0.0
    values = values_of(view, samples=samples, temperature=temperature, **changes)
    setup = RunEvents(view).setup(values)
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
    for update in RunEvents(view).run(values, REQUEST):
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
    @contextmanager
    def slowly(path):
        with voting(path) as append:
            time.sleep(0.05)
            yield append

    monkeypatch.setattr(desk_module, "voting", slowly)
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
    assert "Not counted" in refused[view.vote.result]
    view.desk.options.votes.rmdir()
    assert view.vote._cast(shown, "right").vote == "right"
    assert [vote.vote for vote in read_votes(view.desk.options.votes)[0]] == ["right"]


def test_votes_that_cannot_be_read_do_not_hide_whose_the_answers_were(view):
    view.desk.options.votes.mkdir()
    shown = Shown(finished(view), is_blind=True, vote="left")
    text = view.vote.show(shown, None, True)[view.vote.result]
    assert "A was **base**" in text and "cannot read the votes" in text


def test_why_tokens_have_no_probabilities_is_one_reason(view):
    unscored = replace(finished(view), prompt="", scores={})
    stopped = finish(written(view), view.desk.judge, is_stopped=True)
    said = [
        "The tokens have no probabilities yet.",
        "Answers that were stopped have no probabilities: Run again.",
        "The tokens' probabilities are not told before a blind vote.",
    ]
    for number, shown in enumerate(
        (Shown(unscored), Shown(stopped), Shown(unscored, is_blind=True))
    ):
        text = spelled(view.reader.written(shown), view)
        assert [sentence in text for sentence in said] == [i == number for i in range(3)]


def test_a_click_for_nothing_changes_nothing(view):
    done = finished(view)
    for shown in (None, Shown(done), Shown(done, is_blind=True, vote="left")):
        assert view.vote._cast(shown, "left") == gr.skip()


def test_stopped_answers_are_neither_voted_on_nor_exported(view, monkeypatch):
    stopped = finish(written(view), view.desk.judge, is_stopped=True)
    for comparison in (written(view), stopped):
        with pytest.raises(ConfigError, match="only complete answers are voted on"):
            view.desk.vote(comparison, 0, "left")
    assert not view.desk.options.votes.exists()
    comes(view, monkeypatch, stopped)
    page = run(view, values_of(view, blind=True))
    assert page[view.vote.box] == gr.update(visible=False)
    assert "stopped" in page[view.vote.result]
    assert "Answer A" in page[view.reader.heads] and "base" not in page[view.reader.heads]
    page = run(view, values_of(view))
    assert page[view.shown].history == () and page[view.export.box] == gr.update(visible=False)
    comes(view, monkeypatch, finished(view))
    page = run(view, values_of(view, shown=page[view.shown]))
    assert len(page[view.shown].history) == 1 and page[view.export.box]["visible"]


def test_the_bases_column_is_closed_until_the_vote(view, monkeypatch):
    comes(view, monkeypatch, written(view, with_base=True), finished(view, with_base=True))
    values = values_of(view, with_base=True, blind=True)
    for update in RunEvents(view).run(values, REQUEST):
        assert "kit-is-base" not in update[view.reader.heads] + update.get(view.reader.text, "")
    voted = view.show(replace(update[view.shown], vote="left"), None, values)
    assert "kit-is-base" in voted[view.reader.heads] and "#### 9" in spelled(voted, view)


@pytest.mark.parametrize(("blind", "pictures"), [(False, 3), (True, 1)])
def test_a_blind_voter_does_not_see_how_fast_adapters_answer_in_turn(
    view, monkeypatch, blind, pictures
):
    said = (written(view), written(view), finished(view))
    steps = [replace(step, is_in_turn=True) for step in said]
    monkeypatch.setattr(view.desk, "run", lambda *_: iter(steps))
    updates = list(RunEvents(view).run(values_of(view, blind=blind), REQUEST))
    assert len(updates[1:-1]) == pictures  # between what waits and all about the answers
    assert updates[-1][view.shown].comparison.is_over


def test_no_verdict_and_no_colour_tells_before_a_blind_vote(view, monkeypatch):
    comes(view, monkeypatch, finished(view))
    for _ in range(20):  # the sides are exchanged by chance
        page = run(view, values_of(view, blind=True))
        heads, text = page[view.reader.heads], page[view.reader.text]
        assert "kit-badge" not in heads and "kit-token" not in text
        assert heads.index("kit-is-left") < heads.index("kit-is-right")
        assert page[view.reader.box] == gr.update(visible=False)


def test_the_right_answer_waits_for_a_blind_vote(view, monkeypatch):
    comes(view, monkeypatch, finished(view))
    gold = view.problem.gold
    events, blind = ReadEvents(view), values_of(view, blind=True)
    assert events.blinded(blind)[gold] == gr.update(elem_classes=["kit-unseen"])
    page = run(view, blind)
    assert page[gold] == gr.update(elem_classes=["kit-unseen"])
    voted = replace(page[view.shown], vote="left")
    assert events.voted(blind, voted)[gold] == gr.update(elem_classes=[])
    assert run(view, values_of(view))[gold] == gr.update(elem_classes=[])
    drawn = events.move(blind, 1)[gold]
    assert drawn["elem_classes"] == ["kit-unseen"] and drawn["value"]


def test_colours_follow_the_arm_where_the_sides_are_exchanged(view):
    shown = Shown(finished(view), (RIGHT, LEFT), is_blind=True, vote="left")
    update = view.reader.show(shown, values_of(view))
    first = update[view.reader.heads]
    assert first.index("kit-is-right") < first.index("kit-is-left")
    cells = re.findall("kit-cell kit-is-([a-z]+)", update[view.reader.text])
    assert cells[:2] == ["right", "left"]


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_refusal_shows_again_what_was_there(view):
    before = Shown(finished(view), history=(to_pair(finished(view), 0),))
    page = run(view, values_of(view, shown=before) | {view.problem.question: " "})
    assert "the problem is empty" in page[view.notice]["value"] and page[view.notice]["visible"]
    assert "waiting" not in page[view.reader.heads] and "right" in page[view.reader.heads]
    assert page[view.shown] is before


def test_an_error_leaves_what_was_written_and_judges_it(view, monkeypatch):
    comes(view, monkeypatch, written(view), error=ModelError("out of memory"))
    page = run(view, values_of(view))
    assert "out of memory" in page[view.notice]["value"]
    heads = page[view.reader.heads]
    assert "kit-badge-right" in heads and "kit-badge-wrong" in heads
    assert "<b>7</b>" in heads and "<b>8</b>" in heads
    assert page[view.shown].comparison.is_stopped


@pytest.mark.parametrize("said", [0, 1])
def test_a_fault_of_the_app_is_no_secret_but_leaves_no_badge_waiting(view, monkeypatch, said):
    comes(view, monkeypatch, *[written(view)] * said, error=ZeroDivisionError("a fault"))
    page = {}
    with pytest.raises(ZeroDivisionError):
        for update in RunEvents(view).run(values_of(view), REQUEST):
            page |= update
    assert "waiting" not in page[view.reader.heads]
    assert ("kit-badge-right" in page[view.reader.heads]) == bool(said)


def test_a_token_without_a_probability_costs_only_what_needs_it(view, monkeypatch):
    broken = {
        LEFT: scores_of(left=math.nan, right=-2.0, base=-3.0),
        RIGHT: scores_of(left=-1.0, right=-2.0, base=-3.0),
    }
    comes(view, monkeypatch, replace(finished(view), scores={0: broken}))
    page = run(view, values_of(view))
    assert page[view.reader.box] == gr.update(visible=True)
    assert "log-probability nan under left" in page[view.reader.chart]
    assert "#### 8" in spelled(page, view) and "kit-token" not in page[view.reader.text]
    sound = Shown(finished(view))
    values = values_of(view) | {view.reader.colours: TO_BASE}
    update = view.reader.show(sound, values)
    assert "<svg" in update[view.reader.chart] and "kit-like-base" in update[view.reader.text]
    pair = to_pair(page[view.shown].comparison, 0)
    assert (pair.left.mean_logprob, pair.left.kl_to_base) == (None, -3.0)
    for button in (view.export.json, view.export.comparator):
        json.loads(
            Path(page[button]["value"]).read_text(encoding="utf-8"),
            parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
        )


def test_the_regions_are_pictures_that_nothing_in_them_can_leave():
    shown = _pictures(0.1, 0.2, 0.28)
    assert shown.count('<img alt="') == shown.count("data:image/svg+xml;base64,") == 2


# --- several samples -----------------------------------------------------------------------------


def test_a_dot_picks_a_sample(view, monkeypatch):
    done = finished(view, samples=3)
    more = {side: scores_of(left=-1.0, right=-2.0, base=-4.0) for side in TEXTS}
    monkeypatch.setattr(
        view.desk, "scored", lambda c, sample: replace(c, scores=c.scores | {sample: more})
    )
    assert view.reader.show(Shown(done), values_of(view))[view.reader.heads].count("kit-dot ") == 6
    update = pick(view, Shown(done), 2)
    assert "700" in update[view.reader.heads] and update[view.shown].sample == 2
    for shown in (None, update[view.shown]):
        assert pick(view, shown, 2) == gr.skip()


def test_a_sample_that_cannot_be_scored_is_shown_all_the_same(view, monkeypatch):
    def fails(comparison, sample):
        raise ModelError("out of memory")

    shown = Shown(finished(view, samples=2))
    monkeypatch.setattr(view.desk, "scored", fails)
    update = pick(view, shown, 1)
    assert "70" in update[view.reader.heads] and "out of memory" in update[view.notice]["value"]
    assert update[view.reader.box] == gr.update(visible=False)
    monkeypatch.undo()
    update = pick(view, update[view.shown], 0)
    assert update[view.notice] == gr.update(visible=False)
    assert update[view.reader.box] == gr.update(visible=True)
