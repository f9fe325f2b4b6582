"""A judge model compares or scores the completions of result files; its verdicts are counted.

Each pair is judged in both orders. Where the two verdicts disagree the pair is inconsistent and
counts for neither side, so a judge that prefers a position decides nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import ConfigError, ResultsError
from kit.evaluation.results import Key, Row, key_of, read_rows
from kit.evaluation.stats import Estimate, Proportion, bootstrap_mean, sign_test
from kit.files import lock_of, only_one, write_atomically
from kit.preferences.judge_models import JudgeConfig, JudgeModel, open_judge
from kit.preferences.judgements import Judgement, Question, collect
from kit.preferences.rubric import (
    CRITERIA,
    OVERALL,
    pair_messages,
    point_messages,
    read_pair,
    read_points,
)

SCHEMA = 1  # of the summary; raised when a field changes its meaning

# whom "A" and "B" mean in each order
_ORDERS = {
    "left_first": {"A": "left", "B": "right", "tie": "ties"},
    "right_first": {"A": "right", "B": "left", "tie": "ties"},
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one problem."""

    key: Key
    question: str
    answer: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What the judgements took; requests whose tokens the endpoint did not tell are counted."""

    requests: int
    without_tokens: int
    prompt_tokens: int
    completion_tokens: int

    def cost(self, config: JudgeConfig) -> float | None:
        """In the currency of the prices; None where a price is not known."""
        if config.price_input is None or config.price_output is None:
            return None
        tokens_in = self.prompt_tokens * config.price_input
        return (tokens_in + self.completion_tokens * config.price_output) / 1e6

    def __str__(self) -> str:
        unknown = f" ({self.without_tokens} without a count)" if self.without_tokens else ""
        return (
            f"{self.requests} requests, {self.prompt_tokens} tokens in, "
            f"{self.completion_tokens} out{unknown}"
        )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the pairs came out by one criterion."""

    left: int
    right: int
    ties: int
    inconsistent: int  # the two orders disagreed

    @property
    def win_rate(self) -> Proportion:
        """How often left won, of the pairs that were decided."""
        return Proportion(self.left, self.left + self.right)

    @property
    def p(self) -> float:
        return sign_test(self.left, self.right)

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"win_rate": self.win_rate.record(), "p": self.p}


@dataclass(frozen=True, slots=True)
class PairwiseSummary:
    """All pairs. One is malformed or failed when one of its two judgements is."""

    pairs: int
    malformed: int
    failed: int
    outcomes: dict[str, Outcomes]  # overall and by criterion
    first_shown: Proportion  # verdicts for the solution shown first, of those that are no tie
    usage: Usage

    def record(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "malformed": self.malformed,
            "failed": self.failed,
            "outcomes": {name: outcomes.record() for name, outcomes in self.outcomes.items()},
            "first_shown": self.first_shown.record(),
        }

    def __str__(self) -> str:
        lines = [f"{'':14}{'left':>6}{'right':>7}{'ties':>6}{'inconsistent':>14}  left wins"]
        for name, o in self.outcomes.items():
            won = f"{o.win_rate}, p = {o.p:.3g}" if o.win_rate.n else "-"
            lines.append(f"{name:14}{o.left:6}{o.right:7}{o.ties:6}{o.inconsistent:14}  {won}")
        lines.append(f"{self.pairs} pairs, {self.malformed} malformed, {self.failed} failed")
        if self.first_shown.n:
            lines.append(f"position bias: the first shown won {self.first_shown} (unbiased: 50 %)")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class PointwiseSummary:
    """Scores from 1 to 5."""

    completions: int
    malformed: int
    failed: int
    scores: dict[str, Estimate | None]  # mean by criterion; None without any score
    usage: Usage

    @property
    def scored(self) -> int:
        return self.completions - self.malformed - self.failed

    def record(self) -> dict[str, Any]:
        return {
            "completions": self.completions,
            "scored": self.scored,
            "malformed": self.malformed,
            "failed": self.failed,
            "scores": {name: mean and mean.record() for name, mean in self.scores.items()},
        }

    def __str__(self) -> str:
        lines = [
            f"{name:14}{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
            for name, mean in self.scores.items()
            if mean is not None
        ]
        counts = f"{self.scored} scored, {self.malformed} malformed, {self.failed} failed"
        return "\n".join([*lines, counts])


def judge_pairs(judge: JudgeModel, pairs: Sequence[Pair], path: Path) -> PairwiseSummary:
    """Ask about each pair in both orders, keep the judgements in `path`, and count them."""
    questions = []
    for pair in pairs:
        for order in _ORDERS:
            shown = (pair.left, pair.right) if order == "left_first" else (pair.right, pair.left)
            messages = pair_messages(pair.question, pair.answer, *shown)
            questions.append(Question(pair.key, order, messages))
    judgements = collect(judge, questions, path, read_pair)
    both = list(zip(judgements[::2], judgements[1::2], strict=True))
    statuses = Counter(_status_of_pair(first, second) for first, second in both)
    shown_first = [
        judgement.verdict[OVERALL] == "A"
        for judgement in judgements
        if judgement.verdict is not None and judgement.verdict[OVERALL] != "tie"
    ]
    return PairwiseSummary(
        pairs=len(pairs),
        malformed=statuses["malformed"],
        failed=statuses["failed"],
        outcomes={name: _outcomes(both, name) for name in (OVERALL, *CRITERIA)},
        first_shown=Proportion(sum(shown_first), len(shown_first)),
        usage=_usage(judgements),
    )


def judge_points(judge: JudgeModel, rows: Sequence[Row], path: Path) -> PointwiseSummary:
    """Ask for scores of each row's completion, keep the judgements in `path`, and average."""
    questions = [
        Question(key_of(r), None, point_messages(r["question"], str(r["answer"]), r["completion"]))
        for r in rows
    ]
    judgements = collect(judge, questions, path, read_points)
    statuses = Counter(judgement.status for judgement in judgements)
    verdicts = [judgement.verdict for judgement in judgements if judgement.verdict is not None]
    return PointwiseSummary(
        completions=len(rows),
        malformed=statuses["malformed"],
        failed=statuses["failed"],
        scores={
            name: bootstrap_mean([verdict[name] for verdict in verdicts]) if verdicts else None
            for name in CRITERIA
        },
        usage=_usage(judgements),
    )


def run_judge(
    left_jsonl: Path,
    right_jsonl: Path | None,
    output: Path,
    config: JudgeConfig,
    limit: int | None = None,
) -> PairwiseSummary | PointwiseSummary:
    """Compare the completions of two result files, or score those of one; print a table.

    Of each problem one completion is judged, the first sample at the lowest temperature, because
    several of one problem are not independent. `limit`: only this many problems, chosen by a hash
    of their ids, so that any two files give the same ones. Writes <output>.jsonl, every judgement,
    and <output>.json, the summary.

    Raises ResultsError for files that cannot be compared, ConfigError and ModelError for a judge
    that cannot be asked.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    left = _rows(left_jsonl)
    right = left if right_jsonl is None else _rows(right_jsonl)
    keys = _chosen(left.keys() & right.keys(), limit)
    if not keys:
        raise ResultsError(
            f"{left_jsonl} and {right_jsonl or 'itself'} have no completion of one problem, "
            "temperature and sample in common; evaluate both with the same settings"
        )
    pairs = [_pair(left[key], right[key]) for key in keys] if right_jsonl else []
    path = output.with_name(output.name + ".json")
    busy = ResultsError(f"another kit judge writes {path}; wait for it, or choose another --output")
    with ExitStack() as held:
        with _writing(path):
            held.enter_context(only_one(lock_of(path), busy))
        judge = open_judge(config)
        judgements = output.with_name(output.name + ".jsonl")
        summary: PairwiseSummary | PointwiseSummary
        if right_jsonl is None:
            summary = judge_points(judge, [left[key] for key in keys], judgements)
        else:
            summary = judge_pairs(judge, pairs, judgements)
        cost = summary.usage.cost(config)
        record = {
            "schema": SCHEMA,
            "kind": "points" if right_jsonl is None else "pairs",
            "judge": config.model,
            "left": str(left_jsonl),
            "right": None if right_jsonl is None else str(right_jsonl),
            "limit": limit,
            "settings": config.model_dump(),
            **summary.record(),
            "usage": {**dataclasses.asdict(summary.usage), "cost": cost},
        }
        with _writing(path):
            write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"{summary}\n{config.model}: {summary.usage}", end="")
    print(f", cost {cost:.4g} -> {path}" if cost is not None else f" -> {path}")
    return summary


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}") from error


def _rows(path: Path) -> dict[Key, Row]:
    return {key_of(row): row for row in read_rows(path)}


def _chosen(keys: Iterable[Key], limit: int | None) -> list[Key]:
    """One key of each problem: the lowest temperature, then the first sample."""
    first: dict[str, Key] = {}
    for key in sorted(keys, key=lambda key: key[1:]):
        first.setdefault(key[0], key)
    ordered = sorted(first.values(), key=lambda key: hashlib.sha256(key[0].encode()).digest())
    return ordered[:limit]


def _pair(left: Row, right: Row) -> Pair:
    for field in ("question", "answer"):
        if left[field] != right[field]:
            raise ResultsError(
                f"problem {left['id']!r} has another {field} in the two files: {left[field]!r} and "
                f"{right[field]!r}; they are not of one data set"
            )
    return Pair(
        key=key_of(left),
        question=left["question"],
        answer=str(left["answer"]),
        left=left["completion"],
        right=right["completion"],
    )


def _status_of_pair(first: Judgement, second: Judgement) -> str:
    statuses = {first.status, second.status}
    return next((s for s in ("failed", "malformed") if s in statuses), "judged")


def _outcomes(both: Iterable[tuple[Judgement, Judgement]], name: str) -> Outcomes:
    """`both`: the judgements of each pair, left first and right first."""
    counts: Counter[str] = Counter()
    for left_first, right_first in both:
        if left_first.verdict is not None and right_first.verdict is not None:
            one = _ORDERS["left_first"][left_first.verdict[name]]
            other = _ORDERS["right_first"][right_first.verdict[name]]
            counts[one if one == other else "inconsistent"] += 1
    return Outcomes(
        left=counts["left"],
        right=counts["right"],
        ties=counts["ties"],
        inconsistent=counts["inconsistent"],
    )


def _usage(judgements: Sequence[Judgement]) -> Usage:
    replies = [judgement.reply for judgement in judgements]
    return Usage(
        requests=len(replies),
        without_tokens=sum(None in (r.prompt_tokens, r.completion_tokens) for r in replies),
        prompt_tokens=sum(r.prompt_tokens or 0 for r in replies),
        completion_tokens=sum(r.completion_tokens or 0 for r in replies),
    )
