"""Say before anything is downloaded what training will need on a GPU, and what to change.

The model's shape comes from its config.json: of the embedded model or a folder, from the hub's
cache, from the built-in table of Qwen2.5, or else from the hub. Imports no torch. The arithmetic of
memory is in kit.estimate.memory; the times are a range from the GPU's data sheet, not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from tabulate import tabulate

from kit.config import Config
from kit.estimate.gpus import _GPUS, _KNOWN, DEFAULT_GPU, GPU, find_gpu
from kit.estimate.memory import GIB, Memory, Phase
from kit.estimate.times import FAST, SLOW, _seconds
from kit.model.shape import find_shape


@dataclass(frozen=True, slots=True)
class Advice:
    """A change, and the peak with it and all changes before it."""

    override: str
    peak: int  # bytes
    price: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was found; `str` is the table, `record` the same for JSON."""

    model: str
    source: str
    dtype: str
    gpu: GPU
    phases: tuple[Phase, ...]
    rows: dict[str, tuple[int, int]]  # wave -> rows at once, of how many
    micro_batch: tuple[int, int]  # tokens, of the longest row
    advice: tuple[Advice, ...]
    seconds: dict[str, tuple[float, float]]  # empty where the GPU's speed is not known

    @property
    def peak(self) -> int:
        return max(phase.total for phase in self.phases)

    @property
    def fits(self) -> bool:
        return self.peak <= self.gpu.memory

    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON; memory in bytes, times in seconds as [least, most]."""
        phases = [{**asdict(phase), "total": phase.total} for phase in self.phases]
        return {**asdict(self), "phases": phases, "peak": self.peak, "fits": self.fits}

    def __str__(self) -> str:
        parts = [self._verdict(), self._memory(), self._sizes(), *self._changes(), self._times()]
        return "\n\n".join(parts)

    def _verdict(self) -> str:
        fullest = max(self.phases, key=lambda phase: phase.total).name
        verdict = "fits" if self.fits else "does NOT fit"
        return (
            f"{self.model} {verdict} on {self.gpu.name}: {_gib(self.peak)} of "
            f"{_gib(self.gpu.memory)} GiB at the fullest moment, {fullest}.\n"
            f"Shape of the model: {self.source}; computed in {self.dtype}."
        )

    def _memory(self) -> str:
        names = dict.fromkeys(itertools.chain.from_iterable(p.parts for p in self.phases))
        rows: list[list[str]] = [
            [name, *(_gib(p.parts[name]) if p.parts.get(name) else "" for p in self.phases)]
            for name in names
        ]
        rows.append(["together", *(_gib(p.total) for p in self.phases)])
        headers = ["GiB", *(phase.name for phase in self.phases)]
        return tabulate(
            rows,
            headers,
            disable_numparse=True,
            colalign=("left", *["right"] * len(self.phases)),
        )

    def _sizes(self) -> str:
        tokens, row = self.micro_batch
        decoded = ", ".join(
            f"{name} {rows} of {wanted}" for name, (rows, wanted) in self.rows.items()
        )
        lines = [f"Rows decoded at once: {decoded}."] if decoded else []
        lines.append(f"Micro-batches of {tokens} tokens; the longest row there can be has {row}.")
        return "\n".join([*lines, "The columns follow each other in time: the largest one counts."])

    def _changes(self) -> list[str]:
        if self.fits:
            return []
        lines = [f"  {a.override:36} {_gib(a.peak):>6} GiB  {a.price}" for a in self.advice]
        enough = self.advice and self.advice[-1].peak <= self.gpu.memory
        title = "To make it fit, add" if enough else "These help, but are not enough"
        lines.insert(0, f"{title} (in this order; peak with each and those above it):")
        if not enough:
            larger = [name for name, (memory, *_) in _GPUS.items() if memory * GIB >= self.peak]
            where = f" or a larger GPU ({', '.join(larger)})" if larger else ""
            lines.append(f"Take a smaller model{where}.")
        return ["\n".join(lines)]

    def _times(self) -> str:
        if not self.seconds:
            return f"Times: the speed of {self.gpu.name} is not known; name one of {_KNOWN}."
        lines = [f"  {name:12} {_span(*bounds)}" for name, bounds in self.seconds.items()]
        return "\n".join(
            [
                "Times, not measured: bytes and operations counted, speeds from the data sheet.",
                *lines,
                f"  least: texts of {FAST.length:.0%} of the limits, {FAST.signal:.0%} of the "
                f"groups teach, {FAST.flops:.0%} of the peak arithmetic",
                f"  most: every text at its limit, every group teaches, {SLOW.flops:.0%} of it",
            ]
        )


def estimate(config: Config, gpu: str | None = None) -> Forecast:
    """Memory and time of `kit train` with this configuration on one GPU.

    Raises ConfigError for an unknown GPU, ModelError when the shape of the model is not known.
    """
    device = find_gpu(gpu or DEFAULT_GPU)
    model = config.model
    shape, source = find_shape(model.source if model.path else model.id, model.revision)
    memory = Memory(shape, config, device.memory)
    dtype = config.model.dtype
    found = Forecast(
        model=config.model.id,
        source=source,
        dtype=dtype if dtype != "auto" else "bfloat16" if device.bfloat16 else "float16",
        gpu=device,
        phases=tuple(memory.phases()),
        rows={wave.name: (memory.rows(wave), wave.rows) for wave in memory.waves},
        micro_batch=(memory.micro_batch, memory.row),
        advice=(),
        seconds=_seconds(memory, device),
    )
    return found if found.fits else replace(found, advice=tuple(_advise(memory)))


# --- what to change ------------------------------------------------------------------------------


def _advise(memory: Memory) -> Iterator[Advice]:
    """Changes that help, cheapest first, until the estimate fits or none is left."""
    missing = _missing(memory)
    for key, values, price in _levers(memory):
        tried = [(value, _with(memory, key, value)) for value in values]
        left = [_missing(changed) for _, changed in tried]
        if not left or min(left) >= missing:
            continue
        missing = min(left)
        value, memory = tried[left.index(missing)]  # the mildest of those that help most
        text = str(value).lower() if isinstance(value, bool) else value
        yield Advice(f"{key}={text}", _peak(memory), price)
        if missing == 0:
            return


def _levers(memory: Memory) -> list[tuple[str, list[Any], str]]:
    """Settings, the values to try and what they cost; first those that leave the results alone."""
    config = memory.config
    quantization = config.model.quantization
    rows = max((memory.rows(wave) for wave in memory.waves), default=1)
    budget, row = config.train.micro_batch_tokens, memory.row
    return [
        (
            "model.gradient_checkpointing",
            [] if config.model.gradient_checkpointing else [True],
            "same results, updates about 30 % slower",
        ),
        (
            "train.micro_batch_tokens",
            [*_halves(budget, row), row] if budget > row else [],
            "same results, a little slower",
        ),
        ("rollout.max_rows", _halves(rows, 1), "same results, slower sampling"),
        (
            "rollout.dequantize",
            ["never"] if memory.copy else [],
            "same results, slower sampling",
        ),
        ("train.logprob_chunk", _halves(config.train.logprob_chunk, 32), "same results"),
        (
            "optim.name",
            ["adamw_8bit"] if config.optim.name == "adamw" else [],
            "rounded optimizer state",
        ),
        ("model.quantization", ["nf4"] if quantization != "nf4" else [], "a rounded base"),
        (
            "data.max_prompt_tokens",
            _halves(config.data.max_prompt_tokens, 128),
            "longer problems are left out",
        ),
        (
            "rollout.max_new_tokens",
            _halves(config.rollout.max_new_tokens, 128),
            "longer answers are cut off",
        ),
        ("lora.rank", _halves(config.lora.rank, 8), "fewer trained weights"),
    ]


def _halves(value: int, least: int) -> list[int]:
    """value / 2, value / 4, …, not below `least`."""
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _with(memory: Memory, key: str, value: Any) -> Memory:
    name, field = key.split(".")
    section = getattr(memory.config, name).model_copy(update={field: value})
    return Memory(memory.shape, memory.config.model_copy(update={name: section}), memory.gpu)


def _peak(memory: Memory) -> int:
    return max(phase.total for phase in memory.phases())


def _missing(memory: Memory) -> int:
    """Bytes over the limit, of all phases together, so that each step towards it counts."""
    return sum(max(0, phase.total - memory.gpu) for phase in memory.phases())


# --- times ---------------------------------------------------------------------------------------


# --- texts ---------------------------------------------------------------------------------------


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _span(least: float, most: float) -> str:
    """A range in the unit that suits its upper end."""
    unit, name = (1, "s") if most < 120 else (60, "min") if most < 7200 else (3600, "h")
    shown = [f"{x / unit:.0f}" if x >= 10 * unit else f"{x / unit:.1f}" for x in (least, most)]
    return f"{shown[0]} to {shown[1]} {name}"
