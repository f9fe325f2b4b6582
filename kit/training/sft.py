"""The supervised step: maximise the log-probability of worked solutions, and of nothing else.

A baseline for reinforcement learning and a warm start for it: prompts are context only.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from kit.config import TrainConfig
from kit.errors import DataError
from kit.model.batching import make_batch
from kit.model.policy import Policy
from kit.model.rollout import Sampled
from kit.model.tokenizer import text_ids
from kit.training.data import batch_of, share_of
from kit.training.optimizer import Optimizer
from kit.training.records import single_update_metrics

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


class SFT:
    """Supervised fine-tuning on the `solution` column; prompts carry no loss."""

    def __init__(
        self,
        train_config: TrainConfig,
        policy: Policy,
        optimizer: Optimizer,
        problems: Dataset,
        accelerator: Accelerator,
        max_tokens: int,
    ) -> None:
        """`max_tokens` of the longest solution that is learned from, its end of turn included."""
        self.train_config = train_config
        self.policy = policy
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.examples = self._tokenize(problems, max_tokens)

    def learn(self, step: int, sampled: Sampled) -> dict[str, float]:
        """One optimizer step on `train.sft_batch` examples, shared over the processes."""
        started = time.perf_counter()
        size, seed = self.train_config.sft_batch, self.train_config.seed
        chosen = batch_of(step, size, self.examples, seed)
        total = sum(len(solution) for _, solution in chosen)
        mine = share_of(chosen, self.accelerator)

        def loss_of(rows: list[int]) -> tuple[Tensor, None]:
            batch = make_batch(
                [mine[i][0] for i in rows],
                [mine[i][1] for i in rows],
                pad_id=self.policy.base.tokenizer.pad_token_id,
                device=self.policy.base.hardware.device,
            )
            logprobs, _ = self.policy.logprobs(batch, chunk=self.train_config.logprob_chunk)
            return -torch.where(batch.mask, logprobs, 0.0).sum() / total, None

        lengths = [len(prompt) + len(solution) for prompt, solution in mine]
        result, _ = self.optimizer.step(lengths, loss_of)
        self.optimizer.check_progress(f"step {step + 1}")
        return {
            "sft/loss": sum(gather_object([result.loss])),
            **single_update_metrics(result, sum(lengths) / (time.perf_counter() - started)),
        }

    def _tokenize(self, problems: Dataset, max_tokens: int) -> list[tuple[list[int], list[int]]]:
        """(prompt, solution + end of turn) token ids of the problems that have a solution."""
        base = self.policy.base
        examples = []
        for problem in problems:
            if problem["solution"]:
                ids = text_ids(base.tokenizer, problem["solution"])
                examples.append((base.prompt_ids(problem["prompt"]), [*ids, base.end_id]))
        fitting = [example for example in examples if len(example[1]) <= max_tokens]
        if not fitting:
            raise DataError(
                f"none of {len(problems)} problems has a worked solution of at most "
                f"rollout.max_new_tokens={max_tokens} tokens to train on; use method: grpo or "
                "other data"
            )
        left_out = len(problems) - len(fitting)
        if left_out:
            log.info("%d problems without a (short enough) solution are left out", left_out)
        return fitting
