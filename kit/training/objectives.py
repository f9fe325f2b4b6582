"""Advantages, trust regions, aggregation: pure tensors in, LossOutput out.

P prompts, G group, B = rows, T tokens of the longest completion. `logprobs` is the current policy
with gradient, `old` the old-policy reference the ratio is measured from, `sampler` the policy that
drew the tokens, `base` the frozen reference. docs/objective.md derives what is computed here.

Where this differs from the papers:
1. old_policy base: PSPO's old policy is the frozen base and the surrogate is multiplied by the
   detached weight min(exp(old - sampler), max_weight), the decoupled objective of
   arXiv 2110.00641. With old_policy sampler it is PSPO and GRPO as published.
2. The token denominator counts every sampled completion of the step, also those of groups without
   signal, so that leaving those out of the computation does not change the gradient.
3. log ratios are clamped to +-20 before exp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kit.config import PSPO, SAPO, Clip, NoClip, ObjectiveConfig

MAX_LOG_RATIO = 20.0
ADVANTAGE_EPS = 1e-4

Pool = Callable[[Tensor], Tensor]


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


# --- trust regions -------------------------------------------------------------------------------
# Each takes token ratios r (B, T), advantages (B, 1), its settings, and `pool`, which turns token
# ratios into the ratio the region acts on: the identity, or the length-normalised product of a
# completion (GSPO, arXiv 2507.18071). Each returns the surrogate (B, T), to be maximised.


def pspo(ratio: Tensor, advantages: Tensor, settings: PSPO, pool: Pool) -> Tensor:
    """Probability smoothing: ((1 - alpha) r + alpha) A (arXiv 2509.21282).

    Tokens are smoothed before they are pooled: it is their probabilities that are mixed.
    """
    return pool((1 - settings.alpha) * ratio + settings.alpha) * advantages


def clip(ratio: Tensor, advantages: Tensor, settings: Clip, pool: Pool) -> Tensor:
    """PPO's clipped ratio: min(r A, clip(r, 1 - low, 1 + high) A) (arXiv 1707.06347, eq. 7)."""
    ratio = pool(ratio)
    clipped = ratio.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def noclip(ratio: Tensor, advantages: Tensor, settings: NoClip, pool: Pool) -> Tensor:
    """The plain importance ratio: r A."""
    return pool(ratio) * advantages


def sapo(ratio: Tensor, advantages: Tensor, settings: SAPO, pool: Pool) -> Tensor:
    """Sigmoid gate: 4 / tau * sigmoid(tau (r - 1)) A, tau by the sign of A (arXiv 2511.20347)."""
    tau = torch.full_like(advantages, settings.tau_negative)
    tau = tau.masked_fill(advantages > 0, settings.tau_positive)
    return 4 / tau * torch.sigmoid(tau * (pool(ratio) - 1)) * advantages


TRUST_REGIONS: dict[str, Callable[[Tensor, Tensor, Any, Pool], Tensor]] = {
    "pspo": pspo,
    "clip": clip,
    "noclip": noclip,
    "sapo": sapo,
}


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
    """What a micro-batch says about its N completion tokens; every tensor is (N,), on the CPU."""

    log_ratio: Tensor  # current - old
    log_weight: Tensor  # current - sampler
    silenced: Tensor  # bool: the trust region left this token no gradient
    k3_base: Tensor
    entropy: Tensor

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
    log_ratio = _difference(inputs.logprobs, inputs.old, inputs.mask)
    values = -_surrogate(log_ratio, inputs, config)
    k3 = k3_divergence(inputs.logprobs, inputs.base, inputs.mask)
    if config.beta > 0:
        values = values + config.beta * k3
    loss = aggregate(values, inputs.mask, denominator, config.aggregation)
    return LossOutput(loss=loss, stats=_token_stats(log_ratio, k3, inputs, config))


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
    difference = _difference(base, logprobs, mask)
    return difference.expm1() - difference  # exp(d) - 1 loses the digits of a small d


def _difference(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """a - b, 0 outside the mask and bounded, so that its exp is finite everywhere."""
    difference = torch.where(mask, a - b, torch.zeros_like(a))
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _surrogate(log_ratio: Tensor, inputs: LossInputs, config: ObjectiveConfig) -> Tensor:
    """(B, T) surrogate of the chosen trust region, weighted when old is not the sampler."""

    def pool(ratio: Tensor) -> Tensor:
        if config.level == "token":
            return ratio
        mean = torch.where(inputs.mask, ratio.log(), torch.zeros_like(ratio)).sum(1, keepdim=True)
        return (mean / inputs.mask.sum(1, keepdim=True).clamp(min=1)).exp().expand_as(ratio)

    region = TRUST_REGIONS[config.trust_region.name]
    surrogate = region(log_ratio.exp(), inputs.advantages[:, None], config.trust_region, pool)
    if config.resolved_old_policy == "sampler":
        return surrogate
    weight = pool(_difference(inputs.old, inputs.sampler, inputs.mask).exp())
    return surrogate * weight.clamp(max=config.max_weight).detach()


def _token_stats(
    log_ratio: Tensor, k3: Tensor, inputs: LossInputs, config: ObjectiveConfig
) -> TokenStats:
    """Statistics of the masked tokens; which are silenced is read off the surrogate's gradient."""
    leaf = log_ratio.detach().requires_grad_()
    with torch.enable_grad():
        surrogate = _surrogate(leaf, inputs, config)
    (gradient,) = torch.autograd.grad(surrogate.sum(), leaf)
    silenced = (gradient == 0) & (inputs.advantages != 0)[:, None]

    def pick(values: Tensor) -> Tensor:
        return values.detach()[inputs.mask].cpu()

    return TokenStats(
        log_ratio=pick(log_ratio),
        log_weight=pick(_difference(inputs.logprobs, inputs.sampler, inputs.mask)),
        silenced=pick(silenced),
        k3_base=pick(k3),
        entropy=pick(inputs.entropy),
    )


def diagnostics(stats: TokenStats) -> dict[str, float]:
    """The step's metrics from all its tokens; docs/metrics.md explains each."""
    if stats.log_ratio.numel() == 0:
        return {}
    ratio, weight = stats.log_ratio.double().exp(), stats.log_weight.double().exp()
    return {
        "ratio/mean": ratio.mean().item(),
        "ratio/min": ratio.min().item(),
        "ratio/max": ratio.max().item(),
        "ratio/zero_gradient_share": stats.silenced.double().mean().item(),
        "ratio/effective_sample_share": (
            weight.sum().square() / (weight.numel() * weight.square().sum())
        ).item(),
        "policy/entropy": stats.entropy.double().mean().item(),
        "policy/k3_to_base": stats.k3_base.double().mean().item(),
    }
