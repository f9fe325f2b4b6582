"""What would puzzle a user later, said in words while it can be changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kit.config import Config
from kit.model.rollout import Completion, count_tokens

log = logging.getLogger(__name__)


def warn_about(config: Config) -> None:
    """Settings under which little is learned, or nothing is compared."""
    if config.optim.learning_rate <= 2e-6:
        log.warning(
            "optim.learning_rate=%g is a full fine-tuning rate; LoRA learns next to nothing "
            "below about 1e-5",
            config.optim.learning_rate,
        )
    if config.method != "grpo":
        return
    guided = sum(
        max(0.0, check.weight) for each in config.guidelines.values() for check in each.checks
    )
    if guided > config.reward.correct:
        log.warning(
            "the guidelines' weights add up to %g, a right answer gives %g: a wrong answer that "
            "follows them is worth more than a right one that does not; lower the weights",
            guided,
            config.reward.correct,
        )
    if config.train.updates_per_rollout == 1 and config.objective.resolved_old_policy == "sampler":
        log.info(
            "One update per rollout: every ratio is 1, so no trust region acts and clip, noclip "
            "and pspo differ by a constant factor only. Set train.updates_per_rollout=2 to "
            "compare them."
        )


def say_cut_off(completions: Sequence[Completion]) -> bool:
    """What a truncated distribution does to the ratios, and how much; whether there was need to."""
    cut_off = sum(completion.cut_off for completion in completions)
    if cut_off == 0:
        return False
    share = cut_off / count_tokens(completions)
    log.warning(
        "rollout.top_p or top_k cut %.2g %% off the probability of the tokens to draw from, "
        "but log-probabilities are those of the whole distribution: every importance ratio is "
        "measured against a sampler that is less sure than the one that drew, about %.2g %% "
        "too large. rollout/mass_cut_off in the metrics follows it; top_p=1 top_k=0 is exact",
        100 * share,
        100 * share / (1 - share),
    )
    return True
