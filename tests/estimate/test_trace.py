"""The estimate and the targets against what the kit's own code would allocate at real sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kit.cards import CONTEXT
from kit.config import Config, memory_size
from kit.estimate.fit import fit
from kit.estimate.memory import FRAGMENTATION, GIB, Memory, with_value
from kit.model.shape import Shape, find_shape
from kit.recipe import load_config
from tests.estimate.tracing import trace, trace_all, trace_update

CONFIGS = Path(__file__).parents[2] / "configs"
# 8 prompts x 8 completions, 512 + 512 tokens, of the shipped recipes and of models beyond them
TARGETS = [
    ("qwen2.5-0.5b-pspo", "Qwen/Qwen2.5-0.5B", "4GB", 1),
    ("qwen2.5-0.5b-pspo", "Qwen/Qwen2.5-0.5B", "6GB", 4),  # as kit study trains them
    ("qwen2.5-1.5b-pspo", "Qwen/Qwen2.5-1.5B", "6GB", 1),
    ("qwen2.5-1.5b-pspo", "Qwen/Qwen2.5-3B", "9GB", 1),
    ("qwen2.5-1.5b-pspo", "Qwen/Qwen2.5-7B", "14GB", 1),
    ("qwen2.5-0.5b-pspo", "Qwen/Qwen2.5-0.5B", "20GB", 1),  # without checkpointing
]


def fitted(
    recipe: str, model: str, budget: str, arms: int
) -> tuple[Shape, Config, int, list[Config]]:
    """Of the first of the arms: shape, what was chosen, the room, and the other arms."""
    config = load_config(
        CONFIGS / f"{recipe}.yaml", [f"model.id={model}", f"memory_budget={budget}"]
    )
    shape, room = find_shape(model)[0], memory_size(budget)
    others = [config] * (arms - 1)
    return shape, fit(shape, config, room, others), room, others


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "model", "budget", "arms"), TARGETS)
def test_every_phase_fits_and_is_estimated_within_a_tenth(recipe, model, budget, arms):
    shape, settled, room, others = fitted(recipe, model, budget, arms)
    rollout = settled.rollout
    assert (rollout.prompts_per_step, rollout.group_size, rollout.max_new_tokens) == (8, 8, 512)
    assert settled.rollout.max_rows >= 64  # all of a step at once
    assert settled.model.gradient_checkpointing is (budget != "20GB")
    traced = trace(shape, settled, arms)
    for phase in Memory(shape, settled, room, others).phases():
        peak, stays = traced[phase.name.partition(" ")[0]]
        # the copy stays in one piece
        passing = peak - stays - phase.parts.get("dequantized copy", 0)
        real = CONTEXT + peak + FRAGMENTATION * passing
        said = f"{real / GIB:.2f} GiB, said {phase.total / GIB:.2f}"
        print(f"{model} {budget}, arms {arms}, {phase.name}: {said}")
        assert real <= room, f"{phase.name}: {real / 1e9:.2f} GB"
        assert 0.9 <= phase.total / real <= 1.1, f"{phase.name}: {phase.total / real:.3f}"


@pytest.mark.slow
def test_every_layer_takes_what_the_one_before_it_took():
    shape, settled, *_ = fitted(*TARGETS[0])
    deeper = replace(shape, layers=8)
    assert trace(deeper, settled) == trace_all(deeper, settled)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "tokens"), [("dpo", 8192), ("dpo", 1024), ("kto", 4096)])
def test_updates_on_preferences_are_estimated_within_a_tenth(method, tokens):
    """With 1024 tokens a micro-batch is one pair, of 512 + 2 * 512: it is never parted."""
    preferences = ["preferences.source=pairs.jsonl", "preferences.batch=16"]
    config = load_config(
        CONFIGS / "qwen2.5-0.5b-pspo.yaml",
        [
            *(f"method={method}", *preferences, "train.updates_per_rollout=1"),
            *(f"train.micro_batch_tokens={tokens}", "model.gradient_checkpointing=true"),
        ],
    )
    shape = find_shape(config.model.id)[0]
    memory = Memory(shape, config, 16 * GIB)
    largest = with_value(config, "train.micro_batch_tokens", memory.micro_batch)
    peak, resident = trace_update(shape, largest)
    said = memory.update()
    real = CONTEXT + peak + FRAGMENTATION * (peak - resident)
    assert memory.micro_batch == max(tokens, 1536 if method == "dpo" else 1024)
    assert 0.9 <= said.total / real <= 1.1, f"{said.total / real:.3f}"
