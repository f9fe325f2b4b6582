"""The KTO step: raise what is labelled good and lower what is labelled bad, beyond the mean drift.

Kahneman-Tversky optimization (arXiv 2402.01306) as trl.KTOTrainer computes it: how far the policy
has drifted from the reference anyway is estimated by giving every prompt of the step the completion
of the one before it. The reference is that of kit.training.dpo.

One deviation: the drift is the mean over the whole step, whatever processes and micro-batches it is
cut into. TRL's is over what its processes compute at once.
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
from kit.training.examples import Labelled
from kit.training.losses import kto_loss, kto_metrics
from kit.training.optimizer import Optimizer
from kit.training.records import single_update_metrics
from kit.training.whole_logprobs import Row, fixed_logprobs, whole_logprobs


@dataclass(frozen=True, slots=True)
class KTO:
    """Kahneman-Tversky optimization on labelled completions; prompts carry no loss."""

    preferences_config: PreferencesConfig
    train_config: TrainConfig
    policy: Policy
    optimizer: Optimizer
    examples: Sequence[Labelled]
    accelerator: Accelerator

    def learn(self, step: int, sampled: Sampled) -> dict[str, float]:
        """One optimizer step on `preferences.batch` completions, shared over the processes."""
        started = time.perf_counter()
        config, chunk = self.preferences_config, self.train_config.logprob_chunk
        batch = batch_of(step, config.batch, self.examples, self.train_config.seed)
        mine = share_of(batch, self.accelerator)
        rows = [example.row for example in mine]
        labels = torch.tensor([example.label for example in mine], dtype=torch.bool)
        drifted = share_of(mismatched(batch), self.accelerator)
        kl = self._drift(drifted)
        reference = self._fixed(rows, self.policy.reference)

        def loss_of(places: list[int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            own = [rows[i] for i in places]
            logprobs = whole_logprobs(self.policy, own, self.policy.trained, chunk)
            changes = logprobs - reference[places].to(logprobs.device)
            loss = kto_loss(changes, labels[places].to(changes.device), kl, config)
            return loss / config.batch, (changes.detach().cpu(), labels[places])

        prompts = self.policy.shared([row.prompt for row in rows])
        result, parts = self.optimizer.step([len(row) for row in rows], loss_of, prompts)
        self.optimizer.check_progress(f"step {step + 1}")
        changes, labels_of = map(torch.cat, zip(*gather_object(parts), strict=True))
        seconds = time.perf_counter() - started
        return {
            "kto/loss": sum(gather_object([result.loss])),
            **kto_metrics(changes, labels_of, kl, config),
            **single_update_metrics(result, sum(map(len, [*rows, *drifted])) / seconds),
        }

    def _drift(self, rows: Sequence[Row]) -> float:
        """The mean change of mismatched completions over all processes, in nats; at least 0."""
        policy = self._fixed(rows, self.policy.trained)
        changes = policy - self._fixed(rows, self.policy.reference)
        drift = sum(gather_object([changes.double().sum().item()])) / self.preferences_config.batch
        return 0.0 if drift < 0 else drift  # what is not finite stays so, and is not applied

    def _fixed(self, rows: Sequence[Row], adapter: str) -> Tensor:
        chunk = self.train_config.logprob_chunk
        return fixed_logprobs(self.policy, self.optimizer, rows, adapter, chunk)


def mismatched(batch: Sequence[Labelled]) -> list[Row]:
    """Every prompt with the completion of the example before it, the first with the last's."""
    return [Row(example.row.prompt, batch[i - 1].row.completion) for i, example in enumerate(batch)]
