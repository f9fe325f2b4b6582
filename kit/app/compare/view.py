"""The Compare tab: two sides, and the base if wanted, answer at the same time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from kit.app.compare.analysis_view import AnalysisView
from kit.app.compare.columns import final_answer, reasoning, samples_html, status_html
from kit.app.compare.comparison import Shown, to_pair
from kit.app.compare.export_view import ExportView
from kit.app.compare.problem_view import ProblemView
from kit.app.compare.setup import BASE_SIDE, LEFT, MAX_SAMPLES, RIGHT, Setup, chat
from kit.app.compare.vote_view import VoteView
from kit.app.inert import inert_markdown
from kit.app.library.adapters import BASE_LABEL, advice, default_pair
from kit.app.parts import PROSE, QUIET, notice_html
from kit.app.session import Session
from kit.errors import KitError

MODEL = "model"  # the queue of everything that computes with the model: one at a time
EVERY = 0.08  # seconds between two pictures of the answers
HISTORY = 500  # comparisons a session keeps for its export

Update = dict[Any, Any]


class CompareView:
    """Builds the tab inside the current Gradio context and wires its events."""

    def __init__(self, desk: Session) -> None:
        self.desk = desk
        self.shown = gr.State(None)
        self._choosers()
        self.problem = ProblemView(desk)
        self._settings()
        self._buttons()
        self._columns()
        self.vote = VoteView(desk, self.shown)
        self.analysis = AnalysisView(self.shown)
        self.export = ExportView()
        self._wire()

    # --- layout ------------------------------------------------------------------------------

    def _choosers(self) -> None:
        left, right = default_pair(self.desk.catalogue)
        sentence = advice(self.desk.catalogue)
        if sentence:
            gr.Markdown(inert_markdown(sentence))
        with gr.Row():
            self.left, self.right = (
                gr.Dropdown(
                    self.desk.labels,
                    value=choice.label,
                    label=name,
                    info="An adapter found, or a path in the allowed folders",
                    allow_custom_value=True,
                )
                for name, choice in (("Left", left), ("Right", right))
            )
        with gr.Row():
            self.with_base = gr.Checkbox(False, label="Show the bare base as a third column")
            self.blind = gr.Checkbox(
                False, label="Blind: hide the names, shuffle the sides, then vote"
            )
        if self.desk.catalogue.unusable:
            with gr.Accordion("Adapters that cannot be chosen", open=False):
                lines = [f"{label}: {reason}" for label, reason in self.desk.catalogue.unusable]
                gr.Markdown(inert_markdown("\n".join(lines)), line_breaks=True)

    def _settings(self) -> None:
        with gr.Accordion("Settings", open=False, elem_id="kit-settings"):
            with gr.Row():
                self.temperature = gr.Slider(
                    0, 2, value=0, step=0.1, label="Temperature", info="0: greedy"
                )
                self.max_new_tokens = gr.Slider(
                    8, 2048, value=256, step=8, label="New tokens at most"
                )
                self.samples = gr.Slider(
                    1, MAX_SAMPLES, value=1, step=1, label="Samples of each side"
                )
                self.seed = gr.Number(0, precision=0, minimum=0, label="Seed, the same for all")
            self.system_prompt = gr.Textbox(
                default_pair(self.desk.catalogue)[0].system_prompt,
                label="System prompt",
                info="As the adapters were trained with; empty: none is sent",
                lines=2,
                max_lines=8,
            )

    def _buttons(self) -> None:
        with gr.Row():
            self.go = gr.Button("Run", variant="primary", elem_id="kit-run")
            self.again = gr.Button("Again, with the next seed", elem_id="kit-again")
            self.halt = gr.Button("Stop", variant="stop", interactive=False, elem_id="kit-stop")
        self.notice = gr.HTML(visible=False)

    def _columns(self) -> None:
        self.names, self.statuses, self.texts, self.finals = [], [], [], []
        self.boxes = []
        with gr.Row():
            for name in ("first", "second", "base"):
                with gr.Column(
                    visible=name != "base", elem_id=f"kit-{name}", elem_classes="kit-side"
                ) as box:
                    self.boxes.append(box)
                    self.names.append(gr.Markdown("&nbsp;", elem_classes="kit-name"))
                    self.statuses.append(gr.HTML())
                    self.texts.append(gr.Markdown(elem_classes="kit-text", **PROSE))
                    self.finals.append(gr.Markdown(elem_classes="kit-final", **PROSE))
        self.sample = gr.Slider(
            1, 2, value=1, step=1, label="Sample shown", visible=False, elem_id="kit-sample"
        )
        self.summary = gr.HTML(elem_id="kit-samples")

    # --- events ------------------------------------------------------------------------------

    def _wire(self) -> None:
        asked = [
            *(self.left, self.right, self.with_base, self.blind, self.temperature),
            *(self.max_new_tokens, self.samples, self.seed, self.system_prompt),
        ]
        inputs = {*asked, self.shown, *self.problem.taken, *self.analysis.controls}
        outputs = [
            *(self.shown, self.notice, self.sample, self.summary, self.left, self.right),
            *(*self.names, *self.statuses, *self.texts, *self.finals, *self.boxes),
            *(*self.vote.outputs, *self.analysis.outputs, *self.export.outputs),
        ]
        self.controls = [self.go, self.again, *asked, *self.problem.controls]
        locked = [*self.controls, self.halt]
        at_once = QUIET | {"queue": False}
        asks = [self.go.click, self.problem.question.submit]
        start = gr.on(asks, self._lock, None, locked, **at_once)
        another = self.again.click(
            lambda seed: int(seed or 0) + 1, self.seed, self.seed, **at_once
        ).then(self._lock, None, locked, **at_once)
        for started in (start, another):
            ran = started.then(
                self._run, inputs, outputs, concurrency_id=MODEL, concurrency_limit=1, **QUIET
            )
            ran.then(self._unlock, None, locked, **at_once)
        sent = [self.system_prompt, self.problem.question]
        self.problem.exact.expand(self._prompt, sent, self.problem.prompt, **QUIET)
        self.halt.click(self._stop, None, None, **at_once)
        self.sample.change(
            self._pick_sample,
            {self.shown, self.sample, *self.analysis.controls},
            outputs,
            concurrency_id=MODEL,
            trigger_mode="always_last",
            **QUIET,
        )
        self.vote.wire(self._show, {self.shown, *self.analysis.controls}, outputs)
        self.left.change(self._follow_prompt, {self.left}, [self.system_prompt], **at_once)

    def _lock(self, request: gr.Request) -> list[Any]:
        self.desk.expect(str(request.session_hash))
        return [gr.update(interactive=False) for _ in self.controls] + [gr.update(interactive=True)]

    def _unlock(self) -> list[Any]:
        return [gr.update(interactive=True) for _ in self.controls] + [gr.update(interactive=False)]

    def _stop(self, request: gr.Request) -> None:
        self.desk.stop(str(request.session_hash))

    def _prompt(self, system_prompt: str, question: str) -> str:
        try:
            return self.desk.engine().prompt_text(chat(system_prompt, question))
        except KitError as error:
            return str(error)

    def _follow_prompt(self, values: Update) -> Any:
        """The system prompt an adapter was trained with."""
        try:
            return self.desk.choice(str(values[self.left] or "")).system_prompt
        except KitError:  # a run will say so
            return gr.update()

    def _run(self, values: Update, request: gr.Request) -> Iterator[Update]:
        """Stream the answers; at the end everything about them."""
        before: Shown | None = values[self.shown]
        history = before.history if before else ()
        shown = None
        yield self._waiting(values)
        try:
            setup = self._setup(values)
            order = (LEFT, RIGHT)
            if values[self.blind] and random.random() < 0.5:
                order = (RIGHT, LEFT)
            for comparison in self.desk.run(setup, str(request.session_hash)):
                shown = Shown(comparison, order, values[self.blind], history=history)
                yield self._written(shown)  # whatever becomes of the rest
                if comparison.is_over:
                    yield self._ended(shown, values)
                else:
                    time.sleep(EVERY)
            if shown is None:
                badge = '<span class="kit-badge">stopped before it began</span>'
                yield dict.fromkeys(self.statuses, badge) | {self.shown: before}
        except Exception as error:  # a fault of the app's own leaves no badge waiting either
            if shown is None or not shown.comparison.is_over:
                yield dict.fromkeys(self.statuses, "") | {self.shown: before}
            if not isinstance(error, KitError):
                raise
            yield {self.notice: _notice(error)}

    def _setup(self, values: Update) -> Setup:
        sides = {LEFT: values[self.left], RIGHT: values[self.right]}
        if values[self.with_base]:
            sides[BASE_SIDE] = BASE_LABEL
        return Setup(
            **self.problem.read(values),
            system_prompt=values[self.system_prompt],
            sides={side: self.desk.choice(str(label or "")) for side, label in sides.items()},
            temperature=values[self.temperature],
            max_new_tokens=int(values[self.max_new_tokens]),
            seed=int(values[self.seed] or 0),
            samples=int(values[self.samples]),
        )

    def _pick_sample(self, values: Update) -> Update:
        """Another sample, scored if that is possible; nothing for the one that is shown."""
        shown: Shown | None = values[self.shown]
        sample = int(values[self.sample]) - 1
        if shown is None or sample == shown.sample:
            return gr.skip()
        comparison, notice = shown.comparison, gr.update(visible=False)
        try:
            comparison = self.desk.scored(comparison, sample)
        except KitError as error:
            notice = _notice(error)
        picked = replace(shown, comparison=comparison, sample=sample)
        return self._show(picked, values) | {self.notice: notice}

    # --- what is shown -----------------------------------------------------------------------

    def _waiting(self, values: Update) -> Update:
        """Empty columns."""
        with_base = values[self.with_base] and not values[self.blind]
        boxes = {self.boxes[2]: gr.update(visible=with_base)}
        status = '<span class="kit-badge">waiting for the model …</span>'
        cleared = dict.fromkeys([*self.names, *self.texts, *self.finals, self.summary], "")
        shown = {self.shown: None, self.notice: gr.update(visible=False)}
        below = (self.vote.box, self.vote.result, self.analysis.box, self.export.box)
        hidden = dict.fromkeys((self.sample, *below), gr.update(visible=False))
        return boxes | cleared | shown | hidden | dict.fromkeys(self.statuses, status)

    def _written(self, shown: Shown) -> Update:
        """The columns alone: what changes with every token."""
        update: Update = {}
        for i, side in enumerate(shown.columns):
            answer = shown.answer(side)
            update[self.names[i]] = f"### {inert_markdown(shown.names[side])}"
            update[self.statuses[i]] = status_html(shown, side)
            update[self.texts[i]] = inert_markdown(reasoning(answer))
            final = final_answer(answer)
            update[self.finals[i]] = f"**Final answer:** {inert_markdown(final)}" if final else ""
        return update

    def _show(self, shown: Shown, values: Update) -> Update:
        """Everything but the slider, which may have moved on since."""
        return {
            **self._written(shown),
            self.shown: shown,
            self.boxes[2]: gr.update(visible=len(shown.columns) > 2),
            self.summary: samples_html(shown),
            **(self.vote.show(shown) | self.analysis.show(shown, values) | self.export.show(shown)),
        }

    def _ended(self, shown: Shown, values: Update) -> Update:
        """What a new comparison changes; adapters given by path are choices from now on."""
        if shown.comparison.is_finished:
            done = (*shown.history, to_pair(shown.comparison, 0))[-HISTORY:]
            shown = replace(shown, history=done)
        samples, labels = shown.comparison.setup.samples, self.desk.labels
        slider = gr.update(visible=samples > 1, maximum=max(2, samples), value=1)
        choices = {side: gr.update(choices=labels) for side in (self.left, self.right)}
        return self._show(shown, values) | {self.sample: slider} | choices


def _notice(error: KitError) -> Any:
    return gr.update(value=notice_html(error), visible=True)
