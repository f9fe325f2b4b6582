"""Comparisons: judged as evaluations are, votes on the right side, names hidden when they must."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from kit.app.compare.columns import columns, final_answer, samples_html
from kit.app.compare.comparison import (
    Answer,
    Comparison,
    Samples,
    Shown,
    finish,
    to_pair,
    to_vote,
)
from kit.app.compare.problem_view import ProblemView
from kit.app.compare.problems import Problems
from kit.app.compare.reader import heads_html, text_markdown
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT, Setup
from kit.app.exports import ComparedPair
from kit.app.library.adapters import Catalogue, Choice, find
from kit.app.library.roots import OutsideRoots
from kit.app.options import AppOptions
from kit.app.session import Session
from kit.app.verdicts import Judge, badge
from kit.config import SYSTEM_PROMPT, DataConfig, ModelConfig
from kit.errors import AdapterError, ConfigError, DataError
from kit.guideline import Guideline
from kit.model.rollout import Completion
from kit.preferences.votes import read_votes
from kit.recipe import read_guidelines
from kit.tasks.problems import load_problems
from kit.tasks.verifiers import TaskVerifier, Verdict

SPELLING = "reasoning_gym:spell_backward"


def choice(label, adapter=None):
    return Choice(label, adapter, "embedded", SYSTEM_PROMPT, None, None, None)


def setup(**changes):
    values = {
        "question": "What is 3 + 4?",
        "system_prompt": "Add.",
        "gold": "7",
        "sides": {LEFT: choice("clip"), RIGHT: choice("pspo")},
    }
    return Setup(**(values | changes))


def comparison(*texts, right=(), truncated=False, **changes):
    """Left says `texts`, right says `right`; two tokens each."""
    answers = {
        side: tuple(Answer(Completion([1, 2], [-0.5, -1.5], truncated, t), 0.5) for t in mine)
        for side, mine in ((LEFT, texts), (RIGHT, right or texts))
    }
    samples = len(texts)
    temperature = 1.0 if samples > 1 else 0.0
    asked = setup(**({"samples": samples, "temperature": temperature} | changes))
    hashes = {side: one.adapter and f"hash of {one.adapter}" for side, one in asked.sides.items()}
    return Comparison(asked, "<prompt>", answers, hashes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " \n "}, "the problem is empty"),
        ({"question": "x" * 60_000}, "60004 characters; 50000 are allowed"),
        ({"temperature": -0.1}, "temperature must be from 0 to 10, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"max_new_tokens": 0}, "new tokens must be from 1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"samples": 65, "temperature": 1.0}, "samples must be from 1 to 64, got 65"),
        ({"samples": 2}, "at temperature 0 all 2 samples would be the same"),
    ],
)
def test_what_cannot_be_sampled_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        setup(**changes)


def test_an_empty_system_prompt_is_not_sent():
    assert setup().messages == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "What is 3 + 4?"},
    ]
    assert setup(system_prompt="").messages == [{"role": "user", "content": "What is 3 + 4?"}]


def test_each_side_is_asked_with_the_guidelines_of_its_run():
    guided = replace(choice("pspo"), guidelines=read_guidelines("concise"))
    asked = setup(sides={LEFT: choice("clip"), RIGHT: guided})
    assert asked.messages_to(LEFT) == asked.messages
    assert asked.messages_to(RIGHT)[0]["content"] == "Add.\nBe brief."
    assert asked.messages_to(RIGHT)[1:] == asked.messages[1:]


@pytest.mark.parametrize(
    ("text", "gold", "truncated", "expected"),
    [
        ("3 + 4 = 7\n#### 7", "7", False, "right"),
        ("3 + 4 = 7\n#### 7.0", "7", True, "right"),
        ("It is 7.", "7", False, "format"),
        ("#### 8", "7", False, "wrong"),
        ("#### 8", "7", True, "truncated"),
        ("I do not know.", "7", False, "missing"),
        ("", "7", False, "missing"),
        ("", "7", True, "truncated"),
        ("#### 8", None, False, "unjudged"),
        ("I do not know.", None, False, "missing"),
        (r"#### \frac{1}{2}", r"\frac12", False, "right"),
        (r"#### \frac{1}{3}", r"\frac12", False, "wrong"),
    ],
)
def test_badges(text, gold, truncated, expected):
    (verdict,) = Judge().standard(gold).judge([text])
    assert badge(verdict, is_judged=gold is not None, truncated=truncated).kind == expected


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Those of runs on a file, which is judged as LaTeX, and on few problems of two tasks."""
    runs = tmp_path_factory.mktemp("problems")
    choices = []
    for name, data in (
        ("file", {"name": "own.jsonl", "verifier": "latex"}),
        ("words", {"name": SPELLING, "options": {"size": 30}}),
        ("numbers", {"name": "reasoning_gym:countdown", "options": {"size": 3}}),
    ):
        (runs / name).mkdir()
        config = {"model": {"id": "owner/base"}, "data": data}
        (runs / name / "config.yaml").write_text(json.dumps(config))
        choices.append(replace(choice(name), run=str(runs / name)))
    catalogue = Catalogue(ModelConfig(id="owner/base"), tuple(choices), ())
    return Problems(AppOptions(runs=runs), catalogue, Judge())


@pytest.mark.parametrize(
    ("data", "gold", "text", "is_right"),
    [
        ("math500", r"\pi", r"so \boxed{\pi}", True),
        ("own.jsonl", "12", r"\boxed{3 \cdot 4}", True),
        ("gsm8k", "12", r"\boxed{3 \cdot 4}", False),
        ("gsm_symbolic", "12", r"\boxed{3 \cdot 4}", False),
        # evaluations of a file that no run was trained on compare numbers
        ("unknown.jsonl", r"\pi", r"\boxed{\pi}", False),
    ],
)
def test_a_data_set_decides_how_its_answers_are_judged(problems, data, gold, text, is_right):
    standard = problems.standard(data, "What?", gold)
    assert standard.decides and standard.judge([text])[0].lenient == is_right


def test_a_typed_problem_is_judged_by_its_gold_answer():
    judge = Judge()
    assert judge.standard(r"\{1,2\}").judge([r"The set is \boxed{\{1,2\}}"])[0].lenient
    assert not judge.standard("12").judge([r"\boxed{3 \cdot 4}"])[0].lenient


def judged(standard, *texts):
    """The badges of what left says to a problem of this standard."""
    said = comparison(*texts, gold="gold", standard=standard)
    return [answer.badge.kind for answer in finish(said, Judge()).answers[LEFT]]


def test_a_problem_of_a_task_is_judged_by_the_task(problems):
    row = next(row for row in problems.load(SPELLING) if row["answer"] == "emag")
    standard = problems.standard(SPELLING, row["question"], "emag")
    texts = ["#### emag", "#### EMAG", "so\nemag", "#### game", ""]
    assert judged(standard, *texts) == ["right", "right", "format", "wrong", "missing"]
    config = DataConfig(name=SPELLING, options={"size": 30})
    evaluated = load_problems(config, "test").verifier.verify_many(texts, [row] * len(texts))
    assert standard.judge(texts) == evaluated


def test_the_value_of_an_expression_that_a_task_asks_for_is_wrong(problems):
    name = "reasoning_gym:countdown"
    row = problems.load(name)[0]
    value = re.search(r"make (-?\d+)", row["question"])[1]
    # the page's field of one line leaves no line breaks, and spaces make no difference either
    standard = problems.standard(name, row["question"], row["answer"].replace(" ", ""))
    assert judged(standard, f"#### {row['answer']}", f"#### {value}") == ["right", "wrong"]


def test_what_only_its_task_could_judge_is_not_judged(problems):
    standard = problems.standard(SPELLING, "Spell this word backward: x", "x")
    assert judged(standard, "#### x", "so\nx", "") == ["unjudged", "unjudged", "missing"]
    done = finish(comparison("#### x", gold="x", standard=standard), Judge())
    pair = to_pair(done, 0)
    assert (pair.answer, pair.left.strict, pair.left.lenient) == ("x", None, None)
    assert to_vote(done, 0, "left", "embedded").left.strict is None
    assert "–" in samples_html(
        Shown(finish(comparison("#### x", "#### x", gold="x", standard=standard), Judge()))
    )


def test_another_gold_answer_makes_a_tasks_problem_the_users(problems):
    question = problems.load(SPELLING)[0]["question"]
    standard = problems.standard(SPELLING, question, "12")
    assert standard.decides and standard.judge(["#### 12.0"])[0].strict
    assert not problems.standard(SPELLING, question, None).decides


def test_a_picked_problem_is_judged_as_its_data_set_is_until_it_is_edited(problems):
    with gr.Blocks():
        catalogue = SimpleNamespace(model=ModelConfig(id="embedded"))
        view = ProblemView(SimpleNamespace(problems=problems, catalogue=catalogue))
    values = dict(zip(view.taken, view._take(SPELLING, 0), strict=True))
    assert isinstance(view.read(values)["standard"].verifier, TaskVerifier)
    assert view.read(values | {view.question: "Spell it: game"})["standard"] is None


def test_an_unknown_task_is_an_error_in_words(problems):
    with pytest.raises(DataError, match="unknown reasoning_gym task 'chess_problems'"):
        problems.standard("reasoning_gym:chess_problems", "What?", "7")


def test_tally_by_hand():
    verdicts = tuple(
        Verdict(strict, lenient, answer if strict else None, answer)
        for strict, lenient, answer in (
            (True, True, "1/2"),
            (False, True, "0.5"),
            (False, False, "3"),
            (False, False, None),
        )
    )
    tally = Samples(verdicts)
    assert tally.right == 1
    assert tally.majority == ("1/2", 2, True)
    assert tally.pass_at(1) == pytest.approx(1 / 4)
    assert tally.pass_at(2) == pytest.approx(1 - 3 / 6)  # C(3, 2) of C(4, 2) pairs are all wrong
    assert Samples((Verdict(False, False, None, None),)).majority is None


def test_a_finished_comparison_is_judged_and_one_that_is_stopped_says_so():
    done = finish(comparison("#### 7", right=("#### 8",)), Judge())
    assert done.is_over and not done.is_stopped
    assert done.answers[LEFT][0].badge.kind == "right"
    assert done.answers[RIGHT][0].badge.kind == "wrong"
    assert done.answers[LEFT][0].tokens_per_second == 4.0
    stopped = finish(comparison("####", truncated=True), Judge(), is_stopped=True)
    assert stopped.is_over and stopped.is_stopped
    assert stopped.answers[LEFT][0].badge.kind == "truncated"


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("a\n#### 7\nand more", "7"),
        ("#### 1\nthen\n#### 2", "2"),
        ("It is 7.", "7"),
        ("no number", None),
    ],
)
def test_the_final_answer_stands_apart(text, final):
    assert final_answer(finish(comparison(text), Judge()).answers[LEFT][0]) == final
    assert final_answer(comparison(text).answers[LEFT][0]) is None


def test_blind_columns_hide_names_until_the_vote():
    done = finish(comparison("#### 7", right=("#### 8",)), Judge())
    shown = Shown(done, (RIGHT, LEFT), is_blind=True)
    assert shown.names == {RIGHT: "Answer A", LEFT: "Answer B"}
    assert [shown.preferred(c) for c in ("left", "right", "tie", "both_bad")] == [
        *("right", "left", "tie", "both_bad")
    ]
    assert Shown(done).preferred("left") == "left"
    revealed = Shown(done, (RIGHT, LEFT), is_blind=True, vote="left")
    assert revealed.names == {RIGHT: "pspo", LEFT: "clip"} and not revealed.hides_names


def test_lines_that_fulfil_a_guideline_are_marked_once_names_are_told():
    guided = replace(choice("pspo"), guidelines=read_guidelines("one-equation-per-line"))
    said = "So\u2028that is:\n3 + 4 = 7\n#### 7", "3 + 4 = 8\n#### 8"
    asked = {"sides": {LEFT: choice("clip"), RIGHT: guided}}
    done = finish(comparison(said[0], right=said[1:], **asked), Judge())
    first, second = columns(Shown(done))
    assert first.marks == {2: "one-equation-per-line"} and second.marks == {}
    html = text_markdown([first, second])
    assert html.count("✓ one-equation-per-line") == 1
    blind = columns(Shown(done, is_blind=True))  # the mark would say whose the guideline is
    assert [column.marks for column in blind] == [{}, {}]
    running = comparison(said[0], right=said[1:], **asked)
    assert columns(Shown(running))[0].marks == {}
    checks = [{"name": "equations", "weight": 0.1}, {"name": "units", "weight": 0.1}]
    asked["sides"][RIGHT] = replace(guided, guidelines={"two": Guideline(prompt="", checks=checks)})
    done = finish(comparison(said[0], right=said[1:], **asked), Judge())
    assert columns(Shown(done))[0].marks == {2: "two: equations"}  # which of its checks it is


def test_an_answer_that_waits_for_the_others_says_so():
    running = comparison("#### 7")
    waiting = (replace(running.answers[RIGHT][0], completion=Completion([], [], True, "")),)
    running = replace(running, answers=running.answers | {RIGHT: waiting})
    first, second = columns(Shown(running))
    assert first.text == "#### 7" and "when the others have answered" in second.text
    stopped = finish(running, Judge(), is_stopped=True)
    assert columns(Shown(stopped))[1].text == ""


def test_how_fast_a_side_was_is_not_told_before_a_blind_vote():
    """An adapter of DoRA is computed alone, and slower than others."""
    done = finish(comparison("#### 7"), Judge())
    assert [column.figures for column in columns(Shown(done, is_blind=True))] == [{}, {}]
    assert "tokens/s" in columns(Shown(done, is_blind=True, vote="left"))[0].figures


def test_the_bases_own_column_waits_for_the_vote():
    sides = {LEFT: choice("clip"), RIGHT: choice("base"), BASE_SIDE: choice("base")}
    shown = Shown(comparison("#### 7", sides=sides), (RIGHT, LEFT), is_blind=True)
    assert shown.columns == (RIGHT, LEFT)
    assert set(shown.names.values()) == {"Answer A", "Answer B"}
    for open_ in (replace(shown, is_blind=False), replace(shown, vote="tie")):
        assert open_.columns == (RIGHT, LEFT, BASE_SIDE)
        assert open_.names == {RIGHT: "base", LEFT: "clip", BASE_SIDE: "base"}


def test_a_vote_names_sides_and_hashes_whatever_the_columns():
    sides = {LEFT: choice("clip", "runs/clip"), RIGHT: choice("base")}
    done = finish(comparison("#### 7", right=("#### 8",), sides=sides), Judge())
    vote = to_vote(done, 0, Shown(done, (RIGHT, LEFT)).preferred("right"), "embedded")
    assert (vote.vote, vote.left.name, vote.right.name) == ("left", "clip", "base")
    assert vote.left.adapter_sha256 == "hash of runs/clip" and vote.right.adapter_sha256 is None
    assert (vote.left.strict, vote.right.strict, vote.answer) == (True, False, "7")
    assert [m.role for m in vote.prompt] == ["system", "user"]
    unjudged = finish(comparison("#### 7", gold=None), Judge())
    assert to_vote(unjudged, 0, "tie", "embedded").left.strict is None


def test_what_names_hold_is_shown_as_text():
    hostile = "<img src=x onerror=alert(1)>"
    sides = {LEFT: choice(hostile), RIGHT: choice("b")}
    done = finish(comparison("#### <b>7</b>", "#### 8", sides=sides), Judge())
    html = samples_html(Shown(done)) + heads_html(columns(Shown(done)))
    assert "<img" not in html and "&lt;img" in html
    assert "0 of 2" in html and "1 of 2" in html  # strictly right; agreement on 8
    assert samples_html(Shown(finish(comparison("#### 7"), Judge()))) == ""


# --- the desk, on the embedded model -------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(tmp_path_factory, adapters):
    runs = tmp_path_factory.mktemp("runs")
    options = AppOptions(
        runs=runs, adapters=(str(adapters / "first"), str(adapters / "second")), cpu=True
    )
    return Session(options, find(options))


def sides(desk, *labels):
    names = labels or desk.labels[1:3]
    return dict(zip((LEFT, RIGHT), map(desk.choice, names), strict=True))


@pytest.mark.smoke
def test_a_comparison_from_start_to_export_and_vote(desk):
    assert desk.labels[0] == "base" and len(desk.labels) == 3
    assert "backend transformers: it was asked for" in desk.engine().base.hardware.reason
    asked = setup(sides=sides(desk), max_new_tokens=24)
    *_, done = desk.run(asked, "session")
    assert done.is_over and set(done.scores[0]) == {LEFT, RIGHT}
    assert done.prompt.count("What is 3 + 4?") == 1 and done.prompt.count("Add.") == 1
    pair = to_pair(done, 0)
    assert isinstance(pair, ComparedPair) and json.dumps(pair.settings)
    assert pair.left.completion == done.answers[LEFT][0].completion.text
    assert pair.left.kl_to_base == done.scores[0][LEFT].kl_to_base > 0
    hashes = [done.hashes[side] for side in (LEFT, RIGHT)]
    assert desk.tallies(hashes) == [] and desk.votes() == ((), 0)
    for number, preference in enumerate(("left", "left", "right")):
        another = replace(done, id=f"comparison {number}")
        cast = desk.vote(another, 0, preference)
        assert (cast.vote, cast.id, cast.base) == (preference, another.id, "embedded")
        assert desk.vote(another, 0, "tie") == cast  # it has one
    votes, unreadable = read_votes(desk.options.votes)
    assert [vote.vote for vote in votes] == ["left", "left", "right"] and unreadable == 0
    with desk.options.votes.open("a") as file:
        file.write("{half a line\n")
    assert desk.votes()[1] == 1
    (counted,) = desk.tallies(hashes)
    assert sorted((counted.first_wins, counted.second_wins)) == [1, 2]


@pytest.mark.smoke
def test_another_sample_is_scored_on_request(desk):
    asked = setup(sides=sides(desk), max_new_tokens=12, temperature=1.5, samples=3)
    *_, done = desk.run(asked, "session")
    assert set(done.scores) == {0}
    more = desk.scored(done, 2)
    texts = "".join(token.text for token in more.scores[2][LEFT].tokens)
    assert texts.startswith(more.answers[LEFT][2].completion.text)
    assert set(more.scores) == {0, 2} and desk.scored(more, 2) is more


@pytest.mark.smoke
def test_stop_keeps_what_was_written(desk):
    asked = setup(sides=sides(desk), max_new_tokens=900, temperature=3.0)
    items = []
    for item in desk.run(asked, "mine"):
        items.append(item)
        if len(items) == 2:
            desk.stop("mine")
    assert items[-1].is_over and items[-1].is_stopped and not items[-1].scores
    assert 1 <= len(items[-1].answers[LEFT][0].completion.tokens) < 900
    began = time.monotonic()
    *_, done = desk.run(setup(sides=sides(desk), max_new_tokens=8), "another's")
    assert done.scores and time.monotonic() - began < 30


@pytest.mark.smoke
def test_stop_before_the_turn_has_come_is_about_that_run_alone(desk):
    asked = setup(sides=sides(desk), max_new_tokens=8)
    desk.expect("mine")
    desk.stop("mine")
    assert len(list(desk.run(asked, "another's"))) > 0
    assert list(desk.run(asked, "mine")) == []
    assert len(list(desk.run(asked, "mine"))) > 0
    desk.stop("mine")  # too late
    desk.expect("mine")
    assert len(list(desk.run(asked, "mine"))) > 0


@pytest.mark.smoke
def test_only_adapters_of_this_base_and_of_allowed_folders(desk, adapters, tmp_path):
    with pytest.raises(OutsideRoots):
        desk.choice(str(tmp_path))
    folder = desk.options.runs / "other"
    folder.mkdir()
    source = adapters / "first"
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    same = desk.choice(str(folder))
    assert same.adapter == str(folder.resolve()) and str(folder) in desk.labels
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"})
    )
    copy = Path(str(folder) + "2")
    folder.rename(copy)
    with pytest.raises(
        AdapterError, match=r"trained on Qwen/Qwen2\.5-0\.5B, the base in memory is"
    ):
        desk.choice(str(copy))
