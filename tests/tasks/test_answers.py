"""Finding and comparing final answers: hand-made texts, hostile ones included."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from kit.config import SYSTEM_PROMPT
from kit.tasks.answers import (
    extract_lenient,
    extract_lenient_text,
    extract_strict,
    extract_strict_text,
    last_number,
    numbers_equal,
    parse_number,
)
from kit.tasks.protocol import Reply
from kit.tasks.sandbox import Worker
from kit.tasks.verifiers import LatexVerifier, NumberVerifier, TaskVerifier, Verdict

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        (" 72.\n", 72),
        ("-5", -5),
        ("\N{MINUS SIGN}5", -5),
        ("+5", 5),
        ("1,000", 1000),
        ("12,345,678", 12345678),
        ("$1,234.50", Fraction(2469, 2)),
        ("-$5", -5),
        ("$-5", -5),
        ("5 €", 5),
        ("£3", 3),
        ("25%", 25),
        ("25 percent", 25),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("1.5e3", 1500),
        ("2E-2", Fraction(1, 50)),
        ("18 dollars per day", 18),
        ("9 (apples)", 9),
        ("5 km/h", 5),
        ("5 cm^2", 5),
        ("3 1/2 hours", Fraction(7, 2)),
        (r"\$18", 18),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"10,\!080", 10080),
        (r"5 \text{ cm}", 5),
        (r"25\%", 25),
        (r"90^\circ", 90),
        ("**72**", 72),
        ("$72$", 72),
        ("9" * 64, int("9" * 64)),
        ("5°C", 5),
        ("0." + "1" * 63, Fraction(int("1" * 63), 10**63)),
        ("5 million", 5_000_000),
        ("$2.5 million", 2_500_000),
        ("5 hundred thousand dollars", 500_000),
        ("5 hundred", 500),
        ("5 thousand", 5_000),
        ("5 billion", 5_000_000_000),
        ("5 trillion", 5_000_000_000_000),
        ("1e64", 10**64),
        ("1e-64", Fraction(1, 10**64)),
        ("5" + " " * 199, 5),  # 200 characters
        ("negative\N{NO-BREAK SPACE}5", -5),
        ("5½", Fraction(11, 2)),
        ("-½", Fraction(-1, 2)),
        ("3\N{FRACTION SLASH}4 cup", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        ("18 dollars and 50 cents", Fraction(37, 2)),
        ("$18 and 5 cents", Fraction(361, 20)),
        ("\N{EN DASH}5", -5),
        ("\N{NON-BREAKING HYPHEN}5", -5),
        ("negative 5", -5),
        ("10\N{NARROW NO-BREAK SPACE}000", 10_000),
        ("5 square meters", 5),
        ("5 sq. ft", 5),
        ("5 m²", 5),
        ("90°", 90),
        ("5 pieces of candy", 5),
        ("18 in total", 18),
        ("3 years old", 3),
        (r"3\,\frac{1}{2}", Fraction(7, 2)),
        (r"10\,000", 10_000),
        (r"1\,234\;567", 1_234_567),
        (r"5\,\text{cm}", 5),
        ("5 m", 5),
        ("5 L", 5),
        ("5 KM", 5),
        ("5 Apples", 5),
        ("$5 m$", 5),  # a formula
        ("$5 per hour", 5),
        ("$18 dollars per day", 18),
        ("£18 and 5 pence", Fraction(361, 20)),
    ],
)
def test_parse_number_reads(text: str, value: Fraction | int) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "five", "-", ".", "$", "1,00", "1,0000", ",100", "1/0", "3/4/5", "1 2", "5 6"),
        *("10:30", "5:6", "6th", "1st", "2k", "5x", "5 or 6", "5 and 6", "3, 4"),
        *("5 apples and 6 pears", "5 hours 30 minutes", "1. First", "x = 5", "<number>", "5+3"),
        *("5$6", "9**9", "9**9**9", "9^9", "0x10", "1_000", "nan", "inf", "infinity"),
        *("1e65", "1e-65", "1e999999999", "9" * 65, "0." + "1" * 64),
        *("\N{ARABIC-INDIC DIGIT FIVE}", "\N{FULLWIDTH DIGIT FIVE}", "\N{SUPERSCRIPT TWO}"),
        *("__import__('os')", "5 " + "a" * 100),
        *("10²", "5³", "7 half", "5 half", "10,000,000π", "5π", r"5\pi", "5 squared", "2 thirds"),
        *("5 minus one", "5 plus one", "5 is wrong", "5 wrong answers", "5 and a half", "√5", "5!"),
        *("1.000.000", "1'000", "10 000", "10,00,000", "5 feet 6 inches", "5\N{EN DASH}6", "5½²"),
        *(
            "1E65",
            "1E-65",
            "5 widgets",
            "3 5/2",
            "3 2/2",
            "3 4/3",
            "5.apples",
            "18.25 dollars and 50 cents",
        ),
        *(
            "5" + " " * 200,
            "5" + " " * 200 + "apples",
            "5 of",
            "5 per",
            "5 cm^2 squared",
            "5 square",
            "5 million²",
        ),
        *(r"5\;6", r"10\,00", r"1\:2", r"5\,\frac{3}{2}"),
        *("$5M", "5 M", "5M", "$5m", "$5 m", r"\$5 m", "$5 km", "€5 kg", "$5 hours"),
        *("$5 cents", "$0.50 cents", "£5 pence"),
    ],
)
def test_parse_number_refuses(text: str) -> None:
    assert parse_number(text) is None


def test_numbers_are_compared_exactly() -> None:
    assert numbers_equal(Fraction(1, 2), Fraction("0.50"))
    assert not numbers_equal(Fraction(1, 3), Fraction("0.33"))
    assert not numbers_equal(Fraction(5), Fraction(-5))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 7\n\nand so on, 8", "7"),
        ("####7", "7"),
        ("####\t-7 \r\n", "-7"),
        ("#### $1,000.00 per week.", "$1,000.00 per week."),
        (r"#### \boxed{5}", r"\boxed{5}"),
        ("#### 5\n#### 5.0", "5"),  # repeated, the same number
        ("#### 1. Add them\n#### Step 2\n#### 7", "7"),  # headings
        ("#### 1 #### 2 #### 3", None),  # listing must not pay
        ("#### 7\n#### 8", None),
        ("#### 5 or 6", None),
        ("#### 7 because 3 + 4 = 7", None),
        ("####\n7", None),
        ("### 7", None),
        ("##### 7", None),
        ("7", None),
        ("#### seven", None),
        ("", None),
        (SYSTEM_PROMPT, None),
        ("\n".join(f"#### {i}" for i in range(1000)), None),
        ("\n".join(f"#### {'a' * i}" for i in range(1, 32)) + "\n#### 7", "7"),
        ("\n".join(f"#### {'a' * i}" for i in range(1, 33)) + "\n#### 7", None),  # 33 are a list
    ],
)
def test_extract_strict(text: str, answer: str | None) -> None:
    assert extract_strict(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and then \boxed{\frac{3}{4}}, 9", r"\frac{3}{4}"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{3 or 4}, the answer is 9", "9"),  # two answers in a box are none
        (r"\boxed{5", "5"),  # cut off: the last number
        ("#### 4\nbut \\boxed{5}", "4"),  # what strict finds, lenient finds
        ("#### 1 #### 2", "2"),
        ("The answer is 5 because 3 + 2 is that.", "5"),
        ("The answer is 3. No: the answer is 4, for 9 reasons", "4"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("**Answer:** $12$ (of 30)", "12"),
        ("The answer is unclear. 8", "8"),
        ("it costs -$5.", "-5"),
        ("10 - 5", "5"),
        ("10 - (5)", "5"),
        ("The answer is 3x = 6, so x = 2.", "2"),
        ("The answer is, x = 5", "5"),
        (r"\boxed{x}7", "7"),
        ("so it is 7" + " and so on" * 50, "7"),
        ("there are 762 M&M's", "762"),
        ("10 -5", "-5"),
        ("5-3", "3"),
        ("7", "7"),
        ("The answer is unclear", None),
        ("The answer is 7 for 9 reasons,\nunless it is 3", "7"),
        (r"\boxed{x=5}, and then 9", "5"),
        (r"\boxed{x = 5}, 9", "5"),
        (r"is \frac{3}{4}", "3/4"),
        ("after 1,234 days", "1,234"),
        ("of 3 1/2 hours", "3 1/2"),
        ("9" * 300, None),
        ("no number here", None),
        ("", None),
    ],
)
def test_extract_lenient(text: str, answer: str | None) -> None:
    assert extract_lenient(text) == answer


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("18 dollars and 50 cents", Fraction(37, 2)),
        ("$18 and 50 cents", Fraction(37, 2)),
        ("5 million", 5_000_000),
        ("5 hundred thousand", 500_000),
        ("\N{EN DASH}5", -5),
        ("\N{HYPHEN}5", -5),
        ("negative 5", -5),
        ("5½", Fraction(11, 2)),
        ("½", Fraction(1, 2)),
        ("3\N{FRACTION SLASH}4", Fraction(3, 4)),
        ("10\N{THIN SPACE}000", 10_000),
        ("Rs.5", 5),
        ("5 half-gallons", 5),
        ("76 third graders", 76),
        *((text, None) for text in ("1.000.000", "1.000.000,00", "10,00,000", "10 000", "1_000")),
        *(
            (text, None)
            for text in ("1'000", "10²", "x5", "x^5", "x_5", "5x", "5π", r"5 \pi", "√5")
        ),
        *((text, None) for text in (r"\sqrt{5}", "5 squared", "2 thirds", "7 half", "6th", "2k")),
        *((text, None) for text in ("5 and a half", "5 minus one", "5 hours and 30 minutes")),
        *((text, None) for text in ("5 feet 6 inches", "10:30", "1/2/3", "5^2")),
        *((text, None) for text in ("-(5)", "-(5/2)")),
        ("- 5", -5),
        ("18 dollars, 50 cents", Fraction(37, 2)),
        ("18 dollars 50 cents", Fraction(37, 2)),
        *((text, None) for text in (r"\frac{1}{-2}", "10⁻³", "2**10", "sqrt(5)", r"\sqrt[3]{5}")),
        *((text, None) for text in ("5 sevenths", "5 ninths", "5 elevenths", "log(5)", "f(5)")),
        *((text, None) for text in ("$5M", "5 M", "$5m", "$5 m", "$2.5 M", "$5 cents", "£5 pence")),
    ],
)
@pytest.mark.parametrize("frame", ["The answer is {}.", "So in the end it is {}", r"\boxed{{{}}}"])
def test_no_part_of_a_number_is_taken_for_it(frame: str, written: str, value) -> None:
    found = extract_lenient(frame.format(written))
    assert (None if found is None else parse_number(found)) == value


@pytest.mark.parametrize(
    "text",
    [
        *("The answer is (5, 6).", "So it is (5, 6)", "The answer is 5, 6.", r"answer is 5\;6"),
        *(
            "The answer is x=5, x=6.",
            r"\boxed{x=5, x=6}",
            r"\boxed{y != 5}",
            "The answer is y != 5",
        ),
        *(r"The answer is y \neq 5", "The answer is x > 5", r"so \boxed{10\,00}", r"it is 10\,00"),
        "The answer is 5 + 3.",
        "The answer is 5 or 6.",
        "The answer is 3 x 10^5.",
        "The answer is 5:1",
        r"\boxed{x^2+5}",
        r"\boxed{5-x}",
        r"so 7 = \boxed{3, 4}",
        "answer is 5²\nwith 3 steps",
    ],
)
def test_an_answer_that_is_no_number_is_not_replaced_by_one(text: str) -> None:
    assert extract_lenient(text) is None


def test_what_stands_far_behind_a_number_is_not_read_with_it() -> None:
    """40 characters from its last digit on may belong to a number."""
    assert last_number(r"5 \text{" + " " * 24 + "million}") == "5 million"
    assert last_number(r"5 \text{" + " " * 25 + "million}") is None  # cut off


def test_words_around_a_boxed_number() -> None:
    assert extract_lenient(r"8 = \boxed{18 \text{ widgets}}") == "18"
    assert extract_lenient(r"\boxed{\text{Ann}} has 5 apples") == "5"


def test_extract_text() -> None:
    assert extract_strict_text("so\n#### up left \nbye") == "up left"
    assert extract_strict_text("#### 1 0\n0 1\n", lines=True) == "1 0\n0 1"
    assert extract_strict_text("#### #B A#") == "#B A#"
    assert extract_strict_text("#### a\n#### b") is None
    assert extract_strict_text("#### a\n#### a") == "a"
    assert extract_strict_text("####\n#### a") == "a"
    assert extract_strict_text("#### " + "a" * 10_000) == "a" * 10_000
    assert extract_strict_text("#### " + "a" * 10_001) is None
    assert extract_strict_text(SYSTEM_PROMPT) is None
    assert extract_lenient_text(r"first \boxed{x^{2}} done") == "x^{2}"
    assert extract_lenient_text("So the answer is: up left\nbye") == "up left"
    assert extract_lenient_text(r"\boxed{x}") == "x"
    assert extract_lenient_text(r"\boxed{" + "x" * 9_999 + "}") == "x" * 9_999
    assert extract_lenient_text(r"\boxed{" + "x" * 10_000 + "}") is None
    assert extract_lenient_text("#### a\nb") == "a"
    assert extract_lenient_text("#### a\nb", lines=True) == "a\nb"
    assert extract_lenient_text("I go up} left") is None
    assert extract_lenient_text("up left") is None


HOSTILE = {
    "digits": "9" * 100_000,
    "open boxes": "\\boxed{" * 20_000,
    "box of braces": "\\boxed{" + "{}" * 50_000,
    "commas": "1," * 50_000,
    "thousands": "999," * 25_000,
    "marks": "#### " * 20_000,
    "marked": "#### 1a" * 14_000,
    "different marked": "\n".join(f"#### {i}" for i in range(12_000)),
    "long marked": "#### " + "9" * 100_000,
    "backtracking": "\n".join(f"#### {'9' * 180}{i:03} a or" for i in range(500)),
    "backtracking words": "\n".join(f"#### 9,{'999,' * 40}{i} or or o" for i in range(500)),
    "few backtracking": "\n".join(f"#### {'9' * 180}{i:03} a or" for i in range(100)),
    "hashes": "#" * 100_000,
    "minuses": "-" * 100_000,
    "answers": "answer is " * 10_000,
    "answer blanks": "answer is" + " " * 100_000,
    "fractions": "\\frac{" * 16_000,
    "slashes": "1/" * 50_000,
    "exponents": "1e" * 50_000,
    "points": ".1" * 50_000,
    "blanks": " " * 100_000,
    "placeholders": "#### <" + "a" * 100_000,
    "backslashes": "\\" * 100_000,
    "stars": "*" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("extract", [extract_strict, extract_lenient, extract_lenient_text])
def test_hostile_text_costs_little(extract, name: str) -> None:
    """Far below the limit of 0.05 s; of the processor's time, for other work on it takes none."""
    start = time.thread_time()
    extract(HOSTILE[name])
    assert time.thread_time() - start < 0.05


def row(answer: str, id: str = "0") -> dict[str, str]:
    return {"id": id, "answer": answer}


def test_number_verifier() -> None:
    verifier = NumberVerifier()
    assert verifier.verify("#### 1,000", row("1000")) == Verdict(True, True, "1,000", "1,000")
    assert verifier.verify("the answer is 0.5", row("1/2")) == Verdict(False, True, None, "0.5")
    assert verifier.verify("#### 7", row("8")) == Verdict(False, False, "7", "7")
    assert verifier.verify("#### 8\n#### 9", row("8")) == Verdict(False, False, None, "9")
    assert verifier.verify("no idea", row("8")) == Verdict(False, False, None, None)
    assert not verifier.verify("#### 8", row("eight")).strict
    assert verifier.verify("#### 7", row("8")).has_format
    assert not verifier.verify("7", row("8")).has_format
    texts, rows = ["#### 1", "#### 1"], [row("1"), row("2")]
    assert [v.strict for v in verifier.verify_many(texts, rows)] == [True, False]
    with pytest.raises(ValueError):
        verifier.verify_many(["#### 1"], rows)


@pytest.mark.parametrize(
    "text", ["#### 4 \\boxed{5}", "#### 4\nthe answer is 5", "#### 4, 5\n#### 4", "4 #### 5"]
)
def test_strictly_right_is_leniently_right(text: str) -> None:
    for gold in ("4", "5"):
        verdict = NumberVerifier().verify(text, row(gold))
        assert verdict.lenient or not verdict.strict


@pytest.fixture(scope="module")
def latex():
    verifier = LatexVerifier()
    yield verifier
    verifier.worker.close()


@pytest.mark.parametrize(
    ("gold", "text", "strict", "lenient"),
    [
        (r"\frac{1}{2}", "#### 0.5", True, True),
        (r"\frac{1}{2}", r"so \boxed{\dfrac12}.", False, True),
        (r"\frac{1}{2}", r"The answer is $\frac{2}{4}$.", False, True),
        (r"\frac{1}{2}", "and so 1 / 3", False, False),
        ("p - q", "#### $-q + p$.", True, True),
        ("p - q", "#### q - p", False, False),
        ("3, 5, 7", "#### 7,5,3", True, True),
        ("(3,5)", "#### (5,3)", False, False),
        (r"10,\!080", "#### 10080", True, True),
        (r"90^\circ", "#### 90", True, True),
        (r"\text{east}", "#### East.", True, True),
        (r"\text{east}", "#### seat", False, False),
        (r"\text{(C)}", r"\boxed{\text{(C)}}", False, True),
        ("5", "#### 5 or 6", False, False),
        ("5", "#### 5\n#### 6", False, False),
        ("5", r"\boxed{5} or \boxed{6}", False, False),
        ("5", "#### 5}{6", False, False),
        ("5", SYSTEM_PROMPT, False, False),
        ("5", "", False, False),
        ("5", "#### \ud800\x00", False, False),
    ],
)
def test_latex_verifier(latex, gold: str, text: str, strict: bool, lenient: bool) -> None:
    verdict = latex.verify(text, row(gold))
    assert (verdict.strict, verdict.lenient) == (strict, lenient)
    assert latex.timeouts == 0


def test_latex_that_takes_forever_is_wrong_counted_and_stops_nobody_else() -> None:
    verifier = LatexVerifier(limit=1.0)
    golds = [row("5"), row("(x+1)^{99998}"), row("5")]
    start = time.perf_counter()
    verdicts = verifier.verify_many(["#### 5", "#### 9^{9^{9}}", "#### 5"], golds)
    assert [v.strict for v in verdicts] == [True, False, True]
    assert verifier.timeouts == 1
    assert verifier.parse_failures == 0
    assert time.perf_counter() - start < 30  # two starts of the worker included
    assert not verifier.verify("#### 5}{6", row("5")).strict
    assert verifier.parse_failures == 1
    verifier.worker.close()


def test_worker_survives_the_death_of_its_child(latex) -> None:
    assert latex.verify("#### 5", row("5")).strict
    latex.worker._child.kill()
    latex.worker._child.wait()
    assert latex.verify("#### 5", row("5")).strict


def test_an_interrupted_request_does_not_answer_the_next(latex, monkeypatch) -> None:
    assert latex.verify("#### 5", row("5")).strict
    worker, send = latex.worker, latex.worker._send

    def interrupted(request):
        send(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        latex.verify("#### 5", row("5"))
    monkeypatch.undo()
    assert not latex.verify("#### 6", row("5")).strict


def test_each_different_answer_is_asked_for_once(latex, monkeypatch) -> None:
    asked = []

    def ask_many(requests):
        asked.extend(requests)
        return [Reply(True, True)] * len(requests)

    monkeypatch.setattr(latex.worker, "ask_many", ask_many)
    latex.verify_many(["#### x", "#### x", "#### y"], [row("x")] * 3)
    assert [request["answer"] for request in asked] == ["x", "y"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_no_worker_outlives_its_parent(end: str) -> None:
    finish = "" if end == "exit" else "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    script = (
        "from kit.tasks.verifiers import LatexVerifier\n"
        "v = LatexVerifier(); v.verify('#### 5', {'answer': '5'})\n"
        f"print(v.worker._child.pid, flush=True)\n{finish}"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    pid = int(run.stdout)
    for _ in range(400):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(ValueError, match=r"cannot start: ValueError: .*no_such_task"):
        Worker("no_such_task", "{}").ask_many([{}])


@pytest.fixture(scope="module")
def spelling():
    entry = {"question": "?", "answer": "cba", "metadata": {"source_dataset": "spell_backward"}}
    verifier = TaskVerifier("spell_backward", "{}", {"spell_backward/0": entry})
    yield verifier
    verifier.worker.close()


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("So:\n#### cba\nbye", True, True),
        ("The answer is cba", False, True),
        (r"\boxed{cba}", False, True),
        ("Hm.\ncba\n", False, True),
        ("#### abc", False, False),
        ("#### cba\n#### abc", False, False),
        ("#### cba abc", False, False),  # the task gives part of the score: not right
        ("", False, False),
    ],
)
def test_task_verifier(spelling, text: str, strict: bool, lenient: bool) -> None:
    verdict = spelling.verify(text, row("cba", "spell_backward/0"))
    assert (verdict.strict, verdict.lenient) == (strict, lenient)


def test_import_is_light() -> None:
    script = (
        "import sys, json, kit.tasks.rewards, kit.tasks.verifiers\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "datasets", "transformers", "reasoning_gym", "math_verify", "sympy", "numpy"}
    assert heavy.isdisjoint(json.loads(run.stdout))
