"""Accuracy, length, pass@k and majority votes: tables and figures per data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kit.reports.adherence import adherence_table
from kit.reports.document import NONE, Block, Figure, Section, Table, number, percent, share
from kit.reports.evidence import Evidence
from kit.reports.figures import Dot, Line, Scale, Style, draw_dots, draw_lines
from kit.reports.scores import MEASURES, Score, label, origin

LENGTHS = ("mean", "median", "p95")
BANDS = "Each arm in its colour, the others grey behind it; bands: 95 % intervals over problems."
KINDS = {"pass_at": "pass@k", "majority_at": "Majority of k"}


def describe_accuracy(
    evidence: Evidence, scores: Sequence[Score], looks: dict[str, Style]
) -> Section:
    section = Section("Accuracy")
    if not scores:
        section.say("No arm has been evaluated yet: kit evaluate RUN --data …")
        return section
    section.say(
        "Percentages. Strict: right and in the form '#### <number>'; lenient: right "
        "wherever the answer stands. Where strict rises and lenient does not, the form was "
        "learned and not the mathematics. In brackets the 95 % interval: Wilson's for one "
        "seed (of this adapter), for several seeds after the mean ± standard deviation one "
        "for other seeds and other problems (of the method)."
    )
    for data in evidence.data:
        here = [score for score in scores if score.data == data]
        if here:
            section.blocks.append(_table(data, here))
            if adherence := adherence_table(data, here):
                section.blocks.append(adherence)
            section.blocks.append(_figure(data, here, looks))
            several = [score for score in here if score.figures["samples"] > 1]
            section.blocks.extend(_over_samples(data, several, looks))
    return section


def _table(data: str, scores: Sequence[Score]) -> Table:
    seen = {score.arm: score.figures["seen_in_training"] for score in scores}
    trained_on = ", ".join(f"{arm} on {n}" for arm, n in seen.items() if n)
    return Table(
        name=f"accuracy {data}",
        title=f"Accuracy and length on {data} ({scores[0].figures['problems']} problems)",
        header=(
            *("arm", "temperature", "seeds", "samples", "strict, %", "lenient, %", "format, %"),
            *("cut off, %", "tokens"),
        ),
        rows=[
            (
                score.arm,
                f"{score.temperature:g}",
                _seeds(score),
                str(score.figures["samples"]),
                share(score.figures["strict"]),
                share(score.figures["lenient"]),
                percent(score.figures["format"]),
                percent(score.figures["truncated"]),
                " / ".join(number(score.figures[f"tokens_{what}"]) for what in LENGTHS),
            )
            for score in scores
        ],
        origin=origin(scores),
        note="Format: share that holds an answer in the strict form; cut off: at the cap on length "
        "(most of these are wrong); tokens: mean / median / 95th percentile of the lengths. These "
        "are means over seeds."
        + (f" NOT HELD OUT, trained on these problems: {trained_on}." if trained_on else ""),
    )


def _seeds(score: Score) -> str:
    return ", ".join(str(seed) for seed in score.measured if seed is not None) or NONE


def _figure(data: str, scores: Sequence[Score], looks: dict[str, Style]) -> Figure:
    """A panel for each temperature: what lies between two of them was not measured."""
    temperatures = sorted({score.temperature for score in scores})
    panels = {
        label(temperature): {
            score.arm: [
                Dot(score.arm, figures["value"], figures["ci95"], is_hollow=measure == "lenient")
                for measure in MEASURES
                if (figures := score.figures[measure])
            ]
            for score in scores
            if score.temperature == temperature
        }
        for temperature in temperatures
    }
    return Figure(
        name=f"accuracy-{data}",
        title=f"Accuracy on {data}",
        drawing=draw_dots(panels, looks, unit=f"% right on {data}"),
        origin=origin(scores),
        note="Filled: strict; hollow: lenient; lines: 95 % intervals.",
    )


def _over_samples(data: str, scores: Sequence[Score], looks: dict[str, Style]) -> Iterator[Block]:
    """pass@k and majority votes where problems were sampled more than once."""
    for temperature in sorted({score.temperature for score in scores}):
        here = [score for score in scores if score.temperature == temperature]
        where = f"on {data} at temperature {temperature:g}, strict"
        for kind, name in KINDS.items():
            ks = sorted({int(k) for score in here for k in score.figures[kind]["strict"]})
            yield Table(
                name=f"{kind} {data} {temperature:g}",
                title=f"{name} {where}, %",
                header=("arm", "seeds", *(f"k = {k}" for k in ks)),
                rows=[
                    (
                        score.arm,
                        _seeds(score),
                        *(share(score.figures[kind]["strict"].get(str(k))) for k in ks),
                    )
                    for score in here
                ],
                origin=origin(here),
                note="Means over seeds; intervals over problems are given for single seeds.",
            )
        for kind, name in KINDS.items():
            ks = sorted({int(k) for score in here for k in score.figures[kind]["strict"]})
            yield Figure(
                name=f"{kind.replace('_', '-')}-{data}-{temperature:g}",
                title=f"{name} {where}",
                drawing=draw_lines(
                    {score.arm: _over_k(score, kind) for score in here},
                    looks,
                    x=Scale("samples k", places=ks),
                    y=Scale("% of problems, strict", is_share=True),
                ),
                origin=origin(here),
                note=BANDS,
            )


def _over_k(score: Score, kind: str) -> Line:
    estimates = score.figures[kind]["strict"].items()
    return Line.of({int(k): (estimate["value"], estimate["ci95"]) for k, estimate in estimates})
