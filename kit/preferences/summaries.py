"""What the verdicts of a judge model come to: wins and ties, mean scores, and what they cost.

Each pair is judged in both orders. Where the two verdicts disagree the pair is inconsistent and
counts for neither side, so a judge that prefers a position decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kit.evaluation.stats import Estimate, Proportion, bootstrap_mean, sign_test
from kit.preferences.judge_models import JudgeConfig
from kit.preferences.judgements import Judgement
from kit.preferences.rubric import CRITERIA, OVERALL, Verdict

# whom "A" and "B" mean in each order
ORDERS = {
    "left_first": {"A": "left", "B": "right", "tie": "ties"},
    "right_first": {"A": "right", "B": "left", "tie": "ties"},
}
_Both = tuple[Judgement, Judgement]  # of a pair, in the order of ORDERS


@dataclass(frozen=True, slots=True)
class Usage:
    """What the judgements took; requests whose tokens the endpoint did not tell are counted."""

    requests: int
    without_tokens: int
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> Usage:
        replies = [judgement.reply for judgement in judgements]
        return cls(
            requests=len(replies),
            without_tokens=sum(None in (r.prompt_tokens, r.completion_tokens) for r in replies),
            prompt_tokens=sum(r.prompt_tokens or 0 for r in replies),
            completion_tokens=sum(r.completion_tokens or 0 for r in replies),
        )

    def cost(self, config: JudgeConfig) -> float | None:
        """In the currency of the prices; None where a price is not known."""
        if config.price_input is None or config.price_output is None:
            return None
        tokens_in = self.prompt_tokens * config.price_input
        return (tokens_in + self.completion_tokens * config.price_output) / 1e6

    def __str__(self) -> str:
        unknown = f" ({self.without_tokens} without a count)" if self.without_tokens else ""
        return (
            f"{self.requests} requests, {self.prompt_tokens} tokens in, "
            f"{self.completion_tokens} out{unknown}"
        )


def outcome_of(left_first: Verdict, right_first: Verdict, name: str) -> str:
    """left, right, ties or inconsistent: what both orders say of a pair by one criterion."""
    one, other = ORDERS["left_first"][left_first[name]], ORDERS["right_first"][right_first[name]]
    return one if one == other else "inconsistent"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the pairs came out by one criterion."""

    left: int
    right: int
    ties: int
    inconsistent: int  # the two orders disagreed

    @classmethod
    def of(cls, pairs: Sequence[_Both], name: str) -> Outcomes:
        """By one criterion, of the pairs with both verdicts."""
        counts: Counter[str] = Counter()
        for first, second in pairs:
            if first.verdict is not None and second.verdict is not None:
                counts[outcome_of(first.verdict, second.verdict, name)] += 1
        return cls(counts["left"], counts["right"], counts["ties"], counts["inconsistent"])

    @property
    def win_rate(self) -> Proportion:
        """How often left won, of the pairs that were decided."""
        return Proportion(self.left, self.left + self.right)

    @property
    def p(self) -> float:
        return sign_test(self.left, self.right)

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"win_rate": self.win_rate.record(), "p": self.p}


@dataclass(frozen=True, slots=True)
class PairwiseSummary:
    """All pairs. One is malformed or failed when one of its two judgements is."""

    pairs: int
    malformed: int
    failed: int
    outcomes: dict[str, Outcomes]  # overall and by criterion
    first_shown: Proportion  # verdicts for the solution shown first, of those that are no tie
    usage: Usage

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> PairwiseSummary:
        """Of the judgements of each pair, in the order of ORDERS."""
        pairs = list(zip(judgements[::2], judgements[1::2], strict=True))
        statuses = Counter(_status_of_pair(pair) for pair in pairs)
        choices = [j.verdict[OVERALL] for j in judgements if j.verdict is not None]
        decided = [choice for choice in choices if choice != "tie"]
        return cls(
            pairs=len(pairs),
            malformed=statuses["malformed"],
            failed=statuses["failed"],
            outcomes={name: Outcomes.of(pairs, name) for name in (OVERALL, *CRITERIA)},
            first_shown=Proportion(decided.count("A"), len(decided)),
            usage=Usage.of(judgements),
        )

    def record(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "malformed": self.malformed,
            "failed": self.failed,
            "outcomes": {name: outcomes.record() for name, outcomes in self.outcomes.items()},
            "first_shown": self.first_shown.record(),
        }

    def __str__(self) -> str:
        lines = [f"{'':14}{'left':>6}{'right':>7}{'ties':>6}{'inconsistent':>14}  left wins"]
        for name, o in self.outcomes.items():
            won = f"{o.win_rate}, p = {o.p:.3g}" if o.win_rate.n else "-"
            lines.append(f"{name:14}{o.left:6}{o.right:7}{o.ties:6}{o.inconsistent:14}  {won}")
        lines.append(f"{self.pairs} pairs, {self.malformed} malformed, {self.failed} failed")
        if self.first_shown.n:
            lines.append(f"position bias: the first shown won {self.first_shown} (unbiased: 50 %)")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class PointwiseSummary:
    """Scores from 1 to 5."""

    completions: int
    malformed: int
    failed: int
    scores: dict[str, Estimate | None]  # mean by criterion; None without any score
    usage: Usage

    @classmethod
    def of(cls, judgements: Sequence[Judgement]) -> PointwiseSummary:
        statuses = Counter(judgement.status for judgement in judgements)
        verdicts = [j.verdict for j in judgements if j.verdict is not None]
        return cls(
            completions=len(judgements),
            malformed=statuses["malformed"],
            failed=statuses["failed"],
            scores={
                name: bootstrap_mean([verdict[name] for verdict in verdicts]) if verdicts else None
                for name in CRITERIA
            },
            usage=Usage.of(judgements),
        )

    @property
    def scored(self) -> int:
        return self.completions - self.malformed - self.failed

    def record(self) -> dict[str, Any]:
        return {
            "completions": self.completions,
            "scored": self.scored,
            "malformed": self.malformed,
            "failed": self.failed,
            "scores": {name: mean and mean.record() for name, mean in self.scores.items()},
        }

    def __str__(self) -> str:
        lines = [
            f"{name:14}{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
            for name, mean in self.scores.items()
            if mean is not None
        ]
        counts = f"{self.scored} scored, {self.malformed} malformed, {self.failed} failed"
        return "\n".join([*lines, counts])


def _status_of_pair(pair: _Both) -> str:
    statuses = {judgement.status for judgement in pair}
    return next((s for s in ("failed", "malformed") if s in statuses), "judged")
