"""What is read of a comparison: heads, the text in four views, and what the trust regions see."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import gradio as gr

from kit.app.compare.columns import columns, samples_html
from kit.app.compare.comparison import Shown
from kit.app.compare.ratios import Ratios, ratio_chart, ratios
from kit.app.compare.reader import SCRIPT, UNSCORED, heads_html, heat_of, text_markdown
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT
from kit.app.parts import AT_ONCE, BARE, PROSE, QUIET, Update, notice_html
from kit.config import PSPO, Clip
from kit.errors import AdapterError

VIEWS = ["Text", "Diff", "Heat", "Silenced"]
BY_TOKEN = VIEWS[2:]  # the views that show what each model makes of a token
BETWEEN, TO_BASE = "left against right", "each against the base"
AS_JUDGED, POSITIVE, NEGATIVE = "as judged", "positive", "negative"
BLIND = "The tokens' probabilities are not told before a blind vote."
STOPPED = "Answers that were stopped have no probabilities: Run again."
VIEW = "v => { document.getElementById('kit-reader').dataset.view = v.toLowerCase() }"


def _pictures(alpha: float, low: float, high: float) -> str:
    """Both regions as `kit regions` draws them, with the bounds that are set here."""
    from kit.training.region_plots import draw  # which torch and matplotlib come with

    regions = (
        Clip(name="clip", epsilon_low=low, epsilon_high=high),
        PSPO(name="pspo", alpha=alpha),
    )
    pictures = (
        f'<img alt="{region.name}: what multiplies the gradient of a token, against its ratio" '
        f'src="data:image/svg+xml;base64,{b64encode(draw(region).encode()).decode()}">'
        for region in regions
    )
    return "".join(pictures)


class AnalysisView:
    """Builds its part of the Compare tab."""

    def __init__(self, shown: gr.State) -> None:
        self.shown = shown
        with gr.Column(elem_id="kit-reader"):
            self.views = gr.Radio(VIEWS, value="Diff", label="View", elem_id="kit-views", **BARE)
            self.heads = gr.HTML(js_on_load=SCRIPT, apply_default_css=False, elem_id="kit-head")
            self.text = gr.Markdown(elem_id="kit-text", **PROSE)
        self.summary = gr.HTML(elem_id="kit-samples")
        with gr.Accordion(
            "What the trust regions make of it", open=False, visible=False, elem_id="kit-analysis"
        ) as self.box:
            self._controls()
            self.chart = gr.HTML(elem_id="kit-ratios")
            with gr.Accordion("What clip and pspo do to a token's gradient", open=False) as more:
                pictures = gr.HTML(elem_id="kit-regions")
            bounds = [self.alpha, self.low, self.high]
            more.expand(_pictures, bounds, pictures, **QUIET)
            gr.on([bound.input for bound in bounds], lambda: "", None, pictures, **QUIET)
        self.outputs = [self.heads, self.text, self.summary, self.box, self.chart]
        self.views.change(None, self.views, None, js=VIEW)
        changed = [control.input for control in self.controls]
        asked = {self.shown, *self.controls}
        latest = AT_ONCE | {"trigger_mode": "always_last"}
        gr.on(changed, lambda v: self.show(v[self.shown], v), asked, self.outputs, **latest)

    def _controls(self) -> None:
        clip, pspo = Clip(name="clip"), PSPO(name="pspo")
        with gr.Row():
            self.colours = gr.Radio([BETWEEN, TO_BASE], value=BETWEEN, label="Heat compares")
            self.sign = gr.Radio(
                [AS_JUDGED, POSITIVE, NEGATIVE],
                value=AS_JUDGED,
                label="Advantage",
                info="A right answer has a positive one, any other a negative one",
            )
            self.alpha = gr.Slider(0, 1, pspo.alpha, step=0.01, label="α of pspo")
            self.low = gr.Slider(0, 1, clip.epsilon_low, step=0.01, label="ε low of clip")
            self.high = gr.Slider(0, 5, clip.epsilon_high, step=0.01, label="ε high of clip")
        self.controls: list[Any] = [self.colours, self.sign, self.alpha, self.low, self.high]

    def written(self, shown: Shown) -> Update:
        """The answers while they grow: what changes with every token."""
        said, sides = shown.comparison, columns(shown)
        problem = said.setup.problem.id if said.setup.problem else ""
        unscored = BLIND if shown.hides_names else STOPPED if said.is_stopped else UNSCORED
        return {
            self.heads: heads_html(sides, problem, said.sample),
            self.text: text_markdown(sides, is_over=said.is_over, unscored=unscored),
        }

    def show(self, shown: Shown | None, values: Update) -> Update:
        """Everything; `values` holds the settings of `controls`."""
        if shown is None:
            return {self.heads: "", self.text: "", self.box: gr.update(visible=False)}
        scores = {} if shown.hides_names else shown.comparison.scores.get(shown.sample, {})
        hidden = self.written(shown) | {self.box: gr.update(visible=False)}
        update = {**hidden, self.summary: samples_html(shown)}
        if not scores:
            return update
        try:
            regions = {side: self._ratios(shown, side, values) for side in (LEFT, RIGHT)}
            sides = columns(shown, {side: one.silenced for side, one in regions.items()})
            heat = heat_of(sides, to_base=values[self.colours] == TO_BASE)
        except AdapterError as error:
            return update | {self.box: gr.update(visible=True), self.chart: notice_html(error)}
        return update | {
            self.text: text_markdown(sides, heat=heat),
            self.box: gr.update(visible=True),
            self.chart: ratio_chart({one.name: regions[one.side] for one in sides[:2]}),
        }

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
