"""Whole commands on a card without bfloat16, and a run whose checkpoints change machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kit.app.compare.engine import Engine
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT, Setup
from kit.app.library.adapters import Choice
from kit.cli import main
from kit.model.base import Base
from kit.reading import read_metrics
from kit.runs import RunFolder
from kit.training.trainer import train

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """The run of `kit train configs/smoke.yaml`."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "smoke")
    assert main(["train", str(ROOT / "configs" / "smoke.yaml"), f"output={folder.path}"]) == 0
    return folder


def test_training(run):
    description = run.read_description()
    assert description["hardware"].startswith("Tesla T4: this GPU has no bfloat16; ")
    # there is nothing to record kernels with
    assert description["decoding"].startswith("each step is called: a step could not be recorded (")
    steps = [record for record in read_metrics(run.metrics) if "update/not_finite" in record]
    assert steps and all(record["update/not_finite"] == 0 for record in steps)
    assert all(record["rollout/engine_gap_mean"] < 5e-2 for record in steps)
    (path,) = run.checkpoints.glob("step-000002")
    assert json.loads((path / "manifest.json").read_text())["hardware"] == "Tesla T4 in float16"


def test_verify_and_merge(run, tmp_path, capsys):
    """`kit verify` computes in another process, which has no card."""
    assert main(["verify", str(run.path)]) == 0, capsys.readouterr().out
    assert main(["merge", str(run.path), "-o", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "config.json").is_file()


def test_the_app_compares(base: Base, adapters: Path):
    sides = {LEFT: str(adapters / "first"), RIGHT: str(adapters / "second"), BASE_SIDE: None}
    choices = {
        side: Choice(side, source, "embedded", "", None, None, None)
        for side, source in sides.items()
    }
    question = "Ann has 3 apples. How many?"
    setup = Setup(question, "", None, choices, temperature=1.0, max_new_tokens=8)
    *_, last = Engine(base).run(setup)
    assert last.answers.keys() == sides.keys()
    assert all(answer.completion.tokens for (answer,) in last.answers.values())


def test_a_run_goes_on_without_the_card_and_with_it_again(make_config, caplog):
    """float16 with a loss scale, float32 without one, float16 again."""
    rollout = {"prompts_per_step": 1, "group_size": 2, "max_new_tokens": 8}
    settings = {"updates_per_rollout": 1}
    run = train(make_config(rollout=rollout, train={**settings, "steps": 1}))

    went_on = subprocess.run(
        [sys.executable, "-m", "kit", "train", str(run.path), "--resume", "train.steps=2"],
        env={key: value for key, value in os.environ.items() if key != "PRETENDED_GPU"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert went_on.returncode == 0, went_on.stderr
    said = "this run was trained on Tesla T4 in float16 up to step 1; it goes on on CPU in float32"
    assert said in went_on.stderr

    train(make_config(rollout=rollout, train={**settings, "steps": 3}), resume=True)
    first, second = run.read_description()["remarks"]
    assert first.startswith(said)
    assert second.startswith("this run was trained on CPU in float32 up to step 2; it goes on on T")
    assert second in caplog.text
    state = torch.load(run.checkpoints / "step-000003" / "state.pt", weights_only=True)
    assert state["optimizer"]["scaler"]["scale"] > 0
