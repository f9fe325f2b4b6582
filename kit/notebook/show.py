"""What the notebook shows: growing curves, tables, answers side by side, the app.

Texts of models and data sets are escaped. IPython is no dependency of the kit and is imported where
it is used.
"""

from __future__ import annotations

import os
import secrets
from itertools import zip_longest
from pathlib import Path

from kit.app import parts
from kit.app.browse.pairs import Case, Filter, pair_up, select
from kit.app.inert import escaped, short
from kit.app.library.results import Attempt, Stored, find_stored
from kit.app.options import AppOptions
from kit.app.verdicts import badge_of
from kit.errors import ResultsError
from kit.notebook.place import Place
from kit.notebook.process import Output
from kit.reports.accuracy import describe_accuracy
from kit.reports.collect import collect
from kit.reports.curves import describe_curves, measure_curves
from kit.reports.document import Figure, Section, Table
from kit.reports.evidence import BASE
from kit.reports.figures import styles
from kit.reports.page import sections_html
from kit.reports.paired import compare_arms, describe_answers
from kit.reports.scores import measure_scores

# the few curves that tell whether training goes well; the app and the report have all
CURVES = (
    *("reward/mean", "validation/strict", "validation/lenient"),
    *("completion/mean_tokens", "policy/entropy", "ratio/zero_gradient_share"),
)
APP_HEIGHT = 900  # pixels
STYLE = (
    parts.STYLE
    + """
.kit-shown .grid { display: flex; flex-wrap: wrap; gap: 12px; }
.kit-shown :is(figure, .kit-side) { flex: 1 1 280px; margin: 0; }
.kit-shown figure { max-width: 400px; }
.kit-shown figure img { width: 100%; }
.kit-shown .kit-text { white-space: pre-wrap; overflow-wrap: anywhere; }
.kit-shown .caption { font-size: smaller; }
"""
)


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
        self._progress.update(self._html(f"<pre>{escaped(output.progress)}</pre>"))
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
    return _section_html(
        Section("Training", [block for block in blocks if isinstance(block, Figure)])
    )


def show_results(folder: Path) -> None:
    """Which differences are shown, and accuracy of base and arms: the report's main sections."""
    from IPython.display import HTML, display

    evidence = collect([folder])
    looks = styles([arm.name for arm in evidence.arms], BASE)
    scores = measure_scores(evidence)
    answers = describe_answers(evidence, compare_arms(evidence, scores), looks)
    accuracy = describe_accuracy(evidence, scores, looks)
    for section in (answers, accuracy):
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
    display(HTML(_shown(f"<p><b>{title}</b> (strict).</p>{cases}")))


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


def _side_head(name: str, attempt: Attempt) -> str:
    """Who wrote a completion, whether it is right, its answer and length."""
    answer = attempt.lenient_answer
    found = "" if answer is None else f"answer <strong>{escaped(short(answer, 60))}</strong> · "
    cut = ", cut off" if attempt.truncated else ""
    return (
        f"<strong>{escaped(name)}</strong><br>"
        f"{parts.badge_html(badge_of(attempt))} {found}{attempt.tokens:,} tokens{cut}"
    )


def _section_html(section: Section) -> str:
    """As in the report, but what that folds away is left out."""
    open_ = [block for block in section.blocks if not (isinstance(block, Table) and block.folded)]
    return _shown(sections_html([Section(section.title, open_)]))


def _case_html(case: Case, left: str, right: str) -> str:
    sides = "".join(
        f'<div class="kit-side"><p>{_side_head(name, attempt)}</p>'
        f'<div class="kit-text">{escaped(attempt.completion)}</div></div>'
        for name, attempt in ((left, case.left), (right, case.right))
    )
    return (
        f"<hr><p><b>{escaped(case.left.question)}</b><br>"
        f'Gold answer: <b>{escaped(case.left.answer)}</b></p><div class="grid">{sides}</div>'
    )


def _shown(page: str) -> str:
    """With the styles it needs; a dollar in an element of its own begins no formula."""
    return (
        f'<style>{STYLE}</style><div class="kit-shown">{page.replace("$", "<span>$</span>")}</div>'
    )


def _of_arm(stored: tuple[Stored, ...], arm: str) -> Stored:
    found = [one for one in stored if one.name.split("/")[0] == arm]
    if not found:
        raise ResultsError(f"{arm} has no stored answers yet; run the training cell to its end")
    return found[0]
