"""What is learned from preferences: read from any source, and refused where it must not be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from kit.config import READERS, DataConfig
from kit.errors import DataError
from kit.preferences.gather import gather_labelled, gather_pairs
from kit.preferences.gathered import UNREADABLE, PreferenceData, is_of_test_split, tell
from kit.preferences.records import Example, LabelledCompletion, PreferencePair, asked_in
from kit.preferences.verdicts import ONE_SIDED
from kit.preferences.voted import BOTH_BAD
from kit.tasks.problems import load_problems, same_question
from kit.tasks.questions import Questions

_ADVICE = {
    BOTH_BAD: "give more votes for a side",
    ONE_SIDED: "let each problem have several answers: kit evaluate … temperature=0.8 samples=8",
    UNREADABLE: "mend the lines: docs/feedback.md shows one",
}


def read_pairs(
    source: str | Path,
    *,
    problems: DataConfig | None = None,
    test_problems: bool = False,
    base: str | None = None,
    other_bases: bool = False,
) -> PreferenceData[PreferencePair]:
    """The pairs of any source that may be trained on.

    `problems` are those of the run: its system prompt is put before prompts that are plain text,
    its `data_dir` is where data sets of the hub are looked for, and its test problems are refused,
    known by their question where a preference does not say which problem it is of. `base` is the id
    of the model that is trained.

    Raises DataError, with what to do, for a source that cannot be read or has no pair; for pairs on
    test problems unless `test_problems`; for pairs of another base unless `other_bases`.
    """
    data = gather_pairs(str(source), problems)
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
    labels = {example.label for example in data.examples}
    if len(labels) == 1:
        one, other = ("true", "false") if True in labels else ("false", "true")
        raise DataError(
            f"all {len(data.examples)} completions of {source} are labelled {one}; kto learns from "
            f"the difference: add some that are {other}"
        )
    _check(data, problems, test_problems, base, other_bases)
    return data


def on_test_problems(
    data: PreferenceData[Example], problems: DataConfig | None
) -> tuple[Example, ...]:
    """The examples on problems of a test split: by what they say, and by what is asked in any turn
    where they do not say that it is of the training split."""
    unknown = not all(map(_is_of_training_split, data.examples))
    questions = Questions(held_out_questions(problems) if problems and unknown else ())
    return tuple(example for example in data.examples if _is_test(example, questions))


def of_other_bases(data: PreferenceData[Example], base: str) -> tuple[Example, ...]:
    """The examples that another base than this has written, as far as they say."""
    return tuple(e for e in data.examples if e.provenance and e.provenance.base not in (None, base))


def held_out_questions(config: DataConfig) -> frozenset[str]:
    """Questions of the test split that training has none of; a set of one split has none."""
    if Path(config.name).suffix.lower() in READERS:
        return frozenset()
    asked = config.model_copy(update={"limit": None})
    test, train = (
        frozenset(map(same_question, load_problems(asked, role).problems["question"]))
        for role in ("test", "train")
    )
    return test - train


def _is_test(example: PreferencePair | LabelledCompletion, questions: Questions) -> bool:
    if is_of_test_split(example):
        return True
    return not _is_of_training_split(example) and asked_in(example.prompt, questions)


def _is_of_training_split(example: PreferencePair | LabelledCompletion) -> bool:
    return example.provenance is not None and example.provenance.split == "train"


def check_any(data: PreferenceData[Any]) -> None:
    """DataError, with the reasons and what to do, where nothing is left to learn from."""
    if data.examples:
        return
    advice = next((said for what, said in _ADVICE.items() if what in data.dropped), None)
    raise DataError(
        f"{data.source} has no preference to learn from ({data.left_out or 'it is empty'}); "
        f"{advice or 'name another source'}"
    )


def _check(
    data: PreferenceData[Any],
    problems: DataConfig | None,
    test_problems: bool,
    base: str | None,
    other_bases: bool,
) -> None:
    check_any(data)
    if base and not other_bases and (others := of_other_bases(data, base)):
        listed = tell(Counter(str(example.provenance.base) for example in others), "of")
        raise DataError(
            f"{data.source} has answers of another base than {base} ({listed}); leave them out "
            f"with: kit preferences --from {data.source} --for RECIPE --output FILE, or train on "
            "them with preferences.other_bases=true"
        )
    if not test_problems and (found := on_test_problems(data, problems)):
        raise DataError(
            f"{len(found)} of {len(data.examples)} preferences of {data.source} are on test "
            "problems, on which nothing could be measured afterwards; leave them out with: kit "
            f"preferences --from {data.source} --for RECIPE --output FILE, or train on them with "
            "preferences.test_problems=true"
        )
