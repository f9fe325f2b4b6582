"""Say before anything is downloaded what training will need on a GPU, and what to change.

The model's shape comes from its config.json: of the embedded model or a folder, from the hub's
cache, from the built-in table of Qwen2.5, or else from the hub. Imports no torch. The arithmetic of
memory is in kit.estimate.memory; the times are a range from the GPU's data sheet, not measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tabulate import tabulate

from kit.config import Config, memory_size
from kit.estimate.advice import Advice, advise, overriding
from kit.estimate.fit import chosen, fit
from kit.estimate.gpus import DEFAULT_GPU, GPU, GPUS, KNOWN, find_gpu
from kit.estimate.memory import GIB, Memory, Phase
from kit.estimate.times import FAST, LIKELY, SLOW, step_seconds
from kit.model.shape import find_shape

WORTH = 0.95  # of a step's likely time, below which another setting is worth a line
SPARE = 0.9  # of a GPU's memory, which can be spent


@dataclass(frozen=True, slots=True)
class Faster:
    """A setting that trades memory for time, with the same results."""

    override: str
    peak: int  # bytes
    step: float  # likely seconds


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was found; `str` is the table, `record` the same for JSON."""

    model: str
    source: str
    arms: int  # that train together
    dtype: str
    gpu: GPU
    phases: tuple[Phase, ...]
    rows: dict[str, tuple[int, int]]  # wave -> rows at once, of how many
    micro_batch: tuple[int, int]  # tokens, of the longest row
    advice: tuple[Advice, ...]
    seconds: dict[str, tuple[float, float]]  # empty where the GPU's speed is not known
    likely: dict[str, float]  # seconds, likewise
    chosen: dict[str, Any]  # settings that memory_budget settled; empty without one
    faster: Faster | None = None  # what more of the memory would buy

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
            f"Shape of the model: {self.source}; computed in {self.dtype}"
            + (f"; {self.arms} arms that train together." if self.arms > 1 else ".")
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
        if self.chosen:
            settled = " ".join(overriding(key, value) for key, value in self.chosen.items())
            lines.append(f"Chosen to fit into memory_budget: {settled}.")
        return "\n".join([*lines, "The columns follow each other in time: the largest one counts."])

    def _changes(self) -> list[str]:
        if self.fits:
            return []
        lines = [f"  {a.override:36} {_gib(a.peak):>6} GiB  {a.price}" for a in self.advice]
        enough = self.advice and self.advice[-1].peak <= self.gpu.memory
        title = "To make it fit, add" if enough else "These help, but are not enough"
        lines.insert(0, f"{title} (in this order; peak with each and those above it):")
        if not enough:
            larger = [name for name, (memory, *_) in GPUS.items() if memory * GIB >= self.peak]
            where = f" or a larger GPU ({', '.join(larger)})" if larger else ""
            lines.append(f"Take a smaller model{where}.")
        return ["\n".join(lines)]

    def _times(self) -> str:
        if not self.seconds:
            return f"Times: the speed of {self.gpu.name} is not known; name one of {KNOWN}."
        lines = [
            f"  {name:12} {_span(*bounds, self.likely[name])}"
            for name, bounds in self.seconds.items()
        ]
        return "\n".join(
            [
                "Times, not measured: bytes and operations counted, speeds from the data sheet.",
                *lines,
                f"  least: texts of {FAST.length:.0%} of the limits, {FAST.signal:.0%} of the "
                f"groups teach, {FAST.flops:.0%} of the peak arithmetic",
                f"  likely: {LIKELY.length:.0%}, {LIKELY.signal:.0%} and {LIKELY.flops:.0%}",
                f"  most: every text at its limit, every group teaches, {SLOW.flops:.0%} of it",
                *self._faster(),
            ]
        )

    def _faster(self) -> list[str]:
        if self.faster is None:
            return []
        return [
            f"Faster, with the same results: {self.faster.override} takes "
            f"{_gib(self.faster.peak)} GiB, and a step likely {self.faster.step:.1f} s instead of "
            f"{self.likely['one step']:.1f} s."
        ]


def estimate(config: Config, gpu: str | None = None, others: Sequence[Config] = ()) -> Forecast:
    """Memory and time of `kit train` with this configuration on one GPU, or of `kit compare` with
    `others` that train together with it, without its evaluation.

    Raises ConfigError for an unknown GPU, ModelError when the shape of the model is not known.
    """
    device = find_gpu(DEFAULT_GPU if gpu is None else gpu)
    model = config.model
    shape, source = find_shape(model.source if model.path else model.id, model.revision)
    if config.memory_budget is not None:
        room = min(device.memory, memory_size(config.memory_budget))
        device = replace(device, name=f"{config.memory_budget} of {device.name}", memory=room)
        config = fit(shape, config, room, others)
    memory = Memory(shape, config, device.memory, others)
    seconds = step_seconds(memory, device)
    dtype = config.model.dtype
    found = Forecast(
        model=config.model.id,
        source=source,
        arms=len(memory.arms),
        dtype=dtype if dtype != "auto" else "bfloat16" if device.bfloat16 else "float16",
        gpu=device,
        phases=tuple(memory.phases()),
        rows={wave.name: (memory.rows(wave), wave.rows) for wave in memory.waves},
        micro_batch=(memory.micro_batch, memory.row),
        advice=(),
        seconds={name: (least, most) for name, (least, _, most) in seconds.items()},
        likely={name: likely for name, (_, likely, _) in seconds.items()},
        chosen=chosen(config) if config.memory_budget else {},
    )
    if not found.fits:
        return replace(found, advice=tuple(advise(memory)))
    return replace(found, faster=_faster(found, config, gpu, others))


def _faster(
    found: Forecast, config: Config, gpu: str | None, others: Sequence[Config]
) -> Faster | None:
    """What a memory_budget of nearly all there is would buy, where it is worth it."""
    room = int(SPARE * found.gpu.memory / GIB)
    if config.memory_budget or not found.likely or found.peak > room * GIB:
        return None
    budget = f"{room}GiB"
    within = [arm.model_copy(update={"memory_budget": budget}) for arm in (config, *others)]
    larger = estimate(within[0], gpu, within[1:])
    if larger.likely["one step"] > WORTH * found.likely["one step"]:
        return None
    return Faster(f"memory_budget={budget}", larger.peak, larger.likely["one step"])


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _span(least: float, most: float, likely: float) -> str:
    """A range in the unit that suits its upper end, and what is likely."""
    unit, name = (1, "s") if most < 120 else (60, "min") if most < 7200 else (3600, "h")
    first, last, middle = (
        f"{x / unit:.0f}" if x >= 10 * unit else f"{x / unit:.1f}" for x in (least, most, likely)
    )
    return f"{f'{first} to {last} {name}':18} likely {middle} {name}"
