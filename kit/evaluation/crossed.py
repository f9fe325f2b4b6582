"""The mean over training seeds on the same problems: its interval, and two tests whether it is 0.

S seeds, P problems, and a value of each pair of them, such as the difference of two arms' verdicts:

    value = mean + seed + problem + rest

Seeds and problems are both samples: of the seeds one might train with, of the problems one might
ask. They are crossed: a problem that favours an arm favours it under every seed, and no number of
seeds averages that out.

    variance of the mean = Var(seed) / S + Var(problem) / P + Var(rest) / (S P)

The three are estimated from mean squares (two-way random effects, e.g. Brennan, Generalizability
Theory, 2001, chapter 3). `benchmarks/false_claims.py` simulates what intervals and tests are worth.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

DRAWS = 9_999  # of the wild bootstrap, where not every one can be taken
ENUMERATED = 5  # seeds up to which every draw is taken: 6^5 = 7,776
# Webb 2023, Canadian Journal of Economics 56: mean 0, variance 1, and six values instead of the
# two signs, which would allow no p below 2 / 2^S, 0.06 with five seeds
WEIGHTS = tuple(sign * math.sqrt(x) for sign in (-1, 1) for x in (0.5, 1, 1.5))


@dataclass(frozen=True, slots=True)
class CrossedMean:
    """Mean of (S, P) values with its standard error and the degrees of freedom of that.

    Everything is an array (...): of the shape of the stack that the values came in, () for one.
    """

    value: NDArray[np.float64]
    error: NDArray[np.float64]  # inf where nothing is known of other seeds or of other problems
    df: NDArray[np.float64]

    @classmethod
    def of(cls, values_S_P: ArrayLike) -> CrossedMean:
        """Values or a stack of them, (..., S, P). Raises ValueError where there are none."""
        values = np.asarray(values_S_P, dtype=float)
        if values.ndim < 2 or values.size == 0:
            raise ValueError(f"values must be (S, P), got shape {values.shape}")
        seeds, problems = values.shape[-2:]
        mean = values.mean(axis=(-2, -1))
        if min(seeds, problems) < 2:
            return cls(mean, np.full_like(mean, np.inf), np.ones_like(mean))
        seed_means, problem_means = values.mean(axis=-1), values.mean(axis=-2)
        # mean squares; that of the rest by the squares that seeds and problems leave of all
        of_seeds = problems * seed_means.var(axis=-1, ddof=1)
        of_problems = seeds * problem_means.var(axis=-1, ddof=1)
        rest = values.var(axis=(-2, -1)) * seeds * problems
        rest = rest - of_seeds * (seeds - 1) - of_problems * (problems - 1)
        of_rest = rest / ((seeds - 1) * (problems - 1))
        # Var(seed) / S + Var(rest) / (S P), and Var(problem) / P
        by_seeds = of_seeds / (seeds * problems)
        by_problems = np.maximum(0, of_problems - of_rest) / (seeds * problems)
        df = _degrees_of_freedom(by_seeds, seeds - 1, by_problems, problems - 1)
        return cls(mean, np.sqrt(by_seeds + by_problems), df)

    def interval(self, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Student's, which holds the mean over all seeds and problems in `level` of the cases."""
        half = self.error * stdtrit(self.df, (1 + level) / 2)
        return self.value - half, self.value + half

    @property
    def p(self) -> NDArray[np.float64]:
        """Two-sided, of a mean of 0: the interval at level 1 - p just reaches it."""
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # values that are all equal are surely not 0
            size = np.where(self.value == 0, 0.0, np.abs(self.value) / self.error)
        return 2 * stdtr(self.df, -size)


def wild_bootstrap_p(seed_means: ArrayLike) -> float:
    """Two-sided p of a mean of 0 of what S seeds measured on the same problems; (S,).

    Every value is multiplied by a weight of mean 0, so that the hypothesis is true, and the
    Student's t of the outcome compared with that of the values. Unlike Student's test this takes
    the distribution from the values, and no formula for degrees of freedom; it says nothing about
    other problems.
    """
    means = np.asarray(seed_means, dtype=float)
    if not means.any():
        return 1.0
    weights, squares = _weights(len(means))
    # rises with |t|, and is finite where all values are equal; weights of 1 repeat the values
    sizes = np.abs(weights @ means) / np.sqrt(squares @ means**2)
    size = abs(means.sum()) / math.sqrt((means**2).sum())
    return float((sizes >= size * (1 - 1e-9)).mean())


def _degrees_of_freedom(
    by_seeds: NDArray[np.float64], seeds: int, by_problems: NDArray[np.float64], problems: int
) -> NDArray[np.float64]:
    """Satterthwaite's, of the sum of two estimated variances with so many degrees of freedom each.

    His formula goes by the estimated share of the seeds, and few seeds estimate it badly: where
    their spread comes out small by chance, the interval is narrow and is believed as well, and of
    95 % intervals with three seeds as few as 92.8 % cover. Counting the seeds 1 + 4 / s times gives
    95 to 96 % whatever their share, from three seeds on (94 to 96.5 % with two).
    """
    by_seeds = by_seeds * (1 + 4 / seeds)
    total = by_seeds + by_problems
    parts = by_seeds**2 / seeds + by_problems**2 / problems
    return np.divide(total**2, parts, out=np.full_like(parts, seeds), where=parts > 0)


@lru_cache(maxsize=16)
def _weights(seeds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(draws, S) and their squares: all there are, or as many as are drawn after one of 1 each."""
    if seeds <= ENUMERATED:
        weights = np.array(list(itertools.product(WEIGHTS, repeat=seeds)))
    else:
        drawn = np.random.default_rng(0).choice(WEIGHTS, size=(DRAWS, seeds))
        weights = np.vstack([np.ones(seeds), drawn])
    return weights, weights**2
