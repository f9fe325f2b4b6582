"""Problems whose answers were compared: voted on, or in preferences that a run was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kit.errors import ConfigError, DataError
from kit.reading import parse_json
from kit.runs import RunFolder
from kit.tasks.problems import ProblemSet, same_question


def compared_ids(questions: frozenset[str], problem_set: ProblemSet) -> list[str]:
    """Ids of the problems that ask one of these questions, in their order."""
    rows = problem_set.problems
    return [
        id_
        for id_, question in zip(rows["id"], rows["question"], strict=True)
        if same_question(question) in questions
    ]


def leave_out(problem_set: ProblemSet, sources: Iterable[str]) -> ProblemSet:
    """The problems that no source has compared answers to; DataError where none is left."""
    questions = frozenset[str]().union(*map(questions_of, sources))
    left_out = set(compared_ids(questions, problem_set))
    kept = [i for i, id_ in enumerate(problem_set.problems["id"]) if id_ not in left_out]
    if not kept:
        raise DataError(
            f"all {len(left_out)} problems of {problem_set.name} are in leave_out; evaluate on "
            "other problems, or raise limit"
        )
    return problem_set.select(kept)


def questions_of(source: str) -> frozenset[str]:
    """What is asked in votes.jsonl, in a preference file of JSON lines, or in what a run learned.

    Lines that are none are passed over. Raises ConfigError where nothing is asked.
    """
    path = Path(source).expanduser()
    if RunFolder(path).exists:
        path = RunFolder(path).preferences
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path} of leave_out: {error.strerror}") from None
    found = frozenset(map(same_question, _questions(lines)))
    if not found:
        raise ConfigError(
            f"{path} of leave_out has no prompt in any line; name votes.jsonl, a file of kit "
            "preferences, or a run that was trained on preferences"
        )
    return found


def _questions(lines: Iterable[bytes]) -> Iterator[str]:
    """What the user said last in the prompt of each line."""
    for line in lines:
        try:
            prompt = parse_json(line)["prompt"]
            question: Any = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(question, str):
            yield question
