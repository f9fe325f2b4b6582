"""What to change so that a training that does not fit on a GPU fits, cheapest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kit.estimate.memory import Memory, with_value


@dataclass(frozen=True, slots=True)
class Advice:
    """A change, and the peak with it and all changes before it."""

    override: str
    peak: int  # bytes
    price: str


def advise(memory: Memory) -> Iterator[Advice]:
    """Changes that help, cheapest first, until the estimate fits or none is left."""
    missing = _missing(memory)
    for key, values, price in _levers(memory):
        tried = [_with(memory, key, value) for value in values]
        left = list(map(_missing, tried))
        if not left or min(left) >= missing:
            continue
        missing = min(left)
        mildest = left.index(missing)  # of those that help most
        memory = tried[mildest]
        yield Advice(overriding(key, values[mildest]), memory.peak, price)
        if missing == 0:
            return


def overriding(key: str, value: Any) -> str:
    """A setting as an override has it."""
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def _levers(memory: Memory) -> list[tuple[str, list[Any], str]]:
    """Settings, the values to try and what they cost; first those that leave the results alone."""
    config = memory.config
    rank = max(arm.lora.rank for arm in memory.arms)
    rows = max((memory.rows(wave) for wave in memory.waves), default=1)
    tokens = [*_halves(config.train.micro_batch_tokens, memory.unit), memory.unit]
    prompts = _halves(config.data.max_prompt_tokens, 128)
    answers = _halves(config.rollout.max_new_tokens, 128)
    return [
        ("model.gradient_checkpointing", [True], "same results, updates about 30 % slower"),
        ("train.micro_batch_tokens", tokens, "same results, a little slower"),
        ("rollout.max_rows", _halves(rows, 1), "same results, slower sampling"),
        ("rollout.dequantize", ["never"], "same results, slower sampling"),
        ("train.logprob_chunk", _halves(config.train.logprob_chunk, 32), "same results"),
        ("optim.name", ["adamw_8bit"], "rounded optimizer state"),
        ("model.quantization", ["nf4"], "a rounded base"),
        ("data.max_prompt_tokens", prompts, "longer problems are left out"),
        ("rollout.max_new_tokens", answers, "longer answers are cut off"),
        ("lora.rank", _halves(rank, 8), "fewer trained weights"),
    ]


def _halves(value: int, least: int) -> list[int]:
    """value / 2, value / 4, …, not below `least`."""
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _with(memory: Memory, key: str, value: Any) -> Memory:
    first, *others = (with_value(arm, key, value) for arm in memory.arms)
    return Memory(memory.shape, first, memory.gpu, others)


def _missing(memory: Memory) -> int:
    """Bytes over the limit, of all phases together, so that each step towards it counts."""
    return sum(max(0, phase.total - memory.gpu) for phase in memory.phases())
