"""The Training tab: curves of chosen runs while they are written, samples, settings that differ."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr

from kit.app.inert import escaped, inert_markdown
from kit.app.library import folders
from kit.app.library import runs as library_runs
from kit.app.library.folders import Folder
from kit.app.library.runs import Run
from kit.app.options import AppOptions
from kit.app.parts import PROSE, QUIET
from kit.app.training import curves, health
from kit.app.training.plots import plot
from kit.errors import RunError
from kit.metrics import GROUPS, SHOWN, adherence_curves

SECONDS = 5.0  # between two looks at the files of the runs that are shown
LONGEST_WINDOW = 50  # steps
VALUES, DIFFERENCE = "values", "difference from "
MOST = 12  # guidelines whose curves are drawn
SAMPLES = 16  # of one step that are shown
Update = dict[str, Any]  # gr.update's
COLUMNS = ("run", "verdict", "status", "step", "last change", "remarks")


def build(options: AppOptions) -> None:
    """The tab's components and their events, inside a gr.Blocks."""
    tab = _TrainingTab(options)
    with gr.Row():
        runs = gr.Dropdown(value=[], label="Runs", multiselect=True, scale=4, min_width=260)
        window = gr.Slider(
            1,
            LONGEST_WINDOW,
            value=1,
            step=1,
            label="Smoothing: moving mean over steps",
            min_width=260,
        )
        against = gr.Dropdown([VALUES], value=VALUES, label="Lines show", min_width=200)
        steps = [
            gr.Number(0, label=label, precision=0, min_width=100)
            for label in ("Steps from", "Steps to, 0: the last")
        ]
    with gr.Row():
        again = gr.Button("Look for new runs", size="sm", scale=0, min_width=200)
        failed = gr.Checkbox(False, label="also runs that ended before their first step")
        whole = gr.Button("All steps", size="sm", scale=0, min_width=120)
    legend = gr.HTML(elem_classes="kit-runs")
    plots = gr.HTML()
    seen: gr.State = gr.State()
    gr.on(None, tab.look, None, [runs, legend], **QUIET)
    gr.on([again.click, failed.input], tab.look, [runs, failed], [runs, legend], **QUIET)
    shown, asked = [legend, seen, plots], [runs, window, against, *steps]
    drawing = QUIET | {"concurrency_id": "curves", "trigger_mode": "always_last"}
    changed = [window.change, against.input, *(part.change for part in steps)]
    gr.on(changed, tab.show, asked, shown, **drawing)
    whole.click(lambda: (0, 0), None, steps, queue=False, **QUIET)
    # not `input`: that says nothing when the choice is cleared
    runs.change(tab.offer_against, [runs, against], against, **QUIET).then(
        tab.show, asked, shown, **drawing
    )
    gr.Timer(SECONDS).tick(tab.follow, [runs, window, against, seen, *steps], shown, **drawing)
    _build_samples(tab, runs, seen)
    _build_differences(tab, runs)


def _build_samples(tab: _TrainingTab, chosen: gr.Dropdown, seen: gr.State) -> None:
    with gr.Accordion("Sampled completions", open=False):
        with gr.Row():
            run = gr.Dropdown(label="Run", min_width=260)
            step = gr.Dropdown(label="Step", min_width=160)
        samples = gr.Markdown(**PROSE)
    chosen.change(tab.offer, [chosen, run], run, **QUIET)
    gr.on([run.change, seen.change], tab.steps, [run, step], step, **QUIET)
    gr.on([run.change, step.change], tab.samples, [run, step], samples, **QUIET)


def _build_differences(tab: _TrainingTab, chosen: gr.Dropdown) -> None:
    with gr.Accordion("Settings of two runs", open=False):
        with gr.Row():
            left = gr.Dropdown(label="First run", min_width=260)
            right = gr.Dropdown(label="Second run", min_width=260)
        words = gr.Markdown()
        table = gr.Dataframe(
            headers=["setting", "first run", "second run"],
            datatype="str",
            interactive=False,
            wrap=True,
            column_widths=["44%", "28%", "28%"],
            label="Settings that differ",
            visible=False,
        )
    chosen.change(tab.offer, [chosen, left], left, **QUIET)
    chosen.change(partial(tab.offer, default=1), [chosen, right], right, **QUIET)
    gr.on([left.change, right.change], tab.compare, [left, right], [words, table], **QUIET)


class _TrainingTab:
    """The events: what the page sends in, what it shows next."""

    def __init__(self, options: AppOptions) -> None:
        self.roots = options.roots

    def look(
        self, chosen: list[str] | None = None, also_failed: bool = False
    ) -> tuple[Update, Any]:
        """All runs there are; a choice that is still possible stays. In words, if there is none."""
        everything = folders.find_runs(self.roots)
        found = [run for run in everything if also_failed or not _is_stillborn(run)]
        kept = [str(run.path) for run in found if str(run.path) in (chosen or [])]
        first = [str(run.path) for run in folders.preselect(found)]
        legend = gr.skip() if everything else self._nothing()
        return gr.update(choices=[run.option for run in found], value=kept or first), legend

    def offer_against(self, chosen: list[str], current: str) -> Update:
        """The values themselves, or how far they are from those of one run."""
        names = [f"{DIFFERENCE}{name}" for name in self._read(chosen)]
        return gr.update(choices=[VALUES, *names], value=current if current in names else VALUES)

    def show(
        self,
        chosen: list[str],
        window: int,
        against: str = VALUES,
        first: int | None = 0,
        last: int | None = 0,
    ) -> list[Any]:
        """Legend, fingerprint and plots: of the steps from `first` to `last`, 0: the last one."""
        paths = [Path(path) for path in chosen]
        seen = folders.fingerprint(paths)  # taken before reading: later changes are seen later
        runs = self._read(chosen)
        colours = curves.colours(list(runs))
        legend = _legend(runs, colours) if runs else self._nothing()
        steps = (first or 0, last or math.inf)
        plots = _groups(runs, colours, window, against.removeprefix(DIFFERENCE), steps)
        if not plots and steps != (0, math.inf):
            plots = "<p>No step of these runs is among those: choose others, or all steps.</p>"
        return [legend, seen, plots]

    def follow(
        self, chosen: list[str], window: int, against: str, seen: Any, *steps: int | None
    ) -> Any:
        """Nothing as long as no file of the chosen runs has changed."""
        if folders.fingerprint([Path(path) for path in chosen]) == seen:
            return gr.skip()
        return self.show(chosen, window, against, *steps)

    def offer(self, chosen: list[str], current: str | None, default: int = 0) -> Update:
        """The chosen runs, of which one can be chosen again."""
        found = self._found(chosen)
        paths = [str(run.path) for run in found]
        value = current if current in paths else next(iter(paths[default:] or paths), None)
        return gr.update(choices=[run.option for run in found], value=value)

    def steps(self, path: str | None, current: int | None) -> Update:
        """The steps with samples; the last one at first."""
        runs = self._read([path] if path else [])
        steps = [step for run in runs.values() for step in library_runs.sample_steps(run)]
        value = current if current in steps else (steps[-1] if steps else None)
        return gr.update(choices=[(str(step), step) for step in steps], value=value)

    def samples(self, path: str | None, step: int | None) -> str:
        runs = self._read([path] if path else [])
        if not runs or step is None:
            return "No completions were recorded: the run has none yet, or it is a supervised one."
        samples = [s for run in runs.values() for s in library_runs.samples_at(run, step)]
        more = len(samples) - SAMPLES
        parts = [
            _problem(*problem, list(answers))
            for problem, answers in groupby(samples[:SAMPLES], lambda s: (s.question, s.answer))
        ]
        rest = [f"{more} more are in samples.jsonl."] if more > 0 else []
        return "\n\n---\n\n".join([*parts, *rest])

    def compare(self, left: str | None, right: str | None) -> tuple[str, Update]:
        first, second = (list(self._read([path]).values()) for path in (left or "", right or ""))
        if not first or not second or left == right:
            return "Choose two runs.", gr.update(visible=False)
        try:
            rows = library_runs.differing_rows(first[0], second[0])
        except RunError as error:
            return inert_markdown(str(error)), gr.update(visible=False)
        words = "" if rows else "No difference: both runs have the same settings."
        return words, gr.update(value=rows, visible=bool(rows))

    def _found(self, chosen: Sequence[str]) -> list[Folder]:
        """Those of the chosen that are runs below the roots: nothing else is read."""
        return [run for run in folders.find_runs(self.roots) if str(run.path) in chosen]

    def _read(self, chosen: Sequence[str]) -> dict[str, Run]:
        """By a short name."""
        found = self._found(chosen)
        names = folders.short_names([run.name for run in found])
        return {
            name: library_runs.read_run(run.path) for name, run in zip(names, found, strict=True)
        }

    def _nothing(self) -> str:
        if folders.find_runs(self.roots):
            return "Choose one run or several."
        where = " and ".join(escaped(str(root)) for root in self.roots)
        return f"There are no runs in {where} yet: <code>kit train CONFIG</code> makes one."


def _groups(
    runs: Mapping[str, Run],
    colours: Mapping[str, str],
    window: int,
    against: str,
    steps: tuple[float, float],
) -> str:
    """The plots that there are, group by group."""
    parts = []
    recorded = (name for run in runs.values() for record in run.metrics for name in record)
    drawn = (*SHOWN, *adherence_curves(recorded)[:MOST])
    for title, beginnings in GROUPS.items():
        figures = [
            plot(curve, points, colours)
            for curve in drawn
            if curve.metric.startswith(beginnings)
            and (points := curves.draw(runs, curve, window, against, steps))
        ]
        if figures:
            inside = "".join(figures)
            parts.append(
                f"<details open><summary>{title}</summary>"
                f'<div class="kit-curves">{inside}</div></details>'
            )
    return "".join(parts)


def _is_stillborn(found: Folder) -> bool:
    """Whether a run ended before it had learned anything: a failed attempt."""
    run = library_runs.read_run(found.path)
    return not run.metrics and run.status in ("failed", "killed", "stopped")


def _legend(runs: dict[str, Run], colours: dict[str, str]) -> str:
    head = "".join(f"<th scope='col'>{name}</th>" for name in COLUMNS)
    rows = "".join(_row(name, run, colours[name]) for name, run in runs.items())
    repeated = "<p>Colours repeat: point at a line to see its run.</p>"
    return (
        # where it is wider than the page it scrolls, by keyboard too
        "<div role='region' tabindex='0' aria-label='Chosen runs'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{repeated if len(set(colours.values())) < len(runs) else ''}"
    )


def _row(name: str, run: Run, colour: str) -> str:
    steps = f"{run.step} of {run.config.train.steps}" if run.config else f"{run.step}"
    changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.changed))
    missing = [f"{file} is missing" for file in run.missing]
    remarks = "; ".join([*missing, *run.faults])
    told = zip(COLUMNS[2:], (run.status, steps, changed, remarks), strict=True)
    # on a phone, where no header stands over it, a cell says what it is of
    cells = "".join(f"<td data-of='{name}'>{escaped(text)}</td>" for name, text in told)
    swatch = f"<i style='background: {colour}'></i>"
    verdict = f"<td>{health.in_html(run)}</td>"
    return f"<tr><th scope='row'>{swatch}{escaped(name)}</th>{verdict}{cells}</tr>"


def _problem(question: str, answer: str, samples: Sequence[library_runs.Sample]) -> str:
    """A question once, and the completions that follow each other on it."""
    parts = [f"**Question** · expected answer: {inert_markdown(answer)}", inert_markdown(question)]
    for sample in samples:
        facts = " · ".join(filter(None, [f"**{sample.verdict}**", inert_markdown(sample.facts)]))
        parts += [facts, inert_markdown(sample.completion)]
    return "\n\n".join(parts)
