"""Votes: safe appending."""

import json
import multiprocessing
from datetime import datetime, timezone
from pathlib import Path

import pytest
from pydantic import ValidationError

from kit.errors import ResultsError
from kit.evaluation.stats import sign_test
from kit.preferences.votes import (
    Message,
    Side,
    Vote,
    VoteSettings,
    append_vote,
    read_votes,
)

PSPO = Side("pspo", "runs/pspo/adapter", "a" * 64, "3 + 4 = 7\n#### 7", True)
CLIP = Side("clip", "runs/clip/adapter", "b" * 64, "Perhaps 8.", False)
BASE = Side("base", None, None, "", None)


def vote(choice: str = "left", left: Side = PSPO, right: Side = CLIP, **fields) -> Vote:
    values = {
        "question": "3 + 4?",
        "prompt": [Message("system", "Be brief."), Message("user", "3 + 4?")],
        "answer": "7",
        "left": left,
        "right": right,
        "settings": VoteSettings(temperature=0.8, max_new_tokens=512, seed=3),
        "vote": choice,
        "blind": True,
    }
    return Vote(**(values | fields))


def test_a_vote_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "votes.jsonl"
    first = vote(answer=None, left=BASE, question="你好\u2028\n\0 \"'")
    second = vote("both_bad", blind=False)
    append_vote(path, first)
    append_vote(path, second)
    assert read_votes(path) == ([first, second], 0)
    assert first.id != second.id
    assert abs((datetime.now(timezone.utc) - first.time).total_seconds()) < 60


def test_one_line_is_what_the_documentation_says(tmp_path: Path) -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    append_vote(tmp_path / "votes.jsonl", vote(id="x", time=time))
    assert json.loads((tmp_path / "votes.jsonl").read_text()) == {
        "schema": 1,
        "id": "x",
        "time": "2026-01-02T03:04:05Z",
        "question": "3 + 4?",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "3 + 4?"},
        ],
        "answer": "7",
        "left": {
            "name": "pspo",
            "adapter": "runs/pspo/adapter",
            "adapter_sha256": "a" * 64,
            "completion": "3 + 4 = 7\n#### 7",
            "strict": True,
        },
        "right": {
            "name": "clip",
            "adapter": "runs/clip/adapter",
            "adapter_sha256": "b" * 64,
            "completion": "Perhaps 8.",
            "strict": False,
        },
        "settings": {"temperature": 0.8, "max_new_tokens": 512, "seed": 3},
        "vote": "left",
        "blind": True,
        "voter": None,
        "base": None,
        "problem": None,
        "repeat_of": None,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"vote": "Left"},
        {"blind": 1},
        {"schema": 2},
        {"question": None},
        {"time": datetime(2026, 1, 2)},  # in which time zone?
        {"other": 1},
    ],
)
def test_a_vote_with_a_wrong_field_cannot_be_made(fields: dict) -> None:
    with pytest.raises(ValidationError):
        vote(**fields)


def test_corrupt_lines_are_counted_and_spoil_nothing(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    good = vote()
    append_vote(path, good)
    line = path.read_bytes()
    wrong = [b"{}", b"[1]", b"null", b"\xff\xfe", line.strip().replace(b'"left"', b'"up"')]
    wrong.append(line.strip().replace(b'"schema":1', b'"schema":2'))
    # the last line was cut off by a crash
    path.write_bytes(line + b"\n" + b"\n".join(wrong) + b"\n" + line[:100])
    other = vote()
    append_vote(path, other)
    assert read_votes(path) == ([good, other], len(wrong) + 1)
    path.write_bytes(path.read_bytes() * 2)  # a copy of the file put behind it
    assert read_votes(path) == ([good, other], 2 * len(wrong) + 2)


def test_no_file_of_votes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"cannot read the votes .*none\.jsonl"):
        read_votes(tmp_path / "none.jsonl")


def test_a_vote_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write"):
        append_vote(tmp_path / "file" / "votes.jsonl", vote())


def _append_many(path: Path, name: str) -> None:
    for i in range(30):
        append_vote(path, vote(id=f"{name}{i}", question=name * 20_000))


def test_two_processes_may_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_append_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    votes, corrupt = read_votes(path)
    assert corrupt == 0
    assert {v.id for v in votes} == {f"{name}{i}" for name in "ab" for i in range(30)}


@pytest.mark.parametrize(("wins", "losses", "p"), [(0, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 32)])
def test_sign_test(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, rel=1e-12)
    assert sign_test(losses, wins) == pytest.approx(p, rel=1e-12)
