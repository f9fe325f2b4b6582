"""PSPO inside TRL: a `trl.GRPOTrainer` whose importance ratio is smoothed.

    trainer = PSPOTrainer(model=…, reward_funcs=…, train_dataset=…, args=PSPOConfig(alpha=0.1, …))

TRL maximises r A with r = pi / pi_old. PSPO (arXiv 2509.21282) puts the smoothed policy
(1 - alpha) pi + alpha pi_old in the place of pi, and so does this trainer: TRL gets the smoothed
policy's log-probabilities, and its own ratio becomes (1 - alpha) r + alpha, per token or, with
`importance_sampling_level="sequence"`, as the length-normalised product of the smoothed token
ratios. Sampling, rewards, advantages, masks, aggregation and metrics remain TRL's.

Where this differs from the kit's own loop:
1. The old policy is the sampler (`objective.old_policy=sampler`); the kit's own default for pspo is
   the frozen base. TRL takes its log-probabilities from a forward pass after sampling, the kit
   records them while it samples.
2. `loss_type` dapo, grpo and dr_grpo are the kit's `aggregation` token, sequence and constant. With
   `steps_per_generation` above `gradient_accumulation_steps`, TRL's optimizer steps see parts of a
   rollout and dapo divides each by the average part's tokens; every update of the kit sees all.
3. With `num_iterations=1` and no more generation steps than accumulation steps, r is exactly 1 and
   no trust region can act, as with `train.updates_per_rollout=1`.
4. There is no KL term: TRL would measure it from the smoothed policy.
5. TRL makes the adapter on a quantized base bfloat16; the kit keeps it float32.

The gradient at token level is (1 - alpha) times that of the plain ratio, here as in the kit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kit.config import PSPO
from kit.errors import ConfigError, TrainingError
from kit.integrations import MissingPackageError
from kit.model.prompts import guard
from kit.training.trust_regions import Tokens, pspo

INSTALL = 'pip install "trl>=1.14,<1.17"'

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise MissingPackageError(f"kit.integrations.trl needs TRL ({error}); {INSTALL}") from error

LOSS_TYPES = ("dapo", "grpo", "dr_grpo")


@dataclass
class PSPOConfig(GRPOConfig):
    """`trl.GRPOConfig` with `alpha` instead of `epsilon`.

    Raises ConfigError for settings that TRL would act on beside or after the smoothing.
    """

    alpha: float = field(
        default=0.1,
        metadata={"help": "Weight of the old policy in the smoothed one; 0 is the plain ratio."},
    )
    epsilon: float = field(
        default=math.inf, metadata={"help": "Not for PSPO: nothing is clipped. Leave it alone."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be from 0 to 1, got {self.alpha}")
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(
                f"loss_type={self.loss_type!r} does not work with PSPO; take one of {LOSS_TYPES}"
            )
        for name, only in _ONLY.items():
            if (got := getattr(self, name)) != only:
                raise ConfigError(f"{name}={got} does not work with PSPO; leave it at {only}")


# what would clip the smoothed ratio, take its log-probabilities for the policy's, or leave
# TRL's loss aside
_ONLY: dict[str, Any] = {
    "epsilon": math.inf,
    "epsilon_high": None,
    "delta": None,
    "beta": 0.0,
    "off_policy_mask_threshold": None,
    "use_liger_kernel": False,
}


class PSPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` with a smoothed ratio; `args` must be a PSPOConfig.

    Raises ConfigError for other `args`, TrainingError when this version of TRL computes its loss
    from something else than what is smoothed here.
    """

    # for the model card
    _tag_names = ["trl", "grpo", "pspo"]  # noqa: RUF012
    _name = "GR-PSPO"
    _paper = {  # noqa: RUF012
        "title": "It's Not You, It's Clipping: A Soft Trust-Region via Probability Smoothing for "
        "LLM RL",
        "id": "2509.21282",
    }

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, **others: Any):
        if not isinstance(args, PSPOConfig):
            raise ConfigError(f"args must be a PSPOConfig, got {type(args).__name__}")
        self.alpha = args.alpha
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **others)
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            # what data says stays text, even where it spells a control token
            self.processing_class = guard(self.processing_class)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        plain = self._get_per_token_logps_and_entropies
        calls = 0

        def smoothed(*args: Any, **settings: Any) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            logprobs, *others = plain(*args, **settings)
            return smooth(logprobs, inputs.get("old_per_token_logps"), self.alpha), *others

        # the same method also computes the old log-probabilities, which must not be smoothed:
        # only the loss sees this one
        self._get_per_token_logps_and_entropies = smoothed  # type: ignore[method-assign]
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            del self._get_per_token_logps_and_entropies
        if calls != 1:
            raise TrainingError(
                f"this version of TRL asks {calls} times for log-probabilities where one is "
                f"expected, so its loss would not be PSPO's; {INSTALL}"
            )
        return loss


def smooth(logprobs: Tensor, old: Tensor | None, alpha: float) -> Tensor:
    """log((1 - alpha) pi + alpha pi_old) of the sampled tokens, (B, T) float32 with gradient.

    `old` None means that the policy has not moved since it sampled: old is what `logprobs` is now.
    """
    logprobs = logprobs.float()
    old = logprobs.detach() if old is None else old.float()
    tokens = Tokens(logprobs, old, torch.ones_like(old, dtype=torch.bool))
    return old + pspo(tokens, old.new_ones(()), PSPO(alpha=alpha)).log()
