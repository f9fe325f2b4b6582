"""What a number of votes can show."""

import pytest
from scipy.stats import binom

from kit.evaluation.power import found_win_rate, least_wins, revote_words


@pytest.mark.parametrize(
    ("votes", "wins"),
    [
        # 2 / 2^5 = 0.0625, 2 / 2^6 = 0.03125; of 7: 2 (1 + 7) / 2^7 = 0.125 with one lost
        *((0, None), (5, None), (6, 6), (7, 7)),
        # of 9 with one lost: 2 (1 + 9) / 2^9 = 0.0390625; with two: 2 (1 + 9 + 36) / 2^9 = 0.18
        (9, 8),
        # of 10: 22 / 1024 = 0.021 with one lost, 112 / 1024 = 0.109 with two
        (10, 9),
    ],
)
def test_the_fewest_wins_that_are_shown(votes: int, wins: int | None) -> None:
    assert least_wins(votes) == wins


def test_the_rate_that_is_found_four_times_in_five() -> None:
    # all of six: p^6 = 0.8
    assert found_win_rate(6) == pytest.approx(0.8 ** (1 / 6), rel=1e-9)
    for votes in (20, 50, 200):
        rate, wins = found_win_rate(votes), least_wins(votes)
        assert binom.sf(wins - 1, votes, rate) == pytest.approx(0.8, rel=1e-6)
    assert found_win_rate(5) is None
    assert found_win_rate(50) > found_win_rate(200) > 0.5


def test_it_is_said_in_words() -> None:
    assert revote_words(4).startswith("a blind re-vote of 4 votes cannot tell any win rate")
    assert "must have 9 of them (90%) on one side" in revote_words(10)
