"""The mutants: what is changed, and that the list of those no test can kill fits the code."""

from __future__ import annotations

import ast

import pytest

from tests import mutants

SOURCE = '''
"""Module."""
from math import floor

LIMIT = 3

def first(values: list[int], limit: int = 7) -> int | None:
    """Docstring: 1 + 1."""
    if not values or len(values) > limit:
        raise ValueError(f"{len(values) + 1} is wrong")
    total = 0
    for value in values:
        if value == LIMIT:
            continue
        total += value
    return -min(total, key=abs)
'''


def test_each_place_is_changed_in_each_way():
    arguments = "values: list[int], limit: int=7"
    assert [mutant.name for mutant in mutants.mutants_of("objectives", SOURCE)] == [
        "module: LIMIT = 3 => LIMIT = 4",
        "module: LIMIT = 3 => LIMIT = 2",
        f"first: {arguments} => values: list[int], limit: int=8",
        f"first: {arguments} => values: list[int], limit: int=6",
        "first: if not values or len(values) > limit: => "
        "if not (not values or len(values) > limit):",
        "first: not values or len(values) > limit => not values and len(values) > limit",
        "first: not values => values",
        "first: len(values) > limit => len(values) >= limit",
        "first: raise ValueError(f'{len(values) + 1} is wrong') => pass",
        "first: total = 0 => total = 1",
        "first: total = 0 => total = -1",
        "first: if value == LIMIT: => if not value == LIMIT:",
        "first: value == LIMIT => value != LIMIT",
        "first: continue => pass",
        "first: total += value => total -= value",
        "first: total += value => pass",
        "first: return -min(total, key=abs) => return None",
        "first: -min(total, key=abs) => min(total, key=abs)",
        "first: min(total, key=abs) => max(total, key=abs)",
        "first: min(total, key=abs) => min(total)",
    ]


def test_a_mutant_is_the_module_with_that_fault_alone():
    by_name = {mutant.name: mutant for mutant in mutants.mutants_of("objectives", SOURCE)}
    space: dict = {}
    exec(by_name["first: total += value => total -= value"].code, space)
    assert space["LIMIT"] == 3
    space["min"] = lambda total, key: total
    assert space["first"]([1, 2, 3]) == 3  # -(0 - 1 - 2), and 3 is passed over


@pytest.mark.parametrize("module", mutants.TESTS)
def test_what_is_said_to_be_equivalent_is_there_and_has_a_reason(module):
    names = set(mutants.faults(ast.parse(mutants._path(module).read_text(encoding="utf-8"))))
    listed = mutants.explained().get(module) or {}
    assert listed.keys() <= names
    assert all(len(reason.split()) > 3 for reason in listed.values())


def test_a_survivor_without_a_reason_fails_the_run(capsys, monkeypatch):
    made = mutants.mutants_of("objectives", SOURCE)
    monkeypatch.setattr(mutants, "explained", lambda: {"objectives": {made[0].name: "a reason"}})
    assert mutants._report(["objectives"], made, made[:1], 1.0) == 0
    assert "20 mutants, 95.0% killed" in capsys.readouterr().out
    assert mutants._report(["objectives"], made, [made[1]], 1.0) == 1
    told = capsys.readouterr().out
    assert f"survives: {made[1].name}" in told and f"listed, but killed: {made[0].name}" in told
    assert mutants._report(["objectives"], made, made[:2], 1.0) == 1
    assert "90.0% were killed; 95% must be" in capsys.readouterr().out
