"""Preferences as training data: every form of a source, what is refused, and what is counted."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from kit.config import DataConfig
from kit.errors import DataError
from kit.preferences.data import held_out_questions, read_labelled, read_pairs
from kit.preferences.records import (
    LabelledCompletion,
    PreferencePair,
    Provenance,
    Writer,
    parse_pair,
)
from kit.preferences.votes import Message, VotedProblem, append_vote
from tests.preferences.test_votes import CLIP, PSPO, vote

USER = Message("user", "3 + 4?")
CHAT = [{"role": "user", "content": "3 + 4?"}]
GOOD, BAD = PSPO.completion, CLIP.completion


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def voted(path: Path, *votes) -> Path:
    for one in votes:
        append_vote(path, one)
    return path


PLAIN = {"prompt": "3 + 4?", "chosen": "7", "rejected": "8"}
SEVEN = PreferencePair((USER,), "7", "8")


# --- the forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        {"prompt": CHAT, "chosen": said("7"), "rejected": said("8")},
        {"prompt": CHAT, "chosen": "7", "rejected": "8"},
        {"chosen": CHAT + said("7"), "rejected": CHAT + said("8")},
        {"prompt": CHAT, "chosen": CHAT + said("7"), "rejected": CHAT + said("8")},
        # as ultrafeedback has it: the prompt once more as text
        {"prompt": "3 + 4?", "chosen": CHAT + said("7"), "rejected": CHAT + said("8")},
        PLAIN | {"provenance": "another tool's", "score": 3},
    ],
)
def test_every_form_of_a_pair_is_the_same_pair(tmp_path: Path, row: dict) -> None:
    assert read_pairs(written(tmp_path / "p.jsonl", row)).examples == (SEVEN,)


def test_a_system_prompt_is_for_prompts_that_are_plain_text(tmp_path: Path) -> None:
    chat = {"prompt": CHAT, "chosen": said("7"), "rejected": said("8")}
    path = written(tmp_path / "p.jsonl", PLAIN, chat)
    problems = DataConfig(name="mine.jsonl", system_prompt="Be brief.")
    plain, conversational = read_pairs(path, problems=problems).examples
    assert plain.prompt == (Message("system", "Be brief."), USER)
    assert conversational.prompt == (USER,)


def test_a_chat_keeps_its_turns(tmp_path: Path) -> None:
    turns = [*CHAT, *said("Seven?"), {"role": "user", "content": "Sure?"}]
    path = written(
        tmp_path / "p.jsonl", {"chosen": turns + said("7"), "rejected": turns + said("8")}
    )
    (pair,) = read_pairs(path).examples
    assert [message.content for message in pair.prompt] == ["3 + 4?", "Seven?", "Sure?"]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_files_of_other_kinds_hold_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([PLAIN, PLAIN], indent=1))
    elif suffix == ".csv":
        path.write_text("rejected,prompt,chosen\r\n" + "8,3 + 4?,7\r\n" * 2)
    else:
        datasets.Dataset.from_list([PLAIN, PLAIN]).to_parquet(str(path))
    assert read_pairs(path).examples == (SEVEN, SEVEN)


def test_a_csv_may_begin_with_a_mark_and_have_long_cells(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"prompt,chosen,rejected\n3 + 4?,{'7' * 200_000},8\n", encoding="utf-8-sig")
    (pair,) = read_pairs(path).examples
    assert (pair.prompt, pair.chosen) == ((USER,), "7" * 200_000)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_stray_line_does_not_say_what_the_others_are(tmp_path: Path, is_first: bool) -> None:
    labelled = {"prompt": "3 + 4?", "completion": "7", "label": True}
    append_vote(tmp_path / "votes.jsonl", vote("left"))
    a_vote = json.loads((tmp_path / "votes.jsonl").read_text())
    for stray in (a_vote, labelled):
        rows = [PLAIN, PLAIN | {"chosen": "vii"}]
        path = written(tmp_path / "p.jsonl", *([stray, *rows] if is_first else [*rows, stray]))
        for read, count in ((read_pairs, 2), (read_labelled, 4)):
            data = read(path)
            assert len(data.examples) == count and data.dropped == {"unreadable lines": 1}
    path = written(tmp_path / "l.jsonl", *[labelled, labelled | {"label": False}] * 2, PLAIN)
    assert len(read_labelled(path).examples) == 4
    with pytest.raises(DataError, match="makes no pairs: train on it with method: kto"):
        read_pairs(path)
    path = written(tmp_path / "votes.jsonl", PLAIN, a_vote)
    append_vote(path, vote("left", prompt=[Message("user", "2?")]))
    assert [e.provenance.kind for e in read_pairs(path).examples] == ["vote"] * 2


def test_labels_of_a_csv_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("prompt,completion,label\n3 + 4?,seven,true\n3 + 4?,eight,False\n")
    good, bad = read_labelled(path).examples
    assert (good.completion, good.label) == ("seven", True)
    assert (bad.completion, bad.label) == ("eight", False)


def test_a_split_of_a_data_set_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "me" / "prefs").mkdir(parents=True)
    written(tmp_path / "me" / "prefs" / "a.jsonl", PLAIN)
    written(tmp_path / "me" / "prefs" / "b.jsonl", PLAIN | {"chosen": "vii"})
    problems = DataConfig(name="mine.jsonl", data_dir=str(tmp_path), system_prompt="")
    (pair,) = read_pairs("me/prefs@b", problems=problems).examples
    assert pair.chosen == "vii"
    with pytest.raises(DataError, match=r"it has a, b: name one of them as me/prefs@SPLIT"):
        read_pairs("me/prefs", problems=problems)


def test_a_pair_file_as_labelled_data(tmp_path: Path) -> None:
    origin = {"kind": "verdict", "writers": [{"name": "a", "sha256": None}] * 2, "kit_schema": 1}
    data = read_labelled(written(tmp_path / "p.jsonl", PLAIN | {"provenance": origin}))
    assert [(e.completion, e.label) for e in data.examples] == [("7", True), ("8", False)]
    assert [e.provenance for e in data.examples] == [
        Provenance(kind="verdict", writers=(Writer("a", None),))
    ] * 2


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    origin = Provenance(
        kind="vote", by="anna", blind=True, base="b", data="gsm8k", split="train", problem="x",
        writers=(Writer("x", "a" * 64), Writer("y", None)), vote="v", time="2026-01-02T03:04:05Z",
    )  # fmt: skip
    pair = PreferencePair((Message("system", "s"), USER), "7\u2028", "", origin)
    one = LabelledCompletion((USER,), "7", True, origin.of_side(0))
    other = LabelledCompletion((USER,), "8", False)
    assert read_pairs(written(tmp_path / "p.jsonl", pair.line())).examples == (pair,)
    lines = written(tmp_path / "l.jsonl", one.line(), other.line())
    assert read_labelled(lines).examples == (one, other)


# --- votes --------------------------------------------------------------------------------------


def test_votes_for_a_side_are_pairs(tmp_path: Path) -> None:
    problem = VotedProblem("gsm8k", "train", "train/7")
    known = vote("right", left=CLIP, right=PSPO, voter="anna", base="b", problem=problem)
    (pair,) = read_pairs(voted(tmp_path / "any.jsonl", known)).examples
    assert (pair.chosen, pair.rejected) == (GOOD, BAD)
    assert [(m.role, m.content) for m in pair.prompt] == [
        ("system", "Be brief."),
        ("user", "3 + 4?"),
    ]
    assert pair.provenance == Provenance(
        kind="vote", by="anna", blind=True, base="b", data="gsm8k", split="train",
        problem="train/7", writers=(Writer("pspo", "a" * 64), Writer("clip", "b" * 64)),
        vote=known.id, time=known.time.isoformat(),
    )  # fmt: skip


def test_votes_as_labels(tmp_path: Path) -> None:
    votes = [
        vote("left"),
        vote("both_bad", question="2?", prompt=[Message("user", "2?")]),
        vote("tie", question="1?", prompt=[Message("user", "1?")]),
    ]
    data = read_labelled(voted(tmp_path / "votes.jsonl", *votes))
    labels = {(e.prompt[-1].content, e.completion): e.label for e in data.examples}
    assert labels == {
        ("3 + 4?", GOOD): True,
        ("3 + 4?", BAD): False,
        ("2?", GOOD): False,
        ("2?", BAD): False,
    }
    assert len(data.examples) == 4
    assert data.dropped == Counter({"ties": 1})
    sides = {e.completion: e.provenance.writers[0].name for e in data.examples}
    assert sides == {GOOD: "pspo", BAD: "clip"}


def turned(choice: str, **fields):
    return vote(choice, left=CLIP, right=PSPO, **fields)


DIVIDED = {"pairs on which the votes are divided": 1}


@pytest.mark.parametrize(
    ("votes", "chosen", "dropped", "contradictory"),
    [
        ([vote("left"), turned("right", repeat_of="x")], [GOOD], {}, 0),
        ([vote("left"), turned("left", repeat_of="x")], [], DIVIDED, 1),
        ([vote("left", voter="a"), vote("right", voter="b"), turned("right", voter="c")],
         [GOOD], {}, 1),
        # b is of two minds and has no voice
        ([vote("left", voter="a"), vote("left", voter="b"), vote("right", voter="b"),
          vote("right", voter="c"), vote("right", voter="d")], [BAD], {}, 1),
        ([vote("left", voter="a"), vote("tie", voter="b")], [], DIVIDED, 0),
        ([vote("both_bad"), vote("left", left=PSPO, right=PSPO)], [],
         {"votes that both are bad": 1, "pairs of equal texts": 1}, 0),
    ],
)  # fmt: skip
def test_several_votes_on_two_answers_are_one_pair(
    tmp_path: Path, votes: list, chosen: list, dropped: dict, contradictory: int
) -> None:
    other = vote("left", question="1?", prompt=[Message("user", "1?")])
    data = read_pairs(voted(tmp_path / "votes.jsonl", *votes, other))
    assert [pair.chosen for pair in data.examples[:-1]] == chosen
    assert data.dropped == Counter(dropped)
    assert data.contradictory == contradictory


def test_votes_of_before_are_read(tmp_path: Path) -> None:
    """A line without the fields that say who voted, on which base and problem."""
    voted(tmp_path / "votes.jsonl", vote("left"))
    line = json.loads((tmp_path / "votes.jsonl").read_text())
    for name in ("voter", "base", "problem", "repeat_of"):
        assert line.pop(name) is None
    (pair,) = read_pairs(written(tmp_path / "old.jsonl", line), base="any").examples
    assert (pair.chosen, pair.provenance.by, pair.provenance.base) == (GOOD, None, None)


# --- what is counted ----------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    rows = [PLAIN, PLAIN | {"rejected": "7"}, {"prompt": "x"}, [1], PLAIN | {"prompt": ""}]
    path = written(tmp_path / "p.jsonl", *rows, {**PLAIN, "chosen": "8", "rejected": "7"})
    with path.open("ab") as file:
        file.write(b'{"prompt": "3')
    data = read_pairs(path)
    assert data.dropped == Counter({"unreadable lines": 4, "pairs of equal texts": 1})
    assert data.contradictory == 1
    assert data.words == [
        f"{path}: 2 pairs",
        "left out: 4 unreadable lines (the first: no JSON object), 1 pairs of equal texts",
        "1 pairs are judged both ways",
        "mean length: chosen 1 characters, rejected 1",
        "with one vote a problem a blind re-vote of 1 votes cannot tell any win rate from 50 %: it "
        "takes six that prefer a side",
    ]


def test_length_bias_is_said(tmp_path: Path) -> None:
    # 3 of 4 longer ones are chosen; means: (4 + 4 + 4 + 1) / 4 and (2 + 2 + 2 + 3) / 4
    rows = [PLAIN | {"chosen": "aaaa", "rejected": "bb"}] * 3 + [
        PLAIN | {"chosen": "a", "rejected": "bbb"}, PLAIN
    ]  # fmt: skip
    data = read_pairs(written(tmp_path / "p.jsonl", *rows))
    assert data.chosen_length == pytest.approx(14 / 5)
    assert data.rejected_length == pytest.approx(10 / 5)
    assert data.words[-2].startswith("mean length: chosen 3 characters, rejected 2; the longer one")
    assert data.words[-2].endswith("75.0% [30.1%, 95.4%] of 4 pairs (no bias: 50 %)")
    for texts, learned in ((("aaaa", "bb"), "longer"), (("aa", "bbbb"), "shorter")):
        one = dict(zip(("chosen", "rejected"), texts, strict=True))
        rows = [PLAIN | one | {"prompt": f"{i}?"} for i in range(6)]
        data = read_pairs(written(tmp_path / f"{learned}.jsonl", *rows))
        assert data.words[-2].endswith(f"training learns to be {learned}")


def test_labels_that_contradict_each_other_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "x", "completion": c, "label": b}
        for c, b in (("a", True), ("a", False), ("b", True))
    ]
    data = read_labelled(written(tmp_path / "l.jsonl", *rows))
    assert data.contradictory == 1
    assert data.words[0].endswith("3 completions, 2 labelled true and 1 false")
    assert (data.chosen_length, data.rejected_length) == (1, 1)


def test_who_preferred_is_said(tmp_path: Path) -> None:
    asked = [{"question": q, "prompt": [Message("user", q)]} for q in ("1?", "2?", "3?")]
    votes = [vote("left", voter="anna", **asked[0]), vote("left", voter="anna", **asked[1])]
    path = voted(tmp_path / "votes.jsonl", *votes, vote("left", blind=False, **asked[2]))
    (first, *_) = read_pairs(path).words
    assert first.endswith("3 pairs (2 by vote anna, 1 by vote; 1 saw the names)")


def test_names_make_no_lines_and_no_endless_ones(tmp_path: Path) -> None:
    origin = {"kind": "vote", "kit_schema": 1}
    rows = [PLAIN | {"provenance": origin | {"by": f"{i}\nforged"}} for i in range(3000)]
    path = written(tmp_path / "p.jsonl", *rows, rows[7])
    words = read_pairs(path).words[0]
    assert "(2 by vote 7 forged, 1 by vote 0 forged, " in words and "\n" not in words
    assert words.endswith(", 2995 by 2995 others)")


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "x", "answer": "y"}], "has the columns question, answer; preferences need"),
        ([3], r"has no row that can be read \(the first: no JSON object\); preferences need"),
        ([PLAIN | {"prompt": 3}] * 2, r"2 unreadable lines .* got 3\)\); mend the lines"),
        ([{"chosen": "7", "rejected": "8"}], r"1 unreadable lines \(the first: it lacks a prompt"),
        ([{"prompt": CHAT, "chosen": CHAT, "rejected": said("8")}], "1 unreadable lines"),
        ([{"chosen": CHAT + said("7"), "rejected": said("x") + said("8")}], "1 unreadable lines"),
        ([PLAIN | {"prompt": [{"role": "tool", "content": "x"}]}], "system, user or assistant"),
        ([PLAIN | {"chosen": "\ud83d"}], "half of a surrogate pair, which no file takes"),
        ([PLAIN | {"provenance": {"kit_schema": 2}}], r"provenance\.kind: Field required"),
        ([{"a\nb": 1}], r"has the columns 'a\\nb'; pref"),
        ([PLAIN | {"rejected": "7"}] * 3, r"to learn from \(3 pairs of equal texts\)"),
        ([{"prompt": "x", "completion": "y", "label": True}], "makes no pairs: train on it with"),
    ],
)  # fmt: skip
def test_files_that_hold_no_pairs_say_why(tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path / "p.jsonl", *rows))


@pytest.mark.parametrize("name", ["prompt", "chosen"])
def test_rows_whatever_they_come_from_hold_text_that_files_take(name: str) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        parse_pair(PLAIN | {name: "\ud83d"})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jsonl", r"cannot read .*none\.jsonl: No such file"),
        ("empty.jsonl", r"empty\.jsonl is empty"),
        ("broken.json", r"broken\.json has no row that can be read"),
        ("runs", "is no source of preferences: name votes.jsonl"),
        ("text.txt", "is no source of preferences"),
    ],
)
def test_sources_that_cannot_be_read_say_why(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "runs").mkdir()
    (tmp_path / "text.txt").touch()
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / source)


@pytest.mark.parametrize(("label", "missing"), [(True, "false"), (False, "true")])
def test_one_label_alone_is_refused(tmp_path: Path, label: bool, missing: str) -> None:
    row = {"prompt": "x", "completion": "y", "label": label}
    with pytest.raises(DataError, match=f"add some that are {missing}"):
        read_labelled(written(tmp_path / "l.jsonl", row))


@pytest.mark.parametrize("label", ["good", "true", 1, None])
def test_labels_must_be_labels(tmp_path: Path, label: Any) -> None:
    row = {"prompt": "x", "completion": "y", "label": label}
    said = f"label must be true or false, no number and no text in quotes; got {label!r}"
    with pytest.raises(DataError, match=re.escape(f"1 unreadable lines (the first: {said})")):
        read_labelled(written(tmp_path / "l.jsonl", row))


def test_votes_that_prefer_nothing_are_refused(tmp_path: Path) -> None:
    path = voted(tmp_path / "votes.jsonl", vote("both_bad"))
    with pytest.raises(
        DataError, match=r"\(1 votes that both are bad\); give more votes for a side"
    ):
        read_pairs(path)


# --- guards -------------------------------------------------------------------------------------


def of_problem(split: str | None, question: str = "3 + 4?"):
    problem = split and VotedProblem("gsm8k", split, f"{split}/7")
    return vote("left", problem=problem, question=question, prompt=[Message("user", question)])


@pytest.mark.parametrize("read", [read_pairs, read_labelled])
def test_test_problems_are_refused_unless_asked_for(tmp_path: Path, read) -> None:
    path = voted(tmp_path / "votes.jsonl", of_problem("test"), of_problem("train", "1?"))
    message = r"1 of 2 .*on test problems.*--for RECIPE.*preferences\.test_problems=true"
    with pytest.raises(DataError, match=message if read is read_pairs else "2 of 4"):
        read(path)
    assert len(read(path, test_problems=True).examples) in (2, 4)


def test_test_problems_are_known_by_their_question(tmp_path: Path) -> None:
    problems = DataConfig(
        name="reasoning_gym:basic_arithmetic", options={"size": 20}, validation_size=0
    )
    asked = sorted(held_out_questions(problems))[0]
    path = voted(tmp_path / "votes.jsonl", of_problem(None, asked.upper() + " "))
    with pytest.raises(DataError, match=r"1 of 1 .* on test problems"):
        read_pairs(path, problems=problems)
    assert read_pairs(path, problems=problems, test_problems=True).examples
    assert read_pairs(path).examples  # nothing tells
    typed = voted(tmp_path / "typed.jsonl", of_problem(None, "What is love?"))
    assert read_pairs(typed, problems=problems).examples


def test_test_problems_are_found_in_every_turn_and_whatever_the_split_is_called(
    tmp_path: Path,
) -> None:
    problems = DataConfig(
        name="reasoning_gym:basic_arithmetic", options={"size": 20}, validation_size=0
    )
    asked = sorted(held_out_questions(problems))[0]
    turns = [{"role": "user", "content": asked}, *said("Hm."), {"role": "user", "content": "Go on"}]
    path = written(tmp_path / "turns.jsonl", {"prompt": turns, "chosen": "7", "rejected": "8"})
    with pytest.raises(DataError, match=r"1 of 1 .* on test problems"):
        read_pairs(path, problems=problems)
    for split in ("Test", "main", "validation"):
        path = voted(tmp_path / f"{split}.jsonl", of_problem(split, asked))
        with pytest.raises(DataError, match=r"1 of 1 .* on test problems"):
            read_pairs(path, problems=problems)
    assert read_pairs(
        voted(tmp_path / "train.jsonl", of_problem("train", asked)), problems=problems
    )


def test_test_problems_are_found_between_other_words(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    for split, name in (("test", "Ann"), ("train", "Bob")):
        question = f"{name} has 3 apples and buys 4 more. How many apples has {name}?"
        written(tmp_path / "gsm8k" / f"{split}.jsonl", {"question": question, "answer": "#### 7"})
    problems = DataConfig(name="gsm8k", data_dir=str(tmp_path), validation_size=0)
    (asked,) = held_out_questions(problems)
    row = {"prompt": f"Solve: {asked}\nThink first.", "chosen": "7", "rejected": "8"}
    with pytest.raises(DataError, match=r"1 of 1 .* on test problems"):
        read_pairs(written(tmp_path / "mine.jsonl", row), problems=problems)


def test_a_data_set_of_one_split_has_no_test_problems(tmp_path: Path) -> None:
    (tmp_path / "asdiv").mkdir()
    row = {"body": "A", "question": "B?", "answer": "3", "formula": "3", "solution_type": "Sum"}
    row |= {"grade": "1"}
    written(tmp_path / "asdiv" / "validation.jsonl", row)
    assert held_out_questions(DataConfig(name="asdiv", data_dir=str(tmp_path))) == frozenset()
    assert held_out_questions(DataConfig(name="mine.jsonl")) == frozenset()


def test_answers_of_another_base_are_refused_unless_asked_for(tmp_path: Path) -> None:
    path = voted(tmp_path / "votes.jsonl", vote("left", base="Qwen/A"))
    assert read_pairs(path, base="Qwen/A").examples
    with pytest.raises(DataError, match=r"another base than Qwen/B \(1 of Qwen/A\).*--for RECIPE"):
        read_pairs(path, base="Qwen/B")
    assert read_pairs(path, base="Qwen/B", other_bases=True).examples
