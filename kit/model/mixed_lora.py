"""LoRA while sampling: any number of adapters in one batch, at the price of a few products a layer.

R rows, S tokens, k adapters of ranks r_1 … r_k, N the sum of ranks over adapters and the modules of
a group that reads the same input (q, k, v; gate, up), O what these modules give together.

PEFT computes each module by itself, and its own per-row adapters take every adapter's rows out of
the batch and put them back. Here the A matrices of all adapters and modules stand side by side, a
mask keeps of each row the part that is its own adapter's, and the B matrices bring it back, each to
the numbers of its own module:

    y = base(x) + ((x A^T) * mask) B^T        A (N, in), mask (R, 1, N), B (O, N)

The mask holds each adapter's scaling; the rows of the bare base have zeros only. Where all rows are
of one adapter there is no mask, and B is scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import linear

from kit.model.siblings import apart, join, siblings, side_by_side

if TYPE_CHECKING:
    from peft import PeftModel

Columns = tuple[tuple[int, int, float], ...]  # number of the adapter, its rank and its scaling


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
        self.numbers = {name: i for i, name in enumerate(adapters)}
        self.device = device
        self.names: list[str] = []
        self.tables: dict[Columns, Tensor] = {}  # (k + 1, N), the last of the bare base
        self.masks: dict[Columns, Tensor] = {}  # (R, 1, N), of the rows at hand

    def add(self, columns: Columns, dtype: torch.dtype) -> None:
        """There is a group with these columns."""
        if columns not in self.tables:
            width = sum(rank for _, rank, _ in columns)
            table, start = torch.zeros(len(self.numbers) + 1, width, dtype=dtype), 0
            for number, rank, scaling in columns:
                table[number, start : start + rank] = scaling
                start += rank
            self.tables[columns] = table.to(self.device)

    def set(self, names: Sequence[str]) -> None:
        """Names of the adapters of rows 0, 1, …; unknown ones are rows of the bare base.

        Nothing is sent to the device while they stay the same.
        """
        if names != self.names:
            ids = [self.numbers.get(name, len(self.numbers)) for name in names]
            rows = torch.tensor(ids, device=self.device)
            self.masks = {own: table[rows].unsqueeze(1) for own, table in self.tables.items()}
            self.names = list(names)


@contextmanager
def mixed_lora(
    model: PeftModel, adapters: Sequence[str], *, alone: bool = False
) -> Iterator[RowAdapters]:
    """Inside, `model.base_model.model` computes each row with the adapter that was set for it.

    `alone`: all rows are of the one adapter there is, and nothing need be set.
    """
    groups = siblings(model, LoraLayer)
    rows = RowAdapters(adapters, next(model.parameters()).device)
    try:
        for layers in groups:  # memory may run out halfway
            widths = [layer.out_features for layer in layers]
            join(layers, _together(layers, rows, alone), widths)
        yield rows
    finally:
        apart(layer for layers in groups for layer in layers)


def _together(layers: Sequence[Any], rows: RowAdapters, alone: bool) -> Callable[[Tensor], Tensor]:
    """What a group computes with its adapters."""
    base = side_by_side([layer.get_base_layer() for layer in layers])
    a, b, columns = _stacked(layers, list(rows.numbers))
    if not columns:  # not every adapter has every layer
        return base
    if alone:
        b = b * torch.cat([b.new_full((rank,), scaling) for _, rank, scaling in columns])
    else:
        rows.add(columns, a.dtype)

    def compute(x: Tensor) -> Tensor:
        low = linear(x.to(a.dtype), a)
        if not alone:
            low = low * rows.masks[columns]
        return base(x).add_(linear(low, b))

    return compute


def _stacked(layers: Sequence[Any], adapters: Sequence[str]) -> tuple[Tensor, Tensor, Columns]:
    """A (N, in), B (O, N) with zeros between the modules, and what the N columns are."""
    there = [[name for name in adapters if name in layer.lora_A] for layer in layers]
    found = [(layer, name) for layer, mine in zip(layers, there, strict=True) for name in mine]
    if not found:
        return torch.empty(0), torch.empty(0), ()
    a = torch.cat([layer.lora_A[name].weight for layer, name in found])
    b = a.new_zeros(sum(layer.out_features for layer in layers), len(a))
    top = left = 0
    for layer, mine in zip(layers, there, strict=True):
        for name in mine:
            weight = layer.lora_B[name].weight
            b[top : top + layer.out_features, left : left + weight.shape[1]] = weight
            left += weight.shape[1]
        top += layer.out_features
    columns = ((adapters.index(n), layer.r[n], float(layer.scaling[n])) for layer, n in found)
    return a, b, tuple(columns)
