"""Rewards: named parts, weights, and functions with TRL's signature."""

import math
import sys

import pytest

from kit.config import SYSTEM_PROMPT, RewardConfig, RewardFunction
from kit.errors import RewardError
from kit.tasks.rewards import build_reward
from kit.tasks.verifiers import NumberVerifier

QUESTION = "Ann has 3 pears and buys 4 more. How many has she?"
PROMPT = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]
ROW = {"id": "a", "prompt": PROMPT, "question": QUESTION, "answer": "7", "category": "sum"}


def score(config: RewardConfig, *completions: str):
    n = len(completions)
    return build_reward(config, NumberVerifier())([PROMPT] * n, list(completions), [ROW] * n)


def user(*functions: str, weight: float = 1.0, **other) -> RewardConfig:
    paths = [RewardFunction(path=path, weight=weight) for path in functions]
    return RewardConfig(functions=paths, **other)


@pytest.fixture
def file(tmp_path):
    """Write a module of reward functions, return its path."""

    def write(source: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(source, encoding="utf-8")
        return str(path)

    return write


def test_parts_and_total() -> None:
    scores = score(RewardConfig(), "#### 7", "#### 8", "7", "the answer is 7")
    assert scores.parts == {
        "correct": [1.0, 0.0, 0.0, 0.0],
        "format": [0.05, 0.05, 0.0, 0.0],
        "no_answer": [0.0, 0.0, 0.0, 0.0],
    }
    assert scores.total == [1.05, 0.05, 0.0, 0.0]
    assert [v.lenient for v in scores.verdicts] == [True, False, True, True]


def test_lenient_correctness() -> None:
    assert score(RewardConfig(strict=False), "#### 7", "7", "8").total == [1.05, 1.0, 0.0]


@pytest.mark.parametrize(
    "text",
    ["", " \n", "Let me think about pears.", SYSTEM_PROMPT, f"{SYSTEM_PROMPT}\n{QUESTION}"],
)
def test_zero_means_zero(text: str) -> None:
    scores = score(RewardConfig(), text)
    assert scores.total == [0.0]
    assert all(part == [0.0] for part in scores.parts.values())


def test_no_answer_and_clamp() -> None:
    config = RewardConfig(no_answer=-0.2)
    assert score(config, "pears", "8").total == [-0.2, 0.0]
    clamped = RewardConfig(no_answer=-0.2, clamp=(0.0, 1.0))
    scores = score(clamped, "pears", "#### 7")
    assert scores.total == [0.0, 1.0]
    assert scores.parts["no_answer"] == [-0.2, 0.0]  # the clamp is of the total alone


@pytest.mark.parametrize("clamp", [(math.nan, 1.0), (0.0, math.nan), (1.0, 1.0), (1.0, 0.0)])
def test_a_clamp_that_bounds_nothing_is_refused(clamp) -> None:
    with pytest.raises(ValueError, match="with low < high"):
        RewardConfig(clamp=clamp)


def test_listing_numbers_earns_nothing() -> None:
    listing = "\n".join(f"#### {i}" for i in range(10))
    assert score(RewardConfig(), listing).total == [0.0]


def test_user_function_is_called_as_by_trl(file) -> None:
    path = file(
        "def seen(prompts, completions, answer, category, **columns):\n"
        "    assert isinstance(prompts[0], list) and prompts[0][-1]['role'] == 'user'\n"
        "    assert completions[0] == [{'role': 'assistant', 'content': '#### 7'}]\n"
        "    assert answer == ['7', '7'] and category == ['sum', 'sum']\n"
        "    assert set(columns) == {'id', 'question'}\n"
        "    return [len(c[0]['content']) for c in completions]\n"
    )
    scores = score(user(f"{path}:seen", weight=-0.5), "#### 7", "pear")
    assert scores.parts["seen"] == [-3.0, -2.0]  # -0.5 times 6 and 4 characters
    assert scores.total == pytest.approx([1.05 - 3.0, -2.0], abs=1e-12)


def test_user_values(file) -> None:
    import numpy

    path = file(
        "import numpy\n"
        "def mixed(prompts, completions, **columns):\n"
        "    return [None, True, numpy.float32(0.5), 2]\n"
        "def array(prompts, completions, **columns):\n"
        "    return numpy.arange(4)\n"
    )
    scores = score(user(f"{path}:mixed", f"{path}:array", weight=2.0), *[""] * 4)
    assert scores.parts["mixed"] == [0.0, 2.0, 1.0, 4.0]
    assert scores.parts["array"] == [0.0, 2.0, 4.0, 6.0]
    assert all(type(value) is float for value in scores.total)
    assert numpy.allclose(scores.total, [0.0, 4.0, 5.0, 10.0])


def test_weight_zero_gives_zero(file) -> None:
    path = file("def one(prompts, completions, **columns):\n    return [1.0] * len(completions)\n")
    assert score(user(f"{path}:one", weight=0.0), "").total == [0.0]


def test_names_are_unique(file) -> None:
    path = file(
        "def correct(prompts, completions, **columns):\n    return [0.25] * len(completions)\n"
    )
    config = user(f"{path}:correct", f"{path}:correct")
    reward = build_reward(config, NumberVerifier())
    assert reward.names == ["correct", "format", "no_answer", "correct_2", "correct_3"]
    scores = reward([PROMPT], ["#### 7"], [ROW])
    assert list(scores.parts) == reward.names
    assert scores.parts["correct"] == [1.0]
    assert scores.total == pytest.approx([1.55], abs=1e-12)


def test_dotted_path(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_rewards_package.py").write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Bonus:\n    size: float = 0.5\n"
        "def bonus(prompts, completions, **columns):\n"
        "    return [Bonus().size] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert score(user("my_rewards_package:bonus"), "").total == [0.5]
    sys.modules.pop("my_rewards_package")
    assert score(user(f"{tmp_path / 'my_rewards_package.py'}:bonus"), "").total == [0.5]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", r"'f' must return one number for each of the 2 completions, got 1"),
        ("return 1.0", r"'f' must return a list of numbers, got float"),
        ("return None", r"'f' must return a list of numbers, got NoneType"),
        ("return [0.0, float('nan')]", r"'f' must return finite .* got nan for completion 1"),
        ("return [float('inf'), 0.0]", r"got inf for completion 0"),
        ("return [10**400, 0]", r"finite"),
        ("return ['1.0', 0.0]", r"got '1.0' for completion 0"),
        ("return [[1.0], 0.0]", r"got \[1.0\] for completion 0"),
        ("return 'ab'", r"got 'a' for completion 0"),
        ("raise KeyError('gone')", r"'f' raised KeyError: 'gone'"),
        ("return columns['nothing']", r"'f' raised KeyError: 'nothing'"),
        # longer than Python turns into text
        ("return [10**5000, 0]", r"finite numbers or None, got an int for completion 0"),
        ("return [1 + 2j, 0]", r"got \(1\+2j\) for completion 0"),
        ("return __import__('numpy').array([1j, 0])", r"got .*1j.* for completion 0"),
        # what has no order, or whose elements are no rewards, though it can be listed
        ("return {0.25: 'a', 0.5: 'b'}", r"'f' must return a list of numbers, got dict"),
        ("return {0.25, 0.5}", r"'f' must return a list of numbers, got set"),
        ("return b'ab'", r"'f' must return a list of numbers, got bytes"),
        ("return (1 / 0 for _ in completions)", r"'f' raised ZeroDivisionError"),
        ("return __import__('itertools').count()", r"each of the 2 completions, got more"),
        # of what is too long, one number too many is asked for: this one divides by 0 at the fourth
        ("return (1 / (3 - i) for i in range(9))", r"each of the 2 completions, got more"),
        # not derived from Exception
        ("__import__('sys').exit(0)", r"'f' raised SystemExit: 0"),
        ("exit()", r"'f' raised SystemExit"),
        ("return (__import__('sys').exit(0) for _ in completions)", r"'f' raised SystemExit: 0"),
        ("raise __import__('asyncio').CancelledError('late')", r"'f' raised CancelledError: late"),
        ("raise GeneratorExit", r"'f' raised GeneratorExit"),
    ],
)
def test_what_functions_may_not_do(file, body: str, message: str) -> None:
    path = file(f"def f(prompts, completions, **columns):\n    {body}\n")
    with pytest.raises(RewardError, match=message):
        score(user(f"{path}:f"), "#### 7", "")


def test_a_function_without_the_columns_says_so(file) -> None:
    path = file("def f(prompts, completions):\n    return [0.0] * len(completions)\n")
    with pytest.raises(RewardError, match=r"'f' raised TypeError: .*unexpected keyword argument"):
        score(user(f"{path}:f"), "")


@pytest.mark.parametrize("column", ["prompts", "completions"])
def test_no_column_is_called_like_what_functions_are_given(file, column: str) -> None:
    path = file("def f(prompts, completions, **columns):\n    return [0.0] * len(completions)\n")
    reward = build_reward(user(f"{path}:f"), NumberVerifier())
    with pytest.raises(RewardError, match=rf"the problems have a column '{column}', .*; rename it"):
        reward([PROMPT], ["#### 7"], [ROW | {column: "x"}])


def test_weighted_value_must_be_finite(file) -> None:
    path = file("def f(prompts, completions, **columns):\n    return [1e308]\n")
    assert math.isinf(1e308 * 10)
    with pytest.raises(RewardError, match="finite"):
        score(user(f"{path}:f", weight=10.0), "")


class Stubborn:
    """A number that cannot be had or shown."""

    def __float__(self) -> float:
        raise LookupError

    def __repr__(self) -> str:
        raise AttributeError


def test_a_value_that_cannot_be_read_or_shown_is_refused_by_its_type(file, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "VALUES", [Stubborn()], raising=False)
    path = file(
        f"import sys\ndef f(prompts, completions, **columns):\n"
        f"    return sys.modules[{__name__!r}].VALUES\n"
    )
    with pytest.raises(RewardError, match="got a Stubborn for completion 0"):
        score(user(f"{path}:f"), "")


def test_ctrl_c_in_a_function_is_ctrl_c(file) -> None:
    path = file("def f(prompts, completions, **columns):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        score(user(f"{path}:f"), "")


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ((1e308, 1e308), "inf"),
        ((-1e308, -1e308), "-inf"),
        ((1e39, 0.0), "1e+39"),  # advantages are float32
        ((-1e31, 1.0), "-1e+31"),
    ],
)
@pytest.mark.parametrize("clamp", [None, (0.0, 1.0)])
def test_finite_parts_that_add_up_to_too_much_are_refused_by_name(
    file, values, total, clamp
) -> None:
    path = file(
        f"def f(prompts, completions, **columns):\n    return [0.0, {values[0]!r}]\n"
        f"def g(prompts, completions, **columns):\n    return [0.0, {values[1]!r}]\n"
    )
    config = user(f"{path}:f", f"{path}:g", clamp=clamp)
    with pytest.raises(RewardError) as caught:
        score(config, "", "")
    message = str(caught.value)
    assert f"completion 1 add up to {total}" in message and "f " in message and "1e+30" in message


def test_the_largest_reward_leaves_finite_advantages(file) -> None:
    import torch

    from kit.tasks.rewards import LARGEST
    from kit.training.objectives import group_advantages

    path = file(
        "def f(prompts, completions, **columns):\n"
        f"    return [{LARGEST!r}, -{LARGEST!r}, 0.0, {LARGEST!r}]\n"
    )
    totals = score(user(f"{path}:f"), *[""] * 4).total
    rewards = torch.tensor([totals], dtype=torch.float64)
    for scale in ("group", "batch", "none"):
        advantages = group_advantages(rewards, scale).float()
        assert advantages.isfinite().all() and advantages[0, 0] > 0 > advantages[0, 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", r"must be 'package.module:function' or 'file.py:function'"),
        (":f", r"must be"),
        ("json:", r"must be"),
        ("no_such_module_xyz:f", r"cannot import 'no_such_module_xyz': ModuleNotFoundError"),
        ("no/such/file.py:f", r"cannot import 'no/such/file.py': FileNotFoundError"),
        ("json:f", r"'json' has no function 'f'; it has .*dumps"),
    ],
)
def test_paths_that_do_not_work(path: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        build_reward(user(path), NumberVerifier())


def test_a_missing_function_is_told_which_there_are(file) -> None:
    path = file("LIMIT = 3\ndef a_b(): ...\ndef shown_(): ...\ndef _hidden(): ...\n")
    with pytest.raises(RewardError, match=r"has no function 'f'; it has a_b, shown_$"):
        build_reward(user(f"{path}:f"), NumberVerifier())
    with pytest.raises(RewardError, match=r"has no function 'LIMIT'; it has a_b, shown_$"):
        build_reward(user(f"{path}:LIMIT"), NumberVerifier())
    path = file("LIMIT = 3\n")
    with pytest.raises(RewardError, match=r"has no function 'f'; it has none$"):
        build_reward(user(f"{path}:f"), NumberVerifier())


def test_a_file_that_fails_on_import(file) -> None:
    path = file("raise OSError('no licence')\n")
    with pytest.raises(RewardError, match="OSError: no licence"):
        build_reward(user(f"{path}:f"), NumberVerifier())


def test_a_file_that_exits_on_import(file) -> None:
    path = file("import sys\ndef f(**columns): ...\nsys.exit(0)\n")
    with pytest.raises(RewardError, match=r"cannot import .*SystemExit: 0"):
        build_reward(user(f"{path}:f"), NumberVerifier())


def test_functions_cannot_change_the_batch(file) -> None:
    path = file(
        "def f(prompts, completions, answer, **columns):\n"
        "    prompts.clear(); answer[0] = '8'; completions[0][0]['content'] = '#### 8'\n"
        "    return [0.0]\n"
    )
    prompts, completions, rows = [PROMPT], ["#### 7"], [dict(ROW)]
    reward = build_reward(user(f"{path}:f", f"{path}:f"), NumberVerifier())
    assert reward(prompts, completions, rows).total == [1.05]
    assert (prompts, completions, rows) == ([PROMPT], ["#### 7"], [ROW])


def test_functions_cannot_change_what_lies_inside_the_batch(file) -> None:
    path = file(
        "def f(prompts, completions, metadata, **columns):\n"
        "    prompts[0][0]['content'] = 'pwned'; metadata[0]['sums'].append(9)\n"
        "    return [float(len(metadata[0]['sums']))]\n"
    )
    prompt = [{"role": "user", "content": QUESTION}]
    row = {**ROW, "prompt": prompt, "metadata": {"sums": [7]}}
    reward = build_reward(user(f"{path}:f", f"{path}:f"), NumberVerifier())
    assert reward([prompt], [""], [row]).parts["f_2"] == [2.0]  # nor what the next one sees
    assert prompt == [{"role": "user", "content": QUESTION}]
    assert row["metadata"] == {"sums": [7]}


def test_lists_of_different_lengths() -> None:
    with pytest.raises(RewardError, match="equally long, got 1, 2 and 1"):
        build_reward(RewardConfig(), NumberVerifier())([PROMPT], ["", ""], [ROW])


def test_an_empty_batch_has_no_scores() -> None:
    scores = score(RewardConfig())
    assert scores.total == []
    assert scores.verdicts == []
