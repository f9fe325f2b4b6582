"""memory_budget: what is chosen fits, is the fastest that does, and too little is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.config import memory_size
from kit.errors import ConfigError
from kit.estimate.fit import check_budget, chosen, fit
from kit.estimate.forecast import estimate
from kit.estimate.memory import Memory, lora_size
from kit.model.shape import find_shape
from kit.recipe import build_config, load_config

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "qwen2.5-0.5b-pspo.yaml"
TARGETS = {"0.5b": "4GB", "1.5b": "6GB"}


def fitted(budget: str, *overrides: str, size: str = "0.5B") -> tuple[Memory, dict]:
    config = load_config(
        RECIPE, [f"model.id=Qwen/Qwen2.5-{size}", f"memory_budget={budget}", *overrides]
    )
    shape, room = find_shape(config.model.id)[0], memory_size(budget)
    settled = fit(shape, config, room)
    return Memory(shape, settled, room), chosen(settled)


@pytest.mark.parametrize("size", ["0.5B", "1.5B", "3B", "7B"])
@pytest.mark.parametrize("budget", [4, 5, 6, 8, 9, 11, 14, 20, 40, 80])
def test_what_is_chosen_fits_or_is_refused_with_what_would(size, budget):
    try:
        memory, _ = fitted(f"{budget}GB", size=size)
    except ConfigError as error:
        least = re.search(r"the smallest that is: memory_budget=([0-9.]+GB)", str(error))[1]
        assert memory_size(least) > budget * 1e9
        memory, values = fitted(least, size=size)
        assert values["model.gradient_checkpointing"] and values["rollout.dequantize"] == "never"
        with pytest.raises(ConfigError):
            fitted(f"{memory_size(least) / 1e9 - 0.01:.2f}GB", size=size)
    assert memory.peak <= memory.gpu


def test_more_memory_is_used():
    """No copy and few rows at first, in the end all rows, the copy and no checkpointing."""
    values = [fitted(f"{budget}GB")[1] for budget in (2.2, 3, 4, 8, 30)]
    rows = [value["rollout.max_rows"] for value in values]
    tokens = [value["train.micro_batch_tokens"] for value in values]
    assert rows == sorted(rows) and 1 <= rows[0] < 64 and rows[-1] == 128
    assert tokens[:-1] == sorted(tokens[:-1]) and tokens[0] < 8192
    assert [v["rollout.dequantize"] for v in values][::4] == ["never", "always"]
    assert [v["model.gradient_checkpointing"] for v in values][::4] == [True, False]


def test_one_row_more_would_not_fit():
    memory, values = fitted("3GB")
    more = memory.config.rollout.model_copy(update={"max_rows": values["rollout.max_rows"] + 1})
    changed = memory.config.model_copy(update={"rollout": more})
    assert Memory(memory.shape, changed, memory.gpu).peak > memory.gpu


def test_arms_that_train_together_all_count():
    """Weights and moments of each; one arm's gradients, for they learn in turn."""
    one = load_config(RECIPE)
    small = load_config(RECIPE, ["lora.rank=8", "optim.name=adamw"])
    shape = find_shape(one.model.id)[0]
    alone, three = Memory(shape, one, 10**11), Memory(shape, one, 10**11, [one, small])
    each, less = lora_size(shape, one), lora_size(shape, small)
    assert three.resident["LoRA weights"] == 4 * (2 * each + less)
    moments = three.resident["optimizer state"] - 2 * alone.resident["optimizer state"]
    assert moments == 8 * less
    assert three.update().parts["gradients"] == 4 * each
    assert [wave.rows for wave in three.waves] == [3 * 64, *(w.rows for w in alone.waves[1:])]
    reading, decoding = three.sampling()
    assert (reading.name, decoding.name) == ("prompts (validation)", "decoding (steps)")
    copy = alone.sampling()[0].parts["LoRA, side by side"]
    assert reading.parts["LoRA, side by side"] == copy  # each arm is validated by itself
    assert decoding.parts["LoRA, side by side"] == 2 * copy + copy // 4  # rank 8 of 32


def test_a_snapshot_is_shared_by_all_arms():
    config = load_config(RECIPE, ["model.adapter=somewhere"])
    shape = find_shape(config.model.id)[0]
    resident = Memory(shape, config, 10**11, [config]).resident
    assert resident["LoRA weights"] == 3 * 4 * lora_size(shape, config)


def test_a_budget_is_for_all_arms_together():
    config = load_config(RECIPE, ["memory_budget=3GB"])
    shape = find_shape(config.model.id)[0]
    alone, three = (fit(shape, config, 3 * 10**9, [config] * more) for more in (0, 2))
    assert three.rollout.max_rows < alone.rollout.max_rows
    assert (
        Memory(shape, three, 0, [three, three]).peak
        <= 3e9
        < Memory(shape, alone, 0, [alone] * 2).peak
    )
    with pytest.raises(ConfigError, match=r"not enough for 9 arms that train together, .*smallest"):
        check_budget(config, [config] * 8)
    check_budget(config, [config] * 2)


def test_what_the_configuration_settles_stays():
    overrides = ["rollout.max_rows=7", "rollout.dequantize=never", "train.micro_batch_tokens=2000"]
    _, values = fitted("30GB", *overrides, "model.gradient_checkpointing=true")
    assert list(values.values()) == [7, "never", 2000, True]
    _, values = fitted("12GB", "model.gradient_checkpointing=false")
    assert values["model.gradient_checkpointing"] is False
    assert 1024 <= values["train.micro_batch_tokens"] < 8192
    with pytest.raises(ConfigError, match="smallest"):
        fitted("2GB", "rollout.dequantize=always")


@pytest.mark.parametrize("size", TARGETS)
def test_every_recipe_for_hub_models_meets_its_target(size):
    recipes = sorted((ROOT / "configs").glob(f"*{size}*.yaml"))
    assert len(recipes) > 5
    for recipe in recipes:
        assert estimate(load_config(recipe, [f"memory_budget={TARGETS[size]}"]), "T4").fits


@pytest.mark.parametrize("text", ["6", "6G", "-1GB", "0GB", "GB", "1e3GB", "6gb", "6 KB", "٦GB"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match=r"memory_budget.*such as 6GB"):
        build_config({"model": {"id": "x"}, "data": {"name": "gsm8k"}, "memory_budget": text})


def test_sizes():
    found = [memory_size(text) for text in ("6GB", "5.5GiB", "512 MiB", "100MB")]
    assert found == [6_000_000_000, 5_905_580_032, 536_870_912, 100_000_000]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kit", "estimate", str(RECIPE), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_kit_estimate_knows_the_budget():
    ran = command("memory_budget=4GB", "--json")
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)
    assert record["peak"] <= 4e9 == record["gpu"]["memory"]
    assert set(record["chosen"]) >= {"rollout.max_rows", "train.micro_batch_tokens"}
    for name, (least, most) in record["seconds"].items():
        assert least <= record["likely"][name] <= most
    refused = command("memory_budget=1GB")
    assert refused.returncode == 1 and "the smallest that is: memory_budget=" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_kit_train_refuses_without_torch():
    program = (
        "import sys; from kit.cli import main\n"
        "code = main(['train', sys.argv[1], 'memory_budget=1GB'])\n"
        "sys.exit(f'torch is there, {code}' if 'torch' in sys.modules or code != 1 else 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(RECIPE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "the smallest that is: memory_budget=" in ran.stderr
