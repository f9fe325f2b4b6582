"""Problems whose answers were compared: found in votes, preference files and runs, and left out."""

import json
from pathlib import Path

import pytest

from kit.config import DataConfig
from kit.errors import ConfigError, DataError
from kit.evaluation.compared import compared_ids, leave_out, questions_of
from kit.evaluation.settings import EvalSettings
from kit.preferences.records import PreferencePair
from kit.preferences.votes import Message, append_vote
from kit.runs import RunFolder
from kit.tasks.problems import load_problems
from tests.preferences.test_votes import vote


@pytest.fixture
def problems(tmp_path: Path):
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(DataConfig(name=str(path)))


def test_votes_preference_files_and_runs_say_what_they_asked(tmp_path: Path, make_config) -> None:
    said = (Message("system", "x"), Message("user", " What is 2 + 1? "))
    append_vote(tmp_path / "votes.jsonl", vote("left", prompt=list(said)))
    line = PreferencePair(said, "a", "b").line()
    (tmp_path / "prefs.jsonl").write_text(json.dumps(line) + '\n{"prompt": "What is 3 + 1?"}\n')
    run = RunFolder(tmp_path / "run")
    run.open(make_config(), resume=False).release()
    run.keep_preferences([line])
    assert questions_of(str(tmp_path / "votes.jsonl")) == {"what is 2 + 1?"}
    assert questions_of(str(tmp_path / "prefs.jsonl")) == {"what is 2 + 1?", "what is 3 + 1?"}
    assert questions_of(str(run.path)) == {"what is 2 + 1?"}


CHAT = [{"role": "user", "content": "What is 2 + 1?"}]
ANSWER = [{"role": "assistant", "content": "3"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": CHAT, "chosen": ANSWER, "rejected": ANSWER},
        {"chosen": CHAT + ANSWER, "rejected": CHAT + ANSWER},
        {"prompt": "another", "chosen": CHAT + ANSWER, "rejected": CHAT + ANSWER},
        {"prompt": "What is 2 + 1?", "chosen": "3", "rejected": "4"},
        {"prompt": CHAT, "completion": "3", "label": True},
        {"prompt": "another", "completion": CHAT + ANSWER, "label": True},
    ],
)
def test_every_form_of_a_line_asks_what_training_reads(tmp_path: Path, row: dict) -> None:
    path = tmp_path / "prefs.jsonl"
    path.write_text(json.dumps({"prompt": "first", "completion": "x"}) + "\n" + json.dumps(row))
    assert questions_of(str(path)) == {"first", "what is 2 + 1?"}


def test_a_question_may_come_before_the_last(tmp_path: Path) -> None:
    path = tmp_path / "prefs.jsonl"
    turns = [*CHAT, *ANSWER, {"role": "user", "content": "Sure?"}]
    path.write_text(json.dumps({"prompt": turns, "chosen": "3", "rejected": "4"}))
    assert questions_of(str(path)) == {"what is 2 + 1?", "sure?"}


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path, caplog) -> None:
    path = tmp_path / "votes.jsonl"
    append_vote(path, vote("left", prompt=[Message("user", "What is 2 + 1?")]))
    with path.open("ab") as file:
        file.write(b'{cut\n\n[3]\n{"prompt": []}\n{"prompt": [{"role": "user", "content": 3}]}\n')
    assert questions_of(str(path)) == {"what is 2 + 1?"}
    assert "what 4 of 5 lines ask cannot be read" in caplog.text


def test_a_source_has_one_name(tmp_path: Path) -> None:
    for name in ("./runs/a", "runs/a/", "runs//a"):
        assert EvalSettings.model_validate({"leave_out": name}).leave_out == ["runs/a"]


def test_they_are_left_out(tmp_path: Path, problems) -> None:
    for number in (1, 2):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"prompt": f"what is  {number} + 1?"}) + "\n")
    assert compared_ids(frozenset(["what is 3 + 1?"]), problems) == ["sums/3"]
    kept = leave_out(problems, [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")])
    assert kept.problems["id"] == ["sums/0", "sums/3"]
    everything = tmp_path / "all.jsonl"
    lines = (json.dumps({"prompt": question}) + "\n" for question in problems.problems["question"])
    everything.write_text("".join(lines))
    with pytest.raises(DataError, match=r"all 4 problems of .* are in leave_out"):
        leave_out(problems, [str(everything)])


def test_they_are_found_between_other_words(tmp_path: Path) -> None:
    question = "Ann has 3 apples and buys 4 more. How many apples has she?"
    path = tmp_path / "apples.jsonl"
    path.write_text(json.dumps({"question": question, "answer": "7"}) + "\n")
    said = frozenset(["another", f"solve: {question.lower()}"])
    assert compared_ids(said, load_problems(DataConfig(name=str(path)))) == ["apples/0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"cannot read .*votes\.jsonl of leave_out"), (b'{"a": 1}\n', "has no prompt in any")],
)
def test_a_source_that_asks_nothing_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / "votes.jsonl"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        questions_of(str(path))


def test_a_run_that_learned_from_no_preferences_is_refused(tmp_path, make_config) -> None:
    run = RunFolder(tmp_path / "run")
    run.open(make_config(), resume=False).release()
    with pytest.raises(ConfigError, match=r"run .* of leave_out learned from no preferences; name"):
        questions_of(str(run.path))
