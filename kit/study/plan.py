"""What a study is about to do, in words: the grid, how long it takes, and what is done first."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from kit.errors import ConfigError
from kit.evaluation.settings import EvalSettings
from kit.study.cells import Cell
from kit.study.declared import StudySettings
from kit.study.folder import StudyFolder, times_of

ENOUGH_SEEDS = 5  # as kit.evaluation.stats has it, which takes seconds to import
UNITS = {"h": 3600, "m": 60, "s": 1}


def plan(folder: StudyFolder, budget: float | None = None) -> str:
    """The grid, what is done and what is left, in the order in which it comes."""
    settings, pending = folder.declaration.settings, folder.pending()
    tuning, fresh = len(settings.tuning.seeds), len(settings.seeds)
    lines = [
        f"{folder.declaration.path}: {len(folder.declaration.configs)} arms x "
        f"{len(settings.staleness)} stalenesses x (rates x {_count(tuning, 'tuning seed')} + "
        f"{_count(fresh, 'fresh seed')}) = {len(folder.cells)} runs",
        f"arms: {', '.join(folder.declaration.configs)}",
        f"in this order: {_grid(settings)}; of the rates the middle first",
        f"tuned by: the highest mean {settings.tuning.measure} accuracy on "
        f"{folder.declaration.base.data.validation_size} validation problems at the end, of equals "
        "the smaller rate",
        f"evaluated: fresh seeds alone, {_evaluation(settings.evaluation)}",
        f"{len(folder.cells) - len(pending)} runs are done, {len(pending)} are left; "
        + _time(folder, pending, budget),
    ]
    if fresh < ENOUGH_SEEDS:
        lines.append(
            f"{_count(fresh, 'fresh seed')}: nothing can be claimed of a method from fewer "
            f"than {ENOUGH_SEEDS}, and the report will claim nothing"
        )
    return "\n".join(lines)


def stages(pending: Sequence[Cell]) -> list[str]:
    """What is left, in the order in which it comes."""
    counts = Counter((cell.staleness, cell.is_fresh) for cell in pending)
    return [
        f"{_count(count, 'fresh run' if is_fresh else 'tuning run')} at staleness {staleness}"
        for (staleness, is_fresh), count in counts.items()
    ]


def duration(seconds: float) -> str:
    """`2 h 10 min`, `12 min`, `40 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def parse_duration(text: str) -> float:
    """Seconds of `3h`, `90m`, `1h30m`; ConfigError for anything else, 0 too."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"a budget is a time such as 3h, 90m or 1h30m, got {text!r}")
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not seconds:
        raise ConfigError(f"a budget is a time above 0, such as 90m, got {text!r}")
    return seconds


def _time(folder: StudyFolder, pending: Sequence[Cell], budget: float | None) -> str:
    """How long it takes, and what a budget is enough for."""
    each = times_of(folder, pending)
    if None in each:
        return "how long they take is known once one of each staleness is done"
    ends = list(accumulate(filter(None, each)))
    whole = ends[-1] if ends else 0.0
    said = f"about {duration(whole)} for one process"
    if budget is None or whole <= budget:
        return said
    first = pending[: bisect_right(ends, budget)]
    return f"{said}; in {duration(budget)} these come first: {', '.join(stages(first)) or 'none'}"


def _grid(settings: StudySettings) -> str:
    return ", ".join(
        f"staleness {staleness} ({_count(settings.rollouts_at(staleness), 'rollout')}, "
        f"{_count(staleness * settings.rollouts_at(staleness), 'update')}; rates "
        f"{_listed(settings.rates_at(staleness))})"
        for staleness in settings.staleness
    )


def _evaluation(settings: EvalSettings) -> str:
    limit = "all" if settings.limit is None else str(settings.limit)
    said = f"{limit} test problems at temperature {_listed(settings.temperature)}"
    if max(settings.temperature) > 0:
        said += f", {_count(settings.samples, 'sample')} above 0"
    return said


def _count(number: int, what: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number} {what}{'s' * (number != 1)}"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
