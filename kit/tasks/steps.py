r"""Find the arithmetic steps in hostile text and tell which are right.

A step is an equality between numbers, `16 - 3 - 4 = 9`, judged by itself: in `3 + 4 = 7 * 2 = 14`
the first is wrong and the second right. What cannot be read with certainty is no step: algebra
(`2x + 3 = 11`), functions, a label (of `cost of 3 shirts = 3 * 15 = 45` only the product is read),
and an equality that does not come out and mixes units, because it may convert them
(`1.5 hours * 2 = 180 minutes`).

Model text is never evaluated; the time it takes is bounded by the constants below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from kit.tasks.arithmetic import (
    UNREADABLE,
    Expression,
    beginning,
    ending,
    may_start,
    tokenize,
)

MAX_CHARS = 16_000  # steps are looked for in the beginning of longer texts
MAX_STARTS = 500  # numbers, brackets and minuses beside equals signs; steps beyond are not read
MAX_SIDE = 300  # characters of one side of an equality

_LETTER = r"[^\W\d_]"
_PLAIN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<<[^<>\n]*>>", ""),  # GSM8K's calculator marks repeat the step they stand in
        (r"\\\\", "\n"),
        (r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox) ?\{([^{}]*)\}", r" \1 "),
        (r"\\(?:boxed\b|left\b|right\b|!|(?=[$%]))", ""),
        (r"[$€£¥]", ""),
        ("\\\\(?:times|cdot)\\b|[\N{MULTIPLICATION SIGN}·⋅]", "*"),
        (r"\\div\b|÷", "/"),
        ("[\N{MINUS SIGN}\N{EN DASH}]", "-"),
        (r"\\approx\b", "≈"),
        (r"\\(?:[Rr]ightarrow|implies|to|neq?|leq?|geq?)\b|\\[\[\]]", ";"),
        (r"[=-]>|[<>!]=|[→⇒≠≤≥<>]|#+", ";"),
        (r"==", "="),
        (r"\{,\}", ","),
        (r"\\[,;: ()]|&", " "),
        (r"\\[dt]?frac ?([0-9]) ?([0-9])", r"\\frac{\1}{\2}"),
        (r"\\[dt]?frac\b", "\N{FRACTION SLASH}"),
        (r"\\[A-Za-z]*", "~"),  # what an unknown macro does to its neighbours is not known
        (r"([0-9]):(?=[0-9])|\.(?=~)|\.\.+|…", r"\1~"),  # 10:30, 0.333...
        (r"([0-9)])\*\*(?=[0-9(])", r"\1^"),
        (r"\*\*", ""),
        (rf"({_LETTER})(?:\^\{{?[23]\}}?|[²³])", r"\1"),  # square metres
        (r"²", "^2"),
        (r"³", "^3"),
        (r"(?m)^[ \t]*(?:[-*+•]|[0-9]{1,3}[.)])[ \t]+", ""),  # a list
        (r"\b[Ss]tep [0-9]+[ :.-]*", "; "),
        (r"\n[ \t]*(?=[=≈])", " "),  # an equality that goes on in the next line
        (r"([0-9)}%])[ \t]*[xX][ \t]*(?=[0-9(.])", r"\1*"),
        (rf"(?<={_LETTER}) [xX] (?=[0-9(.])", " * "),  # 3 apples x 2
        (rf"/[ \t]*(?={_LETTER})", " "),  # miles/hour
        (r"([0-9]) and (?=[0-9]+/[0-9])", r"\1 "),  # 1 and 1/2
        (r"/ +([0-9]+/[0-9]+)(?![0-9./])", r"/ (\1)"),  # 14 / 1/4
        (rf"({_LETTER})(?=[({{\[])", r"\1~"),  # f(2)
        (rf"([0-9](?={_LETTER}(?!{_LETTER}))|[)}}\]](?={_LETTER}))", r"\1~"),  # 2x, (3)y
        (r"([0-9)}\]])(?=\()", r"\1*"),  # 2(3+4)
    )
]
_BRACKETS = str.maketrans("[{]}", "(())")
_SIGN = re.compile("([=≈])")


@dataclass(frozen=True, slots=True)
class Step:
    """One equality as it is written: its left side, and the value of its right side."""

    expression: str
    result: Fraction  # 25% is 25, as in kit.tasks.answers
    is_right: bool
    is_computed: bool  # whether the left side is more than a number


def find_steps(text: str) -> list[Step]:
    """The equalities between numbers, in order, in which at least one side has an operator.

    A decimal number beside an expression counts as right when it is the correct rounding of it to
    the digits written (10/3 = 3.33), after ≈ a whole number too. A percent sign is read as 1/100
    and as a mere unit; the step is right when one of the two readings comes out.
    """
    text = text[:MAX_CHARS]
    if _SIGN.search(text) is None and "\\approx" not in text:
        return []
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    steps: list[Step] = []
    budget = MAX_STARTS
    for line in text.translate(_BRACKETS).split("\n"):
        parts = _SIGN.split(line)
        for i in range(1, len(parts), 2):
            left = tokenize(parts[i - 1][-MAX_SIDE:])
            right = tokenize(parts[i + 1][:MAX_SIDE])
            budget -= 1 + sum(map(may_start, left)) + sum(map(may_start, right))
            if budget < 0:
                return steps
            # of a side that is cut off, an expression that touches the cut is not the whole one
            left = [UNREADABLE, *left] if len(parts[i - 1]) > MAX_SIDE else left
            right = [*right, UNREADABLE] if len(parts[i + 1]) > MAX_SIDE else right
            step = _judge(left, parts[i], right)
            if step is not None:
                steps.append(step)
    return steps


def _judge(left: Sequence[str], sign: str, right: Sequence[str]) -> Step | None:
    step, is_right = None, False
    for percent in (Fraction(1, 100), Fraction(1)) if "%" in (*left, *right) else (Fraction(1),):
        a, b = ending(left, percent), beginning(right, percent)
        if a is None or b is None or a.operators + b.operators == 0:
            return None
        is_right = is_right or _equal(a, b, sign) or _equal(b, a, sign)
        if is_right or len(a.units | b.units) < 2:
            step = Step(str(a), b.value, is_right, is_computed=a.operators > 0)
    return step


def _equal(side: Expression, number: Expression, sign: str) -> bool:
    """Whether they are the same, or `number` is one number and a rounding of `side`."""
    if side.value == number.value:
        return True
    if number.last_place is None or (sign == "=" and number.last_place.denominator == 1):
        return False
    return abs(side.value - number.value) <= number.last_place / 2
