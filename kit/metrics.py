"""The metrics of a run that are drawn as curves: titles, units, and what is healthy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of docs/metrics.md and how it is drawn."""

    metric: str
    title: str
    unit: str
    is_share: bool = False
    is_log: bool = False


SHARE = "% of completions"
CURVES = (
    Curve("reward/mean", "Reward", "mean per completion"),
    Curve("accuracy/strict", "Accuracy while training, strict", SHARE, is_share=True),
    Curve("accuracy/lenient", "Accuracy while training, lenient", SHARE, is_share=True),
    Curve("validation/strict", "Held-out accuracy, strict", "% of problems", is_share=True),
    Curve("validation/lenient", "Held-out accuracy, lenient", "% of problems", True),
    Curve("completion/mean_tokens", "Length", "tokens, mean"),
    Curve("completion/truncated_share", "Cut off at the cap", SHARE, is_share=True),
    Curve("policy/entropy", "Entropy", "nats per token"),
    Curve("ratio/max", "Largest importance ratio", "ratio", is_log=True),
    Curve("ratio/min", "Smallest importance ratio", "ratio", is_log=True),
    Curve("ratio/effective_sample_share", "Effective sample share", "% of tokens", is_share=True),
    Curve(
        "ratio/zero_gradient_share",
        "Silenced by the trust region",
        "% of tokens",
        is_share=True,
    ),
    Curve("policy/k3_to_base", "Drift from the base", "k3, nats per token"),
    Curve("update/grad_norm", "Gradient norm before clipping", "norm", is_log=True),
    Curve("sft/loss", "Supervised loss", "nats per solution token"),
    Curve("dpo/loss", "DPO loss", "mean per pair"),
    Curve("dpo/margin", "Reward margin, DPO", "mean per pair"),
    Curve("dpo/accuracy", "Pairs told apart", "% of pairs", is_share=True),
    Curve("dpo/chosen_change", "Chosen completions", "nats from the reference"),
    Curve("dpo/rejected_change", "Rejected completions", "nats from the reference"),
    Curve("kto/loss", "KTO loss", "mean per completion"),
    Curve("kto/margin", "Reward margin, KTO", "difference of means"),
    Curve("kto/accuracy", "Completions on their side", SHARE, is_share=True),
    Curve("kto/kl", "Drift of mismatched completions", "nats from the reference"),
    Curve("kto/desirable_change", "Desirable completions", "nats from the reference"),
    Curve("kto/undesirable_change", "Undesirable completions", "nats from the reference"),
)
ADHERENCE = "adherence/"  # and the name of a guideline, which may be the user's
COSTS = (
    Curve("reward/zero_std_fraction", "Groups without a signal", "% of groups", is_share=True),
    Curve("time/step_seconds", "Time per step", "seconds"),
    Curve("memory/peak_mb", "Peak memory", "MiB"),
)
SHOWN = (*CURVES, *COSTS)
GROUPS = {  # of SHOWN, by the beginnings of their names
    "Right or wrong": ("reward/mean", "accuracy/", "validation/"),
    "What is written": ("completion/", "policy/entropy", ADHERENCE),
    "How far the policy moves": ("ratio/", "policy/k3", "update/", "sft/"),
    "Preferences": ("dpo/", "kto/"),
    "Signal and cost": ("reward/zero", "time/", "memory/"),
}
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
    "dpo/loss": "Falls from 0.693, where the policy is its reference.",
    "dpo/margin": "By how much the implicit reward of the chosen completion is above that of the "
    "rejected one: rises to a few.",
    "dpo/accuracy": "Pairs whose chosen completion has risen more than the rejected one; near "
    "100 % at once where their form alone tells them apart.",
    "dpo/chosen_change": "By how many nats chosen completions became likelier than under the "
    "reference; a fall as far as that of the rejected is no good sign.",
    "dpo/rejected_change": "The same of rejected completions: falls.",
    "kto/loss": "Falls from half the mean weight, where the policy is its reference.",
    "kto/margin": "Implicit reward of desirable completions above that of undesirable ones: rises.",
    "kto/accuracy": "Desirable completions that rose beyond the drift, undesirable ones that did "
    "not.",
    "kto/kl": "How far completions have risen that do not belong to their prompts: rises slowly.",
    "kto/desirable_change": "By how many nats desirable completions became likelier than under "
    "the reference.",
    "kto/undesirable_change": "The same of undesirable completions: stays below.",
    "reward/zero_std_fraction": "Groups whose rewards are all equal teach nothing: near 100 % the "
    "problems are too easy or too hard.",
    "time/step_seconds": "The whole step; of runs that train together, their own share of it.",
    "memory/peak_mb": "Highest in each step: of the GPU, or of the process on the CPU.",
}


def adherence_curves(recorded: Iterable[str]) -> tuple[Curve, ...]:
    """One for each guideline, by the names of the metrics that were recorded."""
    return tuple(
        Curve(metric, f"Follows {metric.removeprefix(ADHERENCE)}", SHARE, is_share=True)
        for metric in sorted(set(recorded))
        if metric.startswith(ADHERENCE)
    )


def note_on(curve: Curve) -> str:
    """What is healthy, in a sentence."""
    if curve.metric.startswith(ADHERENCE):
        return "How far completions follow the guideline, of those it applies to: rises."
    return NOTES[curve.metric]
