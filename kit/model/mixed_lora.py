"""LoRA while sampling: any number of adapters in one batch, at the price of a few products a layer.

R rows, S positions, k adapters, W the sum of ranks over the modules of a group that reads the same
input (q, k, v; gate, up), of the largest adapter each, O what these modules give together.

PEFT computes each module by itself, and its own per-row adapters take every adapter's rows out of
the batch and put them back. Here the A matrices of a group's modules stand side by side, a block
for each adapter, and so do the B matrices, scaled, with zeros between the modules:

    y = base(x) + (x A^T * mask) B^T        A (k, W, in), B (O, k W), mask (k, R, 1) of 0 and 1

The mask keeps of each row what its own adapter gives; the bare base's rows have zeros only. On a
GPU a decoded token is multiplied by it before A: an elementwise product that changes the type, too,
is one launch and not two. For prompts that would hold k copies of the input, and a CPU counts no
launches. Where all rows are of one adapter there is no mask.
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

    def __init__(self, adapters: Sequence[str], weight: Tensor) -> None:
        """`weight`: one of theirs, for its device and type."""
        self.numbers = {name: i for i, name in enumerate(adapters)}
        none = weight.new_zeros(len(adapters), 1)  # of the bare base
        self.table = torch.cat([torch.eye(len(adapters)).to(weight), none], dim=1)
        self.names: list[str] = []
        self.mask = none[:, :0, None]  # (k, R, 1)

    def set(self, names: Sequence[str]) -> None:
        """Names of the adapters of rows 0, 1, …; unknown ones are rows of the bare base.

        Nothing is sent to the device while they stay the same.
        """
        if names != self.names:
            ids = [self.numbers.get(name, len(self.numbers)) for name in names]
            rows = torch.tensor(ids, device=self.table.device)
            self.mask = self.table[:, rows, None]
            self.names = list(names)


@contextmanager
def mixed_lora(
    model: PeftModel, adapters: Sequence[str], *, alone: bool = False
) -> Iterator[RowAdapters]:
    """Inside, `model.base_model.model` computes each row with the adapter that was set for it.

    `alone`: all rows are of the one adapter there is, and nothing need be set.
    """
    groups = siblings(model, LoraLayer)
    weights = (p for n, p in model.named_parameters() if f".lora_A.{adapters[0]}." in n)
    rows = RowAdapters(adapters, next(weights))
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
    stacked = _stacked(layers, list(rows.numbers))
    if stacked is None:  # not every adapter has every layer
        return base
    a, b = stacked

    def compute(x: Tensor) -> Tensor:
        if alone:
            low = linear(x.to(a.dtype), a[0])
        elif x.is_cuda and x.shape[1] == 1:
            low = _of_tokens(x, a, rows.mask)
        else:
            low = _of_any(x, a, rows.mask)
        return base(x).add_(linear(low, b))

    return compute


def _of_any(x: Tensor, a: Tensor, mask: Tensor) -> Tensor:
    """(R, S, in), (k, W, in), (k, R, 1) -> (R, S, k W)."""
    low = linear(x.to(a.dtype), a.flatten(0, 1)).unflatten(-1, a.shape[:2])
    return (low * mask.permute(1, 2, 0)[..., None]).flatten(-2)


def _of_tokens(x: Tensor, a: Tensor, mask: Tensor) -> Tensor:
    """The same of one position, (R, 1, in), in one launch less on a GPU."""
    low = a.new_empty(len(x), 1, a.shape[0] * a.shape[1])
    by_adapter = low.view(len(x), *a.shape[:2]).transpose(0, 1)
    torch.bmm(x.transpose(0, 1) * mask, a.mT, out=by_adapter)
    return low


def _stacked(layers: Sequence[Any], adapters: Sequence[str]) -> tuple[Tensor, Tensor] | None:
    """A (k, W, in) and B (O, k W), scaled, zero where an adapter is smaller or is not there."""
    found = [(layer, n) for layer in layers for n in adapters if n in layer.lora_A]
    if not found:
        return None
    ranks = [max(layer.r.get(name, 0) for name in adapters) for layer in layers]
    outputs = sum(layer.out_features for layer in layers)
    first = found[0][0].lora_A[found[0][1]].weight
    a = first.new_zeros(len(adapters), sum(ranks), first.shape[1])
    b = first.new_zeros(outputs, len(adapters), sum(ranks))
    top = left = 0
    for layer, rank in zip(layers, ranks, strict=True):
        for number, name in enumerate(adapters):
            if name in layer.lora_A:
                columns = slice(left, left + layer.r[name])
                a[number, columns] = layer.lora_A[name].weight
                rows = slice(top, top + layer.out_features)
                b[rows, number, columns] = layer.lora_B[name].weight * layer.scaling[name]
        top, left = top + layer.out_features, left + rank
    return a, b.flatten(1)
