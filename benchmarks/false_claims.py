"""How often `kit report` claims a difference that is not there, and how often its intervals hold.

    python benchmarks/false_claims.py claims      # the report's rule, beside the one before it
    python benchmarks/false_claims.py coverage    # the interval, over many designs
    python benchmarks/false_claims.py claims --shift 0.5    # where there is one: how often seen
    python benchmarks/false_claims.py study       # the design of kit study: rates are tuned first

Simulated are evaluations of two arms, of an arm and the base, or of one arm alone (against nothing:
the interval of its accuracy), on the same problems. The log-odds that one answer is right are

    centre + problem + seed of the arm + liking of the arm for the problem (+ shift of the first)

where problem, seed and liking are normal with the spreads given. The base is one model: it has no
seed, and one answer for all seeds of the arm. The truth is the difference of accuracies over all
seeds and problems. A claim is made by `kit.evaluation.stats` as the report makes it, with Holm's
correction over the data sets of a family, which have problems and seeds' effects of their own.
Options take several values, separated by commas; a row is the mean over the combinations of all
it does not name, and every combination draws the same numbers whatever else is asked for.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from kit.evaluation.crossed import CrossedMean
from kit.evaluation.stats import LEVEL, SMALL_P, family_p, holm, paired_difference

Array = NDArray[np.float64]
POINTS, SHARES = np.polynomial.hermite_e.hermegauss(64)  # of the normal distribution
DEFAULTS: dict[str, dict[str, Any]] = {
    "claims": {
        **{"against": "arm", "seeds": "2,3,5,8,10", "spread": "0,0.25,0.5,1", "problems": "200"},
        **{"accuracy": "0.5", "samples": "1", "problem_spread": "1.5", "liking": "0", "shift": "0"},
        "simulations": 2000,
    },
    "coverage": {
        **{"against": "arm,base,nothing", "seeds": "2,3,5,8,10", "spread": "0,0.25,0.5,1"},
        **{"problems": "50,200,1000", "accuracy": "0.1,0.5,0.9", "samples": "1,4"},
        **{"problem_spread": "1.5", "liking": "0,0.7", "shift": "0,0.7"},
        "simulations": 150,
    },
}
WORSE = "log-odds that the two rates beside the best one lose"
QUESTION = 6  # comparisons that are corrected together
PROBLEMS = 400
RESAMPLES = 500  # of the method that was replaced; it drew 10,000


@dataclass(frozen=True, slots=True)
class Design:
    """One combination of what is simulated; spreads and shift in log-odds."""

    against: str  # arm, base or nothing
    seeds: int
    spread: float  # of training seeds
    problems: int
    accuracy: float  # of the second arm, or of an only one without its shift
    samples: int  # of each problem
    problem_spread: float
    liking: float  # spread of how problems suit one arm and not the other
    shift: float  # of the first arm

    @property
    def centre(self) -> float:
        """The log-odds around which the second arm has its accuracy."""
        return brentq(lambda x: self._mean(x, self._second) - self.accuracy, -40, 40)

    @property
    def truth(self) -> float:
        """Difference of the accuracies over all seeds and problems."""
        first = self._mean(self.centre + self.shift, self.spread)
        return first if self.against == "nothing" else first - self.accuracy

    @property
    def _second(self) -> float:
        return 0.0 if self.against == "base" else self.spread

    def _mean(self, centre: float, spread: float) -> float:
        total = np.sqrt(spread**2 + self.problem_spread**2 + self.liking**2)
        return float((SHARES * expit(centre + total * POINTS)).sum() / SHARES.sum())

    def generator(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(repr(self).encode())])

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Mean verdicts of both, (n, S, P) each, of n evaluations."""
        problems = self.problem_spread * rng.normal(size=(n, 1, self.problems)) + self.centre
        first = self.answers(problems + self.shift, self.spread, self.seeds, rng)
        if self.against == "arm":
            return first, self.answers(problems, self.spread, self.seeds, rng)
        if self.against == "nothing":
            return first, np.zeros_like(first)
        base = self.answers(problems, 0.0, 1, rng)
        return first, np.broadcast_to(base, first.shape)

    def answers(self, log_odds: Array, spread: float, seeds: int, rng) -> Array:
        liking = self.liking * rng.normal(size=log_odds.shape)
        chance = expit(log_odds + liking + spread * rng.normal(size=(len(log_odds), seeds, 1)))
        return rng.binomial(self.samples, chance) / self.samples


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    started = time.perf_counter()
    tables = {"claims": claims, "coverage": coverage, "study": study}
    table = tables[options.table](options)
    print("\n".join(table))
    print(f"\n{time.perf_counter() - started:.0f} s", file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    tables = parser.add_subparsers(dest="table", required=True)
    for name, defaults in DEFAULTS.items():
        table = tables.add_parser(name)
        for field in fields(Design):
            kind = {"int": int, "float": float, "str": opponent}[str(field.type)]
            option = f"--{field.name.replace('_', '-')}"
            table.add_argument(option, type=several(kind), default=defaults[field.name])
        table.add_argument("--data-sets", type=int, default=4, help="in a family")
        simulations = defaults["simulations"]
        table.add_argument("--simulations", type=int, default=simulations, help="of each design")
        table.add_argument("--seed", type=int, default=0)
    table = tables.add_parser("study")
    table.add_argument("--seeds", type=several(int), default="5,8", help="fresh ones")
    table.add_argument("--spread", type=several(float), default="0.1,0.25,0.5")
    table.add_argument("--worse", type=several(float), default="0,0.25,0.5", help=WORSE)
    table.add_argument("--tuning-seeds", type=int, default=1)
    table.add_argument("--validation", type=int, default=160, help="problems rates are tuned on")
    table.add_argument("--simulations", type=int, default=500)
    table.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def opponent(text: str) -> str:
    if text not in ("arm", "base", "nothing"):
        raise argparse.ArgumentTypeError(f"must be arm, base or nothing, got {text!r}")
    return text


def several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",")]


def designs(options: argparse.Namespace) -> Iterator[Design]:
    """All combinations; says how far it is."""
    names = [field.name for field in fields(Design)]
    everything = list(itertools.product(*(getattr(options, name) for name in names)))
    said = -1
    for number, values in enumerate(everything):
        tenths = 10 * number // len(everything)
        if tenths > said:
            print(f"{number} of {len(everything)} designs", file=sys.stderr, flush=True)
            said = tenths
        yield Design(*values)


# --- claims ---------------------------------------------------------------------------------------


def claims(options: argparse.Namespace) -> list[str]:
    """Shares of claims, in %: today's rule beside the one before, alone and in families."""
    found: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    for design in designs(options):
        rates = claim_rates(design, options.simulations, options.data_sets, options.seed)
        found[design.against, design.seeds, design.spread].append(rates)
    names = list(next(iter(found.values()))[0])
    lines = [row("against", "seeds", "spread", *names), row(*["---"] * (len(names) + 3))]
    for key, rates in found.items():
        lines.append(row(*key, *(percent(np.mean([r[name] for r in rates])) for name in names)))
    return lines


def claim_rates(design: Design, simulations: int, data_sets: int, seed: int) -> dict[str, float]:
    """Shares of simulations that show a difference, and of intervals that hold the truth."""
    rng = design.generator(seed)
    family = [design.draw(simulations, rng) for _ in range(data_sets)]
    hits: dict[str, list[bool]] = defaultdict(list)
    for i in range(simulations):
        pairs = [(a[i], b[i]) for a, b in family]
        low, high, p = replaced(pairs[0][0] - pairs[0][1])
        hits["before: shown"].append(p < SMALL_P and (low > 0 or high < 0))
        hits["before: covered"].append(low <= design.truth <= high)
        differences = [paired_difference(a, b) for a, b in pairs]
        d = differences[0]
        hits["covered"].append(d.low <= design.truth <= d.high)
        hits["p below 0.05"].append(d.p < SMALL_P)
        hits["shown"].append(d.is_shown(d.p))
        corrected = holm([d.p for d in differences])
        shown = [d.is_shown(p) for d, p in zip(differences, corrected, strict=True)]
        hits[f"any of {data_sets} shown"].append(any(shown))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def replaced(difference: Array) -> tuple[float, float, float]:
    """Interval and p of the rule before: seeds and problems drawn with replacement; (S, P)."""
    if len(difference) == 1:  # nothing has changed there
        same = paired_difference(difference > 0, difference < 0)
        return same.low, same.high, same.p
    seeds, problems = difference.shape
    rng = np.random.default_rng(0)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    kinds, counts = np.unique(difference.T, axis=0, return_counts=True)
    columns = rng.multinomial(problems, counts / problems, size=RESAMPLES) / problems
    means = ((rows @ kinds.T) * columns).sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rarer = min((means <= 0).sum(), (means >= 0).sum())
    return low, high, min(1.0, 2 * (rarer + 1) / (RESAMPLES + 1))


# --- studies --------------------------------------------------------------------------------------


def study(options: argparse.Namespace) -> list[str]:
    """Shares, in %, for arms that are equal in truth, each with a rate of its own that is tuned."""
    names = ["covered", "p below 0.05", "shown", f"any of {QUESTION} shown", "other rate"]
    lines = [row("seeds", "spread", "worse", *names), row(*["---"] * (len(names) + 3))]
    for seeds, spread, worse in itertools.product(options.seeds, options.spread, options.worse):
        design = Design("arm", seeds, spread, PROBLEMS, 0.5, 1, 1.5, 0.0, 0.0)
        rng = design.generator(options.seed)
        found = [
            study_rates(design, worse, options.tuning_seeds, options.validation, rng)
            for _ in range(options.simulations)
        ]
        lines.append(row(seeds, spread, worse, *map(percent, np.mean(found, axis=0))))
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def study_rates(
    design: Design, worse: float, tuning_seeds: int, validation: int, rng: np.random.Generator
) -> list[float]:
    """One question of comparisons: what `study` names, of the first of them where it is of one."""
    lost = np.array(
        [
            [tuned(design, worse, tuning_seeds, validation, rng) for _ in range(QUESTION)]
            for _ in range(2)
        ]
    )
    pairs = []
    for arm in range(QUESTION):
        problems = design.problem_spread * rng.normal(size=(1, 1, design.problems)) + design.centre
        pairs.append(
            [
                design.answers(problems + lost[side, arm], design.spread, design.seeds, rng)[0]
                for side in range(2)
            ]
        )
    differences = [paired_difference(a, b) for a, b in pairs]
    corrected = family_p(differences)
    shown = [d.is_shown(p) for d, p in zip(differences, corrected, strict=True)]
    d = differences[0]
    covers = d.low <= 0 <= d.high
    return [covers, d.p < SMALL_P, d.is_shown(d.p), any(shown), lost[0, 0] != lost[1, 0]]


def tuned(
    design: Design, worse: float, seeds: int, validation: int, rng: np.random.Generator
) -> float:
    """Log-odds that the rate of three loses which does best on the validation problems."""
    offers = [-worse, 0.0, -worse]
    problems = design.problem_spread * rng.normal(size=(1, 1, validation)) + design.centre
    scores = [
        design.answers(problems + offer, design.spread, seeds, rng).mean() for offer in offers
    ]
    return offers[int(np.argmax(scores))]


# --- coverage -------------------------------------------------------------------------------------


def coverage(options: argparse.Namespace) -> list[str]:
    """Shares of intervals that hold the truth, in %, by seeds and by each of the other settings."""
    found = {}
    for design in designs(options):
        found[design] = covered(design, options.simulations, options.seed)
    lines = []
    for against in options.against:
        mine = {design: share for design, share in found.items() if design.against == against}
        lines += ["", row(f"against {against}", "", *(f"{s} seeds" for s in options.seeds))]
        lines.append(row(*["---"] * (len(options.seeds) + 2)))
        for name in [f.name for f in fields(Design) if f.name not in ("against", "seeds")]:
            for value in getattr(options, name):
                shares: dict[int, list[float]] = defaultdict(list)
                for design, share in mine.items():
                    if getattr(design, name) == value:
                        shares[design.seeds].append(share)
                means = (percent(np.mean(shares[s])) for s in options.seeds)
                lines.append(row(name.replace("_", " "), value, *means))
    return lines


def covered(design: Design, simulations: int, seed: int) -> float:
    """Share of simulations whose interval holds the truth."""
    rng, hits = design.generator(seed), 0
    most = max(1, 4_000_000 // (design.seeds * design.problems))  # in memory at once
    for start in range(0, simulations, most):
        a, b = design.draw(min(most, simulations - start), rng)
        low, high = CrossedMean.of(a - b).interval(LEVEL)
        hits += int(((low <= design.truth) & (design.truth <= high)).sum())
    return hits / simulations


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
