"""Read the prompts of a batch, each distinct one once.

R rows, U distinct prompts among them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kit.model.policy import NextLogits
from kit.model.requests import Request
from kit.model.shape import PREFILL_TOKENS


@dataclass(frozen=True, slots=True)
class Prompts:
    """What was read, left-padded."""

    cache: DynamicCache  # of U rows
    mask: Tensor  # (U, width) int64
    logits: Tensor  # (U, V) of what follows
    owner: Tensor  # (R,) the prompt of each row
    lengths: Tensor  # (U,) tokens


def read_prompts(
    next_logits: NextLogits, requests: Sequence[Request], pad_id: int, device: torch.device
) -> Prompts:
    """Compute each distinct (adapter, prompt) once.

    A forward pass reads up to PREFILL_TOKENS: its activations would else be the most memory that
    anything here takes.
    """
    index: dict[tuple[str, tuple[int, ...]], int] = {}
    owner = [index.setdefault((r.adapter, r.prompt), len(index)) for r in requests]
    names = [adapter for adapter, _ in index]
    prompts = [prompt for _, prompt in index]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()  # (U, width)
    share = max(1, PREFILL_TOKENS // width)
    caches, logits = [], []
    for start in range(0, len(prompts), share):
        some = slice(start, start + share)
        caches.append(DynamicCache())
        logits.append(
            next_logits(
                names[some],
                input_ids=ids[some],
                attention_mask=mask[some],
                position_ids=(mask[some].cumsum(1) - 1).clamp(min=0),
                past_key_values=caches[-1],
            )
        )
    rows = torch.tensor(owner, device=device)
    return Prompts(_joined(caches), mask, torch.cat(logits), rows, lengths)


def _joined(caches: list[DynamicCache]) -> DynamicCache:
    """One cache with the rows of all; these are emptied, so that only one layer exists twice."""
    if len(caches) == 1:
        return caches[0]
    joined = DynamicCache()
    for number in range(len(caches[0].layers)):
        parts: list[Any] = [cache.layers.pop(0) for cache in caches]
        joined.update(
            torch.cat([part.keys for part in parts]),
            torch.cat([part.values for part in parts]),
            number,
        )
    return joined
