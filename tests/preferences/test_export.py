"""`kit preferences` and `kit votes --export`: one file of many sources, which others can read."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from kit.cli import main
from kit.config import Config, PreferencesConfig
from kit.errors import DataError, ResultsError
from kit.preferences.data import held_out_questions, read_labelled, read_pairs
from kit.preferences.export import export, write_preferences
from kit.preferences.records import PreferencePair
from kit.preferences.votes import Message, VotedProblem, append_vote
from tests.preferences.test_data import PLAIN, written
from tests.preferences.test_verdicts import ROWS, evaluation
from tests.preferences.test_votes import BASE, CLIP, PSPO, vote


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    path = tmp_path / "votes.jsonl"
    append_vote(path, vote("left", voter="anna", base="embedded"))
    append_vote(path, vote("both_bad", prompt=[Message("user", "你好?")]))
    with path.open("ab") as file:
        file.write(b"{cut")
    return path


def test_sources_are_put_together_once(tmp_path: Path, votes: Path, capsys) -> None:
    verdicts = evaluation(tmp_path / "eval" / "gsm8k.jsonl", *ROWS)
    files = [votes, verdicts, written(tmp_path / "p.jsonl", PLAIN), votes]
    out = tmp_path / "new" / "prefs.jsonl"
    merged = export([str(file) for file in files], out)
    assert len(merged.examples) == 1 + 2 + 1
    assert merged.dropped["that are there already"] == 1
    assert read_pairs(out).examples == merged.examples
    said = capsys.readouterr().out
    assert f"{out}: 4 pairs (2 by verdict strict, 1 by vote anna)" in said
    assert "re-vote of 4 votes cannot tell any win rate from 50 %" not in said  # 3 prompts
    assert "re-vote of 3 votes cannot tell any win rate from 50 %" in said


@pytest.mark.parametrize("turn", [1, -1])
def test_of_equal_preferences_that_on_a_test_problem_stays(tmp_path: Path, turn: int) -> None:
    origin = {"kind": "vote", "kit_schema": 1}
    files = [
        written(tmp_path / f"{split}.jsonl", PLAIN | {"provenance": origin | more})
        for split, more in (("a", {"data": "d"}), ("b", {"split": "test"}), ("c", {}))
    ]
    out = tmp_path / "out.jsonl"
    (kept,) = export([str(file) for file in files[::turn]], out).examples
    assert kept.provenance.split == "test"
    with pytest.raises(DataError, match="on test problems"):
        read_pairs(out)


def test_votes_are_learned_from_as_what_is_exported_of_them(tmp_path: Path) -> None:
    """An answer that stands in several pairs: better than one, worse than the other."""
    path, other = tmp_path / "votes.jsonl", replace(BASE, completion="Seven.")
    for one in (vote("left"), vote("left", right=other), vote("left", left=other, right=CLIP)):
        append_vote(path, one)
    out = tmp_path / "labelled.jsonl"
    export([str(path)], out, labelled=True)
    learned = read_labelled(path)
    assert learned.examples == read_labelled(out).examples
    assert sorted((e.completion, e.label) for e in learned.examples) == sorted(
        [(PSPO.completion, True), (CLIP.completion, False), ("Seven.", False), ("Seven.", True)]
    )
    assert learned.contradictory == read_labelled(out).contradictory == 1
    assert learned.dropped == {"that are there already": 2}


def _writes(name: str, out: Path, ready: Any, ends: Any) -> None:
    pair = PreferencePair((Message("user", "3 + 4?"),), name * 1_000_000, "8")
    ready.wait(60)
    try:
        write_preferences([pair], out)
        ends.put(name)
    except ResultsError:
        ends.put("")


def test_of_two_that_write_one_file_one_is_told_that_it_did_not(tmp_path: Path) -> None:
    out, fork = tmp_path / "out.jsonl", multiprocessing.get_context("fork")
    ready, ends = fork.Barrier(2), fork.Queue()
    writers = [fork.Process(target=_writes, args=(name, out, ready, ends)) for name in "ab"]
    for writer in writers:
        writer.start()
    said = sorted(ends.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join()
    (pair,) = read_pairs(out).examples
    assert said == ["", pair.chosen[0]]


def test_the_file_is_a_data_set_of_trl(tmp_path: Path, votes: Path) -> None:
    out, labelled = tmp_path / "prefs.jsonl", tmp_path / "labelled.jsonl"
    export([str(votes)], out)
    export([str(votes)], labelled, labelled=True)
    loaded = datasets.load_dataset(
        "json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.column_names == ["prompt", "chosen", "rejected", "provenance"]
    first = loaded[0]
    assert first["prompt"][1] == {"role": "user", "content": "3 + 4?"}
    assert first["chosen"] == [{"role": "assistant", "content": PSPO.completion}]
    assert first["rejected"] == [{"role": "assistant", "content": CLIP.completion}]
    assert first["provenance"]["by"] == "anna"
    lines = [json.loads(line) for line in labelled.read_text().splitlines()]
    assert [(line["completion"][0]["content"], line["label"]) for line in lines] == [
        (PSPO.completion, True), (CLIP.completion, False),
        (PSPO.completion, False), (CLIP.completion, False),
    ]  # fmt: skip
    assert read_labelled(labelled).examples[0].provenance.by == "anna"


def test_nothing_is_overwritten(tmp_path: Path, votes: Path) -> None:
    out = tmp_path / "prefs.jsonl"
    out.write_text("mine")
    with pytest.raises(ResultsError, match=r"cannot write .*prefs\.jsonl: File exists; name a new"):
        export([str(votes)], out)
    assert out.read_text() == "mine"


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    append_vote(tmp_path / "votes.jsonl", vote("tie"))
    with pytest.raises(DataError, match=r"no preference to learn from \(1 ties\)"):
        export([str(tmp_path / "votes.jsonl")], tmp_path / "prefs.jsonl")
    assert not (tmp_path / "prefs.jsonl").exists()


def test_what_training_would_refuse_is_left_out(tmp_path: Path, make_config) -> None:
    recipe: Config = make_config()
    asked = sorted(held_out_questions(recipe.data))[0]
    path = tmp_path / "votes.jsonl"
    for fields in (
        {"question": "mine?", "base": "embedded"},
        {"question": asked},  # known by its question
        {"question": "1?", "problem": VotedProblem("gsm8k", "test", "test/1")},
        {"question": "2?", "base": "Q/B"},
    ):
        append_vote(path, vote("left", prompt=[Message("user", fields["question"])], **fields))
    out = tmp_path / "prefs.jsonl"
    merged = export([str(path)], out, recipe=recipe)
    assert [p.prompt[0].content for p in merged.examples] == ["mine?"]
    assert merged.dropped == {"on test problems": 2, "of another base than embedded": 1}
    assert read_pairs(out, problems=recipe.data, base="embedded").examples == merged.examples
    takes = recipe.model_copy(
        update={"preferences": PreferencesConfig(test_problems=True, other_bases=True)}
    )
    assert len(export([str(path)], tmp_path / "all.jsonl", recipe=takes).examples) == 4


def test_a_file_without_a_vote_is_no_file_of_votes(tmp_path: Path, capsys) -> None:
    path = written(tmp_path / "p.jsonl", PLAIN)
    assert main(["votes", str(path)]) == 1
    assert "none of its 1 lines is one; name the votes.jsonl" in capsys.readouterr().err


def test_the_commands(tmp_path: Path, votes: Path, capsys) -> None:
    eval_file = evaluation(tmp_path / "eval" / "gsm8k.jsonl", *ROWS)
    out = tmp_path / "prefs.jsonl"
    arguments = ["preferences", "--from", str(votes), str(eval_file), "-o", str(out)]
    assert main([*arguments, "--per-problem", "1"]) == 0
    assert len(read_pairs(out).examples) == 2
    assert "left out: 1 unreadable lines, 1 votes that both are bad" in capsys.readouterr().out
    assert main(["votes", str(votes), "--export", str(tmp_path / "v.jsonl")]) == 0
    assert len(read_pairs(tmp_path / "v.jsonl").examples) == 1
    assert "1 unreadable lines" in capsys.readouterr().out
