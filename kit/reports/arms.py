"""What was compared: the arms, their settings and their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kit.arms import OWN
from kit.config import Config
from kit.recipe import flatten
from kit.reports.document import NONE, Origin, Section, Table
from kit.reports.evidence import Arm, Evidence, TrainedRun


def describe_arms(evidence: Evidence) -> Section:
    """Arms with their differing fields, the fields they share, and every run."""
    section = Section("What was compared")
    differing = differing_fields(evidence.arms)
    configs = Origin.of((run.path / "config.yaml" for run in evidence.runs), _commands(evidence))
    flat = {arm.name: _settings(arm.config) for arm in evidence.arms}
    section.blocks.append(
        Table(
            name="arms",
            title="Arms, and the settings in which they differ",
            header=("setting", *flat),
            rows=[
                ("seeds", *(", ".join(map(str, arm.runs)) for arm in evidence.arms)),
                *((key, *(_value(flat[name], key) for name in flat)) for key in differing),
            ],
            origin=configs,
        )
    )
    first = flat[evidence.arms[0].name]
    section.blocks.append(
        Table(
            name="settings",
            title="Settings that all arms share",
            header=("setting", "value"),
            rows=[
                (key, _value(first, key))
                for key in first
                if key not in differing and key not in OWN
            ],
            origin=configs,
            folded=True,
        )
    )
    section.blocks.append(_runs(evidence))
    return section


def differing_fields(arms: Sequence[Arm]) -> list[str]:
    """Dotted names of the fields, seed and output apart, that are not the same in all arms."""
    first, *others = [_settings(arm.config) for arm in arms]
    keys = {key for settings in (first, *others) for key in settings} - OWN
    return sorted(key for key in keys if any(s.get(key) != first.get(key) for s in others))


def _settings(config: Config) -> dict[str, Any]:
    """The fields by dotted names, an `auto` that the others decide with what it stands for.

    What the machine decides (types, kernels, memory) stands in the table of runs.
    """
    flat = flatten(config.model_dump(mode="json"))
    if config.objective.old_policy == "auto":
        flat["objective.old_policy"] = f"auto: {config.objective.resolved_old_policy}"
    return flat


def _runs(evidence: Evidence) -> Table:
    """A row per run; hardware and versions stand below where they are the same in all."""
    facts = {
        "hardware": [run.description.get("hardware", NONE) for run in evidence.runs],
        "versions": [_versions(run) for run in evidence.runs],
    }
    varying = {name: values for name, values in facts.items() if len(set(values)) > 1}
    common = [f"{name}: {values[0]}" for name, values in facts.items() if name not in varying]
    rows = [
        (
            arm.name,
            str(seed),
            run.status,
            f"{run.steps} of {run.config.train.steps}",
            _commit(run),
            run.description.get("started", NONE),
        )
        for arm in evidence.arms
        for seed, run in arm.runs.items()
    ]
    return Table(
        name="runs",
        title="Runs",
        header=("arm", "seed", "status", "steps", "commit", "started", *varying),
        rows=[(*row, *more) for row, *more in zip(rows, *varying.values(), strict=True)],
        origin=Origin.of(
            (run.path / "run.json" for run in evidence.runs if run.description),
            _commands(evidence),
        ),
        note="; ".join([f"base: {_base(evidence)}", *common]),
    )


def _base(evidence: Evidence) -> str:
    model = evidence.arms[0].config.model
    revisions = (
        r.description["base"]["revision"] for r in evidence.runs if "base" in r.description
    )
    revision = next(revisions, None)
    at = f", revision {revision}" if revision else ""
    return f"{model.id}{at}, quantization {model.quantization}"


def _commit(run: TrainedRun) -> str:
    git = run.description.get("git")
    if not git:
        return NONE
    return git["commit"][:10] + (" with uncommitted changes" if git["dirty"] else "")


def _versions(run: TrainedRun) -> str:
    versions = run.description.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or NONE


def _value(flat: Mapping[str, Any], key: str) -> str:
    return str(flat[key]) if key in flat else NONE


def _commands(evidence: Evidence) -> list[str]:
    return [run.command for run in evidence.runs]
