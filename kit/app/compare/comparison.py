"""One comparison: what was asked, what each side has said, and what that is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kit.app.compare.job import BASE_SIDE, LEFT, RIGHT, Job, Progress, ScoredAnswer
from kit.app.exports import ComparedPair
from kit.app.library.adapters import Choice
from kit.app.verdicts import Badge, Judge, Standard, badge
from kit.errors import ConfigError
from kit.evaluation.stats import pass_at_k
from kit.preferences.votes import Message, Preference, Side, Vote, VoteSettings
from kit.tasks.answers import parse_number
from kit.tasks.verifiers import Verdict

if TYPE_CHECKING:
    from kit.app.compare.engine import Engine
    from kit.model.rollout import Completion

MAX_SAMPLES = 64
MAX_CHARACTERS = 50_000  # of a problem and a system prompt; longer than any context here
TYPES = {
    "text": str,
    "text or null": str | None,
    "a number": int | float,
    "a whole number": int,
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What all sides are asked. Raises ConfigError for what cannot be sampled."""

    question: str
    system_prompt: str
    gold: str | None  # the right answer, where it is known
    sides: Mapping[str, Choice]  # LEFT, RIGHT and perhaps BASE_SIDE
    standard: Standard | None = None  # of the problem's data set; None: the gold answer alone
    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0
    samples: int = 1

    def __post_init__(self) -> None:
        check_type("problem", self.question, "text")
        check_type("system prompt", self.system_prompt, "text")
        check_type("temperature", self.temperature, "a number")
        check_type("new tokens", self.max_new_tokens, "a whole number")
        check_type("seed", self.seed, "a whole number")
        check_type("samples", self.samples, "a whole number")
        if not self.question.strip():
            raise ConfigError("the problem is empty: write one, or pick one from a data set")
        if len(self.question) + len(self.system_prompt) > MAX_CHARACTERS:
            raise ConfigError(
                f"problem and system prompt have {len(self.question) + len(self.system_prompt)} "
                f"characters; {MAX_CHARACTERS} are allowed"
            )
        for name, value, low, high in (
            ("temperature", self.temperature, 0, 10),
            ("new tokens", self.max_new_tokens, 1, 100_000),
            ("seed", self.seed, 0, 2**63),
            ("samples", self.samples, 1, MAX_SAMPLES),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} must be from {low} to {high:g}, got {value}")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"at temperature 0 all {self.samples} samples would be the same; raise the "
                "temperature or ask for one sample"
            )

    @property
    def is_judged(self) -> bool:
        """Whether anything decides which answers are right."""
        return self.gold is not None if self.standard is None else self.standard.decides

    @property
    def messages(self) -> list[dict[str, Any]]:
        return chat(self.system_prompt, self.question)

    @property
    def job(self) -> Job:
        return Job(
            messages=self.messages,
            adapters={side: choice.adapter for side, choice in self.sides.items()},
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            samples=self.samples,
        )


def check_type(name: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless a value from outside is of one of TYPES."""
    if not isinstance(value, TYPES[allowed]) or isinstance(value, bool):
        raise ConfigError(f"{name} must be {allowed}, got {value!r:.80}")


def chat(system_prompt: str, question: str) -> list[dict[str, Any]]:
    """The messages of a prompt; an empty system prompt is not sent."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample of one side, judged once it has ended."""

    completion: Completion
    seconds: float
    verdict: Verdict | None = None  # None: still being written
    badge: Badge | None = None

    @property
    def tokens_per_second(self) -> float:
        return len(self.completion.tokens) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers so far; `scores`, by sample and side, and badges once all have ended."""

    setup: Setup
    prompt: str  # exactly as it is sent
    progress: Progress
    answers: dict[str, tuple[Answer, ...]]
    is_over: bool = False
    is_stopped: bool = False
    scores: dict[int, dict[str, ScoredAnswer]] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid4().hex)  # of what is voted on

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


def compare(engine: Engine, judge: Judge, setup: Setup) -> Iterator[Comparison]:
    """Let all sides answer; the last item is judged and has the scores of the first samples.

    Raises what `Engine.run` raises.
    """
    prompt = engine.prompt_text(setup.messages)
    for progress in engine.run(setup.job):
        comparison = Comparison(setup, prompt, progress, _answers(progress))
        if progress.scores:
            comparison = finish(comparison, judge)
        yield comparison


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
                    verdict,
                    is_judged=setup.is_judged,
                    truncated=answer.completion.truncated,
                ),
            )
            for answer, verdict in zip(mine, verdicts, strict=True)
        )
    scores = {0: comparison.progress.scores} if comparison.progress.scores else {}
    return replace(comparison, answers=answers, is_over=True, is_stopped=is_stopped, scores=scores)


def to_vote(comparison: Comparison, sample: int, vote: Preference, *, blind: bool) -> Vote:
    """A vote on the left and right answers of one sample; `vote` as `Vote` names it."""
    setup = comparison.setup

    def side(name: str) -> Side:
        choice, answer = setup.sides[name], comparison.answers[name][sample]
        is_judged = setup.is_judged and answer.verdict is not None
        return Side(
            name=choice.label,
            adapter=choice.adapter,
            adapter_sha256=comparison.progress.hashes[name],
            completion=answer.completion.text,
            strict=answer.verdict.strict if is_judged and answer.verdict else None,
        )

    return Vote(
        question=setup.question,
        prompt=[Message(message["role"], message["content"]) for message in setup.messages],
        answer=setup.gold,
        left=side(LEFT),
        right=side(RIGHT),
        settings=VoteSettings(setup.temperature, setup.max_new_tokens, setup.seed),
        vote=vote,
        blind=blind,
    )


def _answers(progress: Progress) -> dict[str, tuple[Answer, ...]]:
    return {
        side: tuple(
            Answer(completion, seconds)
            for completion, seconds in zip(completions, progress.seconds[side], strict=True)
        )
        for side, completions in progress.completions.items()
    }


def _same(answer: str | None) -> object:
    """Equal for answers that count as one."""
    if answer is None:
        return None
    number = parse_number(answer)
    return answer.strip() if number is None else number


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
