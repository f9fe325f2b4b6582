"""Rows of different LoRA adapters in one batch, at the price of three products per layer.

R rows, S tokens, k adapters of ranks r_1 … r_k, N = r_1 + … + r_k.

PEFT's own per-row adapters take every adapter's rows out of the batch and put them back, in every
layer: for many adapters and one token per row that costs more than the base model. Here the A
matrices of all adapters stand side by side, a mask keeps of each row the part that is its own
adapter's, and the B matrices below each other bring it back:

    y = base(x) + ((x A^T) * mask) B^T        A (N, in), mask (R, 1, N), B (out, N)

The mask holds each adapter's scaling; the rows of the bare base have zeros only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

if TYPE_CHECKING:
    from peft import PeftModel


def is_plain(model: PeftModel, adapters: Sequence[str]) -> bool:
    """Whether these adapters are nothing but A and B on linear layers."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return not any(
        getattr(model.peft_config[name], key, None)
        for name in adapters
        for key in ("lora_bias", "modules_to_save", "trainable_token_indices")
    ) and not any(
        name in layer.lora_embedding_A or name in layer.lora_variant  # DoRA and the like
        for name in adapters
        for layer in layers
    )


class RowAdapters:
    """Which adapter each row of the batch belongs to; set before every forward."""

    def __init__(self, adapters: Sequence[str], device: torch.device) -> None:
        self.index = {name: i for i, name in enumerate(adapters)}
        self.device = device
        self.rows: Tensor = torch.empty(0, dtype=torch.long, device=device)

    def set(self, names: Sequence[str]) -> None:
        """Names of the adapters of rows 0, 1, …; unknown ones are rows of the bare base."""
        ids = [self.index.get(name, len(self.index)) for name in names]
        self.rows = torch.tensor(ids, device=self.device)


@contextmanager
def mixed_lora(model: PeftModel, adapters: Sequence[str]) -> Iterator[RowAdapters]:
    """Inside, `model.base_model.model` computes each row with the adapter that was set for it."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    rows = RowAdapters(adapters, next(model.parameters()).device)
    try:
        for layer in layers:  # memory may run out halfway
            layer.forward = partial(_forward, layer, rows, *_side_by_side(layer, adapters))
        yield rows
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _side_by_side(layer: Any, adapters: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """A (N, in), B (out, N), and the mask of each adapter, (k + 1, N); the last is the base's."""
    mine = [name for name in adapters if name in layer.lora_A]  # not every adapter has every layer
    a = torch.cat([layer.lora_A[name].weight for name in mine])
    b = torch.cat([layer.lora_B[name].weight for name in mine], dim=1)
    masks = a.new_zeros(len(adapters) + 1, len(a))
    start = 0
    for name in mine:
        end = start + layer.r[name]
        masks[adapters.index(name), start:end] = layer.scaling[name]
        start = end
    return a, b, masks


def _forward(
    layer: Any, rows: RowAdapters, a: Tensor, b: Tensor, masks: Tensor, x: Tensor
) -> Tensor:
    result = layer.get_base_layer()(x)
    mask = masks[rows.rows].unsqueeze(1)  # (R, 1, N)
    delta = torch.nn.functional.linear(x.to(a.dtype), a) * mask
    return result + torch.nn.functional.linear(delta, b).to(result.dtype)
