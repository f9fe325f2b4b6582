"""Tallies: honest counting, and agreement of voters with each other and with themselves."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from kit.preferences.tallies import Agreement, Tally, tally
from tests.preferences.test_votes import BASE, CLIP, PSPO, vote

NONE = Agreement(1, 0, 0, 0, None)


def counts(found: Tally) -> tuple:
    both = found.first, found.second
    return (*both, found.first_wins, found.second_wins, found.ties, found.both_bad)


def test_tally_does_not_depend_on_the_side() -> None:
    votes = [
        vote("left"),  # pspo
        vote("right", left=CLIP, right=PSPO),  # pspo
        vote("left"),  # pspo
        vote("right"),  # clip
        vote("tie", left=CLIP, right=PSPO),
        vote("both_bad"),
        vote("right", blind=False),  # saw the names
        vote("left", left=PSPO, right=PSPO),  # nothing to compare
        vote("left", left=BASE),  # base against clip
        vote("left", left=CLIP, right=PSPO, repeat_of="x"),  # counted before
    ]
    base, pair = tally(votes)
    assert counts(base) == ("base", "clip", 1, 0, 0, 0)
    assert counts(pair) == ("clip", "pspo", 1, 3, 1, 1)
    assert tally(votes, blind_only=False)[1].first_wins == 2
    assert tally([]) == []


def test_tally_has_interval_and_test() -> None:
    # 9 of 10: p = 2 (10 + 1) / 2^10; Wilson: (p + z^2/2n ± z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n)
    counted = Tally("a", "b", 9, 1, 4, 2, (9, 1, 0), NONE)
    assert counted.p == pytest.approx(22 / 1024, rel=1e-12)
    assert counted.win_share.value == 0.9
    assert counted.win_share.interval == pytest.approx((0.595850, 0.982124), abs=1e-6)
    assert counted.record()["win_share"]["n"] == 10
    assert str(counted) == "a 9 : 1 b (90.0% [59.6%, 98.2%], p = 0.0215), 4 ties, 2 both bad"
    assert ", 1 tie, " in str(Tally("a", "b", 0, 0, 1, 0, (0, 0, 0), NONE))
    none = str(Tally("a", "b", 0, 0, 4, 0, (0, 0, 0), NONE))
    assert none == "a 0 : 0 b (none preferred), 4 ties, 0 both bad"


def test_two_adapters_of_one_name_are_kept_apart() -> None:
    other = replace(PSPO, adapter_sha256="c" * 64)
    counted = tally([vote("left"), vote("left", left=other), vote("left", right=other)])
    assert [(t.first, t.second, t.first_wins, t.second_wins) for t in counted] == [
        ("clip", "pspo (aaaaaaaa)", 0, 1),
        ("clip", "pspo (cccccccc)", 0, 1),
        ("pspo (aaaaaaaa)", "pspo (cccccccc)", 1, 0),
    ]


def test_one_adapter_of_two_names_is_one() -> None:
    """Votes of an app that was started with another folder call it by another path."""
    renamed = replace(PSPO, name="runs/pspo\nforged 9 : 0")
    earlier = datetime(2026, 1, 2, tzinfo=timezone.utc)
    votes = [vote("left", left=renamed), *(vote("left", time=earlier) for _ in range(2))]
    (counted,) = tally(votes)
    assert counts(counted) == ("clip", "runs/pspo forged 9 : 0 (also pspo)", 0, 3, 0, 0)
    unknown = replace(PSPO, adapter_sha256=None), replace(CLIP, adapter_sha256=None)
    (counted,) = tally([vote("right", left=unknown[0], right=unknown[1])])
    assert counts(counted) == ("clip", "pspo", 1, 0, 0, 0)
    assert tally([vote("left", left=PSPO, right=renamed)]) == []


def test_several_votes_on_one_problem_are_no_several_problems() -> None:
    """Four votes on one problem, three of them for pspo, and one on another for clip."""
    votes = [vote("left", voter=name) for name in "abc"]
    votes += [vote("right", voter="d"), vote("right", question="4 + 4?")]
    (counted,) = tally(votes)
    assert (counted.first_wins, counted.second_wins, counted.problems) == (2, 3, (1, 1, 0))
    assert counted.p == 1.0  # one problem each
    (alone,) = tally([vote("left", question=str(i)) for i in range(5)])
    (same,) = tally([vote("left", voter=str(i)) for i in range(5)])
    width = [t.win_share.interval[1] - t.win_share.interval[0] for t in (alone, same)]
    assert width[1] > 1.5 * width[0]


def test_what_comes_twice_counts_once_and_tells_agreement_with_oneself() -> None:
    first, other = vote("left"), vote("tie", question="4 + 4?")
    again = vote("right", left=CLIP, right=PSPO, repeat_of=first.id)  # for pspo once more
    changed = vote("left", question="4 + 4?", repeat_of=other.id)
    stray = vote("left", repeat_of="of a vote that is gone")
    (counted,) = tally([first, other, again, changed, stray])
    assert counts(counted) == ("clip", "pspo", 0, 1, 1, 0)
    assert (counted.agreement.repeats, counted.agreement.same) == (2, 1)
    assert "on 1 of 2 pairs that came twice (50.0%" in str(counted.agreement)
    assert counted.record()["agreement"]["with_oneself"]["n"] == 2


def voted(voter: str, labels: str) -> list:
    """One vote for each pair: 1 for pspo, 0 for clip, = for neither."""
    kinds = {"1": "left", "0": "right", "=": "tie"}
    return [vote(kinds[one], voter=voter, question=f"{i}?") for i, one in enumerate(labels)]


def test_alpha_is_the_published_one() -> None:
    """Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section A: of 20 values in
    10 units 14 are 0 and 6 are 1, and 4 units disagree: 1 - (20 - 1) 4 / (14 6)."""
    votes = [*voted("Meg", "0100000010"), *voted("Owen", "1110010000")]
    alone = vote("tie", voter="Meg", question="alone")  # nobody to agree with
    turned = [
        replace(v, left=CLIP, right=PSPO, vote={"left": "right", "right": "left"}[v.vote])
        for v in votes[10:]
    ]  # which side an answer stood on makes no difference
    for both in ([*votes, alone], [*votes[:10], *turned]):
        (counted,) = tally(both)
        assert counted.agreement.alpha == pytest.approx(1 - 19 * 4 / (14 * 6))
        assert (counted.agreement.voters, counted.agreement.shared) == (2, 10)
    assert "α of 2 voters on 10 pairs: 0.10" in str(counted.agreement)


def test_alpha_of_one_opinion_is_not_defined() -> None:
    (counted,) = tally([*voted("Meg", "111"), *voted("Owen", "111")])
    assert (counted.agreement.shared, counted.agreement.alpha) == (3, None)
    assert "not defined" in str(counted.agreement)
    (single,) = tally(voted("Meg", "101"))
    assert str(single.agreement) == "nothing voted on twice, so no agreement to tell"
