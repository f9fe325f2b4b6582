"""The queue of a blind voting session: a pure function of pairs, voter and seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kit.preferences.queue import Ballot, pair_id, pair_of, queue, standing
from tests.preferences.test_votes import CLIP, PSPO, vote

PAIRS = [f"pair {i}" for i in range(57)]


def test_a_pair_is_the_same_on_whichever_side_its_answers_stand() -> None:
    one, other = (None, "8"), ("a" * 64, "7")
    assert pair_id("3 + 4?", 1, one, other) == pair_id("3 + 4?", 1.0, other, one)
    assert pair_id("3 + 4?", 1, one, other) != pair_id("3 + 4?", 0, one, other)
    assert pair_of(vote()) == pair_of(vote(left=CLIP, right=PSPO))
    assert pair_of(vote()) != pair_of(vote(left=replace(PSPO, completion="7")))


def test_one_in_ten_comes_twice_turned_and_not_at_once() -> None:
    ballots = queue(PAIRS, "Ada", 40)
    firsts = [ballot for ballot in ballots if not ballot.is_repeat]
    repeats = [ballot for ballot in ballots if ballot.is_repeat]
    assert len(firsts) == len({ballot.pair for ballot in firsts}) == 40
    assert len(repeats) == len({ballot.pair for ballot in repeats}) == 4
    for again in repeats:
        first = Ballot(again.pair, not again.is_turned)
        assert ballots.index(again) - ballots.index(first) > 4


@pytest.mark.parametrize(
    ("pairs", "twice"), [(0, 0), (1, 0), (3, 0), (4, 1), (10, 1), (13, 1), (14, 2)]
)
def test_few_pairs_repeat_only_with_others_in_between(pairs: int, twice: int) -> None:
    ballots = queue(PAIRS[:pairs], "Ada", 40)
    assert len(ballots) == pairs + twice
    for again in (ballot for ballot in ballots if ballot.is_repeat):
        first = Ballot(again.pair, not again.is_turned)
        assert ballots.index(again) - ballots.index(first) > 1


def test_voters_are_asked_the_same_in_the_same_order_with_sides_of_their_own() -> None:
    ada, bob = (queue(PAIRS, voter, 40) for voter in ("Ada", "Bob"))
    assert [b.pair for b in ada] == [b.pair for b in bob]
    differing = sum(a.is_turned != b.is_turned for a, b in zip(ada, bob, strict=True))
    assert 10 < differing < 34  # of 44 fair coins, all but one in 2,000
    assert 10 < sum(ballot.is_turned for ballot in ada) < 34


def test_the_order_is_chance_and_the_seeds() -> None:
    asked = queue(PAIRS, "Ada", 40)
    assert asked == queue(PAIRS[::-1], "Ada", 40)
    assert asked != queue(PAIRS, "Ada", 40, seed=1)
    assert asked[:11] == queue(PAIRS, "Ada", 10)  # a longer session goes on with a shorter one
    assert [ballot.pair for ballot in asked if not ballot.is_repeat] != sorted(PAIRS)[:40]


def test_what_is_left_is_what_the_votes_do_not_say() -> None:
    mine = vote(voter="Ada")
    twice = Ballot(pair_of(mine), is_turned=True, is_repeat=True)
    ballots = [twice, Ballot(pair_of(mine), is_turned=False), Ballot("another", is_turned=False)]
    assert left(ballots, [], "Ada") == (0, (1, 2))  # nothing comes again before it came once
    assert left(ballots, [mine], "Ada") == (1, (0, 2))
    assert left(ballots, [mine], "Bob") == left(ballots, [mine], "") == (0, (1, 2))
    again = vote(voter="Ada", left=CLIP, right=PSPO, repeat_of=mine.id)
    assert left(ballots, [mine, again], "Ada") == (2, (2,))
    assert left(ballots, [replace(mine, blind=False)], "Ada") == (0, (1, 2))
    assert left(ballots, [replace(mine, voter=None)], "") == (1, (0, 2))
    assert left([], [mine], "Ada") == (0, ())


def left(*asked) -> tuple:
    found = standing(*asked)
    return found.answered, found.open
