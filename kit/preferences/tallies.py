"""What votes come to: wins of one adapter over another, and how far voters agree.

A pair that came twice, sides swapped, counts once in the wins; the second vote tells how far a
voter agrees with themselves.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kit.preferences.queue import pair_of
from kit.preferences.votes import Side, Vote

if TYPE_CHECKING:
    from kit.evaluation.stats import Proportion

_Identity = tuple[str, str]  # name and hash of an adapter


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """How far the votes between two adapters agree."""

    voters: int
    repeats: int  # votes on a pair that the voter had voted on
    same: int  # of `repeats`: the vote was the same again
    shared: int  # pairs with votes of several voters
    alpha: float | None  # Krippendorff's, of `shared`; None: not defined

    @classmethod
    def of(cls, votes: Sequence[Vote]) -> Agreement:
        """Of votes between the same two adapters."""
        by_id = {vote.id: vote for vote in votes}
        again = [(by_id[v.repeat_of], v) for v in votes if v.repeat_of in by_id]
        labels: dict[str, dict[str, str]] = {}  # by pair and voter, the first vote of each
        for vote in votes:
            if vote.repeat_of is None:
                labels.setdefault(pair_of(vote), {}).setdefault(
                    vote.voter or "", str(_winner(vote))
                )
        shared = [unit for unit in labels.values() if len(unit) > 1]
        return cls(
            voters=len({vote.voter or "" for vote in votes}),
            repeats=len(again),
            same=sum(_winner(first) == _winner(second) for first, second in again),
            shared=len(shared),
            alpha=_alpha(shared),
        )

    @property
    def with_oneself(self) -> Proportion:
        from kit.evaluation.stats import Proportion  # which scipy and statsmodels come with

        return Proportion(self.same, self.repeats)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"with_oneself": self.with_oneself.record()}

    def __str__(self) -> str:
        parts = []
        if self.repeats:
            parts.append(
                f"the same vote again on {self.same} of {self.repeats} "
                f"pair{'s' * (self.repeats != 1)} that came twice ({self.with_oneself})"
            )
        if self.shared:
            alpha = "not defined" if self.alpha is None else f"{self.alpha:.2f}"
            parts.append(
                f"Krippendorff's α of {self.voters} voters on "
                f"{self.shared} pair{'s' * (self.shared != 1)}: {alpha}"
            )
        return "; ".join(parts) or "nothing voted on twice, so no agreement to tell"


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """The votes between two adapters, whichever side each was shown on."""

    first: str
    second: str
    first_wins: int
    second_wins: int
    ties: int
    both_bad: int
    problems: tuple[int, int, int]  # with most votes for the first, for the second, and neither
    agreement: Agreement

    @property
    def win_share(self) -> Proportion:
        """How often the first won, of the votes that preferred one.

        Its interval takes several votes on one problem for one.
        """
        from kit.evaluation.stats import Proportion  # which scipy and statsmodels come with

        votes = self.first_wins + self.second_wins
        return Proportion(self.first_wins, votes, sum(self.problems) or None)

    @property
    def p(self) -> float:
        """Of the exact sign test over problems."""
        from kit.evaluation.stats import sign_test

        return sign_test(*self.problems[:2])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {
            "win_share": self.win_share.record(),
            "p": self.p,
            "agreement": self.agreement.record(),
        }

    def __str__(self) -> str:
        share = f"{self.win_share}, p = {self.p:.3g}" if self.win_share.n else "none preferred"
        return (
            f"{self.first} {self.first_wins} : {self.second_wins} {self.second} ({share}), "
            f"{self.ties} tie{'s' * (self.ties != 1)}, {self.both_bad} both bad"
        )


def between(votes: Iterable[Vote], hashes: Collection[str | None]) -> list[Vote]:
    """Those between two adapters, told by their hashes."""
    two = {*hashes}
    return [vote for vote in votes if {vote.left.adapter_sha256, vote.right.adapter_sha256} == two]


def tally(votes: Iterable[Vote], *, blind_only: bool = True) -> list[Tally]:
    """Count the votes of each pair of adapters.

    An adapter is its name and hash: a name that two adapters had is listed with the hashes. Votes
    between an adapter and itself decide nothing and are left out.
    """
    by_pair: dict[tuple[_Identity, _Identity], list[Vote]] = {}
    for vote in votes:
        left, right = _identity(vote.left), _identity(vote.right)
        if left != right and (vote.blind or not blind_only):
            by_pair.setdefault((min(left, right), max(left, right)), []).append(vote)
    names = Counter(name for name, _ in {identity for pair in by_pair for identity in pair})

    def label(identity: _Identity) -> str:
        name, sha256 = identity
        return name if names[name] == 1 else f"{name} ({sha256[:8]})"

    return [
        _count([label(identity) for identity in pair], pair, mine)
        for pair, mine in sorted(by_pair.items())
    ]


def _count(names: Sequence[str], pair: Sequence[_Identity], votes: Sequence[Vote]) -> Tally:
    counts: Counter[_Identity | str] = Counter()
    leads: Counter[str] = Counter()  # by problem: votes for the first less those for the second
    for vote in votes:
        if vote.repeat_of is None:
            winner = _winner(vote)
            counts[winner] += 1
            if winner in pair:
                leads[vote.question] += 1 if winner == pair[0] else -1
    signs = Counter((lead > 0) - (lead < 0) for lead in leads.values())
    first, second = names
    return Tally(
        first=first,
        second=second,
        first_wins=counts[pair[0]],
        second_wins=counts[pair[1]],
        ties=counts["tie"],
        both_bad=counts["both_bad"],
        problems=(signs[1], signs[-1], signs[0]),
        agreement=Agreement.of(votes),
    )


def _winner(vote: Vote) -> _Identity | str:
    """The adapter a vote is for, on whichever side it stood; "tie" or "both_bad" for none."""
    sides = {"left": vote.left, "right": vote.right}
    return _identity(sides[vote.vote]) if vote.vote in sides else vote.vote


def _alpha(units: Sequence[dict[str, str]]) -> float | None:
    """Krippendorff's α for nominal labels, by pair and voter; None where all labels are equal, for
    then there is no chance agreement to compare with."""
    labels = [(voter, i, label) for i, unit in enumerate(units) for voter, label in unit.items()]
    if len({label for _, _, label in labels}) < 2:
        return None
    from nltk.metrics.agreement import AnnotationTask  # takes seconds to import

    return float(AnnotationTask(labels).alpha())


def _identity(side: Side) -> _Identity:
    return side.name, side.adapter_sha256 or ""
