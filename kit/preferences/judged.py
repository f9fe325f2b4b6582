"""What a judge model decided, as preferences: pairs that came out alike in both orders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kit.errors import DataError
from kit.preferences.gathered import EQUAL_TEXTS, PreferenceData
from kit.preferences.judge import NOT_JUDGED, read_judged
from kit.preferences.records import PreferencePair
from kit.preferences.sampled import Sampled, sampled_in_evaluation

_LEFT_OUT = {
    "ties": "ties",
    "inconsistent": "pairs on which the two orders disagree",
    NOT_JUDGED: "pairs without two verdicts",
}


def pairs_of_judge(summary: Path) -> PreferenceData[PreferencePair]:
    """The decided pairs of a `kit judge` of two results; `summary` is its .json.

    Raises ResultsError where the judgements or the results they are about are not there any more,
    DataError for results that are not about one prompt.
    """
    judged = read_judged(summary)
    left, right = map(sampled_in_evaluation, (judged.left, judged.right))
    _check_alike(summary, left, right)
    pairs, dropped = [], Counter[str]()
    for pair, outcome in judged.outcomes:
        if outcome in _LEFT_OUT:
            dropped[_LEFT_OUT[outcome]] += 1
        elif pair.left == pair.right:
            dropped[EQUAL_TEXTS] += 1
        else:
            sides = (left, right) if outcome == "left" else (right, left)
            texts = (pair.left, pair.right) if outcome == "left" else (pair.right, pair.left)
            row = {"id": pair.key[0], "question": pair.question}
            origin = left.provenance(row, "judge", judged.judge, *(side.writer for side in sides))
            pairs.append(PreferencePair(left.prompt(row), *texts, origin))
    return PreferenceData(str(summary), tuple(pairs), dropped)


def _check_alike(summary: Path, left: Sampled, right: Sampled) -> None:
    for what, one, other in (
        ("system prompts", left.problems.system_prompt, right.problems.system_prompt),
        ("bases", left.base, right.base),
    ):
        if one != other:
            raise DataError(
                f"{summary} is about results of different {what} ({one!r} and {other!r}), and what "
                "is learned from must be of one; judge two results that share it"
            )
