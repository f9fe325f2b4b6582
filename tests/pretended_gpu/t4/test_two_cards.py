"""Two processes with a T4 each: float16 with a loss scale, and one of them without any rows."""

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
LAUNCH = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m")


def settings(make_config, name: str, **rollout: int) -> Config:
    return make_config(
        rollout={"group_size": 4, "max_new_tokens": 8, **rollout},
        reward={"functions": [{"path": "tests.reward_functions:first_process_only"}]},
        train={"steps": 2, "validate_every": 0, "updates_per_rollout": 1},
        output=str(Path(make_config().output).with_name(name)),
    )


def on_two_cards(config: Config) -> list[dict[str, float]]:
    """The steps' metrics of `accelerate launch … kit train`."""
    recipe = Path(f"{config.output}.yaml")
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, *LAUNCH, "tests.pretended_gpu.pair", "train", str(recipe)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder(config.output).read_description()["hardware"].startswith("Tesla T4: ")
    return read_metrics(RunFolder(config.output).metrics)


def test_a_card_without_problems_learns_what_the_other_does(make_config):
    """One problem for two cards: the second has no rows in any update, and nothing to sample."""
    two = on_two_cards(settings(make_config, "two", prompts_per_step=1))
    one = read_metrics(train(settings(make_config, "one", prompts_per_step=1)).metrics)
    assert len(two) == len(one) == 2
    for left, right in zip(two, one, strict=True):
        assert left["update/not_finite"] == 0
        for name in ("update/grad_norm", "update/loss", "reward/mean", "ratio/mean"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-6), name


def test_a_card_whose_groups_teach_nothing(make_config):
    """Both sample; of the second's completions none has an advantage, so that it has no rows."""
    steps = on_two_cards(settings(make_config, "two", prompts_per_step=2))
    assert [step["reward/zero_std_fraction"] for step in steps] == [0.5, 0.5]
    assert all(step["update/not_finite"] == 0 < step["update/grad_norm"] for step in steps)
