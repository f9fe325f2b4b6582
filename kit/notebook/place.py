"""Where a notebook runs: Colab, Kaggle or this computer, with which GPU, and where runs are kept.

Imports the standard library alone, for it is asked before anything is installed.
"""

from __future__ import annotations

import csv
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHECKOUT = Path(__file__).resolve().parents[2]  # the repository, with configs/ beside kit/
DRIVE = Path("/content/drive")
KAGGLE_WORKING = Path("/kaggle/working")
HUB = ("huggingface.co", 443)
PATIENCE = 5.0  # seconds to wait for the hub
FIELDS = ("name", "memory.total", "compute_cap")
NAMES = {"colab": "Colab", "kaggle": "Kaggle", "local": "this computer"}


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as its driver describes it."""

    name: str
    memory: float  # GiB
    capability: float  # of CUDA: 7.5 for a T4

    @property
    def dtype(self) -> str:
        """What the kit computes in on it; kit.model.hardware decides, by the same rule."""
        return "bfloat16" if self.capability >= 8 else "float16"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the notebook runs."""

    name: Literal["colab", "kaggle", "local"]
    card: Card | None  # the first GPU
    online: (
        bool  # asked on Kaggle alone, where the internet is a switch; elsewhere taken for granted
    )

    def __str__(self) -> str:
        if self.card is None:
            gpu = "no GPU, computing in float32 on the CPU"
            if self.name != "local":
                gpu += " (choose one: " + (
                    "Runtime > Change runtime type > T4 GPU)"
                    if self.name == "colab"
                    else "Session options > Accelerator > GPU T4)"
                )
        else:
            card = self.card
            gpu = f"{card.name} with {card.memory:.1f} GiB, computing in {card.dtype}"
        internet = "" if self.online else "; no internet"
        return f"On {NAMES[self.name]}, Python {platform.python_version()}: {gpu}{internet}"


def where_am_i(environ: Mapping[str, str] = os.environ) -> Place:
    """Look around. Kaggle's images are made from Colab's, so Kaggle is asked for first."""
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return Place("kaggle", read_card(), _reaches_hub())
    if "COLAB_RELEASE_TAG" in environ or "google.colab" in sys.modules:
        return Place("colab", read_card(), online=True)
    return Place("local", read_card(), online=True)


def read_card() -> Card | None:
    """The first GPU, from nvidia-smi; None where there is none.

    Asking torch instead would take GPU memory in the notebook's own process.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    asked = subprocess.run([program, *query], capture_output=True, text=True)
    lines = csv.reader(asked.stdout.splitlines(), skipinitialspace=True)
    rows = [row for row in lines if len(row) == len(FIELDS)]
    if asked.returncode or not rows:  # a driver without a GPU
        return None
    name, memory, capability = rows[0]
    return Card(name, int(memory) / 1024, float(capability))


def keep_folder(place: Place, keep: str = "") -> Path:
    """The folder runs are kept in: `keep`, or what outlives the session best where we are.

    On Colab that is Drive, which is mounted: Colab asks for permission.
    """
    if keep:
        return Path(keep).expanduser().resolve()
    if place.name == "colab":
        from google.colab import drive

        drive.mount(str(DRIVE))
        return DRIVE / "MyDrive" / "gr-pspo"
    return (KAGGLE_WORKING if place.name == "kaggle" else CHECKOUT) / "runs"


def _reaches_hub() -> bool:
    try:
        socket.create_connection(HUB, timeout=PATIENCE).close()
    except OSError:
        return False
    return True
