"""What all sides of a comparison are asked, with the same random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kit.app.library.adapters import Choice
from kit.app.verdicts import Standard
from kit.errors import ConfigError
from kit.guideline import prompted
from kit.preferences.votes import VotedProblem

LEFT, RIGHT, BASE_SIDE = "left", "right", "base"
MAX_SAMPLES = 64
MAX_CHARACTERS = 50_000  # of a problem and a system prompt; longer than any context here
TYPES = {"text": str, "text or null": str | None, "a number": int | float, "a whole number": int}


@dataclass(frozen=True, slots=True)
class Setup:
    """What all sides are asked. Raises ConfigError for what cannot be sampled."""

    question: str
    system_prompt: str
    gold: str | None  # the right answer, where it is known
    sides: Mapping[str, Choice]  # LEFT, RIGHT and perhaps BASE_SIDE
    standard: Standard | None = None  # of the problem's data set; None: the gold answer alone
    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0
    samples: int = 1
    problem: VotedProblem | None = None  # of a data set; None: it was typed

    def __post_init__(self) -> None:
        check_type("problem", self.question, "text")
        check_type("system prompt", self.system_prompt, "text")
        check_type("temperature", self.temperature, "a number")
        check_type("new tokens", self.max_new_tokens, "a whole number")
        check_type("seed", self.seed, "a whole number")
        check_type("samples", self.samples, "a whole number")
        if not self.question.strip():
            raise ConfigError("the problem is empty: write one, or pick one from a data set")
        if len(self.question) + len(self.system_prompt) > MAX_CHARACTERS:
            raise ConfigError(
                f"problem and system prompt have {len(self.question) + len(self.system_prompt)} "
                f"characters; {MAX_CHARACTERS} are allowed"
            )
        for name, value, low, high in (
            ("temperature", self.temperature, 0, 10),
            ("new tokens", self.max_new_tokens, 1, 100_000),
            ("seed", self.seed, 0, 2**63),
            ("samples", self.samples, 1, MAX_SAMPLES),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} must be from {low} to {high:g}, got {value}")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"at temperature 0 all {self.samples} samples would be the same; raise the "
                "temperature or ask for one sample"
            )

    @property
    def is_judged(self) -> bool:
        """Whether anything decides which answers are right."""
        return self.gold is not None if self.standard is None else self.standard.decides

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What all sides are asked, without what the guidelines of a side add."""
        return chat(self.system_prompt, self.question)

    @property
    def shared_messages(self) -> list[dict[str, Any]]:
        """What both sides are asked; where each has guidelines of its own, without them."""
        left, right = (self.messages_to(side) for side in (LEFT, RIGHT))
        return left if left == right else self.messages

    def messages_to(self, side: str) -> list[dict[str, Any]]:
        """What one side is asked: as it was trained, with its guidelines."""
        return chat(prompted(self.system_prompt, self.sides[side].guidelines), self.question)

    @property
    def adapters(self) -> dict[str, str | None]:
        """By side: folder or hub id; None: the bare base."""
        return {side: choice.adapter for side, choice in self.sides.items()}


def check_type(name: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless a value from outside is of one of TYPES."""
    if not isinstance(value, TYPES[allowed]) or isinstance(value, bool):
        raise ConfigError(f"{name} must be {allowed}, got {value!r:.80}")


def chat(system_prompt: str, question: str) -> list[dict[str, Any]]:
    """The messages of a prompt; an empty system prompt is not sent."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]
