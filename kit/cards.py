"""The GPUs of this machine as their driver describes them; asks no torch, which takes memory.

Imports the standard library alone, for a notebook asks before anything is installed.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass

CONTEXT = 0.6 * 2**30  # bytes of the CUDA context, kernels and cuBLAS workspaces: an allowance
FIELDS = ("name", "memory.total", "driver_version", "compute_cap")


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU."""

    name: str
    memory: float  # GiB
    capability: float  # of CUDA: 7.5 for a T4; 0 where the driver is too old to say
    driver: str = ""

    @property
    def dtype(self) -> str:
        """What the kit computes in on it; kit.model.hardware decides, by the same rule."""
        return "bfloat16" if self.capability >= 8 else "float16"


def read_cards() -> list[Card]:
    """All GPUs, from nvidia-smi; empty where there is none, or a driver alone."""
    return [
        Card(name, int(memory) / 1024, float(capability), driver)
        for name, memory, driver, capability in _asked(FIELDS)
        or [[*row, "0"] for row in _asked(FIELDS[:-1])]  # drivers before CUDA 11.6
    ]


def _asked(fields: tuple[str, ...]) -> list[list[str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    asked = subprocess.run([program, *query], capture_output=True, text=True)
    if asked.returncode:
        return []
    lines = csv.reader(asked.stdout.splitlines(), skipinitialspace=True)
    return [row for row in lines if len(row) == len(fields)]
