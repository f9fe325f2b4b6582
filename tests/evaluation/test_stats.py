"""Statistics against hand-computed numbers and slow references that share no code with them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kit.evaluation.crossed import CrossedMean
from kit.evaluation.stats import (
    Difference,
    Estimate,
    Proportion,
    bootstrap_mean,
    holm,
    majority_at_k,
    mcnemar_exact,
    paired_difference,
    pass_at_k,
    seeds_and_problems,
    sign_test,
)

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson 1927, written out."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return centre - half, centre + half


# --- proportions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "n"), [(8, 10), (0, 10), (10, 10), (1, 1), (437, 1319)])
def test_the_interval_is_wilsons(count, n):
    low, high = Proportion(count, n).interval
    assert (low, high) == pytest.approx(wilson(count / n, n), abs=1e-12)
    assert 0 <= low <= count / n <= high <= 1


def test_known_wilson_interval():
    # 8 of 10: (0.8 + 0.19207) / 1.38415 = 0.71674, -+ 0.22657 (= 1.96 / 1.38415 * 0.16)
    assert Proportion(8, 10).interval == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert str(Proportion(8, 10)) == "80.0% [49.0%, 94.3%]"


def test_bounds_at_nothing_and_everything_are_exact():
    for n in range(1, 200):
        assert Proportion(0, n).interval[0] == 0.0
        assert Proportion(n, n).interval[1] == 1.0


def test_nothing_to_count():
    empty = Proportion(0, 0)
    with np.errstate(all="raise"):
        assert math.isnan(empty.value) and all(math.isnan(bound) for bound in empty.interval)
    assert empty.record() == {"value": None, "ci95": None, "count": 0, "n": 0}
    assert Proportion.of_samples(np.zeros((0, 4))) == empty


def test_one_to_count_is_recorded():
    low, high = wilson(1, 1)
    record = Proportion(1, 1).record()
    assert record == {"value": 1.0, "ci95": [pytest.approx(low), 1.0], "count": 1, "n": 1}
    assert high == pytest.approx(1)


def test_samples_of_equal_problems_count_fully_and_of_opposite_problems_once():
    # each problem is right in 2 of 4: the share is known as from all 16 samples
    with np.errstate(all="raise"):
        assert Proportion.of_samples([[1, 1, 0, 0]] * 4) == Proportion(8, 16, 16.0)
    # each problem is all right or all wrong: 4 samples say what one says.
    # mean 1/2, variance between problems 1/3, of the mean 1/12: (1/4) / (1/12) = 3, at least 4
    assert Proportion.of_samples([[1] * 4, [1] * 4, [0] * 4, [0] * 4]) == Proportion(8, 16, 4.0)


def test_effective_samples_by_hand():
    # shares 1/2, 1/2, 1, 0: mean 1/2, variance (0 + 0 + 1/4 + 1/4) / 3 = 1/6, of the mean 1/24:
    # effective (1/4) / (1/24) = 6 of 8 samples
    share = Proportion.of_samples([[1, 0], [0, 1], [1, 1], [0, 0]])
    assert (share.count, share.n) == (4, 8)
    assert share.effective_n == pytest.approx(6, abs=1e-9)
    assert share.interval == pytest.approx(wilson(0.5, 6), abs=1e-12)
    assert share.record()["n"] == 8  # what was counted
    # shares 1/2, 1: mean 3/4, variance 1/8, of the mean 1/16: (3/16) / (1/16) = 3 of 4 samples
    assert Proportion.of_samples([[1, 0], [1, 1]]) == Proportion(3, 4, 3.0)


def test_samples_never_count_more_than_once():
    # shares 1/2, 1/4, 1/2, 1/4: mean 3/8, variance 1/48, of the mean 1/192; 15/64 x 192 = 45 > 16
    share = Proportion.of_samples([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]])
    assert share.effective_n == 16
    assert share.record() == {"value": 3 / 8, "ci95": list(share.interval), "count": 6, "n": 16}


def test_where_problems_cannot_be_told_apart_each_counts_once():
    assert Proportion.of_samples([[1, 1, 1]] * 5).effective_n == 5
    assert Proportion.of_samples([[0, 0, 0]] * 5).effective_n == 5
    assert Proportion.of_samples([[1, 0, 1, 1]]).effective_n == 1
    assert Proportion.of_samples([[1], [0], [1]]) == Proportion(2, 3)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"must be \(P, K\), got shape \(3,\)"):
        Proportion.of_samples([1, 0, 1])


def test_intervals_of_clustered_samples_cover():
    """300 simulated evaluations: 4 samples of 60 problems, most of them nearly sure either way."""
    rng = np.random.default_rng(5)
    covered = naive = 0
    for _ in range(300):
        difficulty = rng.beta(0.5, 0.5, size=(60, 1))  # mean 0.5, most near 0 or 1
        right = rng.random((60, 4)) < difficulty
        low, high = Proportion.of_samples(right).interval
        covered += low <= 0.5 <= high
        low, high = Proportion(int(right.sum()), right.size).interval
        naive += low <= 0.5 <= high
    assert covered >= 275  # 285 expected, sd 3.8
    assert naive < 255  # taking samples as independent would promise too much


# --- estimates over problems ---------------------------------------------------------------------


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    estimate = bootstrap_mean(values)
    error = values.std(ddof=0) / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean(), abs=1e-12)
    assert estimate.low == pytest.approx(values.mean() - Z * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + Z * error, abs=0.1 * error)
    assert bootstrap_mean(values) == estimate  # the same each time
    assert estimate.record() == {"value": estimate.value, "ci95": [estimate.low, estimate.high]}


def test_values_that_do_not_vary_have_no_width():
    assert bootstrap_mean([0.25, 0.25, 0.25]) == Estimate(0.25, 0.25, 0.25)
    assert bootstrap_mean([1]) == Estimate(1, 1, 1)
    assert bootstrap_mean([True, True]) == Estimate(1, 1, 1)  # verdicts are values too


def test_bootstrap_of_two_values_and_of_a_rare_one():
    # two values are drawn twice each: half of the means are 1/2, a quarter is 0 and a quarter 1
    assert bootstrap_mean([0, 1]) == Estimate(0.5, 0.0, 1.0)
    # one of ten: the means are Binomial(10, 0.1) / 10, whose 97.5 % quantile is 0.3
    assert bootstrap_mean([0] * 9 + [1]) == Estimate(0.1, 0.0, pytest.approx(0.3))


def test_a_report_made_twice_says_the_same():
    """Ten thousand resamples, drawn one at a time from the generator with seed 0."""
    values = np.random.default_rng(2).random(7)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, 7, 7)].mean() for _ in range(10_000)]
    estimate = bootstrap_mean(values)
    bounds = np.quantile(means, [0.025, 0.975])
    assert (estimate.low, estimate.high) == pytest.approx(bounds, abs=1e-12)

    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(7, [1 / 7] * 7) @ np.sort(values) / 7 for _ in range(10_000)]
    difference = paired_difference(values, np.zeros(7))
    bounds = np.quantile(drawn, [0.025, 0.975])
    assert (difference.low, difference.high) == pytest.approx(bounds, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k):
    right = [[1, 0, 0, 0, 0, 0], [0] * 6, [1, 1, 0, 0, 1, 0], [1] * 6]
    shares = []
    for row in right:
        subsets = list(itertools.combinations(row, k))
        shares.append(sum(any(subset) for subset in subsets) / len(subsets))
    assert pass_at_k(right, k).value == pytest.approx(np.mean(shares), abs=1e-12)


def test_pass_at_k_by_hand():
    # 1 of 4 right, k=2: 1 - C(3,2)/C(4,2) = 1 - 3/6; 3 of 4 right: 1 - 0/6
    assert pass_at_k([[1, 0, 0, 0], [0, 1, 1, 1]], 2).value == 0.75
    assert pass_at_k([[1, 0, 0, 0], [0, 1, 1, 1]], 1).value == 0.5
    for k in (0, 5):
        with pytest.raises(ValueError, match="k must be 1 to 4"):
            pass_at_k([[1, 0, 0, 0]], k)


def test_majority_votes_by_hand():
    answers = [
        ["7", "8", "8", None],  # 8 wins with 2 of 3
        ["5", "6", None, None],  # a tie, and 5 is right: half
        [None, None, None, None],  # nobody votes: wrong
        ["1", "2", "2", "2"],  # the first alone is right, the majority is wrong
    ]
    right = [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert majority_at_k(answers, right, 4).value == (1 + 0.5 + 0 + 0) / 4
    assert majority_at_k(answers, right, 1).value == (0 + 1 + 0 + 1) / 4
    # of two samples: 7 and 8 tie, 5 and 6 tie, nothing, 1 and 2 tie
    assert majority_at_k(answers, right, 2).value == (0.5 + 0.5 + 0 + 0.5) / 4


# --- differences ---------------------------------------------------------------------------------


def binomial_p(only_a: int, only_b: int) -> float:
    """Two-sided exact sign test, summed term by term."""
    n, k = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 2), (2, 9), (5, 5), (0, 6), (1, 0), (0, 0)])
def test_mcnemar_is_the_exact_sign_test_of_disagreements(only_a, only_b):
    a = [1] * only_a + [0] * only_b + [1, 1, 0, 0, 0]
    b = [0] * only_a + [1] * only_b + [1, 1, 0, 0, 0]
    assert mcnemar_exact(a, b) == pytest.approx(binomial_p(only_a, only_b), abs=1e-12)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1 -> 0.03, 0.04, 0.04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04], abs=1e-12)
    # 0.7 x 2 is cut at 1, and the one after it is not below it
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([0.3]) == [0.3] and holm([]) == []


def test_the_sign_test_by_hand():
    # 2 sides of C(4, 0) / 2^4, and of (C(5, 0) + C(5, 1)) / 2^5
    assert sign_test(4, 0) == pytest.approx(2 / 16, abs=1e-12)
    assert sign_test(1, 4) == pytest.approx(12 / 32, abs=1e-12)
    assert sign_test(3, 3) == sign_test(0, 0) == 1


def test_one_verdict_each_is_tested_by_mcnemar():
    a = [1] * 9 + [0] * 2 + [1] * 30
    b = [0] * 9 + [1] * 2 + [1] * 30
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(7 / 41, abs=1e-12)
    assert (difference.only_a, difference.only_b) == (9, 2)
    assert (difference.problems, difference.seeds) == (41, 1)
    assert difference.test.startswith("McNemar")
    assert difference.p == pytest.approx(binomial_p(9, 2), abs=1e-12)
    assert difference.low < 7 / 41 < difference.high
    mirrored = paired_difference(b, a)
    assert mirrored.value == -difference.value and mirrored.p == difference.p


def test_shares_are_tested_by_sign_flips():
    # 5 differences of +0.5: only all plus and all minus are as extreme, 2 of 2^5 sign patterns;
    # zeros do not flip
    a, b = [1, 1, 1, 1, 1, 0.5, 0.5], [0.5] * 7
    assert paired_difference(a, b).p == pytest.approx(2 / 32, abs=1e-12)
    assert paired_difference(a, b).test.startswith("sign flips")


@pytest.mark.parametrize("sign", [1, -1])
def test_whole_gains_flip_as_half_ones_do(sign):
    # +1, +0.5 and +0.5: 2 of 2^3 sign patterns
    more, less = [1, 1, 0.5], [0, 0.5, 0]
    arms = (more, less) if sign > 0 else (less, more)
    assert paired_difference(*arms).p == pytest.approx(2 / 8, abs=1e-12)


def test_many_sign_flips_are_drawn():
    """Fourteen gains have 2^14 sign patterns, of which 10,000 are drawn with seed 0."""
    gains = np.random.default_rng(0).uniform(-0.1, 0.3, size=14)
    signs = np.array(list(itertools.product([1, -1], repeat=14)))
    exact = np.mean(np.abs(signs @ gains) >= gains.sum() * (1 - 1e-9))
    p = paired_difference(np.maximum(gains, 0), np.maximum(-gains, 0)).p
    assert p == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))

    both = np.tile([1, -1], (10_000, 14, 1))
    drawn = np.random.default_rng(0).permuted(both, axis=-1)[..., 0] @ gains
    as_extreme = 1 + np.sum(drawn >= gains.sum() * (1 - 1e-9))  # the values themselves count
    assert p == pytest.approx(2 * as_extreme / 10_001, abs=1e-12)


@pytest.mark.parametrize(("a", "b", "p"), [([0.5, 1, 0], [1, 1, 0], 1), ([0.5], [0.5], 1)])
def test_one_problem_that_differs_is_as_likely_either_way(a, b, p):
    difference = paired_difference(a, b)
    assert difference.p == p and difference.test == "sign flips over problems"
    assert difference.low <= difference.value <= difference.high


def test_two_problems_that_differ_flip_four_ways():
    # +0.5 and +0.5: two of four sign patterns are as extreme; so are +0.5 and -0.5's, all of them
    assert paired_difference([1, 1, 1], [0.5, 0.5, 1]).p == pytest.approx(2 / 4, abs=1e-12)
    assert paired_difference([1, 0, 1], [0.5, 0.5, 1]).p == 1


def test_p_is_two_sided():
    """Either arm may be the better one: exchanged, the difference changes its sign and no p."""
    rng = np.random.default_rng(3)
    better, worse = rng.random((2, 5, 40)) < np.array([0.7, 0.4])[:, None, None]
    for a, b in ((better, worse), (better[:1], worse[:1]), (better[:1] / 2, worse[:1] / 2)):
        one, other = paired_difference(a, b), paired_difference(b, a)
        assert one.value == -other.value > 0
        assert one.tests == pytest.approx(other.tests, abs=1e-12) and one.p < 0.05
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.03)


@pytest.mark.parametrize("shape", [(1, 6), (2, 6), (5, 6), (8, 6), (3, 1)])
def test_identical_arms_have_a_p_of_1(shape):
    for values in (
        np.ones(shape),
        np.arange(np.prod(shape)).reshape(shape) % 2,
        np.full(shape, 0.3),
    ):
        same = paired_difference(values, values)
        assert set(same.tests.values()) == {1.0} and same.value == 0
        assert not same.is_shown(0.0)
        assert (same.only_a, same.only_b) == (0, 0)


@pytest.mark.parametrize(("problems", "bound"), [(20, 0.1684), (1, 0.975), (500, 0.00735)])
def test_equal_verdicts_of_two_adapters_do_not_prove_them_equal(problems, bound):
    """None of n differ: a share p of such problems is seen so seldom, (1 - p)^n = 0.025.

    n = 20: ln 0.025 / 20 = -3.6889 / 20 = -0.18444, and 1 - exp(-0.18444) = 0.1684
    """
    same = paired_difference(np.ones(problems), np.ones(problems))
    assert (same.low, same.value, same.high) == pytest.approx((-bound, 0, bound), abs=5e-5)
    assert same.p == 1 and not same.is_shown(0.01)
    shares = np.full(problems, 0.5)  # of several samples
    assert paired_difference(shares, shares).high == same.high


def test_several_seeds_have_two_tests_and_the_larger_p_counts():
    # seeds gain the first 2, 2, 2, 3 and 2 of 10 problems
    b = np.zeros((5, 10))
    a = np.array([[i < n for i in range(10)] for n in (2, 2, 2, 3, 2)], float)
    difference = paired_difference(a, b)
    assert list(difference.tests) == [
        "Student's t over seeds and problems",
        "wild bootstrap over seeds",
    ]
    assert difference.p == max(difference.tests.values())
    assert difference.test == "Student's t over seeds and problems, wild bootstrap over seeds"
    # every seed gains about as much, so that with these problems others would too; but it is the
    # same two problems that are gained, and of others perhaps none
    assert difference.tests["wild bootstrap over seeds"] < 0.05 < difference.p
    assert difference.low < 0


@pytest.mark.parametrize(("differing", "shown"), [(2, False), (5, False), (6, True)])
def test_a_claim_needs_more_than_a_handful_of_problems(differing, shown):
    """All five seeds alike: the spread between them is 0, and the problems all there is."""
    left = np.zeros((5, 40))
    left[:, :differing] = 1
    difference = paired_difference(left, np.zeros((5, 40)))
    assert difference.differing == differing
    assert not difference.is_shown(0.01) or shown
    same = paired_difference(left[:, :differing], np.zeros((5, differing)))
    assert same.low == same.high == 1.0 and same.is_shown(0.01) is shown


def test_problems_that_differ_under_any_seed_are_counted_once():
    a = np.zeros((2, 5))
    a[0, 0] = a[0, 1] = a[1, 1] = 1
    difference = paired_difference(a, np.zeros((2, 5)))
    assert (difference.differing, difference.only_a, difference.only_b) == (2, 3, 0)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        *((0.1, 0.5, True), (-0.5, -0.1, True), (0.01, 1.5, True), (-1.5, -0.01, True)),
        *((-0.5, 0.5, False), (0.0, 0.5, False), (-0.5, 0.0, False)),
    ],
)
def test_a_difference_is_shown_where_its_interval_leaves_0_out(low, high, shown):
    difference = Difference((low + high) / 2, low, high, {"a test": 0.01}, 9, 0, 9, 9, 5)
    assert difference.is_shown(0.01) is shown


def test_the_mean_over_seeds_stays_within_its_bounds():
    # seeds differ by the whole range, so that Student's interval is 0.5 -+ 0.5 x 12.7
    assert seeds_and_problems([[0, 0, 0], [1, 1, 1]]) == Estimate(0.5, 0, 1)
    mean = CrossedMean.of(values := np.random.default_rng(3).random((4, 50)))
    estimate = seeds_and_problems(values)
    assert estimate == Estimate(mean.value, *mean.interval(0.95))


@pytest.mark.parametrize(("seeds", "few"), [(1, False), (2, True), (4, True), (5, False)])
def test_from_two_seeds_on_a_claim_needs_five(seeds, few):
    difference = paired_difference(np.ones((seeds, 50)), np.zeros((seeds, 50)))
    assert difference.has_too_few_seeds is few
    assert difference.is_shown(0.049) is not few
    opposite = paired_difference(np.zeros((seeds, 50)), np.ones((seeds, 50)))
    assert opposite.is_shown(0.049) is not few
    assert not difference.is_shown(0.05)


def test_one_problem_says_nothing_of_others():
    difference = paired_difference([[1], [1], [1], [1], [0]], [[0]] * 5)
    assert difference.value == 0.8 and (difference.low, difference.high) == (-1, 1)
    assert difference.p == 1


def test_the_interval_stays_where_differences_can_be():
    difference = paired_difference([[1] * 9 + [0], [0] * 10], [[0] * 10] * 2)
    assert (difference.low, difference.high) == (-1, 1)  # half of it would be 0.45 x 12.7


def test_shapes_must_agree():
    for a, b in (([1, 0], [1, 0, 1]), ([], []), ([[1, 0]], [[1, 0], [1, 0]])):
        with pytest.raises(ValueError, match=r"need the same \(S, P\) values"):
            paired_difference(a, b)


def test_intervals_of_paired_differences_cover(monkeypatch):
    """200 simulated comparisons of 60 problems on which `a` is right 10 points more often."""
    monkeypatch.setattr("kit.evaluation.stats.RESAMPLES", 1000)
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(200):
        difficulty = rng.uniform(0.1, 0.8, size=60)
        a, b = rng.random(60) < difficulty + 0.1, rng.random(60) < difficulty
        difference = paired_difference(a, b)
        covered += difference.low <= 0.1 <= difference.high
    assert covered >= 180  # 190 expected, sd 3.1
