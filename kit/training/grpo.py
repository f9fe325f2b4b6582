"""The GR-PSPO step: sample groups, score them, and update the adapter on what they say.

P prompts of this process, G completions per prompt, B = P * G rows, T completion tokens.

    requests   = G completions for each problem of the step; whoever runs the loop samples them
    rewards    = score the completions
    advantages = compare each completion with its group
    base       = one pass with the adapter off: old-policy reference, KL reference, drift monitor
    for each update: loss = objective(policy, old, advantages); step

Deviations from the papers are listed in kit.training.objectives.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from kit.config import Config
from kit.model.batching import make_batch, pad_values
from kit.model.finite import watched
from kit.model.policy import Policy
from kit.model.rollout import Completion, Request, Sampled, count_tokens
from kit.runs import RunFolder
from kit.tasks.rewards import Reward, Scores
from kit.training.objectives import (
    Denominator,
    LossInputs,
    TokenStats,
    diagnostics,
    group_advantages,
    has_signal,
    policy_loss,
)
from kit.training.optimizer import Optimizer, UpdateResult

if TYPE_CHECKING:
    from datasets import Dataset


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one process sampled in a step: B rows, the G of a group side by side."""

    problems: list[dict[str, Any]]  # (B,) each problem G times
    prompts: list[tuple[int, ...]]  # (B,) token ids
    completions: list[Completion]  # (B,)
    tokens_per_second: float  # of the sampling, other arms in the same batch included

    @property
    def tokens(self) -> int:
        return count_tokens(self.completions)


class GRPO:
    """Group-relative policy optimization with a choice of trust regions."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        optimizer: Optimizer,
        problems: Dataset,
        reward: Reward,
        accelerator: Accelerator,
        run: RunFolder,
    ) -> None:
        self.config = config
        self.policy = policy
        self.optimizer = optimizer
        self.problems = problems
        self.reward = reward
        self.accelerator = accelerator
        self.run = run

    def requests(self, step: int) -> list[Request]:
        """What this process is to sample in a step: the G of a group side by side."""
        return [
            Request(
                tuple(self.policy.base.prompt_ids(problem["prompt"])),
                (self.seed, position, sample_index),
                self.policy.trained,
            )
            for position, problem in self._problems(step)
            for sample_index in range(self.config.rollout.group_size)
        ]

    def problem_of(self, request: Request) -> str:
        """The id of the problem that one of these completions was asked for."""
        _, position, _ = request.seed
        return self.problems[problem_index(position, len(self.problems), self.seed)]["id"]

    def learn(self, step: int, sampled: Sampled) -> dict[str, float]:
        """Updates on what was sampled; returns the metrics of all processes together."""
        group = self.config.rollout.group_size
        rollout = Rollout(
            problems=[problem for _, problem in self._problems(step) for _ in range(group)],
            prompts=[request.prompt for request in sampled.requests],
            completions=sampled.completions,
            tokens_per_second=sampled.tokens_per_second,
        )
        scores = self._score(rollout)
        rewards = self._everyone(scores.total)  # of each process, (P * G,)
        all_rewards = torch.tensor(_flat(rewards), dtype=torch.float64).view(-1, group)
        first = sum(len(r) for r in rewards[: self.accelerator.process_index])
        advantages = group_advantages(all_rewards, self.config.objective.scale_rewards).flatten()
        advantages = advantages[first : first + len(scores.total)].float()  # (B,)
        metrics = self._rollout_metrics(rollout, scores, all_rewards)
        metrics |= self._update(step, rollout, advantages, bool(has_signal(all_rewards).any()))
        self._write_samples(step, rollout, scores, advantages)
        return metrics

    # --- problems and scores ---------------------------------------------------------------------

    def _problems(self, step: int) -> list[tuple[int, dict[str, Any]]]:
        """This process's P problems of a step, each with its position in the run."""
        count = self.config.rollout.prompts_per_step
        mine = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        positions = [step * count + i for i in mine]
        total = len(self.problems)
        return [(p, self.problems[problem_index(p, total, self.seed)]) for p in positions]

    def _score(self, rollout: Rollout) -> Scores:
        return self.reward(
            [problem["prompt"] for problem in rollout.problems],
            [completion.text for completion in rollout.completions],
            rollout.problems,
        )

    # --- learning --------------------------------------------------------------------------------

    def _update(
        self, step: int, rollout: Rollout, advantages: Tensor, any_signal: bool
    ) -> dict[str, float]:
        """`updates_per_rollout` optimizer steps on the rows that carry a signal."""
        updates = self.config.train.updates_per_rollout
        needs_all = self.config.objective.beta > 0  # the KL term pulls on every completion
        if not any_signal and not needs_all:
            for _ in range(updates):
                self.optimizer.skip()
            return {"update/skipped": 1.0}
        started = time.perf_counter()
        rows = [i for i in range(len(advantages)) if needs_all or advantages[i] != 0]
        lengths = [len(rollout.prompts[i]) + len(rollout.completions[i].tokens) for i in rows]
        denominator = self._denominator(rollout)
        base = self._base_logprobs(rollout, rows, lengths)

        def loss_of(micro: list[int]) -> tuple[Tensor, TokenStats]:
            inputs = self._loss_inputs(rollout, rows, micro, advantages, base)
            output = policy_loss(inputs, denominator, self.config.objective)
            return output.loss, output.stats

        results, stats = [], []
        for _ in range(updates):
            result, parts = self.optimizer.step(lengths, loss_of)
            results.append(result)
            stats.append(TokenStats.concatenate(_flat(self._everyone(parts))))
            if not result.applied:
                self._write_nonfinite(step, rollout, rows)
                if not math.isfinite(result.loss) and self.optimizer.nonfinite_in_a_row == 1:
                    log.warning("step %d: %s", step + 1, self._why_not_finite(rollout, rows))
                self.optimizer.check_progress(f"step {step + 1}")
        seconds = time.perf_counter() - started
        gap = stats[0].log_weight.abs()  # nothing has changed yet since sampling
        return {
            **diagnostics(stats[-1]),
            "rollout/engine_gap_mean": gap.mean().item(),
            "rollout/engine_gap_max": gap.max().item(),
            **_update_metrics(results),
            "update/loss": sum(self._everyone(results[-1].loss)),
            "time/update_tokens_per_second": sum(lengths) * updates / seconds,
        }

    def _why_not_finite(self, rollout: Rollout, rows: list[int]) -> str:
        """Where the first of these rows goes wrong that does, in words."""
        for i in rows:
            for adapter in (self.policy.reference, self.policy.trained):
                batch = self._batch(rollout, [i], [0])
                with torch.no_grad(), watched(self.policy.causal) as found:
                    self.policy.logprobs(batch, adapter, **self._logprob_settings)
                if found:
                    whose = "the trained adapter" if adapter == self.policy.trained else "the base"
                    return f"problem {rollout.problems[i]['id']}, with {whose}: {found[0]}"
        return "the loss is not finite, though all layers are for each row alone"

    def _base_logprobs(
        self, rollout: Rollout, rows: list[int], lengths: list[int]
    ) -> dict[int, Tensor]:
        """{row: (T,) log-probs under the frozen reference}, on the CPU."""
        logprobs: dict[int, Tensor] = {}

        def reference(micro: list[int]) -> None:
            batch = self._batch(rollout, rows, micro)
            with torch.no_grad():
                values, _ = self.policy.logprobs(
                    batch, self.policy.reference, **self._logprob_settings
                )
            for i, row, mask in zip(micro, values.cpu(), batch.mask.cpu(), strict=True):
                logprobs[i] = row[mask]

        self.optimizer.in_micro_batches(lengths, reference)
        return logprobs

    def _loss_inputs(
        self,
        rollout: Rollout,
        rows: list[int],
        micro: list[int],
        advantages: Tensor,
        base: dict[int, Tensor],
    ) -> LossInputs:
        """One micro-batch; `micro` indexes `rows`, which indexes the rollout."""
        device = self.policy.base.hardware.device
        batch = self._batch(rollout, rows, micro)
        logprobs, entropy = self.policy.logprobs(batch, **self._logprob_settings)
        recorded = [torch.tensor(rollout.completions[rows[i]].logprobs) for i in micro]
        sampler = pad_values(recorded, device)
        reference = pad_values([base[i] for i in micro], device)
        from_base = self.config.objective.resolved_old_policy == "base"
        return LossInputs(
            logprobs=logprobs,
            old=reference if from_base else sampler,
            sampler=sampler,
            base=reference,
            entropy=entropy,
            advantages=advantages[[rows[i] for i in micro]].to(device),
            mask=batch.mask,
        )

    def _batch(self, rollout: Rollout, rows: list[int], micro: list[int]):
        chosen = [rows[i] for i in micro]
        return make_batch(
            [rollout.prompts[i] for i in chosen],
            [rollout.completions[i].tokens for i in chosen],
            pad_id=self.policy.base.tokenizer.pad_token_id,
            device=self.policy.base.hardware.device,
        )

    def _denominator(self, rollout: Rollout) -> Denominator:
        counts = self._everyone((rollout.tokens, len(rollout.completions)))
        return Denominator(
            tokens=sum(tokens for tokens, _ in counts),
            completions=sum(completions for _, completions in counts),
            max_tokens=self.config.rollout.max_new_tokens,
        )

    # --- records ---------------------------------------------------------------------------------

    def _rollout_metrics(
        self, rollout: Rollout, scores: Scores, all_rewards: Tensor
    ) -> dict[str, float]:
        """Means over the completions of all processes."""
        records = [
            {
                "accuracy/strict": float(verdict.strict),
                "accuracy/lenient": float(verdict.lenient),
                "completion/format_rate": float(verdict.has_format),
                "completion/mean_tokens": float(len(completion.tokens)),
                "completion/truncated_share": float(completion.truncated),
                **{f"reward/{name}": values[i] for name, values in scores.parts.items()},
            }
            for i, (verdict, completion) in enumerate(
                zip(scores.verdicts, rollout.completions, strict=True)
            )
        ]
        records = _flat(self._everyone(records))
        cut_off = sum(completion.cut_off for completion in rollout.completions)
        counted = self._everyone((cut_off, rollout.tokens))
        cut_off, tokens = (sum(values) for values in zip(*counted, strict=True))
        speed = sum(self._everyone(rollout.tokens_per_second))
        return {
            "reward/mean": all_rewards.mean().item(),
            "reward/zero_std_fraction": 1 - has_signal(all_rewards).double().mean().item(),
            **{key: float(np.mean([r[key] for r in records])) for key in records[0]},
            "rollout/mass_cut_off": cut_off / tokens,
            "time/rollout_tokens_per_second": speed,
        }

    def _write_samples(
        self, step: int, rollout: Rollout, scores: Scores, advantages: Tensor
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        count = min(self.config.train.samples_per_step, len(rollout.completions))
        self.run.append(
            self.run.samples,
            [
                {
                    "step": step + 1,
                    "id": rollout.problems[i]["id"],
                    "question": rollout.problems[i]["question"],
                    "answer": rollout.problems[i]["answer"],
                    "completion": rollout.completions[i].text,
                    "reward": scores.total[i],
                    "parts": {name: values[i] for name, values in scores.parts.items()},
                    "advantage": advantages[i].item(),
                    "strict": scores.verdicts[i].strict,
                    "lenient": scores.verdicts[i].lenient,
                    "truncated": rollout.completions[i].truncated,
                }
                for i in range(count)
            ],
        )

    def _write_nonfinite(self, step: int, rollout: Rollout, rows: list[int]) -> None:
        self.run.append(
            self.run.nonfinite,
            [
                {
                    "step": step + 1,
                    "process": self.accelerator.process_index,
                    "id": rollout.problems[i]["id"],
                    "prompt_tokens": list(rollout.prompts[i]),
                    "completion_tokens": rollout.completions[i].tokens,
                    "sampler_logprobs": rollout.completions[i].logprobs,
                }
                for i in rows
            ],
        )

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def _logprob_settings(self) -> dict[str, Any]:
        return {
            "temperature": self.config.rollout.temperature,
            "chunk": self.config.train.logprob_chunk,
        }

    def _everyone(self, value: Any) -> list[Any]:
        """This value of every process, in the order of their ranks."""
        return gather_object([value])


def problem_index(position: int, count: int, seed: int) -> int:
    """Which of `count` problems is the `position`-th of a run: a new shuffle every epoch."""
    epoch, place = divmod(position, count)
    return int(np.random.default_rng((seed, epoch)).permutation(count)[place])


def _flat(lists: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def _update_metrics(results: list[UpdateResult]) -> dict[str, float]:
    return {
        "update/skipped": 0.0,
        "update/grad_norm": float(np.mean([r.grad_norm for r in results])),
        "update/learning_rate": results[-1].learning_rate,
        "update/not_finite": float(sum(not r.applied for r in results)),
    }
