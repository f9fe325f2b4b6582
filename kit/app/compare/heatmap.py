"""A completion as a heat map: each token coloured by how much likelier one model finds it."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterator, Sequence

from kit.app.compare.tokens import Token, log_ratio
from kit.app.inert import inert_html, printable
from kit.app.parts import table_html

BOUND = 3.0  # nats at full colour: about 20 times as likely
ROWS = 12  # of the table of tokens that differ most
SHOWN = 24  # characters of a token where it is quoted

# light and dark: what is written, and what it is written on at no and at full difference
COLOURS = {
    "light": {"text": "#16181d", "page": "#ffffff", "up": "#f5a15b", "down": "#7db4e6"},
    "dark": {"text": "#f4f5f7", "page": "#1a1c20", "up": "#9a4a00", "down": "#1f5f99"},
}


def _variables(theme: str) -> str:
    return " ".join(f"--kit-{name}: {colour};" for name, colour in COLOURS[theme].items())


STYLE = (
    f".kit-heat {{ {_variables('light')} }}\n.dark .kit-heat {{ {_variables('dark')} }}\n"
    r"""
.kit-heat {
  color: var(--kit-text); background: var(--kit-page); margin: 0; padding: 0.5rem 0.75rem;
  border-radius: 6px;
}
.kit-heat :is(p, li, summary, th, td) { color: inherit; }
.kit-heat .kit-key { font-size: 0.875rem; }
.kit-heat .kit-key p { margin: 0 0 0.25rem; }
.kit-heat .kit-text {
  position: relative; margin: 0.75rem 0; white-space: pre-wrap; overflow-wrap: anywhere;
  line-height: 1.9;
}
.kit-token {
  --kit-hue: var(--kit-page); color: var(--kit-text);
  background: color-mix(in srgb, var(--kit-hue) var(--kit-share), var(--kit-page));
  border-radius: 2px;
}
.kit-token.kit-up {
  --kit-hue: var(--kit-up);
  box-shadow: inset 0 2px color-mix(in srgb, var(--kit-text) var(--kit-share), transparent);
}
.kit-token.kit-down {
  --kit-hue: var(--kit-down);
  box-shadow: inset 0 -2px color-mix(in srgb, var(--kit-text) var(--kit-share), transparent);
}
.kit-token.kit-silenced { text-decoration: underline dashed 2px; text-underline-offset: 4px; }
.kit-token.kit-first { outline: 2px solid var(--kit-text); outline-offset: 1px; }
.kit-token.kit-part::before { content: "\25AF"; opacity: 0.6; }
.kit-flag {
  margin-inline: 0.25rem; padding: 0 0.35rem; border-radius: 3px; background: var(--kit-text);
  color: var(--kit-page); font-size: 0.75rem; white-space: nowrap; user-select: none;
}
.kit-token:focus { outline: 2px solid var(--kit-text); }
.kit-token:is(:hover, :focus)::after {
  content: attr(data-kit-facts); position: absolute; z-index: 10; left: 0; right: 0;
  margin-top: 1.9em; max-width: 30rem; padding: 0.5rem 0.75rem; border-radius: 6px;
  background: var(--kit-text); color: var(--kit-page); font-size: 0.8125rem; line-height: 1.5;
  white-space: pre-line; pointer-events: none;
}
.kit-scale { display: flex; flex-wrap: wrap; margin: 0.25rem 0; }
.kit-scale .kit-token { min-width: 2.25rem; text-align: center; border-radius: 0; }
.kit-heat table {
  border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums;
}
.kit-heat :is(th, td) { padding: 0.2rem 0.5rem; text-align: right; font-weight: 400; }
.kit-heat :is(th, td):nth-child(2) { text-align: left; overflow-wrap: anywhere; }
.kit-heat details { font-size: 0.875rem; overflow-x: auto; }
.kit-heat summary { cursor: pointer; }
"""
)


def heat_map(
    tokens: Sequence[Token],
    minuend: str,
    subtrahend: str,
    *,
    diverges_at: int | None = None,
    silenced: Collection[int] = (),
) -> str:
    """HTML of a completion, coloured by log π_minuend - log π_subtrahend, with its legend.

    Colours are clipped at ±BOUND nats; what is written on a token when it is pointed at is not.

    Args:
        tokens: of the completion; one without text keeps a mark of its own.
        minuend, subtrahend: keys of every token's log-probabilities.
        diverges_at: index of the first token in which another completion differs; the number of
            tokens where this one only ends earlier.
        silenced: indices of tokens that clip leaves without gradient.

    Raises AdapterError when a log-probability is not finite.
    """
    if not tokens:
        return "<p>The completion has no token.</p>"
    gaps = [log_ratio(token, index, minuend, subtrahend) for index, token in enumerate(tokens)]
    shown = [
        _token(index, token, gaps[index], (minuend, subtrahend), index in silenced, diverges_at)
        for index, token in enumerate(tokens)
    ]
    if diverges_at == len(tokens):
        shown.append('<span class="kit-flag">the other goes on here</span>')
    counted = len(set(silenced) & set(range(len(tokens))))
    outlined = diverges_at if diverges_at in range(len(tokens)) else None
    return (
        f'<figure class="kit-heat">{_legend(minuend, subtrahend, outlined, counted)}'
        f'<div class="kit-text">{"".join(shown)}</div>'
        f"{_table(tokens, gaps, minuend, subtrahend)}</figure>"
    )


def _token(
    index: int,
    token: Token,
    gap: float,
    sides: tuple[str, str],
    silenced: bool,
    diverges_at: int | None,
) -> str:
    """One token; `sides` are the minuend and the subtrahend of its gap in nats."""
    first = index == diverges_at
    text = inert_html(token.text)
    names = [_direction(gap)]
    names += ["kit-silenced"] * silenced + ["kit-first"] * first + ["kit-part"] * (not text)
    facts = "\n".join(_facts(index, token, gap, sides, silenced))
    # focusable, so that a tap shows the facts, but no stop for the tab key: there are hundreds
    span = (
        f'<span class="kit-token {" ".join(names)}" style="--kit-share: {_share(gap)}%" '
        f'tabindex="-1" data-kit-facts="{html.escape(facts)}">{text}</span>'
    )
    return f'<span class="kit-flag">first difference</span>{span}' if first else span


def _facts(
    index: int, token: Token, gap: float, sides: tuple[str, str], silenced: bool
) -> Iterator[str]:
    """What is known of a token, line by line."""
    yield f"token {index + 1}: {_quoted(token.text)}"
    for side, logprob in token.logprobs.items():
        yield f"{side}: {_percent(math.exp(logprob))}, log-probability {logprob:.3f} nats"
    yield f"log of {sides[0]} over {sides[1]}: {gap:+.3f} nats"
    if token.alternatives:
        likeliest = (f"{_quoted(text)} {_percent(share)}" for text, share in token.alternatives)
        yield f"likeliest: {', '.join(likeliest)}"
    if silenced:
        yield "silenced: clip leaves it no gradient"


def _legend(minuend: str, subtrahend: str, outlined: int | None, silenced: int) -> str:
    a, b = html.escape(minuend), html.escape(subtrahend)
    steps = "".join(_swatch(gap) for gap in (-3, -2, -1, 0, 1, 2, 3))
    colour = (
        f"Colour of a token: log π {a} &minus; log π {b} in nats, clipped at ±{BOUND:g} "
        f"({math.exp(BOUND):.0f} times as likely)."
    )
    lines = [f"Orange, bar above: likelier under {a}. Blue, bar below: likelier under {b}."]
    if outlined is not None:
        lines.append(f"Outlined: the first difference, token {outlined + 1}.")
    if silenced:
        lines.append(f"Dashed underline, silenced tokens: {silenced}. Clip leaves no gradient.")
    lines.append("Point at a token or tap it for its probabilities.")
    return (
        f'<figcaption class="kit-key"><p>{colour}</p><p class="kit-scale">{steps}</p>'
        f"<p>{'<br>'.join(lines)}</p></figcaption>"
    )


def _swatch(gap: int) -> str:
    direction, share, label = _direction(gap), _share(gap), f"{gap:+d}" if gap else "0"
    return f'<span class="kit-token {direction}" style="--kit-share: {share}%">{label}</span>'


def _table(tokens: Sequence[Token], gaps: Sequence[float], minuend: str, subtrahend: str) -> str:
    """The tokens that differ most, for whoever cannot point at one."""
    order = sorted(range(len(tokens)), key=lambda index: -abs(gaps[index]))[:ROWS]
    head = ("#", "token", minuend, subtrahend, "nats")
    rows = [
        (
            f"{index + 1}",
            _quoted(tokens[index].text),
            _percent(math.exp(tokens[index].logprobs[minuend])),
            _percent(math.exp(tokens[index].logprobs[subtrahend])),
            f"{gaps[index]:+.2f}",
        )
        for index in order
    ]
    summary = f"<summary>The {len(rows)} tokens that differ most</summary>"
    return f"<details>{summary}{table_html(head, rows)}</details>"


def _direction(gap: float) -> str:
    return "kit-up" if gap > 0 else "kit-down"


def _share(gap: float) -> int:
    """Per cent of the full colour."""
    return round(100 * min(abs(gap) / BOUND, 1))


def _quoted(text: str) -> str:
    """A token's text in one line, shortened, its line breaks visible."""
    text = printable(text).replace("\n", "↵").replace("\t", "⇥")
    if not text:
        return "(part of a character)"
    return f"“{text[:SHOWN]}…”" if len(text) > SHOWN else f"“{text}”"


def _percent(probability: float) -> str:
    return f"{100 * probability:.3g} %"
