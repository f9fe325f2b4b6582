"""The command line: quick, closed, and errors that are one line."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kit.cli import main
from kit.evaluation.results import read_result
from kit.training.trainer import train

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
        before = _seconds_of_children()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        times.append(_seconds_of_children() - before)
        assert done.returncode == 0, done.stderr
        assert all(
            command in done.stdout
            for command in ("train", "evaluate", "compare", "report", "judge", "votes", "demo")
        )
    assert min(times) < 1


def _seconds_of_children() -> float:
    """Of the processor's time: other work on the machine takes none of it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["train", "configs/smoke.yaml", "lora.rnak=8"], "did you mean 'rank'?"),
        (["train", "configs/smoke.yaml", "objective.trust_region.alpha=2"], "alpha = 2"),
        (["train", "configs/smoke.yaml", "rollout.group_size=1"], "group_size = 1"),
        (["evaluate", "--data", "gsm8k"], "nothing to evaluate"),
        (["evaluate", "nowhere", "--data", "gsm8k"], "no adapter at nowhere"),
        (["evaluate", "--base", "embedded", "--data", ","], "no data set to evaluate on"),
        (
            ["evaluate", "--base", "embedded", "--data", "gsm_symbolic,svmap"],
            "unknown data set 'svmap', did you mean 'svamp'?; it may be gsm8k, svamp, asdiv",
        ),
        (
            ["evaluate", "--base", "embedded", "--data", "gsm8k", "temprature=0.4"],
            "unknown setting 'temprature', did you mean 'temperature'?",
        ),
        (
            ["evaluate", "temperature=0.4", "--base", "embedded", "--data", "gsm8k", "limit=0"],
            "limit = 0 is not allowed: input should be greater than or equal to 1",
        ),
        (
            ["evaluate", "--base", "embedded", "--data", "gsm8k", "--samples", "4"],
            "samples = 4 needs a temperature above 0",
        ),
        (
            ["evaluate", "--base", "embedded", "--data", "gsm8k", "--tag", "a/b"],
            "a tag may have letters, digits",
        ),
    ],
)
def test_errors_are_one_line_and_exit_with_one(capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["evaluate", "--base", "embedded"],  # without --data
        ["evaluate", "--data", "gsm8k", "--tepmerature", "0.4"],
        ["demo", "extra"],
    ],
)
def test_unknown_commands_and_options_are_refused(arguments):
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
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
    # targets and settings may stand anywhere among the options
    arguments = ["--data", "gsm_symbolic", "runs/tiny", "--limit", "5", "max_new_tokens=16"]
    assert main(["evaluate", "temperature=0,1", "--base", "embedded", *arguments]) == 0
    shown = capsys.readouterr().out
    for name, run in (("embedded", None), ("tiny", "runs/tiny")):
        path = Path(f"{run or 'runs/eval/embedded'}{'/eval' if run else ''}/gsm_symbolic.json")
        result = read_result(path)
        assert (result.name, result.record["target"]["run"]) == (name, run)
        assert result.temperatures == [0, 1] and result.settings["max_new_tokens"] == 16
        # the problems are those that the run was trained on, not the 1000 of the default
        assert result.settings["problems"]["options"] == {"size": 60}
        rows = result.rows(0)
        assert result.record["n"] == len(rows) == 5
        assert result.at(0)["strict"]["count"] == sum(row["strict"] for row in rows)
        assert f"-> {path}" in shown
    assert result.record["command"] == (
        "kit evaluate temperature=0,1 --base embedded --data gsm_symbolic runs/tiny --limit 5 "
        "max_new_tokens=16"
    )
    before = result.path.read_bytes()
    assert main(["evaluate", "--base", "embedded", *arguments]) == 0  # all of it is there
    assert result.path.read_bytes() == before
    assert main(["evaluate", "runs/tiny", "--data", "gsm_symbolic", "--max-new-tokens", "8"]) == 1
    assert "settings.max_new_tokens: 16 -> 8" in capsys.readouterr().err


@pytest.mark.smoke
def test_evaluating_an_adapter_outside_a_run(base, make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(make_config(train={"steps": 1}), base=base)
    run.adapter.rename("mine")
    arguments = ["mine", "--data", "gsm_symbolic", "limit=3", "max_new_tokens=8"]
    assert main(["evaluate", *arguments, "--system-prompt", "Answer."]) == 0
    result = read_result("runs/eval/mine/gsm_symbolic.json")
    assert len(result.rows()) == 3
    assert result.record["target"]["base"] == "embedded"
    assert result.settings["system_prompt"] == "Answer."
