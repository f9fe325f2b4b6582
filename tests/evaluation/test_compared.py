"""Problems whose answers were compared: found in votes, preference files and runs, and left out."""

import json
from pathlib import Path

import pytest

from kit.config import DataConfig
from kit.errors import ConfigError, DataError
from kit.evaluation.compared import compared_ids, leave_out, questions_of
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
    with (tmp_path / "votes.jsonl").open("ab") as file:
        file.write(b'{cut\n[3]\n{"prompt": []}\n{"prompt": [{"content": 3}]}\n')
    line = PreferencePair(said, "a", "b").line()
    (tmp_path / "prefs.jsonl").write_text(json.dumps(line) + '\n{"prompt": "What is 3 + 1?"}\n')
    run = RunFolder(tmp_path / "run")
    run.open(make_config(), resume=False).release()
    run.keep_preferences([line])
    assert questions_of(str(tmp_path / "votes.jsonl")) == {"what is 2 + 1?"}
    assert questions_of(str(tmp_path / "prefs.jsonl")) == {"what is 2 + 1?", "what is 3 + 1?"}
    assert questions_of(str(run.path)) == {"what is 2 + 1?"}


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
