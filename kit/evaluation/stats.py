"""Statistics of right and wrong answers: intervals, pass@k, majority votes, paired differences.

P problems, K samples of each, S training seeds. All intervals are at 95 %; resampling uses a fixed
seed, so that a report made twice says the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import multimode
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import comb
from statsmodels.stats.proportion import proportion_confint

from kit.evaluation.crossed import CrossedMean, wild_bootstrap_p

RESAMPLES = 10_000
LEVEL = 0.95
SMALL_P = 0.05
ENOUGH_SEEDS = 5  # for a claim about methods: what benchmarks/false_claims.py says of fewer
ENOUGH_DIFFERING = 6  # problems: 2 / 2^6 is below 0.05, 2 / 2^5 is not


@dataclass(frozen=True, slots=True)
class Proportion:
    """`count` of `n`, with Wilson's interval.

    Several samples of one problem are not independent; `effective_n` is then the number of
    independent ones whose mean would vary as much (n where it is None).
    """

    count: int
    n: int
    effective_n: float | None = None

    @classmethod
    def of_samples(cls, right_P_K: ArrayLike) -> Proportion:
        """Right answers among K samples of each of P problems; (P, K) of 0 and 1."""
        right = np.asarray(right_P_K)
        if right.ndim != 2:
            raise ValueError(f"right must be (P, K), got shape {right.shape}")
        problems, samples = right.shape
        count, n = int(right.sum()), right.size
        if samples == 1 or n == 0:
            return cls(count, n)
        mean = count / n
        if problems == 1 or mean in (0, 1):  # how much problems differ cannot be seen
            return cls(count, n, problems)
        variance = right.mean(axis=1).var(ddof=1) / problems
        # never fewer than the problems, never more than the samples
        effective = mean * (1 - mean) / variance if variance > 0 else n
        return cls(count, n, float(np.clip(effective, problems, n)))

    @property
    def value(self) -> float:
        """The share; nan where n is 0."""
        return self.count / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if self.n == 0:
            return float("nan"), float("nan")
        n = self.effective_n or self.n
        low, high = proportion_confint(self.value * n, n, alpha=1 - LEVEL, method="wilson")
        # rounding leaves 3e-17 where the bound is 0
        return min(float(low), self.value), max(float(high), self.value)

    def record(self) -> dict[str, Any]:
        """For JSON; value and interval are null where there is nothing to count."""
        if self.n == 0:
            return {"value": None, "ci95": None, "count": 0, "n": 0}
        return {
            "value": self.value,
            "ci95": list(self.interval),
            "count": self.count,
            "n": self.n,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the bounds of its interval."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, Any]:
        return {"value": self.value, "ci95": [self.low, self.high]}


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher `a` is than `b` on the same problems, and how sure that is."""

    value: float  # mean of a - b
    low: float
    high: float
    tests: dict[str, float]  # two-sided p by the name of the test
    only_a: int  # (problem, seed) pairs where a is better
    only_b: int
    problems: int
    differing: int  # problems on which they differ, under any seed
    seeds: int

    @property
    def p(self) -> float:
        """The largest: below any level where every test is."""
        return max(self.tests.values())

    @property
    def test(self) -> str:
        """What `p` comes from."""
        return ", ".join(self.tests)

    @property
    def has_too_few_seeds(self) -> bool:
        """Whether it is neither one of two adapters nor enough for one of two methods."""
        return 1 < self.seeds < ENOUGH_SEEDS

    def is_shown(self, corrected_p: float) -> bool:
        """Corrected p below 0.05, an interval that excludes 0, and seeds and problems enough.

        Fewer differing problems than ENOUGH_DIFFERING would not be a small p if all favoured one
        arm, whatever the seeds say.
        """
        excludes_0 = self.low > 0 or self.high < 0
        is_enough = self.differing >= ENOUGH_DIFFERING and not self.has_too_few_seeds
        return corrected_p < SMALL_P and excludes_0 and is_enough


def bootstrap_mean(values: ArrayLike) -> Estimate:
    """Mean of independent values with a bootstrap interval; (P,), at least one."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if np.ptp(values) == 0:  # or a single one
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def pass_at_k(right_P_K: ArrayLike, k: int) -> Estimate:
    """Probability that at least one of k samples is right, 1 - C(K - c, k) / C(K, k) per problem
    with c right ones (arXiv 2107.03374, equation 1); the interval resamples problems."""
    right = np.asarray(right_P_K)
    samples = right.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"k must be 1 to {samples} (the samples there are), got {k}")
    wrong = samples - right.sum(axis=1)
    return bootstrap_mean(1 - comb(wrong, k) / comb(samples, k))


def majority_at_k(
    answers_P_K: Sequence[Sequence[Hashable | None]], right_P_K: ArrayLike, k: int
) -> Estimate:
    """Share of problems whose most frequent answer among the first k samples is right.

    None does not vote; a problem without any vote counts as wrong. Where answers tie, the problem
    counts with the share of right ones among them, so that order decides nothing.
    """
    values = []
    for answers, verdicts in zip(answers_P_K, np.asarray(right_P_K), strict=True):
        is_right = dict(zip(answers[:k], verdicts[:k], strict=True))
        most = multimode(answer for answer in answers[:k] if answer is not None)
        values.append(np.mean([is_right[answer] for answer in most]) if most else 0.0)
    return bootstrap_mean(values)


def seeds_and_problems(values_S_P: ArrayLike) -> Estimate:
    """Mean over seeds and problems, both of them random, of values from 0 to 1."""
    return _within(CrossedMean.of(values_S_P), 0, 1)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Difference:
    """Compare two arms on the same problems: (S, P) each, values in [0, 1].

    Row s of both is training seed s; a value is a verdict or a mean over samples. The interval is
    for other seeds and other problems (kit.evaluation.crossed), and there are two tests:
    Student's, which belongs to it, and a wild bootstrap of the seeds' means, which shares
    none of its formulas. With one seed the interval resamples problems, which says
    nothing about other seeds (where no problem differs, it has exact bounds); the test is then
    McNemar's exact one, or, where values are means over samples, one of sign flips over problems.
    """
    left, right = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    if left.shape != right.shape or left.size == 0:
        raise ValueError(f"both arms need the same (S, P) values, got {left.shape}, {right.shape}")
    difference = left - right
    seeds, problems = difference.shape
    if seeds > 1:
        mean = CrossedMean.of(difference)
        estimate = _within(mean, -1, 1)
        tests = {
            "Student's t over seeds and problems": float(mean.p),
            "wild bootstrap over seeds": wild_bootstrap_p(difference.mean(axis=1)),
        }
    else:
        estimate = _few_kinds_mean(*difference) if difference.any() else _none_differ(problems)
        if np.isin([left, right], (0, 1)).all():
            tests = {"McNemar, exact": mcnemar_exact(*left, *right)}
        else:
            tests = {"sign flips over problems": _sign_flip(*difference)}
    return Difference(
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        tests=tests,
        only_a=int((difference > 0).sum()),
        only_b=int((difference < 0).sum()),
        problems=problems,
        differing=int(difference.any(axis=0).sum()),
        seeds=seeds,
    )


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of McNemar's exact test for verdicts (P,) of two arms on the same problems."""
    left, right = np.asarray(a, bool), np.asarray(b, bool)
    return sign_test(int((left & ~right).sum()), int((right & ~left).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for testing several times; never below the p it corrects."""
    p = np.asarray(p_values)
    order = np.argsort(p)
    # the smallest times all of them, the next times one less, and none below the one before it
    rising = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, rising)
    return [float(value) for value in corrected]


def family_p(differences: Sequence[Difference], *, missing: int = 0) -> list[float]:
    """p of each of several differences that are tested together.

    Holm's correction is of the first test of each. The second, over seeds, has to be below the
    level by itself: five seeds allow it no p so small that a correction would leave anything.
    `missing` others are asked for and not measured yet; each counts as p = 1.
    """
    first = [next(iter(d.tests.values())) for d in differences]
    corrected = holm([*first, *[1.0] * missing])[: len(first)]
    return [
        max([p, *list(d.tests.values())[1:]]) for p, d in zip(corrected, differences, strict=True)
    ]


def _within(mean: CrossedMean, least: float, most: float) -> Estimate:
    """With its interval, cut off at the bounds of what is possible."""
    low, high = mean.interval(LEVEL)
    return Estimate(float(mean.value), max(float(low), least), min(float(high), most))


def _few_kinds_mean(values: NDArray[np.float64]) -> Estimate:
    """bootstrap_mean, hundreds of times as fast where most of the values (P,) are equal."""
    kinds, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(values), counts / len(values), size=RESAMPLES) / len(values)
    low, high = np.quantile(drawn @ kinds, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def _none_differ(problems: int) -> Estimate:
    """The mean of differences of which none was seen: the exact bounds (Clopper and Pearson's) of
    the share that favours either side, as resampling what is all equal would claim certainty."""
    bound = 1 - ((1 - LEVEL) / 2) ** (1 / problems)
    return Estimate(0.0, -bound, bound)


def _sign_flip(values: NDArray[np.float64]) -> float:
    """p of a mean of 0 when each value's sign is as likely as the other."""
    values = values[values != 0]  # a zero stays what it is
    if len(values) < 2:
        return 1.0  # one value is as extreme with either sign
    result = stats.permutation_test(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact binomial test that a win is as likely as a loss."""
    return 1.0 if wins == losses else float(stats.binomtest(wins, wins + losses).pvalue)
