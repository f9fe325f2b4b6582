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
from kit.terminal import one_line

if TYPE_CHECKING:
    from kit.evaluation.stats import Proportion

_NAMES = 3  # of an adapter that are told, of which the newest is its name
_NAMED = "name "  # before a name that stands for a hash: no hash, and no outcome of a vote, has it


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
                labels.setdefault(pair_of(vote), {}).setdefault(vote.voter or "", _winner(vote))
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

    An adapter is its hash, or its name where that is not known, and is called as in the newest vote
    on it; other names it had, and the hashes of two that share a name, are added. Votes between an
    adapter and itself decide nothing and are left out.
    """
    votes = [
        vote
        for vote in votes
        if _identity(vote.left) != _identity(vote.right) and (vote.blind or not blind_only)
    ]
    labels = _labels(votes)
    by_pair: dict[tuple[str, str], list[Vote]] = {}
    for vote in votes:
        both = _identity(vote.left), _identity(vote.right)
        first, second = sorted(both, key=lambda one: (labels[one], one))
        by_pair.setdefault((first, second), []).append(vote)
    counted = [_count([labels[one] for one in pair], pair, mine) for pair, mine in by_pair.items()]
    return sorted(counted, key=lambda found: (found.first, found.second))


def _labels(votes: Iterable[Vote]) -> dict[str, str]:
    """What each adapter is called."""
    names: dict[str, list[str]] = {}  # the newest first
    for vote in sorted(votes, key=lambda vote: vote.time, reverse=True):
        for side in (vote.left, vote.right):
            names.setdefault(_identity(side), []).append(one_line(side.name))
    names = {identity: list(dict.fromkeys(found)) for identity, found in names.items()}
    shared = Counter(newest for newest, *_ in names.values())
    labels = {}
    for identity, (newest, *older) in names.items():
        known = "no hash" if identity.startswith(_NAMED) else identity[:8]
        notes = [known] if shared[newest] > 1 else []
        notes += [f"also {', '.join(older[: _NAMES - 1])}"] if older else []
        labels[identity] = f"{newest} ({', '.join(notes)})" if notes else newest
    return labels


def _count(names: Sequence[str], pair: Sequence[str], votes: Sequence[Vote]) -> Tally:
    counts: Counter[str] = Counter()
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


def _winner(vote: Vote) -> str:
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


def _identity(side: Side) -> str:
    return side.adapter_sha256 or f"{_NAMED}{side.name}"
