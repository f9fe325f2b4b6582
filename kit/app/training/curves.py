"""Training curves of several runs, as the lines that its plots are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kit.app.library.runs import Run, number, step_of
from kit.reports.curves import CURVES, Curve

COSTS = (
    Curve("reward/zero_std_fraction", "Groups without a signal", "% of groups", is_share=True),
    Curve("time/step_seconds", "Time per step", "seconds"),
    Curve("memory/peak_mb", "Peak memory", "MiB"),
)
SHOWN = (*CURVES, *COSTS)
GROUPS = {  # of SHOWN, by the beginnings of their names
    "Right or wrong": ("reward/mean", "accuracy/", "validation/"),
    "What is written": ("completion/", "policy/entropy"),
    "How far the policy moves": ("ratio/", "policy/k3", "update/", "sft/"),
    "Signal and cost": ("reward/zero", "time/", "memory/"),
}
Points = list[tuple[int, float, str]]  # step, value as it is drawn, what was recorded
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


def draw(
    runs: Mapping[str, Run], curve: Curve, window: int, against: str | None = None
) -> dict[str, Points]:
    """A metric of runs by name, in the order of the steps; runs without it are left out.

    Values are moving means over `window` recorded steps, but held-out accuracy is not smoothed: it
    is of many problems and seldom measured. With `against`, another run's are taken off them where
    it has recorded the same step.
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
    return {name: line for name, line in lines.items() if line}


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
