r"""Find and compare the final answer in hostile text.

Two ways of finding it: *strict* is the format the prompt asks for, `#### <answer>`; *lenient* also
takes `\boxed{...}`, "the answer is ..." and, last, the last number (line, for tasks whose answers
are not numbers). What strict finds, lenient finds too, so a strictly right completion is also
leniently right, and no completion can offer one answer to each.

Model text is never evaluated: numbers are read by bounded patterns into exact fractions, in time
linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 64  # longer numbers, and powers of ten beyond this, are not read
MAX_CHARS = 200  # longer text is not a number with its unit
MAX_ANSWER_CHARS = 10_000  # longer answers of any kind are not read
MAX_MARKED = 32  # more different `####` lines than this are a list, not an answer

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = (
    rf"(?:(?:{_INTEGER} )?{_INTEGER}/{_INTEGER}"  # 3/4, 1 1/2
    rf"|(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?)"
)
# a unit is a few words; an ordinal, a magnitude or a second answer is none
_UNIT = (
    r"(?!(?:st|nd|rd|th| ?[kxyz])\b)"
    r"(?!.*\b(?i:or|and|hundred|thousand|million|billion|trillion)\b)"
    r" ?(?:%|[°(]?[^\W\d_][^\d_+*=<>,;:#]{0,30}(?:\^\{?[23]\}?)?|°)"
)
_WHOLE = re.compile(rf"(?P<sign>[+-]?) ?(?P<number>{_NUMBER})(?:{_UNIT})? ?\.?")
# a minus after a word or bracket is a subtraction
_INSIDE = re.compile(rf"(?:(?<![\w)])[+-])?{_NUMBER}")

_CLEANED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=[0-9])(?=\\[dt]?frac)", " "),  # a mixed number
        (r"\\[dt]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}", r"\1/\2 "),
        (r"\\[dt]?frac ?([0-9]) ?([0-9])", r"\1/\2 "),
        (r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed) ?\{([^{}]*)\}", r" \1 "),
        (r"\\[!,;:]|\\left\b|\\right\b", ""),
        (r"\^ ?\{?\\circ\}?", "°"),
        (r"\{,\}", ","),
        (r"\\%", "%"),
        (r"(?<=[+-])\\?[$€£] ?", ""),  # -$5
        (r"\\[$()\[\] ]|[$€£`]|\*\*", " "),
        (r"\s+", " "),
    )
]
_MINUS = {ord("\N{MINUS SIGN}"): "-", ord("\N{NO-BREAK SPACE}"): " "}

_MARK = re.compile(r"(?<!#)####(?!#)")
_PLACEHOLDER = re.compile(r"<[A-Za-z ]+>")
_ANSWER_IS = re.compile(r"answer(?: is\b|s are\b|:)[ \t:*]*", re.IGNORECASE)


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number, perhaps with a currency sign and a unit.

    Reads `1,000`, `$-5`, `3/4`, `1 1/2`, `.5`, `1.5e3`, `72.`, `\frac{3}{4}`, `18 dollars`. `25%`
    is 25, as in the data sets' own answers. Everything else is None: `1,00`, `10:30`, `6th`,
    `5 million`, `5 or 6`, more than 64 digits, powers of ten beyond 64, a denominator of 0.
    """
    if len(text) > MAX_CHARS:
        return None
    match = _WHOLE.fullmatch(text.strip()) or _WHOLE.fullmatch(_clean(text).strip())
    return _value(match["sign"], match["number"]) if match else None


def numbers_equal(a: Fraction, b: Fraction) -> bool:
    """Exact: 0.33 is not 1/3, 0.50 is 1/2. No tolerance can be right for every problem."""
    return a == b


def extract_strict(text: str) -> str | None:
    """The number in the format `#### <number>`, as it is written there, else None.

    Nothing but a unit or a full stop may follow it on its line. The format may be repeated, but
    two different numbers are no answer: listing guesses must not pay. Lines that hold no number
    (a Markdown heading, the prompt's `#### <number>`) are passed over.
    """
    found: dict[Fraction, str] = {}
    for written in _marked(text):
        number = parse_number(written)
        if number is not None:
            found.setdefault(number, written)
    return next(iter(found.values())) if len(found) == 1 else None


def extract_lenient(text: str) -> str | None:
    r"""The number that is most likely meant as the final answer, else None.

    In this order: the strict answer, the last `\boxed{...}`, the first number after the last
    "answer is" or "answer:" (after its `=` where it has one), the last number in the text.
    """
    strict = extract_strict(text)
    if strict is not None:
        return strict
    box = last_box(text)
    if box is not None:
        for content in (box, box.rpartition("=")[2]):
            if parse_number(content) is not None:
                return content.strip()
    stated = _after_answer_is(text)
    if stated is not None:
        number = _readable(_INSIDE.findall(_clean(stated.rpartition("=")[2])))
        if number is not None:
            return number
    return last_number(text)


def extract_strict_text(text: str, lines: bool = False) -> str | None:
    """What follows `####`, number or not, to the end of the line; of the text with `lines`.

    Two different ones are no answer, nor is a placeholder such as `<number>`.
    """
    found = [piece for piece in _marked(text, lines) if not _PLACEHOLDER.match(piece)]
    return found[0] if len(found) == 1 and len(found[0]) <= MAX_ANSWER_CHARS else None


def extract_lenient_text(text: str, lines: bool = False) -> str | None:
    r"""Like `extract_lenient` where answers need not be numbers, without the last number."""
    return extract_strict_text(text, lines) or last_box(text) or _after_answer_is(text)


def _clean(text: str) -> str:
    """A short text with LaTeX and currency signs reduced to plain characters."""
    text = text.translate(_MINUS)
    for pattern, replacement in _CLEANED:
        text = pattern.sub(replacement, text)
    return text


def _value(sign: str, number: str) -> Fraction | None:
    number = number.replace(",", "")
    _, _, exponent = number.lower().partition("e")
    if sum(c.isdigit() for c in number) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    whole, _, fraction = number.rpartition(" ")
    try:
        value = Fraction(fraction) + Fraction(whole or 0)
    except ZeroDivisionError:
        return None
    return -value if sign == "-" else value


def _marked(text: str, lines: bool = False) -> list[str]:
    """The different non-empty texts after `####`; an empty list where they are too many."""
    pieces = _MARK.split(text)[1:]
    found = dict.fromkeys((p if lines else p.partition("\n")[0]).strip() for p in pieces)
    found.pop("", None)
    return list(found) if len(found) <= MAX_MARKED else []


def last_box(text: str) -> str | None:
    r"""Content of the last \boxed{...}, or None where it is empty, unbalanced or too long."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for end, character in enumerate(text[start : start + MAX_ANSWER_CHARS], start):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start:end].strip() or None
    return None


def _after_answer_is(text: str) -> str | None:
    """The rest of the line after the last "answer is" or "answer:"."""
    end = -1
    for match in _ANSWER_IS.finditer(text):
        end = match.end()
    return text[end : end + MAX_CHARS].partition("\n")[0].strip() or None if end >= 0 else None


def last_number(text: str) -> str | None:
    last = max(text.rfind(digit) for digit in "0123456789")
    if last < 0:
        return None
    return _readable(_INSIDE.findall(_clean(text[max(0, last - MAX_CHARS) : last + 3]))[-1:])


def _readable(numbers: list[str]) -> str | None:
    """The first of these, if it can be read."""
    return numbers[0] if numbers and parse_number(numbers[0]) is not None else None
