"""The published figures, and whether a run may stand beside them.

Dwyer, Sobey, Chapman: "It's Not You, It's Clipping" (arXiv 2509.21282). Accuracies are from the
abstracts of v1 and v2, settings are v1's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.config import Config
from kit.recipe import build_config, differences
from kit.reports.document import Origin, Section, Table, interval, percent
from kit.reports.evidence import Evidence
from kit.reports.scores import MEASURES, Score, origin

V1 = "arXiv 2509.21282v1, abstract"
V2 = "arXiv 2509.21282v2, abstract; temperature 0"
RATES = (5e-7, 1e-6)


@dataclass(frozen=True, slots=True)
class Published:
    """One published accuracy; the trust region's settings where they are known."""

    model: str
    method: str
    data: str
    accuracy: float
    source: str
    settings: Mapping[str, float] | None = None

    def config(self) -> Config:
        """The settings of v1 in the terms of this kit."""
        return build_config(
            {
                "model": {"id": self.model, "quantization": "none"},
                "data": {"name": "gsm8k"},
                "rollout": {
                    "prompts_per_step": 16,
                    "group_size": 4,
                    "max_new_tokens": 128,
                    "temperature": 0.8,
                    "top_p": 0.9,
                },
                "objective": {
                    "trust_region": {"name": self.method, **(self.settings or {})},
                    "old_policy": "sampler",
                },
                "reward": {
                    "correct": 1.0,
                    "strict": False,
                    "format": 0.05,
                    "no_answer": -0.2,
                    "clamp": (0.0, 1.0),
                },
                "optim": {"learning_rate": RATES[1], "warmup_fraction": 0.02},
                "train": {"updates_per_rollout": 2},
            }
        )


PUBLISHED = (
    *(
        Published(model, "clip", "gsm8k", accuracy, V1, {"epsilon_low": e, "epsilon_high": e})
        for model, accuracy, e in (
            ("Qwen/Qwen2.5-0.5B", 0.176, 0.1),
            ("Qwen/Qwen2.5-1.5B", 0.378, 0.2),
        )
    ),
    Published("Qwen/Qwen2.5-0.5B", "pspo", "gsm8k", 0.397, V1, {"alpha": 0.1}),
    Published("Qwen/Qwen2.5-1.5B", "pspo", "gsm8k", 0.594, V1, {"alpha": 0.1}),
    Published("Qwen/Qwen2-Math-1.5B", "pspo", "gsm8k", 0.799, V2),
    Published("Qwen/Qwen2-Math-1.5B", "pspo", "math", 0.596, V2),
)
# what decides whether two runs are the same experiment; the rest is about memory, speed and records
DECISIVE = (
    *("method", "model.id", "model.quantization", "model.adapter"),
    *("data.name", "data.limit", "data.categories"),
    *("rollout.prompts_per_step", "rollout.group_size", "rollout.max_new_tokens"),
    *("rollout.temperature", "rollout.top_p", "rollout.top_k"),
    *("objective", "reward", "optim.learning_rate", "optim.warmup_fraction"),
    "train.updates_per_rollout",
)
# LoRA on a 4-bit base wants about ten times the learning rate of full fine-tuning
ENTAILED = ("weights trained", "model.quantization", "optim.learning_rate")
EVALUATION = {"max_new_tokens": 128, "limit": None}


def measure_paper(evidence: Evidence, scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """By arm: the published accuracy of its trust region and what differs from its settings.

    `entailed` are the differences that LoRA brings with it, `differs` all others: where it is
    empty the figures may stand side by side, and `strict` and `lenient` are ours. Arms whose
    trust region has no published figure are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in evidence.arms:
        published = _nearest(arm.config)
        if published is None:
            continue
        all_differing = _differing(published, arm.config)
        score = next((s for s in scores if _key(s) == (arm.name, published.data, 0)), None)
        differs = {k: v for k, v in all_differing.items() if k not in ENTAILED} | _evaluation(score)
        found[arm.name] = {
            "model": published.model,
            "data": published.data,
            "published": published.accuracy,
            "entailed": {k: v for k, v in all_differing.items() if k in ENTAILED},
            "differs": differs,
        }
        if score is not None and not differs:
            found[arm.name] |= {measure: score.figures[measure] for measure in MEASURES}
    return found


def describe_paper(
    evidence: Evidence, records: Mapping[str, Mapping[str, Any]], scores: Sequence[Score]
) -> Section:
    section = Section("Against the paper", [_published()])
    without = [arm.name for arm in evidence.arms if arm.name not in records]
    if without:
        section.say(f"No accuracy is published for the trust region of: {', '.join(without)}.")
    beside = {name: record for name, record in records.items() if not record["differs"]}
    if beside:
        section.blocks.append(_side_by_side(beside, scores))
    if len(beside) < len(records):
        others = ", ".join(name for name in records if name not in beside)
        section.say(
            "Not set beside the published accuracies, because more than LoRA and what it "
            f"entails differs: {others}."
        )
    if records:
        section.blocks.append(_differences(evidence, records))
    return section


def _key(score: Score) -> tuple[str, str, float]:
    return score.arm, score.data, score.temperature


def _nearest(config: Config) -> Published | None:
    """Of the same trust region, and of the same model where there is one."""
    same = [
        published
        for published in PUBLISHED
        if published.settings is not None
        and config.method == "grpo"
        and config.objective.trust_region.name == published.method
    ]
    return next((p for p in same if p.model == config.model.id), same[0] if same else None)


def _differing(published: Published, config: Config) -> dict[str, list[str]]:
    """Dotted field -> [published, ours]."""
    resolved = config.objective.model_copy(
        update={"old_policy": config.objective.resolved_old_policy}
    )
    both = differences(published.config(), config.model_copy(update={"objective": resolved}))
    found = {"weights trained": ["all", f"LoRA of rank {config.lora.rank}"]}
    found |= {
        key: [str(theirs), str(ours)]
        for key, (theirs, ours) in both.items()
        if key in DECISIVE or key.partition(".")[0] in DECISIVE
    }
    if RATES[0] <= config.optim.learning_rate <= RATES[1]:
        found.pop("optim.learning_rate", None)
    else:
        found["optim.learning_rate"][0] = f"{RATES[0]:g} to {RATES[1]:g}"
    return found


def _evaluation(score: Score | None) -> dict[str, list[str]]:
    if score is None:
        return {"evaluation": ["gsm8k", "none at temperature 0"]}
    settings = next(iter(score.measured.values())).result.settings
    return {
        f"evaluation: {name}": [str(theirs), str(settings[name])]
        for name, theirs in EVALUATION.items()
        if settings[name] != theirs
    }


def _published() -> Table:
    return Table(
        name="published",
        title="Published accuracies",
        header=("model", "method", "data", "accuracy, %", "source"),
        rows=[(p.model, p.method, p.data, percent(p.accuracy), p.source) for p in PUBLISHED],
        origin=Origin(),
        note="All weights were trained, not LoRA adapters. v1's abstract does not say at which "
        "temperature its accuracies were sampled; ours are greedy. The training settings of v2 are "
        "not known here, so nothing is set beside its accuracies.",
    )


def _side_by_side(records: Mapping[str, Mapping[str, Any]], scores: Sequence[Score]) -> Table:
    return Table(
        name="paper",
        title="Beside the published accuracies, %",
        header=("arm", "model", "published", *(f"here, {measure}" for measure in MEASURES)),
        rows=[
            (
                name,
                record["model"],
                percent(record["published"]),
                *(
                    percent(record[measure]["value"]) + interval(record[measure]["ci95"])
                    for measure in MEASURES
                ),
            )
            for name, record in records.items()
        ],
        origin=origin(
            s for s in scores if s.arm in records and _key(s) == (s.arm, records[s.arm]["data"], 0)
        ),
        note="The settings below are the only ones known to differ; the wording of the system "
        "prompt and the parsing of answers are not the authors' either.",
    )


def _differences(evidence: Evidence, records: Mapping[str, Mapping[str, Any]]) -> Table:
    merged = {name: record["entailed"] | record["differs"] for name, record in records.items()}
    names = dict.fromkeys([*ENTAILED, *(key for differs in merged.values() for key in differs)])
    return Table(
        name="differences from the paper",
        title="Settings that differ from the published ones (v1)",
        header=("setting", *merged),
        rows=[
            (
                name,
                *(
                    f"{differs[name][1]} (published: {differs[name][0]})"
                    if name in differs
                    else "as published"
                    for differs in merged.values()
                ),
            )
            for name in names
        ],
        origin=Origin.of(run.path / "config.yaml" for run in evidence.runs),
        note="The first three come with LoRA on a 4-bit base.",
    )
