"""What a blind session came to, how to train on its votes, and the vote on what that gave."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from kit.app.compare.revote import commands, trained_on
from kit.app.compare.stored import Reading, open_reading
from kit.app.inert import inert_markdown
from kit.app.parts import Update
from kit.app.session import Session
from kit.errors import ConfigError, KitError
from kit.preferences.data import of_other_bases
from kit.preferences.tallies import Tally
from kit.preferences.voted import pairs_of_votes


class ResultView:
    """Builds its part of the Compare tab, which is hidden until a session ends or stops."""

    def __init__(self, desk: Session) -> None:
        self.desk = desk
        with gr.Column(visible=False, elem_id="kit-result") as self.box:
            self.text = gr.Markdown()
            self.commands = gr.Code(
                label="Train on these votes, and measure what came of it",
                interactive=False, lines=2, wrap_lines=True,
            )  # fmt: skip
            self.again = gr.Button("Vote again: the new adapter against the old one", size="sm")
        self.outputs = [self.box, self.text, self.commands, self.again]

    def hidden(self) -> Update:
        return {self.box: gr.update(visible=False)}

    def show(self, reading: Reading) -> Update:
        """Of a session, whoever else has voted on the same two."""
        training = ""
        try:
            text = "\n\n".join(self._words(reading))
            if votes := self.desk.votes()[0]:
                pairs = pairs_of_votes(self.desk.options.votes)
                points = (f"* {inert_markdown(words)}" for words in pairs.words)
                text += "\n\n".join(("", "Training on all votes:", "\n".join(points)))
                others = of_other_bases(pairs, self.desk.catalogue.model.id)
                if mine := len(pairs.examples) - len(others):
                    training = commands(reading, votes, mine, self.desk.options)
        except KitError as error:
            text = inert_markdown(str(error))
        return {
            self.box: gr.update(visible=True),
            self.text: text,
            self.commands: gr.update(value=training, visible=bool(training)),
            self.again: gr.update(visible=bool(training)),
        }

    def revote(self) -> Reading:
        """Stored answers of the newest adapter that was trained on these votes, and of what it went
        on from. ConfigError, with what to do, where there are none."""
        options = self.desk.options
        self.desk.look_again()
        found = trained_on(self.desk.known, options)
        if not found:
            raise ConfigError(
                f"no run in {options.runs} has learned from {options.votes} yet: copy the commands "
                "into a terminal, and come back when they are done"
            )
        new, old = found[0]
        reading = open_reading(options.roots, new, old)
        if reading is None:
            raise ConfigError(
                f"{new.label} and {old.label} have no stored answers to the same problems: the "
                "second command makes them"
            )
        return reading

    def _words(self, reading: Reading) -> Iterator[str]:
        now = self.desk.standing(reading.ballots, reading.voter)
        names = " and ".join(f"**{inert_markdown(name)}**" for name in reading.names)
        by = f" by {inert_markdown(reading.voter)}" if reading.voter else ""
        yield f"{now.answered} of {len(reading.ballots)} votes{by} between {names}."
        for mine in self.desk.tallies(reading.hashes, reading.voter):
            yield f"**{_conclusion(mine)}** {inert_markdown(str(mine))}."
            if mine.agreement.repeats:
                yield f"Agreement with yourself: {mine.agreement}. Those count once."
        for all_votes in self.desk.tallies(reading.hashes):
            if all_votes.agreement.voters > 1:
                yield inert_markdown(f"All {all_votes.agreement.voters} voters: {all_votes}.")
                yield f"Agreement: {all_votes.agreement}."
        _, unreadable = self.desk.votes()
        if unreadable:
            yield f"{unreadable} lines of the file of votes could not be read."


def _conclusion(mine: Tally) -> str:
    """What a session says, before its numbers."""
    from kit.evaluation.stats import SMALL_P  # which scipy comes with

    if mine.p >= SMALL_P:
        return "No difference shown."
    better = mine.first if mine.problems[0] > mine.problems[1] else mine.second
    return f"{inert_markdown(better)} is preferred."
