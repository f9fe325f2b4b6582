"""`kit demo`: four arms that differ in the trust region alone, one table, resumable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit import demo as module
from kit.demo import ARMS, arm_config, demo, next_command
from kit.reading import read_metrics
from kit.recipe import differences
from kit.reports.collect import collect


def test_arms_differ_in_the_trust_region_alone(tmp_path):
    configs = {arm: arm_config(arm, tmp_path) for arm in ARMS}
    for arm in set(ARMS) - {"clip"}:
        changed = differences(configs["clip"], configs[arm])
        changed.pop("output")
        assert changed and all(key.startswith("objective.trust_region.") for key in changed)


def test_the_next_command_opens_the_app_where_the_demo_is():
    assert next_command(Path("runs/demo")) == "kit app (or make app)"
    assert next_command(Path("my demo")) == "kit app --runs 'my demo'"


@pytest.mark.smoke
@pytest.mark.slow
def test_the_demo_end_to_end(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"extends: {module.DEMO_RECIPE}\n"
        "data: {validation_size: 8, options: {size: 400}}\n"
        "rollout: {prompts_per_step: 4, group_size: 4}\n"
        "train: {steps: 1, validate_every: 1, checkpoint_every: 1, preflight_problems: 4}\n"
    )
    monkeypatch.setattr(module, "DEMO_RECIPE", recipe)
    monkeypatch.setattr(module, "TEST_PROBLEMS", 24)
    output = tmp_path / "demo"
    summary = demo(output)
    assert json.loads((output / "summary.json").read_text()) == summary
    assert [row["arm"] for row in summary] == ["base", *ARMS]
    for row in summary:
        low, high = row["ci95"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        assert row["n"] == 24 and row["mean_tokens"] > 0 and row["peak_memory_mb"] > 100
        assert (row["train_seconds"] > 0) == (row["arm"] != "base")
        results = output / row["arm"] / "eval" / "reasoning_gym_basic_arithmetic.jsonl"
        rows = results.read_text().splitlines()
        assert row["accuracy"] == sum(json.loads(line)["strict"] for line in rows) / 24
    shown = capsys.readouterr().out
    assert "held-out problems" in shown and f"{output}/pspo/adapter/" in shown
    assert shown.index("held-out problems.\nThis takes") < shown.index("held-out accuracy")
    assert "between the pspo adapter and the clip adapter" in " ".join(shown.split())
    assert "pspo measures its ratio from the base, the others" in " ".join(shown.split())
    assert shown.endswith(f"kit app --runs {output}\n")
    record = json.loads((output / "compare.json").read_text())
    assert record["status"] == "finished" and record["runs"]["pspo"] == {"0": "pspo"}
    assert [arm.name for arm in collect([output]).arms] == list(ARMS)  # kit report reads it

    # all arms saw the same problems and, before their first update, said the same
    first = [read_metrics(output / arm / "metrics.jsonl")[1]["reward/mean"] for arm in ARMS]
    assert len(set(first)) == 1

    before = (output / "clip" / "metrics.jsonl").read_text()
    again = demo(output)
    figures = [key for key in summary[0] if key != "peak_memory_mb"]
    assert [[row[k] for k in figures] for row in again] == [
        [row[k] for k in figures] for row in summary
    ]
    assert (output / "clip" / "metrics.jsonl").read_text() == before
    shown = capsys.readouterr().out
    assert "clip: finished already" in shown and "This takes" not in shown
