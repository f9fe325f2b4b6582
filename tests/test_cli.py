"""The command line: quick, closed, and errors that are one line."""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from kit import __version__
from kit.cli import main
from kit.errors import ConfigError
from kit.evaluation.results import read_result
from kit.training.trainer import train

ROOT = Path(__file__).parents[1]


COMMANDS = {
    "Train": ("train", "compare", "study", "estimate", "doctor", "regions", "demo"),
    "Measure": ("evaluate", "report", "judge", "votes", "preferences"),
    "Adapters": ("verify", "merge", "blend", "push"),
    "Look": ("app",),
}


def kit(*arguments, **environment):
    """The command in a process of its own, its output caught by pipes."""
    return subprocess.run(
        [sys.executable, "-m", "kit", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["evaluate", "-h"], ["trian"], ["train", "nowhere.yaml"]]
)
def test_help_and_refusals_load_no_libraries(arguments):
    code = (
        "import sys; from kit.cli import main\n"
        f"main({arguments})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'gradio'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_quick():
    times = []
    for _ in range(3):
        before = _seconds_of_children()
        done = kit("--help")
        times.append(_seconds_of_children() - before)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1


def test_without_a_command_the_help_is_shown(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert main([]) == 2  # as typer has it: nothing was done
    shown = capsys.readouterr()
    assert (shown.out + shown.err).rstrip() == text.rstrip()


def test_the_hubs_warnings_are_said_once():
    """Its library has a handler of its own, beside which the kit's would say them again."""
    code = (
        "import logging; from kit.cli import main; main(['regions'])\n"
        "import huggingface_hub.utils._http\n"
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.count("Retrying in 1s") == 1


def test_the_table_of_regions_says_how_one_is_chosen(capsys):
    assert main(["regions"]) == 0
    assert "objective.trust_region=cispo" in capsys.readouterr().out


def test_help_has_every_command_in_its_group(capsys):
    assert main(["--help"]) == 0
    groups = re.split(r"╭─ (\w+) ─+╮\n", capsys.readouterr().out)
    panels = dict(zip(groups[1::2], groups[2::2], strict=True))
    shown = {name: tuple(re.findall(r"^│ (\w+) ", panels[name], re.M)) for name in COMMANDS}
    assert shown == COMMANDS


@pytest.mark.parametrize("command", [name for names in COMMANDS.values() for name in names])
def test_every_command_explains_itself_and_may_be_verbose(capsys, command):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: kit {command} [OPTIONS]" in shown and "--verbose" in shown
    assert ("--output" in shown) == bool(re.search(r"--output +-o ", shown))


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


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
        (["train", "configs/smoke.yaml", "data.name=gsm9k"], "'gsm9k', did you mean 'gsm8k'?"),
        (
            ["train", "configs/smoke.yaml", "data.name=nowhere.jsonl"],
            "nowhere.jsonl does not exist",
        ),
        (["train", "configs/smoke.yaml", "data.name=reasoning_gym:sums"], "unknown reasoning_gym"),
        (["compare", "a", "b", "evaluate.limit="], "override 'evaluate.limit=' has no value"),
        (["evaluate", "--data", "gsm8k"], "nothing to evaluate"),
        (["evaluate", "nowhere", "--data", "gsm8k"], "no adapter at nowhere"),
        (["evaluate", "--base", "embedded", "--data", ","], "no data set to evaluate on"),
        (
            ["evaluate", "--base", "embedded", "--data", "gsm_symbolic,svmap"],
            "unknown data set 'svmap', did you mean 'svamp'?; it may be gsm8k, svamp, asdiv",
        ),
        (
            ["evaluate", "--base", "embedded", "--data", "gsm8k", "temprature=0.4"],
            "unknown key 'temprature', did you mean 'temperature'?",
        ),
        (
            ["evaluate", "temperature=0.4", "--base", "embedded", "--data", "gsm8k", "limit=0"],
            "limit = 0 is not allowed: must be at least 1",
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
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? (see kit --help)"),
        (["evaluate", "--base", "embedded"], "Missing option '--data'. (see kit evaluate --help)"),
        (["evaluate", "--data", "gsm8k", "--tepmerature", "0.4"], "options: --temperature)"),
        (["merge", "a", "-o", "b", "--dtype", "float8"], "'float8' is not one of 'bfloat16', "),
        (["judge", "a", "--data", "gsm8k", "--limit", "few"], "Invalid value for '--limit'"),
        (["blend", "a", "b", "-o", "c", "--weights"], "Missing option '--weights'"),
        (["demo", "extra"], "extra"),
    ],
)
def test_arguments_that_no_command_takes(capsys, arguments, message):
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not out


@pytest.mark.parametrize(
    ("arguments", "before"),
    [
        (["estimate", "configs/smoke.yaml", "--gpu", ""], "--gpu"),
        (["app", "--base", ""], "--base"),
        (["evaluate", "--base=", "--data", "gsm8k"], "--base"),
        (["evaluate", "runs/mine", "", "--data", "gsm8k"], "runs/mine"),
        (["regions", "--plot", ""], "--plot"),
        (["train", ""], "train"),
        ([""], "kit"),
    ],
)
def test_what_an_unset_variable_leaves_is_no_argument(capsys, arguments, before):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: what follows {before} is empty; give it a value, or leave")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "configs/smoke.yaml", "output=runs/\udcff"],
        ["evaluate", "--base", "\udcff", "--data", "gsm8k"],
        ["report", "runs/\udcff"],
    ],
)
def test_arguments_that_no_file_of_the_kit_can_hold(capsys, arguments):
    """Bytes of a name that is not UTF-8, as Python hands them on."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: '") and error.count("\n") == 1
    assert r"\udcff' is not valid UTF-8, and what the kit writes is; rename it" in error


def test_run_folders_are_offered_where_they_are_taken(capsys, tmp_path):
    for command, takes_runs in (("train", True), ("estimate", True), ("compare", False)):
        assert main([command, "--help"]) == 0
        assert ("or run folder" in capsys.readouterr().out) == takes_runs
    assert main(["compare", str(tmp_path), "configs/smoke.yaml"]) == 1
    assert "it is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--system-prompt", ""], ["--system-prompt="]])
def test_no_system_prompt_is_one_that_is_empty(capsys, given):
    assert main(["evaluate", "--data", "gsm8k", *given]) == 1
    assert "nothing to evaluate" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a full disk at hand")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["evaluate", "--help"], ["estimate", "configs/smoke.yaml"]]
)
def test_what_cannot_be_printed_is_an_error_of_one_line(arguments):
    command = [sys.executable, "-m", "kit", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    said = "error: cannot write to the standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_nobody_is_told_when_a_pipe_was_closed_or_errors_cannot_be_written():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kit", "regions"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    command[-1:] = ["train", "nowhere.yaml"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("configs/smoek.yaml", "configs/smoke.yaml"),
        ("confgs/smoke.yml", "configs/smoke.yaml"),
        ("smoke", "configs/smoke.yaml"),
        ("runs/tyni", "runs/tiny"),
        ("runs/tiny/confg.yaml", "runs/tiny/config.yaml"),
    ],
)
def test_paths_that_are_nearly_right(capsys, tmp_path, monkeypatch, given, meant):
    monkeypatch.chdir(tmp_path)
    for file in ("configs/smoke.yaml", "configs/t4-clip.yaml", "runs/tiny/config.yaml"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    for arguments in (["train", given], ["estimate", given], ["compare", given, "other.yaml"]):
        assert main(arguments) == 1
        assert capsys.readouterr().err == (
            f"error: cannot read the configuration {given}: No such file or directory, did you "
            f"mean {meant!r}?\n"
        )
    assert main(["train", "nowhere/at/all.yaml"]) == 1
    assert "did you mean" not in capsys.readouterr().err


def test_run_folders_that_are_nearly_right(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "kit.model.adapter_files.hf_hub_download", lambda source, name: (tmp_path / name).open()
    )
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    for arguments in (
        ["evaluate", "runs/tyni", "--data", "gsm8k"],
        ["verify", "tyni"],
        ["merge", "runs/tyni", "-o", "merged"],
        ["push", "runs/tyni", "me/mine"],
        ["report", "runs/tyni"],
    ):
        assert main(arguments) == 1
        assert "did you mean 'runs/tiny'?" in capsys.readouterr().err


def test_settings_may_stand_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    asked = []
    monkeypatch.setattr("kit.training.trainer.train", lambda config, resume: asked.append(config))
    with pytest.raises(AttributeError):  # for what is not a run
        main(["train", "lora.rank=3", "configs/smoke.yaml", "--resume", f"output={tmp_path}"])
    assert (asked[0].lora.rank, asked[0].output) == (3, str(tmp_path))
    monkeypatch.setattr(
        "kit.comparison.compare", lambda *given, **more: asked.append((given, more))
    )
    clip, pspo = (f"configs/embedded-{arm}.yaml" for arm in ("clip", "pspo"))
    arguments = ["evaluate.limit=3", clip, "--seeds", "1,2", "lora.rank=3", "--vary", "lora"]
    assert main(["compare", *arguments, pspo, "-v"]) == 0
    given, more = asked[1]
    assert given == ([clip, pspo], ["lora.rank=3"])
    assert (more["seeds"], more["vary"], more["settings"].limit) == ([1, 2], ["lora"], 3)
    assert more["command"] == "kit " + " ".join(["compare", *arguments, pspo, "-v"])


def test_weights_may_follow_one_name_or_several(monkeypatch):
    asked = []
    monkeypatch.setattr("kit.adapters.locate.adapter_folder", str)
    monkeypatch.setattr("kit.adapters.blend.blend", lambda *given, **more: asked.append(given[:3]))
    for arguments in (
        ["a", "b", "--weights", "1", "-.5", "-o", "c"],
        ["-o", "c", "--weights", "1", "--weights", "-0.5", "--seed", "1", "a", "b"],
    ):
        assert main(["blend", *arguments]) == 0
    assert asked == [(["a", "b"], [1.0, -0.5], Path("c"))] * 2


def test_interrupted_and_unexpected(monkeypatch, capsys):
    def stop(output):
        raise KeyboardInterrupt

    monkeypatch.setattr("kit.demo.demo", stop)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("arguments", [["-v", "estimate", "a.yaml"], ["estimate", "a.yaml", "-v"]])
def test_tracebacks_are_shown_on_request(arguments):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        main(arguments)
    done = kit(*[text for text in arguments if text != "-v"])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    "forced",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"FORCE_COLOR": "1"},
        pytest.param({"GITHUB_ACTIONS": "true"}, marks=pytest.mark.slow),
    ],
)
def test_pipes_get_words_alone(forced):
    """No colours, whoever forces them, and errors that no width breaks."""
    hostile = "\x1b[31m\x9b2J"
    for arguments in (["--help"], ["evaluate", "--help"], [hostile], ["train", hostile]):
        done = kit(*arguments, COLUMNS="20", **forced)
        assert not re.search("[\x1b\x9b]", done.stdout + done.stderr)
        assert done.returncode == (0 if "--help" in arguments else 1 + (len(arguments) == 1))
        assert done.stderr.count("\n") == (0 if "--help" in arguments else 1)


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "configs/smoke.yaml", "train.steps=!!bool zz"],
            "train.steps = '!!bool zz' is not a",
        ),
        (["train", "a" * 5000], "cannot read the configuration"),
        (["train", "/dev/zero"], "it is no file"),
        (["train", "configs/smoke.yaml", "output=docs"], "docs exists and is not a run folder"),
        (["compare", "configs/smoke.yaml", "--seeds", "²"], "--seeds must be numbers"),
        (["compare", "configs/smoke.yaml"], "at least two configurations, got 1"),
        (["verify", "nowhere"], "no adapter at nowhere"),
        (["merge", "nowhere", "-o", "x"], "no adapter at nowhere"),
        (["evaluate", "nowhere", "--data", "gsm8k"], "no adapter at nowhere"),
    ],
)
def test_refused_in_one_line_before_torch(arguments, said):
    code = (
        "import sys; from kit.cli import main; status = main(sys.argv[1:]);"
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line
    assert done.stdout == "1 False\n"


def test_what_is_refused_is_shown_in_short(capsys):
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in itertools.pairwise("abcdefgh")
    )
    for value in (bomb, "9" * 5000, "[" + "1," * 5000 + "1]"):
        assert main(["train", "configs/smoke.yaml", f"train.steps={value}"]) == 1
        assert len(capsys.readouterr().err) < 1000


def test_two_dashes_end_a_list_of_values(monkeypatch):
    asked = []
    monkeypatch.setattr("kit.adapters.locate.adapter_folder", asked.append)
    monkeypatch.setattr("kit.adapters.blend.blend", lambda *given, **more: asked.append(given[:2]))
    assert main(["blend", "-o", "c", "--weights", "1", "2", "--", "a", "b"]) == 0
    assert asked == ["a", "b", (["a", "b"], [1.0, 2.0])]


@pytest.mark.parametrize("command", ["train", "compare", "demo"])
def test_what_was_stopped_exits_as_after_ctrl_c(command, monkeypatch, tmp_path):
    """So that `kit train … && kit evaluate …` does not go on with half a run."""
    stopped = types.SimpleNamespace(status="interrupted")
    monkeypatch.setattr("kit.training.trainer.train", lambda config, resume: stopped)
    monkeypatch.setattr("kit.comparison.compare", lambda *given, **more: None)
    monkeypatch.setattr("kit.compare_json.read_comparison", lambda path: {"status": "interrupted"})
    monkeypatch.setattr("kit.demo.demo", lambda output: [])
    recipes = [str(ROOT / "configs" / f"embedded-{arm}.yaml") for arm in ("clip", "pspo")]
    given = {"train": recipes[:1], "compare": recipes, "demo": []}[command]
    assert main([command, *given]) == 130
