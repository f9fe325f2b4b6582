"""The Compare tab: two sides, and the base if wanted, answer one problem; their reasoning first."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from kit.app.compare.analysis_view import BY_TOKEN, AnalysisView
from kit.app.compare.comparison import Comparison, Shown, to_pair
from kit.app.compare.export_view import ExportView
from kit.app.compare.problem_view import ProblemView
from kit.app.compare.result_view import ResultView
from kit.app.compare.revote import learned_questions
from kit.app.compare.setup import BASE_SIDE, LEFT, MAX_SAMPLES, RIGHT, Setup, chat
from kit.app.compare.stored import Reading, base_answer, open_reading
from kit.app.compare.vote_view import VoteView
from kit.app.inert import inert_markdown
from kit.app.library.adapters import BASE_LABEL, advice, default_pair
from kit.app.pair_view import PairView
from kit.app.parts import AT_ONCE, QUIET, notice_html
from kit.app.session import Session, queue_tag
from kit.errors import KitError, ResultsError
from kit.evaluation.settings import EvalSettings

MODEL = "model"  # the queue of everything that computes with the model: one at a time
EVERY = 0.08  # seconds between two pictures of the answers
MANY = 1_000  # problems of a queue, or pairs of a blind session, at most
HISTORY = 500  # comparisons a session keeps for its export
NO_PAIR = "There is no pair of stored answers here that differ and could be voted on."
WAITING = '<span class="kit-badge">{} …</span>'

Update = dict[Any, Any]


class CompareView:
    """Builds the tab inside the current Gradio context and wires its events."""

    def __init__(self, desk: Session, pair: PairView) -> None:
        self.desk, self.pair = desk, pair
        self.shown, self.reading = gr.State(None), gr.State(None)
        self.wanted, self.scored = gr.State(None), gr.State(None)  # scores of stored answers
        with gr.Row(elem_id="kit-problem"):
            self.problem = ProblemView(desk)
            self.go = gr.Button("Run", variant="primary", elem_id="kit-run", size="sm")
            self.many = gr.Button("20 problems", elem_id="kit-many", size="sm")
            self.halt = gr.Button(
                "Stop", variant="stop", visible=False, elem_id="kit-stop", size="sm"
            )
        sentence = advice(desk.catalogue)
        if sentence:
            gr.Markdown(inert_markdown(sentence), elem_id="kit-advice")
        self.notice = gr.HTML(visible=False, elem_id="kit-notice")
        self.result = ResultView(desk)
        self.reader = AnalysisView(self.shown)
        self.vote = VoteView(desk, self.shown)
        with gr.Sidebar(position="right", open=False, elem_id="kit-drawer", width=380):
            self._drawer()
        self._wire()

    # --- layout ------------------------------------------------------------------------------

    def _drawer(self) -> None:
        self.temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature", info="0: greedy")
        self.max_new_tokens = gr.Slider(8, 2048, value=256, step=8, label="New tokens at most")
        self.samples = gr.Slider(1, MAX_SAMPLES, value=1, step=1, label="Samples of each side")
        with gr.Row():
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed, the same for all")
            self.again = gr.Button("Again, with the next seed", elem_id="kit-again", visible=False)
        whole: dict[str, Any] = {"precision": 0, "minimum": 1, "maximum": MANY}
        self.count = gr.Number(20, label="Problems of a queue", **whole)
        self.size = gr.Number(40, label="Pairs of a session", **whole)
        self.system_prompt = gr.Textbox(
            default_pair(self.desk.catalogue)[0].system_prompt,
            label="System prompt",
            info="As the adapters were trained with; empty: none is sent",
            lines=2,
            max_lines=8,
        )
        self.problem.build_drawer()
        self.export = ExportView()
        if self.desk.catalogue.unusable:
            with gr.Accordion("Adapters that cannot be chosen", open=False):
                lines = [f"{label}: {reason}" for label, reason in self.desk.catalogue.unusable]
                gr.Markdown(inert_markdown("\n".join(lines)), line_breaks=True)

    # --- events ------------------------------------------------------------------------------

    def _wire(self) -> None:
        problem, pair = self.problem, self.pair
        self.asked = [
            *(*pair.both, pair.with_base, pair.blind, self.temperature),
            *(self.max_new_tokens, self.samples, self.seed, self.system_prompt),
        ]
        self.looks = {
            *(self.shown, self.reading, pair.with_base, pair.blind, self.vote.voter, self.size),
            *(self.reader.views, *self.reader.controls),
        }
        inputs = {*self.asked, *self.looks, *problem.taken}
        self.outputs = outputs = [
            *(self.shown, self.reading, self.notice, *pair.both, *problem.taken),
            *(self.system_prompt, *self.reader.outputs, *self.vote.outputs, *self.export.outputs),
            *self.result.outputs,
        ]
        self.locked = [self.go, self.many, self.again, *self.asked, *problem.controls, self.halt]
        again = self.again.click(lambda n: int(n or 0) + 1, self.seed, self.seed, **AT_ONCE)
        for trigger in (self.go.click, problem.question.submit, again.then):
            self._compute(trigger, self._run, inputs, outputs)
        asked = {*inputs, problem.source, self.count}
        self._compute(self.many.click, self._run_many, asked, [*outputs, self.many])
        waiting = [self.scored, self.notice]
        found = self._compute(self.wanted.change, self._score, {self.shown}, waiting)
        found.then(self._take_scores, {*self.looks, self.scored}, outputs, **QUIET)
        self.count.change(lambda n: f"{int(n or 1)} problems", self.count, self.many, **AT_ONCE)
        self.halt.click(self._stop, None, None, **AT_ONCE)
        self.temperature.change(
            lambda value: gr.update(visible=value > 0), self.temperature, self.again, **AT_ONCE
        )
        sent = [self.system_prompt, problem.question]
        problem.exact.expand(self._prompt, sent, problem.prompt, **QUIET)
        latest = QUIET | {"trigger_mode": "always_last"}
        picked = [self.shown, *self.reader.controls]
        self.reader.heads.pick(self._pick_sample, picked, outputs, concurrency_id=MODEL, **latest)
        self.vote.wire(self._voted, self.looks, outputs)
        self.result.again.click(self._revote, self.looks, [*outputs, pair.blind], **QUIET)
        moves = inputs | {problem.source, problem.search}
        for button, by in ((problem.previous, -1), (problem.following, 1), (problem.chance, None)):
            self._reads(button.click, self._moving(by), moves)
        self._reads(self.vote.following.click, self._moving(1), moves)
        seen = [self.reading, self.shown, pair.blind, *self.reader.controls, pair.with_base]
        self._reads(self.reader.heads.go, self._go, seen)
        named = [self.vote.voter.submit, self.vote.voter.blur, self.size.change]
        gr.on(named, self._renamed, self.looks, outputs, **latest)
        self._reads(self.vote.outcome.input, self._filter, {*self.looks, self.vote.outcome})
        gr.on(None, self._open, None, outputs, **QUIET)  # as the page opens
        changed = partial(gr.on, [part.change for part in pair.both])
        followed = self._reads(changed, self._follow, inputs, trigger_mode="always_last")
        followed.then(None, pair.both, None, js=ADDRESS)
        pair.swap.click(lambda *both: both[::-1], pair.both, pair.both, **AT_ONCE)
        self._reads(pair.blind.input, self._blinded, inputs)
        self._reads(pair.with_base.input, self._based, self.looks)
        self._want(self.reader.views.input)

    def _compute(self, trigger: Any, fn: Any, inputs: Any, outputs: list[Any]) -> Any:
        """At an event, what the model is for, one at a time; the page is locked meanwhile."""
        queue = QUIET | {"concurrency_id": MODEL, "concurrency_limit": 1}
        locked = trigger(self._lock, None, self.locked, **AT_ONCE)
        done = locked.then(fn, inputs, outputs, **queue)
        done.then(partial(self._locked, False), None, self.locked, **AT_ONCE)
        return done

    def read_after(self, event: Any) -> Any:
        """Show the pair that an event has put into `reading`."""
        return self._reads(event.then, self._show_reading, self.looks)

    def _reads(self, trigger: Any, fn: Any, inputs: Any, **how: Any) -> Any:
        """At an event, show what may be another stored pair."""
        event = trigger(fn, inputs, self.outputs, **how, **QUIET)
        self._want(event.then)
        return event

    def _want(self, trigger: Any) -> None:
        shown = {self.shown, self.reader.views}
        trigger(self._unscored, shown, [self.wanted, self.notice], **QUIET)

    def _show_reading(self, values: Update) -> Update:
        reading: Reading | None = values[self.reading]
        return gr.skip() if reading is None else self._read(reading, values)

    def _lock(self, request: gr.Request) -> list[Any]:
        self.desk.expect(str(request.session_hash))
        return self._locked(True)

    def _locked(self, is_on: bool) -> list[Any]:
        """Of `locked`: Run and the queue give way to Stop, nothing else can be changed."""
        asks = [gr.update(visible=not is_on, interactive=not is_on)] * 2
        others = [gr.update(interactive=not is_on)] * len(self.locked[3:])
        return [*asks, *others, gr.update(visible=is_on)]

    def _stop(self, request: gr.Request) -> None:
        self.desk.stop(str(request.session_hash))

    def _prompt(self, system_prompt: str, question: str) -> str:
        try:
            return self.desk.engine().prompt_text(chat(system_prompt, question))
        except KitError as error:
            return str(error)

    # --- what is on disk -----------------------------------------------------------------------

    def _open(self, request: gr.Request) -> Update:
        """The page as it opens: pair and problem of the address, or a stored one they differ on."""
        values = {part: part.value for part in self.looks}
        left, right = self.pair.asked_for(request.query_params)
        choices = [gr.update(value=side, choices=self.pair.offered()) for side in (left, right)]
        problem = request.query_params.get("problem", "")
        update = self._reopened(values, left, right, problem)
        return update | dict(zip(self.pair.both, choices, strict=True))

    def _follow(self, values: Update) -> Update:
        """Another pair: its stored answers, and the system prompt the left one was trained with.

        Nothing where that pair is read already: the page itself has set it.
        """
        reading: Reading | None = values[self.reading]
        if reading and [s.label for s in reading.sides] == [values[s] for s in self.pair.both]:
            return gr.skip()
        return self._reopened(values, *(values[side] for side in self.pair.both))

    def _reopened(self, values: Update, left: str, right: str, problem: str = "") -> Update:
        prompt = gr.skip()
        try:
            sides = self.pair.choices(left, right)
            prompt = sides[0].system_prompt
            reading = open_reading(self.desk.options.roots, *sides)
        except KitError:  # of a path that is still being typed; a run will say so
            reading = None
        if reading is None:
            return self._show(None, None, values) | {self.system_prompt: prompt}
        return self._read(reading.at_problem(problem), values)

    def _read(self, reading: Reading, values: Update, by: int = 1) -> Update:
        """A stored pair, ready to be run too; blind, the next of the session in steps of `by`."""
        try:
            if values[self.pair.blind]:
                return self._ballot(reading, values, by)
            return self._pair(reading.ended(), values)
        except KitError as error:
            return self._show(None, reading, values) | {self.notice: _notice(error)}

    def _ballot(self, reading: Reading, values: Update, by: int) -> Update:
        """The next pair of a session that has no vote; at its end, what it came to."""
        voter, size = self.vote.name(values), max(1, min(int(values[self.size] or 1), MANY))
        seen = None if reading.ballots else reading.case
        session: Reading | None = reading
        if not reading.ballots or (voter, size) != (reading.voter, reading.size):
            votes, _ = self.desk.votes()
            learned = learned_questions(reading, self.desk.known, votes, self.desk.options)
            session = reading.session(voter, size, learned)
        if session is None:
            return self._show(None, reading, values) | {self.notice: _said(NO_PAIR)}
        now = self.desk.standing(session.ballots, voter)
        if not now.open:
            return self._show(None, session, values) | self.result.show(session)
        unseen = [i for i in now.open if session.cases[i] != seen] or now.open
        at = min(unseen, key=lambda i: (i - session.at) * by % len(session.ballots))
        said = f"**{now.answered} of {len(session.ballots)}**"
        return self._pair(replace(session, at=at), values, said)

    def _pair(self, reading: Reading, values: Update, said: str = "") -> Update:
        before, case = values[self.shown], reading.case
        comparison, notice = self._comparison(reading, values)
        shown = Shown(
            comparison,
            reading.order,
            values[self.pair.blind],
            is_repeat=bool(reading.ballots) and reading.ballots[reading.at].is_repeat,
            history=before.history if before else (),
        )
        about = reading.pairing.left.about
        told = "" if shown.hides_names else case.left.answer
        gold = gr.update(value=told, elem_classes=self._gold(shown, reading, values))
        problem = (case.left.question, gold, about.data, case.left.question)
        return {
            **self._show(shown, reading, values, said),
            **dict(zip(self.problem.taken, problem, strict=True)),
            self.system_prompt: about.shared_prompt,
            **notice,
        }

    def _comparison(self, reading: Reading, values: Update) -> tuple[Comparison, Update]:
        """A stored pair, with the base where that is wanted and gives nothing away; and what is to
        be said where the base's answers cannot be read."""
        if values[self.pair.blind] or not values[self.pair.with_base]:
            return reading.comparison(), {}
        base = self.desk.choice(BASE_LABEL)
        try:
            said = base_answer(self.desk.options.roots, reading, base)
        except ResultsError as error:
            return reading.comparison(base), {self.notice: _notice(error)}
        return reading.comparison(base, said), {}

    def _based(self, values: Update) -> Update:
        """The base beside stored answers, or away again; what was run keeps its columns."""
        reading, shown = values[self.reading], values[self.shown]
        is_run = shown is not None and not shown.comparison.is_stored
        if reading is None or is_run or values[self.pair.blind]:
            return gr.skip()
        return self._read(reading, values)

    def _renamed(self, values: Update) -> Update:
        """Another voter, or another number of pairs: the session that is theirs."""
        reading: Reading | None = values[self.reading]
        if reading is None or not values[self.pair.blind]:
            return gr.skip()
        if (self.vote.name(values), values[self.size]) == (reading.voter, reading.size):
            return gr.skip()
        return self._read(reading, values)

    def _moving(self, by: int | None) -> Any:
        """An event: the stored pair `by` further or any one; without any, the data set's."""

        def move(values: Update) -> Update:
            reading: Reading | None = values[self.reading]
            if reading is not None:
                moved = reading.drawn() if by is None else reading.moved(by)
                return self._read(moved, values, by or 1)
            source, search = values[self.problem.source], values[self.problem.search]
            asked = values[self.problem.question]
            try:
                taken = self.problem.draw(source, search, by, asked)
            except KitError as error:
                return {self.notice: _notice(error)}
            empty = self._show(None, None, values)
            gold = empty[self.problem.gold] | {"value": taken[1]}
            problem = dict(zip(self.problem.taken, taken, strict=True))
            return empty | problem | {self.problem.gold: gold}

        return move

    def _go(
        self, event: gr.EventData, reading: Reading | None, shown: Shown | None, *rest: Any
    ) -> Update:
        """To a mark of the strip."""
        if reading is None:
            return gr.skip()
        seen = [self.pair.blind, *self.reader.controls, self.pair.with_base]
        values = dict(zip(seen, rest, strict=True))
        return self._read(reading.at_case(int(event.case)), values | {self.shown: shown})

    def _filter(self, values: Update) -> Update:
        reading: Reading | None = values[self.reading]
        found = reading.filtered(values[self.vote.outcome]) if reading else None
        if found is None:
            return {self.notice: _said("No stored pair came out so.")}
        return self._read(found, values)

    def _revote(self, values: Update) -> Update:
        """A session on what was trained on the votes, against what it went on from."""
        try:
            reading = self.result.revote()
        except KitError as error:
            return {self.notice: _notice(error)}
        values = values | {self.pair.blind: True}
        chosen = {
            part: gr.update(value=side.label, choices=self.pair.offered())
            for part, side in zip(self.pair.both, reading.sides, strict=True)
        }
        return self._read(reading, values) | chosen | {self.pair.blind: True}

    def _blinded(self, values: Update) -> Update:
        """A session begins, with another pair than the one that was seen with names; or it stops,
        and what it has come to is shown."""
        reading: Reading | None = values[self.reading]
        if reading is None:
            if values[self.pair.blind]:
                return self._show(None, None, values)
            return {
                self.problem.gold: gr.update(
                    elem_classes=self._gold(values[self.shown], None, values)
                )
            }
        update = self._read(reading, values)
        return update | self.result.show(reading) if reading.ballots else update

    def _voted(self, values: Update, shown: Shown) -> Update:
        """After a vote of a session its next pair; another is shown with its names."""
        reading: Reading | None = values[self.reading]
        if reading is not None and shown.comparison.is_stored:
            return self._read(reading.moved(1), values)
        return self._show(shown, reading, values)

    # --- running -------------------------------------------------------------------------------

    def _run(self, values: Update, request: gr.Request) -> Iterator[Update]:
        """Stream the answers; at the end everything about them."""
        before: Shown | None = values[self.shown]
        reading: Reading | None = values[self.reading]
        history = before.history if before else ()
        shown = None
        yield self._show(None, reading, values) | {
            self.reader.heads: WAITING.format("waiting for the model")
        }
        try:
            setup, order = self._setup(values), self._order(values)
            for comparison in self.desk.run(setup, str(request.session_hash)):
                shown = Shown(comparison, order, values[self.pair.blind], history=history)
                yield {self.shown: shown} | self.reader.written(shown)
                if comparison.is_over:
                    yield self._ended(shown, reading, values)
                else:
                    time.sleep(EVERY)
            if shown is None:
                yield self._show(before, reading, values)
                yield {self.notice: _said("It was stopped before it began.")}
        except Exception as error:  # a fault of the app's own leaves nothing waiting either
            if shown is None or not shown.comparison.is_over:
                yield self._show(before, reading, values)
            if not isinstance(error, KitError):
                raise
            yield {self.notice: _notice(error)}

    def _run_many(self, values: Update, request: gr.Request) -> Iterator[Update]:
        """A queue of problems of one data set: a strip that grows, at the end a verdict."""
        try:
            sides = self.pair.choices(*(values[side] for side in self.pair.both))
            settings = EvalSettings(
                temperature=[values[self.temperature]],
                max_new_tokens=int(values[self.max_new_tokens]),
                seed=int(values[self.seed] or 0),
                limit=max(1, min(int(values[self.count] or 1), MANY)),
            )
            source, prompt = values[self.problem.source], values[self.system_prompt]
            yield {self.notice: _said(f"{settings.limit} problems wait for the model …")}
            reading = None
            for done in self.desk.evaluate(
                sides, source, settings, prompt, str(request.session_hash)
            ):
                said = f"{done} of {settings.limit} problems of {inert_markdown(source)}"
                reading = open_reading(self.desk.options.roots, *sides, queue_tag(settings, prompt))
                if reading is not None:
                    yield self._read(reading, values) | {self.notice: _said(said + " …")}
            if reading is not None:
                yield self._read(reading, values)
        except KitError as error:
            yield {self.notice: _notice(error)}

    def _unscored(self, values: Update) -> Update:
        """Want scores where a view of tokens is picked on stored answers that have none."""
        shown: Shown | None = values[self.shown]
        if values[self.reader.views] not in BY_TOKEN or shown is None or not shown.lacks_scores:
            return gr.skip()
        waits = "The tokens of these answers wait for the model …"
        return {self.wanted: time.monotonic(), self.notice: _said(waits)}

    def _score(self, values: Update, request: gr.Request) -> Iterator[Update]:
        """Score stored answers as they are; what the page reads meanwhile is left alone."""
        shown: Shown | None = values[self.shown]
        if shown is None or not shown.lacks_scores:
            return
        done, said = None, shown.comparison
        yield {self.scored: None}
        try:
            for done in self.desk.score(said, str(request.session_hash)):
                words = f"{len(done.scores[0])} of {len(said.answers)} answers are scored …"
                yield {self.notice: _said(words)}
            if done is None or len(done.scores[0]) < len(said.answers):
                yield {self.notice: _said("It was stopped; pick the view again to go on.")}
            else:
                yield {self.scored: done}
        except Exception as error:  # a fault of the app's own leaves nothing waiting either
            yield {self.notice: gr.update(value="", visible=False)}
            if not isinstance(error, KitError):
                raise
            yield {self.notice: _notice(error)}

    def _take_scores(self, values: Update) -> Update:
        """Show what has been scored, unless another pair is read by now."""
        scored: Comparison | None = values[self.scored]
        shown: Shown | None = values[self.shown]
        if scored is None or shown is None:
            return gr.skip()
        hidden = {self.notice: gr.update(visible=False)}
        if shown.comparison.id != scored.id:
            return hidden
        shown = replace(shown, comparison=scored)
        return hidden | {self.shown: shown} | self.reader.show(shown, values)

    def _order(self, values: Update) -> tuple[str, str]:
        """Which side stands first: by chance where it must not be told."""
        is_turned = values[self.pair.blind] and random.random() < 0.5
        return (RIGHT, LEFT) if is_turned else (LEFT, RIGHT)

    def _setup(self, values: Update) -> Setup:
        sides = dict(zip((LEFT, RIGHT), (values[side] for side in self.pair.both), strict=True))
        if values[self.pair.with_base]:
            sides[BASE_SIDE] = BASE_LABEL
        return Setup(
            **self.problem.read(values | self._untold(values)),
            system_prompt=values[self.system_prompt],
            sides={side: self.desk.choice(str(label or "")) for side, label in sides.items()},
            temperature=values[self.temperature],
            max_new_tokens=int(values[self.max_new_tokens]),
            seed=int(values[self.seed] or 0),
            samples=int(values[self.samples]),
        )

    def _untold(self, values: Update) -> Update:
        """The right answer of a stored problem, which a session has not sent to the page."""
        reading: Reading | None = values[self.reading]
        if not values[self.pair.blind] or reading is None or values[self.problem.gold]:
            return {}
        said = reading.case.left
        is_asked = values[self.problem.question] == said.question
        return {self.problem.gold: said.answer} if is_asked else {}

    def _pick_sample(self, event: gr.EventData, shown: Shown | None, *controls: Any) -> Update:
        """Another sample, scored if that is possible; nothing for the one that is shown."""
        sample = int(event.sample)
        if shown is None or sample == shown.sample:
            return gr.skip()
        comparison, notice = shown.comparison, gr.update(visible=False)
        try:
            comparison = self.desk.scored(comparison, sample)
        except KitError as error:
            notice = _notice(error)
        picked = replace(shown, comparison=comparison, sample=sample)
        values = dict(zip(self.reader.controls, controls, strict=True))
        return self.reader.show(picked, values) | {self.shown: picked, self.notice: notice}

    # --- what is shown -----------------------------------------------------------------------

    def _show(
        self, shown: Shown | None, reading: Reading | None, values: Update, said: str = ""
    ) -> Update:
        return {
            self.shown: shown,
            self.reading: reading,
            self.notice: gr.update(visible=False),
            self.problem.gold: gr.update(elem_classes=self._gold(shown, reading, values)),
            **self.reader.show(shown, values),
            **self.vote.show(shown, reading, values[self.pair.blind], said),
            **self.result.hidden(),
            **self.export.show(shown, reading),
        }

    def _gold(self, shown: Shown | None, reading: Reading | None, values: Update) -> list[str]:
        """How the right answer looks: it would decide a blind vote, and is not to be read then; in
        a session it is not there, but for who asks a problem of their own."""
        hides = shown.hides_names if shown else values[self.pair.blind]
        in_session = hides and reading is not None
        return ["kit-unseen"] * hides + ["kit-session"] * in_session

    def _ended(self, shown: Shown, reading: Reading | None, values: Update) -> Update:
        """What a new comparison changes; adapters given by path are choices from now on."""
        if shown.comparison.is_finished:
            done = (*shown.history, to_pair(shown.comparison, 0))[-HISTORY:]
            shown = replace(shown, history=done)
        choices = {side: gr.update(choices=self.pair.offered()) for side in self.pair.both}
        return self._show(shown, reading, values) | choices


ADDRESS = """(left, right) => {
  const address = new URL(window.location);
  address.searchParams.set("left", left);
  address.searchParams.set("right", right);
  history.replaceState(null, "", address);
}"""


def _notice(error: KitError) -> Any:
    return gr.update(value=notice_html(error), visible=True)


def _said(text: str) -> Any:
    return gr.update(value=f'<p class="kit-notice">{text}</p>', visible=True)
