"""Judge completions and count: shares with intervals, pass@k, majority votes, lengths, slices.

P problems, K samples of each. Every figure is counted on rows that are kept.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from kit.errors import NotFiniteError
from kit.evaluation.reasoning import measures
from kit.evaluation.results import Row
from kit.evaluation.stats import Proportion, majority_at_k, pass_at_k
from kit.model.policy import Policy
from kit.model.rollout import Completion, Request, Sampling, sample
from kit.tasks.answers import parse_number

if TYPE_CHECKING:
    from kit.tasks.problems import ProblemSet

_SHARES = ("strict", "lenient", "format", "truncated")
_OF_PROBLEM = ("id", "question", "answer", "category", "difficulty")
OF_VERDICT = ("strict_answer", "lenient_answer", "strict", "lenient")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy on one data set, one sample per problem."""

    strict: Proportion
    lenient: Proportion
    truncated: Proportion
    mean_tokens: float


def evaluate(
    policy: Policy,
    adapter: str,
    problem_set: ProblemSet,
    sampling: Sampling,
    *,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """One completion per problem, compared with its answer strictly and leniently.

    With an accelerator of several processes each takes a share of the problems and all get the
    result. Raises NotFiniteError with the problem's id, and OutOfMemoryError.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = range(rank, len(problem_set.problems), world)
    problems = [problem_set.problems[i] for i in mine]
    requests = [
        Request(tuple(policy.base.prompt_ids(problem["prompt"])), (seed, i), adapter)
        for i, problem in zip(mine, problems, strict=True)
    ]
    try:
        completions = sample(policy, requests, sampling, progress)
    except NotFiniteError as error:
        raise error.at(f"problem {problems[requests.index(error.request)]['id']}") from error
    rows = judge(problem_set, problems, completions)
    if world > 1:
        rows = gather_object(rows)
    strict, lenient, truncated = (_share(rows, n) for n in ("strict", "lenient", "truncated"))
    mean_tokens = statistics.fmean(row["tokens"] for row in rows)
    return Evaluation(strict, lenient, truncated, mean_tokens)


def judge(
    problem_set: ProblemSet, problems: Sequence[Row], completions: Sequence[Completion]
) -> list[Row]:
    """Each problem with its completion and verdict: docs/results.md, without the sample's key."""
    texts = [completion.text for completion in completions]
    verdicts = problem_set.verifier.verify_many(texts, problems)
    return [
        {
            **{field: problem[field] for field in _OF_PROBLEM},
            "completion": completion.text,
            "tokens": len(completion.tokens),
            "truncated": completion.truncated,
            **{field: getattr(verdict, field) for field in OF_VERDICT},
        }
        for problem, completion, verdict in zip(problems, completions, verdicts, strict=True)
    ]


def summarize(rows: Sequence[Row], *, numbers: bool) -> dict[str, Any]:
    """All figures of one temperature, ready for JSON; docs/results.md explains them.

    `rows` are K samples of each of P problems, in any order, at least one. Where answers are
    `numbers`, 0.5 and 1/2 are one vote; else answers are equal when their texts are.
    """
    rows = sorted(rows, key=lambda row: (row["id"], row["sample"]))  # order decides nothing
    samples = len(rows) // len({row["id"] for row in rows})
    return {
        "temperature": rows[0]["temperature"],
        "samples": samples,
        **{name: _share(rows, name, samples).record() for name in _SHARES},
        "tokens": _lengths([row["tokens"] for row in rows]),
        "pass_at": {
            kind: {
                str(k): pass_at_k(_verdicts(rows, kind, samples), k).record() for k in _ks(samples)
            }
            for kind in ("strict", "lenient")
        },
        "majority_at": {
            kind: _majority(rows, kind, samples, numbers) for kind in ("strict", "lenient")
        },
        "slices": {kind: _slices(rows, kind, samples) for kind in ("category", "difficulty")},
        "reasoning": measures.summarize(rows),
    }


def _verdicts(rows: Sequence[Row], name: str, samples: int = 1) -> np.ndarray:
    """(P, K) of 0 and 1; `format` holds where there is an answer in the strict format."""
    flags = [row["strict_answer"] is not None if name == "format" else row[name] for row in rows]
    return np.array(flags, dtype=int).reshape(-1, samples)


def _share(rows: Sequence[Row], name: str, samples: int = 1) -> Proportion:
    return Proportion.of_samples(_verdicts(rows, name, samples))


def _ks(samples: int) -> list[int]:
    """1, 2, 4, … and `samples`."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def _lengths(tokens: Sequence[int]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(tokens),
        "sd": statistics.stdev(tokens) if len(tokens) > 1 else 0.0,
        "median": statistics.median(tokens),
        "p95": float(np.quantile(tokens, 0.95)),
        "max": max(tokens),
    }


def _majority(rows: Sequence[Row], kind: str, samples: int, numbers: bool) -> dict[str, Any]:
    def vote(answer: str | None) -> Hashable | None:
        if answer is None:
            return None
        return parse_number(answer) if numbers else answer.strip()

    votes = [vote(row[f"{kind}_answer"]) for row in rows]
    by_problem = [votes[i : i + samples] for i in range(0, len(votes), samples)]
    right = _verdicts(rows, kind, samples)
    return {str(k): majority_at_k(by_problem, right, k).record() for k in _ks(samples)}


def _slices(rows: Sequence[Row], kind: str, samples: int) -> dict[str, Any]:
    """Shares within each category or difficulty; problems without one are in no slice."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        if row[kind]:
            members.setdefault(row[kind], []).append(row)
    return {
        name: {
            "n": len(members[name]) // samples,
            "strict": _share(members[name], "strict", samples).record(),
            "lenient": _share(members[name], "lenient", samples).record(),
        }
        for name in sorted(members, key=_natural)
    }


def _natural(name: str) -> list[str]:
    """Sorts '2 steps' before '11 steps'."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
