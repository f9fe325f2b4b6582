"""Answers that evaluations have left on disk, as comparisons that no model has to be loaded for."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from kit.app.browse.matching import differences
from kit.app.browse.pairs import Case, Filter, Outcome, Pairing, pair_up, select
from kit.app.compare.comparison import Answer, Comparison, Kept
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT, Setup
from kit.app.library.adapters import Choice
from kit.app.library.folders import display_names
from kit.app.library.results import Attempt, Stored, find_stored
from kit.app.verdicts import NoVerifier, Standard, badge_of, verdict_of
from kit.preferences.queue import Ballot, Said, ordered, pair_id, queue
from kit.preferences.votes import VotedProblem
from kit.tasks.problems import same_question


@dataclass(frozen=True, slots=True)
class Reading:
    """Stored pairs of two choices, in the order in which they are worth reading, and the place."""

    pairing: Pairing
    cases: tuple[Case, ...]
    sides: tuple[Choice, Choice]
    words: str  # which of the two is right more often, and how sure that is
    at: int = 0
    ballots: tuple[Ballot, ...] = ()  # of `cases`, where they are voted on in a session
    voter: str = ""  # in the session
    size: int = 0  # pairs the session has at most
    pool: tuple[Case, ...] = ()  # the pairs that the session is drawn from

    @property
    def names(self) -> list[str]:
        """What the sides are called, left then right."""
        return display_names([choice.label for choice in self.sides])

    @property
    def hashes(self) -> list[str | None]:
        """Of the two adapters."""
        return _hashes((self.pairing.left, self.pairing.right))

    @property
    def case(self) -> Case:
        return self.cases[self.at]

    def moved(self, by: int) -> Reading:
        """Round and round."""
        return replace(self, at=(self.at + by) % len(self.cases))

    def at_case(self, number: int) -> Reading:
        """Any pair of the two results, and from it on through all of them."""
        cases = self.pairing.cases
        return replace(self.ended(), cases=cases, at=number % len(cases))

    def at_problem(self, problem: str, sample: str) -> Reading:
        """A pair, as an address names it; the one it is at where that is not among the results."""
        keys = [(case.left.id, f"{case.left.sample}") for case in self.pairing.cases]
        asked = problem, sample
        return self.at_case(keys.index(asked)) if asked in keys else self

    def filtered(self, outcome: Outcome) -> Reading | None:
        """The pairs that came out so; None where there is none."""
        if outcome == "differ":
            cases = tuple(_worth_reading(self.pairing))
        else:
            cases = select(self.pairing, Filter(outcome=outcome)).cases
        return replace(self.ended(), cases=cases, at=0) if cases else None

    def session(self, voter: str, size: int, without: Collection[str] = ()) -> Reading | None:
        """These pairs as a session of blind votes, in an order of chance: those whose texts differ,
        without some questions. None where there is no such pair."""
        pool = self.pool or self.cases
        by_id = {
            _pair_id(self.pairing, case): case
            for case in pool
            if case.left.completion != case.right.completion
            and same_question(case.left.question) not in without
        }
        ballots = queue(by_id, voter, size)
        if not ballots:
            return None
        cases = tuple(by_id[ballot.pair] for ballot in ballots)
        return replace(self, cases=cases, ballots=ballots, voter=voter, size=size, pool=pool, at=0)

    def ended(self) -> Reading:
        """The pairs that a session was drawn from, at the same one."""
        if not self.ballots:
            return self
        at = self.pool.index(self.case)
        return replace(self, cases=self.pool, ballots=(), pool=(), at=at)

    @property
    def order(self) -> tuple[str, str]:
        """The sides in the order in which they stand: in a session as its ballot says."""
        said = _said(self.pairing, self.case)
        is_left_first = not self.ballots or (
            (ordered(*said)[0] == said[0]) != self.ballots[self.at].is_turned
        )
        return (LEFT, RIGHT) if is_left_first else (RIGHT, LEFT)

    def drawn(self) -> Reading:
        """Another one, by chance."""
        others = [i for i in range(len(self.cases)) if i != self.at]
        return replace(self, at=random.choice(others or [self.at]))

    def comparison(self, base: Choice | None = None, said: Attempt | None = None) -> Comparison:
        """What was asked and said. Which tokens it was is not kept, only how many. With `base` it
        has its column, empty where nothing that it `said` is stored."""
        left, case, about = self.pairing.left, self.case, self.pairing.left.about
        sides = dict(zip((LEFT, RIGHT), self.sides, strict=True))
        settings, gold = about.settings, case.left.answer or None
        setup = Setup(
            question=case.left.question,
            system_prompt=left.about.shared_prompt,
            gold=gold,
            sides=sides | ({BASE_SIDE: base} if base else {}),
            standard=None if gold else Standard(NoVerifier(), {}, decides=True),
            temperature=left.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            problem=VotedProblem(about.data, settings.split, case.left.id),
        )
        attempts = {LEFT: case.left, RIGHT: case.right} | ({BASE_SIDE: said} if said else {})
        return Comparison(
            setup,
            prompt="",
            answers={side: (_answer(attempt),) for side, attempt in attempts.items()},
            hashes=dict(zip((LEFT, RIGHT, BASE_SIDE), (*self.hashes, None), strict=True)),
            is_over=True,
            id=_pair_id(self.pairing, case),
            sample=case.left.sample,
        )


def open_reading(
    roots: Sequence[Path], left: Choice, right: Choice, tag: str | None = None
) -> Reading | None:
    """The first of the `stored_pairs` of two choices on which they differ, or else the first ones;
    None where there are none. With a tag, those that have it.

    Those pairs whose texts differ are read, with different verdicts first; all where none differ.
    """
    first = None
    for a, b in stored_pairs(find_stored(roots).stored, left, right):
        pairing = pair_up(a, b)
        if not pairing.cases or tag not in (None, a.about.tag):
            continue
        cases = tuple(_worth_reading(pairing))
        reading = reading_of(pairing, cases or pairing.cases, (left, right))
        if cases or tag:
            return reading
        first = first or reading
    return first


def stored_pairs(
    stored: Sequence[Stored], left: Choice, right: Choice
) -> list[tuple[Stored, Stored]]:
    """The results of two choices that can be compared: first those of the adapters that were
    evaluated last, and of these those of one tag, of the most problems, and the newest."""
    ours, theirs = ([one for one in stored if is_of(one, side)] for side in (left, right))
    pairs = [(a, b) for a in ours for b in theirs if a != b and not differences(a, b)]
    pairs.sort(key=lambda pair: pair[0].about.started or "", reverse=True)

    def rank(pair: tuple[Stored, Stored]) -> tuple[bool, bool, int]:
        a, b = (one.about for one in pair)
        problems = min(one.n if one.status == "finished" else 0 for one in (a, b))
        return _hashes(pair) == _hashes(pairs[0]), a.tag == b.tag, problems

    return sorted(pairs, key=rank, reverse=True)


def base_answer(roots: Sequence[Path], reading: Reading, base: Choice) -> Attempt | None:
    """What the bare base has said, asked as the pair was: in the same evaluation, or else lately.

    None where that is not stored; ResultsError for a file that cannot be read.
    """
    left = reading.pairing.left
    same = [
        one for one in find_stored(roots).stored if is_of(one, base) and not differences(left, one)
    ]
    same.sort(key=lambda one: (one.about.tag == left.about.tag, one.about.started or ""))
    cases = (case for one in reversed(same) for case in pair_up(left, one).cases)
    return next((case.right for case in cases if case.key == reading.case.key), None)


def reading_of(
    pairing: Pairing, cases: tuple[Case, ...], known: Collection[Choice], at: int = 0
) -> Reading:
    """Some pairs of two results; a side is the choice among `known` that it is of."""
    sides = tuple(
        next((choice for choice in known if is_of(one, choice)), None) or _unlisted(one)
        for one in (pairing.left, pairing.right)
    )
    return Reading(pairing, cases, sides, _in_words(pairing), at)  # type: ignore[arg-type]


def _in_words(pairing: Pairing) -> str:
    """Which of two results is right more often, and how sure that is."""
    by_problem: dict[str, list[Case]] = {}
    for case in pairing.cases:
        by_problem.setdefault(case.left.id, []).append(case)
    left, right = (
        [mean(getattr(case, side).strict for case in cases) for cases in by_problem.values()]
        for side in ("left", "right")
    )
    from kit.evaluation.stats import paired_difference  # which scipy comes with

    found = paired_difference([left], [right])
    bounds = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    about = pairing.left.about
    tags = dict.fromkeys(filter(None, (about.tag, pairing.right.about.tag)))
    of = ", ".join([f"{about.data} ({about.settings.split})", *tags])
    return (
        f"{len(left):,} stored problems of {of}: {mean(left):.1%} right "
        f"against {mean(right):.1%}, {100 * found.value:+.1f} points ({bounds}); alone right on "
        f"{found.only_a} against {found.only_b} ({found.test}: p = {found.p:.2g})"
    )


def _worth_reading(pairing: Pairing) -> list[Case]:
    """The pairs whose texts differ: first those with different verdicts, then answers."""
    cases = [c for c in pairing.cases if c.left.completion != c.right.completion]
    return sorted(
        cases, key=lambda c: (c.left.strict == c.right.strict, not c.answers_differ("lenient"))
    )


def is_of(stored: Stored, choice: Choice) -> bool:
    """Whether a result is of this choice: it lies in its run, or names its adapter or base."""
    if choice.run and stored.completions.path.is_relative_to(Path(choice.run).resolve()):
        return True
    target = stored.about.target
    if target.adapter is None or choice.adapter is None:
        return target.adapter == choice.adapter and target.base == choice.base
    return Path(target.adapter).resolve() == Path(choice.adapter).resolve()


def _unlisted(stored: Stored) -> Choice:
    """What was evaluated, where it is not among what can be run."""
    target, prompt = stored.about.target, stored.about.shared_prompt
    return Choice(stored.name, target.adapter, target.base, prompt)


def _hashes(pair: tuple[Stored, Stored]) -> list[str | None]:
    return [one.about.target.adapter_sha256 for one in pair]


def _said(pairing: Pairing, case: Case) -> tuple[Said, Said]:
    """What was said, left then right."""
    left, right = _hashes((pairing.left, pairing.right))
    return (left, case.left.completion), (right, case.right.completion)


def _pair_id(pairing: Pairing, case: Case) -> str:
    return pair_id(case.left.question, pairing.left.temperature, *_said(pairing, case))


def _answer(attempt: Attempt) -> Answer:
    completion = Kept(range(attempt.tokens), attempt.truncated, attempt.completion)
    return Answer(completion, 0.0, verdict_of(attempt), badge_of(attempt))
