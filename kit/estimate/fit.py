"""Choose what fits into a memory budget: rows, micro-batch, dequantized copy, checkpointing.

Sampling and the update follow each other, so each gets the whole budget. What the configuration
settles stays as it is; rollout.max_rows and train.micro_batch_tokens are the most there may be.
`others` are arms that train together with the configuration, on the same base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from kit.config import Config, memory_size
from kit.errors import ConfigError, ModelError
from kit.estimate.memory import Memory, with_value
from kit.model.shape import Shape, find_shape

# rather checkpointing than micro-batches below this share of what was asked for
LEAST_SHARE = 0.5
# rather packed weights than fewer rows at once than this share of what there could be
LEAST_ROWS = 0.5

CHOSEN = (
    "rollout.max_rows",
    "rollout.dequantize",
    "train.micro_batch_tokens",
    "model.gradient_checkpointing",
)


def fit(shape: Shape, config: Config, room: int, others: Sequence[Config] = ()) -> Config:
    """The configuration with all that CHOSEN names settled so that it runs in `room` bytes.

    Raises ConfigError where nothing does, with the smallest budget that would.
    """

    def measured(config: Config) -> Memory:
        return Memory(shape, config, room, others)

    settled = _sampling(measured, _update(measured, config))
    memory = measured(settled)
    if memory.peak > room:
        what = f"{len(memory.arms)} arms that train together" if others else "this configuration"
        raise ConfigError(
            f"memory_budget={config.memory_budget}: {room / 1e9:.2f}GB are not enough for {what}, "
            "however the work is cut up; the smallest that is: "
            f"memory_budget={math.ceil(memory.peak / 1e7) / 100:.2f}GB"
        )
    return settled


def check_budget(config: Config, others: Sequence[Config] = ()) -> None:
    """Raise ConfigError, without torch, for a budget that is too small even in 16 bits."""
    if config.memory_budget is not None:
        fit(shape_for_budget(config), config, memory_size(config.memory_budget), others)


def shape_for_budget(config: Config) -> Shape:
    """The shape of the base; ConfigError where it is not known and so no budget can be obeyed."""
    try:
        return shape_of(config)
    except ModelError as error:
        raise ConfigError(f"memory_budget cannot be obeyed: {error}") from error


def shape_of(config: Config) -> Shape:
    """The shape of the base; ModelError where it is not known."""
    model = config.model
    return find_shape(model.source if model.path else model.id, model.revision)[0]


def chosen(config: Config) -> dict[str, Any]:
    """What `fit` has settled, by dotted name."""
    return {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in CHOSEN}


def _update(measured: Callable[[Config], Memory], config: Config) -> Config:
    """Checkpointing and micro-batch; the leanest where nothing fits."""
    memory = measured(config)
    asked, most = config.model.gradient_checkpointing, memory.micro_batch
    least = min(memory.unit, most)
    for checkpointed in (False, True) if asked == "auto" else (asked,):
        settled = with_value(config, "model.gradient_checkpointing", checkpointed)

        def fits(tokens: int, settled: Config = settled) -> bool:
            changed = with_value(settled, "train.micro_batch_tokens", tokens)
            return measured(changed).update().total <= memory.gpu

        enough = least if checkpointed or asked is False else int(LEAST_SHARE * most)
        if fits(max(least, enough)):
            break
    return with_value(settled, "train.micro_batch_tokens", _largest(least, most, fits))


def _sampling(measured: Callable[[Config], Memory], config: Config) -> Config:
    """The copy and the rows decoded at once; the leanest where nothing fits."""
    asked = config.rollout.dequantize
    found = {}
    for mode in ("always", "never") if asked == "auto" else (asked,):
        changed = with_value(config, "rollout.dequantize", mode)
        found[mode] = with_value(changed, "rollout.max_rows", _rows(measured, changed))
    fast, lean = next(iter(found.values())), found[mode]
    memory = measured(fast)
    fits = memory.sampling_peak <= memory.gpu
    enough = fast.rollout.max_rows >= LEAST_ROWS * lean.rollout.max_rows
    return fast if fits and enough else lean


def _rows(measured: Callable[[Config], Memory], config: Config) -> int:
    """The most rows at once that fit, at least one."""
    memory = measured(config)
    rows = max((wave.rows for wave in memory.waves), default=1)
    most = min(rows, config.rollout.max_rows or rows)

    def fits(rows: int) -> bool:
        return measured(with_value(config, "rollout.max_rows", rows)).sampling_peak <= memory.gpu

    return _largest(1, most, fits)


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest number that fits; `least` where none does."""
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle):
            least = middle
        else:
            most = middle - 1
    return least
