"""The problem: typed, or picked from a data set with its gold answer; and the prompt as sent."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from kit.app.compare.setup import MAX_CHARACTERS
from kit.app.inert import inert_markdown
from kit.app.parts import BARE, QUIET
from kit.app.session import Session
from kit.config import EMBEDDED_SUMS
from kit.errors import ConfigError, KitError

# problems with their answers, of the kind that an embedded model has learned
EXAMPLE = (
    "A lasagna has 36 servings. If Elijah can eat 6 servings a day while James can eat 2 times as "
    "much, how many days will the lasagna last? Give the result as your final answer. Do not "
    "include units.",
    "2",
)
EXAMPLE_SUM = ("Calculate 7 - 2 * ( 3 + -5 ).", "11")


class ProblemView:
    """Builds its parts of the Compare tab: the line inside a row, the rest in the drawer."""

    def __init__(self, desk: Session) -> None:
        self.desk = desk
        self.data = gr.State(None)  # the data set the problem is from
        self.picked = gr.State(None)  # that problem's question: an edited one is no longer it
        sums = desk.catalogue.model.id == EMBEDDED_SUMS
        example, answer = EXAMPLE_SUM if sums else EXAMPLE
        self.question = gr.Textbox(
            example, label="Problem", lines=1, max_lines=12, max_length=MAX_CHARACTERS,
            elem_id="kit-question", **BARE,
        )  # fmt: skip
        self.gold = gr.Textbox(
            answer, label="Gold answer, if known", placeholder="if known", max_lines=1,
            elem_id="kit-gold", **BARE,
        )  # fmt: skip
        self.previous, self.following, self.chance = (
            gr.Button(text, size="sm", elem_id=f"kit-{name}", elem_classes="kit-sign")
            for text, name in (
                ("Previous problem", "previous"),
                ("Next problem", "following"),
                ("A random problem", "chance"),
            )
        )
        self.taken = [self.question, self.gold, self.data, self.picked]

    def build_drawer(self) -> None:
        """What is asked for less often; to be called where the drawer is built."""
        names = list(self.desk.problems.configs)
        self.source = gr.Dropdown(names, value=names[0], label="Data set")
        self.search = gr.Textbox("", label="Problems containing", max_lines=1)
        self.listed = gr.Dropdown([], label="Problem of the data set", interactive=True)
        self.trouble = gr.Markdown(visible=False)
        with gr.Accordion("The prompt exactly as it is sent", open=False) as self.exact:
            self.prompt = gr.Textbox(label="Prompt", lines=6, max_lines=20, interactive=False)
        self.controls = [self.question, self.gold, self.source, self.listed, self.chance]
        chosen, listing = [self.source, self.search], [self.listed, self.trouble]
        changed = [self.listed.focus, self.source.input, self.search.change]
        gr.on(changed, self._list, chosen, listing, trigger_mode="always_last", **QUIET)
        self.listed.input(self._take, [self.source, self.listed], self.taken, **QUIET)

    def read(self, values: dict[Any, Any]) -> dict[str, Any]:
        """The fields of Setup that are asked for here; raises what `Problems.standard` raises."""
        question, gold = values[self.question] or "", (values[self.gold] or "").strip()
        data = values[self.data] if question == values[self.picked] else None
        problems = self.desk.problems
        return {
            "question": question,
            "gold": gold or None,
            "standard": problems.standard(data, question, gold or None) if data else None,
            "problem": problems.find(data, question) if data else None,
        }

    def _list(self, name: str, search: str) -> tuple[Any, Any]:
        try:
            titles = self.desk.problems.titles(name, search)
        except KitError as error:
            return gr.update(choices=[], value=None), _trouble(str(error))
        nothing = "" if titles else f"No problem of {name} has that in it."
        return gr.update(choices=titles, value=None), _trouble(nothing)

    def _take(self, name: str, index: int) -> list[Any]:
        problem = self.desk.problems.load(name)[index]
        return [problem["question"], problem["answer"], name, problem["question"]]

    def draw(self, name: str, search: str, by: int | None, asked: str) -> list[Any]:
        """Values of `taken`: the problem `by` further than the asked one, or any one."""
        titles = self.desk.problems.titles(name, search)
        problems = self.desk.problems.load(name)
        at = [i for i, (_, index) in enumerate(titles) if problems[index]["question"] == asked]
        if not titles:
            raise ConfigError(f"no problem of {name} has {search!r} in it; search for another text")
        if by is None:
            return self._take(name, random.choice(titles)[1])
        return self._take(name, titles[(at[0] + by if at else 0) % len(titles)][1])


def _trouble(text: str) -> Any:
    return gr.update(value=inert_markdown(text), visible=bool(text))
