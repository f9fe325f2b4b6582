r"""Write a formula out so that a parser of LaTeX reads what a reader would.

Arguments in braces (`\frac12`, `3\sqrt13`), mixed numbers as sums, decimals as exact fractions,
angles in radians, magnitudes as powers of ten. Every step is bounded by the text's length.
"""

from __future__ import annotations

import re

from kit.tasks.answers import MAGNITUDES

MAX_CHARS = 1000  # longer answers are compared as text only
MAX_DEPTH = 24  # groups within groups

_COMMAND = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z]) ?")
_MIXED = re.compile(r"(?<![0-9.^_{}A-Za-z])([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}(?! ?\^)")
_SLASHED = re.compile(r"(?<![0-9./^])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9/])")
_DECIMAL = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])")
_DEGREES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?°")
_STEPS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\*", r"\\cdot "),
        (r"(?<![A-Za-z\\])sqrt ?(?=[({])", r"\\sqrt "),
        (rf" ?\b({'|'.join(MAGNITUDES)})\b", lambda m: rf"\cdot 10^{{{MAGNITUDES[m[1]]}}}"),
        (r"\^ ?(-?[0-9]+)", r"^{\1}"),
        (r"\^ ?\(([^()]*)\)", r"^{\1}"),
        (r"\\exp ?\(([^()]*)\)", r"e^{\1}"),
        (r"\\log ?_ ?\{?e\}?(?![A-Za-z])", r"\\ln "),
        (r"\\log ?_ ?([0-9A-Za-z])", r"\\log_{\1}"),
        (r"(\\(?:sin|cos|tan|cot|sec|csc|ln))\{([^{}]*)\}", r"\1(\2)"),
    )
]
_SPACED_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:[ ,][0-9]{3})+(?![0-9,])")
# what is left of prose, punctuation and relations: no formula
_FOREIGN = re.compile(r"[,:;=<>≤≥\"'&%$#@?⟦⟧⟨⟩°~`\[\]]|[0-9]\.|\.[0-9]|[0-9] [0-9]")
# what may hold such signs: the degree of a root, where a sum begins
_OWN_SIGNS = re.compile(r"\\sqrt\[[0-9a-z]{1,4}\]|\\(?:sum|prod)_\{[a-z]=-?[0-9]+\}")
# the parser takes (2)(3) and 2\frac{3}{2} for mixed numbers
_JUXTAPOSED = re.compile(r"(?<=[0-9)]) ?(?=\()|(?<=[0-9)]) ?(?=\\(?:frac|sqrt))")
# the parser makes small letters of them, with an index too
_CAPITAL = re.compile(r"(\\[A-Za-z]+)|([A-Z])(?: ?_ ?\{?([0-9A-Za-z]{1,4})\}?)?(?! ?_)")


class Unreadable(ValueError):
    """The text is no formula, or no answer of a known form."""


def formula(text: str) -> str:
    """The formula written out. Raises Unreadable where it holds more than a formula."""
    if len(text) > MAX_CHARS:
        raise Unreadable("too long")
    text = _SPACED_THOUSANDS.sub(lambda m: re.sub("[ ,]", "", m[0]), text)
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    text = _written_out(text, 0)
    text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = _MIXED.sub(_mixed, text)
    text = _SLASHED.sub(_mixed, text)
    text = _DECIMAL.sub(_exact, text)
    if _FOREIGN.search(_OWN_SIGNS.sub("", text)):
        raise Unreadable(text)
    text = _JUXTAPOSED.sub(r"\\cdot ", text)
    return _CAPITAL.sub(lambda m: m[1] or f"{m[2]}_{{9{m[3] or ''}}}", text).strip()


def _mixed(match: re.Match[str]) -> str:
    whole, above, below = match.groups()
    if int(above) >= int(below):
        return match[0]
    return rf"({whole}+\frac{{{above}}}{{{below}}})"


def _exact(match: re.Match[str]) -> str:
    whole, places = match.groups()
    return rf"\frac{{{int(whole + places)}}}{{1{'0' * len(places)}}}"


def _written_out(text: str, depth: int) -> str:
    r"""With braces around every argument of \frac, \binom and \sqrt."""
    if depth > MAX_DEPTH:
        raise Unreadable("too deep")
    out, i = [], 0
    while i < len(text):
        match = _COMMAND.match(text, i)
        if match is None:
            out.append(text[i])
            i += 1
            continue
        i, command = match.end(), match[1]
        out.append(f"\\{command}")
        if command == "sqrt" and text[i : i + 1] == "[":
            end = text.find("]", i)
            if end < 0:
                raise Unreadable(text)
            out.append(text[i : end + 1])
            i = end + 1
        for _ in range(1 if command == "sqrt" else 2):
            argument, i = _argument(text, i, number=command == "sqrt")
            out.append(f"{{{_written_out(argument, depth + 1)}}}")
    return "".join(out)


def _argument(text: str, i: int, number: bool) -> tuple[str, int]:
    """One argument and where it ends; `number`: without braces, all digits of a number."""
    while text[i : i + 1] == " ":
        i += 1
    if text[i : i + 1] in ("{", "(") and (number or text[i] == "{"):
        level = 0
        for end in range(i, len(text)):
            level += (text[end] in "{(") - (text[end] in "})")
            if level == 0:
                return text[i + 1 : end], end + 1
        raise Unreadable(text)
    match = re.compile(r"[0-9]+" if number else r"[0-9]").match(text, i)
    match = match or re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})?|[A-Za-z]").match(text, i)
    if match is None:
        raise Unreadable(text)
    return match[0], match.end()
