"""The reward of a completion: a sum of named parts.

Three come from the verdict on the answer (`correct`, `format`, `no_answer`), one from each check of
each guideline (`<guideline>.<check>`), further ones from functions of the user's
(`kit.tasks.functions`), of which None adds 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kit.config import RewardConfig
from kit.errors import RewardError
from kit.guideline import Guideline
from kit.tasks.functions import Messages, UserPart, call, import_function
from kit.tasks.guidelines import Attempt, Follower, follower_of
from kit.tasks.verifiers import Verdict, Verifier

_BUILT_IN = ("correct", "format", "no_answer")
LARGEST = 1e30  # advantages are float32, and a ratio of up to e^20 multiplies them


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of N completions: totals (after the clamp), parts (weighted) and verdicts."""

    total: list[float]
    parts: dict[str, list[float]]
    verdicts: list[Verdict]
    adherence: dict[str, list[float | None]] = field(default_factory=dict)  # by guideline


class Reward:
    """Scores completions; build it with `build_reward`."""

    def __init__(
        self,
        config: RewardConfig,
        verifier: Verifier,
        parts: Sequence[UserPart],
        followers: Sequence[Follower] = (),
    ) -> None:
        self.config = config
        self.verifier = verifier
        self.user_parts = tuple(parts)
        self.followers = tuple(followers)

    @property
    def names(self) -> list[str]:
        """The parts, in the order in which they are added."""
        guided = (part for follower in self.followers for part in follower.parts)
        return [*_BUILT_IN, *guided, *(part.name for part in self.user_parts)]

    def __call__(
        self,
        prompts: Sequence[Messages],
        completions: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
    ) -> Scores:
        """Score completion i, sampled for prompts[i], against the problem rows[i].

        Raises RewardError for lists of different lengths and for user functions that fail.
        """
        if not len(prompts) == len(completions) == len(rows):
            raise RewardError(
                f"prompts, completions and rows must be equally long, got {len(prompts)}, "
                f"{len(completions)} and {len(rows)}"
            )
        verdicts = self.verifier.verify_many(completions, rows)
        parts = self._verdict_parts(verdicts)
        attempts = [
            Attempt(text, row, prompt, verdict)
            for text, row, prompt, verdict in zip(completions, rows, prompts, verdicts, strict=True)
        ]
        adherence: dict[str, list[float | None]] = {}
        for follower in self.followers:
            following = follower(attempts)
            parts |= following.rewards
            adherence[follower.name] = following.adherence
        for part in self.user_parts:
            parts[part.name] = [value or 0.0 for value in call(part, prompts, completions, rows)]
        totals = [self._total(parts, index) for index in range(len(completions))]
        return Scores(totals, parts, verdicts, adherence)

    def _verdict_parts(self, verdicts: Sequence[Verdict]) -> dict[str, list[float]]:
        config = self.config

        def given(weight: float, holds: Callable[[Verdict], bool]) -> list[float]:
            return [weight if holds(verdict) else 0.0 for verdict in verdicts]

        return {
            "correct": given(config.correct, lambda v: v.strict if config.strict else v.lenient),
            "format": given(config.format, lambda v: v.has_format),
            "no_answer": given(config.no_answer, lambda v: v.lenient_answer is None),
        }

    def _total(self, parts: Mapping[str, Sequence[float]], index: int) -> float:
        """The sum of one completion's parts, within the clamp."""
        value = sum(values[index] for values in parts.values())
        if not abs(value) <= LARGEST:  # of finite parts too: their sum may be infinite
            listed = ", ".join(f"{name} {values[index]:g}" for name, values in parts.items())
            raise RewardError(
                f"the parts of the reward of completion {index} add up to {value:g} ({listed}); "
                f"rewards must lie within ±{LARGEST:g}: lower the weights or what the functions "
                "return"
            )
        if self.config.clamp is None:
            return value
        low, high = self.config.clamp
        return min(max(value, low), high)


def build_reward(
    config: RewardConfig, verifier: Verifier, guidelines: Mapping[str, Guideline] | None = None
) -> Reward:
    """The configured reward. Raises RewardError for a function that cannot be imported."""
    taken = set(_BUILT_IN)
    parts = []
    for wanted in config.functions:
        function = import_function(wanted.path)
        name = _unused(getattr(function, "__name__", type(function).__name__), taken)
        taken.add(name)
        parts.append(UserPart(name, wanted.weight, function))
    followers = [follower_of(name, each) for name, each in (guidelines or {}).items()]
    return Reward(config, verifier, parts, followers)


def _unused(name: str, taken: set[str]) -> str:
    """`name`, or the first of name_2, name_3, … that is free."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique
