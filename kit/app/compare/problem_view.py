"""The problem: typed, or picked from a data set with its gold answer; and the prompt as sent."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from kit.app.compare.setup import MAX_CHARACTERS
from kit.app.inert import inert_markdown
from kit.app.parts import QUIET
from kit.app.session import Session
from kit.config import EMBEDDED_SUMS
from kit.errors import KitError

# problems with their answers, of the kind that an embedded model has learned
EXAMPLE = (
    "A lasagna has 36 servings. If Elijah can eat 6 servings a day while James can eat 2 times as "
    "much, how many days will the lasagna last? Give the result as your final answer. Do not "
    "include units.",
    "2",
)
EXAMPLE_SUM = ("Calculate 7 - 2 * ( 3 + -5 ).", "11")


class ProblemView:
    """Builds its part of the Compare tab."""

    def __init__(self, desk: Session) -> None:
        self.desk = desk
        self.data = gr.State(None)  # the data set the problem is from
        self.picked = gr.State(None)  # that problem's question: an edited one is no longer it
        names = list(desk.problems.configs)
        sums = desk.catalogue.model.id == EMBEDDED_SUMS
        example, answer = EXAMPLE_SUM if sums else EXAMPLE
        self.question = gr.Textbox(
            example,
            label="Problem",
            info="Enter runs, Shift+Enter starts a new line",
            lines=1,
            max_lines=12,
            max_length=MAX_CHARACTERS,
            elem_id="kit-question",
        )
        self.gold = gr.Textbox(
            answer,
            label="Right answer, if known",
            info="Decides the verdicts; it is not sent to the model",
            max_lines=1,
            elem_id="kit-gold",
        )
        with gr.Accordion("Pick from a data set", open=False) as self.browser:
            with gr.Row():
                self.source = gr.Dropdown(names, value=names[0], label="Data set")
                self.search = gr.Textbox("", label="Containing", max_lines=1)
            self.listed = gr.Dropdown([], label="Problem of the data set", interactive=True)
            self.chance = gr.Button("A random one", size="sm")
            self.trouble = gr.Markdown(visible=False)
        with gr.Accordion("The prompt exactly as it is sent", open=False) as self.exact:
            self.prompt = gr.Textbox(label="Prompt", lines=6, max_lines=20, interactive=False)
        self.taken = [self.question, self.gold, self.data, self.picked]
        self.controls = [self.question, self.gold, self.source, self.listed, self.chance]
        self._wire()

    def read(self, values: dict[Any, Any]) -> dict[str, Any]:
        """The fields of Setup that are asked for here; raises what `Problems.standard` raises."""
        question, gold = values[self.question] or "", (values[self.gold] or "").strip()
        data = values[self.data] if question == values[self.picked] else None
        standard = self.desk.problems.standard(data, question, gold or None) if data else None
        return {"question": question, "gold": gold or None, "standard": standard}

    def _wire(self) -> None:
        chosen, listing = [self.source, self.search], [self.listed, self.trouble]
        gr.on(
            [self.browser.expand, self.source.input, self.search.change],
            self._list,
            chosen,
            listing,
            trigger_mode="always_last",
            **QUIET,
        )
        self.listed.input(self._take, [self.source, self.listed], self.taken, **QUIET)
        self.chance.click(self._draw, chosen, [*listing, *self.taken], **QUIET)

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

    def _draw(self, name: str, search: str) -> list[Any]:
        listed, trouble = self._list(name, search)
        if not listed["choices"]:
            return [listed, trouble, *[gr.skip()] * 4]
        index = random.choice(listed["choices"])[1]
        return [listed | {"value": index}, trouble, *self._take(name, index)]


def _trouble(text: str) -> Any:
    return gr.update(value=inert_markdown(text), visible=bool(text))
