"""What a number of blind votes can show: which win rates they tell from 50 %."""

from __future__ import annotations

from scipy import stats

from kit.evaluation.stats import SMALL_P, sign_test

POWER = 0.8  # how often a difference is to be found that is there


def least_wins(votes: int) -> int | None:
    """The fewest wins of `votes` decided votes with p below 0.05 in the exact sign test; None where
    not even all of them are enough."""
    if votes < 1 or sign_test(votes, 0) >= SMALL_P:
        return None
    # p falls as wins rise from half of the votes
    return next(k for k in range(votes // 2, votes + 1) if sign_test(k, votes - k) < SMALL_P)


def found_win_rate(votes: int) -> float | None:
    """The true win rate that `votes` decided votes tell from 50 % in four of five re-votes."""
    wins = least_wins(votes)
    # P(at least k wins of n) is the distribution function of Beta(k, n - k + 1) at the win rate
    return None if wins is None else float(stats.beta.ppf(POWER, wins, votes - wins + 1))


def revote_words(votes: int) -> str:
    """What a blind re-vote of that many votes could show, in a sentence."""
    wins, rate = least_wins(votes), found_win_rate(votes)
    if wins is None or rate is None:
        return (
            f"a blind re-vote of {votes} votes cannot tell any win rate from 50 %: it takes six "
            "that prefer a side"
        )
    return (
        f"a blind re-vote of {votes} votes that prefer a side must have {wins} of them "
        f"({wins / votes:.0%}) on one side to be told from chance (p < {SMALL_P}); it finds a true "
        f"win rate of {rate:.0%} four times in five"
    )
