"""The GPUs that an estimate knows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kit.errors import ConfigError
from kit.estimate.memory import GIB
from kit.spelling import did_you_mean

DEFAULT_GPU = "T4"  # the free one of Colab and Kaggle

# bytes as PyTorch counts them, bytes/s, dense 16-bit operations/s with 32-bit sums, has bfloat16;
# docs/estimate.md names the sources
GPUS = {
    "T4": (14.56, 320, 65, False),
    "V100": (15.77, 900, 125, False),
    "L4": (22.0, 300, 121, True),
    "A10": (22.0, 600, 125, True),
    "A10G": (22.0, 600, 70, True),
    "L40S": (44.5, 864, 362, True),
    "A100-40": (39.4, 1555, 312, True),
    "A100-80": (79.1, 2039, 312, True),
    "H100": (79.1, 3350, 989, True),
    "3060": (11.76, 360, 25, True),
    "3090": (23.6, 936, 71, True),
    "4060": (7.6, 272, 30, True),
    "4090": (23.6, 1008, 165, True),
}
KNOWN = ", ".join(GPUS)
OTHERS = {"Ti", "SUPER", "Laptop", "Mobile"}  # of the same number, but other cards


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU; speeds are None where only the memory is known."""

    name: str
    memory: int  # bytes
    bandwidth: float | None = None  # bytes per second
    flops: float | None = None  # per second
    bfloat16: bool = True


def find_gpu(name: str) -> GPU:
    """A GPU of the table, in any spelling (`RTX 3060`, `a100-40`), or a number of GiB."""
    plain = name.lower().replace(" ", "")
    for prefix in ("nvidia", "tesla", "geforce", "rtx"):
        plain = plain.removeprefix(prefix)
    plain = plain.removesuffix("gib").removesuffix("gb")
    for known, (memory, bandwidth, flops, bfloat16) in GPUS.items():
        if plain.replace("-", "") == known.lower().replace("-", ""):
            return GPU(known, int(memory * GIB), bandwidth * 1e9, flops * 1e12, bfloat16)
    size = float(plain) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", plain) else 0
    if size < 1:
        of_this_name = [known for known in GPUS if known.startswith(plain.upper())]
        hint = did_you_mean(plain.upper(), of_this_name or GPUS)
        raise ConfigError(
            f"unknown GPU {name!r}{hint}{' Known' if hint else '; known'} are {KNOWN}, or give its "
            "memory in GiB, e.g. --gpu 16"
        )
    return GPU(f"{size:g} GiB", int(size * GIB))


def known_as(name: str, memory: float) -> str:
    """A driver's name ("NVIDIA A100-SXM4-40GB") as the table has it; else the memory, in GiB."""
    words = set(re.split(r"[\s-]+", name))
    alike = [known for known in GPUS if known.partition("-")[0] in words and not words & OTHERS]
    nearest = min(alike, key=lambda known: abs(GPUS[known][0] - memory), default=None)
    if nearest is None or abs(GPUS[nearest][0] - memory) > 0.1 * memory:
        return f"{memory:.1f}"
    return nearest
