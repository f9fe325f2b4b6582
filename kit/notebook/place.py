"""Where a notebook runs: Colab, Kaggle or this computer, with which GPU, and where runs are kept.

Imports the standard library alone, for it is asked before anything is installed.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kit.cards import Card, read_cards

CHECKOUT = Path(__file__).resolve().parents[2]  # the repository, with configs/ beside kit/
DRIVE = Path("/content/drive")
KAGGLE_WORKING = Path("/kaggle/working")
HUB = ("huggingface.co", 443)
PATIENCE = 5.0  # seconds to wait for the hub
NAMES = {"colab": "Colab", "kaggle": "Kaggle", "local": "this computer"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the notebook runs."""

    name: Literal["colab", "kaggle", "local"]
    card: Card | None  # the first GPU
    # asked on Kaggle alone, where the internet is a switch; elsewhere taken for granted
    online: bool
    cards: int = 1  # how many GPUs like the first there are

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
            each = f"{self.cards} × " if self.cards > 1 else ""
            gpu = f"{each}{card.name} with {card.memory:.1f} GiB, computing in {card.dtype}"
        internet = "" if self.online else "; no internet"
        return f"On {NAMES[self.name]}, Python {platform.python_version()}: {gpu}{internet}"


def where_am_i(environ: Mapping[str, str] = os.environ) -> Place:
    """Look around. Kaggle's images are made from Colab's, so Kaggle is asked for first."""
    there = read_cards()
    card, alike = (there[0], there.count(there[0])) if there else (None, 1)
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return Place("kaggle", card, _reaches_hub(), alike)
    if "COLAB_RELEASE_TAG" in environ or "google.colab" in sys.modules:
        return Place("colab", card, online=True, cards=alike)
    return Place("local", card, online=True, cards=alike)


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
