r"""Text of models and data sets made inert for a page, with only vetted maths typeset.

Everything outside a formula becomes character references, which no Markdown or HTML parser reads as
markup. A formula, `$…$`, `$$…$$`, `\(…\)`, `\[…\]` or a bare `\begin{align*}…`, reaches KaTeX only
if it is short, balanced, shallow and made of the commands below: none of them defines a macro,
loads, links, hides, colours or moves anything out of its place.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

MAX_CHARACTERS = 40_000  # of a text; the rest is counted, not shown
MAX_FORMULAS = 400
MAX_FORMULA = 2_000  # characters
MAX_MATHS = 10_000  # characters of all formulas; KaTeX makes about three elements of each
MAX_DEPTH = 10  # of braces, \left…\right and environments in each other
MAX_MARKS = 4  # combining marks on one letter; a tower of them paints over its neighbours

_INLINE, _INLINE_END, _DISPLAY, _DISPLAY_END = "\ue000", "\ue001", "\ue002", "\ue003"
LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": _INLINE, "right": _INLINE_END, "display": False},
    {"left": _DISPLAY, "right": _DISPLAY_END, "display": True},
]
"""For `gr.Markdown(latex_delimiters=…)`: private-use characters, which no shown text contains."""

STYLE = r"""
.katex-display { overflow-x: auto; overflow-y: hidden; padding-block: 0.2em; }
"""

_COMMANDS = """
    frac dfrac tfrac cfrac binom dbinom tbinom over choose sqrt boxed substack pmod bmod mod not
    text textbf textit textrm textnormal mbox emph mathrm mathbf mathit mathbb mathcal mathfrak
    mathsf mathtt mathscr boldsymbol bold bm operatorname mathop limits nolimits displaystyle
    textstyle overline underline overrightarrow overleftarrow overleftrightarrow overset underset
    stackrel overbrace underbrace widehat widetilde hat tilde bar vec dot ddot acute grave breve
    check cancel bcancel xcancel left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr
    Biggl Biggr quad qquad hline cr tag
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi
    varpi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi
    Pi Sigma Upsilon Phi Psi Omega
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp lim limsup liminf
    max min sup inf gcd det dim ker deg arg hom Pr
    sum prod coprod int iint iiint oint bigcup bigcap bigvee bigwedge bigoplus bigotimes
    cdot times div pm mp ast star circ bullet oplus ominus otimes odot cap cup sqcap sqcup wedge vee
    land lor setminus diamond amalg
    le leq leqslant ge geq geqslant lt gt ll gg ne neq equiv approx sim simeq cong propto doteq in
    notin ni subset supset subseteq supseteq subsetneq supsetneq nsubseteq mid nmid parallel perp
    prec succ preceq succeq models vdash lesssim gtrsim
    to gets rightarrow leftarrow leftrightarrow Rightarrow Leftarrow Leftrightarrow longrightarrow
    longleftarrow Longrightarrow Longleftarrow Longleftrightarrow longleftrightarrow iff implies
    impliedby mapsto longmapsto uparrow downarrow updownarrow nearrow searrow xrightarrow
    xleftarrow rightharpoonup
    dots ldots cdots vdots ddots dotsb dotsc dotsm dotsi
    infty partial nabla forall exists nexists neg lnot emptyset varnothing ell hbar Re Im aleph
    prime angle measuredangle triangle square blacksquare Box therefore because checkmark degree
    top bot clubsuit diamondsuit heartsuit spadesuit backslash colon
    lfloor rfloor lceil rceil langle rangle lvert rvert lVert rVert vert Vert lbrace rbrace lbrack
    rbrack
"""
_ENVIRONMENTS = """
    matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix cases rcases array aligned gathered
    align align* alignat* gather gather* equation equation* split
"""
COMMANDS, ENVIRONMENTS = frozenset(_COMMANDS.split()), frozenset(_ENVIRONMENTS.split())

# `\\` with the gap it may ask for; \begin and \end with their name; any other command; what
# needs a look; the rest
_TOKEN = re.compile(
    r"(?P<row>\\\\(?:\s*\[[-\d.\s]+[a-z]{2}\s*\])?)"
    r"|\\(?P<edge>begin|end)\s*\{(?P<name>[A-Za-z]+\*?)\}"
    r"|\\(?P<command>[A-Za-z]+|.)"
    r"|(?P<special>[\\{}&<%#$])"
    r"|[^\\{}&<%#$]+"
)
_SPACING, _ESCAPED = frozenset(",:;> "), frozenset("{}|%$&#_")
_PAIRS = {"}": "{", "right": "left"}
# an inline formula neither starts nor ends with a space and is followed by no digit: "$5 and $7"
# is money; two words in a row, or one after an amount as in "$5 in US$", are prose
_OPENER = re.compile(r"(?<!\\)(?:\$\$?|\\[(\[]|\\begin\{(?:align|gather|equation)\*?\})")
_DOLLARS = re.compile(r"\$(?=\S)((?:\\.|\n(?!\s*\n)|[^\\$\n])+)(?<=\S)\$(?!\d)")
_DOUBLE = re.compile(r"\$\$((?:\\.|[^\\$])+)\$\$", re.S)
_PARENTHESES = re.compile(r"\\\((.+?)\\\)", re.S)
_BRACKETS = re.compile(r"\\\[(.+?)\\\]", re.S)
_ENVIRONMENT = re.compile(r"(\\begin\{(\w+\*?)\}.*?\\end\{\2\})", re.S)
_WORDED = re.compile(r"\\(?:text\w*|mbox|emph|math\w+|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_PROSE = re.compile(r"\b[a-z]{2,}[,.;:]? [a-z]{2,}\b|^\d.*?\s[a-z]{2,}\s", re.S)

_AROUND_DISPLAY = re.compile(f"\n*({_DISPLAY}[^{_DISPLAY_END}]*{_DISPLAY_END})\n*")
_ENTITIES = {ord(mark): f"&#{ord(mark)};" for mark in string.punctuation + "\xa0"}
_MARK = re.compile(
    r"[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
_BREAKS = "\r\u0085\u2028\u2029"


def printable(text: str) -> str:
    """The text without what cannot be seen or reorders what can.

    Control, formatting (bidirectional overrides, invisible tags) and private-use characters go; the
    joiners that scripts and emoji need stay. Half a surrogate pair becomes U+FFFD.
    """
    return "".join(characters(text))


def characters(text: str) -> list[str]:
    """What `printable` makes of each character: one, or "" where it goes."""
    shown, marks = [], 0  # marks on the letter before, whatever hides between them
    for before, character in pairwise(f"\n{text}"):
        seen = "\n" if character in _BREAKS else _seen(character)
        if before == "\r" and character == "\n":
            seen = ""
        elif _MARK.match(character):
            marks += 1
            seen = seen if marks <= MAX_MARKS else ""
        elif seen:
            marks = 0
        shown.append(seen)
    return shown


def inert_markdown(text: str) -> str:
    """Markdown that shows `text` literally, with its vetted formulas between LATEX_DELIMITERS.

    For `gr.Markdown(latex_delimiters=LATEX_DELIMITERS, sanitize_html=True, line_breaks=True)`.
    Single line breaks and runs of spaces are kept; blank lines end a paragraph.
    """
    left_out = len(text) - MAX_CHARACTERS
    text = printable(text[:MAX_CHARACTERS]).expandtabs(4)
    text = re.sub(r"(?<![^\n ]) ", "\xa0", text)  # at a line's start and after another space
    parts, position = [], 0
    for start, end, formula in formulas(text):
        parts += [_literal(text[position:start]), formula]
        position = end
    parts.append(_literal(text[position:]))
    if left_out > 0:
        parts.append(f"\n\n({left_out:,} further characters are not shown)")
    # a displayed formula has its own margins: line breaks around it would double them
    return _AROUND_DISPLAY.sub(r"\1", "".join(parts))


def formulas(text: str) -> Iterator[tuple[int, int, str]]:
    """Where the vetted formulas of a printable text begin and end, and each between delimiters."""
    start, maths_left = 0, MAX_MATHS
    for _ in range(MAX_FORMULAS):
        opener = _OPENER.search(text, start)
        if opener is None:
            return
        found = _formula(text, opener)
        if found is None:
            start = opener.end()
            continue
        start, formula = found
        if formula is not None and len(formula) <= maths_left:
            maths_left -= len(formula)
            yield opener.start(), start, formula


def literal_html(text: str) -> str:
    """HTML, on one line, that neither an HTML nor a Markdown parser reads as anything but `text`,
    which is printable."""
    return _literal(text).replace("\n", "&#10;")


def short(text: str, length: int) -> str:
    """On one line, cut off at `length` characters."""
    line = " ".join(printable(text[: 4 * length]).split())
    return line if len(line) <= length and len(text) <= 4 * length else f"{line[:length]}…"


def escaped(text: str) -> str:
    """HTML that shows `text` literally."""
    return html.escape(printable(text))


def _seen(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cs":
        return "\ufffd"
    hidden = kind in ("Cc", "Cf", "Co") and character not in "\n\t\u200c\u200d"
    return "" if hidden else character


def _literal(text: str) -> str:
    return text.translate(_ENTITIES)


def _formula(text: str, opener: re.Match[str]) -> tuple[int, str | None] | None:
    """Where the formula that opens here ends, and it between delimiters; None for it if refused.

    None where nothing closes it within MAX_FORMULA characters.
    """
    forms = {"$": _DOLLARS, "$$": _DOUBLE, r"\(": _PARENTHESES, r"\[": _BRACKETS}
    form = forms.get(opener.group(), _ENVIRONMENT)
    match = form.match(text, opener.start(), opener.start() + MAX_FORMULA)
    if match is None:
        return None
    inline = form in (_DOLLARS, _PARENTHESES)
    if form is _DOLLARS and _PROSE.search(_WORDED.sub("", match[1])):
        return match.end(), None
    maths = _vetted(" ".join(match[1].split()))
    if maths is None:
        return match.end(), None
    left, right = (_INLINE, _INLINE_END) if inline else (_DISPLAY, _DISPLAY_END)
    return match.end(), left + maths + right


def _vetted(maths: str) -> str | None:
    """The formula as KaTeX may have it, or None when it holds anything not allowed."""
    nest: list[str] = []  # what is open: "{", "left" or an environment's name
    parts = []
    for token in _TOKEN.finditer(maths):
        part = _checked(token, nest)
        if part is None or len(nest) > MAX_DEPTH:
            return None
        parts.append(part)
    return None if nest else "".join(parts)


def _checked(token: re.Match[str], nest: list[str]) -> str | None:
    """One token as it may be written, or None; what it opens or closes is noted in `nest`."""
    written, command = token.group(), token["command"]
    if token["row"]:
        # a gap after \\ has no bound, so it goes; a bracket that is none must not become one
        return r"\\{}" if token.string[token.end() :].lstrip().startswith("[") else r"\\ "
    if token["edge"] == "begin":
        nest.append(token["name"])
        return written if token["name"] in ENVIRONMENTS else None
    closes = token["name"] or _PAIRS.get(command or written)
    if closes and (token["edge"] or written == "}" or command == "right"):
        return written if nest and nest.pop() == closes else None
    if written == "{" or command == "left":
        nest.append(command or written)
        return written
    if written == "&" and not (nest and nest[-1] in ENVIRONMENTS):
        return None
    if written in ("&", r"\&", "<"):
        return written + " "  # "&lt;" is a character and "<b" a tag, "& lt;" and "< b" are neither
    if command == "!":
        return ""  # many of these shift the formula over its neighbours
    known = command in COMMANDS or command in _SPACING or command in _ESCAPED
    return written if known or not (command or token["special"]) else None
