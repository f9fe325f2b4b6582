"""How the trust regions see each token: raw ratio, smoothed ratio, silenced by clip or not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kit.app.compare.tokens import Token, log_ratio, quoted
from kit.app.inert import escaped
from kit.app.parts import table_html

MAX_LOG_RATIO = 700.0  # nats; exp of more is no float
_WIDTH, _HEIGHT = 1200, 260  # a telephone shows a part of it, which can be moved
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 1192, 8, 220  # the plot's edges

STYLE = r"""
.kit-ratios { --kit-band: #e4dcf1; margin: 0; }
.dark .kit-ratios { --kit-band: #322a42; }
.kit-plot { overflow-x: auto; }
.kit-plot > svg { display: block; width: 100%; min-width: 44rem; height: auto; }
.kit-ratios text { fill: currentColor; font-size: 12px; }
.kit-ratios .kit-line { stroke: currentColor; stroke-opacity: 0.25; stroke-width: 1; }
.kit-ratios :is(.kit-raw, .kit-mark) { fill: currentColor; cursor: pointer; }
.kit-ratios .kit-is-left > * { color: var(--kit-left); }
.kit-ratios .kit-is-right > * { color: var(--kit-right); }
.kit-ratios .kit-mark { stroke: var(--kit-text); }
.kit-ratios .kit-smooth {
  fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linecap: round; opacity: .7;
}
.kit-ratios .kit-linked { stroke: var(--kit-text); stroke-width: 3; }
.kit-ratios .kit-band { fill: var(--kit-band); }
.kit-ratios ul { list-style: none; margin: 0.25rem 0; padding: 0; font-size: 0.875rem; }
.kit-ratios li { display: flex; gap: 0.5rem; align-items: baseline; margin: 0; }
.kit-ratios li svg { flex: none; width: 1.75rem; }
"""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Each token's ratio r = π_side / π_reference under both trust regions."""

    side: str
    reference: str
    texts: tuple[str, ...]  # of the tokens
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
        texts=tuple(token.text for token in tokens),
        raw=raw,
        smoothed=tuple((1 - alpha) * r + alpha for r in raw),
        silenced=tuple(index for index, silent in enumerate(silenced) if silent),
        alpha=alpha,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        positive=positive,
    )


def ratio_chart(sides: Mapping[str, Ratios]) -> str:
    """HTML figure, by name of the side: all ratios over the tokens on one logarithmic scale, a
    legend and a summary. Bounds and reference are those of the first."""
    drawn = {name: one for name, one in sides.items() if one.raw}
    if not drawn:
        return "<p>No completion has a token.</p>"
    low, high = _range(drawn.values())
    first, count = next(iter(drawn.values())), max(len(one.raw) for one in drawn.values())
    described = " ".join(f"{name}: {_described(one)}" for name, one in drawn.items())
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>Ratio of each token's probability to {first.reference}</title>",
        f"<desc>{escaped(described)}</desc>",
        _band(first, low, high),
        _axes(count, low, high),
        *(_side(one, count, low, high) for one in drawn.values()),
        "</svg>",
    ]
    return (
        f'<figure class="kit-ratios"><div class="kit-plot" tabindex="0" role="region" '
        f'aria-label="Ratios of the tokens">{"".join(parts)}</div>'
        f"{_legend(drawn)}{_summary(drawn)}</figure>"
    )


# --- the plot: x is a token's index, y a decimal logarithm ---------------------------------------


def _range(sides: Collection[Ratios]) -> tuple[float, float]:
    """Lowest and highest decimal logarithm shown: all ratios, clip's finite bounds, some room."""
    values = [1.0]
    for one in sides:
        bounds = (b for b in (1 - one.epsilon_low, 1 + one.epsilon_high) if 0 < b < math.inf)
        values += [*one.raw, *one.smoothed, *bounds]
    logs = [math.log10(value) for value in values]
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


def _side(ratios: Ratios, count: int, low: float, high: float) -> str:
    drawn = _smoothed(ratios, count, low, high) + _raw(ratios, count, low, high)
    return f'<g class="kit-is-{ratios.side}">{drawn}</g>'


def _smoothed(ratios: Ratios, count: int, low: float, high: float) -> str:
    """A line over all tokens; over a single one, a dash."""
    values, half = ratios.smoothed, 0.0
    if len(values) == 1:
        values, half = values * 2, 6.0
    points = []
    for index, value in enumerate(values):
        x = _x(0 if half else index, count) + (half if index else -half)
        points.append(f"{x:.1f},{_y(math.log10(value), low, high):.1f}")
    return f'<polyline class="kit-smooth" points="{" ".join(points)}"/>'


def _raw(ratios: Ratios, count: int, low: float, high: float) -> str:
    """A dot for each token, or a triangle that points the way a silenced one left clip's range."""
    silenced, radius = set(ratios.silenced), max(1.5, 4 - count / 150)
    marks = []
    for index, (value, text) in enumerate(zip(ratios.raw, ratios.texts, strict=True)):
        x, y = _x(index, count), _y(math.log10(value), low, high)
        named = f"token {index + 1} {quoted(text)}: r = {figure(value)}"
        name = f"kit-at-{ratios.side}-{index}"
        about = f"><title>{escaped(named)}</title>"
        if index in silenced:
            where = f'd="{_triangle(x, y, ratios.positive)}"'
            marks.append(f'<path class="kit-mark {name}" {where}{about}</path>')
        else:
            where = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
            marks.append(f'<circle class="kit-raw {name}" {where}{about}</circle>')
    return "".join(marks)


def _triangle(x: float, y: float, up: bool) -> str:
    sign = 1 if up else -1
    return f"M{x - 4.5:.1f} {y + 4 * sign:.1f}h9l-4.5 {-8 * sign}z"


# --- in words ------------------------------------------------------------------------------------


def _described(ratios: Ratios) -> str:
    return (
        f"{len(ratios.raw)} tokens, {len(ratios.silenced)} of them without gradient under clip; "
        f"ratios from {figure(min(ratios.raw))} to {figure(max(ratios.raw))}."
    )


def _legend(sides: Mapping[str, Ratios]) -> str:
    first = next(iter(sides.values()))
    floor, ceiling = 1 - first.epsilon_low, 1 + first.epsilon_high
    keys = [
        (
            f'<circle class="kit-raw kit-is-{one.side}" cx="14" cy="6" r="4"/>',
            f"r = π of {escaped(name)} / π of {escaped(one.reference)}",
        )
        for name, one in sides.items()
    ]
    keys += [
        (
            '<polyline class="kit-smooth" points="3,6 25,6"/>',
            f"smoothed, as PSPO sees it: (1 &minus; &alpha;) r + &alpha;, &alpha; = "
            f"{first.alpha:.3g}",
        ),
        (
            '<rect class="kit-band" x="1" y="1" width="26" height="10"/>',
            f"clip's range, {floor:.3g} to {ceiling:.3g}",
        ),
        (
            f'<path class="kit-mark" d="{_triangle(14, 6, True)}"/>',
            f"silenced by clip, no gradient: r &gt; {ceiling:.3g} where the advantage is positive, "
            f"r &lt; {floor:.3g} where it is negative",
        ),
    ]
    items = [
        f'<li><svg viewBox="0 0 28 12" aria-hidden="true">{key}</svg><span>{text}</span></li>'
        for key, text in keys
    ]
    return f"<ul>{''.join(items)}</ul>"


def _summary(sides: Mapping[str, Ratios]) -> str:
    head = ["", "advantage", "tokens", "silenced", "largest r", "smallest r"]
    rows = [
        (
            name,
            "positive" if one.positive else "negative",
            *(f"{len(one.raw)}", f"{len(one.silenced)}"),
            *(figure(max(one.raw)), figure(min(one.raw))),
        )
        for name, one in sides.items()
    ]
    return table_html(head, rows)


def figure(ratio: float) -> str:
    """Three figures; a power of ten only for what no decimals can tell."""
    return (
        f"{ratio:.3g}"
        if 1e-4 <= ratio < 1e6 or not ratio
        else f"about {_power(round(math.log10(ratio)))}"
    )
