"""Reasoning measures: what counts as a step in hand-made texts; hostile text in bounded time."""

import random
import subprocess
import sys
import time
from fractions import Fraction

import pytest

from kit.evaluation.reasoning.measures import ReasoningMeasures, measure, summarize
from kit.tasks.steps import find_steps

QUESTION = "How many apples does Ann have?"


def judged(text: str) -> list[tuple[str, Fraction, bool]]:
    return [(step.expression, step.result, step.is_right) for step in find_steps(text)]


@pytest.mark.parametrize(
    ("text", "expression", "result"),
    [
        ("12 * 3 = 36", "12 * 3", 36),
        ("$12 x 3 = $36", "12 * 3", 36),
        ("12x3=36", "12 * 3", 36),
        ("5 + 7 + 2 = 14", "5 + 7 + 2", 14),
        ("(3+4)*2=14", "( 3 + 4 ) * 2", 14),
        ("[3 + 4] \N{MULTIPLICATION SIGN} 2 = 14", "( 3 + 4 ) * 2", 14),
        ("2(3+4) = 14", "2 * ( 3 + 4 )", 14),
        ("2 + 3 * 4 = 14", "2 + 3 * 4", 14),  # 20 from left to right
        ("20 - 4 - 6 = 10", "20 - 4 - 6", 10),  # 22 from right to left
        ("24 / 4 / 2 = 3", "24 / 4 / 2", 3),
        ("-2^2 + 5 = 1", "- 2 ^ 2 + 5", 1),
        ("2^{10} = 1024", "2 ^ ( 10 )", 1024),
        ("2**3 = 8", "2 ^ 3", 8),
        ("5² = 25", "5 ^ 2", 25),
        ("10 ÷ 4 = 2.5", "10 / 4", Fraction(5, 2)),
        ("9 \N{MINUS SIGN} 4 = 5", "9 - 4", 5),
        (r"$12 \times 3 = 36$", "12 * 3", 36),
        (r"\(\frac{3+4}{2} \cdot 4 = 14\)", "\N{FRACTION SLASH} ( 3 + 4 ) ( 2 ) * 4", 14),
        (r"\[ 3 + 4 = \boxed{7} \]", "3 + 4", 7),
        (r"1\frac{1}{2} \times 4 = 6", "1 \N{FRACTION SLASH} ( 1 ) ( 2 ) * 4", 6),
        ("1 1/2 * 4 = 6", "1 1 / 2 * 4", 6),
        ("14 / 1/4 = 56", "14 / ( 1 / 4 )", 56),
        ("1,200 / 3 = 400", "1200 / 3", 400),
        (r"7,\!000 + 5 = 7,005", "7000 + 5", 7005),
        (".5 + .25 = 0.75", ".5 + .25", Fraction(3, 4)),
        ("1/2 = 0.5", "1 / 2", Fraction(1, 2)),
        ("7 = 3 + 4", "7", 7),
        ("3 apples * 2 = 6 apples", "3 * 2", 6),
        ("3 apples x 2 = 6", "3 * 2", 6),
        ("5 miles/hour * 2 hours = 10 miles", "5 * 2", 10),
        (r"3 \text{ cups} * 2 = 6", "3 * 2", 6),
        ("4 m^2 * 3 = 12", None, None),  # a single letter may be a variable
        ("20 cm^2 * 3 = 60 cm^2", "20 * 3", 60),
        ("She has 16 - 3 - 4 = <<16-3-4=9>>9 eggs a day.", "16 - 3 - 4", 9),
        ("Cost of 3 shirts = 3 * 15 = 45", "3 * 15", 45),
        ("3 shirts = 3 * 15 = 45", "3 * 15", 45),
        ("Total of week 2 = 3 * 15 = 45", "3 * 15", 45),
        ("- 3 * 4 = 12", "3 * 4", 12),
        ("2. 3 * 4 = 12", "3 * 4", 12),
        ("Step 1 - 3 * 4 = 12", "3 * 4", 12),
        ("**3 * 4 = 12**", "3 * 4", 12),
        ("3 * 4\n   = 12", "3 * 4", 12),
        ("so 12 (the days) = 3", None, None),
    ],
)
def test_reads_a_right_step(text: str, expression: str | None, result: Fraction | None) -> None:
    assert judged(text) == ([] if expression is None else [(expression, result, True)])


@pytest.mark.parametrize(
    "text",
    [
        "12 * 3 = 35",
        "2 + 3 * 4 = 20",
        "24 / 4 / 2 = 12",
        "3 apples * 2 = 7 apples",
        "16 - 3 - 4 = 10 duck eggs",
        "5*3=<<5*3=15>>16",  # the text is judged, not the mark
        r"\frac{1}{2} + \frac{1}{3} = \frac{2}{5}",
        "7/2 = 4",  # a whole number is not a rounded one
        "7/2 = 3",
        "20% of 50 = 11",
    ],
)
def test_reads_a_wrong_step(text: str) -> None:
    assert [step.is_right for step in find_steps(text)] == [False]


@pytest.mark.parametrize(
    "text",
    [
        "2x + 3 = 11",
        "3 - x = 2",
        "x = 5",
        "x^2 + 1 = 10",
        "f(3+4) = 9",
        r"\sqrt{9+7} = 4",
        r"\binom{8}{3}(2) = 112",
        "|3-5| = 2",
        "5! + 1 = 3",
        "3 = 3",
        "= 5 + ",
        "3 + 4 = ?",
        "10:30 - 9:00 = 1:30",
        "1/3 = 0.333...",
        "5/0 = 3",
        "0^-1 = 0",
        "9^9^9 = 3",
        "9**9**9 = 3",
        "10^400 = 3",
        "1.5 hours * 2 = 180 minutes",  # converts units
        "3/4 of the class = 15",
        "3 + 4 => 8",
        "3 + 4 != 8",
        "1" * 65 + " + 1 = 3",
        " * ".join(["2^64"] * 17) + " = 3",
        "Sold - 3 * 4 = 12",  # a dash or a minus
    ],
)
def test_what_cannot_be_read_with_certainty_is_no_step(text: str) -> None:
    assert find_steps(text) == []


def test_each_equality_of_a_chain_is_judged_by_itself() -> None:
    assert judged("a = 3 + 4 = 7") == [("3 + 4", 7, True)]
    assert judged("3+4=7*2=14") == [("3 + 4", 14, False), ("7 * 2", 14, True)]
    assert judged("3 * 4 = 12, and 12 + 5 = 17.") == [("3 * 4", 12, True), ("12 + 5", 17, True)]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("10/3 = 3.33", True),
        ("10/3 = 3.3", True),
        ("10/3 = 3.34", False),
        ("20/3 = 6.66", False),  # cut off instead of rounded
        ("1/8 = 0.13", True),  # either neighbour of a half
        ("1/8 = 0.12", True),
        ("10/3 ≈ 3", True),
        (r"10/3 \approx 4", False),
        ("3.33 * 3 = 10", False),  # as it is written
        ("3.33 = 10/3", True),
    ],
)
def test_rounded_results(text: str, right: bool) -> None:
    assert [step.is_right for step in find_steps(text)] == [right]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("20% of 50 = 10", 10),
        (r"50 * 20\% = 10", 10),
        ("5/20 * 100 = 25%", 25),
        ("5/20 = 25%", 25),
        ("50% + 25% = 75%", 75),
        ("1/3 of 9 = 3", 3),
        ("1/3 = 33.3%", Fraction("33.3")),
    ],
)
def test_percent_and_shares(text: str, result: Fraction) -> None:
    assert [(step.result, step.is_right) for step in find_steps(text)] == [(result, True)]


def test_measures_one_text() -> None:
    text = "Ann has 3 * 4 = 12 apples.\nShe eats 5: 12 - 5 = 6 apples.\n#### 6"
    assert measure(text, QUESTION, "6") == ReasoningMeasures(
        words=14,  # ann has 3 4 12 apples she eats 5 12 5 6 apples 6
        steps=2,
        steps_right=1,
        consistent=True,
        repetition=0.0,
        language_drift=0.0,
        contradiction=False,
    )


@pytest.mark.parametrize(
    ("text", "answer", "consistent"),
    [
        ("3 * 4 = 12 #### 12", "12", True),
        ("3 * 4 = 12 #### 12.0", "$12.00", True),
        ("3 * 4 = 12 #### 13", "13", False),
        ("3 * 4 = 12, 12 + 1 = 13 #### 12", "12", False),  # the last step counts
        ("1/4 = 25% #### 25", "25", True),
        ("3 * 4 = 12", None, None),
        ("3 * 4 = 12 #### twelve", "twelve", None),
        ("Twelve. #### 12", "12", None),
        ("3 * 4 = 12\n" + "so " * 6_000, "12", None),  # a later step may have been cut off
    ],
)
def test_final_answer_agrees_with_the_last_step(text, answer, consistent) -> None:
    assert measure(text, QUESTION, answer).consistent is consistent


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("one two three", 0.0),
        ("one two three four five", 0.0),
        # 8 words, 5 4-grams; "a b c d" and its shift by four are equal: 1 of 5
        ("a b c d, A B C D", 1 / 5),
        ("so " * 13, 9 / 10),
        ("所以所以所以", 1 / 3),  # 3 4-grams of single signs, the third repeats the first
    ],
)
def test_repetition(text: str, share: float) -> None:
    assert measure(text, QUESTION, None).repetition == share


@pytest.mark.parametrize(
    ("text", "question", "share"),
    [
        ("all English", QUESTION, 0.0),
        ("ab 苹果", QUESTION, 0.5),
        ("да", QUESTION, 1.0),
        ("苹果 ab", "有多少苹果?", 0.5),
        ("苹果", "りんごは?", 0.0),  # Japanese uses Chinese signs
        ("りんご", "有多少?", 1.0),
        ("πr² ∑ \u211d µ \U0001d465 r", QUESTION, 0.0),  # mathematics
        (r"苹果 \times", "有多少苹果?", 0.0),
        ("苹果", "3 + 4 = ?", 0.0),  # the question shows no language
        ("12 + 3!", QUESTION, 0.0),
    ],
)
def test_language_drift(text: str, question: str, share: float) -> None:
    assert measure(text, question, None).language_drift == share


@pytest.mark.parametrize(
    ("text", "contradicts"),
    [
        ("3 * 4 = 12. So 3*4 = 13.", True),
        ("3 * 4 = 12. So 3*4 = 12.0.", False),
        ("3 * 4 = 12. So 4 * 3 = 13.", False),  # wrong, but another expression
        ("10/3 = 3.3, so 10/3 = 3.33", False),  # both right
        ("10/3 = 3.3, so 10/3 = 3.4", True),
        ("1,000 + 1 = 1001; 1000 + 1 = 1002", True),
        ("7 = 3 + 4, 7 = 2 * 3", False),  # a number alone is not an expression
        ("#### 3\n#### 4", True),
        ("#### 3\n#### 3.0", False),
        ("The answer is 3.\n#### 4", True),
        ("The answer is $3 apples, then.\n#### 3", False),
        (r"The answer is 3 + 4 = \boxed{7}.", False),
        ("The answer is 3 + 4 = 7.\n#### 8", True),
        (r"The answer is 3! = 6. #### 6", False),
        (r"\boxed{\frac{1}{2}} #### 0.5", False),
        (r"\boxed{\frac{1}{2}} #### 2", True),
        ("#### <number>\n#### 4", False),
    ],
)
def test_contradiction(text: str, contradicts: bool) -> None:
    assert measure(text, QUESTION, None).contradiction is contradicts


def test_summary_of_an_evaluation() -> None:
    rows = [
        {"completion": "3 * 4 = 12, 12 + 1 = 14 #### 14", "lenient_answer": "14", "tokens": 10},
        {"completion": "3 * 4 = 12 #### 12", "lenient_answer": "12", "tokens": 20},
        {"completion": "#### 12", "lenient_answer": "12", "tokens": 5},
        {"completion": "да да да да да #### 1 #### 2", "lenient_answer": None, "tokens": 90},
    ]
    strict = (False, True, True, False)
    rows = [
        {"question": QUESTION, "strict": right, **row}
        for row, right in zip(rows, strict, strict=True)
    ]
    assert summarize(rows) == {
        "completions": 4,
        "steps_right": {"value": 2 / 3, "count": 2, "n": 3},
        "completions_with_steps": {"value": 0.5, "count": 2, "n": 4},
        "consistent": {"value": 1.0, "count": 2, "n": 2},
        "contradiction": {"value": 0.25, "count": 1, "n": 4},
        # the last row: да x 5, 1, 2 make 4 4-grams, of which 1 repeats
        "repetition": 0.25 / 4,
        "language_drift": 0.25,
        "words_among_right": 2.5,  # 3 4 12 12, and 12
        "tokens_among_right": 12.5,
    }


def test_summary_of_nothing() -> None:
    summary = summarize([])
    assert summary["steps_right"] == {"value": None, "count": 0, "n": 0}
    assert summary["repetition"] is None
    assert summary["tokens_among_right"] is None


@pytest.mark.parametrize("shift", range(5))
def test_only_whole_expressions_beside_the_sign_are_read(shift: int) -> None:
    """A side is read up to 300 characters; a longer sum must not be judged by a part of it."""
    long = " + ".join(["12"] * 100)  # 497 characters
    assert find_steps(f"{long}{' ' * shift}= 1200") == []
    assert find_steps(f"1200 ={' ' * shift}{long}") == []
    assert judged(f"{'so ' * 100}3 + 4 = 7{' and' * 100}") == [("3 + 4", 7, True)]


HOSTILE = {
    text: text * (100_000 // len(text))
    for text in [
        *("1+1=2\n", "1+1=", "=", "1=", "(1+", "(", "(1+(1+(1+(1+(1+(1+", "((1+1)*2)=4\n"),
        *("(" * 299 + "=1\n", "(1+" * 99 + "1=2\n", "1=" + "2^" * 149 + "2\n"),
        *("9**9**9=1\n", "99^64+98^64=1\n", "50% of 20 = 10\n", "1/3+1/7+1/11=1\n"),
        *("\\frac{", "\\frac{1}{2}=", "\\", "{", "[(", "<<1", "####", "#### 1\n", "\\boxed{"),
        *("\\boxed{1}", "answer is ", "9", "9^", "1,000,", "x ", "1 x ", "- - ", "\n", " ", "\t"),
        *(
            "/ 1",
            "1 1/2 ",
            "1:2",
            "..",
            "漢字かな",
            "é",
            "a a a a ",
            "1 apple * 2 = ",
            "\0",
            "\ud800",
        ),
    ]
}
HOSTILE["digits, operators, brackets"] = "".join(
    random.Random(0).choices("0123456789+-*/()=. ^%{}\\x$", k=100_000)
)
HOSTILE["any letter"] = "".join(
    map(chr, random.Random(0).sample([*range(0x100, 0xD800), *range(0xE000, 0x30000)], 100_000))
)


@pytest.mark.parametrize("name", list(HOSTILE), ids=repr)
def test_hostile_text_costs_little(name: str) -> None:
    """100 kB take up to 35 ms on an idle core; work that grows with the square takes seconds."""
    times = []
    for _ in range(3):  # what else the machine does is not to be measured
        start = time.thread_time()
        measure(HOSTILE[name], QUESTION, "5")
        times.append(time.thread_time() - start)
    assert min(times) < 0.2


def test_needs_no_model_library() -> None:
    code = (
        "import sys, kit.evaluation.reasoning.measures\n"
        "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
