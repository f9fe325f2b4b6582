"""What votes teach: of each two answers, what those who voted on them settle on.

A voter has one voice on two answers, however often they came: where their votes differ it is none.
The outcome with the most voices counts, and none where two have equally many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from kit.preferences.gathered import (
    EQUAL_TEXTS,
    THERE_ALREADY,
    UNREADABLE,
    PreferenceData,
    count_contradictions,
    distinct,
)
from kit.preferences.records import (
    LabelledCompletion,
    PreferencePair,
    Prompt,
    Provenance,
    Writer,
)
from kit.preferences.votes import Side, Vote, read_votes

Outcome: TypeAlias = Literal["first", "second", "tie", "both_bad"]
_Pair: TypeAlias = tuple[Prompt, tuple[str, str]]  # the texts in the order of the alphabet
_Settled: TypeAlias = tuple[_Pair, Outcome, Vote]  # with the first vote for it

BOTH_BAD = "votes that both are bad"
_LEFT_OUT = {"tie": "ties", "both_bad": BOTH_BAD}


def pairs_of_votes(path: Path) -> PreferenceData[PreferencePair]:
    """The pairs on which a side is settled as better."""
    settled, dropped, contradictory = _settle(path)
    pairs = []
    for (prompt, texts), outcome, vote in settled:
        if outcome in _LEFT_OUT:
            dropped[_LEFT_OUT[outcome]] += 1
        else:
            chosen, rejected = texts if outcome == "first" else texts[::-1]
            origin = _provenance(vote, chosen, rejected)
            pairs.append(PreferencePair(prompt, chosen, rejected, origin))
    return PreferenceData(str(path), tuple(pairs), dropped, contradictory)


def labelled_of_votes(path: Path) -> PreferenceData[LabelledCompletion]:
    """The better one of a pair is good, the other is not; nor is either where both are bad. An
    answer that several pairs have is one completion of each label that it gets."""
    settled, dropped, contradictory = _settle(path)
    examples: list[LabelledCompletion] = []
    for (prompt, texts), outcome, vote in settled:
        if outcome == "tie":
            dropped["ties"] += 1
            continue
        good = {"first": 0, "second": 1}.get(outcome)
        examples += (
            LabelledCompletion(prompt, text, position == good, _provenance(vote, text))
            for position, text in enumerate(texts)
        )
    kept = distinct(examples)
    dropped += Counter({THERE_ALREADY: len(examples) - len(kept)})
    contradictory = max(contradictory, count_contradictions(kept))
    return PreferenceData(str(path), tuple(kept), dropped, contradictory)


def _settle(path: Path) -> tuple[list[_Settled], Counter[str], int]:
    """Every pair of answers with its outcome; what is left out; pairs with a vote each way."""
    votes, unreadable = read_votes(path)
    dropped = +Counter({UNREADABLE: unreadable})
    ballots: dict[_Pair, list[Vote]] = {}
    for vote in votes:
        first, second = sorted((vote.left.completion, vote.right.completion))
        if first == second:
            dropped[EQUAL_TEXTS] += 1
        else:
            ballots.setdefault((tuple(vote.prompt), (first, second)), []).append(vote)
    settled, contradictory = [], 0
    for pair, cast in ballots.items():
        contradictory += {"first", "second"} <= set(map(_outcome, cast))
        outcome = _majority(cast)
        if outcome is None:
            dropped["pairs on which the votes are divided"] += 1
        else:
            settled.append((pair, outcome, next(v for v in cast if _outcome(v) == outcome)))
    return settled, dropped, contradictory


def _majority(votes: Sequence[Vote]) -> Outcome | None:
    """What most voters say of one pair; None where no outcome has most voices."""
    said: dict[str | None, set[Outcome]] = {}
    for vote in votes:
        said.setdefault(vote.voter, set()).add(_outcome(vote))
    voices = Counter(
        outcome for outcomes in said.values() if len(outcomes) == 1 for outcome in outcomes
    )
    ranked = voices.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _outcome(vote: Vote) -> Outcome:
    """By the texts, whichever side each was on."""
    if vote.vote == "tie" or vote.vote == "both_bad":
        return vote.vote
    is_in_order = vote.left.completion < vote.right.completion
    return "first" if is_in_order == (vote.vote == "left") else "second"


def _provenance(vote: Vote, *texts: str) -> Provenance:
    """Of a vote, with what wrote these texts."""
    problem = vote.problem
    sides: dict[str, Side] = {side.completion: side for side in (vote.left, vote.right)}
    return Provenance(
        kind="vote",
        by=vote.voter,
        blind=vote.blind,
        base=vote.base,
        writers=tuple(Writer(sides[t].name, sides[t].adapter_sha256) for t in texts),
        data=problem.data if problem else None,
        split=problem.split if problem else None,
        problem=problem.id if problem else None,
        vote=vote.id,
        time=vote.time.isoformat(),
    )
