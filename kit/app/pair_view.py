"""The bar above all tabs: the pair that they are about, and whether one may know who is who."""

from __future__ import annotations

from typing import Any

import gradio as gr

from kit.app.library.adapters import Choice, default_pair
from kit.app.library.folders import display_names
from kit.app.parts import BARE
from kit.app.session import Session


class PairView:
    """Builds the bar inside the current Gradio context."""

    def __init__(self, desk: Session) -> None:
        self.desk = desk
        left, right = default_pair(desk.catalogue)
        gr.HTML("<h1>GR-PSPO kit</h1>", elem_id="kit-title")
        with gr.Row(elem_id="kit-bar"):
            self.left = self._dropdown("Left", left)
            self.swap = gr.Button("Swap left and right", elem_id="kit-swap", size="sm")
            self.right = self._dropdown("Right", right)
            self.with_base, self.blind = (
                gr.Checkbox(False, label=name, container=False, elem_classes="kit-narrow")
                for name in ("base", "blind")
            )
        self.both = [self.left, self.right]

    def offered(self) -> list[tuple[str, str]]:
        """Everything that can be put on a side: as it is shown, and its label."""
        labels = self.desk.labels
        return list(zip(display_names(labels), labels, strict=True))

    def choices(self, left: str | None, right: str | None) -> tuple[Choice, Choice]:
        """What two labels or paths stand for; raises what `Session.choice` raises."""
        return self.desk.choice(left or ""), self.desk.choice(right or "")

    def asked_for(self, query: Any) -> tuple[tuple[str, str], list[str]]:
        """The pair in an address, where both are offered here, else the one to begin with; and the
        names in it that are not offered."""
        pair = query.get("left"), query.get("right")
        unknown = [label for label in dict.fromkeys(pair) if label not in self.desk.labels]
        if not unknown:
            return pair, []
        left, right = default_pair(self.desk.catalogue)
        return (left.label, right.label), [label for label in unknown if label]

    def _dropdown(self, name: str, choice: Choice) -> gr.Dropdown:
        return gr.Dropdown(
            self.offered(), value=choice.label, label=name, allow_custom_value=True,
            elem_id=f"kit-{name.lower()}", **BARE,
        )  # fmt: skip
