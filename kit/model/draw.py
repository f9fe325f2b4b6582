"""Draw the next token of every row, from its own random numbers.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.model.requests import Sampling


class Chosen(NamedTuple):
    """One token per row, each (R,)."""

    tokens: Tensor
    logprobs: Tensor  # before any truncation by top_p or top_k; NaN where any logit was
    cut_off: Tensor | None  # probability that the truncation took away, float64; None without one


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Chosen:
    """Draw one token per row by inverting the cumulative distribution at `uniforms`.

    Args: logits (R, V) float32, uniforms (R,) in [0, 1).
    """
    cut_off = None
    greedy = sampling.temperature == 0
    logprobs = torch.log_softmax(logits / (1 if greedy else sampling.temperature), dim=-1)
    if greedy:
        tokens = logits.argmax(-1)
    else:
        probs = truncate(logprobs.exp(), sampling.top_p, sampling.top_k).double()
        cumulative = probs.cumsum(-1)
        if sampling.truncates:
            cut_off = (1 - cumulative[:, -1]).clamp(min=0)
        target = uniforms[:, None].double() * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return Chosen(tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1), cut_off)


def truncate(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero all but the top_k most likely tokens, then all beyond the smallest set whose
    probability reaches top_p. (R, V) -> (R, V), not renormalised."""
    if top_k == 0 and top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k > 0:
        keep[:, top_k:] = False
    ordered = torch.where(keep, ordered, torch.zeros_like(ordered))
    if top_p < 1:
        share = ordered.cumsum(-1) / ordered.sum(-1, keepdim=True)
        before = share - ordered / ordered.sum(-1, keepdim=True)
        ordered = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probs).scatter(-1, order, ordered)


def uniform_numbers(seeds: Sequence[tuple[int, ...]], count: int) -> Tensor:
    """(R, count) uniform numbers in [0, 1), each row from its own seed."""
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(count) for seed in seeds]))
