"""The DPO step: raise what is preferred above what is not, measured from the reference.

Direct preference optimization (arXiv 2305.18290), sigmoid loss. The reference is what GRPO has too:
the frozen base, or the snapshot of the adapter that training began at. Its log-probabilities are
computed anew in every step, as GRPO's are: nothing has to be kept for a resumed run to be the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from kit.config import PreferencesConfig, TrainConfig
from kit.model.policy import Policy
from kit.model.rollout import Sampled
from kit.training.data import batch_of, share_of
from kit.training.examples import Pair
from kit.training.losses import dpo_loss, dpo_metrics
from kit.training.optimizer import Optimizer
from kit.training.records import single_update_metrics
from kit.training.whole_logprobs import fixed_logprobs, whole_logprobs


@dataclass(frozen=True, slots=True)
class DPO:
    """Direct preference optimization on given pairs; prompts carry no loss."""

    preferences_config: PreferencesConfig
    train_config: TrainConfig
    policy: Policy
    optimizer: Optimizer
    pairs: Sequence[Pair]
    accelerator: Accelerator

    def learn(self, step: int, sampled: Sampled) -> dict[str, float]:
        """One optimizer step on `preferences.batch` pairs, shared over the processes."""
        started = time.perf_counter()
        config, chunk = self.preferences_config, self.train_config.logprob_chunk
        pairs = batch_of(step, config.batch, self.pairs, self.train_config.seed)
        mine = share_of(pairs, self.accelerator)
        rows = [row for pair in mine for row in pair.rows]
        reference = fixed_logprobs(
            self.policy, self.optimizer, rows, self.policy.reference, chunk
        ).view(len(mine), 2)

        def loss_of(places: list[int]) -> tuple[Tensor, Tensor]:
            own = [row for i in places for row in mine[i].rows]
            logprobs = whole_logprobs(self.policy, own, self.policy.trained, chunk).view(-1, 2)
            changes = logprobs - reference[places].to(logprobs.device)
            return dpo_loss(changes, config) / config.batch, changes.detach().cpu()

        # a pair is never parted: its loss is of the difference
        lengths = [pair.tokens(shared=self.policy.shares_prompts) for pair in mine]
        result, parts = self.optimizer.step(lengths, loss_of)
        self.optimizer.check_progress(f"step {step + 1}")
        seconds = time.perf_counter() - started
        return {
            "dpo/loss": sum(gather_object([result.loss])),
            **dpo_metrics(torch.cat(gather_object(parts)), config),
            **single_update_metrics(result, sum(map(len, rows)) / seconds),
        }
