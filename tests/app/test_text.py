"""Shown text: hostile text stays text, formulas are typeset, colours, words and ratios add up."""

from __future__ import annotations

import html
import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from kit.app import inert
from kit.app.compare import ratios, reader
from kit.app.compare.alignment import align, differing, first_difference
from kit.app.compare.ratios import Ratios, ratio_chart
from kit.app.compare.reader import (
    Column,
    heads_html,
    heat_of,
    nats,
    percent,
    rows_of,
    text_markdown,
)
from kit.app.compare.tokens import Token
from kit.app.inert import (
    LATEX_DELIMITERS,
    MAX_CHARACTERS,
    MAX_FORMULA,
    MAX_FORMULAS,
    inert_markdown,
    literal_html,
    printable,
)
from kit.app.parts import PROSE
from kit.config import Clip, ObjectiveConfig
from kit.errors import AdapterError
from kit.training.objectives import Denominator, LossInputs, policy_loss

(INLINE, END), (DISPLAY, DISPLAY_END) = (
    (str(pair["left"]), str(pair["right"])) for pair in LATEX_DELIMITERS
)
HOSTILE = r"""<script>window.pwned = 1</script>
<img src=x onerror="window.pwned = 2"><svg onload=alert(1)><iframe src=//example.org></iframe>
[link](javascript:window.pwned=3) ![picture](http://picture.example/x.png) <http://auto.example>
https://bare.example www.bare.example someone@bare.example [ref]

[ref]: http://ref.example "title"

# heading
setext
======
- list
1. numbered
> quote
    indented code
```mermaid
graph TD; A-->B
```
| a | b |
|---|---|
| 1 | 2 |
**bold** _em_ ~~gone~~ `code` &lt;b&gt; ${window.pwned=4} {{value}} %%%LATEX_BLOCK_0%%%
$\href{javascript:alert(1)}{x}$ $\includegraphics{http://tex.example/x.png}$ $\rule{9em}{9em}$
$\def\a{\a\a}\a$ $\newcommand{\b}{\b\b}\b$ $\htmlId{x}{y}$ $\phantom{x}$ $\color{white}x$ $50% off$
"""


def formulas(text: str) -> list[str]:
    """What `text` hands over to KaTeX."""
    return re.findall(f"[{INLINE}{DISPLAY}](.*?)[{END}{DISPLAY_END}]", inert_markdown(text))


def is_literal(text: str) -> bool:
    """Whether `text` reaches the page whole, and nothing in it can be read as markup."""
    shown = inert_markdown(text)
    # letters, digits, spaces, line breaks, other scripts; punctuation only as its number
    harmless = re.fullmatch(r"(?:&#\d{1,5};|[^!-/:-@\[-`{-~])*", shown)
    return bool(harmless) and html.unescape(shown).replace("\xa0", " ") == text


# --- inert text ----------------------------------------------------------------------------------


def test_hostile_text_is_literal_to_the_last_character() -> None:
    assert is_literal(HOSTILE)


def test_punctuation_becomes_character_references() -> None:
    assert inert_markdown("a*b*\n  <i>") == "a&#42;b&#42;\n&#160;&#160;&#60;i&#62;"
    assert inert_markdown("a  b\n\n\tc") == "a &#160;b\n\n&#160;&#160;&#160;&#160;c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("so $x_1<2$.", f"so {INLINE}x_1< 2{END}&#46;"),
        (r"\(a\)", f"{INLINE}a{END}"),
        ("a\n$$b\n+ c$$\nd", f"a{DISPLAY}b + c{DISPLAY_END}d"),
        (r"\[ \frac{1}{2} \]", rf"{DISPLAY}\frac{{1}}{{2}}{DISPLAY_END}"),
        (
            r"\begin{align*}a&=b\\[9999em]&lt;c\end{align*}",  # the gap goes, & cannot join "lt;"
            rf"{DISPLAY}\begin{{align*}}a& =b\\ & lt;c\end{{align*}}{DISPLAY_END}",
        ),
        (r"$\begin{cases}[a]\\ [b]\end{cases}$", None),
        (r"$x\!\!y$", f"{INLINE}xy{END}"),
        (r"$\text{if } x \in \{1, 2\}$", None),
        (r"$\$5.00 + 20\%$", None),
        (r"$\left\{ \left( a \right] \right.$", None),
    ],
)
def test_vetted_formulas_reach_katex(text: str, shown: str | None) -> None:
    if shown is None:  # as it is
        shown = INLINE + text[1:-1].replace(r"\\ [", r"\\{} [") + END
    assert inert_markdown(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $7",
        "$20 - $8 = $12",
        "Tom has $20. He spends $8, so $20-$8=$12 are left",
        "he paid $5 to him in US$",
        "$ x$ and $y $",
        r"\$5 and 6$",
        "20$ and 30$",
        "a $x\n\ny$",
        "$x",
        r"\\(a\\)",
        r"$a & b$",
        r"$\left( a$",
        r"${a$",
        r"$a}$",
        r"$\left( \{a \right)}$",
        r"$\begin{matrix}a\end{pmatrix}$",
        r"$\begin{tabular}a\end{tabular}$",
        r"$\frac{1}{2$",
        r"$$\hspace{9999em}$$",
        r"\[\kern9999em x\]",
        r"\(\raisebox{99em}{x}\)",
        r"$\verb|x|$",
        r"$\text{\url{http://x.example}}$",
        r"$\unicode{x}$",
        r"$\htmlClass{a}{b} + \frac{1}{2}$",
        r"$a#b$",
        r"$\llap{over}$",
        "$$" + "x" * MAX_FORMULA + "$$",
        "$" + "{" * 11 + "x" + "}" * 11 + "$",
        "$" + r"\left(" * 11 + "x" + r"\right)" * 11 + "$",
    ],
)
def test_refused_formulas_and_money_are_literal(text: str) -> None:
    assert is_literal(text)


def test_nesting_is_bounded_exactly() -> None:
    assert formulas("$" + "{" * 10 + "x" + "}" * 10 + "$") == ["{" * 10 + "x" + "}" * 10]


def test_a_refused_formula_does_not_spoil_the_next() -> None:
    assert formulas(r"$\def\a{b}$ then $c$ and $\frac 1 2$") == ["c", r"\frac 1 2"]


def test_a_formula_never_ends_in_a_backslash() -> None:
    """It would escape the delimiter behind it, and the formula would run on."""
    assert formulas("$$a\\ $$ $b$") == ["b"]


def test_formulas_are_bounded_in_number_and_in_all() -> None:
    assert len(formulas("$x$ " * (MAX_FORMULAS + 5))) == MAX_FORMULAS
    long = "$" + "x" * 1_496 + "$ "  # 1,498 characters with its delimiters: six fit into 10,000
    assert len(formulas(long * 9)) == 6


def test_text_cannot_bring_its_own_delimiters() -> None:
    attack = f"{INLINE}\\href{{javascript:alert(1)}}{{x}}{END}"
    assert inert_markdown(attack) == inert_markdown(r"\href{javascript:alert(1)}{x}")
    assert INLINE not in inert_markdown(attack)


def test_printable_drops_what_hides_or_reorders() -> None:
    hidden = "\x00\x07\x1b\x7f\u200b\u202e\u2066\u200e\ufeff\ue123\U000f0000\U000e0041"
    assert printable(f"a{hidden}b") == "ab"
    assert printable("a\r\nb\rc\u2028d\x0b\te") == "a\nb\nc\nd\te"
    assert printable("x\ud800y") == "x\ufffdy"
    assert printable("👩\u200d👧 é ع 数") == "👩\u200d👧 é ع 数"
    assert printable("a" + "\u0301" * 50 + "b") == "a" + "\u0301" * 4 + "b"


def test_absurd_lengths_are_cut_with_a_note() -> None:
    assert inert_markdown("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS
    shown = inert_markdown("x" * (MAX_CHARACTERS + 1_234))
    assert shown == "x" * MAX_CHARACTERS + "\n\n(1,234 further characters are not shown)"


@pytest.mark.parametrize("unit", ["$a ", "$", r"\[", r"\begin{align}", "$$a", "{", "$a\n", r"\(\["])
def test_unclosed_formulas_cost_little(unit: str) -> None:
    start = time.thread_time()
    inert_markdown(unit * (MAX_CHARACTERS // len(unit)))
    assert time.thread_time() - start < 3  # a scan to the end from each opener takes minutes


def test_literal_html_is_one_line_in_which_nothing_is_markup() -> None:
    assert literal_html("<b>\n'%") == "&#60;b&#62;&#10;&#39;&#37;"


# --- the reading page ----------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements of a fragment, each with its attributes and the text directly in it."""

    VOID = frozenset({"br", "img", "input"})

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(fragment)
        self.close()
        assert not self.open, "an element is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts: list[str] = []
        self.elements.append((tag, {name: value or "" for name, value in attrs}, texts))
        if tag not in self.VOID:
            self.open.append((tag, texts))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1][1].append(data)

    def tags(self) -> set[str]:
        return {tag for tag, _, _ in self.elements}

    def of_class(self, name: str) -> list[tuple[dict[str, str], str]]:
        return [
            (attrs, "".join(texts))
            for _, attrs, texts in self.elements
            if name in attrs.get("class", "").split()
        ]


def token(text: str, left: float, right: float, base: float = -1.0) -> Token:
    return Token(text, {"left": left, "right": right, "base": base}, ((" b", 0.25), ("\n", 0.125)))


TOKENS = [
    token("So", -0.5, -2.0),  # +1.5 nats: three quarters of the largest
    token(" 4", -3.0, -1.0),  # -2: the largest
    token("", -1.0, -1.0),
    token("\n<b>", -1.0, -0.7),  # -0.3: 15 %
]


def column(tokens: list[Token], side: str = "left", **more: Any) -> Column:
    text = "".join(one.text for one in tokens)
    return Column(side, side, side.upper(), text, scored=tokens, **more)


def read(*columns: Column, to_base: bool = False) -> Page:
    """The page of two columns, the second one a copy of a first one that is alone."""
    both = (
        columns if len(columns) > 1 else (*columns, replace(columns[0], side="right", name="RIGHT"))
    )
    return Page(text_markdown(both, heat=heat_of(both, to_base=to_base)))


def tokens_of(page: Page, side: str = "left") -> list[tuple[dict[str, str], str]]:
    return [found for found in page.of_class("kit-token") if f"kit-at-{side}-" in found[0]["class"]]


def test_heat_has_the_scale_of_the_largest_difference() -> None:
    found = tokens_of(read(column(TOKENS)))
    # the last token stands on two lines: its break on the first, "<b>" on the second
    assert [text for _, text in found] == ["So", " 4", "", "", "<b>"]
    shares = [attrs["style"].removeprefix("--kit-share: ") for attrs, _ in found]
    assert shares == ["75%", "100%", "0%", "15%", "15%"]
    likelier = [attrs["class"].split()[2] for attrs, _ in found]
    assert likelier == ["kit-like-left", *["kit-like-right"] * 4]
    both = (column(TOKENS), column(TOKENS, "right"))
    shown = text_markdown(both, heat=heat_of(both, to_base=False))
    assert "2.000 nats, 7.39 times" in shown  # e^2 = 7.389
    to_base = tokens_of(read(column(TOKENS), to_base=True))
    assert [attrs["class"].split()[2] for attrs, _ in to_base][:2] == [
        "kit-like-left",  # -0.5 against the base's -1
        "kit-like-base",
    ]


def test_differences_too_small_to_mean_anything_stay_pale() -> None:
    tiny = [token("a", -1.0, -1.0000001)]
    assert tokens_of(read(column(tiny)))[0][0]["style"] == "--kit-share: 0%"


def test_a_token_tells_its_facts() -> None:
    facts = tokens_of(read(column(TOKENS, silenced=[1])))[1][0]["label"]
    assert facts.split("\n") == [
        "token 2: “ 4”",
        "LEFT: 4.98 %, log-probability -3.000 nats",  # e^-3 = 0.0498
        "RIGHT: 36.8 %, log-probability -1.000 nats",
        "base: 36.8 %, log-probability -1.000 nats",
        "log of LEFT over RIGHT: -2.000 nats",
        "likeliest: “ b” 25 %, “↵” 12.5 %",
        "silenced: clip leaves it no gradient",
    ]


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.517, "51.7 %"),
        (1.0, "100 %"),
        (7.87e-8, "under 0.001 %"),
        (0.0, "0 %"),
        (5e-4, "0.050 %"),
    ],
)
def test_no_probability_is_a_power_of_ten(probability: float, words: str) -> None:
    assert percent(probability) == words


def test_no_zero_is_below_zero() -> None:
    assert (nats(-0.0004), nats(-0.0006), nats(0.0004, "+")) == ("0.000", "-0.001", "0.000")


def test_the_fork_has_both_probabilities() -> None:
    left = column([token("So", -0.1, -0.1), token(" 4", math.log(0.517), -3.0)])
    right = column([token("So", -0.1, -0.1), token(" 5", -3.0, math.log(0.478))], "right")
    found = read(left, replace(right, name="<b>")).of_class("kit-fork")
    assert [text for _, text in found] == ["token 2: 51.7 % against 47.8 %"] * 2
    said = f"{left.name} gives its own “ 4” 51.7 %\n<b> gives its own “ 5” 47.8 %"
    assert [attrs["label"] for attrs, _ in found] == [said] * 2
    shorter = column([token("So", -0.1, -0.1)], "right")
    assert "against the end" in str(read(left, shorter).of_class("kit-fork"))
    assert "RIGHT has ended" in str(read(left, replace(shorter, name="RIGHT")).of_class("kit-fork"))
    assert read(left, replace(left, side="right")).of_class("kit-fork") == []
    stored = [replace(side, scored=()) for side in (left, right)]
    assert text_markdown(stored).count("first difference") == 2


def test_marks_of_tokens() -> None:
    page = read(column([*TOKENS, token("<|end|>", -1.0, -1.0)], silenced=[0, 3, 99]))
    classes = [attrs["class"] for attrs, _ in tokens_of(page)]
    assert ["kit-silenced" in names for names in classes] == [True, False, False, True, True, False]
    assert ["kit-part" in names for names in classes] == [False, False, True, False, False, False]
    ended = Column("left", "left", "L", "So", scored=[TOKENS[0], token("<|end|>", -1, -1)])
    (attrs, text) = tokens_of(read(ended))[-1]
    assert "kit-end" in attrs["class"] and text == "<|end|>"


def words(left: str, right: str) -> tuple[list[str], list[str]]:
    ours, theirs = differing(left, right)
    return [left[i:j] for i, j in ours], [right[i:j] for i, j in theirs]


def test_differing_words_keep_numbers_whole() -> None:
    assert words("He has 5.25 clips.", "He has 5.75 clips.") == (["5.25"], ["5.75"])
    assert words("x_1 is it", "x_2 is") == (["1", " it"], ["2"])
    assert words("same", "same") == ([], [])


def test_lines_stand_beside_what_is_like_them() -> None:
    left = ["36 / 6 = 6 days", "so the answer", "#### 6"]
    right = ["James eats twice", "36 / 12 = 3 days", "#### 3"]
    assert align(left, right) == [(None, 0), (0, 1), (1, None), (2, 2)]
    assert align(["a", "b"], ["a", "b"]) == [(0, 0), (1, 1)]
    assert align([], ["a"]) == [(None, 0)]
    many = [f"line {i} {i * 7}" for i in range(200)]
    other = [f"row {i} {i * 3}" for i in range(190)]
    indices = list(zip(*align(many, other), strict=True))
    assert [i for i in indices[0] if i is not None] == list(range(200))
    assert [i for i in indices[1] if i is not None] == list(range(190))


def test_a_line_is_dimmed_where_both_say_the_same() -> None:
    left, right = Column("left", "left", "L", "a\nb 1"), Column("right", "right", "R", "a\nb 2")
    page = Page(text_markdown([left, right]))
    assert [attrs["class"] for attrs, _ in page.of_class("kit-row")] == [
        "kit-row kit-same",
        "kit-row",
    ]
    assert [text for _, text in page.of_class("kit-differs")] == ["1", "2"]


def test_the_bases_lines_stand_by_the_lines_of_the_first() -> None:
    left, right = Column("left", "left", "L", "a 1\nb 2"), Column("right", "right", "R", "a 1\nb 3")
    base = Column("base", "base", "B", "x 9\na 1\nb 2\nc 4")
    assert [row.lines for row in rows_of([left, right, base])] == [
        ((0,), (0,), (0, 1)),
        ((1,), (1,), (2, 3)),
    ]


def test_what_differs_is_about_the_pair_whatever_the_base_says() -> None:
    left, right = Column("left", "left", "L", "a\nb 1"), Column("right", "right", "R", "a\nb 2")
    base = Column("base", "base", "B", "b 1")
    for third in ([], [base]):
        rows = Page(text_markdown([left, right, *third])).of_class("kit-row")
        assert [attrs["class"] for attrs, _ in rows] == ["kit-row kit-same", "kit-row"]


def test_a_formula_is_typeset_once_and_has_its_tokens_beside_it() -> None:
    parts = [token("is $", -1, -1), token("x^2", -1, -2), token("$ so", -1, -1)]
    both = (column(parts), column(parts, "right"))
    shown = text_markdown(both, heat=heat_of(both, to_base=False))
    (maths, _) = Page(shown).of_class("kit-maths")
    assert maths[1] == f"{INLINE}x^2{END}"
    sources = Page(shown).of_class("kit-source")
    assert len(sources) == 2 and "x&#94;2" in shown


def test_a_fork_inside_a_formula_is_marked_in_every_view() -> None:
    left, right = (
        column([token("is $x", -1, -1), token(end, -1, -2)], side)
        for side, end in (("left", "^2$"), ("right", "^3$"))
    )
    for both in ((left, right), (replace(left, scored=()), replace(right, scored=()))):
        heat = heat_of(both, to_base=False) if both[0].scored else None
        shown = text_markdown(both, heat=heat)
        assert shown.count('<span class="kit-maths kit-differs"><span class="kit-fork"') == 2


def test_what_is_shown_is_the_text_and_nothing_else() -> None:
    for text in (HOSTILE, "</mark><script>alert(1)</script>\n\n<ins>$x$</ins>", "", "\n\n"):
        other = text.upper() or "x"
        for one in (Column("left", "left", "L", text), column([token(text, -1, -1)])):
            both = (one, Column("right", "right", "R", other, scored=[token(other, -1, -1)]))
            heat = heat_of(both, to_base=False) if one.scored else None
            page = Page(text_markdown(both, heat=heat))
            assert page.tags() <= {"div", "span", "mark", "i", "br", "p"}
            assert {name for _, attrs, _ in page.elements for name in attrs} <= {
                *("class", "style", "tabindex", "label", "id")
            }


def test_names_are_text_in_the_heads() -> None:
    attack = "\"'><img src=x onerror=alert(1)>"
    page = Page(heads_html([Column(s, s, attack, "", answer=attack) for s in ("left", "right")]))
    assert "img" not in page.tags()
    assert attack in [text for _, _, texts in page.elements for text in texts]


def test_long_texts_cost_little_and_say_what_is_missing() -> None:
    # every word as frequent as a word may be before it stops to count as one: the costly case
    numbers = [str(7 * i % 101) for i in range(20_000)]
    for left, right in (
        (" ".join(numbers), " ".join(sorted(numbers))),
        ("\n".join(numbers), "\n".join(sorted(numbers))),
        ("\n" * 60_000, "a\n" * 30_000),
    ):
        both = [Column("left", "left", "L", left), Column("right", "right", "R", right)]
        start = time.thread_time()
        shown = text_markdown(both)
        assert time.thread_time() - start < 5
        assert "further characters are not shown" in shown and shown.count("kit-row ") <= 2_001


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_log_probability_that_is_none_names_its_token(value: float) -> None:
    message = f"token 2 has the log-probability {value} under right"
    with pytest.raises(AdapterError, match=message):
        read(column([TOKENS[0], token("x", -1.0, value)]))


def luminance(colour: tuple[float, float, float]) -> float:
    """WCAG 2.1's relative luminance of an sRGB colour between 0 and 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def test_contrast_by_hand() -> None:
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21, abs=1e-12)
    # WCAG's own example of a grey that just passes on white
    assert contrast(rgb("#767676"), rgb("#ffffff")) == pytest.approx(4.54, abs=0.005)


def colours(theme: str) -> dict[str, tuple[float, float, float]]:
    """The reading page's, by name."""
    rule = re.search(
        rf"^{re.escape(theme)}\.gradio-container[^{{]*{{(.*?)}}", reader.STYLE, re.S | re.M
    )
    assert rule is not None
    return {key: rgb(value) for key, value in re.findall(r"--kit-([\w-]+): (#\w{6})", rule[1])}


@pytest.mark.parametrize("theme", ["", ".dark "])
def test_text_can_be_read_on_every_colour(theme: str) -> None:
    found = colours(theme)
    for arm in ("left", "right", "base"):
        assert contrast(found[arm], found["page"]) >= 4.5, arm
        assert contrast(found["text"], found[f"{arm}-tint"]) >= 4.5, arm
        assert contrast(found[arm], rgb(BAND[theme])) >= 3, arm  # graphics, WCAG 1.4.11
        for share in range(101):
            pairs = zip(found[f"{arm}-full"], found["page"], strict=True)
            red, green, blue = (a * share / 100 + b * (1 - share / 100) for a, b in pairs)
            assert contrast((red, green, blue), found["text"]) >= 4.5, (arm, share)
    assert contrast(found["dim"], found["page"]) >= 4.5


BAND = {
    theme: re.search(rf"^{theme}\.kit-ratios {{ --kit-band: (#\w{{6}})", ratios.STYLE, re.M)[1]  # type: ignore[index]
    for theme in ("", ".dark ")
}


@pytest.mark.parametrize(
    ("a", "b", "index"),
    [
        ([], [], None),
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 5, 3], 1),
        ([4], [1], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [7], 0),
    ],
)
def test_first_difference(a: list[int], b: list[int], index: int | None) -> None:
    assert first_difference(a, b) == index


# --- ratios --------------------------------------------------------------------------------------


def measured(*values: float, positive: bool = True, **settings: float) -> Ratios:
    """Ratios of tokens whose left side is `values` times as likely as the base."""
    tokens = [Token("x", {"left": math.log(v) - 200, "base": -200.0}, ()) for v in values]
    chosen = {"alpha": 0.1, "epsilon_low": 0.2, "epsilon_high": 0.28, **settings}
    return ratios.ratios(tokens, "left", "base", positive=positive, **chosen)


def test_ratios_by_hand() -> None:
    found = measured(1.0, 3.0, 0.5, 1.25, 0.9)
    assert found.raw == pytest.approx((1.0, 3.0, 0.5, 1.25, 0.9), abs=1e-12)
    # 0.9 r + 0.1
    assert found.smoothed == pytest.approx((1.0, 2.8, 0.55, 1.225, 0.91), abs=1e-12)
    assert found.silenced == (1,)  # above 1.28
    assert measured(1.0, 3.0, 0.5, 1.25, 0.9, positive=False).silenced == (2,)  # below 0.8


def test_silenced_tokens_are_those_of_the_objective() -> None:
    values = [0.1, 0.5, 0.79, 0.81, 0.99, 1.0, 1.01, 1.27, 1.29, 2.0, 50.0]
    region = Clip(name="clip")
    logprobs = torch.tensor([values], dtype=torch.float64).log()
    zeros, mask = torch.zeros_like(logprobs), torch.ones_like(logprobs, dtype=torch.bool)
    for advantage in (1.0, -1.0):
        inputs = LossInputs(
            logprobs=logprobs,
            old=zeros,
            sampler=zeros,
            base=zeros,
            entropy=zeros,
            advantages=torch.tensor([advantage], dtype=torch.float64),
            mask=mask,
        )
        size = len(values)
        denominator = Denominator(tokens=size, completions=1, max_tokens=size)
        stats = policy_loss(inputs, denominator, ObjectiveConfig(trust_region=region)).stats
        expected = tuple(stats.silenced.nonzero().flatten().tolist())
        found = measured(
            *values,
            positive=advantage > 0,
            epsilon_low=region.epsilon_low,
            epsilon_high=region.epsilon_high,
        )
        assert found.silenced == expected and len(expected) == 3


def test_ratios_beyond_floats_stay_finite() -> None:
    tokens = [Token("x", {"left": 0.0, "base": -5_000.0}, ()), token("y", -5_000.0, 0.0, 0.0)]
    found = ratios.ratios(
        tokens, "left", "base", alpha=0.1, epsilon_low=0.2, epsilon_high=0.28, positive=True
    )
    assert found.raw == (math.exp(700), math.exp(-700)) and found.silenced == (0,)
    chart = ratio_chart({"L": found})
    assert "nan" not in chart and "inf" not in chart


def test_a_damaged_adapter_is_named() -> None:
    with pytest.raises(AdapterError, match="token 1 has the log-probability nan under left"):
        measured(math.nan)


def chart_of(found: Ratios) -> str:
    return ratio_chart({found.side: found})


def drawing(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart[chart.index("<svg") : chart.index("</svg>") + 6])


def dots(svg: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(one.get("cx", "")), float(one.get("cy", ""))) for one in svg.iter("circle")]


def marks_of(svg: ElementTree.Element) -> list[str]:
    return [p.get("d", "") for p in svg.iter("path") if "kit-mark" in p.get("class", "")]


def smooth(svg: ElementTree.Element) -> list[tuple[float, float]]:
    line = svg.find(".//polyline")
    assert line is not None
    pairs = [point.split(",") for point in line.get("points", "").split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_chart_draws_both_on_one_logarithmic_scale() -> None:
    svg = drawing(chart_of(measured(0.01, 0.1, 1.0, 10.0, positive=False, epsilon_low=1.0)))
    raw, line = dots(svg), smooth(svg)
    assert [x for x, _ in raw] == [x for x, _ in line]
    steps = [raw[i][1] - raw[i + 1][1] for i in range(3)]
    assert min(steps) > 0  # more is higher
    assert steps == pytest.approx([steps[0]] * 3, abs=0.11)  # decades are equal, to the rounding
    # smoothed 0.01 is 0.109, just above where raw 0.1 is: log10(1.09) of a decade
    assert raw[1][1] - line[0][1] == pytest.approx(math.log10(1.09) * steps[0], abs=0.11)
    assert raw[2][1] == line[2][1]  # r = 1 stays 1
    band = svg.find("rect")
    assert band is not None  # down to the bottom: with epsilon_low 1 there is no lower bound
    bottom = float(band.get("y", "")) + float(band.get("height", ""))
    assert bottom == pytest.approx(220, abs=0.11)
    decade = steps[0]
    assert float(band.get("y", "")) == pytest.approx(
        raw[2][1] - math.log10(1.28) * decade, abs=0.11
    )


@pytest.mark.parametrize(("positive", "index", "up"), [(True, 2, True), (False, 0, False)])
def test_chart_marks_silenced_tokens_by_shape(positive: bool, index: int, up: bool) -> None:
    svg = drawing(chart_of(measured(0.5, 1.0, 2.0, positive=positive)))
    marks = marks_of(svg)
    assert len(marks) == 1 and len(dots(svg)) == 2
    [(x, slope)] = re.findall(r"M([\d.]+) [\d.]+h9l-4.5 (-?\d)z", marks[0])
    assert float(x) + 4.5 == pytest.approx(smooth(svg)[index][0], abs=0.11)
    assert (int(slope) < 0) == up  # upwards is towards smaller y


def test_chart_says_it_in_words_for_both_sides() -> None:
    right = replace(measured(1.0, 0.5, positive=False), side="right")
    chart = ratio_chart({"clip": measured(0.5, 1.0, 2.0, 3.0), "pspo": right})
    svg = drawing(chart)
    assert svg.findtext("title") == "Ratio of each token's probability to base"
    assert svg.findtext("desc") == (
        "clip: 4 tokens, 2 of them without gradient under clip; ratios from 0.5 to 3. "
        "pspo: 2 tokens, 1 of them without gradient under clip; ratios from 0.5 to 1."
    )
    assert "clip's range, 0.8 to 1.28" in chart
    cells = ["".join(texts) for tag, _, texts in Page(chart).elements if tag in ("th", "td")]
    assert cells == [
        *("", "advantage", "tokens", "silenced", "largest r", "smallest r"),
        *("clip", "positive", "4", "2", "3", "0.5"),
        *("pspo", "negative", "2", "1", "1", "0.5"),
    ]
    titles = [one.text for one in svg.iter("title")][1:]
    assert titles[0] == "token 1 “x”: r = 0.5" and len(titles) == 6
    hostile = replace(measured(1.0), texts=("</title><img src=x>",))
    assert "<img" not in ratio_chart({"</title><img src=x>": hostile})


@pytest.mark.parametrize("count", [1, 2, 3, 7, 60, 1024])
@pytest.mark.parametrize("exponent", [0.0, 0.01, 0.3, 1.0, 3.0, 30.0])
def test_chart_holds_any_number_of_any_ratios(count: int, exponent: float) -> None:
    values = [10.0 ** (exponent * (1 if i % 2 else -1)) for i in range(count)]
    svg = drawing(chart_of(measured(*values)))
    places = dots(svg) + smooth(svg)
    assert all(52 <= x <= 1192 and 8 <= y <= 220 for x, y in places)
    assert len(dots(svg)) + len(marks_of(svg)) == count
    # labels: at least two a side, none over its neighbour
    labels = [text for text in svg.findall("text") if text.get("transform") is None]
    rows = [float(t.get("y", "")) for t in labels if t.get("text-anchor") == "end"][1:]
    assert 2 <= len(rows) <= 14 and all(a - b >= 12 for a, b in pairwise(rows))
    columns = sorted(float(t.get("x", "")) for t in labels if t.get("text-anchor") == "middle")
    assert len(columns) >= min(count, 2)
    assert all(b - a >= 20 for a, b in pairwise(columns))


def test_ticks_are_named_by_their_values() -> None:
    chart = chart_of(measured(1e-30, 1e30))
    assert ">10⁻³⁰<" in chart and ">10²⁰<" in chart and ">1<" in chart
    assert ">0.01<" in chart_of(measured(0.005, 200.0))


def test_chart_of_nothing_says_so() -> None:
    assert chart_of(measured()) == "<p>No completion has a token.</p>"


# --- in the browser ------------------------------------------------------------------------------

MATHS = r"""$a<b$ and $x_1 * y_2 * z_3$
$\begin{pmatrix} a & <img/src=x/onerror="window.pwned=5"> \\ c &lt; d \end{pmatrix}$
\[\begin{align*} \frac{1}{2} &< 1 \\[3em] [c] &> \boxed{\sqrt[3]{2}} \end{align*}\]
\(\text{if } x'\)"""
BOMBS = "\n".join(
    [
        "$" + r"\sqrt" * 390 + " x$",
        "$" + r"\hat" * 400 + " x$",
        "$x" + "'" * 1_900 + "$",
        "$$x" + r"\\" * 900 + "$$",
        ("$" + r"\sqrt{\frac{a}{b}}+" * 100 + "1$ ") * 20,
    ]
)


@dataclass
class Visit:
    """A page with all of the above, and what it asked the network for."""

    page: Any
    address: str
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def visit() -> Iterator[Visit]:
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    gr = pytest.importorskip("gradio", reason="gradio is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

    def markdown(text: str, name: str) -> None:
        gr.Markdown(
            inert_markdown(text),
            latex_delimiters=LATEX_DELIMITERS,
            sanitize_html=True,
            line_breaks=True,
            elem_id=name,
        )

    with gr.Blocks() as blocks:
        markdown(HOSTILE, "hostile")
        markdown(MATHS, "maths")
        markdown(BOMBS, "bombs")
        hostile = Token(HOSTILE, {"left": -1.0, "right": -2.0}, ((HOSTILE, 0.5),))
        both = column([*TOKENS, hostile]), column([*TOKENS[:1], hostile], "right")
        gr.HTML(heads_html(both), elem_id="heads")
        with gr.Column(elem_id="kit-reader"):
            gr.Markdown(text_markdown(both, heat=heat_of(both, to_base=False)), **PROSE)
        stored = [Column(s, s, s, text) for s, text in (("left", HOSTILE), ("right", MATHS))]
        gr.Markdown(text_markdown(stored), elem_id="diff", **PROSE)
        gr.HTML(chart_of(measured(*[1.5**i for i in range(-20, 20)])), elem_id="chart")
    styles = inert.STYLE + reader.STYLE + ratios.STYLE
    with api.sync_playwright() as playwright:
        browser = None
        for path in (None, shutil.which("chromium"), shutil.which("google-chrome")):
            with suppress(api.Error):
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
                break
        if browser is None:
            pytest.skip("no Chromium: `playwright install chromium`")
        _, address, _ = blocks.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, css=styles
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        found = Visit(page, address)
        page.on("request", lambda request: found.requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#maths .katex")
        page.wait_for_selector("#bombs .katex")
        page.wait_for_selector("#chart svg")
        page.evaluate("document.querySelector('#kit-reader').dataset.view = 'heat'")
        page.wait_for_load_state("networkidle")
        yield found
        browser.close()
        blocks.close()
    patch.undo()


def test_nothing_hostile_comes_alive(visit: Visit) -> None:
    kinds = "script, img, svg, iframe, a, h1, h2, h3, h4, h5, h6, table, ul, ol, blockquote, pre"
    kinds += ", code, strong, em, del, form, input, style, link, .katex, .mermaid"
    assert visit.page.locator("#hostile").locator(kinds).count() == 0
    assert visit.page.locator("#kit-reader, #diff").locator("script, img, iframe, a").count() == 0
    assert visit.page.locator("#diff .kit-is-right .katex").count() >= 4  # typeset in place
    shown = visit.page.locator("#hostile").inner_text().replace("\xa0", " ")
    assert shown.split("\n")[0] == HOSTILE.split("\n")[0]
    for line in HOSTILE.strip().split("\n"):
        assert line in shown
    assert visit.page.evaluate("window.pwned") is None


def test_nothing_leaves_the_page(visit: Visit) -> None:
    remote = [url for url in visit.requests if not url.startswith(("data:", "blob:"))]
    assert len(remote) > 5  # the page's own files
    assert [url for url in remote if not url.startswith(visit.address)] == []


def test_formulas_survive_the_markdown(visit: Visit) -> None:
    sources = visit.page.locator("#maths annotation").all_text_contents()
    assert [" ".join(source.split()) for source in sources] == [
        "a< b",
        "x_1 * y_2 * z_3",
        r'\begin{pmatrix} a & < img/src=x/onerror="window.pwned=5"> \\ c & lt; d \end{pmatrix}',
        r"\begin{align*} \frac{1}{2} & < 1 \\{} [c] & > \boxed{\sqrt[3]{2}} \end{align*}",
        r"\text{if } x'",
    ]
    assert visit.page.locator("#maths .katex-error, #maths img").count() == 0
    assert visit.page.locator("#maths .katex-display").count() == 1


def test_bombs_stay_small(visit: Visit) -> None:
    assert visit.page.locator("#bombs *").count() < 50_000
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_token_shows_its_facts_where_it_is(visit: Visit) -> None:
    token = visit.page.locator("#kit-reader .kit-at-left-1")
    after = "element => getComputedStyle(element, '::after').content"
    assert token.evaluate(after) == "none"
    token.hover()
    assert "token 2: “ 4”" in token.evaluate(after)
    visit.page.mouse.move(0, 0)
    token.focus()
    assert "token 2: “ 4”" in token.evaluate(after)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_on_the_page_can_be_read(visit: Visit, dark: bool) -> None:
    """Gradio's own rules do not win over the map's colours, and color-mix does what is computed."""
    visit.page.evaluate(f"document.body.classList.toggle('dark', {str(dark).lower()})")
    pairs = visit.page.eval_on_selector_all(
        "#kit-reader .kit-cell .kit-token",
        "all => all.map(e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor])",
    )
    assert len({background for _, background in pairs}) > 3

    def parsed(colour: str) -> tuple[float, float, float]:
        red, green, blue, *rest = map(float, re.findall(r"[\d.]+", colour))
        assert rest in ([], [1.0]), "a translucent colour"
        scale = 1 if colour.startswith("color(") else 255
        return red / scale, green / scale, blue / scale

    theme = colours(".dark " if dark else "")
    for text, background in pairs:
        assert parsed(text) == pytest.approx(theme["text"], abs=1e-6)
        assert contrast(parsed(text), parsed(background)) >= 4.5
