"""The GR-PSPO step: sample groups, score them, and update the adapter on what they say.

P prompts of this process, G completions per prompt, B = P * G rows, T completion tokens.

    requests   = G completions for each problem of the step; whoever runs the loop samples them
    scores     = the reward of each completion
    advantages = each reward compared with those of its group
    reference  = one pass with the adapter off: old-policy reference, KL reference, drift monitor
    for each update: loss = objective(policy, old, advantages); step

examples/grpo_loop.py is the same on one page, for one process and without records. Deviations from
the papers are listed in kit.training.objectives.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from kit.config import ObjectiveConfig, RolloutConfig, TrainConfig
from kit.model.batching import pad_values
from kit.model.finite import watched
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampled
from kit.runs import RunFolder
from kit.tasks.rewards import Reward, Scores
from kit.training.data import problem_index
from kit.training.engine_gap import EngineGap, in_words
from kit.training.groups import Problem, Rollout
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
from kit.training.records import (
    completion_metrics,
    means,
    nonfinite_records,
    sample_records,
    update_metrics,
)

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


class GRPO:
    """Group-relative policy optimization with a choice of trust regions."""

    def __init__(
        self,
        rollout_config: RolloutConfig,
        objective_config: ObjectiveConfig,
        train_config: TrainConfig,
        policy: Policy,
        optimizer: Optimizer,
        problems: Dataset,
        reward: Reward,
        accelerator: Accelerator,
        run: RunFolder,
    ) -> None:
        self.rollout_config = rollout_config
        self.objective_config = objective_config
        self.train_config = train_config
        self.policy = policy
        self.optimizer = optimizer
        self.problems = problems
        self.reward = reward
        self.accelerator = accelerator
        self.run = run
        self.said_gap = self.showed_gap = False

    def requests(self, step: int) -> list[Request]:
        """What this process is to sample in a step: the G of a group side by side."""
        seed, group = self.train_config.seed, range(self.rollout_config.group_size)
        requests: list[Request] = []
        for position in self._positions(step):
            prompt = tuple(self.policy.base.prompt_ids(self._problem(position)["prompt"]))
            requests += [Request(prompt, (seed, position, i), self.policy.trained) for i in group]
        return requests

    def problem_of(self, request: Request) -> str:
        """The id of the problem that one of these completions was asked for."""
        _, position, _ = request.seed
        return self._problem(position)["id"]

    def learn(self, step: int, sampled: Sampled) -> dict[str, float]:
        """Updates on what was sampled; returns the metrics of all processes together."""
        group = range(self.rollout_config.group_size)
        problems = [p for p in map(self._problem, self._positions(step)) for _ in group]
        scores = self._score(problems, sampled)
        rewards, advantages = self._compare(scores)
        prompts = [request.prompt for request in sampled.requests]
        rollout = Rollout(problems, prompts, sampled.completions, advantages)
        metrics = self._rollout_metrics(rollout, scores, rewards, sampled.tokens_per_second)
        if has_signal(rewards).any() or self.objective_config.needs_all_rows:
            metrics |= self._update(step, rollout)
        else:
            metrics |= self._skip()
        self._write_samples(step, rollout, scores)
        return metrics

    # --- problems, scores, advantages ------------------------------------------------------------

    def _positions(self, step: int) -> list[int]:
        """Which problems of the run are this process's P in a step."""
        count = self.rollout_config.prompts_per_step
        mine = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        return [step * count + i for i in mine]

    def _problem(self, position: int) -> Problem:
        return self.problems[problem_index(position, len(self.problems), self.train_config.seed)]

    def _score(self, problems: list[Problem], sampled: Sampled) -> Scores:
        texts = [completion.text for completion in sampled.completions]
        return self.reward([problem["prompt"] for problem in problems], texts, problems)

    def _compare(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Rewards (P, G) of all processes, and advantages (B,) of this one's completions."""
        of_each = self._everyone(scores.total)
        group = self.rollout_config.group_size
        rewards = torch.tensor(_flat(of_each), dtype=torch.float64).view(-1, group)
        advantages = group_advantages(rewards, self.objective_config.scale_rewards).flatten()
        first = sum(map(len, of_each[: self.accelerator.process_index]))
        return rewards, advantages[first : first + len(scores.total)].float()

    # --- updates ---------------------------------------------------------------------------------

    def _skip(self) -> dict[str, float]:
        for _ in range(self.train_config.updates_per_rollout):
            self.optimizer.skip()
        return {"update/skipped": 1.0}

    def _update(self, step: int, rollout: Rollout) -> dict[str, float]:
        """`updates_per_rollout` optimizer steps on the rows that carry a signal."""
        started = time.perf_counter()
        denominator = self._denominator(rollout)  # of all rows, also those without signal
        if not self.objective_config.needs_all_rows:
            rollout = rollout.select(rollout.advantages.nonzero().flatten().tolist())
        rollout = replace(rollout, reference=self._reference_logprobs(rollout))
        loss_of = partial(self._loss, rollout, denominator)
        prompts = self.policy.shared(rollout.prompts)
        results, stats = [], []
        for _ in range(self.train_config.updates_per_rollout):
            result, parts = self.optimizer.step(rollout.lengths, loss_of, prompts)
            results.append(result)
            stats.append(TokenStats.concatenate(_flat(self._everyone(parts))))
            self._check(step, rollout, result)
        seconds = time.perf_counter() - started
        gap = self._engine_gap(step, rollout, stats[0])  # nothing had changed since sampling
        return {
            **diagnostics(stats[-1]),
            **gap.metrics(),
            **update_metrics(results),
            "update/loss": sum(self._everyone(results[-1].loss)),
            "time/update_tokens_per_second": sum(rollout.lengths) * len(results) / seconds,
        }

    def _loss(
        self, rollout: Rollout, denominator: Denominator, rows: list[int]
    ) -> tuple[Tensor, TokenStats]:
        """What a micro-batch adds to the loss of the step."""
        inputs = self._loss_inputs(rollout.select(rows))
        output = policy_loss(inputs, denominator, self.objective_config)
        return output.loss, output.stats

    def _loss_inputs(self, rollout: Rollout) -> LossInputs:
        device = self.policy.base.hardware.device
        logprobs, entropy, mask = self._logprobs(rollout, self.policy.trained)
        sampler = pad_values(rollout.sampler, device)
        reference = pad_values(rollout.reference, device)
        return LossInputs(
            logprobs=logprobs,
            old=reference if self.objective_config.resolved_old_policy == "base" else sampler,
            sampler=sampler,
            base=reference,
            entropy=entropy,
            advantages=rollout.advantages.to(device),
            mask=mask,
        )

    @torch.no_grad()
    def _reference_logprobs(self, rollout: Rollout) -> list[Tensor]:
        """(B,) rows of log-probs under the frozen reference, on the CPU."""
        logprobs: dict[int, Tensor] = {}

        def compute(rows: list[int]) -> None:
            values, _, mask = self._logprobs(rollout.select(rows), self.policy.reference)
            for row, own, real in zip(rows, values.cpu(), mask.cpu(), strict=True):
                logprobs[row] = own[real]

        prompts = self.policy.shared(rollout.prompts)
        self.optimizer.in_micro_batches(rollout.lengths, compute, prompts)
        return [logprobs[row] for row in range(len(rollout))]

    def _logprobs(self, rollout: Rollout, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and mask of the completions, (B, T) each."""
        batch = self.policy.batch(rollout.prompts, rollout.tokens_of)
        logprobs, entropy = self.policy.logprobs(
            batch,
            adapter,
            temperature=self.rollout_config.temperature,
            chunk=self.train_config.logprob_chunk,
        )
        return logprobs, entropy, batch.mask

    def _denominator(self, rollout: Rollout) -> Denominator:
        counts = self._everyone((rollout.tokens, len(rollout)))
        return Denominator(
            tokens=sum(tokens for tokens, _ in counts),
            completions=sum(completions for _, completions in counts),
            max_tokens=self.rollout_config.max_new_tokens,
        )

    def _engine_gap(self, step: int, rollout: Rollout, stats: TokenStats) -> EngineGap:
        """The gap of all processes; TrainingError where the adapter was not what was sampled."""
        of_all = self._everyone((rollout.reference, rollout.sampler))
        reference, sampler = (_flat(list(rows)) for rows in zip(*of_all, strict=True))
        gap = EngineGap.of(stats, reference, sampler)
        dtype = self.policy.base.hardware.dtype
        gap.check_sampled(f"step {step + 1}", dtype)
        if not self.showed_gap and self.accelerator.is_main_process:
            log.info("sampler and trainer differ by %s", in_words(gap.metrics()))
        self.showed_gap = True
        self.said_gap = self.said_gap or gap.warn(dtype)
        return gap

    # --- what is not finite ----------------------------------------------------------------------

    def _check(self, step: int, rollout: Rollout, result: UpdateResult) -> None:
        """Write down the rows of an update that could not be applied; too many end the training."""
        if result.applied:
            return
        process = self.accelerator.process_index
        records = _flat(self._everyone(nonfinite_records(step, rollout, process)))
        if self.accelerator.is_main_process:  # several would write into each other's lines
            self.run.append(self.run.nonfinite, records)
        if not math.isfinite(result.loss) and self.optimizer.nonfinite_in_a_row == 1:
            log.warning("step %d: %s", step + 1, self._why_not_finite(rollout))
        self.optimizer.check_progress(f"step {step + 1}")

    @torch.no_grad()
    def _why_not_finite(self, rollout: Rollout) -> str:
        """Where the first row goes wrong that does, in words."""
        whose = {self.policy.reference: "the base", self.policy.trained: "the trained adapter"}
        for row, problem in enumerate(rollout.problems):
            for adapter, name in whose.items():
                with watched(self.policy.causal) as found:
                    self._logprobs(rollout.select([row]), adapter)
                if found:
                    return f"problem {problem['id']}, with {name}: {found[0]}"
        return "the loss is not finite, though all layers are for each row alone"

    # --- records ---------------------------------------------------------------------------------

    def _rollout_metrics(
        self, rollout: Rollout, scores: Scores, rewards: Tensor, speed: float
    ) -> dict[str, float]:
        """Means over the completions of all processes."""
        cut_off = sum(completion.cut_off for completion in rollout.completions)
        of_all = self._everyone((cut_off, rollout.tokens, speed))
        cut_off, tokens, speed = (sum(values) for values in zip(*of_all, strict=True))
        return {
            "reward/mean": rewards.mean().item(),
            "reward/zero_std_fraction": 1 - has_signal(rewards).double().mean().item(),
            **means(_flat(self._everyone(completion_metrics(rollout, scores)))),
            "rollout/mass_cut_off": cut_off / tokens,
            "time/rollout_tokens_per_second": speed,
        }

    def _write_samples(self, step: int, rollout: Rollout, scores: Scores) -> None:
        if self.accelerator.is_main_process:
            rows = range(min(self.train_config.samples_per_step, len(rollout)))
            self.run.append(self.run.samples, sample_records(step, rollout, scores, rows))

    def _everyone(self, value: Any) -> list[Any]:
        """This value of every process, in the order of their ranks."""
        return gather_object([value])


def _flat(lists: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))
