"""A judge model compares or scores the completions of result files; its verdicts are counted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import ConfigError, ResultsError
from kit.evaluation.results import Key, Row, claimed, key_of, read_rows, writing
from kit.files import write_atomically
from kit.preferences.judge_models import JudgeConfig, JudgeModel, open_judge
from kit.preferences.judgements import Judgement, Question, collect, read_judgements
from kit.preferences.rubric import (
    OVERALL,
    Messages,
    pair_messages,
    point_messages,
    read_pair,
    read_points,
)
from kit.preferences.summaries import ORDERS, PairwiseSummary, PointwiseSummary, outcome_of
from kit.reading import parse_json

SCHEMA = 1  # of the summary; raised when a field changes its meaning
NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one problem."""

    key: Key
    question: str
    answer: str
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge has said of the pairs of two result files."""

    judge: str  # the model
    left: Path  # the completions
    right: Path
    outcomes: list[tuple[Pair, str]]  # left, right, ties, inconsistent, or not judged


def judge_pairs(judge: JudgeModel, pairs: Sequence[Pair], path: Path) -> PairwiseSummary:
    """Ask about each pair in both orders, keep the judgements in `path`, and count them."""
    return PairwiseSummary.of(collect(judge, _questions(pairs), path, read_pair))


def _questions(pairs: Sequence[Pair]) -> list[Question]:
    return [Question(p.key, order, _messages(p, order)) for p in pairs for order in ORDERS]


def _messages(pair: Pair, order: str) -> Messages:
    shown = (pair.left, pair.right) if order == "left_first" else (pair.right, pair.left)
    return pair_messages(pair.question, pair.answer, *shown)


def judge_points(judge: JudgeModel, rows: Sequence[Row], path: Path) -> PointwiseSummary:
    """Ask for scores of each row's completion, keep the judgements in `path`, and average."""
    questions = [
        Question(key_of(r), None, point_messages(r["question"], str(r["answer"]), r["completion"]))
        for r in rows
    ]
    return PointwiseSummary.of(collect(judge, questions, path, read_points))


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
    if output.name in ("", ".."):
        raise ConfigError(
            f"--output is {str(output)!r}; name the files to be written, as runs/judged"
        )
    left, right = _matched(left_jsonl, right_jsonl, limit)
    pairs = list(map(_pair, left, right)) if right_jsonl else []
    path = output.with_name(output.name + ".json")
    judgements = path.with_suffix(".jsonl")
    summary: PairwiseSummary | PointwiseSummary
    busy = f"another kit judge writes {path}; wait for it, or choose another --output"
    with claimed(path, busy):
        judge = open_judge(config)
        if pairs:
            summary = judge_pairs(judge, pairs, judgements)
        else:
            summary = judge_points(judge, left, judgements)
        about = {"left": str(left_jsonl), "right": right_jsonl and str(right_jsonl), "limit": limit}
        _write(path, summary, config, about)
    cost = summary.usage.cost(config)
    paid = "" if cost is None else f", cost {cost:.4g}"
    print(f"{summary}\n{config.model}: {summary.usage}{paid} -> {path}")
    return summary


def _write(
    path: Path,
    summary: PairwiseSummary | PointwiseSummary,
    config: JudgeConfig,
    about: dict[str, Any],
) -> None:
    record = {
        "schema": SCHEMA,
        "kind": "pairs" if isinstance(summary, PairwiseSummary) else "points",
        "judge": config.model,
        **about,
        "settings": config.model_dump(),
        **summary.record(),
        "usage": dataclasses.asdict(summary.usage) | {"cost": summary.usage.cost(config)},
    }
    with writing(path):
        write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def read_judged(path: Path) -> Judged:
    """What the judgements beside a summary say, overall; `path` is the summary.

    Raises ResultsError where it is none of pairs, where files it names are gone, and where the
    judgements are of other completions than those hold.
    """
    try:
        record = parse_json(path.read_bytes())
        config = JudgeConfig.model_validate(record["settings"])
        left, right = Path(record["left"]), record["right"] and Path(record["right"])
        if (limit := record["limit"]) is not None and type(limit) is not int:
            raise ValueError("limit is no number")
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ResultsError(f"{path} is no summary that kit judge wrote") from None
    if right is None:
        raise ResultsError(
            f"{path} scores the completions of one result; for pairs name two: kit judge RUN RUN"
        )
    pairs = list(map(_pair, *_matched(left, right, limit)))
    judgements = read_judgements(
        config.signature, _questions(pairs), path.with_suffix(".jsonl"), read_pair
    )
    outcomes = [
        _outcome(first, second)
        for first, second in zip(judgements[::2], judgements[1::2], strict=True)
    ]
    return Judged(config.model, left, right, list(zip(pairs, outcomes, strict=True)))


def _outcome(left_first: Judgement | None, right_first: Judgement | None) -> str:
    one, other = left_first and left_first.verdict, right_first and right_first.verdict
    return outcome_of(one, other, OVERALL) if one and other else NOT_JUDGED


def _matched(
    left_jsonl: Path, right_jsonl: Path | None, limit: int | None
) -> tuple[list[Row], list[Row]]:
    """The rows that are judged, of both files in one order; left twice where it is alone."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    left = _rows(left_jsonl)
    right = left if right_jsonl is None else _rows(right_jsonl)
    keys = _chosen(left.keys() & right.keys(), limit)
    if not left:
        raise ResultsError(f"{left_jsonl} has no completion yet; finish its evaluation")
    if not keys:
        raise ResultsError(
            f"{left_jsonl} and {right_jsonl} have no completion of one problem, temperature and "
            "sample in common; evaluate both with the same settings"
        )
    return [left[key] for key in keys], [right[key] for key in keys]


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
