"""Where two answers part: token by token, word by word, and as the trust regions see it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from kit.app.compare.comparison import Shown
from kit.app.compare.differences import first_difference, word_diff
from kit.app.compare.heatmap import heat_map
from kit.app.compare.ratios import Ratios, ratio_chart, ratios
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT
from kit.app.inert import escaped
from kit.app.parts import QUIET, notice_html
from kit.config import PSPO, Clip
from kit.errors import AdapterError

BETWEEN, TO_BASE = "left − right", "each side − base"
AS_JUDGED, POSITIVE, NEGATIVE = "as judged", "positive", "negative"
Update = dict[Any, Any]


class AnalysisView:
    """Builds its part of the Compare tab."""

    def __init__(self, shown: gr.State) -> None:
        self.shown = shown
        clip, pspo = Clip(name="clip"), PSPO(name="pspo")
        with gr.Column(visible=False, elem_id="kit-analysis") as self.box:
            gr.Markdown("## Where they part")
            self.difference = gr.HTML(elem_id="kit-diff")
            self.colours = gr.Radio(
                [BETWEEN, TO_BASE], value=BETWEEN, label="Colours show log π of"
            )
            with gr.Row():
                self.maps = {
                    side: gr.HTML(elem_id=f"kit-heat-{side}", elem_classes="kit-side")
                    for side in (LEFT, RIGHT)
                }
            gr.Markdown("## What the trust regions make of it")
            with gr.Row():
                self.side = gr.Radio([LEFT, RIGHT], value=LEFT, label="Answer")
                self.sign = gr.Radio(
                    [AS_JUDGED, POSITIVE, NEGATIVE],
                    value=AS_JUDGED,
                    label="Advantage",
                    info="A right answer has a positive one, any other a negative one",
                )
            with gr.Row():
                self.alpha = gr.Slider(0, 1, pspo.alpha, step=0.01, label="α of pspo")
                self.low = gr.Slider(0, 1, clip.epsilon_low, step=0.01, label="ε low of clip")
                self.high = gr.Slider(0, 5, clip.epsilon_high, step=0.01, label="ε high of clip")
            self.chart = gr.HTML(elem_id="kit-ratios")
        self.outputs = [self.box, self.difference, *self.maps.values(), self.chart]
        self.controls: list[Any] = [self.colours, self.side, self.sign]
        self.controls += [self.alpha, self.low, self.high]
        gr.on(
            [control.input for control in self.controls],
            lambda values: self.show(values[self.shown], values),
            {self.shown, *self.controls},
            self.outputs,
            queue=False,
            trigger_mode="always_last",
            **QUIET,
        )

    def show(self, shown: Shown | None, values: Update) -> Update:
        """`values` holds the settings of `controls`."""
        scores = {} if shown is None else shown.comparison.scores.get(shown.sample, {})
        if shown is None or shown.hides_names or not scores:
            return {self.box: gr.update(visible=False)}
        texts = {side: shown.answer(side).completion.text for side in (LEFT, RIGHT)}
        parting = first_difference(
            *(shown.answer(side).completion.tokens for side in (LEFT, RIGHT))
        )
        maps = {self.maps[side]: self._map(shown, side, values, parting) for side in (LEFT, RIGHT)}
        return {
            self.box: gr.update(visible=True),
            self.difference: word_diff(texts[LEFT], texts[RIGHT]),
            self.chart: self._chart(shown, values),
            **maps,
        }

    def _map(self, shown: Shown, side: str, values: Update, parting: int | None) -> str:
        """Under the side's name; or why there is none."""
        between = values[self.colours] == BETWEEN
        minuend, subtrahend = (LEFT, RIGHT) if between else (side, BASE_SIDE)
        heading = f"<h4>{side.capitalize()}: {escaped(shown.names[side])}</h4>"
        try:
            return heading + heat_map(
                shown.comparison.scores[shown.sample][side].tokens,
                minuend,
                subtrahend,
                diverges_at=parting,
                silenced=self._ratios(shown, side, values).silenced,
            )
        except AdapterError as error:
            return heading + notice_html(error)

    def _chart(self, shown: Shown, values: Update) -> str:
        try:
            return ratio_chart(self._ratios(shown, values[self.side], values))
        except AdapterError as error:
            return notice_html(error)

    def _ratios(self, shown: Shown, side: str, values: Update) -> Ratios:
        """Of one answer against the base, the kit's old policy."""
        verdict = shown.answer(side).verdict
        judged = verdict is not None and verdict.strict
        sign = values[self.sign]
        return ratios(
            shown.comparison.scores[shown.sample][side].tokens,
            side,
            BASE_SIDE,
            alpha=values[self.alpha],
            epsilon_low=values[self.low],
            epsilon_high=values[self.high],
            positive=judged if sign == AS_JUDGED else sign == POSITIVE,
        )
