"""What is other on a card with bfloat16: the type, and no loss scaling."""

from __future__ import annotations

from pathlib import Path

import torch

from kit.cli import main
from kit.reading import read_metrics
from kit.runs import RunFolder

ROOT = Path(__file__).parents[3]


def test_training(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert main(["train", str(ROOT / "configs" / "smoke.yaml"), f"output={run.path}"]) == 0
    hardware = run.read_description()["hardware"]
    assert hardware.startswith("NVIDIA A100-SXM4-40GB: this GPU computes in bfloat16; ")
    steps = [record for record in read_metrics(run.metrics) if "update/not_finite" in record]
    assert steps and all(record["update/not_finite"] == 0 for record in steps)
    assert all(record["rollout/engine_gap_mean"] < 5e-2 for record in steps)
    (path,) = run.checkpoints.glob("step-000002")
    assert torch.load(path / "state.pt", weights_only=True)["optimizer"]["scaler"] == {}
