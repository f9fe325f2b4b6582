"""The engine gap: how far apart sampler and trainer are about the same tokens of the same adapter.

N completion tokens of C completions. Sampler and trainer compute the same probabilities by other
kernels; what they differ by is in every importance ratio.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.errors import TrainingError
from kit.training.objectives import TokenStats

log = logging.getLogger(__name__)

# Mean nats per token: ten and five times what is usual. In 16 bits that is a quarter of the 0.2 by
# which `clip` lets a ratio change.
TOLERATED = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


def in_words(metrics: Mapping[str, float]) -> str:
    """The gap in the metrics of a step, per token and per completion."""
    mean, largest, of_completion, largest_of_completion = (
        metrics[f"rollout/engine_gap_{name}"]
        for name in ("mean", "max", "completion_mean", "completion_max")
    )
    return (
        f"{mean:.2g} nats per token, at most {largest:.2g}; {of_completion:.2g} per completion, at "
        f"most {largest_of_completion:.2g}"
    )


@dataclass(frozen=True, slots=True)
class EngineGap:
    """Differences of log-probabilities, in nats, before any update on what was sampled."""

    to_trainer: Tensor  # (N,) trained adapter - sampler
    to_reference: Tensor  # (N,) frozen reference - sampler
    of_completions: Tensor  # (C,) sum of to_trainer

    @staticmethod
    def of(stats: TokenStats, reference: Sequence[Tensor], sampler: Sequence[Tensor]) -> EngineGap:
        """From the statistics of the first update, and log-probabilities of each completion."""
        differences = [own - drawn for own, drawn in zip(reference, sampler, strict=True)]
        return EngineGap(
            stats.log_weight,
            torch.cat([torch.empty(0), *differences]),  # a process may have no rows
            stats.completion_log_weight,
        )

    def metrics(self) -> dict[str, float]:
        of_tokens, of_completions = self.to_trainer.abs(), self.of_completions.abs()
        return {
            "rollout/engine_gap_mean": of_tokens.mean().item(),
            "rollout/engine_gap_max": of_tokens.max().item(),
            "rollout/engine_gap_completion_mean": of_completions.mean().item(),
            "rollout/engine_gap_completion_max": of_completions.max().item(),
        }

    def check_sampled(self, where: str, dtype: torch.dtype) -> None:
        """TrainingError where the reference was sampled in place of the trained adapter.

        A wide gap alone does not raise it, whatever the kernels round: the sampler has to agree
        with the reference four times better, token by token. Found once the adapter has moved
        further from the reference than what is tolerated.
        """
        to_trainer = self.to_trainer.abs().mean().item()
        to_reference = self.to_reference.abs().mean().item()
        if to_trainer > TOLERATED[dtype] and to_reference < to_trainer / 4:
            raise TrainingError(
                f"{where}: the frozen reference was sampled, not the adapter that is trained (the "
                f"sampler is {to_reference:.2g} nats per token from the one, {to_trainer:.2g} from "
                "the other): nothing is learned from that. Set model.backend=transformers, or "
                "install the versions in constraints.txt"
            )

    def warn(self, dtype: torch.dtype) -> bool:
        """Say that the gap is wider than is tolerated; returns whether there was need to."""
        figures = self.metrics()
        mean = figures["rollout/engine_gap_mean"]
        if not mean > TOLERATED[dtype]:
            return False
        log.warning(
            "sampler and trainer disagree by %.2g nats per token and %.2g per completion, where up "
            "to %g per token is usual in %s: every importance ratio is wrong by as much. Try "
            "rollout.dequantize=always or never, model.backend=transformers or model.dtype=float32;"
            " rollout/engine_gap_mean in the metrics follows it",
            mean,
            figures["rollout/engine_gap_completion_mean"],
            TOLERATED[dtype],
            str(dtype).removeprefix("torch."),
        )
        return True
