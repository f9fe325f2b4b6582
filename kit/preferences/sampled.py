"""Completions of one model that a run or an evaluation has left, with what they were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kit.config import READERS, DataConfig
from kit.errors import ResultsError
from kit.evaluation.results import Result, Row, read_result, read_rows
from kit.evaluation.subjects import data_config
from kit.preferences.records import Prompt, Provenance, Writer
from kit.preferences.votes import Message
from kit.reading import read_metrics
from kit.runs import RunFolder
from kit.tasks.problems import load_problems
from kit.tasks.sources import KNOWN, is_task
from kit.tasks.splits import TEST_SPLIT, Role

# of a line of samples.jsonl
_SAMPLE_TYPES: dict[str, type] = {
    **{"step": int, "id": str, "question": str, "completion": str},
    **{"strict": bool, "truncated": bool},
}


@dataclass(frozen=True)
class Sampled:
    """Rows have id, question, completion, strict and truncated at least."""

    path: Path
    rows: Sequence[Row]
    unreadable: int
    problems: DataConfig  # with the system prompt they were asked with
    split: str | None
    base: str
    writer: Writer

    def prompt(self, row: Row) -> Prompt:
        """The chat that was answered."""
        own = self._own_chats.get(str(row["id"]))
        if own is not None:
            return own
        system = self.problems.system_prompt
        before = (Message("system", system),) if system else ()
        return (*before, Message("user", row["question"]))

    def provenance(self, row: Row, kind: Any, by: str, *writers: Writer) -> Provenance:
        """Of a preference that `by` had on this row's problem, between what `writers` wrote."""
        return Provenance(
            kind=kind,
            by=by,
            base=self.base,
            writers=writers,
            data=self.problems.name,
            split=self.split,
            problem=str(row["id"]),
        )

    @cached_property
    def _own_chats(self) -> dict[str, Prompt]:
        """The prompts of a data set of the user's, which may be chats, by id."""
        name = self.problems.name
        if name in KNOWN or is_task(name):
            return {}
        role: Role | None = None if Path(name).suffix.lower() in READERS else _role(self.split)
        loaded = load_problems(self.problems.model_copy(update={"limit": None}), role)
        rows = zip(loaded.problems["id"], loaded.problems["prompt"], strict=True)
        return {id_: tuple(Message(m["role"], m["content"]) for m in chat) for id_, chat in rows}


def sampled_in_run(path: Path) -> Sampled:
    """What a run has written to its samples.jsonl; RunError or ConfigError without its settings."""
    config = RunFolder(path.parent).load_config()
    faults: list[str] = []
    records = read_metrics(path, faults)
    rows = [record for record in records if _is_sample(record)]
    return Sampled(
        path=path,
        rows=rows,
        unreadable=len(faults) + len(records) - len(rows),
        problems=config.data.model_copy(update={"system_prompt": config.system_prompt}),
        split=config.data.split or "train",
        base=config.model.id,
        writer=Writer(RunFolder(path.parent).label, None),  # it changed from step to step
    )


def sampled_in_evaluation(path: Path) -> Sampled:
    """What `kit evaluate` has written to a .jsonl and the .json beside it.

    Raises ResultsError where they are damaged, or are not of one evaluation.
    """
    result = read_result(path.with_suffix(".json"))
    settings, target = result.settings, result.record["target"]
    return Sampled(
        path=path,
        rows=read_rows(path),
        unreadable=0,
        problems=_problems(result),
        split=settings.get("split", TEST_SPLIT),
        base=result.base,
        writer=Writer(result.name, target.get("adapter_sha256")),
    )


def _problems(result: Result) -> DataConfig:
    """The data set as it was evaluated on, from where the evaluated run had its own."""
    run, settings = result.record["target"].get("run"), result.settings
    trained_on = [RunFolder(run).load_config().data] if run and RunFolder(run).exists else []
    found = data_config(result.data, *trained_on)
    asked = {**(settings.get("problems") or {}), "system_prompt": settings.get("system_prompt", "")}
    try:
        return DataConfig.model_validate(found.model_dump() | asked | {"limit": None})
    except ValueError:
        raise ResultsError(f"{result.path}: its settings are not usable; make it anew") from None


def _role(split: str | None) -> Role:
    return TEST_SPLIT if split == TEST_SPLIT else "train"


def _is_sample(record: dict[str, Any]) -> bool:
    return all(type(record.get(name)) is kind for name, kind in _SAMPLE_TYPES.items())
