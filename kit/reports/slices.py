"""Where the arms are strong and weak: accuracy by category and difficulty, and how they reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kit.reports.document import NONE, Block, Figure, Section, Table, share
from kit.reports.evidence import Evidence
from kit.reports.figures import Dot, Style, draw_dots
from kit.reports.scores import Score, label, origin

SMALL = 20  # slices of fewer problems say little
DRAWN = 15  # slices in a figure, the largest; the table has all


def describe_slices(
    evidence: Evidence, scores: Sequence[Score], looks: dict[str, Style]
) -> Section:
    """At the temperature at which each data set's answers are told."""
    section = Section("Kinds of problems and reasoning")
    for data in evidence.data:
        told = evidence.told_temperature(data)
        here = [s for s in scores if s.data == data and s.temperature == told]
        for kind in ("category", "difficulty"):
            section.blocks.extend(_by_slice(data, kind, here, looks))
        if any(score.figures["reasoning"] for score in here):
            section.blocks.append(_reasoning(data, here))
    if not section.blocks:
        section.say("No categories, difficulties or measures of reasoning yet.")
    return section


def _by_slice(
    data: str, kind: str, scores: Sequence[Score], looks: dict[str, Style]
) -> Iterator[Block]:
    sizes = {
        name: part["n"]
        for score in scores
        for name, part in score.figures["slices"].get(kind, {}).items()
    }
    if not sizes:
        return
    slices = {score.arm: score.figures["slices"].get(kind, {}) for score in scores}
    where = f"{data} by {kind}, {label(scores[0].temperature)}"
    yield Table(
        name=f"{kind} {data}",
        title=f"Strict accuracy on {where}, %",
        header=(kind, "problems", *slices),
        rows=[
            (
                name,
                _size(n),
                *(share(parts.get(name, {}).get("strict")) for parts in slices.values()),
            )
            for name, n in sizes.items()
        ],
        origin=origin(scores),
        note=f"(few): under {SMALL} problems, of which little can be said. Means over seeds; "
        "Wilson's interval for single seeds. Slices are not tested: with many of them some differ "
        "by chance.",
        folded=True,
    )
    if len(sizes) > 1:
        largest = set(sorted(sizes, key=lambda name: -sizes[name])[:DRAWN])
        rows = {
            f"{_size(n)}: {name}": [
                Dot(arm, parts[name]["strict"]["value"])
                for arm, parts in slices.items()
                if parts.get(name, {}).get("n")
            ]
            for name, n in sizes.items()
            if name in largest
        }
        left_out = len(sizes) - len(rows)
        yield Figure(
            name=f"{kind}-{data}",
            title=f"Strict accuracy on {where}",
            drawing=draw_dots({"": rows}, looks, unit=f"% right on {data}, strict", legend=True),
            origin=origin(scores),
            note="Before each name the number of problems."
            + (f" The {DRAWN} largest; {left_out} more are in the table." if left_out else ""),
        )


def _size(n: int) -> str:
    return f"{n} (few)" if n < SMALL else str(n)


def _reasoning(data: str, scores: Sequence[Score]) -> Table:
    keys = list(dict.fromkeys(key for score in scores for key in score.figures["reasoning"]))
    return Table(
        name=f"reasoning {data}",
        title=f"How completions on {data} reason, {label(scores[0].temperature)}",
        header=("measure", *(score.arm for score in scores)),
        rows=[
            (key, *(_measure(score.figures["reasoning"].get(key)) for score in scores))
            for key in keys
        ],
        origin=origin(scores),
        note="Read off the texts automatically; docs/reasoning.md says what each measure is and "
        "what it misses. Shares are between 0 and 1. Means over seeds.",
    )


def _measure(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"
