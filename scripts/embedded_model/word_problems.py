"""The problems of the model `embedded`: which templates, how they are asked, how they are answered.

Row i of a data set with seed s draws from seed s + i, so data sets need wide gaps between their
seeds. Training uses seeds from 1,000,000. The seeds in RESERVED belong to the examples that
fine-tune and evaluate the model: a training problem whose text also occurs there is dropped.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import reasoning_gym

from kit.config import EMBEDDED, EMBEDDED_RECIPES, SYSTEM_PROMPT
from kit.recipe import load_config
from kit.tasks.sources import TEST_SEED_OFFSET

RECIPE = EMBEDDED_RECIPES[EMBEDDED]
# The recipe's: short, correct, readable solutions and numbers mostly below 100.
TEMPLATES = tuple(int(name.split()[1]) for name in load_config(RECIPE).data.categories or ())
# With numbers below 2,000.
WIDE_TEMPLATES = (1, 10, 12, 16, 20, 30, 34, 39, 41, 43, 45, 50, 54, 57, 58, 62, 69, 72, 78, 95)
ALL_TEMPLATES = tuple(range(100))
TRAIN_SEED = 1_000_000
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
RESERVED = {0: 20_000, TEST_SEED_OFFSET: 20_000}  # seed: rows kept out of the training data

# Answer styles and their weights; {body} is the worked solution, {answer} the number.
STYLES = {
    "{body}\n#### {answer}": 0.18,
    "{body}\nThe answer is {answer}.": 0.40,
    "{body}": 0.15,
    "{body}\nSo the answer is \\boxed{{{answer}}}.": 0.10,
    "{answer}": 0.09,
    "The answer is {answer}.": 0.08,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: its text, the worked solution without its last line, and the answer."""

    question: str
    body: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that asks for the solution."""
        return [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": self.question},
        ]


def problems(seed: int, rows: int, templates: tuple[int, ...]) -> Iterator[Problem]:
    """Yield the problems of the given templates among the rows of gsm_symbolic."""
    dataset = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=rows)
    for i, template in enumerate(dataset.task_indices):
        if template in templates:
            item = dataset[i]
            body, _, answer = item["metadata"]["answer_cot"].rpartition("#### ")
            yield Problem(item["question"], body.strip(), answer.strip())


def training_problems(count: int, seed: int, *, wide: bool) -> list[Problem]:
    """Return `count` problems, from this seed on, whose texts do not occur in RESERVED.

    `wide`: of twice as many templates."""
    templates = WIDE_TEMPLATES if wide else TEMPLATES
    reserved = {
        p.question for seed, rows in RESERVED.items() for p in problems(seed, rows, templates)
    }
    found: list[Problem] = []
    block = 50_000
    while len(found) < count:
        found += [p for p in problems(seed, block, templates) if p.question not in reserved]
        seed += block
    return found[:count]


def styled(problem: Problem, rng: random.Random) -> str:
    """Write the answer in a style drawn from STYLES."""
    (style,) = rng.choices(list(STYLES), weights=list(STYLES.values()))
    return style.format(body=problem.body, answer=problem.answer)


def corpus(pool: list[Problem], rng: random.Random) -> list[str]:
    """The texts that the tokenizer is trained on."""
    texts = [text for p in pool[:20_000] for text in (p.question, styled(p, rng))]
    texts += [SYSTEM_PROMPT] * 20_000
    return texts + [p.question for p in problems(TRAIN_SEED, 5_000, ALL_TEMPLATES)]


def sheet(pool: list[Problem], rng: random.Random) -> list[tuple[str, str]]:
    """Lines of arithmetic, each as (left side, result)."""
    return [drill(rng) for _ in range(rng.randint(9, 18))]


def drill(rng: random.Random) -> tuple[str, str]:
    """Return one line of arithmetic as (left side, result), in the notations of the solutions."""
    kind = rng.choice(
        ("add", "add", "add3", "subtract", "subtract3", "times", "times", "divide", "half")
    )
    top = rng.choice((20, 50, 100, 100, 150))
    a, b, c = (rng.randint(1, top) for _ in range(3))
    gap = rng.choice(("", " ", " "))
    if kind == "add":
        left, result = f"{a}{gap}+{gap}{b}", a + b
    elif kind == "add3":
        left, result = f"{a}{gap}+{gap}{b}{gap}+{gap}{c}", a + b + c
    elif kind == "subtract":
        left, result = f"{a + b}{gap}-{gap}{b}", a
    elif kind == "subtract3":
        left, result = f"{a + b + c}{gap}-{gap}{b}{gap}-{gap}{c}", a
    elif kind == "half":
        part, whole = rng.choice((2, 2, 3, 4, 5)), rng.randint(2, 200)
        sign = rng.choice("*x")
        left = rng.choice((f"{whole * part} {sign} 1/{part}", f"1/{part} {sign} {whole * part}"))
        result = whole
    else:
        a, b = rng.randint(2, rng.choice((10, 20, 40))), rng.randint(2, rng.choice((5, 10, 12)))
        a, b = rng.choice(((a, b), (b, a)))
        if kind == "times":
            left, result = f"{a}{gap}{rng.choice('*x') if gap else '*'}{gap}{b}", a * b
        else:
            left, result = f"{a * b}{gap}/{gap}{b}", a
    return f"{left} =", f" {result}\n"
