"""What one session's page shows: a comparison, which side stands where, and what stays hidden."""

from __future__ import annotations

from dataclasses import dataclass

from kit.app.comparator import ComparedPair
from kit.app.comparison import Answer, Comparison
from kit.app.tokens import BASE_SIDE, LEFT, RIGHT
from kit.votes import Preference


@dataclass(frozen=True, slots=True)
class Shown:
    """In blind mode the sides may be exchanged, and names wait for the vote."""

    comparison: Comparison
    order: tuple[str, str] = (LEFT, RIGHT)  # the sides in the first and in the second column
    is_blind: bool = False
    vote: Preference | None = None
    sample: int = 0
    history: tuple[ComparedPair, ...] = ()  # this session's finished comparisons, for exports

    @property
    def hides_names(self) -> bool:
        return self.is_blind and self.vote is None

    @property
    def columns(self) -> tuple[str, ...]:
        """The sides from left to right; the base's own column comes last."""
        base = (BASE_SIDE,) if BASE_SIDE in self.comparison.setup.sides else ()
        return self.order + base

    @property
    def names(self) -> dict[str, str]:
        """What the columns are called, by side."""
        sides = self.comparison.setup.sides
        hidden = dict(zip(self.order, ("Answer A", "Answer B"), strict=True))
        return {
            side: hidden[side] if self.hides_names and side in hidden else sides[side].label
            for side in self.columns
        }

    @property
    def is_finished(self) -> bool:
        """Whether every answer came to its end and has its scores."""
        return self.comparison.is_over and not self.comparison.is_stopped

    def answer(self, side: str) -> Answer:
        return self.comparison.answers[side][self.sample]

    def preferred(self, column: str) -> Preference:
        """The vote for the first ("left") or second ("right") column, as a vote on sides."""
        if column not in ("left", "right"):
            return "tie" if column == "tie" else "both_bad"
        return "left" if self.order[column == "right"] == LEFT else "right"
