"""What the notebook shows: growing curves, tables, answers side by side, the app.

Texts of models and data sets are escaped. IPython is no dependency of the kit and is imported where
it is used.
"""

from __future__ import annotations

import base64
import html
import os
import secrets
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from kit.app.browse.layout import badge_of
from kit.app.browse.pairs import Case, Filter, pair_up, select
from kit.app.inert import printable
from kit.app.library.results import Attempt, Stored, find_stored
from kit.app.options import AppOptions
from kit.errors import ResultsError
from kit.notebook.place import Place
from kit.notebook.process import Output
from kit.reports.accuracy import describe_accuracy
from kit.reports.collect import collect
from kit.reports.curves import describe_curves, measure_curves
from kit.reports.document import Block, Figure, Section, Table, Text
from kit.reports.evidence import BASE
from kit.reports.figures import styles
from kit.reports.paired import compare_arms, describe_differences
from kit.reports.scores import measure_scores

# the few curves that tell whether training goes well; the app and the report have all
CURVES = (
    *("reward/mean", "validation/strict", "validation/lenient"),
    *("completion/mean_tokens", "policy/entropy", "ratio/zero_gradient_share"),
)
APP_HEIGHT = 900  # pixels
COLOURS = {"right": "#14713d", "wrong": "#b42318"}
OTHER_COLOUR = "#8a4b08"  # right in another form, cut off, no answer


class LiveCurves:
    """Shows a comparison while it is being trained: curves, the progress bar, what is printed."""

    def __init__(self, folder: Path) -> None:
        from IPython.display import HTML, DisplayHandle

        self.folder = folder
        self._html = HTML
        self._curves, self._progress = DisplayHandle(), DisplayHandle()
        self._curves.display(HTML(""))
        self._progress.display(HTML(""))
        self._seen: list[tuple[int, int]] = []

    def show(self, output: Output) -> None:
        """Bring everything up to date."""
        for line in output.read():
            print(line, flush=True)
        self._progress.update(self._html(f"<pre>{_escaped(output.progress)}</pre>"))
        files = sorted(self.folder.glob("*/*/metrics.jsonl"))
        now = [(file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        if now != self._seen:
            self._seen = now
            self._curves.update(self._html(curves_html(self.folder)))

    def end(self) -> None:
        """Nothing is under way any more."""
        self._progress.update(self._html(""))


def curves_html(folder: Path) -> str:
    """The main curves of a comparison's arms, as far as they have come."""
    evidence = collect([folder])
    measured = measure_curves(evidence)
    shown = {metric: measured[metric] for metric in CURVES if metric in measured}
    looks = styles([arm.name for arm in evidence.arms], BASE)
    blocks = describe_curves(evidence, shown, looks).blocks
    return _figures_html([block for block in blocks if isinstance(block, Figure)])


def show_results(folder: Path) -> None:
    """Accuracy of base and arms, and which differences are shown: the report's main sections."""
    from IPython.display import HTML, display

    evidence = collect([folder])
    looks = styles([arm.name for arm in evidence.arms], BASE)
    scores = measure_scores(evidence)
    accuracy = describe_accuracy(evidence, scores, looks)
    differences = describe_differences(evidence, compare_arms(evidence, scores), looks)
    for section in (accuracy, differences):
        display(HTML(_section_html(section)))


def show_answers(folder: Path, left: str, right: str, count: int = 5) -> None:
    """Stored answers of two arms to the same problems, first those where one alone is right.

    Raises ResultsError when one of them has not been evaluated.
    """
    from IPython.display import HTML, display

    stored = find_stored([folder.resolve()]).stored
    pairing = pair_up(_of_arm(stored, left), _of_arm(stored, right))
    one_sided = [select(pairing, Filter(outcome=side)).cases for side in ("left", "right")]
    # in turn, so that neither arm looks better than it is
    told_apart = [case for pair in zip_longest(*one_sided) for case in pair if case is not None]
    others = [case for case in pairing.cases if case not in told_apart]
    title = f"{len(told_apart)} of {len(pairing.cases)} problems are solved by one arm alone"
    cases = "".join(_case_html(case, left, right) for case in [*told_apart, *others][:count])
    display(HTML(f"<p><b>{_escaped(title)}</b> (strict).</p>{cases}"))


def open_app(folder: Path, place: Place, *, share: bool = False) -> None:
    """The inspect app below the cell, on the runs of a folder.

    The base is loaded into this process when the page is first asked for an answer. `share` opens a
    public address too, behind a password that is printed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is told to anybody
    import gradio as gr

    from kit.app.library.adapters import find
    from kit.app.page import build, guard, settings
    from kit.app.session import Session

    if place.name == "kaggle" and not share:
        print("Kaggle shows no page of its own machine: set SHARE = True to see the app.")
        return
    gr.close_all(verbose=False)  # of an earlier run of this cell
    auth = ("kit", secrets.token_urlsafe(9)) if share else None
    options = AppOptions(runs=folder, share=share, auth=auth)
    page = build(Session(options, find(options)))
    if auth is not None:
        print(f"user {auth[0]}, password {auth[1]}")
    page.launch(
        **(settings(options) | {"server_port": None}),  # any free one
        app_kwargs=guard(options, any_name=True),
        inline=True,
        prevent_thread_lock=True,
        quiet=True,
        height=APP_HEIGHT,
    )
    print(page.share_url or page.local_url)


def offer_download(path: Path, place: Place) -> None:
    """Colab's browser download, elsewhere a link."""
    if place.name == "colab":
        from google.colab import files

        files.download(str(path))
        return
    from IPython.display import FileLink, display

    display(FileLink(os.path.relpath(path)))


# --- HTML ----------------------------------------------------------------------------------------


def _section_html(section: Section) -> str:
    """Neighbouring figures stand side by side; what the report folds away is left out."""
    parts, figures = [f"<h3>{_escaped(section.title)}</h3>"], []
    for block in section.blocks:
        if isinstance(block, Figure):
            figures.append(block)
            continue
        parts += [_figures_html(figures), _block_html(block)]
        figures = []
    return "".join([*parts, _figures_html(figures)])


def _block_html(block: Block) -> str:
    if isinstance(block, Text):
        title = f"<p><b>{_escaped(block.title)}</b></p>" if block.title else ""
        if not block.is_list:
            return f"{title}<p>{_escaped(' '.join(block.sentences))}</p>"
        return f"{title}<ul>{''.join(f'<li>{_escaped(s)}</li>' for s in block.sentences)}</ul>"
    if not isinstance(block, Table) or block.folded:
        return ""
    rows = pd.DataFrame([list(row) for row in block.rows], columns=list(block.header))
    title, note = _escaped(block.title), _escaped(block.note)
    return f"<p><b>{title}</b></p>{rows.to_html(index=False, border=0)}<p><small>{note}</small></p>"


def _figures_html(figures: list[Figure]) -> str:
    shown = "".join(
        '<figure style="flex:1 1 280px;max-width:400px;margin:0">'
        f"<figcaption><b>{_escaped(figure.title)}</b></figcaption>"
        f'<img style="width:100%" alt="{_escaped(figure.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(figure.png).decode()}">'
        f"<small>{_escaped(figure.note)}</small></figure>"
        for figure in figures
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{shown}</div>' if shown else ""


def _case_html(case: Case, left: str, right: str) -> str:
    sides = "".join(
        _attempt_html(name, attempt) for name, attempt in ((left, case.left), (right, case.right))
    )
    return (
        '<div style="border-top:1px solid #999;padding:6px 0">'
        f"<div><b>{_escaped(case.left.question)}</b><br>"
        f"Gold answer: <b>{_escaped(case.left.answer)}</b></div>"
        f'<div style="display:flex;flex-wrap:wrap;gap:16px">{sides}</div></div>'
    )


def _attempt_html(name: str, attempt: Attempt) -> str:
    badge = badge_of(attempt)
    colour = COLOURS.get(badge.kind, OTHER_COLOUR)
    return (
        '<div style="flex:1 1 300px"><span style="color:#fff;border-radius:1em;padding:0 .6em;'
        f'background:{colour}">{_escaped(badge.text)}</span> <b>{_escaped(name)}</b>, '
        f"{attempt.tokens} tokens"
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{_escaped(attempt.completion)}'
        "</div></div>"
    )


def _escaped(text: str) -> str:
    """A dollar in an element of its own begins no formula."""
    return html.escape(printable(text)).replace("$", "<span>$</span>")


def _of_arm(stored: tuple[Stored, ...], arm: str) -> Stored:
    found = [one for one in stored if one.name.split("/")[0] == arm]
    if not found:
        raise ResultsError(f"{arm} has no stored answers yet; run the training cell to its end")
    return found[0]
