"""Before step 0: does the model as it is give reinforcement learning anything to learn from?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kit.config import PREFLIGHT_SAMPLES as SAMPLES
from kit.config import RolloutConfig, TrainConfig
from kit.errors import NotFiniteError, TrainingError
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from kit.tasks.rewards import Reward
from kit.training.objectives import has_signal

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

SEED_STREAM = 1_000_003  # keeps these samples apart from those of training
TRUNCATED_WARNING = 0.3


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a look at the untrained policy found; shares are of completions or groups."""

    problems: int
    strict: float
    lenient: float
    format_rate: float
    truncated: float
    reward: float
    groups_with_signal: float
    examples: list[tuple[str, str, str]]  # question, gold answer, completion

    def __str__(self) -> str:
        shown = "\n".join(
            f"--- {question}\n    gold answer: {gold}\n{completion}"
            for question, gold, completion in self.examples
        )
        return (
            f"Before training, {SAMPLES} answers sampled to each of {self.problems} problems: "
            f"{self.strict:.1%} right strictly (as '#### <number>'), "
            f"{self.lenient:.1%} leniently, {self.format_rate:.1%} in the format, "
            f"{self.truncated:.1%} truncated; mean reward {self.reward:.3f}, "
            f"{self.groups_with_signal:.0%} of groups carry a signal.\n{shown}\n---"
        )


def preflight(
    rollout_config: RolloutConfig,
    train_config: TrainConfig,
    policy: Policy,
    problems: Dataset,
    reward: Reward,
) -> Preflight:
    """Sample a few dozen problems; raises TrainingError with advice when no group differs."""
    count = min(train_config.preflight_problems, len(problems))
    rows = [problems[i] for i in range(count) for _ in range(SAMPLES)]
    requests = [
        Request(
            tuple(policy.base.prompt_ids(row["prompt"])),
            (train_config.seed, SEED_STREAM, i),
            policy.trained,
        )
        for i, row in enumerate(rows)
    ]
    try:
        completions = sample(policy, requests, Sampling.from_config(rollout_config))
    except NotFiniteError as error:
        problem = rows[requests.index(error.request)]["id"]
        raise error.at(f"before training, problem {problem}") from error
    texts = [completion.text for completion in completions]
    scores = reward([row["prompt"] for row in rows], texts, rows)
    # as exactly as training compares them
    signal = has_signal(torch.tensor(scores.total, dtype=torch.float64).view(count, SAMPLES))

    def share(flags: list[bool]) -> float:
        return sum(flags) / len(flags)

    found = Preflight(
        problems=count,
        strict=share([verdict.strict for verdict in scores.verdicts]),
        lenient=share([verdict.lenient for verdict in scores.verdicts]),
        format_rate=share([verdict.has_format for verdict in scores.verdicts]),
        truncated=share([completion.truncated for completion in completions]),
        reward=sum(scores.total) / len(scores.total),
        groups_with_signal=share(signal.tolist()),
        examples=[
            (rows[i]["question"], rows[i]["answer"], texts[i])
            for i in range(0, min(3, count) * SAMPLES, SAMPLES)
        ],
    )
    if found.truncated > TRUNCATED_WARNING:
        log.warning(
            "%.0f %% of the completions are cut off at rollout.max_new_tokens=%d: most rewards "
            "are lost; raise it",
            100 * found.truncated,
            rollout_config.max_new_tokens,
        )
    if not signal.any():
        raise TrainingError(_advice(found))
    return found


def _advice(found: Preflight) -> str:
    if found.reward > 0 and found.strict > 0.95:
        why = "the model already solves these problems; choose harder ones"
    elif found.lenient > 0.05 and found.format_rate < 0.01:
        why = (
            "answers are right but never in the '#### <number>' format: set reward.strict=false, "
            "use an Instruct model, or start from a short `method: sft` run (model.adapter=…)"
        )
    elif found.truncated > TRUNCATED_WARNING:
        why = "most completions are cut off: raise rollout.max_new_tokens"
    else:
        why = (
            "the model is almost never right: choose easier problems or a larger model, or start "
            "from a short `method: sft` run (model.adapter=…)"
        )
    return f"{found}\nNo group of completions differs in reward, so nothing can be learned: {why}"
