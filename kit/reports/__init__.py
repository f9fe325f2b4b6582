"""`kit report`: run folders and their result files -> tables, figures, statements and one page."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.errors import ResultsError
from kit.files import only_one, write_atomically
from kit.recipe import listed
from kit.reports.accuracy import describe_accuracy
from kit.reports.arms import describe_arms, differing_fields
from kit.reports.collect import collect
from kit.reports.costs import describe_costs, measure_costs
from kit.reports.curves import describe_curves, measure_curves
from kit.reports.document import Figure, Section, Table
from kit.reports.evidence import BASE, Evidence
from kit.reports.excerpts import write_for_paper
from kit.reports.figures import styles
from kit.reports.opinions import describe_opinions, measure_opinions
from kit.reports.page import FIGURES, figure_path, to_html, to_markdown, to_terminal
from kit.reports.paired import compare_arms, describe_answers, describe_differences
from kit.reports.paper import describe_paper, measure_paper
from kit.reports.scores import measure_scores
from kit.reports.slices import describe_slices
from kit.runs import LOCK

SCHEMA = 1  # of report.json
PATIENCE = 60.0  # seconds that another report has to be written, which takes about one


def report(
    paths: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    votes: Sequence[str | Path] = (),
    judgements: Sequence[str | Path] = (),
) -> Path:
    """Write report.md, report.html, report.json and figures/ and print the tables.

    `paths` are run folders, folders of `kit compare`, and result folders of the bare base; `votes`
    are files of the app, `judgements` of `kit judge`. Returns the folder, <first path>/report where
    none is given. Raises ResultsError for what cannot be compared in one report.
    """
    paths = listed(paths)
    evidence = collect(paths)
    folder = Path(output) if output else Path(paths[0]) / "report"
    sections, record = _build(evidence, measure_opinions(votes, judgements))
    command = _command(paths, folder, votes, judgements)
    title = f"Report on {', '.join(arm.name for arm in evidence.arms)}"
    write_report(folder, title, sections, {"schema": SCHEMA, "command": command, **record})
    return folder


def report_for_paper(paths: str | Path | Sequence[str | Path], folder: str | Path) -> Path:
    """Write the figures (SVG and PDF) and the tables (LaTeX and Markdown) alone into a folder.

    `paths` as for `report`, which raises the same.
    """
    sections, _ = _build(collect(listed(paths)), measure_opinions((), ()))
    return write_for_paper(Path(folder), sections)


def write_report(folder: Path, title: str, sections: list[Section], record: dict[str, Any]) -> None:
    """Write what a report consists of into a folder, and print its text and tables.

    `record` has the numbers, and the `command` that makes the report again.
    """
    _write(folder, title, sections, record | _origins(sections, folder))
    print(to_terminal(sections))
    print(f"\nThe whole report, with figures: {folder / 'report.html'}")


def _build(
    evidence: Evidence, opinions: dict[str, list[Any]]
) -> tuple[list[Section], dict[str, Any]]:
    """The sections, and the numbers they show."""
    looks = styles([arm.name for arm in evidence.arms], BASE)
    scores = measure_scores(evidence)
    comparisons = compare_arms(evidence, scores)
    curves, costs = measure_curves(evidence), measure_costs(evidence)
    paper = measure_paper(evidence, scores)
    sections = [
        describe_answers(evidence, comparisons, looks),
        describe_accuracy(evidence, scores, looks),
        *([describe_differences(comparisons)] if comparisons else []),
        describe_curves(evidence, curves, looks),
        describe_slices(evidence, scores, looks),
        *([describe_opinions(opinions)] if any(opinions.values()) else []),
        describe_costs(evidence, costs),
        describe_paper(evidence, paper, scores),
        describe_arms(evidence),
    ]
    record = {
        "remarks": evidence.remarks,
        "arms": {
            arm.name: {
                "runs": {str(seed): str(run.path) for seed, run in arm.runs.items()},
                "config": arm.config.model_dump(mode="json"),
            }
            for arm in evidence.arms
        },
        "differing": differing_fields(evidence.arms),
        "scores": [score.record() for score in scores],
        "comparisons": [comparison.record() for comparison in comparisons],
        "curves": curves,
        "costs": costs,
        "paper": paper,
        **opinions,
    }
    return sections, record


def _command(
    paths: Sequence[str | Path],
    folder: Path,
    votes: Sequence[str | Path],
    judgements: Sequence[str | Path],
) -> str:
    """What makes this report again."""
    parts = ["kit", "report", *map(str, paths), "--output", str(folder)]
    for option, files in (("--votes", votes), ("--judge", judgements)):
        for file in files:
            parts += [option, str(file)]
    return shlex.join(parts)


def _write(folder: Path, title: str, sections: list[Section], record: dict[str, Any]) -> None:
    """Figures first, so that no page names one that is not there; one report after the other."""
    busy = ResultsError(
        f"another process holds {folder / LOCK}; end it, or choose another --output"
    )
    try:
        with only_one(folder / LOCK, busy, wait=PATIENCE):
            (folder / FIGURES).mkdir(exist_ok=True)
            for section in sections:
                for block in section.blocks:
                    if isinstance(block, Figure):
                        write_atomically(folder / figure_path(block), block.drawing.svg)
            text = json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False)
            write_atomically(folder / "report.json", text + "\n")
            command = record["command"]
            write_atomically(folder / "report.md", to_markdown(title, sections, folder, command))
            write_atomically(folder / "report.html", to_html(title, sections, folder, command))
    except OSError as error:
        raise ResultsError(f"cannot write the report to {folder}: {error.strerror}") from error


def _origins(sections: Sequence[Section], folder: Path) -> dict[str, dict[str, Any]]:
    """Where each figure and table comes from, in full."""

    def told(block: Figure | Table) -> dict[str, Any]:
        files, commands = block.origin.relative(folder), list(block.origin.commands)
        return {"title": block.title, "files": files, "commands": commands}

    blocks = [block for section in sections for block in section.blocks]
    return {
        "figures": {figure_path(b): told(b) for b in blocks if isinstance(b, Figure)},
        "tables": {b.name: told(b) for b in blocks if isinstance(b, Table)},
    }


def finite(value: Any) -> Any:
    """JSON has no nan: null stands for what could not be computed."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
