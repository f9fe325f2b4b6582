"""What all sessions of the page share: the model, what can be chosen, and who is running what."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kit.app.compare.background import Background
from kit.app.compare.comparison import Comparison, finish, to_vote
from kit.app.compare.problems import Problems
from kit.app.compare.setup import Setup
from kit.app.compare.tokens import ScoredAnswer
from kit.app.library.adapters import Catalogue, Choice, find, read_choice
from kit.app.library.results import Version
from kit.app.options import AppOptions
from kit.app.verdicts import Judge
from kit.errors import ConfigError
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.preferences.queue import Ballot, Standing, of_voter, pair_of, standing
from kit.preferences.tallies import Tally, between, tally
from kit.preferences.votes import Preference, Vote, read_votes, voting

if TYPE_CHECKING:
    from kit.app.compare.engine import Engine

T = TypeVar("T")


def queue_tag(settings: EvalSettings, prompt: str) -> str:
    """What the results of a queue are told by: asked again with the same settings and system
    prompt, it goes on."""
    asked = f"t{settings.temperature[0]:g}-n{settings.max_new_tokens}-s{settings.seed}"
    return f"app-{asked}-{sha256(prompt.encode()).hexdigest()[:8]}".replace(".", "_")


@lru_cache(maxsize=1)
def _votes_of(file: Version) -> tuple[tuple[Vote, ...], int]:
    """Read once until it changes."""
    votes, unreadable = read_votes(file.path)
    return tuple(votes), unreadable


class Session:
    """Serves the page. The base is loaded when `load` is called, or else by the first job."""

    def __init__(self, options: AppOptions, catalogue: Catalogue) -> None:
        self.options, self.catalogue = options, catalogue
        self.judge = Judge()
        self.problems = Problems(options, catalogue, self.judge)
        self._choices = {choice.label: choice for choice in catalogue.choices}
        self._running: dict[str, Background[Any]] = {}
        self._stopped: set[str] = set()  # sessions that were stopped before their turn came
        self._lock = threading.Lock()
        self._engine: Future[Engine] | None = None

    @property
    def labels(self) -> list[str]:
        """Of everything that can be put on a side."""
        return list(self._choices)

    @property
    def known(self) -> list[Choice]:
        """Everything that can be put on a side."""
        return list(self._choices.values())

    def load(self) -> Future[Engine]:
        """Begin to load the base in the background, once."""
        with self._lock:
            if self._engine is None:
                loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="base")
                self._engine = loader.submit(self._load)
                loader.shutdown(wait=False)
            return self._engine

    def engine(self) -> Engine:
        """The model, as soon as it is there; ModelError when it cannot be loaded."""
        return self.load().result()

    def choice(self, label: str) -> Choice:
        """What a label stands for; one that is not listed is a path or hub id, which is added.

        Raises what `read_choice` raises.
        """
        if label in self._choices:
            return self._choices[label]
        read = read_choice(label, self.options, self.catalogue.model)
        known = next((c for c in self._choices.values() if c.adapter == read.adapter), None)
        if known is not None:
            return known
        with self._lock:
            self._choices[label] = read
        return read

    def look_again(self) -> None:
        """Offer the adapters that have come since; raises what `find` raises."""
        found = find(replace(self.options, base=self.catalogue.model.id))
        with self._lock:
            self._choices |= {one.label: one for one in found.choices}

    def run(self, setup: Setup, session: str) -> Iterator[Comparison]:
        """Answers as they are written; the last item is over, also when `stop` ended it early.

        There is none when it was stopped before its turn came. An error comes after what was
        written until then, which is over too.
        """
        last, trouble = None, None
        try:
            for last in self._job(lambda: self.engine().run(setup), session):
                if last.scores:  # all has been said
                    last = finish(last, self.judge)
                yield last
        except Exception as error:
            trouble = error
        if last is not None and not last.is_over:
            yield finish(last, self.judge, is_stopped=True)
        if trouble is not None:
            raise trouble

    def evaluate(
        self, sides: Sequence[Choice], data: str, settings: EvalSettings, prompt: str, session: str
    ) -> Iterator[int]:
        """Let two choices answer many problems of a data set, kept on disk as an evaluation: how
        many they have answered. `stop` ends it between a few problems; asked again, it goes on."""
        subjects = [self._subject(choice, prompt) for choice in sides]
        asked = subjects, self.problems.configs[data], settings, queue_tag(settings, prompt)
        return self._job(lambda: self.engine().evaluate(*asked), session)

    def _subject(self, choice: Choice, prompt: str) -> Subject:
        """What is evaluated, with its results in its run or else beside the votes."""
        place = self.options.runs / "eval" / re.sub(r"[^\w-]+", "_", choice.label)
        results = Path(choice.run) / "eval" if choice.run else place
        model = self.catalogue.model
        own = (choice.run, choice.guidelines)
        return Subject(choice.label, model, choice.adapter, prompt, results, *own)

    def score(self, stored: Comparison, session: str) -> Iterator[Comparison]:
        """Stored answers with the scores of one after the other; `stop` ends it between two.

        Raises ConfigError for a side that nobody has offered for the base in memory, and what
        `Engine.score` raises.
        """
        known = [(choice.adapter, choice.base) for choice in self.known]
        for choice in stored.setup.sides.values():
            if (choice.adapter, choice.base) not in known:
                named = f" --adapters {choice.adapter}" if choice.adapter else ""
                raise ConfigError(
                    f"{choice.label} cannot be put on {self.catalogue.model.id}, so its tokens "
                    f"cannot be scored; start the app with --base {choice.base}{named}"
                )

        def scoring() -> Iterator[Comparison]:
            found: dict[str, ScoredAnswer] = {}
            for side, answers in stored.answers.items():
                alone = replace(stored, answers={side: answers})
                found = found | self.engine().score(alone, 0)
                yield replace(stored, scores={0: found})

        yield from self._job(scoring, session)

    def _job(self, produce: Callable[[], Iterator[T]], session: str) -> Iterator[T]:
        """What a job gives that `stop` ends; nothing where it was stopped before its turn."""
        job = Background(produce)
        with self._lock:
            if session in self._stopped:
                self._stopped.discard(session)
                return
            self._running[session] = job
        try:
            yield from job
        finally:
            with self._lock:
                if self._running.get(session) is job:
                    del self._running[session]

    def expect(self, session: str) -> None:
        """This session has asked for answers: from now on `stop` is about these."""
        with self._lock:
            self._stopped.discard(session)

    def stop(self, session: str) -> None:
        """End this session's answers where they are, or before they begin."""
        with self._lock:
            if session in self._running:
                self._running[session].stop()
            else:
                self._stopped.add(session)

    def scored(self, comparison: Comparison, sample: int) -> Comparison:
        """The comparison with the scores of that sample too."""
        if not comparison.is_finished or sample in comparison.scores:
            return comparison
        scores = self.engine().score(comparison, sample)
        return replace(comparison, scores=comparison.scores | {sample: scores})

    def vote(
        self,
        comparison: Comparison,
        sample: int,
        vote: Preference,
        *,
        voter: str = "",
        is_repeat: bool = False,
    ) -> Vote:
        """Write a blind vote unless the voter has cast it; the one that counts, the first.

        `is_repeat`: the voter has voted on this pair, and it came again. Raises ConfigError for
        answers that are not complete, ResultsError when the file cannot be read or written.
        """
        if not comparison.is_finished:
            raise ConfigError(
                "only complete answers are voted on: wait for both, or run again what was stopped"
            )
        with voting(self.options.votes) as append:  # a page that another process serves waits
            first, again = self._cast(comparison, voter)
            before = again if is_repeat else first
            if before is not None:
                return before
            written = to_vote(comparison, sample, vote, self.catalogue.model.id, voter)
            if is_repeat and first is not None:
                written = replace(written, repeat_of=first.id)
            append(written)
            return written

    def _cast(self, comparison: Comparison, voter: str) -> tuple[Vote | None, Vote | None]:
        """A voter's vote on a comparison, and the one on its coming again."""
        mine = of_voter(self.votes()[0], voter)
        votes = [v for v in mine if comparison.id in (v.id, pair_of(v))]
        return (
            next((v for v in votes if v.repeat_of is None), None),
            next((v for v in votes if v.repeat_of is not None), None),
        )

    def standing(self, ballots: Sequence[Ballot], voter: str) -> Standing:
        """How far a voter is in a session; ResultsError when the votes cannot be read."""
        return standing(ballots, self.votes()[0], voter)

    def tallies(self, hashes: Collection[str | None], voter: str | None = None) -> list[Tally]:
        """What the blind votes between two adapters come to, told by their hashes; of one voter or
        of all."""
        votes = between(self.votes()[0], hashes)
        return tally(votes if voter is None else of_voter(votes, voter))

    def votes(self) -> tuple[Sequence[Vote], int]:
        """The file's votes, and how many of its lines are none; none where there is no file yet.

        Raises ResultsError where there is one that cannot be read.
        """
        try:
            return _votes_of(Version.of(self.options.votes))
        except OSError:
            return (), 0

    def _load(self) -> Engine:
        # these import torch, transformers and PEFT, which takes longer than the rest of the page
        import torch

        from kit.app.compare.engine import Engine
        from kit.model.base import load_base

        # both sides are one batch, which Unsloth's kernels cannot compute
        model = self.catalogue.model.model_copy(update={"backend": "transformers"})
        return Engine(load_base(model, torch.device("cpu") if self.options.cpu else None))
