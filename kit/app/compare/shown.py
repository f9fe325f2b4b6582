"""What one session's page shows: a comparison, which side stands where, and what stays hidden."""

from __future__ import annotations

from dataclasses import dataclass

from kit.app.compare.comparison import Answer, Comparison
from kit.app.compare.tokens import BASE_SIDE, LEFT, RIGHT
from kit.app.exports import ComparedPair
from kit.preferences.votes import Preference


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
        """The sides from left to right. The base's own column comes last, and only with the names:
        a side that is the base too says the same."""
        has_base = BASE_SIDE in self.comparison.setup.sides and not self.hides_names
        return (*self.order, BASE_SIDE) if has_base else self.order

    @property
    def names(self) -> dict[str, str]:
        """What the columns are called, by side."""
        sides = self.comparison.setup.sides
        hidden = dict(zip(self.order, ("Answer A", "Answer B"), strict=True))
        return {
            side: hidden[side] if self.hides_names else sides[side].label for side in self.columns
        }

    def answer(self, side: str) -> Answer:
        return self.comparison.answers[side][self.sample]

    def preferred(self, column: str) -> Preference:
        """The vote for the first ("left") or second ("right") column, as a vote on sides."""
        if column not in ("left", "right"):
            return "tie" if column == "tie" else "both_bad"
        return "left" if self.order[column == "right"] == LEFT else "right"
