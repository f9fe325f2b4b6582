"""The Browse tab's components and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from kit.app.browse.pairs import Selection
from kit.app.inert import escaped
from kit.app.library.results import FoundResults
from kit.app.parts import table_html

ANY = "any"
OUTCOMES: list[tuple[str, str]] = [
    ("all", "all"),
    ("only the left correct", "left"),
    ("only the right correct", "right"),
    ("both correct", "both"),
    ("both wrong", "neither"),
    ("answers differ", "differ"),
]
HEADERS = ["#", "Problem", "Gold answer", "Left", "Right"]
MESSAGES = 8  # that are shown; the others are counted


class Parts:
    """All components, in the order in which they stand on the page."""

    def __init__(self) -> None:
        """To be called where the tab is built; what shows pairs is hidden until there are some."""
        self._lay_out_choice()
        with gr.Column(visible=False) as self.pairs:
            self._lay_out_filters()
        self.found = gr.State(FoundResults((), ()))

    @property
    def filters(self) -> list[Any]:
        return [self.measure, self.outcome, self.category, self.difficulty, self.text]

    @property
    def choice(self) -> list[Any]:
        """What decides which pair is shown."""
        return [self.found, self.left, self.right, *self.filters]

    @property
    def all(self) -> list[Any]:
        return list(vars(self).values())

    def _lay_out_choice(self) -> None:
        with gr.Row():
            self.group = gr.Dropdown([], label="Data set and temperature", min_width=240)
            # a value that has just left the list is no error: it gives way to one that is there
            self.left, self.right = (
                gr.Dropdown([], label=name, allow_custom_value=True, min_width=240)
                for name in ("Left", "Right")
            )
            self.refresh = gr.Button("Refresh", min_width=100, scale=0)
        self.note = gr.HTML(sentence("Looking for results …"))
        with gr.Accordion("Files", open=False, visible=False) as self.faults_box:
            self.faults = gr.HTML(padding=True)

    def _lay_out_filters(self) -> None:
        with gr.Row():
            self.measure = gr.Radio(
                [("strict: as #### answer", "strict"), ("lenient: anywhere", "lenient")],
                value="strict",
                label="Verdict",
                min_width=200,
            )
            self.outcome = gr.Dropdown(OUTCOMES, value="all", label="Outcome", min_width=200)
            self.category = gr.Dropdown([ANY], value=ANY, label="Category", min_width=140)
            self.difficulty = gr.Dropdown([ANY], value=ANY, label="Difficulty", min_width=140)
            self.text = gr.Textbox(
                "", label="Search questions and completions", max_lines=1, min_width=240
            )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.counts = gr.HTML()
            with gr.Column(scale=5, min_width=300):
                self.table = gr.Dataframe(
                    headers=HEADERS,
                    datatype="str",
                    interactive=False,
                    label="Matching pairs",
                    max_height=520,
                    column_widths=["6%", "44%", "14%", "18%", "18%"],
                    elem_id="kit-matching",
                )
        with gr.Row():
            self.read = gr.Button("Read them in Compare", variant="primary", min_width=160)
            self.page = gr.Number(1, label="Page", precision=0, minimum=1, min_width=120)


def counts_table(selection: Selection) -> str:
    """Two by two; the outcome that is chosen does not change it."""
    counts = selection.counts
    if not counts.total:
        return sentence("No pair matches: clear the search or choose another category.")

    rows = [
        ("Left side correct", f"{counts.both:,}", f"{counts.left:,}"),
        ("Left side wrong", f"{counts.right:,}", f"{counts.neither:,}"),
    ]
    table = table_html(["", "Right side correct", "Right side wrong"], rows)
    return sentence(f"{counts.total:,} pairs by the {selection.wanted.measure} verdict") + table


def bullets(messages: Sequence[str]) -> str:
    """A list of the first MESSAGES, and how many more there are."""
    shown = [*messages[:MESSAGES]]
    if len(messages) > MESSAGES:
        shown.append(f"and {len(messages) - MESSAGES} more")
    items = "".join(f"<li>{escaped(message)}</li>" for message in shown)
    return f"<ul>{items}</ul>" if items else ""


def sentence(text: str) -> str:
    return f"<p>{escaped(text)}</p>"
