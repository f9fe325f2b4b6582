"""Events at which the tokens of answers get their probabilities: a view is picked, or a sample."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import gradio as gr

from kit.app.compare.analysis_view import BY_TOKEN
from kit.app.compare.comparison import Comparison, Shown
from kit.app.compare.view import CompareView
from kit.app.parts import Update
from kit.errors import KitError


class ScoreEvents:
    """`want` asks for scores, `score` finds them while the page may read on, `take` shows them."""

    def __init__(self, view: CompareView) -> None:
        self.view, self.desk = view, view.desk

    def want(self, values: Update) -> Update:
        """Scores are wanted where a view of tokens is picked on stored answers that have none."""
        view = self.view
        shown: Shown | None = values[view.shown]
        if values[view.reader.views] not in BY_TOKEN or shown is None or not shown.lacks_scores:
            return gr.skip()
        waits = view.say("The tokens of these answers wait for the model …")
        return {view.wanted: time.monotonic()} | waits

    def look(self, values: Update) -> Update:
        """Another view; where it shows no scores, no more is said of those that are lacking."""
        shown: Shown | None = values[self.view.shown]
        if values[self.view.reader.views] in BY_TOKEN or shown is None or not shown.lacks_scores:
            return self.want(values)
        return self.view.quiet()

    def score(self, values: Update, request: gr.Request) -> Iterator[Update]:
        """Score stored answers as they are; what the page reads meanwhile is left alone."""
        view = self.view
        shown: Shown | None = values[view.shown]
        if shown is None or not shown.lacks_scores:
            return
        done, said = None, shown.comparison
        yield {view.scored: None}
        try:
            for done in self.desk.score(said, str(request.session_hash)):
                words = f"{len(done.scores[0])} of {len(said.answers)} answers are scored …"
                yield view.say(words)
            if done is None or len(done.scores[0]) < len(said.answers):
                yield view.say("It was stopped; pick the view again to go on.")
            else:
                yield {view.scored: done}
        except Exception as error:  # a fault of the app's own leaves nothing waiting either
            yield view.quiet()
            if not isinstance(error, KitError):
                raise
            yield view.refuse(error)

    def take(self, values: Update) -> Update:
        """Show what has been scored, unless another pair is read by now."""
        scored: Comparison | None = values[self.view.scored]
        shown: Shown | None = values[self.view.shown]
        if scored is None or shown is None:
            return gr.skip()
        if shown.comparison.id != scored.id:
            return self.view.quiet()
        shown = replace(shown, comparison=scored)
        return self.view.quiet() | {self.view.shown: shown} | self.view.reader.show(shown, values)

    def pick_sample(self, values: Update, event: gr.EventData) -> Update:
        """Another sample, scored if that is possible; nothing for the one that is shown."""
        view, sample = self.view, int(event.sample)
        shown: Shown | None = values[view.shown]
        if shown is None or sample == shown.sample:
            return gr.skip()
        comparison, notice = shown.comparison, view.quiet()
        try:
            comparison = self.desk.scored(comparison, sample)
        except KitError as error:
            notice = view.refuse(error)
        picked = replace(shown, comparison=comparison, sample=sample)
        return view.reader.show(picked, values) | {view.shown: picked} | notice
