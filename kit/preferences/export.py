"""`kit preferences`: preferences of several sources put into one file, in TRL's format."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kit.config import Config
from kit.evaluation.results import claimed, writing
from kit.files import write_atomically
from kit.preferences.data import check_any, of_other_bases, on_test_problems
from kit.preferences.gather import gather_labelled, gather_pairs
from kit.preferences.gathered import (
    THERE_ALREADY,
    PreferenceData,
    count_contradictions,
    distinct,
)
from kit.preferences.records import Example
from kit.preferences.verdicts import PER_PROBLEM

Gathered = PreferenceData[Any]


def export(
    sources: Sequence[str],
    output: Path,
    *,
    labelled: bool = False,
    per_problem: int = PER_PROBLEM,
    recipe: Config | None = None,
) -> Gathered:
    """Write the preferences of all sources to a new file, and print what each holds.

    `labelled`: completion by completion with a label, not in pairs. `recipe`: what training by it
    would refuse (test problems, answers of another base) is left out. Raises DataError for a source
    that cannot be read or where nothing is left, ResultsError where `output` exists.
    """
    gather: Callable[..., Gathered] = gather_labelled if labelled else gather_pairs
    problems = recipe.data if recipe else None
    found = [gather(source, problems, per_problem) for source in sources]
    merged = _merged(found, str(output))
    if recipe:
        merged = _allowed(merged, recipe)
    for data in found if len(found) > 1 else []:
        print("\n".join(data.words[:3]))
    check_any(replace(merged, source=", ".join(sources)))
    write_preferences(merged.examples, output)
    print("\n".join(merged.words))
    return merged


def write_preferences(examples: Sequence[Example], output: Path) -> None:
    """One line each, into a new file; ResultsError where it exists or cannot be written."""
    lines = (json.dumps(example.line(), ensure_ascii=False) + "\n" for example in examples)
    busy = f"another process is writing {output}; name a new file"
    with claimed(output, busy), writing(output, "; name a new file"):
        if os.path.lexists(output):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        write_atomically(output, "".join(lines))


def _merged(found: Sequence[Gathered], source: str) -> Gathered:
    """All in one, each preference once, whatever it comes from."""
    every = [example for data in found for example in data.examples]
    kept = distinct(every)
    dropped = sum((data.dropped for data in found), Counter[str]())
    dropped += Counter({THERE_ALREADY: len(every) - len(kept)})
    contradictory = sum(data.contradictory for data in found)
    return PreferenceData(
        source,
        tuple(kept),
        dropped,
        max(contradictory, count_contradictions(kept)),
        next((data.first_fault for data in found if data.first_fault), ""),
    )


def _allowed(data: Gathered, recipe: Config) -> Gathered:
    """Without what training by the recipe would refuse."""
    base, takes = recipe.model.id, recipe.preferences
    for what, is_taken, find in (
        ("on test problems", takes.test_problems, partial(on_test_problems, problems=recipe.data)),
        (f"of another base than {base}", takes.other_bases, partial(of_other_bases, base=base)),
    ):
        refused = set() if is_taken else set(find(data))
        if refused:
            kept = tuple(example for example in data.examples if example not in refused)
            dropped = data.dropped + Counter({what: len(data.examples) - len(kept)})
            data = replace(data, examples=kept, dropped=dropped)
    return data
