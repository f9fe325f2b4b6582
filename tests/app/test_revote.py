"""From votes to commands that train on them, and from what those leave to a re-vote."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from kit.app.compare.revote import commands, learned_questions, trained_on
from kit.app.compare.stored import Reading, open_reading
from kit.app.library.adapters import Choice
from kit.app.options import AppOptions
from kit.errors import ResultsError
from kit.guideline import Guideline, prompted
from kit.preferences.votes import Side, Vote, VotedProblem
from kit.recipe import load_config
from tests.app.test_browse import WRONG, row, write
from tests.preferences.test_votes import vote

CONFIGS = Path(__file__).parents[2] / "configs"
HASHES = {"one arm": "11" * 32, "two": "22" * 32}


def choice(runs: Path, name: str, **changes) -> Choice:
    adapter, run = str(runs / name / "adapter"), str(runs / name)
    return replace(Choice(name, adapter, "Qwen", "", None, run, None), **changes)


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    rows = {"one arm": [row(1), row(2)], "two": [row(1, **WRONG), row(2)]}
    for name, sha256 in HASHES.items():
        path = write(tmp_path / name, rows[name])
        record = json.loads(path.read_text())
        record["target"]["adapter_sha256"] = sha256
        path.write_text(json.dumps(record))
    found = open_reading([tmp_path], *(choice(tmp_path, name) for name in HASHES))
    assert found is not None
    return found


def votes_for(*names: str, split: str | None = "test") -> list[Vote]:
    """One vote for each name."""
    one, two = (Side(name, name, sha256, name, True) for name, sha256 in HASHES.items())
    problem = VotedProblem("gsm8k", split, "1")
    return [
        vote("left" if name == "one arm" else "right", left=one, right=two, problem=problem)
        for name in names
    ]


def test_the_commands_go_on_from_the_side_that_won(tmp_path: Path, reading: Reading) -> None:
    options = AppOptions(runs=tmp_path)
    said = commands(reading, votes_for("one arm", "one arm", "two"), 40, options)
    train, evaluate = map(shlex.split, said.splitlines())  # a space in a name parts nothing
    assert train[:3] == ["kit", "train", str(tmp_path / "one arm" / "config.yaml")]
    assert f"model.adapter={tmp_path}/one arm/adapter" in train
    # each of 40 pairs ten times, 16 in a step
    assert {"method=dpo", "preferences.batch=16", "train.steps=25"} <= {*train}
    assert f"preferences.source={tmp_path}/votes.jsonl" in train
    assert "preferences.test_problems=true" in train
    new = str(tmp_path / "one arm-voted")
    assert train[-1] == f"output={new}" and evaluate[2:4] == [new, str(tmp_path / "one arm")]
    settings = {"temperature=0", "max_new_tokens=64", "top_p=1", "seed=0", "split=test", "limit=4"}
    assert settings <= {*evaluate}
    (tmp_path / "two-voted").mkdir()
    other = commands(reading, votes_for("two", split="train"), 3, options)
    assert "test_problems" not in other and "preferences.batch=1" in other
    assert f"output={tmp_path}/two-voted-2" in other  # nothing is overwritten


def test_votes_are_learned_from_at_a_lower_rate_than_samples(
    tmp_path: Path, reading: Reading
) -> None:
    def said(**changes) -> list[str]:
        sides = tuple(replace(side, **changes) for side in reading.sides)
        known = replace(reading, sides=sides)
        return commands(known, votes_for("one arm"), 4, AppOptions(runs=tmp_path)).split()

    assert {"optim.learning_rate=0.0003", "optim.schedule=linear"} <= {*said(learning_rate=1e-3)}
    # once it is that of votes it stays
    assert "optim.learning_rate=0.0002" in said(learning_rate=2e-4, preferences="votes.jsonl")
    assert not any("learning_rate" in word for word in said())  # of no run


def test_pairs_that_came_twice_count_once_and_of_equals_the_parent_goes_on(
    tmp_path: Path, reading: Reading
) -> None:
    def goes_on(votes: list[Vote], sides: tuple[Choice, Choice] = reading.sides) -> str:
        said = commands(replace(reading, sides=sides), votes, 4, AppOptions(runs=tmp_path))
        return shlex.split(said.splitlines()[0])[-1].removeprefix(f"output={tmp_path}/")

    (two,) = votes_for("two")
    again = [replace(two, id="again", repeat_of=two.id) for _ in range(3)]
    assert goes_on([*votes_for("one arm", "one arm"), two, *again]) == "one arm-voted"
    one, other = reading.sides
    for parent, child in ((one, other), (other, one)):
        sides = (parent, replace(child, parent=parent.adapter))
        equal = votes_for("one arm", "two")
        assert goes_on(equal, sides) == goes_on(equal, sides[::-1]) == f"{parent.label}-voted"


def test_what_learning_from_pairs_has_not_is_left_out_of_the_runs_settings(
    tmp_path: Path, reading: Reading
) -> None:
    guidelines = {
        "one": Guideline(prompt='Say "why": é.', checks=[{"name": "equations", "weight": 0.1}])
    }

    def said(*guided: bool, **changes) -> list[str]:
        sides = tuple(
            replace(side, guidelines=guidelines if is_guided else {}, **changes)
            for side, is_guided in zip(reading.sides, guided, strict=True)
        )
        words = commands(
            replace(reading, sides=sides), votes_for("one arm"), 4, AppOptions(runs=tmp_path)
        )
        return shlex.split(words.splitlines()[0])[3:]

    both = load_config(CONFIGS / "embedded-dpo.yaml", said(True, True))
    assert not both.guidelines  # and what the votes were on is asked
    assert both.data.system_prompt == prompted("Be brief.", guidelines)
    assert "guidelines=[]" in said(True, False)
    assert not any("system_prompt" in word for word in said(True, False))
    assert not any("guidelines" in word for word in said(False, False))
    assert "preferences.desirable_weight=1" in said(False, False, preferences="votes.jsonl")


def test_the_second_command_has_the_tag_of_what_was_read(tmp_path: Path, reading: Reading) -> None:
    assert "--tag" not in commands(reading, votes_for("two"), 4, AppOptions(runs=tmp_path))
    left = reading.pairing.left
    tagged = replace(left, about=replace(left.about, tag="read"))
    read = replace(reading, pairing=replace(reading.pairing, left=tagged))
    assert "--tag read" in commands(read, votes_for("two"), 4, AppOptions(runs=tmp_path))


def test_votes_between_other_adapters_do_not_decide_who_won(
    tmp_path: Path, reading: Reading
) -> None:
    others = [
        Side(name, name, sha256 * 32, name, True) for name, sha256 in (("x", "33"), ("y", "44"))
    ]
    elsewhere = [vote("left", left=others[0], right=others[1]) for _ in range(3)]
    said = commands(reading, [*votes_for("one arm"), *elsewhere], 4, AppOptions(runs=tmp_path))
    assert shlex.split(said.splitlines()[0])[-1] == f"output={tmp_path}/one arm-voted"


def test_the_base_that_won_is_trained_as_the_other_side_was(
    tmp_path: Path, reading: Reading
) -> None:
    base = Choice("base", None, "Qwen", "", None, None, None)
    with_base = replace(reading, sides=(reading.sides[0], base))
    said = commands(with_base, votes_for("two"), 5, AppOptions(runs=tmp_path))
    assert "model.adapter=null" in said and "--base Qwen" in said
    assert "one arm/config.yaml" in said and f"output={tmp_path}/base-voted" in said


def test_what_was_trained_on_the_votes_is_found_newest_first(tmp_path: Path) -> None:
    options = AppOptions(runs=tmp_path)
    old, base = choice(tmp_path, "old"), Choice("base", None, "Qwen", "", None, None, None)
    made = {"preferences": str(tmp_path / "votes.jsonl"), "parent": old.adapter}
    first, second = (choice(tmp_path, name, **made) for name in ("first", "second"))
    fresh = choice(tmp_path, "fresh", **made | {"parent": None})
    elsewhere = choice(tmp_path, "elsewhere", **made | {"preferences": "others.jsonl"})
    everything = [base, old, first, second, fresh, elsewhere]
    for number, one in enumerate((old, fresh, first, second, elsewhere)):
        Path(str(one.adapter)).mkdir(parents=True)
        os.utime(str(one.adapter), (number, number))
    assert trained_on(everything, options) == [(second, old), (first, old), (fresh, base)]
    assert trained_on([base, old, elsewhere], options) == []


def test_questions_that_were_learned_from_are_left_out(tmp_path: Path, reading: Reading) -> None:
    new = choice(tmp_path, "two", preferences="votes.jsonl")
    line = {
        "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"}]
    }
    (tmp_path / "two" / "preferences.jsonl").write_text(json.dumps(line) + "\n")
    old, options = choice(tmp_path, "one arm"), AppOptions(runs=tmp_path)

    def learned(*sides: Choice, votes: Sequence[Vote] = (), known: Sequence[Choice] = ()):
        return learned_questions(replace(reading, sides=sides), known, votes, options)

    assert learned(new, old) == {"2 + 2?"}
    newer = choice(tmp_path, "three", parent=new.adapter)
    assert learned(newer, old, known=[new, newer]) == {"2 + 2?"}  # by what it went on from
    # votes that came before it count where it is of them, whatever they say; later ones do not
    elsewhere = [Side(name, name, sha * 32, name, True) for name, sha in (("x", "33"), ("y", "44"))]
    then = datetime(2026, 1, 1, tzinfo=timezone.utc)
    asked = {"left": elsewhere[0], "right": elsewhere[1], "time": then}
    votes = [
        vote("both_bad", question="Before?", **asked),
        vote("left", question="After?", **asked | {"time": then + timedelta(2)}),
        replace(votes_for("two")[0], question="Here?", time=then),
    ]
    ours = replace(new, preferences=str(options.votes))
    Path(str(ours.adapter)).mkdir()
    os.utime(str(ours.adapter), (then.timestamp() + 9,) * 2)
    assert learned(ours, old, votes=votes) == {"2 + 2?", "before?"}
    assert learned(new, old, votes=votes) == {"2 + 2?"}
    assert reading.session("", 40) is not None
    assert reading.session("", 40, {"2 + 2?"}) is None  # all of them
    (tmp_path / "two" / "preferences.jsonl").write_text("{half")
    with pytest.raises(ResultsError, match="what it has learned from is not known"):
        learned(new, old)
