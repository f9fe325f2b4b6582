"""Events at which the model answers: one problem, or a queue of them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr

from kit.app.compare.comparison import Shown, to_pair
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT, Setup, chat
from kit.app.compare.stored import Reading, open_reading
from kit.app.compare.stored_page import StoredPage
from kit.app.compare.view import MANY, CompareView
from kit.app.library.adapters import BASE_LABEL
from kit.app.parts import Update
from kit.app.session import queue_tag
from kit.errors import KitError
from kit.evaluation.settings import EvalSettings

EVERY = 0.08  # seconds between two pictures of the answers
HISTORY = 500  # comparisons a session keeps for its export
WAITING = '<span class="kit-badge">waiting for the model …</span>'


class RunEvents:
    """Each takes the page's values and gives what it shows, again and again."""

    def __init__(self, view: CompareView) -> None:
        self.view, self.page, self.desk = view, StoredPage(view), view.desk

    def run(self, values: Update, request: gr.Request) -> Iterator[Update]:
        """Stream the answers; at the end everything about them."""
        view = self.view
        before: Shown | None = values[view.shown]
        reading: Reading | None = values[view.reading]
        history = before.history if before else ()
        shown = None
        yield view.show(None, reading, values) | {view.reader.heads: WAITING}
        try:
            setup, order = self.setup(values), self._order(values)
            for comparison in self.desk.run(setup, str(request.session_hash)):
                shown = Shown(comparison, order, values[view.pair.blind], history=history)
                if comparison.is_over or not (shown.is_blind and comparison.is_in_turn):
                    yield {view.shown: shown} | view.reader.written(shown)
                if comparison.is_over:
                    yield self._ended(shown, reading, values)
                else:
                    time.sleep(EVERY)
            if shown is None:
                yield view.show(before, reading, values)
                yield view.say("It was stopped before it began.")
        except Exception as error:  # a fault of the app's own leaves nothing waiting either
            if shown is None or not shown.comparison.is_over:
                yield view.show(before, reading, values)
            if not isinstance(error, KitError):
                raise
            yield view.refuse(error)

    def run_many(self, values: Update, request: gr.Request) -> Iterator[Update]:
        """A queue of problems of one data set: a strip that grows, at the end a verdict."""
        view = self.view
        try:
            sides = view.pair.choices(*(values[side] for side in view.pair.both))
            many = max(1, min(int(values[view.count] or 1), MANY))
            settings = EvalSettings(
                temperature=[values[view.temperature]],
                max_new_tokens=int(values[view.max_new_tokens]),
                seed=int(values[view.seed] or 0),
                limit=many,
            )
            source, prompt = values[view.problem.source], values[view.system_prompt]
            yield view.say(f"{many} problems wait for the model …")
            reading = None
            for done in self.desk.evaluate(
                sides, source, settings, prompt, str(request.session_hash)
            ):
                goes_on = " …" * (done < many)
                said = f"{done} of {many} problems of {source}"
                reading = open_reading(self.desk.options.roots, *sides, queue_tag(settings, prompt))
                if reading is not None:
                    yield self.page.show(reading, values) | view.say(said + goes_on)
            if reading is not None:
                yield self.page.show(reading, values)
        except KitError as error:
            yield view.refuse(error)

    def stop(self, request: gr.Request) -> None:
        self.desk.stop(str(request.session_hash))

    def prompt(self, system_prompt: str, question: str) -> str:
        """Exactly as it is sent, or why there is none."""
        try:
            return self.desk.engine().prompt_text(chat(system_prompt, question))
        except KitError as error:
            return str(error)

    def setup(self, values: Update) -> Setup:
        """What is asked; raises what `Setup` and `Session.choice` raise."""
        view = self.view
        sides = dict(zip((LEFT, RIGHT), (values[side] for side in view.pair.both), strict=True))
        if values[view.pair.with_base]:
            sides[BASE_SIDE] = BASE_LABEL
        return Setup(
            **view.problem.read(values | self._untold(values)),
            system_prompt=values[view.system_prompt],
            sides={side: self.desk.choice(str(label or "")) for side, label in sides.items()},
            temperature=values[view.temperature],
            max_new_tokens=int(values[view.max_new_tokens]),
            seed=int(values[view.seed] or 0),
            samples=int(values[view.samples]),
        )

    def _untold(self, values: Update) -> Update:
        """The right answer of a stored problem, which a session has not sent to the page."""
        problem = self.view.problem
        reading: Reading | None = values[self.view.reading]
        if not values[self.view.pair.blind] or reading is None or values[problem.gold]:
            return {}
        said = reading.case.left
        return {problem.gold: said.answer} if values[problem.question] == said.question else {}

    def _order(self, values: Update) -> tuple[str, str]:
        """Which side stands first: by chance where it must not be told."""
        is_turned = values[self.view.pair.blind] and random.random() < 0.5
        return (RIGHT, LEFT) if is_turned else (LEFT, RIGHT)

    def _ended(self, shown: Shown, reading: Reading | None, values: Update) -> Update:
        """What a new comparison changes; adapters given by path are choices from now on."""
        if shown.comparison.is_finished:
            done = (*shown.history, to_pair(shown.comparison, 0))[-HISTORY:]
            shown = replace(shown, history=done)
        offered = gr.update(choices=self.view.pair.offered())
        return self.view.show(shown, reading, values) | dict.fromkeys(self.view.pair.both, offered)
