"""A finding: one thing that was looked at, what was found and what was expected, with a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["as expected", "not as expected", "not measured", "measured"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `figures` are the numbers in it, in seconds, bytes and nats.

    "measured" is the verdict of a figure that nothing is expected of.
    """

    what: str
    verdict: Verdict
    found: str
    expected: str = ""
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        expected = f" (expected: {self.expected})" if self.expected else ""
        return f"{self.verdict:16}{self.what}: {self.found}{expected}"


def judged(
    what: str, is_good: bool, found: str, expected: str, why: str = "", **figures: Any
) -> Finding:
    """A finding with an expectation that is met or not."""
    verdict: Verdict = "as expected" if is_good else "not as expected"
    return Finding(what, verdict, found, expected, why, figures)


def measured(what: str, found: str, why: str = "", **figures: Any) -> Finding:
    """A finding that nothing is expected of."""
    return Finding(what, "measured", found, "", why, figures)


def not_measured(what: str, reason: str) -> Finding:
    """Something that could not be looked at."""
    return Finding(what, "not measured", reason)
