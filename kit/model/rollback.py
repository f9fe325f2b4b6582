"""Put a model back as it was when a change to it fails halfway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def rolled_back(model: nn.Module) -> Iterator[None]:
    """Undo what was done inside to the modules of `model` when that raises, Ctrl-C included.

    Submodules, parameters, buffers, hooks, replaced methods and gradient flags come back as the
    very same objects; numbers that were written into a tensor in place do not.
    """
    before = [(module, dict(vars(module)), _contents(module)) for module in model.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in contents:  # in place: others may hold the same one
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        for parameter, requires_grad in learning:
            parameter.requires_grad_(requires_grad)
        raise


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among the attributes of a module, each with what is in it."""
    return [
        (value, value.copy())
        for value in vars(module).values()
        if isinstance(value, dict | list | set)
    ]
