"""What the benchmarks share: sizes, paired measurements, tables, the machine, models to measure on.

A benchmark is a program with some functions, each of which measures one table. One that fails is
left out with its reason; the others are measured all the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from kit.config import EMBEDDED, EMBEDDED_PATH, ModelConfig
from kit.model.base import Base, load_base, use_exact_kernels
from kit.model.policy import BASE
from kit.model.rollout import Request
from kit.model.shape import Shape, find_shape
from kit.run_json import environment

QWEN = "Qwen/Qwen2.5-0.5B"
QUESTION = "Tom has {} apples and buys {} more. He gives half of them to Mia. How many are left?"
ENDS_ONE_IN = 40  # of random weights' tokens: their completions end after so many on average
PEERS = ("trl", "vllm", "unsloth")
CUDA = torch.cuda.is_available()

Row = dict[str, Any]
Speeds = dict[str, list[float]]  # work per second of each side, run by run; the kit comes first


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    name: str
    runs: int  # pairs, after one to warm up
    prompts: int
    group: int
    tokens: int
    update: tuple[int, int, int]  # rows, prompt and completion tokens of one update
    growth: int  # points of a growth curve


FULL = Size("full", 7, 8, 8, 128, (2, 64, 128), 5)
QUICK = Size("quick", 3, 4, 8, 64, (2, 32, 32), 3)
TINY = Size("tiny", 1, 2, 2, 6, (2, 8, 6), 2)  # says nothing: a test of the programs
SIZES = {size.name: size for size in (FULL, QUICK, TINY)}


@dataclasses.dataclass(frozen=True)
class Table:
    """What was measured, or why it was not."""

    title: str
    rows: Sequence[Row] = ()
    note: str = ""
    missing: str = ""  # why there are no rows
    failed: bool = False
    runs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # every single measurement

    def __str__(self) -> str:
        body = self.missing or tabulate(
            self.rows, headers="keys", tablefmt="github", floatfmt=".3g", missingval="—"
        )
        if self.missing:
            body = f"{'Failed' if self.failed else 'Left out'}: {body}."
        return "\n\n".join(filter(None, (f"### {self.title}", body, self.note)))


class LeftOut(Exception):
    """Why a table cannot be measured here, in words."""


def benchmark(description: str, measures: Sequence[Callable[[Size], Table]]) -> None:
    """The program: measure every table, print it, and append it to --json as a line."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    add_sizes(parser)
    parser.add_argument("--json", type=Path, help="append every table to this file, as a line")
    options = parser.parse_args()
    for measure in measures:
        table = measured(measure, options.size)
        print(f"\n{table}", flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(table)) + "\n")


def add_sizes(parser: argparse.ArgumentParser) -> None:
    for size, says in ((QUICK, "a few minutes"), (TINY, "seconds, for a test: no figures")):
        parser.add_argument(
            f"--{size.name}", dest="size", action="store_const", const=size, help=says
        )
    parser.set_defaults(size=FULL)


def measured(measure: Callable[[Size], Table], size: Size) -> Table:
    """Its table, or the reason why there is none."""
    title = str(measure.__doc__).partition("\n")[0].rstrip(".")
    try:
        return dataclasses.replace(measure(size), title=title)
    except LeftOut as reason:
        return Table(title, missing=str(reason))
    except Exception as error:
        traceback.print_exc()
        return Table(title, missing=in_a_line(error), failed=True)


def in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def paired(
    sides: Mapping[str, Callable[[int], float]], runs: int, lost: dict[str, str] | None = None
) -> Speeds:
    """Work per second of all sides, in turn, `runs` times after one to warm up.

    A side takes the number of the run and returns the work that it did, in tokens for example.
    With `lost`, a side that fails is left out, but for the first, and its reason noted there.
    """
    speeds: Speeds = {name: [] for name in sides}
    for run in range(runs + 1):
        for name in list(speeds):
            work = partial(sides[name], run)
            try:
                speeds[name].append(per_second(work))
            except Exception as error:
                if lost is None or name == next(iter(sides)):
                    raise
                traceback.print_exc()
                del speeds[name]
                lost[name] = in_a_line(error)
    return {name: values[1:] for name, values in speeds.items()}


def per_second(work: Callable[[], float]) -> float:
    settle()
    started = time.perf_counter()
    done = work()
    settle()
    return done / (time.perf_counter() - started)


def settle() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def against(speeds: Speeds, unit: str = "seconds") -> list[Row]:
    """A row for each side: median, and the median of how many times as fast the first is."""
    first = next(iter(speeds.values()))
    return [
        {
            "": name,
            unit: median(values) if unit != "seconds" else 1 / median(values),
            "kit / it": median(a / b for a, b in zip(first, values, strict=True)),
        }
        for name, values in speeds.items()
    ]


def machine() -> dict[str, Any]:
    """What it was measured on, and how busy that was."""
    facts = environment()
    gpu = torch.cuda.get_device_name() if CUDA else None
    peers = {name: metadata.version(name) for name in PEERS if find_spec(name)}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "load": round(os.getloadavg()[0], 1),
        "versions": facts["versions"] | peers,
        "git": facts["git"],
        "date": facts["started"],
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


# --- models and prompts --------------------------------------------------------------------------


@contextmanager
def measured_base(size: Size, quantization: str = "none") -> Iterator[Base]:
    """The embedded model; on a GPU Qwen2.5-0.5B's shape, whose completions end at random."""
    if not CUDA or size is TINY:
        yield load_base(ModelConfig(id=EMBEDDED, quantization=quantization, backend="transformers"))
        return
    with random_checkpoint(measured_shape(size)) as folder:
        base = load_base(ModelConfig(id=folder, quantization=quantization, backend="transformers"))
        ends = frozenset(range(ENDS_ONE_IN, base.model.config.vocab_size, ENDS_ONE_IN))
        yield dataclasses.replace(base, stop_ids=ends)


@contextmanager
def random_checkpoint(shape: Shape) -> Iterator[str]:
    """A folder with random weights of this shape and the embedded model's tokenizer."""
    settings = Qwen2Config(
        **shape.settings,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=2,
        dtype="bfloat16",
    )
    with tempfile.TemporaryDirectory() as folder:
        Qwen2ForCausalLM._from_config(settings).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(EMBEDDED_PATH / name, folder)
        yield folder


def measured_shape(size: Size) -> Shape:
    """The shape of what `measured_base` loads."""
    return find_shape(EMBEDDED if not CUDA or size is TINY else QWEN)[0]


def asked(base: Base, prompts: int, group: int, run: int, adapter: str = BASE) -> list[Request]:
    """`group` completions of each of these prompts; other random numbers in every run."""
    texts = [QUESTION.format(3 * i, 100 - i) for i in range(prompts)]
    ids = [tuple(base.prompt_ids([{"role": "user", "content": text}])) for text in texts]
    return [
        Request(prompt, (run, i, j), adapter) for i, prompt in enumerate(ids) for j in range(group)
    ]


def without_ends(base: Base) -> Base:
    """The same, whose completions all run to the cap."""
    return dataclasses.replace(base, stop_ids=frozenset())


def peer(base: Base) -> PreTrainedModel:
    """The same model as transformers loads it, for what is measured against."""
    config = ModelConfig(id=base.id)
    quantized = hasattr(base.model.config, "quantization_config")
    model = AutoModelForCausalLM.from_pretrained(
        config.source,
        dtype=base.hardware.dtype,
        device_map={"": base.hardware.device},
        quantization_config=base.model.config.quantization_config if quantized else None,
    )
    use_exact_kernels(model)  # else 4 bits would be other numbers on some processors
    return model.eval()


def noise(completions: Sequence[Sequence[Mapping[str, str]]], **_: Any) -> list[float]:
    """A reward that differs from text to text, so that every group teaches something."""
    return [zlib.crc32(messages[0]["content"].encode()) / 2**32 for messages in completions]


if __name__ == "__main__":
    sys.exit("this is what the benchmarks share; run benchmarks/bench.py")
