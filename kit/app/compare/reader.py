"""The reasoning of the sides, line beside line: one text that shows differences, heat and silence.

Gradio's Markdown lets neither data- nor aria- attributes through: a token has its facts in `label`.
The text is written once. How it is looked at (Text, Diff, Heat, Silenced) and which column a phone
shows are attributes of the page, which reader.js sets and reader.css reads.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter
from pathlib import Path

from kit.app.compare.alignment import Span, align, differing, first_difference
from kit.app.compare.setup import BASE_SIDE
from kit.app.compare.tokens import Token, log_ratio, quoted
from kit.app.inert import MAX_CHARACTERS, characters, escaped, formulas, literal_html, printable
from kit.app.parts import badge_html
from kit.app.verdicts import Badge

PLACES = ("first", "second", "base")
MAX_LINES = 1_000  # of a text; the rest is counted, not shown
LEAST_SCALE = 0.01  # nats; smaller differences are none
UNSCORED = "The tokens have no probabilities yet."
NEWLINE = '<span class="kit-newline"></span>'
CHANGED = ' class="kit-changed"'
STYLE = (Path(__file__).parent / "reader.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "reader.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Column:
    """What is shown of one side.

    `side` is the key of its tokens' own log-probabilities, `colour` that of the arm: left, right or
    base. Both are one but where it must not be told which side this is.
    """

    side: str
    colour: str
    name: str
    text: str
    badge: Badge | None = None  # None: not to be told, or not known yet
    answer: str | None = None
    tokens: int = 0
    figures: Mapping[str, str] = field(default_factory=dict)
    scored: Sequence[Token] = ()
    silenced: Collection[int] = ()  # of `scored`: clip leaves them no gradient
    samples: Sequence[Badge | None] = ()  # of all samples, where there are several
    sample: int = 0  # the shown one
    marks: Mapping[int, str] = field(default_factory=dict)  # guidelines, by line of the text
    note: str = ""  # in the place of a text that is not there

    @cached_property
    def _characters(self) -> list[str]:
        return characters(self.text[:MAX_CHARACTERS])

    @cached_property
    def shown(self) -> str:
        """The text without what cannot be seen."""
        return "".join(self._characters)

    @cached_property
    def maths(self) -> dict[Span, str]:
        """Formulas by where they stand in `shown`."""
        return {(start, end): formula for start, end, formula in formulas(self.shown)}

    @cached_property
    def lines(self) -> list[Span]:
        """Where the lines of `shown` are, each with its line break; formulas are not broken."""
        inside = {i for start, end in self.maths for i in range(start, end)}
        ends = [i + 1 for i, c in enumerate(self.shown) if c == "\n" and i not in inside]
        return [*pairwise([0, *ends, len(self.shown)])][:MAX_LINES]

    @property
    def hidden(self) -> int:
        """Characters that are not shown for want of room."""
        cut = max(0, len(self.text) - MAX_CHARACTERS)
        return cut + len(self.shown) - self.lines[-1][1]

    @cached_property
    def token_spans(self) -> list[Span]:
        """Where each scored token stands in `shown`; what ends the answer stands behind it."""
        at = list(accumulate(map(len, self._characters), initial=0))
        ends = accumulate(len(token.text) for token in self.scored)
        places = [at[min(end, len(at) - 1)] for end in ends]
        return [*pairwise([0, *places])]

    def line(self, index: int) -> str:
        start, end = self.lines[index]
        return self.shown[start:end].strip("\n")

    def mark(self, index: int) -> str:
        """The guidelines that a line fulfils; a formula of several lines is where it begins."""
        return self.marks.get(self.shown.count("\n", 0, self.lines[index][0]), "")


@dataclass(frozen=True, slots=True)
class Row:
    """Lines that stand beside each other: their indices in each column."""

    lines: tuple[tuple[int, ...], ...]
    is_same: bool  # to the pair, whatever a third says


@dataclass(frozen=True, slots=True)
class Heat:
    """What colours the tokens: log π_minuend - log π_subtrahend in nats, per column."""

    gaps: tuple[tuple[float, ...], ...]
    sides: tuple[tuple[str, str], ...]

    @property
    def scale(self) -> float:
        """Nats at full colour: the largest difference there is."""
        largest = max((abs(gap) for gaps in self.gaps for gap in gaps), default=0.0)
        return max(largest, LEAST_SCALE)


def heat_of(columns: Sequence[Column], *, to_base: bool) -> Heat:
    """Of the first two columns against each other, or of each against the base.

    Raises AdapterError when a log-probability is not finite.
    """
    columns = _told(columns)
    first, second = (column.side for column in columns[:2])
    sides = tuple(
        (column.side, BASE_SIDE) if to_base or column.side == BASE_SIDE else (first, second)
        for column in columns
    )
    gaps = tuple(
        tuple(log_ratio(token, index, *pair) for index, token in enumerate(column.scored))
        for column, pair in zip(columns, sides, strict=True)
    )
    return Heat(gaps, sides)


def rows_of(columns: Sequence[Column]) -> list[Row]:
    """All lines; those of a third column stand by the lines of the first that they are like."""
    texts = [[column.line(i) for i in range(len(column.lines))] for column in columns]
    rows: list[list[tuple[int, ...]]] = [
        [() if i is None else (i,) for i in pair] for pair in align(*texts[:2])
    ]
    if len(columns) > 2:
        row_of = {line: n for n, cells in enumerate(rows) for line in cells[0]}
        extra: list[list[int]] = [[] for _ in rows]
        at = 0
        for line, third in align(texts[0], texts[2]):
            at = at if line is None else row_of[line]
            if third is not None:
                extra[at].append(third)
        rows = [[*cells, tuple(more)] for cells, more in zip(rows, extra, strict=True)]

    def is_same(cells: Sequence[tuple[int, ...]]) -> bool:
        said = {tuple(texts[n][i] for i in lines) for n, lines in enumerate(cells[:2])}
        return len(said) == 1

    return [Row(tuple(cells), is_same(cells)) for cells in rows]


def heads_html(columns: Sequence[Column], problem: str = "", sample: int = 0) -> str:
    """The names with verdict, final answer and length; on a phone, the switch between them.

    `problem`, an id, and which sample of it this is are what the address is given.
    """
    first, *others = (_head(column, place) for place, column in enumerate(columns))
    both = '<button class="kit-both" data-show="both" aria-pressed="true">Diff</button>'
    heads = f"{first}{both}{''.join(others)}"
    address = f'data-problem="{escaped(problem)}" data-sample="{sample or ""}"'
    return f'<div class="kit-heads" {address}>{heads}</div>'


def text_markdown(
    columns: Sequence[Column],
    *,
    heat: Heat | None = None,
    is_over: bool = True,
    unscored: str = UNSCORED,
) -> str:
    """What is to be read, for a gr.Markdown of PROSE: one block of HTML for each row of lines.

    Words are told apart once all `is_over`; `unscored` says why there is no `heat`.
    """
    names = {BASE_SIDE: BASE_SIDE} | {column.side: printable(column.name) for column in columns}
    notes = "".join(_note(column) for column in columns if column.note)
    columns = _told(columns)
    writers = [_Writer(column, names, heat, place) for place, column in enumerate(columns)]
    fork = _fork(columns, by_token=heat is not None) if is_over else None
    for writer in writers[:2]:
        writer.fork = fork
    rows = rows_of(columns)
    blocks = [_strip(rows)] if is_over else []
    for number, row in enumerate(rows):
        blocks.append(_row(writers, row, number, is_over, "" if number else notes))
    hidden = max(column.hidden for column in columns)
    if hidden:
        blocks.append(f'<p class="kit-key">{hidden:,} further characters are not shown.</p>')
    if is_over:
        none = f'<p class="kit-key kit-key-heat kit-key-silenced">{unscored}</p>'
        blocks.append(_legend(columns, names, heat) if heat else none)
    return "\n\n".join(blocks)


# --- one side's head -----------------------------------------------------------------------------


def _head(column: Column, place: int) -> str:
    show = column.colour
    badge = badge_html(column.badge) if column.badge else ""
    answer = "" if column.answer is None else f"<b>{escaped(column.answer)}</b>"
    figures = "".join(
        f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in column.figures.items()
    )
    more = f'<dl class="kit-figures">{figures}</dl>' if figures else ""
    length = f"<small>{column.tokens:,} tokens</small>" if column.tokens else ""
    return (
        f'<div class="kit-head kit-is-{show}" id="kit-{PLACES[place]}">'
        f'<button data-show="{show}" title="{escaped(column.name)}">{escaped(column.name)}</button>'
        f"{badge}{answer}{length}{_dots(column)}{more}</div>"
    )


def _dots(column: Column) -> str:
    if len(column.samples) < 2:
        return ""
    dots = []
    for number, badge in enumerate(column.samples):
        said = badge.text if badge else "not told"
        kind = badge.kind if badge else "unjudged"
        dots.append(
            f'<button class="kit-dot kit-badge-{kind}" data-sample="{number}" '
            f'aria-label="sample {number + 1}: {escaped(said)}" '
            f'aria-pressed="{"true" if number == column.sample else "false"}"></button>'
        )
    return f'<span class="kit-dots">{"".join(dots)}</span>'


# --- the text ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fork:
    """Where the first two columns differ first."""

    at: int  # a token's index, or without any a character's
    words: str
    facts: str = ""  # whose probability of what the words have


def _fork(columns: Sequence[Column], *, by_token: bool) -> _Fork | None:
    first, second = columns[:2]
    if not by_token:
        at = first_difference(first.shown, second.shown)
        return None if at is None else _Fork(at, "first difference")
    index = first_difference(*([token.text for token in side.scored] for side in (first, second)))
    if index is None:
        return None
    shares, facts = [], []
    for side in (first, second):
        name = printable(side.name)
        if index >= len(side.scored):
            shares.append("the end")
            facts.append(f"{name} has ended")
            continue
        token = side.scored[index]
        shares.append(percent(math.exp(token.logprobs[side.side])))
        facts.append(f"{name} gives its own {quoted(token.text)} {shares[-1]}")
    words = f"token {index + 1}: {shares[0]} against {shares[1]}"
    return _Fork(index, words, "\n".join(facts))


def _strip(rows: Sequence[Row]) -> str:
    """Where the two differ, all rows at a glance."""
    marks = "".join(f"<i{'' if row.is_same else CHANGED}></i>" for row in rows)
    return f'<div class="kit-strip"><div>{marks}</div></div>'


def _told(columns: Sequence[Column]) -> Sequence[Column]:
    return [column for column in columns if not column.note]


def _note(column: Column) -> str:
    return f'<div class="kit-cell kit-is-{column.colour} kit-none">{escaped(column.note)}</div>'


def _row(writers: Sequence[_Writer], row: Row, number: int, is_over: bool, notes: str = "") -> str:
    if is_over and not row.is_same:
        _mark(writers, row)
    cells = "".join(
        f'<div class="kit-cell kit-is-{writer.column.colour}">{writer.lines(lines)}</div>'
        for writer, lines in zip(writers, row.lines, strict=True)
    )
    same = " kit-same" * (row.is_same and is_over)
    return f'<div class="kit-row{same}" id="kit-row-{number}">{cells}{notes}</div>'


def _mark(writers: Sequence[_Writer], row: Row) -> None:
    """Tell both first writers what the row's other side does not have."""
    texts, starts = [], []
    for writer, lines in zip(writers[:2], row.lines[:2], strict=True):
        texts.append("\n".join(writer.column.line(i) for i in lines))
        starts.append(writer.column.lines[lines[0]][0] if lines else 0)
    if all(row.lines[:2]):
        for writer, start, spans in zip(writers, starts, differing(*texts), strict=False):
            writer.marked = [(start + i, start + j) for i, j in spans]


class _Writer:
    """Writes the lines of one column as HTML."""

    def __init__(
        self, column: Column, names: Mapping[str, str], heat: Heat | None, place: int
    ) -> None:
        self.column, self.names = column, names
        self.scale = heat.scale if heat else 0.0
        self.pair = heat.sides[place] if heat else ("", "")
        self.gaps = heat.gaps[place] if heat else ()  # of the tokens; none: they are not told apart
        self.marked: list[Span] = []  # characters that the line beside does not have
        self.fork: _Fork | None = None

    def lines(self, indices: Sequence[int]) -> str:
        return "<br>".join(self._line(*self.column.lines[i]) + self._mark(i) for i in indices)

    def _mark(self, index: int) -> str:
        names = escaped(self.column.mark(index))
        return f'<small class="kit-follows">✓ {names}</small>' * bool(names)

    def _line(self, start: int, end: int) -> str:
        """Formula by formula, and token by token between them and in what they are made from."""
        parts, at = [], start
        for (a, b), formula in self.column.maths.items():
            if start <= a < end:
                differs = " kit-differs" * any(i < b and j > a for i, j in self.marked)
                flag = self._flag() if a <= self._forks_at < b else ""
                maths = f'<span class="kit-maths{differs}">{flag}{formula}</span>'
                source = f'<span class="kit-source">{self._text(a, b)}</span>' if self.gaps else ""
                parts += [self._text(at, a), maths, source]
                at = b
        is_last = end == len(self.column.shown)
        return "".join([*parts, self._text(at, end, is_last)])

    @property
    def _forks_at(self) -> int:
        """The character at which the first two columns part; -1: nowhere in this one."""
        if self.fork is None or (self.gaps and self.fork.at >= len(self.gaps)):
            return -1
        return self.column.token_spans[self.fork.at][0] if self.gaps else self.fork.at

    def _text(self, start: int, end: int, is_last: bool = False) -> str:
        if self.gaps:
            return "".join(self._tokens(start, end, is_last))
        if start <= (at := self._forks_at) < end:
            return self._words(start, at) + self._flag() + self._words(at, end)
        return self._words(start, end)

    def _tokens(self, start: int, end: int, is_last: bool) -> Iterator[str]:
        """Those of a stretch of text; what adds no text stands before what comes next."""
        spans = self.column.token_spans
        for index in range(bisect_left(spans, start, key=itemgetter(1)), len(spans)):
            a, b = spans[index]
            if a >= end and not (is_last and a == b == end):
                return
            if a == b or b > start:
                if self.fork and index == self.fork.at and a >= start:
                    yield self._flag()
                yield self._token(index, self._words(max(a, start), min(b, end)))
        yield self._words(max(start, spans[-1][1]), end)  # should the tokens not add up to it

    def _words(self, start: int, end: int) -> str:
        """What differs is marked; a line break has a sign of its own."""
        if start >= end:
            return ""
        edges = {edge for span in self.marked for edge in span if start < edge < end}
        parts = []
        for a, b in pairwise(sorted({start, end, *edges})):
            text = literal_html(self.column.shown[a:b].replace("\n", ""))
            if text and any(i <= a and b <= j for i, j in self.marked):
                text = f'<mark class="kit-differs">{text}</mark>'
            parts += [text, NEWLINE * self.column.shown.count("\n", a, b)]
        return "".join(parts)

    def _flag(self) -> str:
        if self.fork is None:
            return ""
        facts = literal_html(self.fork.facts)
        told = f' tabindex="-1" label="{facts}"' if facts else ""
        return f'<span class="kit-fork"{told}>{escaped(self.fork.words)}</span>'

    def _token(self, index: int, inside: str) -> str:
        token, gap = self.column.scored[index], self.gaps[index]
        names = f"kit-token kit-at-{self.column.side}-{index} kit-like-{self.pair[gap <= 0]}"
        names += " kit-silenced" * (index in self.column.silenced)
        if not inside:
            names += " kit-end" if token.text else " kit-part"
            inside = literal_html(printable(token.text).replace("\n", "↵"))
        facts = literal_html("\n".join(self._facts(index, token, gap)))
        share = round(100 * min(abs(gap) / self.scale, 1))
        return (
            f'<span class="{names}" style="--kit-share: {share}%" '
            f'tabindex="-1" label="{facts}">'
            f"{inside}</span>"
        )

    def _facts(self, index: int, token: Token, gap: float) -> Iterator[str]:
        """What is known of a token, line by line."""
        yield f"token {index + 1}: {quoted(token.text)}"
        for side, logprob in token.logprobs.items():
            likely = percent(math.exp(logprob))
            yield f"{self.names[side]}: {likely}, log-probability {nats(logprob)} nats"
        minuend, subtrahend = (self.names[side] for side in self.pair)
        yield f"log of {minuend} over {subtrahend}: {nats(gap, '+')} nats"
        if token.alternatives:
            likeliest = (f"{quoted(text)} {percent(share)}" for text, share in token.alternatives)
            yield f"likeliest: {', '.join(likeliest)}"
        if index in self.column.silenced:
            yield "silenced: clip leaves it no gradient"


def _legend(columns: Sequence[Column], names: Mapping[str, str], heat: Heat) -> str:
    keys = " ".join(
        f'<span class="kit-token kit-like-{side}" style="--kit-share: 100%">likelier under '
        f"{literal_html(names[side])}</span>"
        for side in dict.fromkeys(side for pair in heat.sides for side in pair)
    )
    silenced = sum(len(column.silenced) for column in columns)
    return (
        f'<p class="kit-key kit-key-heat">{keys} Full colour: {nats(heat.scale)} nats, '
        f"{math.exp(min(heat.scale, 700)):.3g} times as likely.</p>\n\n"
        f'<p class="kit-key kit-key-silenced">Underlined, {silenced} in all: tokens that clip '
        "leaves without gradient.</p>"
    )


# --- in words ------------------------------------------------------------------------------------


def percent(probability: float) -> str:
    """With three figures, and never as a power of ten."""
    share = 100 * probability
    if share < 0.001:
        return "under 0.001 %" if share else "0 %"
    return f"{share:.3g} %" if share >= 0.1 else f"{share:.3f} %"


def nats(value: float, sign: str = "") -> str:
    """With three decimals, and no zero below zero."""
    return f"{value:{sign}.3f}" if round(value, 3) else "0.000"
