r"""Write LaTeX plainly: without delimiters, spacing, fonts and other ways to write the same.

Also: which answers are text, not formulas, and what they say. Steps are patterns.
"""

from __future__ import annotations

import re

from kit.tasks.answers import VULGAR
from kit.tasks.units import is_unit

_UNICODE = str.maketrans(
    dict.fromkeys("−–", "-")
    | dict.fromkeys("°º", r"^\circ ")
    | dict.fromkeys("·⋅", r"\cdot ")
    | dict.fromkeys("\u00a0\u2009\u202f\n\t", " ")
    | {"π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "∅": r"\emptyset ", "√": r"\sqrt "}
    | {"×": r"\times ", "÷": "/", "±": r"\pm ", "\N{UNION}": r"\cup ", "¢": " cents"}
    | {"²": "^{2}", "³": "^{3}"}
    | {sign: "\\frac{{{}}}{{{}}}".format(*value.split("/")) for sign, value in VULGAR.items()}
)
_FONT = r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|it|rm)|mbox|operatorname)"
_MARKED = re.compile(rf"{_FONT} ?\{{([^{{}}]*)\}}")
# a letter that the text marks as a unit: of `25\\text{ m}`, not of `25m`
_LETTER_UNITS = {"g": "gram", "h": "hour", "l": "liter", "m": "meter", "s": "second"}
_PLAIN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" ?\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])", "°"),
        (
            rf"([0-9}})]|\\pi)(?: |~|\\[,;: ]|\\quad)*{_FONT} ?\{{ ?([ghlms]) ?\}}"
            r"(?= ?(?:\^ ?\{?[23]\}?)? ?$)",
            lambda m: f"{m[1]} {_LETTER_UNITS[m[2]]} ",
        ),
        (rf"{_FONT} ?\{{((?:[^{{}}\\]|\\[$% ])*)\}}", r" \1 "),
        (r",? ?\\! ?,?|\{,\}", lambda m: "," if "," in m[0] else ""),
        (r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])\.?", ""),
        (r"(?<!\\)\\(?:[,;: ]|quad\b|qquad\b)|~", " "),
        (r"\\\\\[[0-9.]+(?:pt|em|ex)\]", r"\\\\"),
        (r"\\[dtc](frac|binom)", r"\\\1"),
        (r"\\lbrace\b|\\\{", "⟦"),
        (r"\\rbrace\b|\\\}", "⟧"),
        (r"\\langle\b ?", "⟨"),
        (r" ?\\rangle\b", "⟩"),
        (r"\\[lr]?vert(?![A-Za-z])|\\mid\b", "|"),
        (r"\\varnothing\b", r"\\emptyset "),
        (r"\\(?:le|leq|leqslant)(?![A-Za-z])", "≤"),
        (r"\\(?:ge|geq|geqslant)(?![A-Za-z])", "≥"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\imath\b", "i"),
        (r"\\colon\b|(?<=[0-9]) +to +(?=[0-9])|\{:\}", ":"),
        (r"\\%", "%"),
        (r"\\\$", "$"),
        (r"\binfinity\b", r"\\infty "),
        (r"\{([^{}]*)\\choose([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"([0-9]) dollars and ([0-9]{2}) cents", r"\1.\2 dollars"),
        (r"\s+", " "),
    )
]
_DELIMITERS = ("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"), ("**", "**")


def plain(text: str) -> str:
    """The text without delimiters, spacing, fonts and other ways to write the same."""
    text = text.translate(_UNICODE)
    for _ in range(3):
        text = _undelimited(_trimmed(text))
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return _trimmed(text)


def _trimmed(text: str) -> str:
    return text.strip().rstrip(".").strip()


def _undelimited(text: str) -> str:
    for before, after in _DELIMITERS:
        inner = text[len(before) : -len(after)]
        is_whole = inner and text == before + inner + after
        if is_whole and before not in inner.replace("\\$", ""):
            text = inner
    return text


def words(text: str) -> str | None:
    """The words of an answer that is text, in small letters and without articles, else None.

    `text` is as it was written: `\\text{east}` is text, `ab` is a product.
    """
    marked = "\\text" in text or "\\mbox" in text or "\\mathrm" in text
    if marked and _is_formula_with_text(text):
        return None
    text = plain(text)
    found = re.findall(r"[A-Za-z]+", text)
    if not found or re.search(r"[0-9\\^_=+<>]", text):
        return None
    if not marked and max(map(len, found)) < 4:
        return None
    return bare_words(text)


def bare_words(text: str) -> str:
    found = re.findall(r"[a-z0-9]+", plain(text).lower())
    return " ".join(w for w in found if len(found) == 1 or w not in ("a", "an", "the"))


def _is_formula_with_text(text: str) -> bool:
    r"""Whether signs stand outside of all \text{}, or letters do that a unit follows."""
    outside = _MARKED.sub(" ", text)
    if re.search(r"[-−–/*]", outside):
        return True
    letter = re.search(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", outside)
    return letter is not None and any(is_unit(m[1].strip()) for m in _MARKED.finditer(text))


def signs(text: str) -> list[str]:
    """The signs of an answer that is text; no hyphens within words."""
    return re.findall(r"[-+*/]", re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z]{2})", " ", plain(text)))
