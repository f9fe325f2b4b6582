"""Attention that reads every key once while decoding, and always has a mask.

R rows, H query heads, K key heads, S query positions, L positions in the cache, D numbers a head.
transformers copies each key head H / K times wherever there is a mask, which is most of what a
decoded token costs; and without padding it drops the mask, which on GPUs before Ampere leaves no
fast kernel for grouped heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)

from kit.model.packing import Group, packed_attention
from kit.model.shape import FAMILIES

GROUPED = "kit_grouped"  # as transformers knows it
LIBRARY = "sdpa"  # what it stands on


def suits(settings: PreTrainedConfig) -> bool:
    """Whether a model attends to all that came before, without windows, caps or other additions."""
    return settings.model_type in FAMILIES and getattr(settings, "sliding_window", None) is None


def use_grouped(model: PreTrainedModel) -> None:
    """Let a model that it suits compute with the attention of this file."""
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, full_mask)
    model.set_attn_implementation(GROUPED)


@contextmanager
def library_attention(model: PreTrainedModel, attention: str) -> Iterator[str]:
    """Inside, a model loaded with `attention` computes to the bit as others will; yields with what
    they have to load it."""
    if attention != GROUPED:
        yield attention
        return
    model.set_attn_implementation(LIBRARY)
    try:
        yield LIBRARY
    finally:
        model.set_attn_implementation(GROUPED)


def full_mask(*sizes: Any, **settings: Any) -> Tensor:
    """(R, 1, S, L) bool, true where a query may look: transformers' own, also without padding."""
    settings |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return AttentionMaskInterface()[LIBRARY](*sizes, **settings)


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    groups: Sequence[Group] = (),
    **settings: Any,
) -> tuple[Tensor, None]:
    """(R, H, S, D), (R, K, L, D) twice, (R, 1, S, L) -> (R, S, H, D).

    `groups`, where there are any, say who may look where in one packed row: see kit.model.packing.

    For one query position, the heads that share a key are H / K positions of one head: nothing is
    copied. Longer queries are left to the library: there the mask would be repeated in place of
    the keys, and an update of the embedded model took as long (median of six paired ratios 1.00).
    A row's path does not depend on how long the others are, but for prompts of one token.
    """
    if groups:
        return packed_attention(query, key, value, groups, scaling), None
    rows, heads, steps, width = query.shape
    if steps > 1:
        return AttentionInterface()[LIBRARY](
            *(module, query, key, value, attention_mask),
            dropout=dropout,
            scaling=scaling,
            **settings,
        )
    output = scaled_dot_product_attention(
        *(query.reshape(rows, key.shape[1], -1, width), key, value),
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(rows, 1, heads, -1), None
