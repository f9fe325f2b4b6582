"""The Browse tab's components and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from kit.app.browse.pairs import Case, Pairing, Selection
from kit.app.inert import escaped, short
from kit.app.library.results import Attempt, FoundResults
from kit.app.parts import PROSE, badge_html
from kit.app.verdicts import Badge, badge
from kit.tasks.verifiers import Verdict

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
DOWNLOAD = "browse-download"
MESSAGES = 8  # that are shown; the others are counted
_CELL = "padding:4px 8px;border:1px solid var(--border-color-primary);text-align:right"


class Parts:
    """All components, in the order in which they stand on the page."""

    def __init__(self) -> None:
        """To be called where the tab is built; what shows pairs is hidden until there are some."""
        self._lay_out_choice()
        with gr.Column(visible=False) as self.pairs:
            self._lay_out_filters()
        with gr.Column(visible=False) as self.case:
            self._lay_out_case()
        self.found = gr.State(FoundResults((), ()))
        self.key = gr.State()  # of the shown pair
        self.selected = gr.State()
        # temporary, of the session's exports
        self.folder = gr.State(delete_callback=lambda folder: folder and folder.cleanup())

    @property
    def filters(self) -> list[Any]:
        return [self.measure, self.outcome, self.category, self.difficulty, self.text]

    @property
    def choice(self) -> list[Any]:
        """What decides which pair is shown."""
        return [self.found, self.left, self.right, *self.filters, self.key]

    @property
    def all(self) -> list[Any]:
        return list(vars(self).values())

    def _lay_out_choice(self) -> None:
        with gr.Row():
            self.group = gr.Dropdown([], label="Data set and temperature", min_width=240)
            self.left = gr.Dropdown([], label="Left", min_width=240)
            self.right = gr.Dropdown([], label="Right", min_width=240)
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
                    max_height=260,
                    column_widths=["60px", "270px", "110px", "215px", "190px"],
                )

    def _lay_out_case(self) -> None:
        with gr.Row():
            self.previous = gr.Button("← Previous", min_width=120)
            self.following = gr.Button("Next →", min_width=120)
            self.position = gr.Number(1, label="Shown pair", precision=0, min_width=160)
        with gr.Group():
            self.question = gr.Markdown(padding=True, **PROSE)
            self.gold = gr.HTML(padding=True)
        with gr.Row():
            self.left_head, self.left_text = _side()
            self.right_head, self.right_text = _side()
        with gr.Row():
            self.live = gr.Button("Run this one live", variant="primary", min_width=160)
            self.as_markdown = gr.Button("Save pair as Markdown", min_width=160)
            self.as_json = gr.Button("Save pair as JSON", min_width=160)
            self.as_comparator = gr.Button("Save matching pairs (LLM Comparator)", min_width=160)
        self.download = gr.DownloadButton("Download", visible="hidden", elem_id=DOWNLOAD)


def _side() -> tuple[gr.HTML, gr.Markdown]:
    with gr.Column(min_width=300), gr.Group():
        return gr.HTML(padding=True), gr.Markdown(padding=True, **PROSE)


def side_head(name: str, attempt: Attempt) -> str:
    """Who wrote a completion, whether it is right, its answer and length."""
    answer = attempt.lenient_answer
    found = "" if answer is None else f"answer <strong>{escaped(short(answer, 60))}</strong> · "
    cut = ", cut off" if attempt.truncated else ""
    return (
        f"<strong>{escaped(name)}</strong><br>"
        f"{badge_html(badge_of(attempt))} {found}{attempt.tokens:,} tokens{cut}"
    )


def problem_foot(pairing: Pairing, case: Case) -> str:
    """The gold answer, and which problem it is."""
    about = [case.left.id, case.left.category, case.left.difficulty]
    if pairing.left.temperature > 0:
        about.append(f"sample {case.left.sample}")
    where = escaped(" · ".join(filter(None, about)))
    answer = escaped(case.left.answer) or "none; the task itself judges"
    return f"Gold answer: <strong>{answer}</strong><br><small>{where}</small>"


def counts_table(selection: Selection) -> str:
    """Two by two; the outcome that is chosen does not change it."""
    counts = selection.counts
    if not counts.total:
        return sentence("No pair matches: clear the search or choose another category.")

    def row(name: str, *numbers: int) -> str:
        cells = "".join(f'<td style="{_CELL}">{n:,}</td>' for n in numbers)
        return f'<tr><th scope="row" style="{_CELL}">{name}</th>{cells}</tr>'

    measure = selection.wanted.measure
    return (
        f'<table style="border-collapse:collapse"><caption style="text-align:left">'
        f"{counts.total:,} pairs by the {measure} verdict</caption>"
        f'<tr><td style="{_CELL}"></td><th scope="col" style="{_CELL}">Right correct</th>'
        f'<th scope="col" style="{_CELL}">Right wrong</th></tr>'
        f"{row('Left correct', counts.both, counts.left)}"
        f"{row('Left wrong', counts.right, counts.neither)}</table>"
    )


def bullets(messages: Sequence[str]) -> str:
    """A list of the first MESSAGES, and how many more there are."""
    shown = [*messages[:MESSAGES]]
    if len(messages) > MESSAGES:
        shown.append(f"and {len(messages) - MESSAGES} more")
    items = "".join(f"<li>{escaped(message)}</li>" for message in shown)
    return f"<ul>{items}</ul>" if items else ""


def sentence(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


def badge_of(attempt: Attempt) -> Badge:
    verdict = Verdict(
        attempt.strict, attempt.lenient, attempt.strict_answer, attempt.lenient_answer
    )
    return badge(verdict, is_judged=True, truncated=attempt.truncated)
