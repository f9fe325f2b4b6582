"""Downloads of a finished comparison, and of all this session has made."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gradio as gr

from kit.app.browse.pairs import compared
from kit.app.compare.comparison import Shown, to_pair
from kit.app.compare.stored import Reading
from kit.app.exports import comparator_json, json_text, pair_json, pair_markdown
from kit.app.parts import Update
from kit.files import write_atomically


class ExportView:
    """Builds its part of the Compare tab. Files live until the app ends."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kit-app-")
        with gr.Row(visible=False, elem_id="kit-export") as self.box:
            self.markdown = gr.DownloadButton("This comparison as Markdown", size="sm")
            self.json = gr.DownloadButton("This comparison as JSON", size="sm")
            self.comparator = gr.DownloadButton("All of these two for LLM Comparator", size="sm")
        self.outputs = [self.box, self.markdown, self.json, self.comparator]

    def show(self, shown: Shown | None, reading: Reading | None) -> Update:
        """Of stored answers, all pairs that are being read are those for LLM Comparator."""
        if shown is None or shown.hides_names or not shown.comparison.is_finished:
            return {self.box: gr.update(visible=False)}
        if reading and shown.comparison.is_stored:
            pair = compared(reading.pairing, reading.case)
            same = [compared(reading.pairing, case) for case in reading.cases]
        else:
            pair = to_pair(shown.comparison, shown.sample)
            names = pair.left.name, pair.right.name
            same = [p for p in shown.history if (p.left.name, p.right.name) == names]
        comparator = comparator_json(same, pair.left.name, pair.right.name)
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        files = {
            self.markdown: ("comparison.md", pair_markdown(pair)),
            self.json: ("comparison.json", json_text(pair_json(pair))),
            self.comparator: ("llm-comparator.json", json_text(comparator)),
        }
        update: Update = {self.box: gr.update(visible=True)}
        for button, (name, text) in files.items():
            write_atomically(folder / name, text)
            update[button] = gr.update(value=str(folder / name))
        return update
