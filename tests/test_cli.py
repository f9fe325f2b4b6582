"""The command line: quick, closed, and errors that are one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kit.benchmark import benchmark, resolve
from kit.cli import main
from kit.errors import AdapterError, ConfigError
from kit.trainer import train

ROOT = Path(__file__).parents[1]


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys; from kit.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        times.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
        assert all(command in done.stdout for command in ("train", "evaluate", "demo"))
    assert min(times) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["train", "configs/smoke.yaml", "lora.rnak=8"], "did you mean 'rank'?"),
        (["train", "configs/smoke.yaml", "objective.trust_region.alpha=2"], "alpha = 2"),
        (["train", "configs/smoke.yaml", "rollout.group_size=1"], "group_size = 1"),
        (["evaluate", "--data", "gsm8k"], "nothing to evaluate"),
        (["evaluate", "nowhere", "--data", "gsm8k"], "no adapter at nowhere"),
    ],
)
def test_errors_are_one_line_and_exit_with_one(capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_unknown_commands_are_refused():
    with pytest.raises(SystemExit) as refusal:
        main(["trian"])
    assert refusal.value.code == 2


@pytest.mark.smoke
def test_train_then_evaluate(make_config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "tiny.yaml"
    values = make_config().model_dump(mode="json")
    values.pop("output")
    recipe.write_text(yaml.safe_dump(values))
    assert main(["train", str(recipe), "train.steps=1"]) == 0
    assert "kit evaluate runs/tiny" in capsys.readouterr().out
    assert main(["train", str(recipe), "train.steps=1"]) == 1
    assert "add --resume" in capsys.readouterr().err
    arguments = ["--base", "embedded", "--data", "gsm_symbolic", "--limit", "5"]
    assert main(["evaluate", "runs/tiny", *arguments, "--max-new-tokens", "16"]) == 0
    shown = capsys.readouterr().out
    assert "embedded on gsm_symbolic" in shown and "tiny on gsm_symbolic" in shown
    for folder in (tmp_path / "runs/tiny/eval", tmp_path / "runs/eval/embedded"):
        record = json.loads((folder / "gsm_symbolic.json").read_text())
        rows = [json.loads(line) for line in (folder / "gsm_symbolic.jsonl").open()]
        assert record["n"] == len(rows) == 5
        assert record["strict"]["count"] == sum(row["strict"] for row in rows)
        low, high = record["strict"]["ci95"]
        assert low <= record["strict"]["value"] <= high
        assert record["settings"]["max_new_tokens"] == 16
        assert record["schema"] == 1


@pytest.mark.smoke
def test_evaluating_an_adapter_outside_a_run(base, make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(make_config(train={"steps": 1}), base=base)
    target = resolve(str(run.adapter))
    assert (target.model.id, target.adapter) == ("embedded", str(run.adapter))
    (result,) = benchmark(
        [str(run.adapter)], base_id=None, data="gsm_symbolic", limit=3, max_new_tokens=8
    )
    assert result.strict.n == 3


@pytest.mark.smoke
def test_targets_with_different_bases_are_refused(base, make_config, tmp_path):
    run = train(make_config(train={"steps": 1}), base=base)
    with pytest.raises(ConfigError, match="different bases"):
        benchmark([str(run.path)], base_id="Qwen/Qwen2.5-0.5B", data="gsm_symbolic")
    with pytest.raises(AdapterError, match="no adapter at"):
        benchmark([str(tmp_path / "gone")], base_id=None, data="gsm_symbolic")
