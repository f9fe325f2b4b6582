"""Properties of reading answers, arithmetic and LaTeX forms, over generated and hostile text."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kit.evaluation.reasoning.measures import measure
from kit.tasks.answers import (
    MAX_ANSWER_CHARS,
    extract_lenient,
    extract_lenient_text,
    extract_strict,
    extract_strict_text,
    parse_number,
)
from kit.tasks.arithmetic import beginning, ending, tokenize
from kit.tasks.latex_forms import read
from kit.tasks.latex_formula import Unreadable, formula
from kit.tasks.latex_text import plain, words
from kit.tasks.steps import MAX_STARTS, find_steps
from kit.tasks.units import is_unit
from kit.tasks.units import measure as measure_of
from kit.tasks.verifiers import NumberVerifier, task_answers

SECONDS = 0.25  # of the processor's time for a text of at most a few thousand characters

PIECES = (
    *("####", "#", "\\boxed{", "}", "{", "answer is ", "Answer: ", "\n", " ", "=", "≈", "<<", ">>"),
    *(
        "0",
        "1",
        "7",
        "10",
        "000",
        "9" * 70,
        ",",
        ".",
        "/",
        "e",
        "E",
        "%",
        "$",
        "°",
        "²",
        "½",
        "π",
        "√",
    ),
    *(
        "+",
        "-",
        "\N{EN DASH}",
        "*",
        "x",
        "^",
        "_",
        "(",
        ")",
        "[",
        "]",
        "|",
        ":",
        ";",
        "!",
        "&",
        "~",
    ),
    *("apples", "dollars", "cents", "million", "thirds", "squared", "and", "or", "of", "per", "a"),
    *(
        "\\frac",
        "\\sqrt",
        "\\pi",
        "\\text{",
        "\\pm",
        "\\cup",
        "\\infty",
        "\\circ",
        "\\left",
        "\\le",
    ),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\\\",
        "\\{",
        "\\}",
        "\\in",
        "x",
        "\ud800",
        "\x00",
        "é",
    ),
)
HOSTILE = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
    st.builds(lambda piece, n: piece * n, st.sampled_from(PIECES), st.integers(1, 400)),
    st.text(max_size=200),
)
NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12).map(Fraction),
    st.builds(Fraction, st.integers(-(10**6), 10**6), st.sampled_from([2, 4, 5, 10, 100, 1000])),
)
PROSE = st.text(alphabet="abcdefgh ,.\n", max_size=60)
ANOTHER = (
    *("²", "³", "½", "π", " π", "\\pi", "!", "^2", "^{2}", "/7", ":30", "e2", "x", "k", "th", "_8"),
    *(
        " million",
        " hundred",
        " thirds",
        " squared",
        " cubed",
        " half",
        " and a half",
        " minus one",
    ),
    *(" plus one", " or 6", " times 3", " is wrong", "'000", " 000", ",00", ".5.5", "\\sqrt{2}"),
)


def decimal(value: Fraction) -> str:
    """With as many places as it needs, by long division."""
    sign, value = "-" if value < 0 else "", abs(value)
    whole, rest = divmod(value.numerator, value.denominator)
    places = ""
    while rest:
        digit, rest = divmod(10 * rest, value.denominator)
        places += str(digit)
    return f"{sign}{whole}" + (f".{places}" if places else "")


def grouped(value: Fraction) -> str:
    whole, point, places = decimal(value).partition(".")
    return (
        f"{int(whole):,}".replace("-0", "-0") + point + places if whole != "-0" else decimal(value)
    )


RENDERED = (
    decimal,
    grouped,
    lambda v: f"{v.numerator}/{v.denominator}",
    lambda v: rf"{'-' if v < 0 else ''}\frac{{{abs(v.numerator)}}}{{{v.denominator}}}",
    lambda v: f"${decimal(v)}",
    lambda v: f"{decimal(v)} dollars per day",
    lambda v: f"{grouped(v)} apples.",
    lambda v: f"{decimal(v)}%",
    lambda v: rf"\boxed{{{decimal(v)}}}",
    lambda v: f"**{decimal(v)}**",
    lambda v: decimal(v).replace("-", "\N{MINUS SIGN}"),
    lambda v: decimal(v).replace("-", "\N{EN DASH}"),
)


def in_time(function, *arguments):
    start = time.thread_time()
    result = function(*arguments)
    assert time.thread_time() - start < SECONDS
    return result


# --- numbers -------------------------------------------------------------------------------------


@given(HOSTILE)
def test_hostile_text_is_read_in_bounded_time_and_never_raises(text: str) -> None:
    in_time(parse_number, text)
    in_time(is_unit, text[:200])
    in_time(measure_of, text[:200])
    strict, lenient = in_time(extract_strict, text), in_time(extract_lenient, text)
    for answer in (strict, lenient):
        assert answer is None or parse_number(answer) is not None
    if strict is not None:
        assert "####" in text and strict in text and lenient == strict
    for read_text in (extract_strict_text, extract_lenient_text):
        answer = in_time(read_text, text)
        assert answer is None or (0 < len(answer) <= MAX_ANSWER_CHARS and answer in text)
    in_time(task_answers, text)


@given(NUMBERS, st.sampled_from(RENDERED))
def test_a_number_is_read_however_it_is_written(value: Fraction, render) -> None:
    assert parse_number(render(value)) == value


@given(NUMBERS, NUMBERS, st.sampled_from(RENDERED), st.sampled_from(RENDERED), PROSE)
def test_only_the_right_number_is_right(value, other, render, write, prose) -> None:
    for gold in (value, other):
        row = {"answer": write(gold)}
        marked = NumberVerifier().verify(f"{prose}\n#### {render(value)}", row)
        assert marked.strict is marked.lenient is (value == gold)
        stated = NumberVerifier().verify(f"{prose}\nThe answer is {render(value)}", row)
        assert not stated.strict and stated.lenient is (value == gold)


@given(NUMBERS, st.sampled_from(ANOTHER))
def test_what_makes_another_number_is_never_passed_over(value: Fraction, suffix: str) -> None:
    text = decimal(value) + suffix
    assume(not (suffix.startswith("e") and "." in suffix))
    assert value == 0 or parse_number(text) != value
    strict = extract_strict(f"#### {text}")
    assert value == 0 or strict is None or parse_number(strict) != value


@given(st.lists(st.tuples(HOSTILE, NUMBERS.map(decimal)), max_size=4))
def test_judging_many_is_judging_each(cases) -> None:
    texts, rows = [text for text, _ in cases], [{"answer": gold} for _, gold in cases]
    verifier = NumberVerifier()
    each = [verifier.verify(text, row) for text, row in zip(texts, rows, strict=True)]
    assert verifier.verify_many(texts, rows) == each
    assert not any(verdict.strict and not verdict.lenient for verdict in each)


# --- arithmetic ----------------------------------------------------------------------------------


def combined(children):
    return st.tuples(st.sampled_from("+-*/"), children, children)


TREES = st.recursive(st.integers(0, 99), combined, max_leaves=5)


def value_of(tree) -> Fraction | None:
    """None where something is divided by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    sign, left, right = tree[0], value_of(tree[1]), value_of(tree[2])
    if left is None or right is None or (sign == "/" and right == 0):
        return None
    if sign == "/":
        return left / right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def written(tree, space: str) -> str:
    """Fully bracketed, but for the outermost."""
    if isinstance(tree, int):
        return str(tree)
    sides = [f"({written(t, space)})" if not isinstance(t, int) else str(t) for t in tree[1:]]
    return f"{space}{tree[0]}{space}".join(sides)


def depth_of(tree) -> int:
    return 0 if isinstance(tree, int) else 1 + max(map(depth_of, tree[1:]))


@given(TREES, st.sampled_from(["", " "]))
def test_arithmetic_has_the_value_of_its_tree(tree, space: str) -> None:
    value = value_of(tree)
    assume(value is not None and depth_of(tree) <= 4 and not isinstance(tree, int))
    text = written(tree, space)
    for reader in (beginning, ending):
        found = reader(tokenize(text), Fraction(1))
        assert found is not None and found.value == value
        again = reader(tokenize(str(found)), Fraction(1))
        assert again is not None and again.value == value and str(again) == str(found)


@given(TREES, st.sampled_from(["", " "]), st.integers(-3, 3))
def test_a_step_is_right_exactly_when_it_comes_out(tree, space: str, off: int) -> None:
    value = value_of(tree)
    assume(value is not None and depth_of(tree) <= 4 and not isinstance(tree, int))
    assume(value.denominator == 1 and value + off >= 0)
    steps = find_steps(f"{written(tree, space)}{space}={space}{value + off}")
    assert [(step.result, step.is_right) for step in steps] == [(value + off, off == 0)]


@given(HOSTILE, HOSTILE)
def test_hostile_text_is_measured_in_bounded_time(text: str, question: str) -> None:
    steps = in_time(find_steps, text)
    assert len(steps) <= MAX_STARTS
    measures = in_time(measure, text, question, extract_lenient(text))
    assert measures.steps == len(steps) and 0 <= measures.steps_right <= measures.steps
    assert 0 <= measures.repetition <= 1 and 0 <= measures.language_drift <= 1
    assert measures.consistent is None or steps


# --- LaTeX ---------------------------------------------------------------------------------------


@given(HOSTILE)
def test_hostile_latex_is_taken_apart_in_bounded_time(text: str) -> None:
    for function, refusal in (
        (read, Unreadable),
        (formula, Unreadable),
    ):
        with contextlib.suppress(refusal):
            in_time(function, text)
    in_time(words, text)


@given(NUMBERS, st.sampled_from(["{}", "${}$", r"\({}\)", r" {} . ", r"\text{{{}}}", "**{}**"]))
def test_delimiters_change_no_number(value: Fraction, frame: str) -> None:
    text = decimal(value)
    assert plain(frame.format(text)) == text
    assert read(frame.format(text)) == read(text)


@given(st.lists(st.integers(-99, 99).map(str), min_size=2, max_size=5), st.sampled_from("([{"))
def test_brackets_and_order_are_kept(numbers: list[str], opening: str) -> None:
    closing = {"(": ")", "[": "]", "{": "}"}[opening]
    escaped = "\\" if opening == "{" else ""
    form = read(f"{escaped}{opening}{', '.join(numbers)}{escaped}{closing}")
    assert [item.text for item in form.items] == numbers
    assert (form.kind, form.brackets) == (
        ("list", "") if opening == "{" else ("tuple", opening + closing)
    )


@pytest.mark.parametrize("base", [2, 8, 10, 16])
@given(st.integers(0, 10**6))
def test_a_base_is_part_of_the_answer(base: int, number: int) -> None:
    forms = {read(f"{number}_{b}") for b in (base, base + 1)}
    assert len(forms) == 2 and {form.kind for form in forms} == {"base"}
