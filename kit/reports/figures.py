"""Draw lines, intervals and dots as vector figures that are read at the width of a column."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

# Okabe and Ito's palette without its yellow, which is too pale for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "<", ">")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.2)), (0, (7, 1.5, 1.5, 1.5)))
GREY = "#6b6b6b"
PALE = "#c4c4c4"
RULE = "#e3e3e3"
WIDTH = 3.4  # inches: a column of a paper, and not more than a phone can show
FONT = 7.5  # points
LETTER = 0.056  # inches that one takes on average, at this size
ROW = 0.155  # inches of a row of dots
# the same picture has the same bytes, and its text stays text
STYLE: dict[Any, Any] = {
    **{"font.size": FONT, "font.family": "sans-serif"},
    **{"font.sans-serif": ["DejaVu Sans", "Verdana"]},
    **{"svg.fonttype": "none", "svg.hashsalt": "kit", "pdf.fonttype": 42},
}
TITLE: dict[str, Any] = {"loc": "left", "pad": 2.5, "fontsize": FONT}
NUMBER = re.compile(rb"-?\d+\.\d{2,}")


@dataclass(frozen=True)
class Drawing:
    """A finished figure."""

    figure: Figure

    @cached_property
    def svg(self) -> bytes:
        return _smaller(self._saved("svg", {"Date": None, "Creator": None}))

    @cached_property
    def pdf(self) -> bytes:
        return self._saved("pdf", {"CreationDate": None})

    def _saved(self, form: str, metadata: dict[str, None]) -> bytes:
        drawn = io.BytesIO()
        with rc_context(STYLE):
            self.figure.savefig(drawn, format=form, metadata=metadata)
        return drawn.getvalue()


@dataclass(frozen=True, slots=True)
class Style:
    """How one arm looks in every figure."""

    colour: str
    marker: str


@dataclass(frozen=True, slots=True)
class Line:
    """Values over x; low and high, where given, are drawn as a band."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    @classmethod
    def of(cls, estimates: Mapping[int, tuple[float, Sequence[float] | None]]) -> Line:
        """By x a value and the bounds of its interval; a band where every value has bounds."""
        x = sorted(estimates)
        y = [estimates[at][0] for at in x]
        known = [bounds for at in x if (bounds := estimates[at][1]) is not None]
        if len(known) < len(x):
            return cls(x, y)
        return cls(x, y, [low for low, _ in known], [high for _, high in known])


@dataclass(frozen=True, slots=True)
class Dot:
    """One value of one arm, with the bounds of its interval where there is one."""

    arm: str
    value: float
    bounds: Sequence[float] | None = None
    is_hollow: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis: what it shows, and how."""

    label: str
    is_share: bool = False
    is_log: bool = False
    top: float | None = None
    places: Sequence[float] | None = None  # the only values there are, evenly spaced


Rows = Mapping[str, Sequence[Dot]]


def styles(arms: Sequence[str], base: str) -> dict[str, Style]:
    """One look per arm: seven colours and markers, which repeat."""
    looks = {base: Style(GREY, "o")}
    for i, arm in enumerate(arms):
        looks[arm] = Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
    return looks


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name without the words that all begin with: `clip` of `embedded-clip`."""
    cut = 0
    for end, letters in enumerate(zip(*names, strict=False), start=1):
        if len(names) == 1 or len(set(letters)) > 1:
            break
        cut = end if letters[0] in "-_./ " else cut
    return {name: name[cut:] or name for name in names}


def draw_lines(
    lines: Mapping[str, Line],
    looks: Mapping[str, Style],
    *,
    x: Scale,
    y: Scale,
    mark: float | None = None,
) -> Drawing:
    """A panel for each arm, in which the others' lines stand grey behind its own and its band.

    `mark`: a value that is dotted through every panel.
    """
    values = [value for line in lines.values() for value in line.y]
    if y.is_log and not max(values) > 10 * min(values):
        y = Scale(y.label)
    columns = min(len(lines), 2 if len(lines) <= 4 else 3)
    rows = math.ceil(len(lines) / columns)
    figure = _new((1.9, 1.25, 0.95)[columns - 1] * rows + 0.35)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, arm in zip(panels, lines, strict=False):
        _plain(axes)
        axes.plot(*_others(lines, arm, x), color=PALE, lw=0.6, zorder=1)
        _own_line(axes, lines[arm], x, looks[arm].colour)
        if mark is not None:
            axes.axhline(mark, color=GREY, lw=0.8, ls=":", zorder=1)
        if len(lines) > 1:
            axes.set_title(_fitting(arm, columns), color=looks[arm].colour, **TITLE)
    for axes in panels[len(lines) :]:
        axes.set_axis_off()
    for place, axes in enumerate(panels[: len(lines)]):  # the last of each column has labels
        is_last = place >= len(lines) - columns
        axes.tick_params(labelbottom=is_last, bottom=is_last, left=place % columns == 0)
    _scale(panels[0], "x", x)
    _scale(panels[0], "y", y)
    figure.supxlabel(x.label, fontsize=FONT)
    figure.supylabel(f"{y.label}, log scale" if y.is_log else y.label, fontsize=FONT)
    return Drawing(figure)


def draw_dots(
    panels: Mapping[str, Rows],
    looks: Mapping[str, Style],
    *,
    unit: str,
    zero_line: bool = False,
    legend: bool = False,
) -> Drawing:
    """Side by side a panel under each title; in it a row per name with its dots, from the top."""
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    most = max(len(dots) for rows in panels.values() for dots in rows.values())
    dots = [dot for rows in panels.values() for row in rows.values() for dot in row]
    arms = list(dict.fromkeys(dot.arm for dot in dots))
    per_line = min(len(panels), 3)
    lines = math.ceil(len(panels) / per_line)
    entries = len(arms) if legend else 0
    ncols = _legend_columns(arms)
    below = 0.15 * math.ceil(entries / ncols)
    tall = 1.5 if any("\n" in _in_lines(name) for name in names) else 1.0
    height = len(names) * ROW * max(tall, 0.6 * most) + 0.25
    figure = _new(lines * height + 0.35 + below)
    grid = figure.subplots(lines, per_line, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (title, rows) in zip(grid, panels.items(), strict=False):
        _dots(axes, [rows.get(name, ()) for name in names], looks)
        axes.set_title(title, **TITLE)
        if zero_line:
            axes.axvline(0, color=GREY, lw=0.8, zorder=0)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    grid[0].set_yticks(range(len(names)), [_in_lines(name) for name in names])
    grid[0].set_ylim(len(names) - 0.4, -0.6)
    grid[0].xaxis.set_major_locator(MaxNLocator(nbins=7 // per_line + 1))
    _percent(grid[0], "x")
    figure.supxlabel(unit, fontsize=FONT)
    if legend:
        _legend(figure, arms, looks, ncols)
    return Drawing(figure)


def _others(lines: Mapping[str, Line], arm: str, x: Scale) -> tuple[list[float], list[float]]:
    """All lines but an arm's as one, with gaps between them."""
    at, y = [], []
    for other, line in lines.items():
        if other != arm:
            at += [*_at(line, x), math.nan]
            y += [*line.y, math.nan]
    return at, y


def _own_line(axes: Axes, line: Line, x: Scale, colour: str) -> None:
    at = _at(line, x)
    if line.low is not None and line.high is not None:
        axes.fill_between(at, line.low, line.high, color=colour, alpha=0.2, lw=0, zorder=2)
    is_marked = x.places is not None or len(at) == 1  # a line of one point cannot be seen
    axes.plot(at, line.y, color=colour, lw=1.2, marker="o" if is_marked else "", ms=3, zorder=3)


def _dots(axes: Axes, rows: Sequence[Sequence[Dot]], looks: Mapping[str, Style]) -> None:
    _plain(axes, grid="x")
    for row, dots in enumerate(rows):
        for i, dot in enumerate(dots):
            look, y = looks[dot.arm], row + _dodge(i, len(dots))
            if dot.bounds is not None:
                axes.hlines(y, dot.bounds[0], dot.bounds[1], color=look.colour, lw=1.1)
            filling = "white" if dot.is_hollow else look.colour
            axes.plot(dot.value, y, look.marker, ms=3.4, color=look.colour, mfc=filling)
    if max(map(len, rows)) > 2:
        for row in range(len(rows) - 1):
            axes.axhline(row + 0.5, color=RULE, lw=0.6, zorder=0)
    axes.tick_params(axis="y", length=0)


def _legend(figure: Figure, arms: Sequence[str], looks: Mapping[str, Style], columns: int) -> None:
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], looks[arm].marker, color=looks[arm].colour, ms=3.4)[0] for arm in arms
    ]
    figure.legend(
        handles,
        [_safe(arm) for arm in arms],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=FONT,
        handlelength=1,
        columnspacing=1,
    )


def _legend_columns(arms: Sequence[str]) -> int:
    """As many as fit into the width with the longest of the names."""
    return max(1, int(WIDTH / (0.3 + LETTER * max(len(_safe(arm)) for arm in arms))))


def _at(line: Line, x: Scale) -> list[float]:
    return [x.places.index(value) for value in line.x] if x.places else list(line.x)


def _scale(axes: Axes, which: Literal["x", "y"], scale: Scale) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    if scale.places is not None:
        axis.set_ticks(range(len(scale.places)), [f"{place:g}" for place in scale.places])
        axes.set_xlim(-0.3, len(scale.places) - 0.7)
    elif scale.is_log:
        axes.set_yscale("log")
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif scale.is_share:
        axes.set_ylim(bottom=0, top=scale.top)
        axis.set_major_locator(MaxNLocator(nbins=4))
        _percent(axes, which)
    else:
        axis.set_major_locator(MaxNLocator(nbins=4, integer=which == "x"))


def _new(height: float) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_linewidth(0.6)
    axes.tick_params(width=0.6, length=2.5, labelsize=FONT)
    axes.grid(axis=grid, color=RULE, lw=0.6)
    axes.set_axisbelow(True)


def _smaller(svg: bytes) -> bytes:
    """The same picture in fewer bytes: tenths of a point, no comments, no white space."""
    svg = re.sub(rb"<!--.*?-->|<metadata>.*?</metadata>", b"", svg, flags=re.S)
    svg = re.sub(rb"<[^>]+>", lambda tag: NUMBER.sub(_rounded, tag[0]), svg)
    return re.sub(rb"\s*\n\s*", b" ", svg).replace(b"> <", b"><")


def _rounded(number: re.Match[bytes]) -> bytes:
    return f"{round(float(number[0]), 1):g}".encode()


def _percent(axes: Axes, which: str) -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def _dodge(i: int, n: int) -> float:
    """Shift that keeps n neighbours from covering each other; rows are 1 apart."""
    return (i - (n - 1) / 2) * min(0.3, 0.72 / n)


def _fitting(name: str, columns: int) -> str:
    """A panel's title, cut where it would reach into the next panel."""
    most = int((WIDTH - 0.75) / columns / LETTER)
    name = _safe(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def _in_lines(name: str) -> str:
    """A row's name; of a long pair each on a line of its own, as it would take half the width."""
    left, minus, right = name.partition(" - ")
    if len(name) <= 26 or not minus:
        return _safe(name)
    return f"{_safe(left)}\n- {_safe(right)}"


def _safe(name: str) -> str:
    """A label that fits, and that matplotlib does not read as mathematics."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return (name if len(name) <= 34 else name[:33] + "…").replace("$", r"\$")
