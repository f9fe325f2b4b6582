"""Which event of the Compare tab asks whom, and what is locked while the model answers."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from kit.app.compare.read_events import ReadEvents
from kit.app.compare.run_events import RunEvents
from kit.app.compare.score_events import ScoreEvents
from kit.app.compare.view import CompareView
from kit.app.parts import AT_ONCE, QUIET

MODEL = "model"  # the queue of everything that computes with the model: one at a time
LATEST = QUIET | {"trigger_mode": "always_last"}


class Wiring:
    """Wires the tab. What an event does is in the file of its name: read, run or score."""

    def __init__(self, view: CompareView) -> None:
        self.view = view
        self.inputs = {*view.asked, *view.looks, *view.problem.taken}
        self.read, self.run, self.score = ReadEvents(view), RunEvents(view), ScoreEvents(view)
        others = [view.again, *view.asked, *view.problem.controls]
        self.locked = [view.go, view.many, *others, view.halt]
        self._running()
        self._pairs()
        self._problems()
        self._scores()

    def read_after(self, event: Any) -> Any:
        """Show the pair that an event has put into `reading`."""
        return self._reads(event.then, self.read.show, self.view.looks)

    def _running(self) -> None:
        view, problem, inputs = self.view, self.view.problem, self.inputs
        again = view.again.click(lambda n: int(n or 0) + 1, view.seed, view.seed, **AT_ONCE)
        for trigger in (view.go.click, problem.question.submit, again.then):
            self._compute(trigger, self.run.run, inputs, view.outputs)
        asked = {*inputs, problem.source, view.count}
        self._compute(view.many.click, self.run.run_many, asked, [*view.outputs, view.many])
        view.halt.click(self.run.stop, None, None, **AT_ONCE)
        view.count.change(lambda n: f"{int(n or 1)} problems", view.count, view.many, **AT_ONCE)
        view.temperature.change(
            lambda value: gr.update(visible=value > 0), view.temperature, view.again, **AT_ONCE
        )
        sent = [view.system_prompt, problem.question]
        problem.exact.expand(self.run.prompt, sent, problem.prompt, **QUIET)

    def _pairs(self) -> None:
        """Another pair, and what is shown of it."""
        view, pair = self.view, self.view.pair
        opened = [*view.outputs, pair.with_base]
        start = gr.on(None, self.read.open, None, opened, **QUIET)  # as the page opens
        changed = partial(gr.on, [part.change for part in pair.both])
        followed = self._reads(changed, self.read.follow, self.inputs, trigger_mode="always_last")
        for shown in (start, followed):
            shown.then(None, pair.both, None, js="(left, right) => kitShare({ left, right })")
        base = "base => kitShare({ base: base && 'on' })"
        pair.with_base.change(None, pair.with_base, None, js=base)
        pair.swap.click(lambda *both: both[::-1], pair.both, pair.both, **AT_ONCE)
        self._reads(pair.blind.input, self.read.blinded, self.inputs)
        self._reads(pair.with_base.input, self.read.based, view.looks)
        again = [*view.outputs, pair.blind]
        view.result.again.click(self.read.revote, view.looks, again, **QUIET)

    def _problems(self) -> None:
        """Another problem of the pair, and votes, after which the next one comes."""
        view, vote, problem = self.view, self.view.vote, self.view.problem
        moves = self.inputs | {problem.source, problem.search}
        buttons = ((problem.previous, -1), (problem.following, 1), (problem.chance, None))
        for button, by in (*buttons, (vote.following, 1)):
            self._reads(button.click, partial(self.read.move, by=by), moves)
        self._reads(view.reader.heads.go, self.read.go, view.looks)
        self._reads(vote.outcome.input, self.read.filter, {*view.looks, vote.outcome})
        named = [vote.voter.submit, vote.voter.blur, view.size.change]
        gr.on(named, self.read.renamed, view.looks, view.outputs, **LATEST)
        vote.wire(self.read.voted, view.looks, view.outputs)

    def _scores(self) -> None:
        view, score = self.view, self.score
        self._want(view.reader.views.input, score.look)
        waiting = [view.scored, view.notice]
        found = self._compute(view.wanted.change, score.score, {view.shown}, waiting)
        found.then(score.take, {*view.looks, view.scored}, view.outputs, **QUIET)
        picked = {view.shown, *view.reader.controls}
        pick = view.reader.heads.pick
        pick(score.pick_sample, picked, view.outputs, concurrency_id=MODEL, **LATEST)

    def _compute(self, trigger: Any, fn: Any, inputs: Any, outputs: list[Any]) -> Any:
        """At an event, what the model is for, one at a time; the page is locked meanwhile."""
        queue = QUIET | {"concurrency_id": MODEL, "concurrency_limit": 1}
        locked = trigger(self._lock, None, self.locked, **AT_ONCE)
        done = locked.then(fn, inputs, outputs, **queue)
        done.then(partial(self._locked, False), None, self.locked, **AT_ONCE)
        return done

    def _reads(self, trigger: Any, fn: Any, inputs: Any, **how: Any) -> Any:
        """At an event, show what may be another stored pair."""
        event = trigger(fn, inputs, self.view.outputs, **how, **QUIET)
        self._want(event.then, self.score.want)
        return event

    def _want(self, trigger: Any, fn: Any) -> None:
        view = self.view
        trigger(fn, {view.shown, view.reader.views}, [view.wanted, view.notice], **QUIET)

    def _lock(self, request: gr.Request) -> list[Any]:
        self.view.desk.expect(str(request.session_hash))
        return self._locked(True)

    def _locked(self, is_on: bool) -> list[Any]:
        """Of `locked`: Run and the queue give way to Stop, nothing else can be changed."""
        asks = [gr.update(visible=not is_on, interactive=not is_on)] * 2
        others = [gr.update(interactive=not is_on)] * len(self.locked[3:])
        return [*asks, *others, gr.update(visible=is_on)]
