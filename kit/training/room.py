"""What the memory at hand leaves room for, settled before anything is loaded, and said."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kit.config import Config, memory_size
from kit.errors import ModelError
from kit.estimate.fit import chosen, fit, shape_for_budget, shape_of
from kit.estimate.memory import CONTEXT, Memory, with_value
from kit.model.hardware import free_memory

log = logging.getLogger(__name__)


def settle(configs: Sequence[Config], device: torch.device) -> list[Config]:
    """The configurations, all of one base, with what is left to the memory settled alike for all.

    Raises ConfigError where `memory_budget` is too small for anything, or cannot be obeyed.
    """
    first = configs[0]
    settled = _fitted(first, device) if first.memory_budget else _checkpointed(first, device)
    values = chosen(settled).items()
    found = []
    for config in configs:
        for key, value in values:
            config = with_value(config, key, value)
        found.append(config)
    return found


@contextmanager
def limited(budget: str | None, device: torch.device) -> Iterator[None]:
    """Inside, PyTorch takes no more than this of a GPU; what runs out then is cut up as ever."""
    if budget is None or device.type != "cuda":
        yield
        return
    _, total = torch.cuda.mem_get_info(device)
    share = min(1.0, (memory_size(budget) - CONTEXT) / total)
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _fitted(config: Config, device: torch.device) -> Config:
    """As kit.estimate.fit has it, on the CPU by the arithmetic of float32."""
    assert config.memory_budget is not None
    shape = shape_for_budget(config)
    room = memory_size(config.memory_budget)
    dtype = config.model.dtype
    if device.type == "cuda":
        room = min(room, free_memory(device))
    elif dtype == "auto":
        dtype = "float32"
    settled = fit(shape, with_value(config, "model.dtype", dtype), room)
    peak = Memory(shape, settled, room).peak
    log.info(
        "memory_budget=%s: %s; %.1fGB at the fullest moment, by the estimate",
        config.memory_budget,
        " ".join(f"{key}={str(value).lower()}" for key, value in chosen(settled).items()),
        peak / 1e9,
    )
    return settled


def _checkpointed(config: Config, device: torch.device) -> Config:
    """With gradient checkpointing on a GPU, unless the update is known to fit without."""
    if config.model.gradient_checkpointing != "auto":
        return config
    on = device.type == "cuda"
    if on:
        try:
            on = Memory(shape_of(config), config, free_memory(device)).checkpointed
        except ModelError as error:
            log.info("gradient checkpointing is on: %s", error)
    return with_value(config, "model.gradient_checkpointing", on)
