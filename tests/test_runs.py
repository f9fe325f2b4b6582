"""Run folders: what may differ when a run goes on, and what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.config import Config, build_config
from kit.errors import RunError
from kit.runs import RunFolder

PROBLEMS = {"question": ["3 + 4?", "5 - 2?"], "answer": ["7", "3"]}


def config(**data: object) -> Config:
    return build_config({"model": {"id": "embedded"}, "data": {"name": "gsm8k"} | data})


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
    with pytest.raises(RunError, match=r"another configuration \(data\.name: 'gsm8k' -> 'svamp'\)"):
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
