"""The Compare tab: its components, and what they show of a comparison; the reasoning first."""

from __future__ import annotations

from typing import Any

import gradio as gr

from kit.app.compare.analysis_view import AnalysisView
from kit.app.compare.comparison import Shown
from kit.app.compare.export_view import ExportView
from kit.app.compare.problem_view import ProblemView
from kit.app.compare.result_view import ResultView
from kit.app.compare.setup import MAX_SAMPLES
from kit.app.compare.stored import Reading
from kit.app.compare.vote_view import VoteView
from kit.app.inert import inert_markdown
from kit.app.library.adapters import advice, default_pair
from kit.app.pair_view import PairView
from kit.app.parts import Update, notice_html, said_html
from kit.app.session import Session
from kit.errors import KitError

MANY = 1_000  # problems of a queue, or pairs of a blind session, at most


class CompareView:
    """Builds the tab inside the current Gradio context; Wiring gives it its events.

    An event gets the values of some components, and gives an Update: what others show next.
    """

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
        self.asked = [
            *(*pair.both, pair.with_base, pair.blind, self.temperature),
            *(self.max_new_tokens, self.samples, self.seed, self.system_prompt),
        ]
        self.looks = {
            *(self.shown, self.reading, pair.with_base, pair.blind, self.vote.voter, self.size),
            *(self.reader.views, *self.reader.controls),
        }
        self.outputs = [
            *(self.shown, self.reading, self.notice, *pair.both, *self.problem.taken),
            *(self.system_prompt, *self.reader.outputs, *self.vote.outputs, *self.export.outputs),
            *self.result.outputs,
        ]

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

    def show(
        self, shown: Shown | None, reading: Reading | None, values: Update, said: str = ""
    ) -> Update:
        """Everything; `said` is how far a session is."""
        asked = values.get(self.problem.question)
        return {
            self.shown: shown,
            self.reading: reading,
            **self.quiet(),
            self.problem.gold: gr.update(elem_classes=self.gold_classes(shown, reading, values)),
            **self.reader.show(shown, values),
            **self.vote.show(shown, reading, values[self.pair.blind], said, asked),
            **self.result.hidden(),
            **self.export.show(shown, reading),
        }

    def gold_classes(
        self, shown: Shown | None, reading: Reading | None, values: Update
    ) -> list[str]:
        """How the right answer looks: it would decide a blind vote, and is not to be read then; in
        a session it is not there, but for who asks a problem of their own."""
        hides = shown.hides_names if shown else values[self.pair.blind]
        in_session = hides and reading is not None
        return ["kit-unseen"] * hides + ["kit-session"] * in_session

    def refuse(self, error: KitError) -> Update:
        """The notice says why something was not done."""
        return {self.notice: gr.update(value=notice_html(error), visible=True)}

    def say(self, text: str) -> Update:
        """The notice says this, which is no refusal."""
        return {self.notice: gr.update(value=said_html(text), visible=True)}

    def quiet(self) -> Update:
        """The notice says nothing."""
        return {self.notice: gr.update(visible=False)}
