"""Threads that share the processor: the variables are set before torch, the user's own stay."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kit.threads import share_processor

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def shared(tmp_path, quota: str | None = None, **environ: str) -> dict[str, str]:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    share_processor(environ, file)
    return environ


def test_threads_go_to_sleep_unless_the_user_says_how_they_wait(tmp_path):
    assert shared(tmp_path) == WAITING
    assert shared(tmp_path, OMP_NUM_THREADS="3") == WAITING | {"OMP_NUM_THREADS": "3"}
    for own in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "1"}):
        assert shared(tmp_path, **own) == own


@pytest.mark.parametrize(
    "quota, threads",
    [
        ("200000 100000\n", "2"),  # two cores' time in every period
        ("150000 100000\n", "2"),
        ("50000 100000\n", "1"),
        ("max 100000\n", None),
        ("6400000 100000\n", None),  # the machine's 64: as OpenMP counts by itself
        ("", None),
        (None, None),
    ],
)
def test_a_container_has_as_many_threads_as_it_may_use(tmp_path, monkeypatch, quota, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert shared(tmp_path, quota).get("OMP_NUM_THREADS") == threads


def test_the_users_number_of_threads_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert shared(tmp_path, "200000 100000", OMP_NUM_THREADS="1")["OMP_NUM_THREADS"] == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp, which says what it has read")
@pytest.mark.parametrize("own, spins", [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77")])
@pytest.mark.slow
def test_torch_s_openmp_has_read_them(own, spins):
    """In a process of its own: the command line first, then torch, whose OpenMP then reports."""
    clean = {k: v for k, v in os.environ.items() if k not in (*WAITING, "KMP_BLOCKTIME")}
    done = subprocess.run(
        [sys.executable, "-c", "import kit.cli; kit.cli.main(['--version']); import torch"],
        env=clean | {"OMP_DISPLAY_ENV": "VERBOSE"} | own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
