"""The report on a study: its answers first, then accuracy and stability, then what they rest on."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kit.errors import RunError
from kit.evaluation.stats import seeds_and_problems
from kit.reports import write_report
from kit.reports.document import (
    NONE,
    Block,
    Figure,
    Origin,
    Section,
    Table,
    Text,
    interval,
    percent,
)
from kit.reports.figures import Dot, Line, Scale, Style, draw_dots, draw_lines, styles
from kit.reports.scores import label, mean
from kit.study.declared import BASE, Declaration, check_begun
from kit.study.evidence import StudyEvidence, fairness, gather
from kit.study.folder import StudyFolder
from kit.study.records import MEASURES, Record
from kit.study.verdicts import Verdict, judge

SCHEMA = 1  # of report.json
X = "updates per rollout"
GREY_OTHERS = "Each arm in its colour, the others grey behind it"


def report_study(
    declaration: Declaration, path: Path, into: Path, *, command: str | None = None
) -> None:
    """Write report.md, report.html, report.json and figures/ from what is done in a study's folder.

    Raises RunError where it holds no study, another one, or nothing that has been measured;
    ResultsError where runs that are compared were not treated alike.
    """
    check_begun(path, declaration)
    folder = StudyFolder(path, declaration)
    if not folder.records():
        raise RunError(
            f"nothing is measured yet in {path}; begin with: kit study {declaration.path}"
        )
    evidence = gather(folder)
    verdicts = judge(evidence)
    looks = styles(evidence.arms, BASE)
    origin = Origin((path / "study.json",), (command,) if command else ())
    sections = [
        _answers(evidence, verdicts, looks, origin),
        _accuracy(evidence, looks, origin),
        _stability(evidence, looks, origin),
        _tuning(evidence, looks, origin),
        _differences(verdicts, origin),
        _declared(declaration, origin),
    ]
    record = {
        "schema": SCHEMA,
        "command": command,
        "declared": declaration.record(),
        "verdicts": [verdict.record() for verdict in verdicts],
        "fairness": fairness(evidence),
        "tuned": [
            {"arm": arm, "staleness": s, "rate": rate, "edge": evidence.is_at_edge(arm, s)}
            for (arm, s), rate in evidence.tuned.items()
        ],
        "base": evidence.base,
        "runs": _runs(evidence.records.values()),
    }
    write_report(into, f"Study {declaration.path.stem}", sections, record)


def _runs(records: Iterable[Record]) -> dict[str, Any]:
    """A column for each field, and a row for each run, in few bytes."""
    columns = [field.name for field in dataclasses.fields(Record)]
    rows = [[getattr(record, name) for name in columns] for record in records]
    return {"columns": columns, "rows": rows}


def _answers(
    evidence: StudyEvidence, verdicts: Sequence[Verdict], looks: dict[str, Style], origin: Origin
) -> Section:
    section = Section("Answers")
    for verdict in verdicts:
        section.blocks.append(Text(verdict.sentences, is_list=True, title=verdict.asked))
    section.blocks.extend(_forest(v, looks, origin) for v in verdicts if v.contrasts)
    section.blocks.append(Text(fairness(evidence), is_list=True, title="Is it fair?"))
    return section


def _forest(verdict: Verdict, looks: dict[str, Style], origin: Origin) -> Figure:
    """A panel for each staleness, a row for each pair; what all are compared with is said once."""
    rights = {contrast.right for contrast in verdict.contrasts}
    panels: dict[str, dict[str, list[Dot]]] = {}
    for c in verdict.contrasts:
        dot = Dot(c.left, c.difference.value, (c.difference.low, c.difference.high))
        name = c.left if len(rights) == 1 else c.pair
        panels.setdefault(f"staleness {c.staleness}", {})[name] = [dot]
    against = f" against {rights.pop()}" if len(rights) == 1 else ""
    return Figure(
        name=f"answer-{verdict.question.name}",
        title=verdict.asked,
        drawing=draw_dots(panels, looks, unit=f"percentage points{against}", zero_line=True),
        origin=origin,
        note=f"Differences of {verdict.question.measure} accuracy; lines: 95 % intervals "
        "for other seeds and problems, not corrected for the number of tests.",
    )


def _accuracy(evidence: StudyEvidence, looks: dict[str, Style], origin: Origin) -> Section:
    section = Section("Accuracy against staleness")
    for temperature in evidence.settings.evaluation.temperature:
        section.blocks.extend(_accuracy_at(temperature, evidence, looks, origin))
    if not section.blocks:
        section.say("No fresh seed has been measured yet.")
    return section


def _accuracy_at(
    temperature: float, evidence: StudyEvidence, looks: dict[str, Style], origin: Origin
) -> Iterator[Block]:
    """A table, and a figure for each measure."""
    how = label(temperature)
    means = {
        measure: _over_staleness(evidence, partial(_mean, evidence, measure, temperature))
        for measure in MEASURES
    }
    if not any(means.values()):
        return
    base = {measure: evidence.base_mean(measure, temperature) for measure in MEASURES}
    columns = [(staleness, m) for staleness in evidence.settings.staleness for m in MEASURES]
    yield Table(
        name=f"accuracy {temperature:g}",
        title=f"Accuracy on the test problems, {how}, %",
        header=("arm", *(f"{measure} at {staleness}" for staleness, measure in columns)),
        rows=[
            (BASE, *(percent(base[measure]) for _, measure in columns)),
            *((arm, *(_cell(means[m], arm, s) for s, m in columns)) for arm in evidence.arms),
        ],
        origin=origin,
        note="Mean over fresh seeds, and 95 % interval for other seeds and problems.",
    )
    for measure in dict.fromkeys(question.measure for question in evidence.settings.questions):
        yield Figure(
            name=f"accuracy-{measure}-{temperature:g}",
            title=f"Accuracy against staleness, {measure}, {how}",
            drawing=draw_lines(
                _lines(means[measure]),
                looks,
                x=_places(evidence),
                y=Scale("% of test problems", is_share=True),
                mark=base[measure],
            ),
            origin=origin,
            note=f"{GREY_OTHERS}; bands: 95 % intervals; dotted: the base.",
        )


# --- figures by arm and staleness -----------------------------------------------------------------

Value = tuple[float, tuple[float, float] | None]  # with the bounds of its interval, or none
Grid = dict[str, dict[int, Value]]


def _over_staleness(evidence: StudyEvidence, value: Callable[[str, int], Value | None]) -> Grid:
    """By arm and staleness, where there is one."""
    found: Grid = {}
    for arm in evidence.arms:
        for staleness in evidence.settings.staleness:
            if (known := value(arm, staleness)) is not None:
                found.setdefault(arm, {})[staleness] = known
    return found


def _mean(
    evidence: StudyEvidence, measure: str, temperature: float, arm: str, staleness: int
) -> Value | None:
    verdicts = evidence.verdicts(arm, staleness, measure, temperature)
    if not verdicts:
        return None
    values = np.stack(list(verdicts.values()))
    if len(values) == 1:
        return float(values.mean()), None
    estimate = seeds_and_problems(values)
    return estimate.value, (estimate.low, estimate.high)


def _places(evidence: StudyEvidence) -> Scale:
    return Scale(X, places=sorted(evidence.settings.staleness))


def _lines(grid: Grid) -> dict[str, Line]:
    return {arm: Line.of(values) for arm, values in grid.items()}


def _cell(grid: Grid, arm: str, staleness: int) -> str:
    if staleness not in grid.get(arm, {}):
        return NONE
    value, bounds = grid[arm][staleness]
    return percent(value) + interval(bounds)


# --- stability, tuning ----------------------------------------------------------------------------


def _stability(evidence: StudyEvidence, looks: dict[str, Style], origin: Origin) -> Section:
    section = Section("Stability against staleness")
    fallen = _over_staleness(evidence, lambda a, s: _share_fallen(evidence, evidence.fresh(a, s)))
    if not fallen:
        section.say("No fresh seed has been measured yet.")
        return section
    header = (
        *("arm", "staleness", "seeds", "fell below the base", "failed", "largest ratio"),
        *("KL to the base, nats per token", "mismatch, nats per token", "silenced, %"),
        f"steps to {evidence.settings.level:.0%} while training",
    )
    section.blocks.append(
        Table(
            name="stability",
            title="What became of the runs",
            header=header,
            rows=[
                _stability_row(evidence, arm, staleness)
                for arm in evidence.arms
                for staleness in evidence.settings.staleness
                if evidence.fresh(arm, staleness)
            ],
            origin=origin,
            note="Fell: runs whose lenient accuracy on the test problems ended below the base's, "
            "at the lowest temperature. Largest ratio: of current to old policy, of any step and "
            "seed; the old policy is the base or the sampler. KL: k3, last step. Mismatch: "
            "|log ratio to the sampler|. Silenced: tokens without a gradient. Means over seeds; "
            "steps: median over the seeds that reached the level, as a mean over five steps.",
        )
    )
    ratios = _over_staleness(evidence, lambda a, s: _range(evidence.fresh(a, s), "largest_ratio"))
    drift = _over_staleness(evidence, lambda a, s: _range(evidence.fresh(a, s), "k3_to_base"))
    spread = "; lines: geometric means, bands: from the lowest to the highest seed"
    share = Scale("% of runs", is_share=True, top=1.05)
    for name, title, grid, scale, note in (
        ("fallen", "Runs that fell below the base", fallen, share, ""),
        ("largest-ratio", "Largest ratio", ratios, Scale("ratio", is_log=True), spread),
        ("drift", "Drift from the base", drift, Scale("k3, nats", is_log=True), spread),
    ):
        if grid:
            section.blocks.append(
                Figure(
                    name=name,
                    title=f"{title} against staleness",
                    drawing=draw_lines(_lines(grid), looks, x=_places(evidence), y=scale),
                    origin=origin,
                    note=f"{GREY_OTHERS}{note}.",
                )
            )
    return section


def _share_fallen(evidence: StudyEvidence, records: Sequence[Record]) -> Value | None:
    if not records:
        return None
    return statistics.fmean(evidence.has_fallen(record) for record in records), None


def _range(records: Sequence[Record], field: str) -> Value | None:
    values = [value for record in records if (value := getattr(record, field) or 0.0) > 0]
    if not values:
        return None
    return statistics.geometric_mean(values), (min(values), max(values))


def _stability_row(evidence: StudyEvidence, arm: str, staleness: int) -> tuple[str, ...]:
    records = evidence.fresh(arm, staleness)
    reached = [record.level_step for record in records if record.level_step is not None]
    ratios = [record.largest_ratio for record in records if record.largest_ratio is not None]
    return (
        arm,
        str(staleness),
        str(len(records)),
        f"{sum(map(evidence.has_fallen, records))} of {len(records)}",
        str(sum(record.has_failed for record in records)),
        f"{max(ratios):.3g}" if ratios else NONE,
        _small(mean(record.k3_to_base for record in records)),
        _small(mean(record.mismatch for record in records)),
        percent(mean(record.silenced for record in records)),
        f"{statistics.median(reached):g} ({len(reached)} of {len(records)})" if reached else NONE,
    )


def _small(value: float | None) -> str:
    return NONE if value is None else f"{value:.2g}"


def _tuning(evidence: StudyEvidence, looks: dict[str, Style], origin: Origin) -> Section:
    settings = evidence.settings
    rates = sorted({rate for s in settings.staleness for rate in settings.rates_at(s)})
    table = Table(
        name="tuned",
        title=f"Validation accuracy ({settings.tuning.measure}, %) by learning rate, and choice",
        header=("arm", "staleness", *(f"rate {rate:g}" for rate in rates), "chosen"),
        rows=[
            (
                arm,
                str(staleness),
                *(percent(scores.get(rate)) for rate in rates),
                _chosen(evidence, arm, staleness),
            )
            for (arm, staleness), scores in evidence.tuning.items()
        ],
        origin=origin,
        note=f"After the last step, mean over {len(settings.tuning.seeds)} tuning seeds that were "
        "not used again. The highest is chosen, of equals the smaller rate. Edge: it is the "
        "smallest or largest of the grid, and another rate may be better.",
        folded=True,
    )
    figures = (_by_rate(evidence, s, looks, origin) for s in sorted(settings.staleness))
    return Section("Tuned learning rates", [*filter(None, figures), table])


def _by_rate(
    evidence: StudyEvidence, staleness: int, looks: dict[str, Style], origin: Origin
) -> Figure | None:
    """How much of a rate an arm bears; None below two rates."""
    settings = evidence.settings
    rates = settings.rates_at(staleness)
    lines = {
        arm: Line(sorted(scores), [scores[rate] for rate in sorted(scores)])
        for (arm, at), scores in evidence.tuning.items()
        if at == staleness and scores
    }
    if len(rates) < 2 or not lines:
        return None
    seeds = len(settings.tuning.seeds)
    return Figure(
        name=f"rates-{staleness}",
        title=f"Validation accuracy by learning rate at staleness {staleness}",
        drawing=draw_lines(
            lines,
            looks,
            x=Scale("learning rate", places=rates),
            y=Scale("% of validation problems", is_share=True),
        ),
        origin=origin,
        note=f"{GREY_OTHERS}; {settings.tuning.measure}, after the last step, mean of {seeds} "
        f"tuning seed{'s' * (seeds > 1)}: what a rate is chosen by, and no claim.",
    )


def _chosen(evidence: StudyEvidence, arm: str, staleness: int) -> str:
    rate = evidence.tuned[arm, staleness]
    if rate is None:
        return NONE
    edge = evidence.is_at_edge(arm, staleness)
    return f"{rate:g}" + (f" (edge: {edge})" if edge else "")


# --- what it rests on -----------------------------------------------------------------------------


def _differences(verdicts: Sequence[Verdict], origin: Origin) -> Section:
    table = Table(
        name="differences",
        title="Every comparison that a question asks for",
        header=(
            *("question", "comparison", "staleness", "seeds", "points", "p", "p (Holm)"),
            *("problems that differ", "finding"),
        ),
        rows=[
            (
                verdict.question.name,
                c.pair,
                str(c.staleness),
                str(c.difference.seeds) + ("" if c.is_complete else f" of {c.seeds}"),
                c.points,
                f"{c.difference.p:.4f}",
                f"{c.corrected_p:.4f}",
                f"{c.difference.differing} of {c.difference.problems}",
                c.finding,
            )
            for verdict in verdicts
            for c in verdict.contrasts
        ],
        origin=origin,
        note="p: the larger of Student's over seeds and problems and of a wild bootstrap over "
        "seeds. Holm: Student's corrected over the comparisons of the question (one that is not "
        "wholly measured counts as p = 1), and never below the other. Questions "
        "are not corrected for each other; docs/reports.md has more.",
    )
    return Section("Differences", [table])


def _declared(declaration: Declaration, origin: Origin) -> Section:
    text = declaration.path.read_text(encoding="utf-8").splitlines()
    return Section(
        "What was declared",
        [
            Table(
                name="declared",
                title=f"{declaration.path.name}, as it was before anything was run",
                header=("",),
                rows=[(line.replace(" ", "\u00a0"),) for line in text if line.strip()],
                origin=origin,
                folded=True,
            )
        ],
    )
