"""Draw a metric of several runs: dashes, and names at the ends, tell equal lines apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kit.app.inert import escaped
from kit.app.training.curves import Points, is_log
from kit.metrics import Curve, note_on

DASHES = ("", "7 3", "2 2", "9 3 2 3")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 220, 52, 340, 8, 196
LABEL = 13  # height of a name


def plot(curve: Curve, points: Mapping[str, Points], colours: Mapping[str, str]) -> str:
    """A figure with its caption; ticking its box makes it the first, as wide as the page."""
    values = [value for line in points.values() for _, value, _ in line]
    steps = [step for line in points.values() for step, _, _ in line]
    low, high = min(values), max(values)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: int, value: float) -> tuple[float, float]:
        x = _LEFT + (step - first) / (last - first) * (_RIGHT - _LEFT)
        return x, _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    parts = [_axis(low, high, is_log(curve)), _steps(first, last)]
    for number, (name, line) in enumerate(points.items()):
        parts.append(_line(name, [(*place(s, v), s, said) for s, v, said in line], number, colours))
    ends = {name: place(*line[-1][:2])[1] for name, line in points.items() if line}
    parts += (
        f'<text x="{_RIGHT + 6}" y="{y:.1f}" style="fill: {colours[name]}">{escaped(name)}</text>'
        for name, y in _apart(ends).items()
    )
    title = escaped(curve.title)
    return (
        f'<figure><figcaption>{title}<label><input type="checkbox" aria-label="Pin {title}"> pin'
        f'</label></figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{title}, {escaped(curve.unit)}</title>{''.join(parts)}</svg>"
        f"<p>{escaped(curve.unit)}. {escaped(note_on(curve))}</p></figure>"
    )


def _line(
    name: str,
    places: Sequence[tuple[float, float, int, str]],
    number: int,
    colours: Mapping[str, str],
) -> str:
    alone = ' class="kit-alone"' if len(places) == 1 else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    dots = "".join(
        f'<circle{alone} cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colours[name]}">'
        f"<title>{escaped(name)}, step {step}: {escaped(said)}</title></circle>"
        for x, y, step, said in places
    )
    dash = DASHES[number % len(DASHES)]
    return f'<polyline points="{path}" stroke="{colours[name]}" stroke-dasharray="{dash}"/>{dots}'


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Where the names stand: at the ends of their lines, none over another."""
    placed: dict[str, float] = {}
    for name in sorted(ends, key=lambda name: ends[name]):
        above = max(placed.values(), default=-math.inf)
        placed[name] = max(ends[name] + 4, above + LABEL)
    over = max([*placed.values(), _BOTTOM + 8]) - (_BOTTOM + 8)
    return {name: y - over for name, y in placed.items()}


def _axis(low: float, high: float, logarithmic: bool) -> str:
    parts = []
    for i in range(5):
        value = low + (high - low) * i / 4
        y = _BOTTOM - i / 4 * (_BOTTOM - _TOP)
        shown = f"{10**value if logarithmic else value:.3g}"
        parts.append(
            f'<path class="kit-grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
        )
    return "".join(parts)


def _steps(first: int, last: int) -> str:
    return (
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{first}</text>'
        f'<text x="{_RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">step {last}</text>'
    )
