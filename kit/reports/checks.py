"""Refuse what must not stand side by side: other bases, settings or problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from kit.errors import ResultsError
from kit.reports.evidence import Evidence, Measured

# what two results must share before their figures may stand side by side
SETTINGS = ("system_prompt", "max_new_tokens", "top_p", "seed", "split", "limit")


def check(evidence: Evidence) -> None:
    """Raises ResultsError where bases, settings or problems differ."""
    _check_base(evidence)
    for data in evidence.data:
        results = [
            measured for seeds in evidence.subjects(data).values() for measured in seeds.values()
        ]
        _check_settings(data, results)
        _check_problems(results)


def _check_base(evidence: Evidence) -> None:
    """One base model, revision and quantization in all runs and results."""
    stated: dict[str, dict[Any, Path]] = {}
    for what, value, path in _stated(evidence):
        values = stated.setdefault(what, {})
        values.setdefault(value, path)
        if len(values) > 1:
            first, where = next(iter(values.items()))
            raise ResultsError(
                f"a report compares adapters of one base, but its {what} is {first} in {where} "
                f"and {value} in {path}; report them separately"
            )


def _stated(evidence: Evidence) -> Iterator[tuple[str, Any, Path]]:
    for run in evidence.runs:
        yield "id", run.config.model.id, run.path
        yield "quantization", run.config.model.quantization, run.path
        base = run.description.get("base") or {}
        if "revision" in base:  # a run that never started knows none
            yield "revision", base["revision"], run.path
    for data in evidence.data:
        for seeds in evidence.subjects(data).values():
            for measured in seeds.values():
                target, path = measured.result.record["target"], measured.result.path
                yield "id", measured.result.base, path
                yield "quantization", target.get("quantization"), path
                yield "revision", target.get("base_revision"), path


def _check_settings(data: str, results: list[Measured]) -> None:
    first = results[0].result
    for measured in results:
        result = measured.result
        for setting in SETTINGS:
            expected, got = first.settings.get(setting), result.settings.get(setting)
            if expected != got:
                raise ResultsError(
                    f"{data} was evaluated with {setting} {expected!r} in {first.path} but {got!r} "
                    f"in {result.path}; evaluate all arms with the same settings"
                )


def _check_problems(results: list[Measured]) -> None:
    """Every arm must have seen the same problems: comparisons are paired."""
    first: dict[float, tuple[pd.Index, Path]] = {}
    for measured in results:
        for temperature in measured.temperatures:
            ids, path = measured.problems(temperature).index, measured.result.path
            expected, where = first.setdefault(temperature, (ids, path))
            if not ids.equals(expected):
                odd = ids.symmetric_difference(expected)
                raise ResultsError(
                    f"{path} and {where} hold different problems ({len(odd)} are in one of them "
                    f"only, the first is {odd[0]!r}); evaluate all arms on the same problems"
                )
