"""Guidelines: what their checks reward, and what a model would try instead of following them."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.config import GUIDELINES, SYSTEM_PROMPT, RewardConfig
from kit.errors import ConfigError, RewardError
from kit.guideline import CHECK_SETTINGS, prompted, without_parts
from kit.reading import read_metrics
from kit.recipe import build_config, load_config, read_guidelines
from kit.tasks.guidelines import Attempt, follower_of
from kit.tasks.guidelines.following import CHECKS
from kit.tasks.rewards import build_reward
from kit.tasks.steps import MAX_CHARS
from kit.tasks.verifiers import NumberVerifier
from kit.training.remarks import warn_about
from kit.training.trainer import train

PAGE = Path(__file__).parents[2] / "docs" / "guidelines.md"
SHIPPED = sorted(path.stem for path in GUIDELINES.glob("*.yaml"))
ALL = read_guidelines(SHIPPED)
QUESTION = "Ann has 3 pears and buys 4 more. How many has she?"
SOLVED = """Understand: Ann owns three pears at first, four come later; the total is wanted.
Plan: add both amounts together.
Solve: 3 + 4 = 7 pears
Check: 7 - 4 = 3 pears
#### 7"""


def attempts(*texts: str, question: str = QUESTION, answer: str = "7") -> list[Attempt]:
    prompt = [
        {"role": "system", "content": prompted(SYSTEM_PROMPT, ALL)},
        {"role": "user", "content": question},
    ]
    problem = {"id": "a", "question": question, "answer": answer, "prompt": prompt}
    verifier = NumberVerifier()
    return [Attempt(text, problem, prompt, verifier.verify(text, problem)) for text in texts]


def adherence(name: str, *texts: str, **problem: str) -> list[float | None]:
    return follower_of(name, ALL[name])(attempts(*texts, **problem)).adherence


def lines(name: str, text: str) -> list[int]:
    """Which lines fulfil the guideline's only check."""
    ((found,),) = follower_of(name, ALL[name])(attempts(text)).findings.values()
    return list(found.lines)


def of(checks: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"mine": {"prompt": "Do it.", "checks": checks, **fields}}


# --- what follows nothing ------------------------------------------------------------------------


def test_five_ship_and_every_check_has_a_function():
    names = "concise estimate-first one-equation-per-line understand-plan-solve-check units-named"
    assert names.split() == SHIPPED
    assert CHECKS.keys() | {"function"} == CHECK_SETTINGS.keys()


PROMPT = prompted(SYSTEM_PROMPT, ALL)
WORTH_NOTHING = [
    "",
    " \n\n",
    "Let me think about pears, and add what there is.",
    "Understand: three pears and four.\nPlan: add both amounts.\nSolve: 3 + 4 = 7 pears",
    "Estimate: 8\n3 + 4 = 7 pears\nCompare: 7 is near 8",
    "3 + 4 = 7 pears",
    PROMPT,
    f"{PROMPT}\n{QUESTION}",
    f"{PROMPT} {QUESTION}",
    f"system\n{PROMPT.upper()}\nuser\n{QUESTION}",
    "\n".join(f"  {line}  " for line in PROMPT.split("\n")),
    f"{PROMPT}\nThe answer is unclear.",
]


@pytest.mark.parametrize("text", WORTH_NOTHING, ids=range(len(WORTH_NOTHING)))
def test_zero_means_zero(text):
    reward = build_reward(RewardConfig(), NumberVerifier(), ALL)
    (attempt,) = attempts(text)
    scores = reward([attempt.prompt] * 2, [text] * 2, [attempt.problem] * 2)
    assert len(reward.names) == 3 + 5 and list(scores.parts) == reward.names
    assert all(values == [0.0, 0.0] for name, values in scores.parts.items() if "." in name)
    assert all(value in (0.0, None) for values in scores.adherence.values() for value in values)


def test_an_echo_before_an_answer_follows_nothing():
    """The prompt holds all headings, and the question all numbers."""
    for name in SHIPPED:
        assert adherence(name, f"{PROMPT}\n{QUESTION}\n#### 7") in ([0.0], [None])


# --- the parts of Pólya --------------------------------------------------------------------------


def test_four_parts_with_content():
    name = "understand-plan-solve-check"
    assert adherence(name, SOLVED) == [1.0]
    assert lines(name, SOLVED) == [0, 1, 2, 3]
    dressed = SOLVED.replace("Plan:", "## 2. **Plan**:\n").replace("Solve:", "SOLVE:")
    assert adherence(name, dressed) == [1.0]
    assert adherence(name, SOLVED.replace("Check: 7 - 4 = 3 pears\n", "")) == [0.75]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("Understand:\nPlan:\nSolve:\nCheck:\n#### 7", 0.0),
        ("Understand: ok\nPlan: ok\nSolve: ok\nCheck: ok\n#### 7", 0.0),
        (SOLVED.replace("7 - 4 = 3 pears", "ok"), 0.75),
        (SOLVED.replace("7 - 4 = 3 pears", "all of this is surely right"), 0.75),
        (SOLVED.replace("7 - 4 = 3", "3 + 4 = 7"), 0.75),  # the same equation again
        (SOLVED.replace("7 - 4 = 3", "7 + 0 = 7"), 0.75),  # changes nothing
        (SOLVED.replace("7 - 4 = 3", "7 + 3 - 3 = 7"), 0.75),
        (SOLVED.replace("7 - 4 = 3", "7 * 3 = 21"), 1.0),
        (SOLVED.replace("7 - 4 = 3", "7 * 2 = 14"), 0.75),  # of no known number
        (SOLVED.replace("7 - 4 = 3", "1 + 1 = 2"), 0.75),
        (SOLVED.replace("7 - 4 = 3", "7 - 4 = 2"), 0.75),  # wrong
        (SOLVED.replace("#### 7", "#### 8"), 0.5),  # of another answer
        # one text for all parts has no content of its own
        (
            "\n".join(f"{h}: do it well now" for h in ("Understand", "Plan", "Solve")) + "\n#### 7",
            0,
        ),
        (SOLVED + "\n" + SOLVED, 0.0),  # each part twice
        ("\n".join(reversed(SOLVED.split("\n"))), 0.0),  # out of order
        (
            SOLVED.replace(
                "Ann owns three pears at first, four come later; the total is wanted.", QUESTION
            ),
            0.75,
        ),
    ],
)
def test_headings_without_work_do_not_pay(text, share):
    assert adherence("understand-plan-solve-check", text) == [share]


@pytest.mark.parametrize(
    ("understood", "planned"),
    [
        ("pears buys Ann", "many has she"),  # words of the prompt, shuffled
        (f"x {QUESTION}", "y what is given and what is asked, in your own words"),
        (f"so {QUESTION}", f"we know {QUESTION[:31]}"),
        ("a b c", "d e f"),
    ],
)
def test_the_prompts_words_and_letters_are_no_content(understood, planned):
    text = f"Understand: {understood}\nPlan: {planned}\nSolve: 3 + 4 = 7\nCheck: 7 - 4 = 3\n#### 7"
    assert adherence("understand-plan-solve-check", text) == [0.5]


def test_a_part_in_plain_words_is_one_though_most_are_the_prompts():
    question = "Anna has 3 bags with 4 apples in each bag. How many apples does Anna have in all?"
    text = """Understand: Anna has 3 bags, and each bag contains 4 apples. We need the total number.
Plan: Multiply the number of bags by the number of apples in each bag.
Solve: 3 * 4 = 12
Check: 12 / 4 = 3
#### 12"""
    assert adherence("understand-plan-solve-check", text, question=question, answer="12") == [1.0]
    checks = [{"name": "sections", "headings": ["Known", "Solve"], "weight": 1}]
    follower = follower_of("mine", read_guidelines(of(checks))["mine"])
    numbers = "Known: she has three and four\nSolve: 3 + 4 = 7\n#### 7"
    assert follower(attempts(numbers)).adherence == [1.0]


def test_headings_match_in_any_case_of_any_alphabet():
    """`re` takes a dotless i for an i, and casefold does not."""
    assert adherence("understand-plan-solve-check", SOLVED.replace("Plan", "plan")) == [1.0]
    checks = [{"name": "sections", "headings": ["Idea", "Finish"], "weight": 1}]
    follower = follower_of("mine", read_guidelines(of(checks))["mine"])
    text = "\u0131dea: take both amounts together\nFini\u017fh: they are seven pears\n#### 7"
    assert follower(attempts(text)).adherence == [1.0]


AGAIN = "(3 + 4)|3 + 4 + 0|(3 + 4) * 1|03 + 4|3.0 + 4|4 + 3|3 + 4 + 9 - 9|2 * (3 + 4) / 2"


@pytest.mark.parametrize("again", AGAIN.split("|"))
def test_an_equation_in_another_spelling_is_the_same(again):
    check = SOLVED.replace("7 - 4 = 3 pears", f"{again} = 7")
    assert adherence("understand-plan-solve-check", check) == [0.75]
    for name, unit in (("one-equation-per-line", ""), ("units-named", " pears")):
        text = f"2 + 2 = 5\n3 + 4 = 7{unit}\n"
        assert adherence(name, f"{text}{again} = 7{unit}\n#### 7") == [0.5]  # neither way
        assert adherence(name, f"{text}{again} = 8{unit}\n#### 7") == [1 / 3]  # wrong


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("2 * 2 = 4\n2 + 2 = 4\n#### 4", 1.0),
        ("4 - 2 = 2\n4 / 2 = 2\n2 ^ 2 = 4\n2 ^ 4 = 16\n4 * 4 = 16\n#### 16", 1.0),
        ("20 * 50 = 1000\n20% of 50 = 10\n1000 + 10 = 1010\n#### 1010", 1.0),
        ("2 - 5 = -3\n5 - 2 = 3\n3 + 3 = 6\n#### 6", 1.0),
    ],
)
def test_other_equations_of_the_same_numbers_are_not(text, share):
    assert adherence("one-equation-per-line", text) == [share]


# --- equations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("3 + 4 = 7\n#### 7", 1.0),
        ("2 * 5 = 10\n10 + 3 = 13\n13 - 6 = 7\n#### 7", 1.0),
        ("3 + 4 = 7\n7 - 4 = 3\n#### 7", 1.0),  # a check counts neither way
        ("3 + 0 = 3\n3 + 4 = 7\n#### 7", 1.0),  # nor does what changes nothing
        ("#### 7", 0.0),
        ("3 + 4 = 7\n#### 8", 0.0),  # leads elsewhere
        ("3 + 4 = 8\n#### 8", 0.0),  # wrong
        ("3 + 4 = 7 and 2 + 5 = 7\n#### 7", 0.0),  # two in a line
        ("3 + 4 = 5 + 2 = 7\n#### 7", 0.0),
        ("3 + 4 = 7\n3 + 4 = 7\n#### 7", 0.5),  # repeated
        ("3 + 4 = 7\n" * 4 + "#### 7", 0.25),
        ("1 + 1 = 2\n3 + 4 = 7\n#### 7", 0.5),  # padding leads nowhere
        ("3 + 4 = 7\n1 + 1 = 2\n#### 7", 0.5),  # nor after the answer
        ("1 + 1 = 2\n2 + 2 = 4\n#### 7", 0.0),  # none gives the answer
        ("7 + 0 = 7\n#### 7", 0.0),
        ("7 * 3 / 3 = 7\n#### 7", 0.0),
        ("0 * 4 = 0\n#### 0", 1.0),  # its own numbers are others
        ("7 = 7\n#### 7", 0.0),
        ("0 + 0 = 0\n" * 9 + "#### 7", 0.0),
        ("2 * 5 = 10\n10 + 3 = 14\n13 - 6 = 7\n#### 7", 1 / 3),
    ],
)
def test_equations(text, share):
    assert adherence("one-equation-per-line", text) == [pytest.approx(share)]


def test_lines_of_equations_are_told():
    assert lines("one-equation-per-line", "So:\n2 + 5 = 7\n1 + 1 = 2\n#### 7") == [1]
    assert lines("one-equation-per-line", "So:\n2 + 5 = 8\n#### 7") == []


# --- units, estimates, brevity -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("3 + 4 = 7 pears\n#### 7", 1.0),
        ("3 + 4 = **7** pears\n#### 7", 0.0),  # not read with certainty
        *((f"3 + 4 = 7 {unit}\n#### 7", 0.0) for unit in ("kg", "km", "%", "units", "years")),
        ("3 + 4 = 7 in total\n#### 7", 0.0),  # no inches
        ("3 + 4 = 7 dollars per pear\n#### 7", 0.0),
        ("3 + 4 = 7\n#### 7", 0.0),
        ("3 + 4 = 7 apples\n#### 7", 0.0),  # of which there are none in the problem
        ("3 + 4 = 7 has\n#### 7", 0.0),
        ("3 + 4 = 8 pears\n#### 8", 0.0),  # wrong
        ("2 + 1 = 3\n3 + 4 = 7 pears\n#### 7", 0.5),
        ("3 + 4 = 7 pears\n3 + 4 = 7 pears\n#### 7", 0.5),  # repeated
        ("pears pears pears\n#### 7", 0.0),
    ],
)
def test_units(text, share):
    assert adherence("units-named", text) == [share]


def test_units_of_a_problem_without_any_do_not_apply():
    assert adherence("units-named", "3 + 4 = 7 pears\n#### 7", question="Calculate 3 + 4.") == [
        None
    ]
    money = "A pen costs $3 and a book $4. How much are both?"
    assert adherence("units-named", "3 + 4 = $7\n#### 7", question=money) == [1.0]
    assert adherence("units-named", "3 + 4 = $7\n#### 7") == [0.0]
    assert adherence("units-named", "3 + 4 = 7\n#### 7", question="In short: 3 + 4?") == [None]


@pytest.mark.parametrize(
    ("question", "named", "foreign"),
    [
        ("A train goes 3 km in 2 hours.", "miles|minutes|km/h|mph|km per day", "kg|liters"),
        ("A board of 3m is 2 inches wide.", "cm|cm^2|square meters|in", "liters|hours|dollars"),
        ("Ann's pens cost $3 each.", "cents|dollars|euros|pens|dollars per pen", "seconds|kg|feet"),
        ("Ann is 3 and half as old as Bob.", "years", "pears|meters"),
        ("Tax is 3% of 4.", "%|percent", "km|degrees"),
        ("It took from 3 to 4 o'clock. How long?", "minutes", "kg"),
    ],
)
def test_units_of_measure_are_of_the_questions_kinds(question, named, foreign):
    for units, share in ((named, 1.0), (foreign, 0.0)):
        for unit in units.split("|"):
            text = f"3 + 4 = 7 {unit}\n#### 7"
            assert adherence("units-named", text, question=question) == [share], unit


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("Estimate: about 8\n3 + 4 = 7\nCompare: my 8 was 1 over 7\n#### 7", 1.0),
        ("Estimate: about 8\n3 + 4 = 7\n#### 7", 0.5),
        ("Estimate:\n3 + 4 = 7\nCompare:\n#### 7", 0.0),
        ("Estimate: some\n3 + 4 = 7\nCompare: fine\n#### 7", 0.0),
        ("3 + 4 = 7\nEstimate: 8\nCompare: my 8 was near 7\n#### 7", 0.0),  # afterwards
        ("Estimate: 70\n3 + 4 = 7\nCompare: my 70 was far from 7\n#### 7", 0.0),
        ("Estimate: 1 or 7 or 50\n3 + 4 = 7\nCompare: 1 7 50 fine\n#### 7", 0.0),  # guesses
        ("Estimate: 8\nEstimate: 7\n3 + 4 = 7\nCompare: the 7 is 7\n#### 7", 0.0),
        ("Estimate: 8\nCompare: my 8 is near 7\n#### 7", 0.5),  # without any work
        ("Estimate: 8\n3 + 4 = 7\nCompare: 8 7\n#### 7", 0.5),  # without words
        ("Estimate: 8\n3 + 4 = 7\nCompare: it is quite good\n#### 7", 0.5),
        ("Estimate: 8\n1 + 1 = 2\nCompare: my 8 was 1 over 7\n#### 7", 0.5),
    ],
)
def test_estimates(text, share):
    assert adherence("estimate-first", text) == [share]


def test_concise_compares_right_answers_alone():
    short, long, wrong = "#### 7", "3 + 4 = 7\n#### 7", "#### 8"
    assert adherence("concise", short, long, wrong) == [1.0, 6 / 16, None]
    assert adherence("concise", long, wrong, "") == [None, None, None]  # nothing to compare with
    assert adherence("concise", "7", long, short) == [None, 6 / 16, 1.0]  # 7 states no answer


def test_concise_compares_within_a_problem():
    one, other = attempts("#### 7", "So #### 7"), attempts("#### 7" + " " * 6, "So so so #### 7")
    mixed = [one[0], other[0], one[1], other[1]]
    mixed = [
        Attempt(a.text, {**a.problem, "id": i % 2}, a.prompt, a.verdict)
        for i, a in enumerate(mixed)
    ]
    found = follower_of("concise", ALL["concise"])(mixed)
    assert found.adherence == [1.0, 1.0, 6 / 9, 12 / 15]
    assert found.rewards["concise.concise"] == pytest.approx([0.2, 0.2, 0.4 / 3, 0.16])


# --- hostile text --------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *("Understand:", "Plan", "Check:", "Estimate:", "Compare:", "####", "\\boxed{", "}", "\n"),
        *(
            "3 + 4 = 7",
            "=",
            "7",
            "9" * 400,
            "-",
            "$",
            "pears",
            "(",
            ")",
            "\u0130",
            "\u0131",
            "\u2028",
        ),
        *(" ", "\t", "%", "1/0", "9^9^9", "\\frac", "*", "\x00", "answer is", "#" * 50, "é"),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=60).map("".join)


@given(TEXTS, TEXTS)
def test_hostile_text_is_bounded(text, question):
    (attempt,) = attempts(text, question=question)
    for name in SHIPPED:
        follower = follower_of(name, ALL[name])
        for value in follower([attempt, attempt]).adherence:
            assert value is None or 0 <= value <= 1
        for findings in follower([attempt]).findings.values():
            assert all(0 <= line < len(attempt.lines) for line in findings[0].lines)


@pytest.mark.parametrize(
    "piece", ["3 + 4 = 7\n", "=", "Plan: ", "\n", " ", "7", "(", "####", "Estimate: 8 ", "pears "]
)
def test_long_texts_take_bounded_time(piece):
    text = (piece * 200_000)[:400_000] + "\n#### 7"
    started = time.thread_time()
    (attempt,) = attempts(text, question=piece * 20_000)
    for name in SHIPPED:
        follower_of(name, ALL[name])([attempt])
    assert time.thread_time() - started < 5
    assert sum(map(len, attempt.lines)) <= MAX_CHARS


# --- checks of the user's ------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path):
    """A guideline with a function of the user's, whose body is given."""

    def make(body: str, *others: dict[str, Any], **fields: Any):
        path = tmp_path / "mine.py"
        path.write_text(f"def thanks(prompts, completions, **columns):\n    {body}\n")
        function = {"name": "function", "path": f"{path}:thanks", "weight": 0.5}
        return read_guidelines(of([function, *others], **fields))["mine"]

    return make


SAYS_THANKS = "return [float('thanks' in c[0]['content']) for c in completions]"


def test_a_function_of_the_users_is_a_check(mine):
    found = follower_of("mine", mine(SAYS_THANKS))(attempts("thanks #### 7", "#### 7", "thanks"))
    assert found.adherence == [1.0, 0.0, 0.0]  # the last states no answer
    assert found.rewards == {"mine.thanks": [0.5, 0.0, 0.0]}


def test_the_prompts_own_answer_is_none(mine):
    """It holds an example, which verifiers find."""
    guideline = mine("return [1.0 for _ in completions]").model_copy(
        update={"prompt": "Do it like so:\n3 + 4 = 7 and then #### 7"}
    )
    prompt = [{"role": "system", "content": guideline.prompt}, {"role": "user", "content": "2?"}]
    (plain,) = attempts("")
    for text, share in (
        (guideline.prompt, 0.0),
        (f"{guideline.prompt}\n2?\nWell.", 0.0),
        (f"{guideline.prompt}\n#### 7", 1.0),
        ("#### Sum\n#### 7", 1.0),
        ("\n" * 300 + "#### 7", 1.0),
    ):
        attempt = Attempt(text, plain.problem, prompt, NumberVerifier().verify(text, plain.problem))
        assert follower_of("mine", guideline)([attempt]).adherence == [share], text


def test_a_price_is_paid_without_an_answer_too(mine):
    price = mine(SAYS_THANKS, {"name": "equations", "weight": 1}).model_dump()
    price["checks"][0]["weight"] = -0.5
    follower = follower_of("mine", read_guidelines({"mine": price})["mine"])
    rewards = follower(attempts("thanks\n#### 8", "thanks, I do not know", "no idea")).rewards
    assert rewards["mine.thanks"] == [-0.5, -0.5, 0.0]


def test_functions_are_run_where_they_are_trusted_alone(mine):
    guideline = mine("raise SystemExit", {"name": "equations", "weight": 0.1})
    careful = follower_of("mine", guideline, trusted=False)
    assert not careful.is_measurable
    assert careful(attempts("3 + 4 = 7\n#### 7")).adherence == [None]
    measured = mine("raise SystemExit", {"name": "equations", "weight": 0.1}, metric="equations")
    careful = follower_of("mine", measured, trusted=False)
    assert careful.is_measurable
    assert careful(attempts("3 + 4 = 7\n#### 7")).adherence == [1.0]
    with pytest.raises(RewardError, match=r"'thanks' raised SystemExit"):
        follower_of("mine", guideline)(attempts("#### 7"))


@pytest.mark.parametrize("value", ["1.5", "-0.1", "float('nan')", "'yes'"])
def test_what_a_function_returns_is_bounded(mine, value):
    with pytest.raises(RewardError, match="must return"):
        follower_of("mine", mine(f"return [{value}]"))(attempts("#### 7"))


def test_without_a_metric_the_mean_by_weight_is_reported(mine):
    guideline = mine(
        SAYS_THANKS,
        {"name": "equations", "weight": 0.25},
        {"name": "concise", "weight": 0.25},  # does not apply to one answer
        {"name": "estimate", "weight": -0.1},  # a price is no part of the mean
    )
    found = follower_of("mine", guideline)(attempts("3 + 4 = 7\n#### 7"))
    assert found.adherence == [pytest.approx(1 / 3)]  # (0.5 * 0 + 0.25 * 1) / 0.75
    assert found.rewards["mine.estimate"] == [0.0]


# --- files ---------------------------------------------------------------------------------------


def test_a_file_of_the_users_is_named_by_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("prompt: Do it.\nchecks: [{name: equations, weight: 0.1}]\n")
    found = read_guidelines([str(path), "concise"])
    assert list(found) == ["mine", "concise"]
    assert prompted("Solve.", found) == "Solve.\nDo it.\nBe brief."
    parts = [guideline.prompt for guideline in found.values()]
    assert without_parts("Solve.\nDo it.\nBe brief.", parts) == "Solve."
    found["silent"] = read_guidelines(of([EQUATIONS], prompt=" "))["mine"]
    assert prompted("", found) == "Do it.\nBe brief." and without_parts("Solve.", []) == "Solve."


EQUATIONS = {"name": "equations", "weight": 0.1}


@pytest.mark.parametrize("none", ["null", "{}", "[]"])
def test_none_are_none_over_those_of_a_recipe_or_a_run(tmp_path, none):
    for some in ("[concise]", of([EQUATIONS])):
        path = tmp_path / "mine.yaml"
        path.write_text(f"model: {{id: x}}\ndata: {{name: x}}\nguidelines: {some}\n")
        assert load_config(path).guidelines
        assert load_config(path, [f"guidelines={none}"]).guidelines == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("concice", "no guideline 'concice', did you mean 'concise'? There are concise, estimate-"),
        (["xyz"], "there is no guideline 'xyz'; there are concise, "),
        ("nowhere/mine.yaml", "cannot read the guideline nowhere/mine.yaml: No such file"),
        (["concise", "concise"], "two guidelines are called 'concise': name each once"),
        (3, "guidelines = 3 is not allowed: must be a list of names and paths, [] for"),
        ([["concise"]], "is not allowed: must be a list of names and paths"),
        ({"concise": "concise"}, "guidelines.concise must hold prompt, checks and metric, got"),
        ({"a b": {}}, "no guideline can be called 'a b'"),
        (["."], "there is no guideline '.'"),
        (of([7]), "checks.0 = 7 is not allowed: must be a section with a name, such as name: equ"),
        (
            of([{"name": "sections", "headings": ["So!", "B"], "weight": 1}]),
            "'So!' is not allowed: must begin and end with a letter or a digit, and be one line",
        ),
        (of([EQUATIONS], prompt="\ud800"), "must have no characters that UTF-8 cannot write"),
        (of([{**EQUATIONS, 5: 1}]), "checks.0.5 = 5 is not allowed: a key must be a text"),
        ({str(i): {} for i in range(17)}, "guidelines has 17 of them, at most 16"),
        (of([{"name": "equatoins", "weight": 1}]), "is not known, did you mean 'equations'? There"),
        (
            of([{"name": "zzz", "weight": 1}]),
            "guidelines.mine.checks.0.name = 'zzz' is not known; t",
        ),
        (
            of([{"name": "function", "path": "mine.py", "weight": 1}]),
            "checks.0.path = 'mine.py' is not allowed: must be package.module",
        ),
        (of([{"weight": 1}]), "guidelines.mine.checks.0.name is required: sections, equations,"),
        (of([{"name": "equations"}]), "guidelines.mine.checks.0.weight is required"),
        (of([{**EQUATIONS, "weigth": 1}]), "under guidelines.mine.checks.0, did you mean 'weight'"),
        (of([EQUATIONS], promt="x"), "'promt' under guidelines.mine, did you mean 'prompt'"),
        (
            of([EQUATIONS], metric="units"),
            "guidelines.mine: metric names 'units'; the checks are equ",
        ),
        ({"mine": {"checks": [EQUATIONS]}}, "guidelines.mine.prompt is required"),
        (of([EQUATIONS], prompt="x" * 2001), "must have at most 2000 characters"),
        (of([]), "guidelines.mine.checks = [] is not allowed"),
        (of([EQUATIONS] * 2), "two checks are called 'equations'"),
        (of([{**EQUATIONS, "weight": 0}]), "guidelines.mine: all weights are 0 (equations 0)"),
        (
            of([{**EQUATIONS, "weight": math.nan}]),
            "weight = nan is not allowed: must be a finite number",
        ),
        (
            of([{**EQUATIONS, "weight": math.inf}]),
            "weight = inf is not allowed: must be a finite number",
        ),
        (
            of([EQUATIONS, {"name": "units", "weight": -0.1}]),
            "the weights cancel (equations 0.1, units -0.1 add up to 0)",
        ),
        (
            of([{"name": "sections", "headings": ["A", "a"], "weight": 1}]),
            "headings must be different",
        ),
        (
            of([{"name": "sections", "headings": ["A", "B"], "computed": ["C"], "weight": 1}]),
            "computed names 'C'; headings are ['A', 'B']",
        ),
    ],
)
def test_bad_guidelines_are_refused_in_a_sentence(given, message):
    with pytest.raises(ConfigError) as refused:
        build_config({"model": {"id": "x"}, "data": {"name": "x"}, "guidelines": given})
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "must hold a mapping of settings, got list"),
        ("prompt: [", "is not valid YAML"),
        ("prompt: a\nprompt: b\n", "the key 'prompt' is there twice"),
        ("x" * (1 << 20) + "y", "has more than 1048576 bytes"),
        (
            "prompt: a\nchecks: [{name: units, weight: .nan}]\n",
            "mine.yaml: checks.0.weight = nan is",
        ),
        ("prompt: a\nchecks: [{name: units, weight: 0}]\n", "mine.yaml: all weights are 0"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        read_guidelines([str(path)])
    assert message in str(refused.value) and str(path) in str(refused.value)


def test_a_folder_is_no_guideline(tmp_path):
    folder = tmp_path / "mine.yaml"
    folder.mkdir()
    with pytest.raises(ConfigError) as refused:
        read_guidelines([str(folder)])
    assert str(refused.value) == f"cannot read the configuration {folder}: it is a folder"


def test_a_run_records_guidelines_whole():
    values = {"model": {"id": "x"}, "data": {"name": "x", "system_prompt": "Solve."}}
    config = build_config({**values, "guidelines": "concise"})
    assert config.system_prompt == "Solve.\nBe brief."
    assert build_config(config.model_dump(mode="json")) == config
    with pytest.raises(
        ConfigError, match="guidelines reward what is sampled, which method: sft do"
    ):
        build_config({**values, "guidelines": "concise", "method": "sft"})


@pytest.mark.parametrize(("weight", "said"), [(0.9, False), (1.1, True)])
def test_weights_above_that_of_a_right_answer_are_said(make_config, caplog, weight, said):
    checks = [{"name": "equations", "weight": weight}, {"name": "units", "weight": -0.5}]
    with caplog.at_level("WARNING"):
        warn_about(make_config(guidelines=of(checks)))
    assert any("a wrong answer that follows them" in line for line in caplog.messages) == said


# --- the page ------------------------------------------------------------------------------------


def test_the_page_names_what_ships_and_every_check_as_the_code_does():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for name in SHIPPED:
        assert f"| `{name}` |" in page
    for name, settings in CHECK_SETTINGS.items():
        sentence = " ".join((settings.__doc__ or "").partition("\n\n")[0].split()).removesuffix(".")
        assert f"| `{name}` | {sentence} |" in page


@pytest.mark.smoke
def test_the_pages_example_is_complete(base, make_config, tmp_path, monkeypatch):
    blocks = re.findall(r"```\w+\n# ([\w.-]+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    files = dict(blocks)
    assert {"polite-proof.yaml", "polite.py"} <= files.keys()
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    guidelines = read_guidelines("polite-proof.yaml")
    follower = follower_of("polite-proof", guidelines["polite-proof"])
    text = "Given: three pears, then four more\nSo: 3 + 4 = 7\n#### 7\nThank you"
    found = follower(attempts(text, text.replace("Thank you", "")))
    assert found.rewards["polite-proof.sections"] == [0.1, 0.1]
    assert found.rewards["polite-proof.equations"] == [0.1, 0.1]
    assert found.rewards["polite-proof.thanks"] == [0.05, 0.0]
    assert found.adherence == [1.0, 1.0]
    run = train(make_config(guidelines=["polite-proof.yaml"], train={"steps": 1}), base=base)
    keys = {key for record in read_metrics(run.metrics) for key in record}
    assert {"adherence/polite-proof", "reward/polite-proof.thanks"} <= keys
    assert run.load_config().guidelines == guidelines
    card = (run.adapter / "README.md").read_text(encoding="utf-8")
    assert "Thank the reader at the end." in card
