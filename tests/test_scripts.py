"""The scripts beside the kit begin: what they import is there."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from kit.config import EMBEDDED_RECIPES, EMBEDDED_SUMS
from kit.recipe import load_config
from kit.tasks.problems import load_problems

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    *sorted({*(ROOT / "benchmarks").glob("*.py")} - {ROOT / "benchmarks" / "measuring.py"}),
    ROOT / "scripts" / "embedded_model" / "train_tiny.py",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_is_printed(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(script.parent)  # as for a program; its neighbours are found
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert not end.value.code
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.fixture
def sums():
    """The script's module of that name."""
    return runpy.run_path(str(ROOT / "scripts" / "embedded_model" / "sums.py"))


def test_the_ways_of_working_out_a_sum(sums):
    expression = "7 - 2 * ( 3 + -5 )"
    right, wrong = ["3 + -5 = -2", "2 * -2 = -4", "7 - -4 = 11"], ["7 - 2 = 5", "5 * 3 = 15"]
    assert sums["by_precedence"](expression, lambda number, value: value) == (right, 11)
    assert sums["left_to_right"](expression) == ([*wrong, "15 + -5 = 10"], 10)
    lines, answer = sums["by_precedence"](expression, lambda number, value: value + (number == 1))
    assert (lines, answer) == (["3 + -5 = -2", "2 * -2 = -3", "7 - -3 = 10"], 10)


def test_a_sum_worked_out_with_care_has_the_answer_of_its_data(sums):
    for problem in sums["problems"](0, 200):
        lines, answer = sums["by_precedence"](problem.expression, lambda number, value: value)
        assert (len(lines), answer) == (problem.terms - 1, problem.answer)


@pytest.mark.slow
def test_held_out_sums_are_none_of_those_trained_on():
    data = load_config(EMBEDDED_RECIPES[EMBEDDED_SUMS]).data
    asked = [load_problems(data, role).problems["question"] for role in ("train", "test")]
    assert min(map(len, asked)) > 5_000 and set(asked[0]).isdisjoint(asked[1])
