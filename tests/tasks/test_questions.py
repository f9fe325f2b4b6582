"""Questions found again: between other words, and not where another one is asked."""

from __future__ import annotations

import time

import pytest

from kit.tasks.questions import LEAST, Questions

APPLES = "Ann has 3 apples and buys 4 more. How many apples has she?"
SUM = "Find the least common multiple of these numbers: 52, 6"
SHORT = "What is 3 + 4?"


@pytest.mark.parametrize(
    "text",
    [
        APPLES,
        f" {APPLES.upper()}\n",
        f"Solve: {APPLES}",
        f"Question:{APPLES}\nAnswer:",
        f"{APPLES}\n\nThink first.",
        f'"{APPLES}" is what I was asked',
        f"One apple is 2 dollars. {APPLES.replace('. ', '.  ')}",
    ],
)
def test_a_question_is_found_between_other_words(text):
    assert Questions([SHORT, APPLES]).asked_in(text) == {APPLES.lower()}


@pytest.mark.parametrize(
    "text",
    [
        APPLES.replace("3", "5"),
        f"Joh{APPLES}",  # it begins within a word
        f"{APPLES}!".replace("?", ""),
        f"{SUM}6",
        f"{SUM}, 8",
        f"{SUM} and explain",
        f"Solve: {SHORT}",  # as "Calculate 3 + 4." may stand in anything
        "",
        "a " * 10_000,
    ],
)
def test_another_question_is_not(text):
    assert Questions([SHORT, APPLES, SUM]).asked_in(text) == set()


def test_what_has_no_end_of_its_own_is_found_at_the_end():
    assert Questions([SUM]).asked_in(f"Solve: {SUM}") == {SUM.lower()}


def test_several_are_found_in_one_text():
    other = APPLES.replace("Ann", "Bob")
    found = Questions([SHORT, APPLES, other]).asked_in(f"First: {other} Then: {APPLES}")
    assert found == {APPLES.lower(), other.lower()}


def test_a_question_is_long_enough_from_so_many_characters_on():
    for length, found in ((LEAST - 1, 0), (LEAST, 1)):
        question = "x" * (length - 1) + "?"
        assert len(Questions([question]).asked_in(f"Solve: {question}")) == found


@pytest.mark.parametrize("text", [APPLES * 200_000, f"{APPLES} " * 20_000])
def test_long_texts_of_nothing_but_questions_take_seconds(text):
    """Of many that start alike, as those of a generated data set do."""
    alike = [APPLES.replace("apples has", f"apples of {n} has") for n in range(20_000)]
    began = time.perf_counter()
    assert Questions([APPLES, *alike]).asked_in(text) == {APPLES.lower()}
    assert time.perf_counter() - began < 30
