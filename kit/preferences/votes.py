"""Blind votes on pairs of answers, one line of votes.jsonl each.

The app writes them; `kit votes` counts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import AwareDatetime, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from kit.config import NonNegativeFloat, NonNegativeInt, PositiveInt
from kit.errors import ResultsError
from kit.evaluation.results import writing
from kit.files import appending

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


def append_vote(path: Path, vote: Vote) -> None:
    """Add one line to votes.jsonl; safe from several processes at once.

    Raises ResultsError when the file cannot be written.
    """
    with voting(path) as append:
        append(vote)


@contextmanager
def voting(path: Path) -> Iterator[Callable[[Vote], None]]:
    """Keep others from voting meanwhile, and add votes; raises as `append_vote`."""
    with writing(path), appending(path) as append:
        yield lambda vote: append(_VOTE.dump_json(vote))


def read_some_votes(path: Path) -> tuple[list[Vote], int]:
    """As `read_votes`; ResultsError too for a file without any vote in its lines."""
    votes, corrupt = read_votes(path)
    if corrupt and not votes:
        raise ResultsError(
            f"{path} holds no votes: none of its {corrupt} lines is one; name the votes.jsonl that "
            "kit app wrote"
        )
    return votes, corrupt


def read_votes(path: Path) -> tuple[list[Vote], int]:
    """The votes, and how many lines cannot be read as one; ResultsError without a file.

    A vote that is there several times, as in a copy put behind its original, is one.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ResultsError(f"cannot read the votes {path}: {error.strerror}") from None
    votes: dict[tuple[str, str | None], Vote] = {}
    corrupt = 0
    for line in filter(None, lines):
        try:
            vote = _VOTE.validate_json(line)
        except ValidationError:
            corrupt += 1
        else:
            votes.setdefault((vote.id, vote.voter), vote)
    return list(votes.values()), corrupt
