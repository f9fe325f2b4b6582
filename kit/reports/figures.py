"""Draw curves, intervals and dots as small PNGs that a colour-blind reader can tell apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

# Okabe and Ito's palette without its yellow, which is too pale for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "<", ">")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.2)), (0, (7, 1.5, 1.5, 1.5)))
GREY = "#6b6b6b"
BETWEEN_BARS = 0.035  # of the distance between two ticks
WIDTH = 4.8  # inches; small, so that text can be read on a phone
DPI = 170


@dataclass(frozen=True, slots=True)
class Style:
    """How one arm looks in every figure."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Line:
    """Values over x; low and high, where given, are drawn as a band or as bars."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    """One value of one arm, with the bounds of its interval where there is one."""

    arm: str
    value: float
    bounds: Sequence[float] | None = None
    is_hollow: bool = False


def styles(arms: Sequence[str], base: str) -> dict[str, Style]:
    """One look per arm: seven colours and markers, four dashes; together they repeat after 28."""
    looks = {base: Style(GREY, "o", (0, (1, 1)))}
    for i, arm in enumerate(arms):
        dash = DASHES[i % len(DASHES)]
        looks[arm] = Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], dash)
    return looks


def draw_curves(
    lines: Mapping[str, Line],
    looks: Mapping[str, Style],
    *,
    unit: str,
    is_share: bool = False,
    is_log: bool = False,
    top: float | None = None,
) -> bytes:
    """Lines over training steps, with a band where there are several seeds.

    A logarithmic scale is used where values span more than a factor of 10.
    """
    figure, axes = _new(2.9)
    for arm, line in lines.items():
        look = looks[arm]
        width = 1.2 if line.low is None else 1.7
        axes.plot(
            line.x, line.y, color=look.colour, linestyle=look.dash, lw=width, label=_short(arm)
        )
        if len(line.x) == 1:  # a line of one point cannot be seen
            axes.plot(line.x, line.y, color=look.colour, marker=look.marker, ls="none", ms=4)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.13, lw=0)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    values = [value for line in lines.values() for value in line.y]
    is_log = is_log and max(values) > 10 * min(values)
    axes.set_ylabel(f"{unit}, log scale" if is_log else unit)
    if is_share:
        axes.set_ylim(bottom=0, top=top)
        _percent(axes, "y")
    elif is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    return _finish(figure, axes, len(lines))


def draw_bars_over(
    lines: Mapping[str, Line], looks: Mapping[str, Style], *, x: str, y: str
) -> bytes:
    """Shares at a few settings (temperature, number of samples), with intervals as bars."""
    figure, axes = _new(3.0)
    places = sorted({place for line in lines.values() for place in line.x})
    position = {place: i for i, place in enumerate(places)}
    for i, (arm, line) in enumerate(lines.items()):
        look = looks[arm]
        shift = (i - (len(lines) - 1) / 2) * BETWEEN_BARS
        at = [position[place] + shift for place in line.x]
        axes.plot(
            at,
            line.y,
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            lw=1.2,
            ms=4.5,
            label=_short(arm),
        )
        if line.low is not None and line.high is not None:
            axes.vlines(at, line.low, line.high, color=look.colour, lw=1)
    axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _percent(axes, "y")
    return _finish(figure, axes, len(lines))


def draw_dots(
    rows: Mapping[str, Sequence[Dot]],
    looks: Mapping[str, Style],
    *,
    unit: str,
    zero_line: bool = False,
    legend: bool = False,
) -> bytes:
    """A row per name with its dots side by side, from the top down."""
    most = max(len(dots) for dots in rows.values())
    figure, axes = _new(0.75 + len(rows) * (0.17 + 0.06 * most))
    shown: set[str] = set()
    for row, dots in enumerate(rows.values()):
        for i, dot in enumerate(dots):
            look = looks[dot.arm]
            y = row + _dodge(i, len(dots))
            if dot.bounds is not None:
                axes.hlines(y, dot.bounds[0], dot.bounds[1], color=look.colour, lw=1.3)
            axes.plot(
                dot.value,
                y,
                marker=look.marker,
                ms=5,
                color=look.colour,
                mfc="white" if dot.is_hollow else look.colour,
                ls="none",
                label=None if dot.arm in shown else _short(dot.arm),
            )
            shown.add(dot.arm)
    if most > 2:
        for row in range(len(rows) - 1):
            axes.axhline(row + 0.5, color="#e3e3e3", lw=0.7, zorder=0)
    if zero_line:
        axes.axvline(0, color=GREY, lw=1, zorder=0)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e3e3e3", lw=0.7)
    axes.set_xlabel(unit)
    _percent(axes, "x")
    return _finish(figure, axes, len(shown) if legend else 0)


def _new(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e3e3", lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: Figure, axes: Axes, entries: int) -> bytes:
    """Legend under the axes, then a PNG of at most 256 colours, which is a third of the size."""
    if entries:
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(3, entries),
            frameon=False,
            fontsize=9,
            handlelength=3,
        )
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256).save(small, format="PNG", optimize=True)
    return small.getvalue()


def _percent(axes: Axes, which: str) -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def _dodge(i: int, n: int) -> float:
    """Shift that keeps n neighbours from covering each other; rows are 1 apart."""
    return (i - (n - 1) / 2) * min(0.3, 0.72 / n)


def _short(name: str) -> str:
    """A label that fits, and that matplotlib does not read as mathematics."""
    name = "".join(c if c.isprintable() else " " for c in name)
    name = (name if len(name) <= 34 else name[:33] + "…").replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name  # legends leave out what begins with _
