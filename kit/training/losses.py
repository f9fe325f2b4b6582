"""The losses of DPO and KTO: pure tensors in, a loss and what it says out.

A change is the log-probability of a whole completion under the policy minus that under the
reference, in nats; beta times it is the completion's implicit reward. N completions or pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kit.config import PreferencesConfig

Metrics = dict[str, float]


def dpo_loss(changes: Tensor, config: PreferencesConfig) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)) summed over pairs; `changes` (N, 2): chosen, rejected.

    arXiv 2305.18290, eq. 7. A share `label_smoothing` of every pair counts the other way round, as
    in the authors' code; TRL's `sigmoid` passes over its own setting of that name.
    """
    margins = config.beta * (changes[:, 0] - changes[:, 1])
    smoothing = config.label_smoothing
    return -((1 - smoothing) * logsigmoid(margins) + smoothing * logsigmoid(-margins)).sum()


def kto_loss(changes: Tensor, labels: Tensor, kl: float, config: PreferencesConfig) -> Tensor:
    """weight (1 - value) summed over completions; `changes` (N,), `labels` (N,) bool.

    The value is sigmoid(beta (change - kl)) of a desirable one, sigmoid(beta (kl - change)) of an
    undesirable one (arXiv 2402.01306, eq. 7 and 8; as in TRL the weights multiply the whole term).
    """
    values = torch.sigmoid(config.beta * torch.where(labels, changes - kl, kl - changes))
    weights = torch.where(labels, config.desirable_weight, config.undesirable_weight)
    return (weights * (1 - values)).sum()


def dpo_metrics(changes: Tensor, config: PreferencesConfig) -> Metrics:
    """Means over pairs; `changes` (N, 2)."""
    chosen, rejected = changes.unbind(1)
    return {
        "dpo/margin": config.beta * (chosen - rejected).mean().item(),
        "dpo/accuracy": (chosen > rejected).float().mean().item(),
        "dpo/chosen_change": chosen.mean().item(),
        "dpo/rejected_change": rejected.mean().item(),
    }


def kto_metrics(changes: Tensor, labels: Tensor, kl: float, config: PreferencesConfig) -> Metrics:
    """Means over completions of each label, as far as a step has both; `changes` (N,)."""
    right_side = torch.where(labels, changes > kl, changes < kl)
    found = {"kto/kl": kl, "kto/accuracy": right_side.float().mean().item()}
    sides = {"desirable": changes[labels], "undesirable": changes[~labels]}
    means = {name: side.mean().item() for name, side in sides.items() if len(side)}
    found |= {f"kto/{name}_change": mean for name, mean in means.items()}
    if len(means) == 2:
        found["kto/margin"] = config.beta * (means["desirable"] - means["undesirable"])
    return found
