"""What a step writes down: metrics, samples, and rows that were not finite.

All are plain values, ready for JSON; docs/metrics.md explains the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kit.tasks.rewards import Scores
from kit.training.groups import Rollout
from kit.training.optimizer import UpdateResult

Record = dict[str, Any]


def completion_metrics(rollout: Rollout, scores: Scores) -> list[dict[str, float]]:
    """Of every completion, what is averaged over the step."""
    rows = zip(scores.verdicts, rollout.completions, strict=True)
    return [
        {
            "accuracy/strict": float(verdict.strict),
            "accuracy/lenient": float(verdict.lenient),
            "completion/format_rate": float(verdict.has_format),
            "completion/mean_tokens": float(len(completion.tokens)),
            "completion/truncated_share": float(completion.truncated),
            **{f"reward/{name}": values[i] for name, values in scores.parts.items()},
            **_adherence(scores, i),
        }
        for i, (verdict, completion) in enumerate(rows)
    ]


def _adherence(scores: Scores, index: int) -> dict[str, float]:
    """Of the guidelines that apply to one completion."""
    return {
        f"adherence/{name}": value
        for name, values in scores.adherence.items()
        if (value := values[index]) is not None
    }


def means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each key over the records that have it."""
    keys = dict.fromkeys(key for record in records for key in record)
    return {
        key: float(np.mean([record[key] for record in records if key in record])) for key in keys
    }


def update_metrics(results: Sequence[UpdateResult]) -> dict[str, float]:
    """Of the updates of one step."""
    return {
        "update/skipped": 0.0,
        "update/grad_norm": float(np.mean([result.grad_norm for result in results])),
        "update/learning_rate": results[-1].learning_rate,
        "update/not_finite": float(sum(not result.applied for result in results)),
    }


def single_update_metrics(result: UpdateResult, tokens_per_second: float) -> dict[str, float]:
    """Of a step of one update that nothing was sampled for."""
    return {
        "update/grad_norm": result.grad_norm,
        "update/learning_rate": result.learning_rate,
        "update/not_finite": float(not result.applied),
        "time/update_tokens_per_second": tokens_per_second,
    }


def sample_records(
    step: int, rollout: Rollout, scores: Scores, rows: Iterable[int]
) -> list[Record]:
    """Lines of samples.jsonl for these rows; `step` counts from 0."""
    return [
        {
            "step": step + 1,
            "id": rollout.problems[i]["id"],
            "question": rollout.problems[i]["question"],
            "answer": rollout.problems[i]["answer"],
            "completion": rollout.completions[i].text,
            "reward": scores.total[i],
            "parts": {name: values[i] for name, values in scores.parts.items()},
            "advantage": rollout.advantages[i].item(),
            "strict": scores.verdicts[i].strict,
            "lenient": scores.verdicts[i].lenient,
            "truncated": rollout.completions[i].truncated,
        }
        for i in rows
    ]


def nonfinite_records(step: int, rollout: Rollout, process: int) -> list[Record]:
    """Lines of nonfinite.jsonl; `step` counts from 0."""
    rows = zip(rollout.problems, rollout.prompts, rollout.completions, strict=True)
    return [
        {
            "step": step + 1,
            "process": process,
            "id": problem["id"],
            "prompt_tokens": list(prompt),
            "completion_tokens": completion.tokens,
            "sampler_logprobs": completion.logprobs,
        }
        for problem, prompt, completion in rows
    ]
