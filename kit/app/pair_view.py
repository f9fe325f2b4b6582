"""The bar above all tabs: the pair that they are about, and whether one may know who is who."""

from __future__ import annotations

from typing import Any

import gradio as gr

from kit.app.library.adapters import Choice, default_pair
from kit.app.library.folders import display_names
from kit.app.parts import BARE
from kit.app.session import Session

STYLE = """
#kit-bar {
  position: sticky; top: 0; z-index: 70; height: 56px; flex-wrap: nowrap; align-items: center;
  background: var(--kit-page); border-bottom: 1px solid var(--kit-rule);
  padding: 0 3rem 0 31rem; gap: .5rem; overflow: visible;
}
#kit-bar input[role=combobox] { padding: 0 1.2rem 0 .4rem; margin: 0; font-size: .875rem; }
#kit-bar .icon-wrap { right: 0; }
#kit-bar > * { min-width: 0 !important; flex: 1 1 9rem; border: 0; }
#kit-bar .kit-narrow { flex: 0 0 auto !important; width: auto; padding: 0; }
#kit-bar #kit-swap { flex: 0 0 2.5rem; font-size: 0; }
#kit-swap::before { content: "\\21C4"; font-size: 1.1rem; }
#kit-title { position: fixed; top: 12px; left: 1rem; z-index: 71; width: auto; }
#kit-title h1 { margin: 0; font-size: 1.1rem; white-space: nowrap; }
#kit-tabs > .tab-wrapper {
  position: fixed; top: 6px; left: 9rem; z-index: 71; width: 22rem; margin: 0; padding: 0;
  height: 44px;
}
#kit-tabs { gap: 0; }
#kit-tabs [role=tab].selected { color: var(--kit-left); }
#kit-tabs > .tabitem { padding: 0; border: 0; }
@media (max-width: 1100px) {
  #kit-title { display: none; }
  #kit-bar { height: 88px; padding: 46px 0 0; position: static; }
  #kit-tabs > .tab-wrapper {
    top: 0; left: 0; padding: 0 .5rem; width: 100vw; background: var(--kit-page);
  }
}
@media (max-width: 640px) {
  #kit-bar {
    display: grid; grid: "left swap base" 30px "right swap blind" 30px / 1fr 2.5rem auto;
    gap: 0 .5rem; height: 109px;
  }
  #kit-left { grid-area: left; }
  #kit-right { grid-area: right; }
  #kit-swap { grid-area: swap; height: 40px; }
  #kit-bar .kit-narrow { font-size: .8rem; gap: 2px; }
}
"""


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

    def asked_for(self, query: Any) -> tuple[str, str]:
        """The pair in an address, where both are offered here; else the one to begin with."""
        pair = query.get("left"), query.get("right")
        if all(label in self.desk.labels for label in pair):
            return pair
        left, right = default_pair(self.desk.catalogue)
        return left.label, right.label

    def _dropdown(self, name: str, choice: Choice) -> gr.Dropdown:
        return gr.Dropdown(
            self.offered(), value=choice.label, label=name, allow_custom_value=True,
            elem_id=f"kit-{name.lower()}", **BARE,
        )  # fmt: skip
