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
import unicodedata
from collections.abc import Collection
from fractions import Fraction

from kit.tasks.units import is_money, is_unit

MAX_DIGITS = 64  # longer numbers, and powers of ten beyond this, are not read
MAX_CHARS = 200  # longer text is not a number with its unit
MAX_ANSWER_CHARS = 10_000  # longer answers of any kind are not read
MAX_BESIDE = 40  # characters from the last digit on that may belong to its number
MAX_MARKED = 32  # more different `####` lines than this are a list, not an answer

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = (
    rf"(?:(?:{_INTEGER} )?{_INTEGER}/{_INTEGER}"  # 3/4, 1 1/2
    rf"|(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?)"
)
# powers of ten
MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORD = re.compile(r"[A-Za-z]+")
_MAGNITUDE = rf"(?i:{'|'.join(MAGNITUDES)})\b"
# words that make another number of the one before
_ANOTHER = (
    "squared|cubed|halves|half(?!-)|thirds|fourths|fifths|sixths|sevenths|eighths|ninths|tenths"
    "|elevenths|twelfths|fifteenths|sixteenths|twentieths|hundredths|thousandths|millionths"
    r"|plus|minus|pi|and\ a\ half"
)
_WHOLE = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<number>{_NUMBER})(?P<magnitudes>(?:[ -]?{_MAGNITUDE})*)"
    r"(?P<unit>(?:[ (%°]|(?=[^\W\d_])).*)?"
)

# A number in running text, with all that stands beside it and makes it another number, or none:
# of `5 million`, `5²`, `x5` and `1.000.000` no part may be read as the number.
_INSIDE = re.compile(
    rf"""
    (?: (?<![^\W\d_]) (?:sqrt|log|ln|exp|abs|floor|ceil|sin|cos|tan|[A-Za-z]) \(
      | (?<![\w)]) -\(
      | (?<![^\W\d_]) (?<!\\) [^\W\d_]+ | √ | \\sqrt\ ?(?:\[[0-9]{{1,3}}\])?[{{(]?\ ? | [\^_]{{? )?
    (?: (?<![\w)]) [+-] )?                          # after a word or bracket: a subtraction
    (?: (?<!\w)\. )? [0-9]+ (?: [.,'\u2019_][0-9]+ | :[0-9]{{2}}(?![0-9]) )*
    (?: [eE][+-]?[0-9]+ )? (?: (?:\ [0-9]{{3}})+ (?![0-9/]) )? (?: (?:\ [0-9]+)?/-?[0-9]+ )*
    (?: \ ?(?: [\^√π¹²³⁰⁴-⁹⁻⁺] | \\[A-Za-z]+ ) [^\ ]{{0,8}}
      | \ (?:[KMB]|[mb]n)(?![\w&])
      | [^\W\d_]+(?:[/^][^\W_]{{1,8}} | [²³])? )?
    (?: (?i: [ -] (?: {_MAGNITUDE} (?:[ ]{_MAGNITUDE})* | (?:{_ANOTHER})\b )) )?
    (?: (?i: \ ?(?: hours?|hrs?|h|minutes?|mins?|feet|foot|ft|pounds?|lbs?|years?|months?|weeks?
        |days? )\b (?: ,?\ and|, )?\ [0-9]+\ ?(?: days?|hours?|minutes?|mins?|seconds?|secs?
        |inch(?:es)?|in|ounces?|oz|weeks?|months? )\b ) )?  # 5 hours and 30 minutes
    """,
    re.VERBOSE,
)
_GOES_ON = re.compile(r" ?(?:[-+*/×·÷:xX]|\b(?:or|and|times|to|in|of|out of)\b) ?[(0-9]")

# the number is one of several: `5, 6`, `(5, 6)`, `5 6`
_LISTED_AFTER = re.compile(r"(?:[,;]? ?\b(?:and|or) |[,;] ?| )[-(]?[0-9][0-9./,; -]*[)\]} *]*\Z")
_LISTED_BEFORE = re.compile(r"[(\[{][-0-9./, ]{1,40}, ?\Z|[0-9] \Z")
_UNEQUAL = re.compile(
    r"(?:(?<![</\w])[A-Za-z] ?[<>]=?|[!≤≥≠]=?|\\(?:neq?|[lg]eq?|[lg]t)(?![A-Za-z])) ?\Z"
)
_NEXT_NAME = re.compile(r"(?:[,;]|\b(?:and|or)\b) ?[A-Za-z](?:_?[0-9A-Za-z])? ?\Z")

_CLEANED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=[0-9])(?=\\[dt]?frac)", " "),  # a mixed number
        (r"\\[dt]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}", r"\1/\2 "),
        (r"\\[dt]?frac ?([0-9]) ?([0-9])", r"\1/\2 "),
        (r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed) ?\{([^{}]*)\}", r" \1 "),
        (r"\\!|\\left\b|\\right\b|(?<=[0-9])\\[,;:](?=[0-9]{3}(?![0-9]))", ""),
        (r"\\[,;:]", " "),
        (r"\^ ?\{?\\circ\}?", "°"),
        (r"\{,\}|(?<=[0-9])[\u2009\u202f](?=[0-9]{3}(?![0-9]))", ","),
        (r"\\%", "%"),
        (
            rf"([$€£] ?{_INTEGER})(?:,? and|,) (?=[0-9]{{1,2}} (?:cents|pence)\b)",
            r"\1 dollars and ",
        ),
        (
            rf"({_INTEGER}) (dollars?|euros?|pounds?)(?:,? and|,)? ([0-9]) (?:cents?|pence)\b",
            r"\1.0\3 \2",
        ),
        (
            rf"({_INTEGER}) (dollars?|euros?|pounds?)(?:,? and|,)? ([0-9]{{2}}) (?:cents|pence)\b",
            r"\1.\3 \2",
        ),
        # `$5 cents` is neither, `$5m` are millions
        (
            rf"[$€£] ?({_INTEGER}(?:\.[0-9]+)?) ?(?:cents?|pence|¢|m)(?! *\$|[A-Za-z])",
            r"\1^¢ ",
        ),
        (r"\b[Nn]egative (?=[$0-9])|(?:^|(?<=\bis ))minus (?=[$0-9])", "-"),
        (r"(?<=[+-])\\?[$€£¥] ?", ""),  # -$5
        (r"(?<=[0-9)])\*\*(?=[0-9(])", "^"),
        (r"(?<=\bis )- (?=[0-9.])", "-"),
        (r"\\[$()\[\] ]|[$€£¥`]|\*\*", " "),
        (r"\s+", " "),
        (r"(?<=[0-9]) / (?=[0-9])", "/"),
    )
]
_CURRENCY = re.compile(r"[€£¥]|\\\$|\A[^$]*\$[^$]*\Z")  # `$5 m$` is a formula
_SIGNS = {ord(c): "-" for c in "\u2212\u2013\u2012\u2010\u2011\ufe63\uff0d"}  # minus and dashes
_SIGNS |= {ord(c): "/" for c in "\N{FRACTION SLASH}\N{DIVISION SLASH}"} | {0xA0: " "}
VULGAR = {  # each sign of a fraction, and the fraction: normalised, with a slash of its own
    sign: unicodedata.normalize("NFKC", sign).replace("\N{FRACTION SLASH}", "/")
    for sign in "½¼¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_SIGNS |= {ord(sign): fraction for sign, fraction in VULGAR.items()}
_MIXED = re.compile(rf"(?<=[0-9])(?=[{''.join(VULGAR)}])")

_MARK = re.compile(r"(?<!#)####(?!#)")
_PROSE = re.compile(r"(?:(?<=[a-z])-(?=[a-z])|[ .,;:!?()%°'\u2019]|[^\W\d_]{2,}|\b[aAI]\b)*")
_PLACEHOLDER = re.compile(r"<[A-Za-z ]+>")
_ANSWER_IS = re.compile(r"answer(?: is\b|s are\b|:)[ \t:*]*", re.IGNORECASE)


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number, perhaps with a currency sign and a unit.

    Reads `1,000`, `$-5`, `3/4`, `1 1/2`, `5½`, `.5`, `1.5e3`, `72.`, `\frac{3}{4}`, `18 dollars`,
    `18 dollars and 50 cents`, `5 million`. `25%` is 25, as in the data sets' own answers.
    Everything else is None: `1,00`, `1.000.000`, `10:30`, `6th`, `5²`, `5π`, `5 or 6`, a word
    that `kit.tasks.units` does not list, more than 64 digits, powers of ten beyond 64, a
    denominator of 0.
    """
    if len(text) > MAX_CHARS:
        return None
    for written in (text.strip(), _clean(text).strip()):
        match = _WHOLE.fullmatch(written.removesuffix("."))
        if match is not None and _is_unit(match["unit"]):
            if _CURRENCY.search(text) and not is_money(match["unit"] or ""):
                return None
            return _value(match["sign"], match["number"], match["magnitudes"])
    return None


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
    return _only(found.values())


def extract_lenient(text: str) -> str | None:
    r"""The number that is most likely meant as the final answer, else None.

    In this order: the strict answer, the last `\boxed{...}`, the first number after the last
    "answer is" or "answer:" (after its `=` where it has one), the last number in the text.
    """
    strict = extract_strict(text)
    if strict is not None:
        return strict
    box, rest = _last_box(text)
    if box is not None:
        for content in (box, _right_side(box), _lone_number(box)):
            if content is not None and parse_number(content) is not None:
                return content.strip()
        text = rest  # a number in a box that is more than this number is not the answer
    stated = _after_answer_is(text)
    if stated is not None:
        right = _right_side(stated)
        if right is None:
            return None
        right = re.sub(r"\A- (?=[0-9.])", "-", _clean(right))
        number = _INSIDE.search(right)
        if number is not None:
            return _readable(number[0]) if _stands_alone(right, number) else None
    return last_number(text)


def extract_strict_text(text: str, lines: bool = False) -> str | None:
    """What follows `####`, number or not, to the end of the line; of the text with `lines`.

    Two different ones are no answer, nor is a placeholder such as `<number>`.
    """
    answer = _only([piece for piece in _marked(text, lines) if not _PLACEHOLDER.match(piece)])
    return None if answer is None or len(answer) > MAX_ANSWER_CHARS else answer


def extract_lenient_text(text: str, lines: bool = False) -> str | None:
    r"""Like `extract_lenient` where answers need not be numbers, without the last number."""
    return extract_strict_text(text, lines) or last_box(text) or _after_answer_is(text)


def _right_side(text: str) -> str | None:
    """What follows the last `=`, if any; None of `x=5, x=6` and of `y != 5`."""
    left, sign, right = text.rpartition("=")
    _, other, value = left.rpartition("=")
    several = other and _NEXT_NAME.search(value)
    return None if sign and (several or left.endswith(("!", "<", ">"))) else right


def _stands_alone(text: str, number: re.Match[str]) -> bool:
    """Whether a number is neither part of an expression or list nor only a bound."""
    before = text[: number.start()]
    goes_on = _GOES_ON.match(text, number.end())
    listed = _LISTED_AFTER.match(text.rstrip(" ."), number.end())
    return goes_on is None and listed is None and _UNEQUAL.search(before) is None


def _clean(text: str) -> str:
    """A short text with LaTeX and currency signs reduced to plain characters."""
    text = _MIXED.sub(" ", text).translate(_SIGNS)
    for pattern, replacement in _CLEANED:
        text = pattern.sub(replacement, text)
    return text


def _is_unit(text: str | None) -> bool:
    return text is None or text.strip() in ("", "%", "°", "°C", "°F") or is_unit(text)


def _value(sign: str, number: str, magnitudes: str) -> Fraction | None:
    number = number.replace(",", "")
    _, _, exponent = number.lower().partition("e")
    if sum(c.isdigit() for c in number) > MAX_DIGITS or abs(int(exponent or "0")) > MAX_DIGITS:
        return None
    whole, _, fraction = number.rpartition(" ")
    try:
        value = Fraction(fraction)
    except ZeroDivisionError:
        return None
    if whole:
        if value >= 1:  # 3 5/2 is no mixed number
            return None
        value += int(whole)
    for word in _WORD.findall(magnitudes):
        value *= 10 ** MAGNITUDES[word.lower()]
    return -value if sign == "-" else value


def _marked(text: str, lines: bool = False) -> list[str]:
    """The different non-empty texts after `####`; an empty list where they are too many."""
    pieces = _MARK.split(text)[1:]
    found = dict.fromkeys((p if lines else p.partition("\n")[0]).strip() for p in pieces)
    found.pop("", None)
    return list(found) if len(found) <= MAX_MARKED else []


def _only(texts: Collection[str]) -> str | None:
    """The text of a collection that has one, else None."""
    return next(iter(texts)) if len(texts) == 1 else None


def last_box(text: str) -> str | None:
    r"""Content of the last \boxed{...}, or None where it is empty, unbalanced or too long."""
    return _last_box(text)[0]


def _last_box(text: str) -> tuple[str | None, str]:
    """Its content, and the text from its end on."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None, text
    start += len("\\boxed{")
    depth = 1
    for end, character in enumerate(text[start : start + MAX_ANSWER_CHARS], start):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start:end].strip() or None, text[end:]
    return None, text


def _lone_number(text: str) -> str | None:
    """The only number among words."""
    text = _clean(text[:MAX_CHARS])
    number = _INSIDE.search(text)
    if number is None or not _PROSE.fullmatch(text[: number.start()] + text[number.end() :]):
        return None
    return number[0]


def _after_answer_is(text: str) -> str | None:
    """The rest of the line after the last "answer is" or "answer:"."""
    _, *after = _ANSWER_IS.split(text)
    return after[-1][:MAX_CHARS].partition("\n")[0].strip() or None if after else None


def last_number(text: str) -> str | None:
    """The last number in the text, with its magnitude; None where it belongs to something else."""
    last = max(text.rfind(digit) for digit in (*"0123456789", *VULGAR))
    text = _clean(text[max(0, last - MAX_CHARS) : last + MAX_BESIDE])
    numbers = list(_INSIDE.finditer(text))
    if not numbers:
        return None
    number = numbers[-1]
    listed = number[0][0] not in "+-" and _LISTED_BEFORE.search(text[: number.start()])
    return None if listed else _readable(number[0])


def _readable(number: str) -> str | None:
    return number if parse_number(number) is not None else None
