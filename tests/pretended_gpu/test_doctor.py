"""`kit doctor` on a card: everything is looked at, and what fails is a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import kit.doctor
from kit.cli import main
from kit.doctor import decoding, doctor, gaps, kernels, machine, patient, speeds
from kit.doctor.patient import Patient
from kit.doctor.step import step
from kit.recipe import load_config
from tests.pretended_gpu.conftest import CARD

RECIPE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


@pytest.fixture
def short(monkeypatch):
    """The same looks, at fewer tokens and bytes."""
    for module in (gaps, decoding):
        monkeypatch.setattr(module, "PROMPTS", 2)
    monkeypatch.setattr(gaps, "TOKENS", 8)
    monkeypatch.setattr(decoding, "TOKENS", {True: 4, False: 4})
    monkeypatch.setattr(kernels, "ROWS", (1, 2048))
    monkeypatch.setattr(speeds, "COPIED", 2**20)
    monkeypatch.setattr(speeds, "LAUNCHES", 100)
    monkeypatch.setitem(patient.SMALL, "max_new_tokens", 8)


def test_everything_is_looked_at(short, tmp_path):
    """What this machine computes for the card is as expected; how fast it does is not."""
    assert main(["doctor", "--quick", "--config", str(RECIPE), "-o", str(tmp_path)]) == 3
    record = json.loads((tmp_path / "doctor.json").read_text())
    found = {finding["what"]: finding for finding in record["findings"]}
    dtype = {"T4": "float16", "A100": "bfloat16"}[CARD]
    assert found["model.dtype=auto"]["found"].startswith(f"{dtype}: ")
    odd = {what for what, finding in found.items() if finding["verdict"] == "not as expected"}
    assert "memory bandwidth" in odd
    # so few tokens tell little of how wide the gaps are
    may_be = {"memory bandwidth", "launching an operation", "bfloat16 against float16"}
    may_be |= {"decoding, replayed"}  # no graph is recorded without a card
    assert odd <= may_be, [found[what] for what in odd - may_be]
    left = {what for what, finding in found.items() if finding["verdict"] == "not measured"}
    assert not left
    packed = found["4-bit gate_proj, 1 rows"]["figures"]
    assert 0 < packed["mean"] < packed["largest"]  # the kernel for packed weights
    assert found["4-bit gate_proj, 2,048 rows"]["figures"]["largest"] == 0  # they are unpacked
    for words in ("packed", "unpacked"):
        gap = found[f"{dtype}, {words} weights"]["figures"]
        assert 0 < gap["rollout/engine_gap_mean"] < gap["rollout/engine_gap_completion_mean"]
    assert found["one step of the embedded model"]["figures"]["update/not_finite"] == 0
    assert found["peak memory"]["figures"]["bytes"] > 0


def test_memory_that_runs_out_is_a_line(short, gpu, tmp_path, monkeypatch):
    def full(someone):
        gpu.fail_after(0)
        yield from speeds.bandwidth(someone)

    looks = {"Speed": (full, speeds.launches), "Machine": (machine.memory,)}
    monkeypatch.setattr(kit.doctor, "LOOKS", looks)
    found = doctor(load_config(RECIPE), tmp_path, quick=True)
    first, *others = found["Speed"]
    assert first.verdict == "not measured" and first.found.startswith("out of memory: OutOfM")
    assert others[0].what == "launching an operation"
    assert len(found["Machine"]) == 2


def test_a_step_without_room_or_time_is_not_taken(monkeypatch):
    someone = Patient(torch.device("cuda"), None, quick=False)
    someone.ends = 0.0
    (finding,) = step(someone)
    assert finding.verdict == "not measured" and "that much time is not left" in finding.found
    monkeypatch.setattr(Patient, "gpu", "1")
    (finding,) = step(someone)
    assert finding.verdict == "not measured"
    assert finding.found.endswith(" GiB, there are 1.0"), finding


@pytest.mark.parametrize(
    ("compiled", "verdict"),
    [
        (["sm_50", "sm_60"], "not as expected"),
        (["sm_70", "sm_80"], "as expected"),
        (["sm_90", "compute_70"], "as expected"),
        (["sm_90a", "sm_100"], "not as expected"),
        ([], "not measured"),
    ],
)
def test_kernels_for_the_card(monkeypatch, compiled, verdict):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: compiled)
    _, finding = machine.card(Patient(torch.device("cuda"), None, quick=True))
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("speaks", "verdict"),
    [((12, 0), "as expected"), ((13, 0), "as expected"), ((11, 8), "not as expected")],
)
def test_the_driver_against_torchs_cuda(monkeypatch, speaks, verdict):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(machine, "driver_cuda", lambda: speaks)
    (finding,) = machine.driver(Patient(torch.device("cuda"), None, quick=True))
    assert finding.verdict == verdict
