"""What the Compare tab shows of stored answers: a pair, or the next one of a blind session."""

from __future__ import annotations

from dataclasses import replace

import gradio as gr

from kit.app.compare.comparison import Comparison, Shown
from kit.app.compare.revote import learned_questions
from kit.app.compare.stored import Reading, base_answer
from kit.app.compare.view import MANY, CompareView
from kit.app.library.adapters import BASE_LABEL
from kit.app.parts import Update
from kit.errors import KitError, ResultsError

NO_PAIR = "There is no pair of stored answers here that differ and could be voted on."


class StoredPage:
    """Shows a Reading where it is."""

    def __init__(self, view: CompareView) -> None:
        self.view, self.desk = view, view.desk

    def show(self, reading: Reading, values: Update, by: int = 1) -> Update:
        """A stored pair, ready to be run too; blind, the next of the session in steps of `by`."""
        try:
            if values[self.view.pair.blind]:
                return self._ballot(reading, values, by)
            return self._pair(reading.ended(), values)
        except KitError as error:
            return self.view.show(None, reading, values) | self.view.refuse(error)

    def _ballot(self, reading: Reading, values: Update, by: int) -> Update:
        """The next pair of a session that has no vote; at its end, what it came to."""
        view = self.view
        voter, size = view.vote.name(values), max(1, min(int(values[view.size] or 1), MANY))
        seen = None if reading.ballots else reading.case
        session: Reading | None = reading
        if not reading.ballots or (voter, size) != (reading.voter, reading.size):
            votes, _ = self.desk.votes()
            learned = learned_questions(reading, self.desk.known, votes, self.desk.options)
            session = reading.session(voter, size, learned)
        if session is None:
            return view.show(None, reading, values) | view.say(NO_PAIR)
        now = self.desk.standing(session.ballots, voter)
        if not now.open:
            return view.show(None, session, values) | view.result.show(session)
        unseen = [i for i in now.open if session.cases[i] != seen] or now.open
        at = min(unseen, key=lambda i: (i - session.at) * by % len(session.ballots))
        said = f"**{now.answered} of {len(session.ballots)}**"
        return self._pair(replace(session, at=at), values, said)

    def _pair(self, reading: Reading, values: Update, said: str = "") -> Update:
        view, before, case = self.view, values[self.view.shown], reading.case
        comparison, notice = self._comparison(reading, values)
        shown = Shown(
            comparison,
            reading.order,
            values[view.pair.blind],
            is_repeat=bool(reading.ballots) and reading.ballots[reading.at].is_repeat,
            history=before.history if before else (),
        )
        about = reading.pairing.left.about
        told = "" if shown.hides_names else case.left.answer
        gold = gr.update(value=told, elem_classes=view.gold_classes(shown, reading, values))
        problem = (case.left.question, gold, about.data, case.left.question)
        return {
            **view.show(shown, reading, values, said),
            **dict(zip(view.problem.taken, problem, strict=True)),
            view.system_prompt: about.shared_prompt,
            **notice,
        }

    def _comparison(self, reading: Reading, values: Update) -> tuple[Comparison, Update]:
        """A stored pair, with the base where that is wanted and gives nothing away; and what is to
        be said where the base's answers cannot be read."""
        pair = self.view.pair
        if values[pair.blind] or not values[pair.with_base]:
            return reading.comparison(), {}
        base = self.desk.choice(BASE_LABEL)
        try:
            said = base_answer(self.desk.options.roots, reading, base)
        except ResultsError as error:
            return reading.comparison(base), self.view.refuse(error)
        return reading.comparison(base, said), {}
