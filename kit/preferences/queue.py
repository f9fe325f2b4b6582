"""A blind voting session: which pairs are asked in which order, and which still lack a vote.

Nothing is kept of it but the votes: the pairs and the voter's name decide the order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from random import Random

from kit.preferences.votes import Vote

BLOCK = 10  # pairs of which one comes twice
FEWEST = 4  # pairs of a last block, for one of them to come twice with another in between

Said = tuple[str | None, str]  # the hash of an adapter, and a completion of its


@dataclass(frozen=True, slots=True)
class Ballot:
    """A pair of answers to be voted on."""

    pair: str  # its `pair_id`
    is_turned: bool  # its `second` answer stands first
    is_repeat: bool = False  # it has been asked before, with the sides the other way round


def pair_id(question: str, temperature: float, one: Said, other: Said) -> str:
    """The same for the same two answers, whichever comes first."""
    said = json.dumps([question, float(temperature), *ordered(one, other)])
    return sha256(said.encode()).hexdigest()


def pair_of(vote: Vote) -> str:
    """The `pair_id` of what was voted on."""
    left, right = ((side.adapter_sha256, side.completion) for side in (vote.left, vote.right))
    return pair_id(vote.question, vote.settings.temperature, left, right)


def ordered(one: Said, other: Said) -> list[Said]:
    """Two answers as first and second, whichever side each is on."""
    return sorted([one, other], key=lambda said: (said[0] or "", said[1]))


def queue(pairs: Iterable[str], voter: str, size: int, seed: int = 0) -> tuple[Ballot, ...]:
    """`size` of the pairs, in the same order for every voter, so that those who stop early have
    voted on the same ones; which answer stands first is each voter's own.

    Of each ten pairs one of the first five comes again, five pairs later or more.
    """

    def drawn(*what: object) -> bytes:
        return sha256(json.dumps([seed, *what]).encode()).digest()

    order = sorted(set(pairs), key=drawn)[:size]
    asked = [Ballot(pair, drawn(voter, pair)[0] % 2 == 1) for pair in order]
    return tuple(
        ballot
        for start in range(0, len(asked), BLOCK)
        for ballot in _with_repeat(asked[start : start + BLOCK], Random(f"{seed} {start}"))
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a voter is."""

    answered: int
    open: tuple[int, ...]  # ballots that may come next; () once all are answered


def standing(ballots: Sequence[Ballot], votes: Iterable[Vote], voter: str) -> Standing:
    """Which ballots the voter has answered; what comes twice opens once the first is answered."""
    cast = {(pair_of(vote), vote.repeat_of is not None) for vote in of_voter(votes, voter)}
    lacking = [i for i, one in enumerate(ballots) if (one.pair, one.is_repeat) not in cast]
    due = (i for i in lacking if not ballots[i].is_repeat or (ballots[i].pair, False) in cast)
    return Standing(len(ballots) - len(lacking), tuple(due))


def of_voter(votes: Iterable[Vote], voter: str) -> Iterator[Vote]:
    """The blind votes of one voter; "" is who gave no name."""
    return (vote for vote in votes if vote.blind and (vote.voter or "") == voter)


def _with_repeat(block: Sequence[Ballot], chance: Random) -> list[Ballot]:
    if len(block) < FEWEST:
        return [*block]
    half = len(block) // 2
    first = chance.randrange(half)
    place = chance.randint(first + half, len(block))
    again = replace(block[first], is_turned=not block[first].is_turned, is_repeat=True)
    return [*block[:place], again, *block[place:]]
