"""Measure accuracy on a data set, with an interval, for the base or any adapter.

Every figure comes with the completions it was counted on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.stats import binomtest

from kit.policy import Policy
from kit.rollout import Request, Sampling, sample
from kit.runs import append_json, write_atomically

if TYPE_CHECKING:
    from kit.data import ProblemSet

SCHEMA = 1  # of the result files; raised when a field changes its meaning


@dataclass(frozen=True, slots=True)
class Proportion:
    """`count` of `n`, with Wilson's 95 % interval."""

    count: int
    n: int

    @property
    def value(self) -> float:
        return self.count / self.n

    @property
    def interval(self) -> tuple[float, float]:
        bounds = binomtest(self.count, self.n).proportion_ci(method="wilson")
        return float(bounds.low), float(bounds.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy on one data set. `rows` holds each problem, completion and verdict."""

    data: str
    adapter: str
    strict: Proportion
    lenient: Proportion
    format: Proportion  # completions that hold an answer in the strict format
    truncated: Proportion
    mean_tokens: float
    rows: list[dict[str, Any]]

    def summary(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        shares = {
            name: {"value": p.value, "ci95": list(p.interval), "count": p.count}
            for name, p in (
                ("strict", self.strict),
                ("lenient", self.lenient),
                ("format", self.format),
                ("truncated", self.truncated),
            )
        }
        return {
            "schema": SCHEMA,
            "data": self.data,
            "adapter": self.adapter,
            "n": self.strict.n,
            **shares,
            "mean_tokens": self.mean_tokens,
        }


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
    result.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = range(rank, len(problem_set.problems), world)
    problems = [problem_set.problems[i] for i in mine]
    requests = [
        Request(tuple(policy.base.prompt_ids(problem["prompt"])), (seed, i), adapter)
        for i, problem in zip(mine, problems, strict=True)
    ]
    completions = sample(policy, requests, sampling, progress)
    texts = [completion.text for completion in completions]
    verdicts = problem_set.verifier.verify_many(texts, problems)
    rows = [
        {
            "index": i,
            "id": problem["id"],
            "question": problem["question"],
            "answer": problem["answer"],
            "completion": completion.text,
            "tokens": len(completion.tokens),
            "truncated": completion.truncated,
            "strict_answer": verdict.strict_answer,
            "lenient_answer": verdict.lenient_answer,
            "strict": verdict.strict,
            "lenient": verdict.lenient,
        }
        for i, problem, completion, verdict in zip(
            mine, problems, completions, verdicts, strict=True
        )
    ]
    if world > 1:
        rows = sorted(gather_object(rows), key=lambda row: row["index"])
    return summarize(problem_set.name, adapter, rows)


def summarize(data: str, adapter: str, rows: Sequence[dict[str, Any]]) -> Evaluation:
    """Count verdicts; `rows` as `evaluate` makes them, at least one."""

    def share(holds: Callable[[dict[str, Any]], bool]) -> Proportion:
        return Proportion(sum(bool(holds(row)) for row in rows), len(rows))

    return Evaluation(
        data=data,
        adapter=adapter,
        strict=share(lambda row: row["strict"]),
        lenient=share(lambda row: row["lenient"]),
        format=share(lambda row: row["strict_answer"] is not None),
        truncated=share(lambda row: row["truncated"]),
        mean_tokens=statistics.fmean(row["tokens"] for row in rows),
        rows=list(rows),
    )


def write_evaluation(folder: Path, evaluation: Evaluation, **settings: Any) -> Path:
    """Write `<data>.json` (figures and settings) and `<data>.jsonl` (every completion)."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = evaluation.data.replace("/", "_").replace(":", "_")
    rows = folder / f"{stem}.jsonl"
    rows.unlink(missing_ok=True)
    append_json(rows, evaluation.rows)
    path = folder / f"{stem}.json"
    record = evaluation.summary() | {"settings": settings}
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return path
