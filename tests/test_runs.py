"""Run folders: what may differ when a run goes on, and what may not."""

from __future__ import annotations

import errno
import json
import re
import subprocess
from pathlib import Path

import pytest

from kit import files
from kit.compare_json import read_comparison
from kit.config import Config
from kit.errors import AdapterError, ConfigError, ResultsError, RunError, TrainingError
from kit.recipe import build_config
from kit.run_json import environment, this_process
from kit.runs import RunFolder, check_has_adapter
from kit.yaml_text import read_yaml

PROBLEMS = {"question": ["3 + 4?", "5 - 2?"], "answer": ["7", "3"]}


def config(**data: object) -> Config:
    return build_config({"model": {"id": "embedded"}, "data": {"name": "gsm8k"} | data})


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """A run with a step behind it, trained on problems of the hub's."""
    run = RunFolder(tmp_path / "run")
    run.open(config(), resume=False).release()
    run.keep_to(PROBLEMS)
    run.metrics.write_text('{"step": 1}\n')
    return run


def test_a_run_goes_on_with_a_copy_of_its_problems(begun):
    begun.open(config(data_dir="/kaggle/working/runs/data"), resume=True).release()
    assert begun.load_config().data.data_dir == "/kaggle/working/runs/data"
    begun.keep_to({column: tuple(texts) for column, texts in PROBLEMS.items()})
    with pytest.raises(RunError, match=r"another output=.*: data\.name: 'gsm8k' -> 'svamp'$"):
        begun.open(config(name="svamp"), resume=True)


@pytest.mark.parametrize(
    "others",
    [
        {"question": ["3 + 4?"], "answer": ["7"]},
        {"question": ["5 - 2?", "3 + 4?"], "answer": ["3", "7"]},
        {"question": ["3 + 4?", "5 - 2?"], "answer": ["7", "4"]},
    ],
)
def test_a_run_does_not_go_on_with_other_problems(begun, others):
    with pytest.raises(RunError, match=r"begun with other problems than .*data\.data_dir"):
        begun.keep_to(others)
    begun.keep_to(PROBLEMS)  # nothing was recorded


def test_problems_bind_once_there_is_something_to_lose(begun):
    begun.metrics.unlink()
    begun.keep_to({"question": ["1 + 1?"], "answer": ["2"]})
    begun.metrics.write_text('{"step": 1}\n')
    with pytest.raises(RunError):
        begun.keep_to(PROBLEMS)


def test_a_run_from_before_problems_were_recorded_goes_on(begun):
    (begun.path / "run.json").unlink()
    begun.keep_to(PROBLEMS)


# --- what a kill or a full disk leaves -----------------------------------------------------------


@pytest.mark.parametrize(
    "left",
    [
        (".lock",),
        (".lock", "checkpoints/"),
        (".lock", "config.yaml.part"),
        (".lock", "checkpoints/", "config.yaml.part", "run.json.part"),
    ],
)
def test_a_run_killed_before_it_had_a_configuration_begins_again(tmp_path, left):
    run = RunFolder(tmp_path / "run")
    for name in left:
        path = run.path / name
        path.mkdir(parents=True) if name.endswith("/") else write(path, "")
    run.open(config(), resume=False).release()
    assert run.load_config() == config()


@pytest.mark.parametrize("name", ["mine.txt", "checkpoints/mine.txt", "config.txt.part"])
def test_a_folder_of_something_else_is_not_taken_over(tmp_path, name):
    write(tmp_path / "run" / name, "…")
    with pytest.raises(RunError, match="exists and is not a run folder"):
        RunFolder(tmp_path / "run").open(config(), resume=False)


def test_a_full_disk_does_not_lock_the_folder(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_file", full)
        with pytest.raises(RunError, match=r"cannot write .*run: No space left on device"):
            run.open(config(), resume=False)
    run.open(config(), resume=False).release()


@pytest.mark.parametrize("what", ["append", "describe", "truncate", "open"])
def test_a_full_disk_is_an_error_of_one_line(begun, monkeypatch, what):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    calls = {
        "append": lambda: begun.append(begun.samples, [{"step": 1}]),
        "describe": lambda: begun.describe(status="running"),
        "truncate": lambda: begun.truncate(0),
        "open": lambda: begun.open(config(), resume=True),
    }
    monkeypatch.setattr(files, "sync_file", full)
    with pytest.raises(RunError, match="No space left on device") as refusal:
        calls[what]()
    assert "\n" not in str(refusal.value)
    monkeypatch.undo()
    assert begun.metrics.read_text() == '{"step": 1}\n'
    begun.open(config(), resume=True).release()


def test_an_adapter_lost_between_two_renames_is_put_back(begun):
    write(begun.path / "adapter.old" / "weights", "old")
    (begun.path / "adapter.part").mkdir()
    begun.open(config(), resume=True).release()
    assert (begun.adapter / "weights").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "status", "has_ended"),
    [
        (KeyboardInterrupt(), "interrupted", False),
        (RunError("the disk is full"), "interrupted", False),  # which is no result of training
        (TrainingError("not finite"), "failed", True),
    ],
)
def test_how_an_attempt_ended_is_noted(tmp_path, error, status, has_ended):
    run = RunFolder(tmp_path / "run")
    run.open(config(), resume=False).release()
    assert (run.status, run.has_ended) == ("not started", False)
    run.note_end(error)
    assert (run.status, run.has_ended) == (status, has_ended)
    run.describe(status="finished")
    run.note_end(error)  # an attempt that had not begun to train takes nothing back
    assert (run.status, run.has_ended) == ("finished", True)
    assert not {"error", "resumable"} & run.read_description().keys()


# --- records -------------------------------------------------------------------------------------


def test_records_are_compared_with_what_a_checkpoint_knew(begun):
    marks = begun.record_marks()
    assert marks["metrics.jsonl"]["size"] == len('{"step": 1}\n')
    begun.append(begun.metrics, [{"step": 2}])
    assert begun.changed_records(marks) == []  # more may follow
    begun.metrics.write_text('{"step": 3}\n{"step": 2}\n')
    assert begun.changed_records(marks) == ["metrics.jsonl"]
    begun.metrics.unlink()
    assert begun.changed_records(marks) == ["metrics.jsonl"]


def test_lines_of_later_steps_and_damaged_ones_are_dropped(begun, caplog):
    begun.metrics.write_bytes(b'{"step": 1}\n\xff\n{"step": "x"}\n{"step": 2}\n{"st')
    begun.truncate(1)
    assert begun.metrics.read_text() == '{"step": 1}\n'
    assert "2 lines that cannot be read are dropped" in caplog.text


def test_the_commit_of_somebody_elses_checkout_is_not_the_kits(tmp_path, monkeypatch):
    """The kit installed into an environment inside a user's own repository."""
    place = tmp_path / ".venv" / "site" / "kit"
    place.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "mine"], check=True)
    monkeypatch.setattr("kit.run_json.__file__", str(place / "run_json.py"))
    assert environment()["git"] is None
    monkeypatch.setattr("kit.run_json.__file__", str(tmp_path / "kit" / "run_json.py"))
    (tmp_path / "kit").mkdir()
    assert re.fullmatch("[0-9a-f]{40}", environment()["git"]["commit"])


def test_who_trains_is_waited_for(tmp_path):
    run = RunFolder(tmp_path)
    run.path.mkdir(exist_ok=True)
    with pytest.raises(AdapterError, match=r"not started\); go on with: kit train"):
        check_has_adapter(run)
    run.describe(status="running", process=this_process())
    with pytest.raises(AdapterError, match=r"running\); wait for its first validation, or its end"):
        check_has_adapter(run)


@pytest.mark.parametrize("seconds", [[], None, {"0": "x"}])
def test_a_comparison_with_damaged_seconds(tmp_path, seconds):
    record = {"schema": 1, "arms": {}, "runs": {}, "base": {"results": "a"}, "status": "finished"}
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(record | {"command": None, "seconds": seconds}))
    with pytest.raises(ResultsError, match="is damaged: its seconds are no numbers"):
        read_comparison(path)


@pytest.mark.parametrize("text", ["output: !!bool zz", "output: !!timestamp zz", 'a: !!float ""'])
def test_tags_on_what_does_not_suit_them_are_no_yaml(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(path)
