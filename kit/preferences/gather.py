"""Preferences of any source, told apart by its content, whatever problems and base they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from kit.config import DataConfig
from kit.preferences.gathered import PreferenceData
from kit.preferences.judged import pairs_of_judge
from kit.preferences.records import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    LabelledCompletion,
    PreferencePair,
    Row,
)
from kit.preferences.sampled import Sampled, sampled_in_evaluation, sampled_in_run
from kit.preferences.sources import labelled_of_rows, pairs_of_rows, read_rows, unpaired
from kit.preferences.verdicts import PER_PROBLEM, labelled_of_verdicts, pairs_of_verdicts
from kit.preferences.voted import labelled_of_votes, pairs_of_votes
from kit.runs import RunFolder

Kind: TypeAlias = Literal["votes", "samples", "evaluation", "judge", "preferences"]

# columns that nothing else has; of an evaluation and a judge either of their two files may be named
_COLUMNS: tuple[tuple[Kind, set[str]], ...] = (
    ("votes", {"left", "right", "vote", "prompt"}),
    ("samples", {"step", "question", "completion", "strict"}),
    ("evaluation", {"temperature", "sample", "question", "completion", "strict"}),
    ("evaluation", {"target", "settings", "results", "data"}),
    ("judge", {"judge", "order", "verdict", "asked"}),
    ("judge", {"judge", "kind", "left", "settings"}),
    ("preferences", {*PAIR_COLUMNS}),
    ("preferences", {*LABEL_COLUMNS}),
)


def gather_pairs(
    source: str, problems: DataConfig | None = None, per_problem: int = PER_PROBLEM
) -> PreferenceData[PreferencePair]:
    """Those of votes.jsonl, a run (what it learned from, else its samples), an evaluation, a
    `kit judge`, a file or the hub.

    `problems` give the folder in which data sets of the hub are looked for, and the system prompt
    of prompts that are plain text; of verdicts a problem gives `per_problem` pairs at most.
    """
    path, kind, rows, faults = _open(source, problems)
    if kind == "votes":
        return pairs_of_votes(path)
    if kind == "judge":
        return pairs_of_judge(path.with_suffix(".json"))
    if kind == "preferences":
        return pairs_of_rows(source, rows, faults, problems.system_prompt if problems else "")
    return pairs_of_verdicts(_sampled(kind, path), per_problem)


def gather_labelled(
    source: str, problems: DataConfig | None = None, per_problem: int = PER_PROBLEM
) -> PreferenceData[LabelledCompletion]:
    """As `gather_pairs`, for completions that are good or bad one by one."""
    path, kind, rows, faults = _open(source, problems)
    if kind == "votes":
        return labelled_of_votes(path)
    if kind == "judge":
        return unpaired(pairs_of_judge(path.with_suffix(".json")))
    if kind == "preferences":
        system_prompt = problems.system_prompt if problems else ""
        return labelled_of_rows(source, rows, faults, system_prompt)
    return labelled_of_verdicts(_sampled(kind, path), per_problem)


def _open(source: str, problems: DataConfig | None) -> tuple[Path, Kind, Sequence[Row], list[str]]:
    """The file, what it is, its rows, and why the other lines are none."""
    run = RunFolder(Path(source).expanduser())
    if run.exists:
        source = str(run.preferences if run.preferences.is_file() else run.samples)
    rows, faults = read_rows(source, problems.data_dir if problems else None)
    return Path(source).expanduser(), _kind(rows), rows, faults


def _kind(rows: Sequence[Row]) -> Kind:
    """What most rows are; preferences where they are nothing else."""
    kinds = Counter(
        next((kind for kind, columns in _COLUMNS if row.keys() >= columns), None) for row in rows
    )
    del kinds[None]
    return next((kind for kind, _ in kinds.most_common(1) if kind), "preferences")


def _sampled(kind: Kind, path: Path) -> Sampled:
    if kind == "samples":
        return sampled_in_run(path)
    return sampled_in_evaluation(path.with_suffix(".jsonl"))
