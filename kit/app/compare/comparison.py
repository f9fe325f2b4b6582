"""One comparison: what was asked, what each side has said, and what that is worth."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import uuid4

from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT, Setup
from kit.app.compare.tokens import ScoredAnswer
from kit.app.exports import ComparedPair, ComparedSide
from kit.app.verdicts import Badge, Judge, badge
from kit.errors import ResultsError
from kit.preferences.votes import Message, Preference, Side, Vote, VoteSettings
from kit.tasks.answers import parse_number
from kit.tasks.verifiers import Verdict

if TYPE_CHECKING:
    from kit.model.rollout import Completion


@dataclass(frozen=True, slots=True)
class Kept:
    """A completion as an evaluation keeps it: which tokens it had is not known, only how many."""

    tokens: range
    truncated: bool
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample of one side, judged once it has ended."""

    completion: Completion | Kept
    seconds: float  # until its newest token
    verdict: Verdict | None = None  # None: still being written
    badge: Badge | None = None

    @property
    def tokens_per_second(self) -> float:
        return len(self.completion.tokens) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers so far; `scores` and badges once all have ended."""

    setup: Setup
    prompt: str  # exactly as both are sent it; without guidelines where those of the sides differ
    answers: dict[str, tuple[Answer, ...]]  # by side, one per sample
    hashes: Mapping[str, str | None]  # of the adapters that gave them, by side
    is_over: bool = False
    is_stopped: bool = False
    scores: dict[int, dict[str, ScoredAnswer]] = field(default_factory=dict)  # by sample and side
    id: str = field(default_factory=lambda: uuid4().hex)  # of a stored pair its `pair_id`
    sample: int = 0  # of a stored pair, which one of its problem's
    is_in_turn: bool = False  # one adapter after the other: the pace tells which it is

    @property
    def is_stored(self) -> bool:
        """Whether an evaluation has left it on disk."""
        return not self.prompt

    @property
    def is_finished(self) -> bool:
        """Whether every answer came to its end and the first ones have their scores."""
        return self.is_over and not self.is_stopped

    def tally(self, side: str) -> Samples:
        """What this side's samples say together."""
        return Samples(tuple(a.verdict for a in self.answers[side] if a.verdict is not None))


@dataclass(frozen=True, slots=True)
class Samples:
    """Several samples of one side."""

    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> int:
        """Strictly right ones."""
        return sum(verdict.strict for verdict in self.verdicts)

    def pass_at(self, k: int) -> float:
        """Estimated probability that one of k samples is strictly right."""
        from kit.evaluation.stats import pass_at_k  # which scipy comes with

        return pass_at_k([[verdict.strict for verdict in self.verdicts]], k).value

    @property
    def majority(self) -> tuple[str, int, bool] | None:
        """The most frequent answer, how often it was given, and whether it is right; None without
        any answer. Of equally frequent ones the first. 0.5 and 1/2 are one answer."""
        keys = [_same(v.lenient_answer) for v in self.verdicts if v.lenient_answer is not None]
        if not keys:
            return None
        key, count = Counter(keys).most_common(1)[0]
        first = next(v for v in self.verdicts if _same(v.lenient_answer) == key)
        return str(first.lenient_answer), count, first.lenient


def finish(comparison: Comparison, judge: Judge, *, is_stopped: bool = False) -> Comparison:
    """Judge all answers as they stand."""
    setup, answers = comparison.setup, {}
    standard = setup.standard or judge.standard(setup.gold)
    for side, mine in comparison.answers.items():
        verdicts = standard.judge([a.completion.text for a in mine])
        answers[side] = tuple(
            replace(
                answer,
                verdict=verdict,
                badge=badge(
                    verdict, is_judged=setup.is_judged, truncated=answer.completion.truncated
                ),
            )
            for answer, verdict in zip(mine, verdicts, strict=True)
        )
    return replace(comparison, answers=answers, is_over=True, is_stopped=is_stopped)


def to_vote(
    comparison: Comparison, sample: int, vote: Preference, base: str, voter: str = ""
) -> Vote:
    """A blind vote on the left and right answers of one sample; `vote` as `Vote` names it."""
    setup, pair = comparison.setup, to_pair(comparison, sample)
    left, right = (
        Side(side.name, side.adapter, side.adapter_sha256, side.completion, side.strict)
        for side in (pair.left, pair.right)
    )
    found = Vote(
        question=setup.question,
        prompt=[Message(message["role"], message["content"]) for message in setup.shared_messages],
        answer=setup.gold,
        left=left,
        right=right,
        settings=VoteSettings(setup.temperature, setup.max_new_tokens, setup.seed),
        vote=vote,
        blind=True,
        voter=voter or None,
        base=base,
        problem=setup.problem,
    )
    # what was asked just now has a vote of its own, also where others have said the same before
    return found if comparison.is_stored else replace(found, id=comparison.id)


def to_pair(comparison: Comparison, sample: int) -> ComparedPair:
    """The left and right answers of one sample, for exports."""
    setup = comparison.setup

    def side(name: str) -> ComparedSide:
        answer, choice = comparison.answers[name][sample], setup.sides[name]
        scores = comparison.scores.get(sample, {}).get(name)
        if answer.verdict is None:
            raise ResultsError("the answers are still being written; export them afterwards")
        return ComparedSide(
            name=choice.label,
            adapter=choice.adapter,
            adapter_sha256=comparison.hashes[name],
            completion=answer.completion.text,
            strict_answer=answer.verdict.strict_answer,
            lenient_answer=answer.verdict.lenient_answer,
            strict=answer.verdict.strict if setup.is_judged else None,
            lenient=answer.verdict.lenient if setup.is_judged else None,
            tokens=len(answer.completion.tokens),
            truncated=answer.completion.truncated,
            seconds=round(answer.seconds, 3),
            mean_logprob=_finite(scores.mean_logprob[name]) if scores else None,
            kl_to_base=_finite(scores.kl_to_base) if scores else None,
        )

    return ComparedPair(
        question=setup.question,
        system_prompt=setup.system_prompt,
        prompt=comparison.prompt or None,  # of a stored answer it is not kept
        answer=setup.gold,
        settings={
            "temperature": setup.temperature,
            "max_new_tokens": setup.max_new_tokens,
            "seed": setup.seed,
            "sample": sample,
        },
        left=side(LEFT),
        right=side(RIGHT),
        time=time.strftime("%FT%T%z"),
    )


def _same(answer: str | None) -> object:
    """Equal for answers that count as one."""
    if answer is None:
        return None
    number = parse_number(answer)
    return answer.strip() if number is None else number


def _finite(value: float) -> float | None:
    """JSON has no number for what a broken adapter gives."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Shown:
    """In blind mode the sides may be exchanged, and names wait for the vote."""

    comparison: Comparison
    order: tuple[str, str] = (LEFT, RIGHT)  # the sides in the first and in the second column
    is_blind: bool = False
    vote: Preference | None = None
    is_repeat: bool = False  # the voter has voted on it before
    sample: int = 0
    history: tuple[ComparedPair, ...] = ()  # this session's finished comparisons, for exports

    @property
    def hides_names(self) -> bool:
        return self.is_blind and self.vote is None

    @property
    def lacks_scores(self) -> bool:
        """Whether stored answers wait for what may be told of their tokens."""
        said = self.comparison
        return said.is_stored and not said.scores and not self.hides_names

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
