"""Events after which another stored pair is read, or the same one in another way."""

from __future__ import annotations

import gradio as gr

from kit.app.compare.comparison import Shown
from kit.app.compare.stored import Reading, open_reading
from kit.app.compare.stored_page import StoredPage
from kit.app.compare.view import CompareView
from kit.app.inert import short
from kit.app.parts import Update
from kit.errors import ConfigError, KitError

LONGEST_NAME = 60  # characters of a name in an address that are said again


class ReadEvents:
    """Each takes the page's values and gives what it shows next."""

    def __init__(self, view: CompareView) -> None:
        self.view, self.page = view, StoredPage(view)

    def open(self, request: gr.Request) -> Update:
        """The page as it opens: with what is in the address, or a stored pair that differs."""
        pair, query = self.view.pair, request.query_params
        both, unknown = pair.asked_for(query)
        based = {pair.with_base: query.get("base") == "on"}
        values = {part: part.value for part in self.view.looks} | based
        choices = [gr.update(value=side, choices=pair.offered()) for side in both]
        update = self._opened(values, *both, query.get("problem", ""), query.get("sample", "0"))
        missing = self._missing(both, unknown, query.get("problem", ""), update[self.view.reading])
        return update | based | dict(zip(pair.both, choices, strict=True)) | missing

    def _missing(
        self, shown: tuple[str, str], unknown: list[str], problem: str, reading: Reading | None
    ) -> Update:
        """What is said of names in an address that are not here; nothing where all are."""
        if unknown:
            names = " and ".join(short(name, LONGEST_NAME) for name in unknown)
            are = "are" if len(unknown) > 1 else "is"
            left, right = shown
            said = f"{names} {are} not among the adapters here; {left} and {right} are shown"
        elif reading and problem and reading.case.left.id != problem:
            name = short(problem, LONGEST_NAME)
            said = f"problem {name} is not among the stored ones of this pair; another is shown"
        else:
            return {}
        return self.view.refuse(ConfigError(said))

    def follow(self, values: Update) -> Update:
        """Another pair: its stored answers, and the system prompt the left one was trained with.

        Nothing where that pair is read already: the page itself has set it.
        """
        reading: Reading | None = values[self.view.reading]
        both = [values[side] for side in self.view.pair.both]
        if reading and [side.label for side in reading.sides] == both:
            return gr.skip()
        return self._opened(values, *both)

    def _opened(
        self, values: Update, left: str, right: str, problem: str = "", sample: str = "0"
    ) -> Update:
        prompt = gr.skip()
        try:
            sides = self.view.pair.choices(left, right)
            prompt = sides[0].system_prompt
            reading = open_reading(self.view.desk.options.roots, *sides)
        except KitError:  # of a path that is still being typed; a run will say so
            reading = None
        if reading is None:
            return self.view.show(None, None, values) | {self.view.system_prompt: prompt}
        return self.page.show(reading.at_problem(problem, sample), values)

    def show(self, values: Update) -> Update:
        """The pair that is being read, which Browse may have found; nothing where there is none."""
        reading: Reading | None = values[self.view.reading]
        return gr.skip() if reading is None else self.page.show(reading, values)

    def based(self, values: Update) -> Update:
        """The base beside stored answers, or away again; what was run keeps its columns."""
        shown: Shown | None = values[self.view.shown]
        is_run = shown is not None and not shown.comparison.is_stored
        return gr.skip() if is_run or values[self.view.pair.blind] else self.show(values)

    def blinded(self, values: Update) -> Update:
        """A session begins, with another pair than the one that was seen with names; or it stops,
        and what it has come to is shown."""
        view = self.view
        reading: Reading | None = values[view.reading]
        if reading is not None:
            update = self.page.show(reading, values)
            return update | view.result.show(reading) if reading.ballots else update
        if values[view.pair.blind]:
            return view.show(None, None, values)
        classes = view.gold_classes(values[view.shown], None, values)
        return {view.problem.gold: gr.update(elem_classes=classes)}

    def renamed(self, values: Update) -> Update:
        """Another voter, or another number of pairs: the session that is theirs."""
        reading: Reading | None = values[self.view.reading]
        now = self.view.vote.name(values), values[self.view.size]
        is_same = reading is not None and (reading.voter, reading.size) == now
        return gr.skip() if is_same or not values[self.view.pair.blind] else self.show(values)

    def move(self, values: Update, by: int | None) -> Update:
        """The stored pair `by` further, or any one; without any, the data set's problem."""
        view, problem = self.view, self.view.problem
        reading: Reading | None = values[view.reading]
        if reading is not None:
            moved = reading.drawn() if by is None else reading.moved(by)
            return self.page.show(moved, values, by or 1)
        source, search, asked = (
            values[part] for part in (problem.source, problem.search, problem.question)
        )
        try:
            taken = problem.draw(source, search, by, asked)
        except KitError as error:
            return view.refuse(error)
        empty = view.show(None, None, values)
        gold = empty[problem.gold] | {"value": taken[1]}
        return empty | dict(zip(problem.taken, taken, strict=True)) | {problem.gold: gold}

    def go(self, values: Update, event: gr.EventData) -> Update:
        """To a mark of the strip."""
        reading: Reading | None = values[self.view.reading]
        moved = reading and reading.at_case(int(event.case))
        return self.show(values | {self.view.reading: moved})

    def filter(self, values: Update) -> Update:
        """The pairs that came out as is asked for."""
        reading: Reading | None = values[self.view.reading]
        found = reading.filtered(values[self.view.vote.outcome]) if reading else None
        none = "No stored pair came out so."
        return self.view.say(none) if found is None else self.page.show(found, values)

    def voted(self, values: Update, shown: Shown) -> Update:
        """After a vote of a session its next pair; another is shown with its names."""
        reading: Reading | None = values[self.view.reading]
        if reading is not None and shown.comparison.is_stored:
            return self.page.show(reading.moved(1), values)
        return self.view.show(shown, reading, values)

    def revote(self, values: Update) -> Update:
        """A session on what was trained on the votes, against what it went on from."""
        pair = self.view.pair
        try:
            reading = self.view.result.revote()
        except KitError as error:
            return self.view.refuse(error)
        chosen = {
            part: gr.update(value=side.label, choices=pair.offered())
            for part, side in zip(pair.both, reading.sides, strict=True)
        }
        is_blind = {pair.blind: True}
        return self.page.show(reading, values | is_blind) | chosen | is_blind
