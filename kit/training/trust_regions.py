"""Trust regions: how far the policy may move on one rollout, token by token.

Each is one function of the tokens, the advantages and its settings that returns a surrogate, to be
maximised. docs/trust-regions.md sets them side by side, with their sources, pictures and critics;
`r` is the importance ratio current / old, `A` the advantage, and what is detached carries no
gradient. B = rows, T = tokens of the longest completion.

Where this differs from the papers:
1. Log ratios are clamped to +-20 before exp, in all of them.
2. A log-probability that is maximised as such (cispo, dppo, vespo, dro) is the token's own at any
   level; the level is that of the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kit.config import (
    CFPO,
    CISPO,
    DGPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    IPO,
    PSPO,
    SAPO,
    VESPO,
    Clip,
    NoClip,
)

MAX_LOG_RATIO = 20.0
LEAST_LOG_WEIGHT = math.log(1e-8)  # of a whole completion, for vespo
LEAST_PROBABILITY = 1e-8  # of all other tokens together, for dppo_kl


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the regions look at. All log-probabilities are (B, T) in nats."""

    logprobs: Tensor  # current policy, with gradient
    old: Tensor  # what the ratio is measured from
    mask: Tensor  # (B, T) bool
    level: str = "token"  # or sequence: one ratio for the whole completion

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) log r, bounded; 0 outside the mask."""
        return difference(self.logprobs, self.old, self.mask)

    @property
    def ratio(self) -> Tensor:
        """(B, T) r of each token."""
        return self.log_ratio.exp()

    @property
    def pooled(self) -> Tensor:
        """(B, T) r at the level chosen."""
        return self.pool(self.ratio)

    @property
    def current(self) -> Tensor:
        """(B, T) log-probabilities, 0 outside the mask."""
        return torch.where(self.mask, self.logprobs, torch.zeros_like(self.logprobs))

    @property
    def moved(self) -> Tensor:
        """(B, T) pi - pi_old of each token, without gradient; 0 outside the mask."""
        change = self.logprobs.exp() - self.old.exp()
        return torch.where(self.mask, change, torch.zeros_like(change)).detach()

    def pool(self, ratio: Tensor) -> Tensor:
        """Token ratios as they are, or the geometric mean of each completion's (GSPO)."""
        return ratio if self.level == "token" else geometric_mean(ratio, self.mask)


def difference(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """a - b, 0 outside the mask and bounded, so that its exp is finite everywhere."""
    gap = torch.where(mask, a - b, torch.zeros_like(a))
    return gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def geometric_mean(ratio: Tensor, mask: Tensor) -> Tensor:
    """(B, T) with exp(mean log r) of a completion at each of its tokens (arXiv 2507.18071)."""
    mean = torch.where(mask, ratio.log(), torch.zeros_like(ratio)).sum(1, keepdim=True)
    return (mean / mask.sum(1, keepdim=True).clamp(min=1)).exp().expand_as(ratio)


# --- the ratio, shaped ---------------------------------------------------------------------------


def pspo(tokens: Tokens, advantages: Tensor, settings: PSPO) -> Tensor:
    """Probability smoothing: ((1 - alpha) r + alpha) A (arXiv 2509.21282).

    Tokens are smoothed before they are pooled: it is their probabilities that are mixed.
    """
    return tokens.pool((1 - settings.alpha) * tokens.ratio + settings.alpha) * advantages


def clip(tokens: Tokens, advantages: Tensor, settings: Clip) -> Tensor:
    """PPO's clipped ratio: min(r A, clip(r, 1 - low, 1 + high) A) (arXiv 1707.06347, eq. 7).

    Dual clip (arXiv 1912.09729): where A < 0 not below dual A.
    """
    ratio = tokens.pooled
    clipped = ratio.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    if settings.dual is None:
        return surrogate
    return torch.where(
        advantages < 0, torch.maximum(surrogate, settings.dual * advantages), surrogate
    )


def noclip(tokens: Tokens, advantages: Tensor, settings: NoClip) -> Tensor:
    """The plain importance ratio: r A."""
    return tokens.pooled * advantages


def sapo(tokens: Tokens, advantages: Tensor, settings: SAPO) -> Tensor:
    """Sigmoid gate: 4 / tau * sigmoid(tau (r - 1)) A, tau by the sign of A (arXiv 2511.20347)."""
    tau = torch.full_like(advantages, settings.tau_negative)
    tau = tau.masked_fill(advantages > 0, settings.tau_positive)
    return 4 / tau * torch.sigmoid(tau * (tokens.pooled - 1)) * advantages


def gmpo(tokens: Tokens, advantages: Tensor, settings: GMPO) -> Tensor:
    """exp(mean log r) A of a completion, each log r clipped on the side A pushes to
    (arXiv 2507.20673)."""
    log_ratio = tokens.log_ratio
    clipped = log_ratio.clamp(-settings.epsilon_low, settings.epsilon_high)
    kept = torch.where(
        advantages > 0, torch.minimum(log_ratio, clipped), torch.maximum(log_ratio, clipped)
    )
    return geometric_mean(kept.exp(), tokens.mask) * advantages


def cfpo(tokens: Tokens, advantages: Tensor, settings: CFPO) -> Tensor:
    """r A - |A| (r - 1)^2 / (2 epsilon) (arXiv 2601.22801)."""
    ratio = tokens.pooled
    penalty = advantages.abs() * (ratio - 1).square() / (2 * settings.epsilon)
    return ratio * advantages - penalty


def dgpo(tokens: Tokens, advantages: Tensor, settings: DGPO) -> Tensor:
    """r A times a detached weight beyond the clip range (arXiv 2603.14389): (r / low)^n below
    low = 1 - epsilon_low where A < 0, (high / r)^(1 / m) above high = 1 + epsilon_high where A > 0.
    """
    ratio = tokens.pooled
    low, high = 1 - settings.epsilon_low, 1 + settings.epsilon_high
    below = (ratio / low).clamp(max=1).pow(settings.n).masked_fill(advantages >= 0, 1.0)
    above = (high / ratio).clamp(max=1).pow(1 / settings.m).masked_fill(advantages <= 0, 1.0)
    return (below * above).detach() * ratio * advantages


# --- the ratio, a weight on the log-probability --------------------------------------------------


def cispo(tokens: Tokens, advantages: Tensor, settings: CISPO) -> Tensor:
    """min(r, epsilon_max), detached, times A log pi (arXiv 2506.13585)."""
    return _weighted(tokens, advantages, tokens.pooled.clamp(max=settings.epsilon_max))


def dppo_tv(tokens: Tokens, advantages: Tensor, settings: DPPOTV) -> Tensor:
    """min(r, max_ratio), detached, times A log pi; nothing where pi - pi_old > delta_high and
    A > 0, or < -delta_low and A < 0 (arXiv 2602.04879, binary total variation)."""
    rises, falls = tokens.moved > settings.delta_high, tokens.moved < -settings.delta_low
    return _masked(tokens, advantages, settings.max_ratio, rises, falls)


def dppo_kl(tokens: Tokens, advantages: Tensor, settings: DPPOKL) -> Tensor:
    """As dppo_tv, where KL(old || current) of "this token or another" exceeds delta
    (arXiv 2602.04879, binary KL)."""
    divergence, moved = binary_kl(tokens), tokens.moved
    rises = (divergence > settings.delta_high) & (moved > 0)
    falls = (divergence > settings.delta_low) & (moved < 0)
    return _masked(tokens, advantages, settings.max_ratio, rises, falls)


def binary_kl(tokens: Tokens) -> Tensor:
    """(B, T) q log(q / p) + (1 - q) log((1 - q) / (1 - p)), q = pi_old, p = pi; no gradient."""
    q, p = tokens.old.exp(), tokens.logprobs.exp()
    others = [(1 - share).clamp(min=LEAST_PROBABILITY) for share in (q, p)]
    divergence = others[0] * (others[0] / others[1]).log() - q * tokens.log_ratio
    return torch.where(tokens.mask, divergence, torch.zeros_like(divergence)).detach()


def vespo(tokens: Tokens, advantages: Tensor, settings: VESPO) -> Tensor:
    """exp(lambda + k log w - lambda w), detached, times A log pi; w is the product of the
    completion's ratios, k and lambda go by the sign of A (arXiv 2602.10693)."""
    log_weight = tokens.log_ratio.sum(1, keepdim=True).clamp(LEAST_LOG_WEIGHT, MAX_LOG_RATIO)
    negative = advantages < 0
    k = torch.full_like(advantages, settings.k_positive)
    k = k.masked_fill(negative, settings.k_negative)
    decay = torch.full_like(advantages, settings.lambda_positive)
    decay = decay.masked_fill(negative, settings.lambda_negative)
    weight = (decay + k * log_weight - decay * log_weight.exp()).exp()
    return _weighted(tokens, advantages, weight)


def _weighted(tokens: Tokens, advantages: Tensor, weight: Tensor) -> Tensor:
    return weight.detach() * advantages * tokens.current


def _masked(
    tokens: Tokens, advantages: Tensor, max_ratio: float, rises: Tensor, falls: Tensor
) -> Tensor:
    """Nothing where the advantage pushes on what has moved too far already."""
    weight = tokens.ratio.clamp(max=max_ratio)
    outside = torch.where(advantages > 0, rises, falls)
    return _weighted(tokens, advantages, weight.masked_fill(outside, 0.0))


# --- with a pull back on every token -------------------------------------------------------------


def ipo(tokens: Tokens, advantages: Tensor, settings: IPO) -> Tensor:
    """r A where |pi - pi_old| <= delta, else 0; minus tau log^2 r on every token (prime-rl)."""
    ratio = tokens.ratio.masked_fill(tokens.moved.abs() > settings.delta, 0.0)
    return ratio * advantages - settings.tau * tokens.log_ratio.square()


def dro(tokens: Tokens, advantages: Tensor, settings: DRO) -> Tensor:
    """A log pi - beta / 2 log^2 r (arXiv 2405.19107, as in verl)."""
    return advantages * tokens.current - settings.beta / 2 * tokens.log_ratio.square()


# --- all of them ---------------------------------------------------------------------------------

TRUST_REGIONS: dict[str, Callable[[Tokens, Tensor, Any], Tensor]] = {
    "pspo": pspo,
    "clip": clip,
    "noclip": noclip,
    "sapo": sapo,
    "cispo": cispo,
    "gmpo": gmpo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "ipo": ipo,
    "vespo": vespo,
    "cfpo": cfpo,
    "dgpo": dgpo,
    "dro": dro,
}
