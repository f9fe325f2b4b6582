"""The benchmarks find the card and measure on it; their figures are the CPU's and say nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.parametrize(
    "program, table",
    [
        *(("rollout", "ragged"), ("loss", "update"), ("growth", "update")),
        *(("limits", "arithmetic"), ("limits", "bandwidth"), ("recipes", "recipes")),
    ],
)
def test_tables(monkeypatch, program, table):
    monkeypatch.syspath_prepend(BENCHMARKS)
    measuring = importlib.import_module("measuring")
    found = measuring.measured(getattr(importlib.import_module(program), table), measuring.TINY)
    assert measuring.CUDA and found.rows, found.missing


def test_the_machine_is_named(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    assert importlib.import_module("measuring").machine()["gpu"] == "NVIDIA A100-SXM4-40GB"
