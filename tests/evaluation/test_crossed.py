"""Means over seeds and problems: by hand, against slow references, and simulated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom

from benchmarks import false_claims
from kit.evaluation.crossed import CrossedMean, wild_bootstrap_p


def test_problems_that_do_not_matter_leave_students_t_over_seeds():
    """Every problem gains as much as every other: the mean of 5 numbers, by the textbook."""
    gains = np.array([0.1, 0.2, 0.15, 0.3, 0.05])
    mean = CrossedMean.of(np.repeat(gains[:, None], 40, axis=1))
    # sd of the five sqrt(0.037 / 4) = 0.09618, of the mean 0.04301; t of 4 degrees 2.776
    assert mean.value == pytest.approx(0.16, abs=1e-12)
    assert mean.error == pytest.approx(math.sqrt(0.037 / 4 / 5), abs=1e-12)
    assert mean.df == pytest.approx(4, abs=1e-9)
    assert mean.interval(0.95) == pytest.approx((0.04058, 0.27942), abs=2e-5)
    assert mean.p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue, rel=1e-9)


def test_seeds_that_do_not_matter_leave_students_t_over_problems():
    gains = np.array([1, 0, 0, 1, 0, -1, 1, 1], float)
    mean = CrossedMean.of(np.repeat(gains[None], 6, axis=0))
    assert mean.error == pytest.approx(gains.std(ddof=1) / math.sqrt(8), abs=1e-12)
    assert mean.df == pytest.approx(7, abs=1e-9)
    assert mean.p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue, rel=1e-9)


def test_mean_squares_by_hand():
    # rows 1 1 0 and 1 0 1 and 1 1 1; means 2/3, 2/3, 1 of seeds, 1, 2/3, 2/3 of problems, 7/9.
    # seeds: 3 x (2 (1/9)^2 + (2/9)^2) / 2 = 1/9, as for problems; all squares together are
    # 7 (2/9)^2 + 2 (7/9)^2 = 14/9, 2 x 1/9 of each; so the rest is (14/9 - 4/9) / 4 = 5/18 > 1/9
    mean = CrossedMean.of([[1, 1, 0], [1, 0, 1], [1, 1, 1]])
    assert mean.value == pytest.approx(7 / 9, abs=1e-12)
    assert mean.error == pytest.approx(math.sqrt(1 / 9 / 9), abs=1e-12)  # problems add nothing
    assert mean.df == pytest.approx(2, abs=1e-9)


def test_both_variances_add_up_and_share_the_degrees_of_freedom():
    # seeds shift by -1, 0, 1, problems by 3, 0, -3, 0 and there is no rest:
    # 1 / 3 and 6 / 4; seeds count 1 + 4/2 = 3 times: (1 + 1.5)^2 / (1^2/2 + 1.5^2/3)
    values = np.array([[-1.0], [0], [1]]) + np.array([3.0, 0, -3, 0])
    mean = CrossedMean.of(values)
    assert mean.value == pytest.approx(0, abs=1e-12)
    assert mean.error == pytest.approx(math.sqrt(1 / 3 + 6 / 4), abs=1e-12)
    assert mean.df == pytest.approx(2.5**2 / (0.5 + 0.75), abs=1e-9)


def test_a_stack_is_taken_one_by_one():
    stack = np.random.default_rng(0).random((4, 3, 7))
    means = CrossedMean.of(stack)
    for i, values in enumerate(stack):
        one = CrossedMean.of(values)
        assert (one.value, one.error, one.df) == pytest.approx(
            (means.value[i], means.error[i], means.df[i]), abs=1e-12
        )
        assert one.p == pytest.approx(means.p[i], abs=1e-12)


def test_p_is_where_the_interval_touches_0():
    mean = CrossedMean.of(np.random.default_rng(4).normal(0.5, 1, size=(5, 30)))
    low, high = mean.interval(1 - float(mean.p))
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)


def test_what_was_seen_once_has_no_bounds():
    for values in ([[0.5, 1, 0]], [[0.5], [1]]):
        mean = CrossedMean.of(values)
        assert (
            mean.error == math.inf and mean.p == 1 and mean.interval(0.95) == (-math.inf, math.inf)
        )


def test_values_that_never_vary():
    assert CrossedMean.of(np.zeros((3, 4))).p == 1
    surely = CrossedMean.of(np.ones((3, 4)))
    assert surely.p == 0 and surely.interval(0.95) == (1, 1)


@pytest.mark.parametrize("values", [[1.0, 2.0], [], [[]]])
def test_other_shapes_are_refused(values):
    with pytest.raises(ValueError, match=r"values must be \(S, P\), got shape"):
        CrossedMean.of(values)


@pytest.mark.parametrize(
    "values", [[0.1, -0.2], [0.1, 0.2, 0.4], [3.0, -1, 2, 2], [-2.0, -2, -3, 1]]
)
def test_the_wild_bootstrap_against_all_weights_one_by_one(values):
    def t(x: list[float]) -> float:
        error = np.std(x, ddof=1) / math.sqrt(len(x))
        return abs(np.mean(x)) / error if error > 1e-12 else math.inf

    roots = [sign * math.sqrt(x) for x in (0.5, 1, 1.5) for sign in (1, -1)]
    drawn = [
        t([w * v for w, v in zip(weights, values, strict=True)])
        for weights in itertools.product(roots, repeat=len(values))
    ]
    # 1e-9 less: what is equal by arithmetic may round to either side
    expected = np.mean([size >= t(values) * (1 - 1e-9) for size in drawn])
    assert wild_bootstrap_p(values) == pytest.approx(expected, abs=1e-12)
    assert wild_bootstrap_p([-v for v in values]) == wild_bootstrap_p(values)


def test_the_wild_bootstrap_of_equal_values():
    # equal gains of all: as extreme are equal weights alone, 6 of 6^5
    assert wild_bootstrap_p([0.1] * 5) == pytest.approx(6**-4, abs=1e-12)
    assert wild_bootstrap_p([0.0] * 5) == 1
    assert wild_bootstrap_p([0.1] * 8) == 1 / 10_000  # of 9,999 draws and the values themselves


def test_the_wild_bootstrap_holds_its_level():
    """Six normal seed means without a difference, 600 times: below 0.05 in 5 %."""
    rng = np.random.default_rng(6)
    claimed = sum(wild_bootstrap_p(rng.normal(size=6)) < 0.05 for _ in range(600))
    assert binom.ppf(0.0005, 600, 0.04) <= claimed <= binom.ppf(0.9995, 600, 0.06)


# --- simulated ------------------------------------------------------------------------------------


def design(**changes):
    settings = {
        **{"against": "arm", "seeds": 5, "spread": 0.5, "problems": 100, "accuracy": 0.5},
        **{"samples": 1, "problem_spread": 1.5, "liking": 0.0, "shift": 0.0},
    }
    return false_claims.Design(**{**settings, **changes})


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"liking": 0.7, "shift": 0.7},
        {"against": "base", "samples": 4, "shift": 0.7},
        {"against": "nothing", "accuracy": 0.3},
    ],
    ids=["null", "different", "base", "accuracy"],
)
def test_intervals_hold_the_truth_in_95_percent(seeds, spread, changes):
    """1,000 simulations each; a method that covers 93.5 to 96.5 % fails once in 2,000 runs."""
    covered = false_claims.covered(design(seeds=seeds, spread=spread, **changes), 1000, seed=0)
    low, high = binom.ppf(0.0005, 1000, 0.935), binom.ppf(0.9995, 1000, 0.965)
    assert low <= 1000 * covered <= high


def test_the_simulation_knows_the_truth():
    """Its difference of accuracies is that of many draws, whose spread is under 0.002."""
    base, alone = {"against": "base", "spread": 1.0}, {"against": "nothing", "accuracy": 0.3}
    for changes in ({"accuracy": 0.2}, base, alone, {"liking": 0.7}):
        example = design(shift=0.7, seeds=50, problems=2000, **changes)
        a, b = example.draw(20, example.generator(0))
        error = np.std((a - b).mean(axis=(1, 2)), ddof=1) / math.sqrt(20)
        expected = 0 if example.against == "nothing" else example.accuracy
        assert b.mean() == pytest.approx(expected, abs=0.02)
        assert (a - b).mean() == pytest.approx(example.truth, abs=4 * error)


def test_without_a_difference_few_are_claimed():
    """200 families of 2 data sets, whose seeds differ by a unit of log-odds."""
    rates = false_claims.claim_rates(design(spread=1.0), 200, data_sets=2, seed=0)
    most = binom.ppf(0.999, 200, 0.05) / 200
    assert rates["shown"] <= most and rates["any of 2 shown"] <= most


def test_three_seeds_claim_nothing_where_they_did():
    """The rule before claimed in a quarter of the cases with this spread."""
    rates = false_claims.claim_rates(design(spread=1.0, seeds=3), 100, data_sets=2, seed=0)
    assert rates["shown"] == rates["any of 2 shown"] == 0
    assert rates["before: shown"] > binom.ppf(0.999, 100, 0.05) / 100
    assert rates["covered"] >= binom.ppf(0.001, 100, 0.94) / 100 > rates["before: covered"]


def test_a_difference_is_seen():
    rates = false_claims.claim_rates(design(shift=2.0, spread=0.25), 20, data_sets=2, seed=0)
    assert rates["shown"] == 1


def test_the_commands_print_their_tables(capsys):
    options = "claims --seeds 3,5 --spread 1 --simulations 2 --data-sets 1"
    false_claims.main(options.split(" "))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| arm", "3", "1.0"],
        ["| arm", "5", "1.0"],
    ]
    options = "coverage --seeds 3 --problems 20 --accuracy 0.5 --samples 1 --simulations 2"
    false_claims.main([*options.split(" "), "--liking", "0", "--shift", "0"])
    printed = capsys.readouterr().out
    assert "| against nothing |" in printed and "| spread | 0.25 |" in printed
