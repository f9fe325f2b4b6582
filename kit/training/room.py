"""What the memory at hand leaves room for, settled before anything is loaded, and said."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from kit.cards import CONTEXT
from kit.config import Config, memory_size
from kit.errors import ModelError
from kit.estimate.fit import chosen, fit, shape_for_budget, shape_of
from kit.estimate.memory import Memory, with_value
from kit.model.hardware import free_memory

if TYPE_CHECKING:
    from kit.model.base import Base

log = logging.getLogger(__name__)

CHECKPOINTING, MICRO_BATCH = "model.gradient_checkpointing", "train.micro_batch_tokens"


def settle(
    configs: Sequence[Config], device: torch.device, base: Base | None = None
) -> list[Config]:
    """The configurations, which train together, with what is left to the memory settled for all.

    `base` where it is loaded already. Raises ConfigError where `memory_budget` is too small for
    anything, or cannot be obeyed.
    """
    most = max(config.train.micro_batch_tokens for config in configs)
    first, others = with_value(configs[0], MICRO_BATCH, most), configs[1:]
    if first.memory_budget:
        values = chosen(_fitted(first, others, device, base))
    else:
        values = {CHECKPOINTING: _checkpointed(first, others, device, base)}
    return [_with_all(config, values) for config in configs]


def _with_all(config: Config, values: dict[str, Any]) -> Config:
    for key, value in values.items():
        own = config.train.micro_batch_tokens
        config = with_value(config, key, min(own, value) if key == MICRO_BATCH else value)
    return config


def _fitted(
    config: Config, others: Sequence[Config], device: torch.device, base: Base | None
) -> Config:
    """As kit.estimate.fit has it, on the CPU by the arithmetic of float32."""
    assert config.memory_budget is not None
    shape = shape_for_budget(config)
    room = memory_size(config.memory_budget)
    dtype = config.model.dtype
    if device.type == "cuda":
        room = min(room, _there(device, base))
    elif dtype == "auto":
        dtype = "float32"
    settled = fit(shape, with_value(config, "model.dtype", dtype), room, others)
    peak = Memory(shape, settled, room, others).peak
    log.info(
        "memory_budget=%s: %s; %.1fGB at the fullest moment, by the estimate",
        config.memory_budget,
        " ".join(f"{key}={str(value).lower()}" for key, value in chosen(settled).items()),
        peak / 1e9,
    )
    return settled


def _checkpointed(
    config: Config, others: Sequence[Config], device: torch.device, base: Base | None
) -> bool:
    """On a GPU, unless the update is known to fit without."""
    asked = config.model.gradient_checkpointing
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return False
    try:
        return Memory(shape_of(config), config, _there(device, base), others).checkpointed
    except ModelError as error:
        log.info("gradient checkpointing is on: %s", error)
        return True


def _there(device: torch.device, base: Base | None) -> int:
    """Bytes of a GPU that training may take, those included that a loaded base has taken."""
    free = free_memory(device)
    if base is None:
        return free
    return free + base.model.get_memory_footprint() + int(CONTEXT)
