"""A blind voting session without a browser: what is asked, in which order, and what it comes to."""

from __future__ import annotations

import html
import math
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from kit.app.compare.read_events import ReadEvents
from kit.app.compare.revote import BATCH, EPOCHS
from kit.app.compare.setup import LEFT, RIGHT
from kit.app.compare.stored import open_reading
from kit.app.compare.view import CompareView
from kit.app.compare.vote_view import LONGEST_NAME
from kit.app.library.adapters import Choice, find
from kit.app.options import AppOptions
from kit.app.pair_view import PairView
from kit.app.session import Session
from kit.preferences.queue import pair_of
from kit.preferences.votes import Message, Vote, append_vote, read_votes
from tests.app.test_browse import row, write
from tests.preferences.test_votes import vote

PAIRS = 12  # with one that comes twice


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two results with the same answers but for their length; "one" has the shorter ones."""
    rows = [row(n, question=f"Problem {n}?") for n in range(PAIRS)]
    same = row(99, question="Both say the same.")
    write(tmp_path / "one", [*rows, same])
    long = [one | {"completion": f"{n}\n#### 4"} for n, one in enumerate(rows)]
    write(tmp_path / "two", [*long, same], sha256="cd" * 32)
    return tmp_path


class Page:
    """A page of an app that was just started, as the browser keeps it."""

    def __init__(self, runs: Path, *names: str, voter: str = "") -> None:
        options = AppOptions(runs=runs)
        with gr.Blocks():
            desk = Session(options, find(options))
            self.view = CompareView(desk, PairView(desk))
        sides = (
            Choice(name, str(runs / name / "adapter"), "Qwen", "", None, str(runs / name), None)
            for name in names or ("one", "two")
        )
        reading = open_reading([runs], *sides)
        assert reading is not None
        self.values = {part: part.value for part in self.view.looks}
        self.values |= {self.view.vote.voter: voter, self.view.reading: reading}
        self.seen: dict[Any, Any] = {}

    def does(self, update: dict[Any, Any]) -> None:
        self.seen |= update
        states = (self.view.shown, self.view.reading)
        self.values |= {part: update[part] for part in states if part in update}

    def blind(self, is_on: bool = True) -> None:
        self.values[self.view.pair.blind] = is_on
        self.does(ReadEvents(self.view).blinded(self.values))

    def votes(self, column: str) -> None:
        voter = self.view.vote.name(self.values)
        cast = self.view.vote._cast(self.values[self.view.shown], column, voter)
        self.does(ReadEvents(self.view).voted(self.values, cast))

    def next(self) -> None:
        self.does(ReadEvents(self.view).move(self.values, 1))

    @property
    def shown(self) -> Any:
        return self.values[self.view.shown]

    @property
    def columns(self) -> list[str]:
        """The answers from left to right."""
        return [self.shown.answer(side).completion.text for side in self.shown.order]

    @property
    def shorter(self) -> str:
        return "left" if len(self.columns[0]) < len(self.columns[1]) else "right"

    @property
    def said(self) -> str:
        return str(self.seen[self.view.vote.result])

    @property
    def result(self) -> str | None:
        """What the session came to, where it is shown."""
        is_shown = self.seen[self.view.result.box]["visible"]
        return html.unescape(self.seen[self.view.result.text]) if is_shown else None

    @property
    def cast(self) -> list[Vote]:
        return read_votes(self.view.desk.options.votes)[0]


def test_a_session_asks_each_pair_once_and_one_in_ten_twice(runs: Path) -> None:
    page = Page(runs, voter="  Ada  ")
    page.blind()
    orders = []
    for number in range(PAIRS + 1):
        assert page.said == f"**{number} of {PAIRS + 1}**" and page.result is None
        assert "one" not in page.said and page.shown.hides_names
        orders.append(page.shown.order)
        page.votes(page.shorter)
    votes = page.cast
    assert len(votes) == PAIRS + 1 and {vote.voter for vote in votes} == {"Ada"}
    assert {vote.question for vote in votes} == {f"Problem {n}?" for n in range(PAIRS)}
    assert all(getattr(vote, vote.vote).completion == "#### 4" for vote in votes)
    assert {(v.problem.data, v.problem.split) for v in votes if v.problem} == {("gsm8k", "test")}
    (again,) = (vote for vote in votes if vote.repeat_of)
    (first,) = (vote for vote in votes if vote.id == again.repeat_of)
    assert first.question == again.question
    assert orders[votes.index(first)] != orders[votes.index(again)]  # the sides are swapped
    assert {LEFT, RIGHT} == {order[0] for order in orders}
    assert page.result is not None
    assert f"{PAIRS + 1} of {PAIRS + 1} votes by Ada between **one** and **two**" in page.result
    assert f"one {PAIRS} : 0 two (100.0% [75.8%, 100.0%]" in page.result  # the second is no vote
    assert "the same vote again on 1 of 1 pair that came twice" in page.result


def test_the_commands_count_the_pairs_of_this_base(runs: Path) -> None:
    page = Page(runs)
    file = page.view.desk.options.votes
    prompt = [Message("user", "Of another base?")]
    append_vote(file, vote("left", question="Of another base?", prompt=prompt, base="Q/B"))
    page.blind()
    for _ in range(PAIRS + 1):
        page.votes(page.shorter)
    commands = page.seen[page.view.result.commands]["value"]
    batch = min(BATCH, PAIRS // 2)
    assert f"train.steps={math.ceil(EPOCHS * PAIRS / batch)} " in commands


def test_what_was_clicked_just_before_a_session_begins_breaks_none(runs: Path) -> None:
    for click in (
        lambda page: ReadEvents(page.view).go(page.values, SimpleNamespace(case=3)),
        lambda page: ReadEvents(page.view).filter(page.values | {page.view.vote.outcome: "differ"}),
    ):
        page = Page(runs)
        page.blind()
        page.does(click(page))
        reading = page.values[page.view.reading]
        assert page.shown.hides_names and len(reading.ballots) == len(reading.cases)
        assert page.shown.comparison.id == reading.ballots[reading.at].pair
        page.blind(False)
        assert not page.values[page.view.reading].ballots


def test_a_name_is_cleaned_and_cut_whoever_sends_it(runs: Path) -> None:
    page = Page(runs, voter="A\nda\ud800" + "x" * 100_000)
    page.blind()
    page.votes("tie")
    page.votes("tie")
    (name,) = {vote.voter for vote in page.cast}
    assert name is not None and name.startswith(r"A da\ud800xx") and len(name) == LONGEST_NAME
    assert page.said == f"**2 of {PAIRS + 1}**"


def _casts(runs: Path, ready: Any) -> None:
    page = Page(runs)
    page.blind()
    for _ in range(PAIRS):
        ready.wait(60)
        page.votes("left")


def test_two_processes_cast_one_vote(runs: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(2)
    pages = [fork.Process(target=_casts, args=(runs, ready)) for _ in range(2)]
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    votes, unreadable = read_votes(runs / "votes.jsonl")
    asked = [(pair_of(vote), vote.repeat_of is not None) for vote in votes]
    assert unreadable == 0 and len(asked) == len(set(asked)) == PAIRS


def test_a_session_stops_and_goes_on_where_the_votes_say(runs: Path) -> None:
    page = Page(runs)
    page.blind()
    for _ in range(3):
        page.votes("tie")
    asked = page.shown.comparison.id
    page.blind(False)
    assert not page.shown.hides_names and "3 of 13 votes" in str(page.result)
    assert "3 ties" in str(page.result)
    page.next()
    assert page.result is None  # it is read once
    later = Page(runs, "two", "one")  # the app was started again, and the sides exchanged
    later.blind()
    assert later.said == "**3 of 13**" and later.shown.comparison.id == asked


def test_what_was_seen_with_names_does_not_come_next(runs: Path) -> None:
    page = Page(runs)
    page.blind()
    first = page.shown.comparison.id
    page.blind(False)
    assert page.shown.comparison.id == first
    page.blind()
    assert page.shown.comparison.id != first


def test_n_leaves_a_pair_for_later(runs: Path) -> None:
    page = Page(runs)
    page.blind()
    skipped = page.shown.comparison.id
    page.next()
    assert page.shown.comparison.id != skipped
    seen = []
    while page.result is None:
        seen.append(page.shown.comparison.id)
        page.votes("tie")
    assert seen.count(skipped) >= 1 and len(seen) == PAIRS + 1


def test_each_voter_has_a_session_of_their_own_on_the_same_pairs(runs: Path) -> None:
    ada = Page(runs, voter="Ada")
    ada.blind()
    while ada.result is None:
        ada.votes(ada.shorter)
    bob = Page(runs, voter="Bob")
    bob.blind()
    assert bob.said == "**0 of 13**"
    while bob.result is None:
        bob.votes("both_bad" if bob.shown.comparison.setup.question > "Problem 4" else bob.shorter)
    assert "All 2 voters" in bob.result and "α of 2 voters on 12 pairs" in bob.result
    bob.values[bob.view.vote.voter] = "Cleo"
    bob.does(ReadEvents(bob.view).renamed(bob.values))
    assert bob.said == "**0 of 13**" and bob.shown.hides_names
    assert ReadEvents(bob.view).renamed(bob.values) == gr.skip()  # nothing has changed


def test_a_shorter_session_is_the_beginning_of_a_longer_one(runs: Path) -> None:
    page = Page(runs)
    page.values[page.view.size] = 4
    page.blind()
    asked = {page.shown.comparison.id}
    while page.result is None:
        asked.add(page.shown.comparison.id)
        page.votes("tie")
    assert len(asked) == 4 and len(page.cast) == 5
    page.values[page.view.size] = 10
    page.does(ReadEvents(page.view).renamed(page.values))
    assert page.result is None and page.shown.comparison.id not in asked


def test_nothing_to_vote_on_is_said(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name)  # the same answers
    page = Page(tmp_path)
    page.blind()
    assert "no pair of stored answers" in page.seen[page.view.notice]["value"]
    page.blind(False)
    assert page.shown.comparison.setup.question == "2 + 2?"


def test_votes_that_cannot_be_read_are_said(runs: Path) -> None:
    (runs / "votes.jsonl").mkdir()
    page = Page(runs)
    page.blind()
    assert "cannot read the votes" in page.seen[page.view.notice]["value"]


def test_the_strip_and_the_verdict_are_not_there_while_one_votes(runs: Path) -> None:
    page = Page(runs)
    page.does(ReadEvents(page.view).go(page.values, SimpleNamespace(case=2)))
    assert page.shown.comparison.setup.question == "Problem 2?"
    assert "kit-scores" in page.seen[page.view.vote.strip]
    page.blind()
    assert page.seen[page.view.vote.strip] == "" and "right" not in page.said
