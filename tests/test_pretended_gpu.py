"""The tests in tests/pretended_gpu, in a process for each card: torch is loaded on top of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def obstacle() -> str | None:
    if sys.platform != "linux":
        return "the pretended GPU is for Linux"
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "the pretended GPU wants a torch that was built for the CPU"
    return None if shutil.which("g++") else "the pretended GPU is compiled, and there is no g++"


@pytest.mark.slow
@pytest.mark.parametrize("card", ["T4", "A100"])
def test_on(card):
    if (reason := obstacle()) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = ["-p", "tests.pretended_gpu.device", "-p", "no:xdist", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/pretended_gpu"],
        cwd=ROOT,
        env={**os.environ, "PRETENDED_GPU": card},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
