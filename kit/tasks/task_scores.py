"""Score an answer to a reasoning-gym task: by the task's own scorer, and not where that is fooled.

Tasks whose scorer evaluates the answer are handed what `kit.tasks.task_grammar` has read in it.
Some take what they should not: NaN, which is near every number; any four numbers for a game with
four given ones; every answer for yes; the first number of several; what is denied.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from kit.tasks.answers import parse_number
from kit.tasks.protocol import Reply
from kit.tasks.task_grammar import EVALUATING_TASKS, rewrite

NEAR = Fraction(1, 100)  # relative: tasks round their golds to as much
_DENIALS = re.compile(r"\b(?:not|isn't|never|false|wrong|incorrect|or)\b")


def judge_task(dataset: Any, entry: Any, answer: str) -> Reply:
    """Score an answer by its reasoning-gym data set; right is a score of exactly 1."""
    task = entry["metadata"]["source_dataset"]
    rewritten = rewrite(task, answer, entry) if task in EVALUATING_TASKS else answer
    if rewritten is None:
        return Reply(right=False, read=False)
    right = bool(dataset.score_answer(rewritten, entry) == 1.0)
    return Reply(right and _stands(task, rewritten, entry), read=True)


def _stands(task: str, answer: str, entry: Any) -> bool:
    """Whether an answer is right that the task's own scorer takes for right."""
    gold = str(entry["answer"])
    if task in ("complex_arithmetic", "number_sorting"):
        return "nan" not in answer.lower()
    if task == "puzzle24":
        numbers = sorted(map(int, re.findall("[0-9]+", answer)))
        return numbers == sorted(entry["metadata"]["numbers"])
    if task == "game_of_life_halting":
        return answer.strip().lower() == gold.lower()
    return _says_no_other_number(answer, gold) and _denials(answer) <= _denials(gold)


def _says_no_other_number(answer: str, gold: str) -> bool:
    """Where the gold answer is a number: whether the answer is it, or near it where it has places.

    Several scorers take the first number of whatever they are given.
    """
    if (wanted := parse_number(gold)) is None:
        return True
    if (value := parse_number(answer)) is None:
        return False
    is_near = abs(value - wanted) <= NEAR * abs(wanted)
    return value == wanted or (wanted.denominator != 1 and is_near)


def _denials(text: str) -> int:
    """How many words deny; scorers look for the gold answer inside."""
    return len(_DENIALS.findall(text.lower()))
