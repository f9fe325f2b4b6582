"""Advantages, aggregation, the loss and what it says: pure tensors in, LossOutput out.

P prompts, G group, B = rows, T tokens of the longest completion. `logprobs` is the current policy
with gradient, `old` the old-policy reference the ratio is measured from, `sampler` the policy that
drew the tokens, `base` the frozen reference. docs/objective.md derives what is computed here.

Where this differs from the papers:
1. old_policy base: PSPO's old policy is the frozen base and the surrogate is multiplied by the
   detached weight min(exp(old - sampler), max_weight), the decoupled objective of
   arXiv 2110.00641. With old_policy sampler it is PSPO and GRPO as published.
2. The token denominator counts every sampled completion of the step, also those of groups without
   signal, so that leaving those out of the computation does not change the gradient.
The trust regions, and where they differ, are in kit.training.trust_regions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from kit.config import NoClip, ObjectiveConfig
from kit.training.trust_regions import TRUST_REGIONS, Tokens, difference

ADVANTAGE_EPS = 1e-4


def group_advantages(rewards: Tensor, scale: str = "group") -> Tensor:
    """A = (R - mean of the group) / (standard deviation + 1e-4), GRPO (arXiv 2402.03300, eq. 3).

    Args:
        rewards: (P, G), P groups of G >= 2 completions.
        scale: `group` or `batch` standard deviation (with Bessel's correction, as torch.std),
            or `none` (Dr. GRPO, arXiv 2503.20783).

    Returns (P, G). A group whose rewards are all equal gets exactly 0.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be (P, G) with G >= 2, got {tuple(rewards.shape)}")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # equal rewards can leave a rounding residue in the mean, which the division would blow up
    centred = torch.where(has_signal(rewards)[:, None], centred, torch.zeros_like(centred))
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (rewards.std() + ADVANTAGE_EPS)
    if scale == "group":
        return centred / (rewards.std(dim=1, keepdim=True) + ADVANTAGE_EPS)
    raise ValueError(f"scale must be group, batch or none, got {scale!r}")


def has_signal(rewards: Tensor) -> Tensor:
    """(P,) bool: False where all rewards of a group (P, G) are equal."""
    return rewards.amax(dim=1) > rewards.amin(dim=1)


# --- the loss ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One micro-batch. All log-probabilities are (B, T) in nats."""

    logprobs: Tensor  # current policy, with gradient
    old: Tensor  # old-policy reference
    sampler: Tensor  # recorded while sampling
    base: Tensor  # frozen reference
    entropy: Tensor  # of the current policy, without gradient
    advantages: Tensor  # (B,)
    mask: Tensor  # (B, T) bool

    def __post_init__(self) -> None:
        shape = tuple(self.mask.shape)
        if len(shape) != 2 or self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be (B, T) bool, got {shape} {self.mask.dtype}")
        for name in ("logprobs", "old", "sampler", "base", "entropy"):
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"{name} must be (B, T)={shape}, got {got}")
        if tuple(self.advantages.shape) != shape[:1]:
            raise ValueError(
                f"advantages must be (B,)={shape[:1]}, got {tuple(self.advantages.shape)}"
            )


@dataclass(frozen=True, slots=True)
class Denominator:
    """What a whole optimizer step is divided by, over all micro-batches and processes."""

    tokens: int  # completion tokens
    completions: int
    max_tokens: int  # longest completion allowed


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What a micro-batch says about its N tokens and C completions; all on the CPU."""

    log_ratio: Tensor  # (N,) current - old
    log_weight: Tensor  # (N,) current - sampler
    silenced: Tensor  # (N,) bool: the trust region left this token nothing of its advantage
    pull: Tensor  # (N,) what the loss's gradient by this log-probability would be under noclip
    k3_base: Tensor  # (N,)
    entropy: Tensor  # (N,)
    completion_log_weight: Tensor  # (C,) sum of log_weight over the completion

    @staticmethod
    def concatenate(parts: list[TokenStats]) -> TokenStats:
        names = [field.name for field in fields(TokenStats)]
        return TokenStats(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})


@dataclass(frozen=True, slots=True)
class LossOutput:
    """This micro-batch's share of the step's loss, with gradient, and its token statistics."""

    loss: Tensor
    stats: TokenStats


def policy_loss(
    inputs: LossInputs, denominator: Denominator, config: ObjectiveConfig
) -> LossOutput:
    """The negated surrogate plus beta times the KL estimate, aggregated over the step.

    The losses of all micro-batches of a step add up to the step's loss whatever their sizes.
    """
    values = -_surrogate(inputs.logprobs, inputs.advantages, inputs, config)
    k3 = k3_divergence(inputs.logprobs, inputs.base, inputs.mask)
    if config.beta > 0:
        values = values + config.beta * k3
    loss = aggregate(values, inputs.mask, denominator, config.aggregation)
    return LossOutput(loss=loss, stats=_token_stats(k3, inputs, denominator, config))


def aggregate(values: Tensor, mask: Tensor, denominator: Denominator, how: str) -> Tensor:
    """Sum (B, T) values over the mask and divide by the step's denominator.

    token: by all tokens (DAPO, arXiv 2503.14476); sequence: mean per completion, then over
    completions (GRPO); constant: by completions x the longest length allowed (Dr. GRPO).
    """
    values = torch.where(mask, values, torch.zeros_like(values))
    if how == "token":
        return values.sum() / denominator.tokens
    if how == "sequence":
        return (values.sum(1) / mask.sum(1).clamp(min=1)).sum() / denominator.completions
    if how == "constant":
        return values.sum() / (denominator.completions * denominator.max_tokens)
    raise ValueError(f"aggregation must be token, sequence or constant, got {how!r}")


def k3_divergence(logprobs: Tensor, base: Tensor, mask: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(current || base) per token: exp(d) - d - 1, d = base - current.

    Unbiased under samples of the current policy and never negative. (B, T); 0 outside the mask.
    """
    gap = difference(base, logprobs, mask)
    return gap.expm1() - gap  # exp(d) - 1 loses the digits of a small d


def _surrogate(
    logprobs: Tensor, advantages: Tensor, inputs: LossInputs, config: ObjectiveConfig
) -> Tensor:
    """(B, T) surrogate of the chosen trust region, weighted when old is not the sampler."""
    tokens = Tokens(logprobs, inputs.old, inputs.mask, config.level)
    region = TRUST_REGIONS[config.trust_region.name]
    surrogate = region(tokens, advantages[:, None], config.trust_region)
    if config.resolved_old_policy == "sampler":
        return surrogate
    weight = tokens.pool(difference(inputs.old, inputs.sampler, inputs.mask).exp())
    return surrogate * weight.clamp(max=config.max_weight).detach()


def _pull(inputs: LossInputs, denominator: Denominator, config: ObjectiveConfig) -> Tensor:
    """(B, T) gradient of the step's surrogate by the current log-probabilities, as far as it comes
    from the advantages: what a penalty pulls is left out."""
    leaf = inputs.logprobs.detach().requires_grad_()
    with torch.enable_grad():
        zero = torch.zeros_like(inputs.advantages)
        with_it, without = (
            _surrogate(leaf, advantages, inputs, config) for advantages in (inputs.advantages, zero)
        )
        total = aggregate(with_it - without, inputs.mask, denominator, config.aggregation)
    (gradient,) = torch.autograd.grad(total, leaf)
    return gradient


def _token_stats(
    k3: Tensor, inputs: LossInputs, denominator: Denominator, config: ObjectiveConfig
) -> TokenStats:
    """Statistics of the masked tokens; which are silenced is read off the surrogate's gradient."""
    plain = config.model_copy(
        update={"trust_region": NoClip(name="noclip"), "old_policy": config.resolved_old_policy}
    )
    silenced = _pull(inputs, denominator, config) == 0
    log_weight = difference(inputs.logprobs, inputs.sampler, inputs.mask).detach()

    def pick(values: Tensor) -> Tensor:
        return values.detach()[inputs.mask].cpu()

    return TokenStats(
        log_ratio=pick(difference(inputs.logprobs, inputs.old, inputs.mask)),
        log_weight=pick(log_weight),
        silenced=pick(silenced & (inputs.advantages != 0)[:, None]),
        pull=pick(_pull(inputs, denominator, plain)),
        k3_base=pick(k3),
        entropy=pick(inputs.entropy),
        completion_log_weight=log_weight.sum(1)[inputs.mask.any(1)].cpu(),
    )


def diagnostics(stats: TokenStats) -> dict[str, float]:
    """The step's metrics from all its tokens; docs/metrics.md explains each."""
    if stats.log_ratio.numel() == 0:
        return {}
    ratio, weight = stats.log_ratio.double().exp(), stats.log_weight.double().exp()
    lowest, highest = np.quantile(ratio.numpy(), (0.01, 0.99))
    return {
        "ratio/mean": ratio.mean().item(),
        "ratio/min": ratio.min().item(),
        "ratio/max": ratio.max().item(),
        "ratio/p01": float(lowest),
        "ratio/p99": float(highest),
        "ratio/zero_gradient_share": stats.silenced.double().mean().item(),
        "ratio/silenced_norm_share": _norm_share(stats.pull.double(), stats.silenced),
        "ratio/effective_sample_share": (
            weight.sum().square() / (weight.numel() * weight.square().sum())
        ).item(),
        "ratio/mismatch_token": stats.log_weight.double().abs().mean().item(),
        "ratio/mismatch_completion": stats.completion_log_weight.double().abs().mean().item(),
        "policy/entropy": stats.entropy.double().mean().item(),
        "policy/k3_to_base": stats.k3_base.double().mean().item(),
    }


def _norm_share(values: Tensor, chosen: Tensor) -> float:
    """Norm of the chosen values as a share of that of all; 0 where all are 0."""
    whole = values.norm().item()
    return values[chosen].norm().item() / whole if whole else 0.0
