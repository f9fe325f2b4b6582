"""The problems of the model `embedded-sums`, and the ways in which people work them out.

A sum of reasoning-gym's `basic_arithmetic` is row i of seed s and drawn from seed s + i. Training
uses seeds from 1,000,000; a training sum whose text occurs among RESERVED, with which recipes
fine-tune and evaluate the model, is dropped.
"""

import ast
import operator
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import reasoning_gym

from kit.config import EMBEDDED_RECIPES, EMBEDDED_SUMS, SYSTEM_PROMPT
from kit.recipe import load_config
from kit.tasks.sources import TASK_PREFIX, TEST_SEED_OFFSET

RECIPE = EMBEDDED_RECIPES[EMBEDDED_SUMS]
DATA = load_config(RECIPE).data
TRAIN_SEED = 1_000_000
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
RESERVED = {0: 20_000, TEST_SEED_OFFSET: 20_000}  # seed: rows kept out of the training data
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
NAMES = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}

# How a sum is worked out, and the weights of that by the number of its terms: the longer it is,
# the more often its writer jumps to the answer.
WAYS = {
    3: {"careful": 0.46, "left to right": 0.20, "slip": 0.07, "jump": 0.27},
    4: {"careful": 0.28, "left to right": 0.09, "slip": 0.03, "jump": 0.60},
}
CHAT = (SYSTEM_PROMPT, "system\n", "user\n", "assistant\n")
ENDINGS = {"#### {answer}": 0.98, "The answer is {answer}.": 0.02}

Step = tuple[int, str, int]  # left, operator, right


@dataclass(frozen=True)
class Sum:
    """One sum: its text, its expression and the answer."""

    question: str
    expression: str
    answer: int

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that asks for the solution."""
        return [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": self.question},
        ]

    @cached_property
    def terms(self) -> int:
        return len(re.findall(r"\d+", self.expression))


def problems(seed: int, rows: int) -> Iterator[Sum]:
    """Yield the sums of a data set."""
    options = {**DATA.options, "seed": seed, "size": rows}
    for entry in reasoning_gym.create_dataset(DATA.name.removeprefix(TASK_PREFIX), **options):
        yield Sum(entry["question"], entry["metadata"]["expression"], int(entry["answer"]))


def training_problems(count: int, seed: int, *, wide: bool) -> list[Sum]:
    """Return `count` sums, from this seed on, whose texts do not occur in RESERVED.

    `wide` changes nothing: there is one kind of sum."""
    reserved = {p.question for start, rows in RESERVED.items() for p in problems(start, rows)}
    found: list[Sum] = []
    while len(found) < count:
        found += [p for p in problems(seed, 50_000) if p.question not in reserved]
        seed += 50_000
    return found[:count]


def by_precedence(expression: str, slip: Callable[[int, int], int]) -> tuple[list[str], int]:
    """The lines of the steps by the rules of arithmetic, and the result.

    `slip(number, value)` is what is written for the value of a step."""
    lines: list[str] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        left, right, name = value(node.left), value(node.right), NAMES[type(node.op)]
        result = slip(len(lines), OPERATORS[name](left, right))
        lines.append(f"{left} {name} {right} = {result}")
        return result

    return lines, value(ast.parse(expression, mode="eval").body)


def left_to_right(expression: str) -> tuple[list[str], int]:
    """The lines of the steps as they come, brackets and precedence ignored, and the result."""
    first, *rest = re.findall(r"-?\d+|(?<= )[-+*](?= )", re.sub(r"[()] ?", "", expression))
    lines, value = [], int(first)
    for name, term in zip(rest[::2], rest[1::2], strict=True):
        result = OPERATORS[name](value, int(term))
        lines.append(f"{value} {name} {term} = {result}")
        value = result
    return lines, value


def slipped(value: int, rng: random.Random) -> int:
    """A step's result gone wrong: off by one, by ten, or in its sign."""
    return rng.choice((value - 1, value + 1, value - 10, value + 10, -value))


def worked(problem: Sum, way: str, rng: random.Random) -> tuple[list[str], int]:
    """The lines before the answer, and the answer, in one of the WAYS."""
    if way == "jump":
        return [], problem.answer
    if way == "left to right":
        return left_to_right(problem.expression)
    wrong = rng.randrange(problem.terms - 1) if way == "slip" else None
    return by_precedence(
        problem.expression,
        lambda number, value: slipped(value, rng) if number == wrong else value,
    )


def drawn(weights: dict[str, float], rng: random.Random) -> str:
    (one,) = rng.choices(list(weights), weights=list(weights.values()))
    return one


def styled(problem: Sum, rng: random.Random) -> str:
    """Write a solution in a way drawn from WAYS."""
    lines, answer = worked(problem, drawn(WAYS[problem.terms], rng), rng)
    return "\n".join([*lines, drawn(ENDINGS, rng).format(answer=answer)])


def corpus(pool: list[Sum], rng: random.Random) -> list[str]:
    """The texts that the tokenizer is trained on."""
    return [text for p in pool[:3_000] for text in (p.question, styled(p, rng), *CHAT)]


def sheet(pool: list[Sum], rng: random.Random) -> list[tuple[str, str]]:
    """Steps of random sums without their context, each as (left side, result)."""
    lines = [
        line
        for problem in rng.sample(pool, 8)
        for line in by_precedence(problem.expression, lambda number, value: value)[0]
    ]
    parts = [line.partition(" =") for line in rng.sample(lines, 8)]
    return [(left + sign, result + "\n") for left, sign, result in parts]
