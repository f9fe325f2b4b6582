"""The Report tab: shows the reports there are, and makes new ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from kit.app.inert import escaped, inert_markdown
from kit.app.options import AppOptions
from kit.app.parts import QUIET
from kit.app.report import pages as reports
from kit.errors import KitError

FOLDER = "reports"  # of those made here, in the folder of the runs

Update = dict[str, Any]  # gr.update's
NONE = "There is no report yet: make one here, or with <code>kit report RUN</code>."


def build(options: AppOptions) -> None:
    """The tab's components and their events, inside a gr.Blocks."""
    tab = _ReportTab(options)
    chosen = gr.Dropdown(label="Report")
    with gr.Row():
        again = gr.Button("Look for new reports", size="sm", scale=0, min_width=200)
        download = gr.DownloadButton(
            "Download this report", size="sm", scale=0, min_width=200, interactive=False
        )
    with gr.Accordion("Make a report", open=False) as box:
        sources = gr.Dropdown(
            label="Runs and comparisons",
            info="A comparison brings all its runs; single runs must share one base",
            multiselect=True,
        )
        make = gr.Button("Make the report", variant="primary")
        words = gr.Markdown()
    page = gr.HTML(elem_classes="kit-report")
    listed = [chosen, sources, page, box]
    gr.on(None, tab.look, None, listed, **QUIET)
    again.click(tab.look, [chosen, sources], listed, **QUIET)
    chosen.change(tab.show, chosen, [page, download], **QUIET)
    make.click(
        tab.make,
        sources,
        [words, chosen],
        **(QUIET | {"show_progress": "minimal", "show_progress_on": words}),
    )


class _ReportTab:
    """The events: what the page sends in, what it shows next."""

    def __init__(self, options: AppOptions) -> None:
        self.roots = options.roots
        self.into = options.runs.resolve() / FOLDER

    def look(
        self, chosen: str | None = None, sources: list[str] | None = None
    ) -> tuple[Update, Update, Any, Update]:
        """All there is; choices that are still possible stay. In words, if there is no report."""
        offered = reports.find_sources(self.roots)
        paths = [str(folder.path) for folder in offered]
        kept = gr.update(
            choices=[folder.option for folder in offered],
            value=[path for path in sources or [] if path in paths],
        )
        found = self._reports(chosen)
        is_none = found["value"] is None
        return found, kept, NONE if is_none else gr.skip(), gr.update(open=is_none)

    def show(self, chosen: str | None) -> tuple[str, Update]:
        off = gr.update(value=None, interactive=False)
        if chosen is None:
            return NONE, off
        try:
            page = reports.locate(chosen, self.roots)
            shown = reports.frame(page, f"Report in {page.parent}")
        except KitError as error:
            return escaped(str(error)), off
        # the button serves files from Gradio's own folder, not from anywhere
        copy = save_file_to_cache(page, get_upload_folder())
        return shown, gr.update(value=copy, interactive=True)

    def make(self, sources: list[str]) -> Iterator[tuple[str, Any]]:
        yield "Making the report; many runs take half a minute …", gr.skip()
        try:
            folder = reports.make_report(sources, self.roots, self.into)
        except KitError as error:
            yield inert_markdown(str(error)), gr.skip()
            return
        yield f"Written to {inert_markdown(str(folder))}", self._reports(str(folder))

    def _reports(self, chosen: str | None) -> Update:
        found = reports.find_reports(self.roots)
        paths = [str(folder.path) for folder in found]
        value = chosen if chosen in paths else next(iter(paths), None)
        return gr.update(choices=[folder.option for folder in found], value=value)
