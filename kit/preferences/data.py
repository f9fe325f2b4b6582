"""What is learned from preferences: read from any source, and refused where it must not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kit.config import DataConfig
from kit.errors import DataError
from kit.preferences.gathered import TEST_SPLIT, UNREADABLE, PreferenceData
from kit.preferences.records import (
    Example,
    LabelledCompletion,
    PreferencePair,
    Row,
    question_of,
)
from kit.preferences.sources import labelled_of_rows, pairs_of_rows, read_rows
from kit.preferences.voted import BOTH_BAD, labelled_of_votes, pairs_of_votes
from kit.tasks.problems import load_problems, same_question

_VOTE = {"left", "right", "vote", "prompt"}  # columns that only votes.jsonl has


def read_pairs(
    source: str | Path,
    *,
    problems: DataConfig | None = None,
    test_problems: bool = False,
    base: str | None = None,
    other_bases: bool = False,
) -> PreferenceData[PreferencePair]:
    """The pairs that may be trained on: of votes.jsonl, a preference file, or the hub.

    `problems` are those of the run: its system prompt is put before prompts that are plain text,
    its `data_dir` is where data sets of the hub are looked for, and its test problems are refused,
    known by their question where a preference does not say which problem it is of. `base` is the id
    of the model that is trained.

    Raises DataError, with what to do, for a source that cannot be read or has no pair; for pairs on
    test problems unless `test_problems`; for pairs of another base unless `other_bases`.
    """
    data = gather_pairs(str(source), problems)
    _check_any(data)
    _check(data, problems, test_problems, base, other_bases)
    return data


def read_labelled(
    source: str | Path,
    *,
    problems: DataConfig | None = None,
    test_problems: bool = False,
    base: str | None = None,
    other_bases: bool = False,
) -> PreferenceData[LabelledCompletion]:
    """As `read_pairs`, for completions that are good or bad one by one.

    Of a pair, chosen is good and rejected is not. DataError too where all have one label.
    """
    data = gather_labelled(str(source), problems)
    _check_any(data)
    labels = {example.label for example in data.examples}
    if len(labels) == 1:
        one, other = ("true", "false") if True in labels else ("false", "true")
        raise DataError(
            f"all {len(data.examples)} completions of {source} are labelled {one}; kto learns from "
            f"the difference: add some that are {other}"
        )
    _check(data, problems, test_problems, base, other_bases)
    return data


def gather_pairs(source: str, problems: DataConfig | None = None) -> PreferenceData[PreferencePair]:
    """As `read_pairs`, whatever problems and base they are of, and be it none."""
    rows, unreadable = read_rows(source, problems.data_dir if problems else None)
    if _are_votes(rows):
        return pairs_of_votes(Path(source).expanduser())
    return pairs_of_rows(source, rows, unreadable, problems.system_prompt if problems else "")


def gather_labelled(
    source: str, problems: DataConfig | None = None
) -> PreferenceData[LabelledCompletion]:
    """As `read_labelled`, whatever problems and base they are of, and be it none."""
    rows, unreadable = read_rows(source, problems.data_dir if problems else None)
    if _are_votes(rows):
        return labelled_of_votes(Path(source).expanduser())
    return labelled_of_rows(source, rows, unreadable, problems.system_prompt if problems else "")


def on_test_problems(
    data: PreferenceData[Example], problems: DataConfig | None
) -> tuple[Example, ...]:
    """The examples on problems of a test split: by what they say, else by their question."""
    unknown = any(not (e.provenance and e.provenance.split) for e in data.examples)
    questions = held_out_questions(problems) if problems and unknown else frozenset()
    return tuple(example for example in data.examples if _is_test(example, questions))


def held_out_questions(config: DataConfig) -> frozenset[str]:
    """Questions of the test split that training has none of; a set of one split has none."""
    if Path(config.name).suffix:
        return frozenset()
    asked = config.model_copy(update={"limit": None})
    test, train = (
        frozenset(map(same_question, load_problems(asked, role).problems["question"]))
        for role in ("test", "train")
    )
    return test - train


def _is_test(example: PreferencePair | LabelledCompletion, questions: Collection[str]) -> bool:
    origin = example.provenance
    if origin and origin.split:
        return origin.split == TEST_SPLIT
    return same_question(question_of(example.prompt)) in questions


def _are_votes(rows: Sequence[Row]) -> bool:
    return any(row.keys() >= _VOTE for row in rows)


def _check_any(data: PreferenceData[Any]) -> None:
    """DataError, with the reasons, where nothing is left to learn from."""
    if data.examples:
        return
    listed = ", ".join(f"{count} {what}" for what, count in data.dropped.items()) or "it is empty"
    advice = "give more votes for a side" if BOTH_BAD in data.dropped else "name another source"
    if set(data.dropped) == {UNREADABLE}:
        advice = "mend the lines: docs/feedback.md shows one"
    raise DataError(f"{data.source} has no preference to learn from ({listed}); {advice}")


def _check(
    data: PreferenceData[Any],
    problems: DataConfig | None,
    test_problems: bool,
    base: str | None,
    other_bases: bool,
) -> None:
    if base and not other_bases:
        _check_base(data, base)
    if not test_problems and (found := on_test_problems(data, problems)):
        raise DataError(
            f"{len(found)} of {len(data.examples)} preferences of {data.source} are on test "
            "problems, on which nothing could be measured afterwards; leave them out with: kit "
            f"preferences --from {data.source} --leave-out-test --output FILE, or train on them "
            "with preferences.test_problems=true"
        )


def _check_base(data: PreferenceData[Any], base: str) -> None:
    bases = Counter(e.provenance.base for e in data.examples if e.provenance and e.provenance.base)
    if others := {name: count for name, count in bases.items() if name != base}:
        listed = ", ".join(f"{count} of {name}" for name, count in others.items())
        raise DataError(
            f"{data.source} has answers of another base than {base} ({listed}); "
            f"leave them out with: kit preferences --from {data.source} --base {base} --output "
            "FILE, or train on them with preferences.other_bases=true"
        )
