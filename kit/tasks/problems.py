"""Problems with answers: loaded, filtered, checked and split.

Every problem has the columns

    id          str, unique within its data set
    prompt      chat messages: [system,] user
    question    str, the problem as it is asked
    answer      str, the gold answer as it is compared
    solution    str, worked solution that ends in `#### <answer>`; '' where there is none
    category    str, what kind of problem it is; '' where that is not known
    difficulty  str, likewise

Files and hub data sets of the user's keep their other columns: reward functions may want them.
Everything is read into memory; nothing is written next to the data.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kit.config import DataConfig
from kit.errors import DataError
from kit.guideline import Guideline, prompted
from kit.tasks.sources import (
    KNOWN,
    SYMBOLIC,
    TASK_PREFIX,
    check_named,
    known_rows,
    own_rows,
    task_rows,
)
from kit.tasks.splits import Role
from kit.tasks.verifiers import LatexVerifier, NumberVerifier, TaskVerifier, Verifier

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

T = TypeVar("T")
VERIFIERS: dict[str, Callable[[], Verifier]] = {"number": NumberVerifier, "latex": LatexVerifier}


@dataclass(frozen=True)
class ProblemSet:
    """Problems, and what judges answers to them."""

    name: str
    problems: datasets.Dataset
    verifier: Verifier

    def select(self, indices: list[int]) -> ProblemSet:
        """Those of these positions alone."""
        return dataclasses.replace(self, problems=self.problems.select(indices))


def load_problems(config: DataConfig, split: Role | None = None, *, seed: int = 0) -> ProblemSet:
    """Load, filter and check the problems that `config` describes.

    `split` asks for a role and overrides `config.split`: 'train' or 'test', or whichever split
    there is where there is only one; for a reasoning_gym task, 'test' problems come from another
    seed. `seed` decides which problems `config.limit` keeps; of 'train' they are others than those
    that a run of this seed holds out, as far as there are others. `options.size` of a task is the
    number of problems made before `categories` selects among them.

    Raises DataError for anything that is missing, unknown, empty or malformed, and when a gold
    answer of the user's own data does not verify.
    """
    import datasets

    check_named(config.name)
    name = TASK_PREFIX + SYMBOLIC if config.name == SYMBOLIC else config.name
    own = False
    if name.startswith(TASK_PREFIX):
        rows, verifier = task_rows(name.removeprefix(TASK_PREFIX), config, split)
    elif name in KNOWN:
        rows, verifier = known_rows(name, config, split), VERIFIERS[KNOWN[name].verifier]()
    else:
        own = True
        rows, verifier = own_rows(name, config, split), VERIFIERS[config.verifier]()
    rows = _select(rows, config, seed, split)
    for row in rows:
        row.setdefault("prompt", _chat(config.system_prompt, row["question"]))
    problem_set = ProblemSet(config.name, datasets.Dataset.from_list(rows), verifier)
    if own or isinstance(verifier, NumberVerifier):  # the others take minutes; tests check them
        check_gold(problem_set)
    return problem_set


def guided(
    problem_set: ProblemSet, system_prompt: str, guidelines: Mapping[str, Guideline]
) -> ProblemSet:
    """The problems, loaded with this system prompt, as they are asked with guidelines.

    Raises DataError where they have prompts of their own, to which nothing can be added.
    """
    if not guidelines:
        return problem_set
    problems, prompt = problem_set.problems, prompted(system_prompt, guidelines)
    if problems[0]["prompt"] != _chat(system_prompt, problems[0]["question"]):
        raise DataError(
            f"{problem_set.name} has prompts of its own, to which guidelines add nothing; leave "
            f"out {', '.join(guidelines)}, or the column 'prompt'"
        )
    chats = [_chat(prompt, question) for question in problems["question"]]
    asked = problems.remove_columns("prompt").add_column("prompt", chats)
    return dataclasses.replace(problem_set, problems=asked)


def _chat(system_prompt: str, question: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


def check_gold(problem_set: ProblemSet) -> None:
    """Raise DataError unless every gold answer, given as an answer, is judged right.

    Problems of a task without a gold answer ('' there: only the task can tell) are passed over.
    """
    rows = [
        {"id": i, "answer": a}
        for i, a in zip(problem_set.problems["id"], problem_set.problems["answer"], strict=True)
        if a or not isinstance(problem_set.verifier, TaskVerifier)
    ]
    completions = [f"The answer is #### {row['answer']}" for row in rows]
    verdicts = problem_set.verifier.verify_many(completions, rows)
    wrong = [r for r, v in zip(rows, verdicts, strict=True) if not (v.strict and v.lenient)]
    if wrong:
        shown = "; ".join(f"{row['id']}: {row['answer']!r:.80}" for row in wrong[:10])
        raise DataError(
            f"{len(wrong)} of {len(rows)} gold answers of {problem_set.name} do not verify, so no "
            f"completion could be right: {shown}{'; …' if len(wrong) > 10 else ''}. Remove or "
            "repair these rows, or choose another data.verifier"
        )


def same_question(question: str) -> str:
    """Equal for questions that differ in spacing or case only."""
    return " ".join(question.split()).casefold()


def split_validation(
    problem_set: ProblemSet, size: int, seed: int
) -> tuple[ProblemSet, ProblemSet]:
    """(training, validation): `size` problems at random, whose questions training has none of.

    Questions are the same when they differ in spacing or case only; of such duplicates only the
    first can be held out, and none stays in training. Raises DataError when too few are left.
    """
    first: dict[str, int] = {}
    keys = [same_question(question) for question in problem_set.problems["question"]]
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    if size >= len(first):
        raise DataError(
            f"cannot hold out {size} validation problems of {problem_set.name}: it has "
            f"{len(first)} different questions and training needs at least one; lower "
            "data.validation_size"
        )
    held_out = dict.fromkeys(_shuffled(first, seed)[:size])
    kept = [index for index, key in enumerate(keys) if key not in held_out]
    return problem_set.select(kept), problem_set.select([first[key] for key in held_out])


def _select(
    rows: list[dict[str, Any]], config: DataConfig, seed: int, split: Role | None
) -> list[dict[str, Any]]:
    """Apply `categories`, then `limit`."""
    if config.categories is not None:
        there = sorted({row["category"] for row in rows} - {""})
        unknown = sorted(set(config.categories) - set(there))
        if unknown:
            raise DataError(
                f"{config.name} has no category {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(map(repr, there)) or 'none'}"
            )
        rows = [row for row in rows if row["category"] in config.categories]
    if config.limit is not None and config.limit < len(rows):
        if split == "train":
            # a run holds out the first of these for validation, where votes teach nothing
            place = _places((row["question"] for row in rows), seed)
            rows = sorted(rows, key=lambda row: place[same_question(row["question"])])
            rows = rows[-config.limit :]
        else:
            rows = _shuffled(rows, seed)[: config.limit]
    if not rows:
        raise DataError(f"{config.name} holds no problems")
    return rows


def _places(questions: Iterable[str], seed: int) -> dict[str, int]:
    """Where each different question stands in the order that validation problems are drawn in."""
    different = dict.fromkeys(map(same_question, questions))
    return {key: place for place, key in enumerate(_shuffled(different, seed))}


def _shuffled(items: Iterable[T], seed: int) -> list[T]:
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return shuffled
