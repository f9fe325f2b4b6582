"""Find the first place of a model where its numbers stop being finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[list[str]]:
    """Inside, a forward pass notes the first place, in words, whose numbers are not finite.

    The list stays empty where all modules give finite numbers. Each module waits for the device:
    only for a pass that is known to go wrong.
    """
    found: list[str] = []

    def note(name: str, module: torch.nn.Module, values: Any, what: str) -> None:
        if not found and not _is_finite(values):
            found.append(_bad_weight(name, module) or f"{what} {name} is not finite")

    def before(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            # a mask may hold -inf; hidden states come without a name or under this one
            note(name, module, (inputs, named.get("hidden_states")), "the input of")

        return hook

    def after(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            note(name, module, output, "the output of")

        return hook

    handles: list[Any] = []
    try:
        for name, module in model.named_modules():
            if name:  # the model itself has none
                handles += [
                    module.register_forward_pre_hook(before(name), with_kwargs=True),
                    module.register_forward_hook(after(name)),
                ]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def first_bad_weight(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first weight that holds NaN or infinite numbers; one wait for the device."""
    floating = {name: w.detach() for name, w in weights.items() if w.is_floating_point()}
    if not floating:
        return None
    # NaN and infinity both survive a multiplication by 0, and a sum
    sums = torch.stack([(weight * 0).sum().float() for weight in floating.values()])
    good = (sums == 0).tolist()
    return next((name for name, fine in zip(floating, good, strict=True) if not fine), None)


def _bad_weight(name: str, module: torch.nn.Module) -> str | None:
    weight = first_bad_weight(dict(module.named_parameters(recurse=False)))
    return weight and f"{name}.{weight} holds NaN or infinite numbers"


def _is_finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    if isinstance(values, Mapping):
        values = list(values.values())
    return not isinstance(values, (tuple, list)) or all(map(_is_finite, values))
