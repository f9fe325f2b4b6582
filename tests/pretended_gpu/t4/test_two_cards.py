"""Two processes with a T4 each: float16 with a loss scale, and one without rows to learn from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kit.config import Config
from kit.reading import read_metrics
from kit.runs import RunFolder
from kit.training.trainer import train

ROOT = Path(__file__).parents[3]
LAUNCH = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--main_process_port", "0", "-m", "tests.pretended_gpu.pair"),
)


def settings(make_config, name: str, reward: str) -> Config:
    return make_config(
        rollout={"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 8},
        reward={"functions": [{"path": f"tests.reward_functions:{reward}"}]},
        train={"steps": 2, "updates_per_rollout": 1},
        output=str(Path(make_config().output).with_name(name)),
    )


def on_two_cards(config: Config) -> list[dict[str, float]]:
    """The steps' metrics of `accelerate launch … kit train`."""
    recipe = Path(f"{config.output}.yaml")
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, *LAUNCH, "train", str(recipe)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder(config.output).read_description()["hardware"].startswith("Tesla T4: ")
    return read_metrics(RunFolder(config.output).metrics)


def test_a_card_without_rows_learns_what_the_other_does(make_config):
    """None of the second card's completions has an advantage: it has no rows in either update."""
    two = on_two_cards(settings(make_config, "two", "first_process_only"))
    one = read_metrics(train(settings(make_config, "one", "first_group_only")).metrics)
    for steps in (one, two):
        assert [step["reward/zero_std_fraction"] for step in steps] == [0.5, 0.5]
        assert all(step["update/not_finite"] == 0 < step["update/grad_norm"] for step in steps)
    for name in ("update/grad_norm", "update/loss", "reward/mean", "ratio/mean"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-3, abs=1e-6), name
