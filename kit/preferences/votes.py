"""Blind votes on pairs of answers, one line of votes.jsonl each; tallies and preference data.

The app writes them; `kit votes` counts and exports them.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from pydantic import AwareDatetime, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from kit.config import NonNegativeFloat, NonNegativeInt, PositiveInt
from kit.errors import ResultsError
from kit.evaluation.results import writing
from kit.files import append_line, write_atomically

if TYPE_CHECKING:
    from kit.evaluation.stats import Proportion

SCHEMA: Literal[1] = 1  # raised when a field changes its meaning

Preference = Literal["left", "right", "tie", "both_bad"]

_CHECKED = ConfigDict(extra="forbid", strict=True)


@checked(frozen=True, slots=True, config=_CHECKED)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@checked(frozen=True, slots=True, config=_CHECKED)
class Side:
    """One of the two answers, and what wrote it."""

    name: str
    adapter: str | None  # folder or hub id; None: the bare base
    adapter_sha256: str | None
    completion: str
    strict: bool | None  # the verdict; None: the problem has no known answer


@checked(frozen=True, slots=True, config=_CHECKED)
class VoteSettings:
    """How both sides were sampled."""

    temperature: NonNegativeFloat
    max_new_tokens: PositiveInt
    seed: NonNegativeInt


@checked(frozen=True, slots=True, config=_CHECKED)
class VotedProblem:
    """Which problem of which data set was asked."""

    data: str
    split: str | None  # None: the data set has none, or it is not known
    id: str


@checked(frozen=True, slots=True, config=_CHECKED, kw_only=True)
class Vote:
    """One vote: pydantic's ValidationError for a field of the wrong type or value."""

    question: str
    prompt: list[Message]
    answer: str | None  # the gold answer
    left: Side
    right: Side
    settings: VoteSettings
    vote: Preference
    blind: bool  # the names were hidden until the vote
    voter: str | None = None  # who voted, where names are given
    base: str | None = None  # id of the model both sides stand on
    problem: VotedProblem | None = None  # None: it was typed
    repeat_of: str | None = None  # id of the vote whose answers came once more, sides swapped
    id: str = dataclasses.field(default_factory=lambda: uuid4().hex)
    time: AwareDatetime = dataclasses.field(default_factory=lambda: datetime.now(timezone.utc))
    schema: Literal[1] = SCHEMA


_VOTE = TypeAdapter(Vote)
_Identity = tuple[str, str]  # name and hash of an adapter


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """The votes between two adapters, whichever side each was shown on."""

    first: str
    second: str
    first_wins: int
    second_wins: int
    ties: int
    both_bad: int

    @property
    def win_share(self) -> Proportion:
        """How often the first won, of the votes that preferred one."""
        from kit.evaluation.stats import Proportion  # which scipy and statsmodels come with

        return Proportion(self.first_wins, self.first_wins + self.second_wins)

    @property
    def p(self) -> float:
        from kit.evaluation.stats import sign_test

        return sign_test(self.first_wins, self.second_wins)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"win_share": self.win_share.record(), "p": self.p}

    def __str__(self) -> str:
        share = f"{self.win_share}, p = {self.p:.3g}" if self.win_share.n else "none preferred"
        return (
            f"{self.first} {self.first_wins} : {self.second_wins} {self.second} ({share}), "
            f"{self.ties} tie{'s' * (self.ties != 1)}, {self.both_bad} both bad"
        )


def append_vote(path: Path, vote: Vote) -> None:
    """Add one line to votes.jsonl; safe from several processes at once.

    Raises ResultsError when the file cannot be written.
    """
    with writing(path):
        append_line(path, _VOTE.dump_json(vote))


def read_votes(path: Path) -> tuple[list[Vote], int]:
    """The votes, and how many lines cannot be read as one; ResultsError without a file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ResultsError(f"cannot read the votes {path}: {error.strerror}") from None
    votes, corrupt = [], 0
    for line in filter(None, lines):
        try:
            votes.append(_VOTE.validate_json(line))
        except ValidationError:
            corrupt += 1
    return votes, corrupt


def tally(votes: Iterable[Vote], *, blind_only: bool = True) -> list[Tally]:
    """Count the votes of each pair of adapters.

    An adapter is its name and hash: a name that two adapters had is listed with the hashes. Votes
    between an adapter and itself decide nothing and are left out, as are those that repeat another.
    """
    results: dict[tuple[_Identity, _Identity], Counter[str]] = {}
    for vote in votes:
        left, right = _identity(vote.left), _identity(vote.right)
        if left == right or vote.repeat_of or (blind_only and not vote.blind):
            continue
        outcome: str = vote.vote
        if right < left:
            left, right = right, left
            outcome = {"left": "right", "right": "left"}.get(outcome, outcome)
        results.setdefault((left, right), Counter())[outcome] += 1
    names = Counter(name for name, _ in {identity for pair in results for identity in pair})

    def label(identity: _Identity) -> str:
        name, sha256 = identity
        return name if names[name] == 1 else f"{name} ({sha256[:8]})"

    return [
        Tally(
            first=label(first),
            second=label(second),
            first_wins=counts["left"],
            second_wins=counts["right"],
            ties=counts["tie"],
            both_bad=counts["both_bad"],
        )
        for (first, second), counts in sorted(results.items())
    ]


def to_preferences(votes: Iterable[Vote]) -> list[dict[str, Any]]:
    """The votes that prefer a side, in TRL's conversational preference format."""
    preferences = []
    for vote in votes:
        if vote.vote in ("left", "right"):
            sides = (vote.left, vote.right) if vote.vote == "left" else (vote.right, vote.left)
            chosen, rejected = (
                [{"role": "assistant", "content": side.completion}] for side in sides
            )
            prompt = [dataclasses.asdict(message) for message in vote.prompt]
            preferences.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return preferences


def export_preferences(votes_path: Path, out_path: Path) -> tuple[int, int]:
    """Write `to_preferences` as JSON lines; returns how many, and how many votes were unreadable.

    Raises ResultsError where there is no preference, or `out_path` exists.
    """
    votes, corrupt = read_votes(votes_path)
    preferences = to_preferences(votes)
    if not preferences:
        raise ResultsError(f"{votes_path} has no vote for left or right, so nothing to export")
    lines = (json.dumps(preference, ensure_ascii=False) + "\n" for preference in preferences)
    with writing(out_path, "; name a new file"):
        if os.path.lexists(out_path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        write_atomically(out_path, "".join(lines))
    return len(preferences), corrupt


def _identity(side: Side) -> _Identity:
    return side.name, side.adapter_sha256 or ""
