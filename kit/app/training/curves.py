"""Training curves of several runs, as the lines that its plots are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kit.app.library.runs import Run, number, step_of
from kit.metrics import Curve

Points = list[tuple[int, float, str]]  # step, value as it is drawn, what was recorded
# told apart on the light and on the dark page: contrast of at least 3 with both
COLOURS = (
    *("#0077BB", "#D55E00", "#009E73", "#CC79A7", "#9A7B1F", "#2B95C9"),
    *("#E0447B", "#6B8E00", "#9B6BD3", "#808080", "#D04A3C", "#1A9494"),
)


def colours(runs: Sequence[str]) -> dict[str, str]:
    """One colour per run, the same in all plots; they repeat after twelve."""
    return {run: COLOURS[i % len(COLOURS)] for i, run in enumerate(runs)}


def draw(
    runs: Mapping[str, Run],
    curve: Curve,
    window: int,
    against: str | None = None,
    steps: tuple[float, float] = (0, math.inf),
) -> dict[str, Points]:
    """A metric of runs by name, in the order of the steps; runs without it are left out.

    Values are moving means over `window` recorded steps, but held-out accuracy is not smoothed: it
    is of many problems and seldom measured. With `against`, another run's are taken off them where
    it has recorded the same step. Those of `steps` are drawn, from the first to the last of them.
    """
    recorded = {name: _points(run, curve) for name, run in runs.items()}
    lines = {name: _drawn(points, curve, window) for name, points in recorded.items() if points}
    base = {step: value for step, value, _ in lines.get(against or "", [])}
    if base:
        lines = {
            name: [(step, value - base[step], said) for step, value, said in line if step in base]
            for name, line in lines.items()
            if name != against
        }
    first, last = steps
    drawn = {n: [p for p in line if first <= p[0] <= last] for n, line in lines.items()}
    return {name: line for name, line in drawn.items() if line}


def is_log(curve: Curve) -> bool:
    """Metrics that span orders of magnitude when training goes wrong; decided once for all runs,
    so that a plot keeps its scale while a run is written."""
    return curve.is_log or curve.metric == "policy/k3_to_base"


def _drawn(points: Mapping[int, float], curve: Curve, window: int) -> Points:
    """Step, value as it is drawn, and what was recorded."""
    window = 1 if curve.metric.startswith("validation/") else window
    values = list(points.values())
    shown = []
    for i, (step, value) in enumerate(points.items()):
        near = values[max(0, i - window // 2) : i + (window - 1) // 2 + 1]
        mean = sum(near) / len(near)
        shown.append((step, math.log10(mean) if is_log(curve) else mean, f"{value:.4g}"))
    return shown


def _points(run: Run, curve: Curve) -> dict[int, float]:
    """Values by step, in order; of a step recorded twice the later line counts."""
    recorded = {
        step: value
        for record in run.metrics
        if (step := step_of(record)) is not None and (value := _value(record, curve)) is not None
    }
    return dict(sorted(recorded.items()))


def _value(record: dict[str, Any], curve: Curve) -> float | None:
    """Shares in percent; nothing that a logarithmic scale has no place for."""
    value = number(record.get(curve.metric))
    if value is None or (is_log(curve) and value <= 0):
        return None
    return 100 * value if curve.is_share else value
