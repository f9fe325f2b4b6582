"""Blind voting: which answer is better, before one knows whose it is; and how it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from kit.app.compare.comparison import Shown
from kit.app.compare.setup import LEFT, RIGHT
from kit.app.compare.stored import Reading
from kit.app.inert import escaped, inert_markdown
from kit.app.parts import BARE, QUIET, Update
from kit.app.session import Session
from kit.errors import KitError
from kit.terminal import one_line

CHOICES = {"left": "A better", "right": "B better", "tie": "Tie", "both_bad": "Both bad"}
STOPPED = "There is no vote on answers that were stopped: the names stay hidden. Run again."
LONGEST_NAME = 60  # characters of a voter's
OUTCOMES = [
    ("texts differ", "differ"),
    ("all pairs", "all"),
    ("only left correct", "left"),
    ("only right correct", "right"),
    ("both correct", "both"),
    ("both wrong", "neither"),
]
MARKS = 400  # of the strip at most


def score_strip(reading: Reading, asked: str | None = None) -> str:
    """One mark for each stored pair: who is right on it; a click reads it.

    `asked`: the question that the answers are to, which may be none of the stored ones.
    """
    is_read = asked in (None, reading.case.left.question)
    said = {"both": "both right", "neither": "both wrong"}
    said |= {
        side: f"only {name} right" for side, name in zip((LEFT, RIGHT), reading.names, strict=True)
    }
    marks = []
    for number, case in enumerate(reading.pairing.cases[:MARKS]):
        outcome = case.outcome("strict")
        now = "true" if is_read and case is reading.case else "false"
        label = escaped(f"pair {number + 1}: {said[outcome]}")
        marks.append(
            f'<button class="kit-score-{outcome}" data-case="{number}" tabindex="-1" '
            f'aria-pressed="{now}" aria-label="{label}"></button>'
        )
    return f'<div class="kit-scores" role="group" aria-label="Scores">{"".join(marks)}</div>'


class VoteView:
    """Builds the foot of the Compare tab."""

    def __init__(self, desk: Session, shown: gr.State) -> None:
        self.desk, self.shown = desk, shown
        with gr.Row(elem_id="kit-foot"):
            with gr.Row(visible=False, elem_id="kit-vote") as self.box:
                self.buttons = {
                    column: gr.Button(text, size="sm", elem_id=f"kit-vote-{column}")
                    for column, text in CHOICES.items()
                }
            self.outcome = gr.Dropdown(
                OUTCOMES, value="differ", label="Which pairs are read", visible=False,
                elem_id="kit-outcome", **BARE,
            )  # fmt: skip
            self.following = gr.Button("Next", size="sm", elem_id="kit-next", visible=False)
            self.result = gr.Markdown(elem_id="kit-votes")
            self.voter = gr.Textbox(
                label="Who votes", placeholder="your name", max_lines=1, max_length=LONGEST_NAME,
                visible=False, elem_id="kit-voter", **BARE,
            )  # fmt: skip
            self.strip = gr.HTML(elem_id="kit-scores", apply_default_css=False)
        self.outputs = [
            *(self.box, self.outcome, self.following, self.result, self.voter, self.strip)
        ]

    def wire(
        self, cast: Callable[[Update, Shown], Update], inputs: set[Any], outputs: list[Any]
    ) -> None:
        """`cast` shows what comes after a vote, from `inputs`; what was voted on knows the vote."""
        for column, button in self.buttons.items():

            def vote(values: Update, column: str = column) -> Update:
                shown = self._cast(values[self.shown], column, self.name(values))
                return cast(values, shown) if isinstance(shown, Shown) else shown

            button.click(vote, inputs, outputs, queue=False, **QUIET)

    def name(self, values: Update) -> str:
        """Who votes; "" for no name."""
        return one_line(values[self.voter] or "", LONGEST_NAME)  # whoever sent it

    def show(
        self,
        shown: Shown | None,
        reading: Reading | None,
        is_blind: bool,
        said: str = "",
        asked: str | None = None,
    ) -> Update:
        """`said`: how far a session is. `asked`: the question that is answered next, if known."""
        can_vote, text = False, said
        if shown is not None and shown.is_blind and shown.comparison.is_over:
            can_vote = shown.vote is None and shown.comparison.is_finished
            if shown.vote is not None:
                text = self.revealed(shown)
            elif not can_vote:
                text = STOPPED
        elif not is_blind and reading and not text:
            text = inert_markdown(reading.words)
        is_read = reading is not None and not is_blind
        asked = shown.comparison.setup.question if shown else asked
        return {
            self.box: gr.update(visible=can_vote),
            self.outcome: gr.update(visible=is_read),
            self.following: gr.update(visible=reading is not None),
            self.strip: score_strip(reading, asked) if reading is not None and is_read else "",
            self.voter: gr.update(visible=is_blind),
            self.result: text,
        }

    def _cast(self, shown: Shown | None, column: str, voter: str = "") -> Shown | Update:
        if shown is None or not shown.hides_names:
            return gr.skip()
        try:  # of several clicks at once the first one counts, and all of them show it
            vote = self.desk.vote(
                *(shown.comparison, shown.sample, shown.preferred(column)),
                voter=voter,
                is_repeat=shown.is_repeat,
            )
        except KitError as error:
            return {self.result: f"**Not counted.** {inert_markdown(str(error))}"}
        return replace(shown, vote=vote.vote)

    def revealed(self, shown: Shown) -> str:
        sides = shown.comparison.setup.sides
        names = [inert_markdown(sides[side].label) for side in shown.order]
        vote = {"tie": "a tie", "both_bad": "both bad"}.get(
            shown.vote or "", f"**{names[shown.vote != shown.order[0]]}** is better"
        )
        lines = [f"A was **{names[0]}**, B was **{names[1]}**. Your vote: {vote}."]
        try:
            found = self.desk.tallies([shown.comparison.hashes[side] for side in (LEFT, RIGHT)])
            _, unreadable = self.desk.votes()
        except KitError as error:
            return " ".join([*lines, inert_markdown(str(error))])
        if sides[LEFT].adapter == sides[RIGHT].adapter:
            lines.append("Both sides were the same model, so this vote decides nothing.")
        elif found:
            lines.append(f"So far: {inert_markdown('; '.join(map(str, found)))}.")
        if unreadable:
            lines.append(f"{unreadable} lines of the file of votes could not be read.")
        return " ".join(lines)
