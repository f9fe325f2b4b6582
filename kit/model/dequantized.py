"""Hold 4-bit weights unpacked while a batch is decoded: same numbers, more memory, less time."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.errors import OutOfMemoryError, room_for
from kit.model.hardware import Hardware, empty_cache, free_memory
from kit.model.siblings import apart, join, siblings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)


@contextmanager
def dequantized(model: torch.nn.Module, mode: str, hardware: Hardware) -> Iterator[bool]:
    """Hold the 4-bit weights in compute precision while inside: same numbers, faster decoding.

    A 4-bit layer unpacks its weight on every call, which for one-token decoding costs more than
    the product itself. `mode` is RolloutConfig.dequantize; with `auto` this happens only when the
    copy takes less than a third of the free memory. Yields whether it was done.

    Raises OutOfMemoryError when the copy does not fit after all and `mode` is `always`.
    """
    import bitsandbytes as bnb

    groups = siblings(model, bnb.nn.Linear4bit)
    layers = [layer for group in groups for layer in group]
    size = sum(m.weight.quant_state.shape.numel() for m in layers) * hardware.dtype.itemsize
    done = bool(layers) and (
        mode == "always" or (mode == "auto" and size < free_memory(hardware.device) / 3)
    )
    try:
        if done:
            with room_for("unpacking the 4-bit weights", "set rollout.dequantize=never"):
                for group in groups:
                    dense = partial(_dense_forward, *_unpacked(group, hardware.dtype))
                    join(group, dense, [layer.out_features for layer in group])
    except OutOfMemoryError as error:
        apart(layers)
        empty_cache(hardware.device)
        if mode == "always":
            raise
        log.warning("decoding from packed weights, which is slower: %s", error)
        done = False
    try:
        yield done
    finally:
        apart(layers)


def _unpacked(layers: Sequence[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The weights (O, in) and biases (O,) of layers that read the same input, side by side."""
    from bitsandbytes.functional import dequantize_4bit

    first, heights = layers[0], [layer.out_features for layer in layers]
    weight = torch.empty(sum(heights), first.in_features, dtype=dtype, device=first.weight.device)
    for layer, part in zip(layers, weight.split(heights), strict=True):
        part.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    if all(layer.bias is None for layer in layers):
        return weight, None
    zeros = weight.new_zeros
    return weight, torch.cat(
        [
            zeros(height) if layer.bias is None else layer.bias
            for layer, height in zip(layers, heights, strict=True)
        ]
    )


def _dense_forward(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
