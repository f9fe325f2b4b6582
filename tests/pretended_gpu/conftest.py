"""What the tests on the pretended GPU share; without one they are not collected."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from kit.config import ModelConfig
from kit.model.base import Base, load_base

CARD = os.environ.get("PRETENDED_GPU")

collect_ignore = [folder for folder in ("t4", "a100") if folder.upper() != CARD]
collect_ignore_glob = [] if CARD else ["test_*.py"]


@pytest.fixture
def gpu() -> Iterator:
    """The card, whose memory does not fail from here on."""
    from tests.pretended_gpu.device import gpu

    memory = gpu.memory
    yield gpu
    gpu.fail_after(-1)
    gpu.limit(memory)


@pytest.fixture(scope="session")
def base() -> Base:
    """The embedded model in 4 bits on the card, in the 16 bits that suit it."""
    return load_base(ModelConfig(id="embedded"), torch.device("cuda"))
