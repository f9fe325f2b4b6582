"""Training curves: each metric over steps, per arm, with the spread between seeds."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from kit.metrics import CURVES, Curve, adherence_curves
from kit.reports.document import Figure, Origin, Section
from kit.reports.evidence import Arm, Evidence
from kit.reports.figures import Line, Scale, Style, draw_lines

WINDOWS = 25  # a curve is smoothed over this part of the run


def measure_curves(evidence: Evidence) -> dict[str, dict[str, dict[str, Any]]]:
    """By metric and arm: `steps`, `mean`, `low` and `high` (null for one seed), `seeds`,
    `window` (steps averaged over). Metrics nobody recorded are left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    runs = (run for arm in evidence.arms for run in arm.runs.values())
    recorded = (name for run in runs for record in run.metrics for name in record)
    for curve in (*CURVES, *adherence_curves(recorded)):
        for arm in evidence.arms:
            if (record := _measure(arm, curve)) is not None:
                found.setdefault(curve.metric, {})[arm.name] = record
    return found


def describe_curves(
    evidence: Evidence, curves: dict[str, dict[str, dict[str, Any]]], looks: dict[str, Style]
) -> Section:
    section = Section("Training")
    if not curves:
        section.say("No step has been recorded yet.")
        return section
    section.say(
        "A panel for each arm, with the others grey behind it. Lines are means over an arm's "
        "seeds, bands reach from the lowest to the highest seed; an arm of one seed has no band. "
        "Every line is a moving mean; the number of steps it spans is under each figure. "
        "Accuracy, length and entropy while training are of the problems of each step, held-out "
        "accuracy is of problems never trained on. docs/metrics.md explains every metric."
    )
    for curve in (*CURVES, *adherence_curves(curves)):
        if curve.metric in curves:
            section.blocks.append(_figure(evidence, curve, curves, looks))
    return section


def _measure(arm: Arm, curve: Curve) -> dict[str, Any] | None:
    seeds = {
        seed: pd.Series(
            {r["step"]: r[curve.metric] for r in run.metrics if _is_drawn(r, curve)}, dtype=float
        )
        for seed, run in arm.runs.items()
    }
    table = pd.DataFrame({seed: values for seed, values in seeds.items() if len(values)})
    if table.empty:
        return None
    # validations are few and of many problems: they are not smoothed
    is_validation = curve.metric.startswith("validation/")
    window = 1 if is_validation else max(1, len(table) // WINDOWS)
    smooth = table.sort_index().rolling(window, center=True, min_periods=1).mean()
    several = smooth.shape[1] > 1
    return {
        "steps": [int(step) for step in smooth.index],
        "mean": smooth.mean(axis=1).tolist(),
        "low": smooth.min(axis=1).tolist() if several else None,
        "high": smooth.max(axis=1).tolist() if several else None,
        "seeds": [int(seed) for seed in smooth.columns],
        "window": window,
    }


def _is_drawn(record: dict[str, Any], curve: Curve) -> bool:
    value = record.get(curve.metric)
    if value is None or not math.isfinite(value):
        return False
    return value > 0 or not curve.is_log


def _figure(
    evidence: Evidence,
    curve: Curve,
    curves: dict[str, dict[str, dict[str, Any]]],
    looks: dict[str, Style],
) -> Figure:
    arms = curves[curve.metric]
    lines = {
        name: Line(record["steps"], record["mean"], record["low"], record["high"])
        for name, record in arms.items()
    }
    windows = sorted({record["window"] for record in arms.values()})
    span = f"{windows[0]}" if len(windows) == 1 else f"{windows[0]} to {windows[-1]}"
    return Figure(
        name=curve.metric.replace("/", "-"),
        title=curve.title,
        drawing=draw_lines(
            lines,
            looks,
            x=Scale("training step"),
            y=Scale(
                curve.unit,
                is_share=curve.is_share,
                is_log=curve.is_log,
                top=_top(curve, curves) if curve.is_share else None,
            ),
        ),
        origin=Origin.of(
            (r.path / "metrics.jsonl" for r in evidence.runs if r.metrics),
            (r.command for r in evidence.runs if r.metrics),
        ),
        note=curve.metric if span == "1" else f"{curve.metric}, moving mean over {span} steps",
    )


def _top(curve: Curve, curves: dict[str, dict[str, dict[str, Any]]]) -> float:
    """One scale for strict and lenient accuracy, so that their figures can be compared."""
    family = curve.metric.partition("/")[0]
    shared = {"accuracy": ("accuracy/strict", "accuracy/lenient")}
    shared["validation"] = ("validation/strict", "validation/lenient")
    highest = max(
        value
        for metric in shared.get(family, (curve.metric,))
        for record in curves.get(metric, {}).values()
        for value in record["high"] or record["mean"]
    )
    return min(1.0, 1.08 * highest) or 0.05
