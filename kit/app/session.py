"""What all sessions of the page share: the model, what can be chosen, and who is running what."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.app.compare.background import Background
from kit.app.compare.comparison import Comparison, finish, pair_id, to_vote
from kit.app.compare.problems import Problems
from kit.app.compare.setup import LEFT, RIGHT, Setup
from kit.app.library.adapters import Catalogue, Choice, read_choice
from kit.app.options import AppOptions
from kit.app.verdicts import Judge
from kit.errors import ConfigError, ResultsError
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.preferences.votes import Preference, Tally, Vote, append_vote, read_votes, tally

if TYPE_CHECKING:
    from kit.app.compare.engine import Engine


def queue_tag(settings: EvalSettings, prompt: str) -> str:
    """What the results of a queue are told by: asked again with the same settings and system
    prompt, it goes on."""
    asked = f"t{settings.temperature[0]:g}-n{settings.max_new_tokens}-s{settings.seed}"
    return f"app-{asked}-{sha256(prompt.encode()).hexdigest()[:8]}".replace(".", "_")


def _both_ways(vote: Vote) -> dict[str, Preference]:
    """The vote by the ids of the two answers, whichever side each is on."""
    left, right = ((side.adapter_sha256, side.completion) for side in (vote.left, vote.right))
    asked = vote.question, vote.settings.temperature
    turned: dict[Preference, Preference] = {"left": "right", "right": "left"}
    return {
        pair_id(*asked, right, left): turned.get(vote.vote, vote.vote),
        pair_id(*asked, left, right): vote.vote,
    }


@dataclass(frozen=True, slots=True)
class BlindScore:
    """The blind votes between two adapters so far."""

    tally: Tally | None  # None: not one yet
    unreadable: int  # lines of the file


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
        self._votes: dict[str, Preference] | None = None  # by comparison
        self._voting = threading.Lock()
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

    def run(self, setup: Setup, session: str) -> Iterator[Comparison]:
        """Answers as they are written; the last item is over, also when `stop` ended it early.

        There is none when it was stopped before its turn came. An error comes after what was
        written until then, which is over too.
        """
        job = Background(lambda: self.engine().run(setup))
        if not self._begins(job, session):
            return
        last, trouble = None, None
        try:
            try:
                for last in job:
                    if last.scores:  # all has been said
                        last = finish(last, self.judge)
                    yield last
            except Exception as error:
                trouble = error
            if last is not None and not last.is_over:
                yield finish(last, self.judge, is_stopped=True)
            if trouble is not None:
                raise trouble
        finally:
            self._ends(job, session)

    def evaluate(
        self,
        sides: Sequence[Choice],
        data: str,
        settings: EvalSettings,
        prompt: str,
        session: str,
    ) -> Iterator[int]:
        """Let two choices answer many problems of a data set, kept on disk as an evaluation: how
        many they have answered. `stop` ends it between a few problems; asked again, it goes on."""
        subjects = [self._subject(choice, prompt) for choice in sides]
        config = self.problems.configs[data]
        job: Background[int] = Background(
            lambda: self.engine().evaluate(subjects, config, settings, queue_tag(settings, prompt))
        )
        if self._begins(job, session):
            try:
                yield from job
            finally:
                self._ends(job, session)

    def _subject(self, choice: Choice, prompt: str) -> Subject:
        """What is evaluated, with its results in its run or else beside the votes."""
        place = self.options.runs / "eval" / re.sub(r"[^\w-]+", "_", choice.label)
        results = Path(choice.run) / "eval" if choice.run else place
        model = self.catalogue.model
        return Subject(choice.label, model, choice.adapter, prompt, results, choice.run)

    def _begins(self, job: Background[Any], session: str) -> bool:
        """Whether a job of this session may begin: not where it was stopped before its turn."""
        with self._lock:
            if session in self._stopped:
                self._stopped.discard(session)
                return False
            self._running[session] = job
            return True

    def _ends(self, job: Background[Any], session: str) -> None:
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
        self, comparison: Comparison, sample: int, vote: Preference, *, blind: bool
    ) -> Preference:
        """Write a vote unless the comparison has one; the one that counts, which is the first.

        Raises ConfigError for answers that are not complete, ResultsError when the file cannot be
        written.
        """
        if not comparison.is_finished:
            raise ConfigError(
                "only complete answers are voted on: wait for both, or run again what was stopped"
            )
        with self._voting:
            votes = self._voted()
            if comparison.id not in votes:
                written = to_vote(comparison, sample, vote, blind=blind)
                append_vote(self.options.votes, written)
                votes |= _both_ways(written) | {comparison.id: vote}
            return votes[comparison.id]

    def vote_on(self, comparison: Comparison) -> Preference | None:
        """The vote a comparison has; on stored answers also one from before the app was started."""
        with self._voting:
            return self._voted().get(comparison.id)

    def _voted(self) -> dict[str, Preference]:
        """By comparison; what the file of votes holds is read once."""
        if self._votes is None:
            try:
                kept, _ = read_votes(self.options.votes)
            except ResultsError:  # there is none yet, or `score` will say what is wrong with it
                kept = []
            self._votes = {}
            for vote in kept:
                self._votes |= _both_ways(vote)
        return self._votes

    def score(self, comparison: Comparison) -> BlindScore:
        """The blind votes between these two adapters, whichever side they were on."""
        if not self.options.votes.is_file():
            return BlindScore(None, 0)
        votes, unreadable = read_votes(self.options.votes)
        pair = {comparison.hashes[side] for side in (LEFT, RIGHT)}
        mine = [v for v in votes if {v.left.adapter_sha256, v.right.adapter_sha256} == pair]
        tallies = tally(mine)
        return BlindScore(tallies[0] if tallies else None, unreadable)

    def _load(self) -> Engine:
        # these import torch, transformers and PEFT, which takes longer than the rest of the page
        import torch

        from kit.app.compare.engine import Engine
        from kit.model.base import load_base

        # both sides are one batch, which Unsloth's kernels cannot compute
        model = self.catalogue.model.model_copy(update={"backend": "transformers"})
        return Engine(load_base(model, torch.device("cpu") if self.options.cpu else None))
