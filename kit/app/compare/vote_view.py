"""Blind voting: which answer is better, before one knows whose it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from kit.app.compare.comparison import Shown
from kit.app.compare.setup import LEFT, RIGHT
from kit.app.inert import inert_markdown
from kit.app.parts import QUIET
from kit.app.session import Session
from kit.errors import KitError

CHOICES = {"left": "A is better", "right": "B is better", "tie": "Tie", "both_bad": "Both bad"}
STOPPED = "There is no vote on answers that were stopped: the names stay hidden. Run again."
Update = dict[Any, Any]


class VoteView:
    """Builds its part of the Compare tab."""

    def __init__(self, desk: Session, shown: gr.State) -> None:
        self.desk, self.shown = desk, shown
        with gr.Group(visible=False, elem_id="kit-vote") as self.box:
            gr.Markdown("**Which answer is better?** Names appear after the vote.", padding=True)
            with gr.Row():
                self.buttons = {
                    column: gr.Button(text, size="sm", elem_id=f"kit-vote-{column}")
                    for column, text in CHOICES.items()
                }
        self.result = gr.Markdown(visible=False, elem_id="kit-votes")
        self.outputs = [self.box, self.result]

    def wire(
        self, show: Callable[[Shown, Update], Update], inputs: set[Any], outputs: list[Any]
    ) -> None:
        """`show` draws the whole tab anew, from `inputs`, once a vote has revealed the names."""
        for column, button in self.buttons.items():

            def cast(values: Update, column: str = column) -> Update:
                shown = self._cast(values[self.shown], column)
                return show(shown, values) if isinstance(shown, Shown) else shown

            button.click(cast, inputs, outputs, queue=False, **QUIET)

    def show(self, shown: Shown) -> Update:
        can_vote, text = False, ""
        if shown.is_blind and shown.comparison.is_over:
            can_vote = shown.vote is None and shown.comparison.is_finished
            if shown.vote is not None:
                text = self._revealed(shown)
            elif not can_vote:
                text = STOPPED
        return {
            self.box: gr.update(visible=can_vote),
            self.result: gr.update(value=text, visible=bool(text)),
        }

    def _cast(self, shown: Shown | None, column: str) -> Shown | Update:
        if shown is None or not shown.hides_names:
            return gr.skip()
        try:  # of several clicks at once the first one counts, and all of them show it
            vote = self.desk.vote(
                shown.comparison, shown.sample, shown.preferred(column), blind=True
            )
        except KitError as error:
            text = inert_markdown(str(error))
            return {self.result: gr.update(value=f"**Not counted.** {text}", visible=True)}
        return replace(shown, vote=vote)

    def _revealed(self, shown: Shown) -> str:
        sides = shown.comparison.setup.sides
        names = [inert_markdown(sides[side].label) for side in shown.order]
        vote = {"tie": "a tie", "both_bad": "both bad"}.get(
            shown.vote or "", f"**{names[shown.vote != shown.order[0]]}** is better"
        )
        lines = [f"A was **{names[0]}**, B was **{names[1]}**. Your vote: {vote}."]
        try:
            score = self.desk.score(shown.comparison)
        except KitError as error:
            return "\n\n".join([*lines, inert_markdown(str(error))])
        if sides[LEFT].adapter == sides[RIGHT].adapter:
            lines.append("Both sides were the same model, so this vote decides nothing.")
        elif score.tally is not None:
            lines.append(f"So far: {inert_markdown(str(score.tally))}.")
        if score.unreadable:
            lines.append(f"{score.unreadable} lines of the file of votes could not be read.")
        return "\n\n".join(lines)
