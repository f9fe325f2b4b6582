"""What training cost: memory, time and speed of each arm."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kit.reports.document import Origin, Section, Table, number
from kit.reports.evidence import Evidence

COSTS = {  # median over an arm's steps and seeds
    "time/step_seconds": ("seconds per step", 1),
    "time/rollout_tokens_per_second": ("tokens/s sampled", 0),
    "time/update_tokens_per_second": ("tokens/s in updates", 0),
}


def measure_costs(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """By arm: highest memory, medians of time and speed over all steps of all seeds."""
    costs = {}
    for arm in evidence.arms:
        records = [record for run in arm.runs.values() for record in run.metrics]
        seconds = [
            sum(record.get("time/step_seconds", 0) for record in run.metrics)
            for run in arm.runs.values()
            if run.metrics
        ]
        costs[arm.name] = {
            "memory/peak_mb": max(_recorded(records, "memory/peak_mb"), default=None),
            **{key: _median(_recorded(records, key)) for key in COSTS},
            "seconds": statistics.fmean(seconds) if seconds else None,
        }
    return costs


def describe_costs(evidence: Evidence, costs: Mapping[str, Mapping[str, Any]]) -> Section:
    section = Section("Memory and time")
    section.blocks.append(
        Table(
            name="costs",
            title="Training, per arm",
            header=(
                *("arm", "peak memory, MiB"),
                *(title for title, _ in COSTS.values()),
                "seconds of all steps",
            ),
            rows=[
                (
                    name,
                    number(cost["memory/peak_mb"]),
                    *(number(cost[key], digits) for key, (_, digits) in COSTS.items()),
                    number(cost["seconds"]),
                )
                for name, cost in costs.items()
            ],
            origin=Origin.of(
                (run.path / "metrics.jsonl" for run in evidence.runs if run.metrics),
                (run.command for run in evidence.runs),
            ),
            note="Memory: the highest of all steps and seeds, of the GPU, or of the process on a "
            "CPU; time and speed: medians over steps; seconds of all steps: mean over seeds. Arms "
            "trained together share the process, and with it the memory.",
        )
    )
    for path, record in evidence.comparisons.items():
        if record.get("seconds"):
            arms = ", ".join(record["arms"])
            section.blocks.append(
                Table(
                    name=f"joint training {path.parent.name}",
                    title=f"Wall time of training {arms} together",
                    header=("seed", "seconds"),
                    rows=[(seed, number(s)) for seed, s in record["seconds"].items()],
                    origin=Origin.of([path], [record["command"]]),
                )
            )
    return section


def _recorded(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [record[key] for record in records if key in record]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
