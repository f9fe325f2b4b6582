"""How the trust regions see each token: raw ratio, smoothed ratio, silenced by clip or not."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kit.app.compare.tokens import Token, log_ratio
from kit.app.parts import table_html

MAX_LOG_RATIO = 700.0  # nats; exp of more is no float
_WIDTH, _HEIGHT = 360, 230  # small, so that its text can still be read on a telephone
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 352, 8, 190  # the plot's edges

STYLE = r"""
.kit-ratios {
  --kit-raw: #16181d; --kit-smooth: #1f77b4; --kit-mark: #b83a00; --kit-band: #d8c9ee;
  margin: 0; max-width: 32rem;
}
.dark .kit-ratios {
  --kit-raw: #f4f5f7; --kit-smooth: #3d8fd6; --kit-mark: #ff9d5c; --kit-band: #463a5c;
}
.kit-ratios svg { display: block; width: 100%; height: auto; }
.kit-ratios text { fill: currentColor; font-size: 12px; }
.kit-ratios .kit-line { stroke: currentColor; stroke-opacity: 0.25; stroke-width: 1; }
.kit-ratios .kit-raw { fill: none; stroke: var(--kit-raw); stroke-linecap: round; }
.kit-ratios .kit-smooth {
  fill: none; stroke: var(--kit-smooth); stroke-width: 1.5; stroke-linecap: round;
}
.kit-ratios .kit-mark { fill: var(--kit-mark); }
.kit-ratios .kit-band { fill: var(--kit-band); }
.kit-ratios ul { list-style: none; margin: 0.25rem 0; padding: 0; font-size: 0.875rem; }
.kit-ratios li { display: flex; gap: 0.5rem; align-items: baseline; margin: 0; }
.kit-ratios li svg { flex: none; width: 1.75rem; }
.kit-ratios table { font-size: 0.875rem; border-collapse: collapse; }
.kit-ratios :is(th, td) { padding: 0.2rem 0.6rem; text-align: right; font-weight: 400; }
"""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Each token's ratio r = π_side / π_reference under both trust regions."""

    side: str
    reference: str
    raw: tuple[float, ...]  # r
    smoothed: tuple[float, ...]  # (1 - alpha) r + alpha
    silenced: tuple[int, ...]  # indices of tokens that clip leaves without gradient
    alpha: float
    epsilon_low: float
    epsilon_high: float
    positive: bool  # the sign of the advantage


def ratios(
    tokens: Sequence[Token],
    side: str,
    reference: str,
    *,
    alpha: float,
    epsilon_low: float,
    epsilon_high: float,
    positive: bool,
) -> Ratios:
    """The ratios of a completion's tokens, for an advantage of the given sign.

    Clip's surrogate min(r A, clip(r, 1 - ε_low, 1 + ε_high) A) is constant where A > 0 and
    r > 1 + ε_high, or A < 0 and r < 1 - ε_low (arXiv 1707.06347, eq. 7). Raises AdapterError when a
    log-probability is not finite.
    """
    logs = [log_ratio(token, index, side, reference) for index, token in enumerate(tokens)]
    raw = tuple(math.exp(max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, log))) for log in logs)
    silenced = (r > 1 + epsilon_high if positive else r < 1 - epsilon_low for r in raw)
    return Ratios(
        side=side,
        reference=reference,
        raw=raw,
        smoothed=tuple((1 - alpha) * r + alpha for r in raw),
        silenced=tuple(index for index, silent in enumerate(silenced) if silent),
        alpha=alpha,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        positive=positive,
    )


def ratio_chart(ratios: Ratios) -> str:
    """HTML figure: both ratios over the tokens on one logarithmic scale, a legend and a summary."""
    if not ratios.raw:
        return "<p>The completion has no token.</p>"
    low, high = _range(ratios)
    names = html.escape(f"{ratios.side} over {ratios.reference}")
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>Ratio of each token's probability, {names}</title>",
        f"<desc>{_described(ratios)}</desc>",
        _band(ratios, low, high),
        _axes(len(ratios.raw), low, high),
        _smoothed(ratios, low, high),
        _raw(ratios, low, high),
        "</svg>",
    ]
    return (
        f'<figure class="kit-ratios">{"".join(parts)}{_legend(ratios)}{_summary(ratios)}</figure>'
    )


# --- the plot: x is a token's index, y a decimal logarithm ---------------------------------------


def _range(ratios: Ratios) -> tuple[float, float]:
    """Lowest and highest decimal logarithm shown: all ratios, clip's finite bounds, some room."""
    bounds = [b for b in (1 - ratios.epsilon_low, 1 + ratios.epsilon_high) if 0 < b < math.inf]
    logs = [math.log10(value) for value in (*ratios.raw, *ratios.smoothed, *bounds, 1.0)]
    room = max(0.05 * (max(logs) - min(logs)), 0.05)
    return min(logs) - room, max(logs) + room


def _x(index: int, count: int) -> float:
    return _LEFT + (index + 0.5) / count * (_RIGHT - _LEFT)


def _y(log: float, low: float, high: float) -> float:
    return _BOTTOM - (log - low) / (high - low) * (_BOTTOM - _TOP)


def _band(ratios: Ratios, low: float, high: float) -> str:
    """Where clip lets every token have its gradient."""
    floor, ceiling = 1 - ratios.epsilon_low, 1 + ratios.epsilon_high
    bottom = _y(math.log10(floor), low, high) if floor > 0 else _BOTTOM
    top = _y(math.log10(ceiling), low, high) if ceiling < math.inf else _TOP
    return (
        f'<rect class="kit-band" x="{_LEFT}" y="{top:.1f}" width="{_RIGHT - _LEFT}"'
        f' height="{bottom - top:.1f}"/>'
    )


def _axes(count: int, low: float, high: float) -> str:
    middle = (_TOP + _BOTTOM) / 2
    parts = [
        f'<text x="{_RIGHT}" y="{_BOTTOM + 32}" text-anchor="end">token</text>',
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">'
        "ratio r, logarithmic</text>",
    ]
    for log in _ticks(low, high):
        y = _y(log, low, high)
        parts.append(f'<path class="kit-line" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{_power(log)}</text>'
        )
    step = _step(count, 6)
    for number in {1, *range(step, count + 1, step)} - ({step} if 1 < step < 3 else set()):
        x = _x(number - 1, count)
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{number}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Decimal logarithms of round numbers, at most a dozen of them."""
    span = high - low
    if span > 3:
        step = _step(math.ceil(span), 8)
        return [float(k) for k in range(math.ceil(low), math.floor(high) + 1) if k % step == 0]
    mantissas: tuple[float, ...] = (1, 2, 5) if span > 1 else (1, 1.5, 2, 3, 5, 7)
    if span < 0.5:
        mantissas = (1, 1.2, 1.4, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    decades = range(math.floor(low), math.ceil(high))
    logs = [k + math.log10(mantissa) for k in decades for mantissa in mantissas]
    return [log for log in logs if low <= log <= high]


def _step(count: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, … that divides `count` into at most `most` steps."""
    steps = (lead * 10**power for power in range(9) for lead in (1, 2, 5))
    return next(step for step in steps if count <= step * most)


def _power(log: float) -> str:
    if abs(log) <= 3:
        return f"{10**log:.4g}"
    return "10" + f"{log:.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _smoothed(ratios: Ratios, low: float, high: float) -> str:
    """A line over all tokens; over a single one, a dash."""
    values, count, half = ratios.smoothed, len(ratios.smoothed), 0.0
    if count == 1:
        values, half = values * 2, 6.0
    points = []
    for index, value in enumerate(values):
        x = _x(index % count, count) + (half if index else -half)
        points.append(f"{x:.1f},{_y(math.log10(value), low, high):.1f}")
    return f'<polyline class="kit-smooth" points="{" ".join(points)}"/>'


def _raw(ratios: Ratios, low: float, high: float) -> str:
    """A dot for each token, or a triangle that points the way a silenced one left clip's range."""
    count, silenced = len(ratios.raw), set(ratios.silenced)
    dots, triangles = [], []
    for index, value in enumerate(ratios.raw):
        x, y = _x(index, count), _y(math.log10(value), low, high)
        if index in silenced:
            triangles.append(_triangle(x, y, ratios.positive))
        else:
            dots.append(f"M{x:.1f} {y:.1f}h0")
    size = max(1.5, 5 - count / 100)
    drawn = f'<path class="kit-raw" stroke-width="{size:.1f}" d="{"".join(dots)}"/>'
    return drawn + "".join(triangles)


def _triangle(x: float, y: float, up: bool) -> str:
    sign = 1 if up else -1
    return f'<path class="kit-mark" d="M{x - 3.5:.1f} {y + 3 * sign:.1f}h7l-3.5 {-6 * sign}z"/>'


# --- in words ------------------------------------------------------------------------------------


def _described(ratios: Ratios) -> str:
    return (
        f"{len(ratios.raw)} tokens, {len(ratios.silenced)} of them without gradient under clip; "
        f"ratios from {min(ratios.raw):.3g} to {max(ratios.raw):.3g}."
    )


def _legend(ratios: Ratios) -> str:
    floor, ceiling = 1 - ratios.epsilon_low, 1 + ratios.epsilon_high
    names = html.escape(f"π {ratios.side} / π {ratios.reference}")
    if ratios.positive:
        rule = f"advantage &gt; 0 and r &gt; {ceiling:.3g}"
    else:
        rule = f"advantage &lt; 0 and r &lt; {floor:.3g}"
    keys = [
        ('<path class="kit-raw" stroke-width="5" d="M6 6h0M14 6h0M22 6h0"/>', f"raw: r = {names}"),
        (
            '<polyline class="kit-smooth" points="3,6 25,6"/>',
            f"smoothed, as PSPO sees it: (1 &minus; &alpha;) r + &alpha;, &alpha; = "
            f"{ratios.alpha:.3g}",
        ),
        (
            '<rect class="kit-band" x="1" y="1" width="26" height="10"/>',
            f"clip's range, {floor:.3g} to {ceiling:.3g}",
        ),
        (_triangle(14, 6, ratios.positive), f"silenced by clip, no gradient: {rule}"),
    ]
    items = [
        f'<li><svg viewBox="0 0 28 12" aria-hidden="true">{key}</svg><span>{text}</span></li>'
        for key, text in keys
    ]
    return f"<ul>{''.join(items)}</ul>"


def _summary(ratios: Ratios) -> str:
    cells = {
        "tokens": f"{len(ratios.raw)}",
        "silenced": f"{len(ratios.silenced)}",
        "largest r": f"{max(ratios.raw):.3g}",
        "smallest r": f"{min(ratios.raw):.3g}",
    }
    return table_html(list(cells), [list(cells.values())])
