"""Training curves of several runs, as the tables that the page's plots are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kit.app.library.runs import Run, number, step_of
from kit.reports.curves import CURVES, Curve

COSTS = (
    Curve("reward/zero_std_fraction", "Groups without a signal", "% of groups", is_share=True),
    Curve("time/step_seconds", "Time per step", "seconds"),
    Curve("memory/peak_mb", "Peak memory", "MiB"),
)
SHOWN = (*CURVES, *COSTS)
NOTES = {
    "reward/mean": "Mean total reward of the step's completions: rises, with noise.",
    "accuracy/strict": "Right, and in the form '#### <number>', of the step's completions.",
    "accuracy/lenient": "Right wherever the answer stands; if only strict rises, the model has "
    "learned the form and not the mathematics.",
    "validation/strict": "Greedy answers to problems never trained on, in the strict form; this "
    "usually decides which adapter is kept as the best.",
    "validation/lenient": "Greedy answers to problems never trained on, right wherever the answer "
    "stands.",
    "completion/mean_tokens": "Steady is healthy; a fall to a few tokens means that reasoning was "
    "dropped.",
    "completion/truncated_share": "Cut off at rollout.max_new_tokens: better below 5 %.",
    "policy/entropy": "How undecided the policy is: falls slowly; a collapse to 0 ends "
    "exploration.",
    "ratio/max": "By how much training has raised a token's probability at most, at the step's "
    "last update: near 1 from the sampler, wider from the base.",
    "ratio/min": "By how much training has lowered a token's probability at most, at the step's "
    "last update.",
    "ratio/effective_sample_share": "Near 100 % all tokens count alike; far below, a few dominate "
    "the update.",
    "ratio/zero_gradient_share": "Tokens that the trust region leaves without gradient: what clip "
    "silences; 0 for pspo and noclip.",
    "policy/k3_to_base": "Estimate of KL(current ‖ base): how far the policy has moved; rises "
    "slowly.",
    "update/grad_norm": "Of one order of magnitude when all is well.",
    "sft/loss": "Negative log-likelihood of the worked solutions: falls.",
    "reward/zero_std_fraction": "Groups whose rewards are all equal teach nothing: near 100 % the "
    "problems are too easy or too hard.",
    "time/step_seconds": "The whole step; of runs that train together, their own share of it.",
    "memory/peak_mb": "Highest in each step: of the GPU, or of the process on the CPU.",
}
# told apart on the light and on the dark page: contrast of at least 3 with both
COLOURS = (
    *("#0077BB", "#D55E00", "#009E73", "#CC79A7", "#9A7B1F", "#2B95C9"),
    *("#E0447B", "#6B8E00", "#9B6BD3", "#808080", "#D04A3C", "#1A9494"),
)


def colours(runs: Sequence[str]) -> dict[str, str]:
    """One colour per run, the same in all plots; they repeat after twelve."""
    return {run: COLOURS[i % len(COLOURS)] for i, run in enumerate(runs)}


def unit_of(curve: Curve) -> str:
    """What the values of `draw` are counted in."""
    return f"log10 of {curve.unit}" if _is_log(curve) else curve.unit


def draw(runs: Mapping[str, Run], curve: Curve, window: int) -> pd.DataFrame | None:
    """A metric of runs by name: step, run, value (as drawn) and recorded (as text).

    Values are moving means over `window` recorded steps, but held-out accuracy is not smoothed: it
    is of many problems and seldom measured. A run without the metric has one row without a value,
    so that the runs in a plot stay the same while they are written. None where no run has it.
    """
    points = {name: _points(run, curve) for name, run in runs.items()}
    first = min((step for recorded in points.values() for step in recorded), default=None)
    if first is None:
        return None
    rows = [
        (step, name, value)
        for name, recorded in points.items()
        for step, value in (recorded or {first: math.nan}).items()
    ]
    table = pd.DataFrame(rows, columns=["step", "run", "value"])
    table["recorded"] = ["" if math.isnan(v) else f"{v:.4g}" for v in table["value"]]
    if window > 1 and not curve.metric.startswith("validation/"):
        by_run = table.groupby("run", sort=False)["value"]
        table["value"] = by_run.transform(
            lambda values: values.rolling(window, center=True, min_periods=1).mean()
        )
    if _is_log(curve):
        table["value"] = table["value"].map(math.log10)
    return table


def _is_log(curve: Curve) -> bool:
    """Metrics that span orders of magnitude when training goes wrong; decided once for all runs,
    so that a plot keeps its scale while a run is written."""
    return curve.is_log or curve.metric == "policy/k3_to_base"


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
    if value is None or (_is_log(curve) and value <= 0):
        return None
    return 100 * value if curve.is_share else value
