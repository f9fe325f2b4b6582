"""Verdicts and a judge's decisions as preferences: the rule, the prompts, the provenance."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kit.config import Config
from kit.errors import DataError, KitError, ResultsError
from kit.evaluation.results import SCHEMA
from kit.preferences.data import read_labelled, read_pairs
from kit.preferences.gather import gather_labelled, gather_pairs
from kit.preferences.judge import run_judge
from kit.preferences.judge_models import JudgeConfig
from kit.preferences.records import Provenance, Writer
from kit.preferences.rubric import CRITERIA, OVERALL
from kit.preferences.votes import Message

SYSTEM = "Be brief."


def row(id_: str, completion: str, strict: bool, **fields: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "temperature": 0.8,
        "sample": 0,
        "question": f"{id_}?",
        "answer": "7",
        "category": "",
        "difficulty": "",
        "completion": completion,
        "tokens": 3,
        "truncated": False,
        "strict_answer": None,
        "lenient_answer": None,
        "strict": strict,
        "lenient": strict,
    } | fields


def evaluation(path: Path, *rows: dict[str, Any], **fields: Any) -> Path:
    """The two files of an evaluation; `path` is the completions'."""
    record = {
        "schema": SCHEMA,
        "status": "running",
        "data": "gsm8k",
        "tag": None,
        "n": None,
        "seen_in_training": None,
        "target": {"name": "mine", "run": None, "base": "Q/B", "adapter_sha256": "a" * 64},
        "settings": {"system_prompt": SYSTEM, "split": "train", "problems": {}},
        "hardware": None,
        "versions": None,
        "git": None,
        "command": None,
        "started": None,
        "seconds": 0,
        "tokens_per_second": None,
        "results": [],
    } | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(record))
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


ROWS = [
    row("p", "r2", True, sample=2),  # samples count in their order, not in that of the file
    row("p", "r1", True, sample=0),
    row("p", "w1", False, sample=1),
    row("p", "r1", True, sample=3),  # there already
    row("p", "w2", False, sample=4),
    row("p", "w3", False, sample=5, truncated=True),
    row("p", "w9", False, sample=0, temperature=0.0),  # alone at its temperature
    row("q", "only", True, sample=0),
]


def test_right_against_wrong_in_the_order_of_their_samples(tmp_path: Path) -> None:
    data = gather_pairs(str(evaluation(tmp_path / "gsm8k.jsonl", *ROWS)))
    assert [(pair.chosen, pair.rejected) for pair in data.examples] == [("r1", "w1"), ("r2", "w2")]
    assert data.dropped == Counter(
        {
            "completions that are there already": 1,
            "completions that were cut off": 1,
            "groups that are all right or all wrong": 2,
        }
    )
    assert data.examples[0].prompt == (Message("system", SYSTEM), Message("user", "p?"))
    assert data.examples[0].provenance == Provenance(
        kind="verdict",
        by="strict",
        base="Q/B",
        writers=(Writer("mine", "a" * 64),) * 2,
        data="gsm8k",
        split="train",
        problem="p",
    )


def test_one_answer_each_makes_no_pairs(tmp_path: Path) -> None:
    settings = {"system_prompt": SYSTEM, "split": "train", "problems": {}}
    path = evaluation(tmp_path / "gsm8k.jsonl", *ROWS[6:], settings=settings)
    with pytest.raises(DataError, match=r"\(2 groups that are all .*temperature=0\.8 samples=8"):
        read_pairs(path)


def test_a_problem_has_a_most(tmp_path: Path) -> None:
    source = str(evaluation(tmp_path / "gsm8k.jsonl", *ROWS))
    assert len(gather_pairs(source, per_problem=1).examples) == 1
    labelled = gather_labelled(source, per_problem=1).examples
    assert [(e.completion, e.label) for e in labelled] == [
        ("w9", False), ("r1", True), ("only", True)
    ]  # fmt: skip


def test_completions_with_their_verdict(tmp_path: Path) -> None:
    data = gather_labelled(str(evaluation(tmp_path / "gsm8k.jsonl", *ROWS)))
    labels = {example.completion: example.label for example in data.examples}
    assert labels == {"r1": True, "r2": True, "w1": False, "w2": False, "w9": False, "only": True}
    assert {e.provenance.writers for e in data.examples} == {(Writer("mine", "a" * 64),)}


@pytest.mark.parametrize("name", ["gsm8k.tag.json", "gsm8k.tag.jsonl"])
def test_either_file_of_an_evaluation_may_be_named(tmp_path: Path, name: str) -> None:
    evaluation(tmp_path / "gsm8k.tag.jsonl", *ROWS)
    assert len(gather_pairs(str(tmp_path / name)).examples) == 2


def test_an_evaluation_of_test_problems_is_refused_for_training(tmp_path: Path) -> None:
    settings = {"system_prompt": SYSTEM, "split": "test", "problems": {}}
    path = evaluation(tmp_path / "gsm8k.jsonl", *ROWS, settings=settings)
    for read in (read_pairs, read_labelled):
        with pytest.raises(DataError, match="on test problems"):
            read(path)
    assert len(read_pairs(path, test_problems=True).examples) == 2


def test_damaged_evaluations_are_refused(tmp_path: Path) -> None:
    path = evaluation(tmp_path / "gsm8k.jsonl", *ROWS)
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(ResultsError, match="line 9 is not usable"):
        gather_pairs(str(path))
    path.with_suffix(".json").unlink()
    with pytest.raises(ResultsError, match="there are no results at"):
        gather_pairs(str(path))


def test_the_chats_of_own_data_are_what_was_asked(tmp_path: Path) -> None:
    """A data set whose problems are chats: the question alone is not the prompt."""
    chat = [
        {"role": "user", "content": "p?"},
        {"role": "assistant", "content": "What?"},
        {"role": "user", "content": "p, I say?"},
    ]
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps({"id": "p", "prompt": chat, "answer": "7"}) + "\n")
    rows = [{**r, "question": "p, I say?"} for r in ROWS[:3]]
    path = evaluation(tmp_path / "eval" / "mine.jsonl", *rows, data=str(mine))
    (pair,) = gather_pairs(str(path)).examples
    assert [(m.role, m.content) for m in pair.prompt] == [(m["role"], m["content"]) for m in chat]


# --- samples of a run ---------------------------------------------------------------------------


def sample(step: int, completion: str, strict: bool, **fields: Any) -> dict[str, Any]:
    return {
        "step": step, "id": "p", "question": "p?", "completion": completion, "strict": strict,
        "truncated": False,
    } | fields  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, make_config) -> Path:
    config: Config = make_config(data={"system_prompt": SYSTEM})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    return folder


def test_samples_of_one_step_are_a_group(run: Path) -> None:
    lines = [
        sample(1, "w1", False),
        sample(1, "r1", True),
        sample(2, "r2", True),  # alone in its step
        sample(3, "w3", False),
        sample(3, "r3", True),
        {"step": "4"},
        sample(3, "r4", True, question="\ud800"),  # half of a surrogate pair
    ]
    path = run / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{cut\n")
    data = read_pairs(path, base="embedded")
    assert gather_pairs(str(run)).examples == data.examples  # the run stands for its samples
    assert [(p.chosen, p.rejected) for p in data.examples] == [("r1", "w1"), ("r3", "w3")]
    assert data.dropped["unreadable lines"] == 3
    assert data.examples[0].prompt == (Message("system", SYSTEM), Message("user", "p?"))
    origin = data.examples[0].provenance
    assert (origin.base, origin.data, origin.split) == ("embedded", "gsm_symbolic", "train")
    assert origin.writers == (Writer("run", None),) * 2
    with pytest.raises(DataError, match="another base than Q/B"):
        read_pairs(path, base="Q/B")


def test_what_several_steps_have_counts_once(run: Path) -> None:
    """A policy that repeats itself leaves room for what it says later."""
    same = [sample(step, *said) for step in range(5) for said in (("r", True), ("w", False))]
    later = [sample(9, "r2", True), sample(9, "w2", False)]
    lines = (json.dumps(line) + "\n" for line in [*same, *later])
    (run / "samples.jsonl").write_text("".join(lines))
    data = gather_pairs(str(run), per_problem=2)
    assert [(p.chosen, p.rejected) for p in data.examples] == [("r", "w"), ("r2", "w2")]
    assert data.dropped == {"pairs that are there already": 4}
    labelled = gather_labelled(str(run), per_problem=2)
    assert [e.completion for e in labelled.examples] == ["r", "w", "r2", "w2"]
    assert labelled.dropped == {"completions that are there already": 8}


def test_a_run_that_learned_from_preferences_stands_for_those(run: Path) -> None:
    (run / "preferences.jsonl").write_text('{"prompt": "x", "chosen": "a", "rejected": "b"}\n')
    (pair,) = gather_pairs(str(run)).examples
    assert (pair.chosen, pair.rejected) == ("a", "b")


def test_samples_without_their_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(sample(1, "r", True)) + "\n")
    with pytest.raises(KitError, match=r"is not a run folder: config\.yaml is missing"):
        gather_pairs(str(path))


# --- a judge ------------------------------------------------------------------------------------


class Judge:
    """Prefers what has `good` in it, and of two that have `first` in them the one shown first."""

    signature = JudgeConfig(model="judge-model").signature

    def ask(self, prompts):
        from kit.preferences.judge_models import Reply

        for position, prompt in enumerate(prompts):
            shown = prompt[1]["content"].partition("<<<BEGIN SOLUTION A>>>")[2]
            first = shown.partition("<<<END")[0]
            choice = "A" if "first" in first or "good" in first else "B"
            choice = "tie" if "same" in first else choice
            yield position, Reply(json.dumps(dict.fromkeys((*CRITERIA, OVERALL), choice)))


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("kit.preferences.judge.open_judge", lambda config: Judge())
    left = [("a", "good a"), ("b", "bad b"), ("c", "first c"), ("d", "same d"), ("e", "good")]
    right = [("a", "bad a"), ("b", "good b"), ("c", "first c too"), ("d", "same"), ("e", "good")]
    files = [
        evaluation(
            tmp_path / name / "gsm8k.jsonl",
            *(row(id_, text, False, temperature=0.0) for id_, text in side),
            target={"name": name, "run": None, "base": "Q/B", "adapter_sha256": name * 64},
        )
        for name, side in (("x", left), ("y", right))
    ]
    run_judge(*files, tmp_path / "judged", JudgeConfig(model="judge-model"))
    return tmp_path / "judged.json"


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_pairs_that_a_judge_decided(judged: Path, suffix: str) -> None:
    data = gather_pairs(str(judged.with_suffix(suffix)))
    found = {p.provenance.problem: p for p in data.examples}
    assert {id_: (p.chosen, p.rejected) for id_, p in found.items()} == {
        "a": ("good a", "bad a"),
        "b": ("good b", "bad b"),
    }
    assert data.dropped == Counter({"ties": 1, "pairs on which the two orders disagree": 2})
    origin = found["b"].provenance
    assert (origin.kind, origin.by, origin.base) == ("judge", "judge-model", "Q/B")
    assert origin.writers == (Writer("y", "y" * 64), Writer("x", "x" * 64))
    assert found["a"].prompt == (Message("system", SYSTEM), Message("user", "a?"))


def test_judgements_that_are_missing_are_counted(judged: Path) -> None:
    lines = judged.with_suffix(".jsonl").read_text().splitlines(keepends=True)
    judged.with_suffix(".jsonl").write_text(
        "".join(line for line in lines if '"id": "a"' not in line)
    )
    data = gather_pairs(str(judged))
    assert [p.provenance.problem for p in data.examples] == ["b"]
    assert data.dropped["pairs without two verdicts"] == 1


def test_judgements_of_other_completions_are_refused(judged: Path) -> None:
    path = judged.parent / "x" / "gsm8k.jsonl"
    path.write_text(path.read_text().replace("good a", "goody a"))
    with pytest.raises(ResultsError, match="of other completions"):
        gather_pairs(str(judged))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": None}, "for pairs name two: kit judge RUN RUN"),
        ({"settings": {"model": 3}}, "is no summary that kit judge wrote"),
        ({"left": "gone.jsonl"}, "cannot read the completions"),
        *(
            (change, "is no summary that kit judge wrote")
            for change in ({"right": 7}, {"limit": "5"}, {"limit": 1.5}, {"limit": True})
        ),
    ],
)
def test_summaries_that_hold_no_pairs_are_refused(judged: Path, change: dict, message: str) -> None:
    judged.write_text(json.dumps(json.loads(judged.read_text()) | change))
    with pytest.raises(ResultsError, match=message):
        gather_pairs(str(judged))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("settings", {"system_prompt": "x", "split": "train", "problems": {}}, "system prompts"),
        (
            "target",
            {"name": "y", "run": None, "base": "Q/C"},
            r"bases \('Q/B' and 'Q/C'\)",
        ),
    ],
)
def test_results_that_share_no_prompt_make_no_pairs(judged, field, value, message) -> None:
    path = judged.parent / "y" / "gsm8k.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(DataError, match=message):
        gather_pairs(str(judged))
