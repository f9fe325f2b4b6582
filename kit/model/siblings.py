"""Modules of a layer that read the same input, computed side by side.

On a GPU a decoded token is bounded by how many products it asks for, on a CPU small ones are slower
than what they add up to. O numbers that all modules of a group give for a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kit.model.shape import TOGETHER


def siblings(model: nn.Module, kind: type) -> list[list[Any]]:
    """All modules of a kind, in groups that read the same input; most are alone."""
    groups: dict[tuple[str, str | int], list[Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            parent, _, own = name.removesuffix(".base_layer").rpartition(".")
            groups.setdefault((parent, TOGETHER.get(own, own)), []).append(module)
    return list(groups.values())


class Joint:
    """What the modules of a group compute; the first that is called computes it for all."""

    def __init__(self, compute: Callable[[Tensor], Tensor], widths: Sequence[int]) -> None:
        """`compute` gives (…, O), which is `widths` of the modules side by side."""
        self.compute, self.widths = compute, list(widths)
        self.input: Tensor | None = None
        self.waiting: dict[int, Tensor] = {}  # for the modules that have not been called

    def part(self, number: int, x: Tensor) -> Tensor:
        """The output of one module; another input begins anew."""
        if x is not self.input or number not in self.waiting:
            self.input = x
            self.waiting = dict(enumerate(self.compute(x).split(self.widths, dim=-1)))
        part = self.waiting.pop(number)
        if not self.waiting:
            self.input = None
        return part


@dataclass(frozen=True, slots=True)
class Part:
    """The forward pass of one module of a group."""

    joint: Joint
    number: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.joint.part(self.number, x)


def join(
    modules: Sequence[nn.Module], compute: Callable[[Tensor], Tensor], widths: Sequence[int]
) -> None:
    """Let a group compute like this until it is taken `apart`."""
    joint = Joint(compute, widths)
    for number, module in enumerate(modules):
        module.forward = Part(joint, number)  # type: ignore[method-assign]


def apart(modules: Iterable[nn.Module]) -> None:
    """Let modules compute as their class does."""
    for module in modules:
        vars(module).pop("forward", None)


def side_by_side(modules: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """A function that computes what a group does, (…, O), in memory of its own."""
    if joint := _joined(modules):
        return joint.compute
    if len(modules) == 1:
        return modules[0]
    return lambda x: torch.cat([module(x) for module in modules], dim=-1)


def one_by_one(modules: Sequence[nn.Module]) -> Callable[[Tensor], Sequence[Tensor]]:
    """The same, what each module gives by itself, laid out in memory as it gives it."""
    if joint := _joined(modules):
        return lambda x: joint.compute(x).split(joint.widths, dim=-1)
    return lambda x: [module(x) for module in modules]


def _joined(modules: Sequence[nn.Module]) -> Joint | None:
    """What computes exactly these together."""
    computing = [vars(module).get("forward") for module in modules]
    if not isinstance(computing[0], Part):
        return None
    joint = computing[0].joint
    # of a packed group, those that have adapters do not take part
    parts = [Part(joint, number) for number in range(len(joint.widths))]
    return joint if computing == parts else None
