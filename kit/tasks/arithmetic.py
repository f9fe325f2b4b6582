"""Read the arithmetic expression that words and numbers begin or end with, in exact fractions.

The tokens are those of a line of text that `kit.tasks.steps` has made plain. Reading
takes bounded time and space, whatever they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from kit.tasks.answers import MAX_DIGITS

MAX_DEPTH = 4  # brackets within brackets
MAX_BITS = 1024  # of a numerator or denominator
MAX_EXPONENT = 64
MAX_UNIT_WORDS = 4  # "3 apples per day * 2"

FRACTION = "\N{FRACTION SLASH}"  # stands before its two groups
UNREADABLE = "~"  # what stands beside it is not a whole expression

_TOKEN = re.compile(
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+|[^\W\d_]+|\S"
)
_DIGITS = frozenset("0123456789")
_BEFORE = frozenset(",;:.!?(\"'")  # may stand before a complete expression
_AFTER = _BEFORE | {")"}
_AFTER_UNIT = frozenset("+-*/)")
_NO_UNITS = frozenset({"and", "or", "of", "so", "then", "is", "are", "gives"})


@dataclass(frozen=True, slots=True)
class Expression:
    """The expression beside an equals sign."""

    tokens: Sequence[str]
    value: Fraction
    operators: int
    units: frozenset[str]
    last_place: Fraction | None  # value of the last digit; None where it is not one number

    def __str__(self) -> str:
        """As it is written, without its units."""
        kept = (token for token in self.tokens if token == "of" or not token[0].isalpha())
        return " ".join(kept).replace(",", "")


def tokenize(text: str) -> list[str]:
    """Numbers, words and single other characters."""
    return _TOKEN.findall(text)


def ending(tokens: Sequence[str], percent: Fraction) -> Expression | None:
    """The expression that reaches to the end of these tokens."""
    start = 0
    while start < len(tokens):
        if not may_start(tokens[start]):
            start += 1
            continue
        parser = _Parser(tokens, start, percent)
        found = parser.expression()
        if found is None:
            start += 1
        elif parser.position == len(tokens):
            before = tokens[start - 1] if start else ","
            # a lone number after a word is part of a label, as is one with a unit
            labels = found.operators == 0 or tokens[start] == "-"
            is_whole = before in _BEFORE or (before[0].isalpha() and not labels)
            return found if is_whole and (found.operators or not found.units) else None
        else:
            start = parser.position
    return None


def beginning(tokens: Sequence[str], percent: Fraction) -> Expression | None:
    """The expression these tokens begin with."""
    parser = _Parser(tokens, 0, percent)
    found = parser.expression()
    if found is None or parser.position == len(tokens):
        return found
    after = tokens[parser.position]
    if _is_word(after):
        parser.units.add(_singular(after))
        return parser.read(found.value)
    return found if after in _AFTER else None


def may_start(token: str) -> bool:
    """Whether an expression may begin with this token."""
    return _is_number(token) or token in ("(", "-", FRACTION)


def _is_number(token: str) -> bool:
    return token[-1:] in _DIGITS  # not token[0]: .5


def _is_word(token: str) -> bool:
    """A single letter is a variable."""
    return token[0].isalpha() and (len(token) > 1 or token in "aAI")


def _is_unit(token: str) -> bool:
    return _is_word(token) and token not in _NO_UNITS


def _singular(word: str) -> str:
    return word.lower().removesuffix("s")


class _Parser:
    """Recursive descent over sum, product, signed, power and operand; None: cannot be read."""

    def __init__(self, tokens: Sequence[str], position: int, percent: Fraction) -> None:
        self.tokens, self.start, self.position, self.percent = tokens, position, position, percent
        self.operators = 0
        self.units: set[str] = set()
        self.last_place: Fraction | None = None  # of the number read last

    def expression(self) -> Expression | None:
        """The longest expression from here on."""
        value = self._sum(depth=0)
        return None if value is None else self.read(value)

    def read(self, value: Fraction) -> Expression:
        return Expression(
            tokens=self.tokens[self.start : self.position],
            value=value,
            operators=self.operators,
            units=frozenset(self.units),
            last_place=None if self.operators else self.last_place,
        )

    @property
    def _next(self) -> str:
        """The next token, empty at the end."""
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _sum(self, depth: int) -> Fraction | None:
        total = self._product(depth)
        while total is not None and self._next in ("+", "-"):
            before, sign = self.position, self._next
            self.position += 1
            term = self._product(depth)
            if term is None:
                self.position = before
                break
            self.operators += 1
            total = _bounded(total + term if sign == "+" else total - term)
        return total

    def _product(self, depth: int) -> Fraction | None:
        product = self._signed(depth)
        is_share = False
        while product is not None:
            before, sign = self.position, self._next
            is_share = is_share or self.tokens[before - 1] == "%"
            if sign not in ("*", "/") and not (sign == "of" and is_share):
                break
            self.position += 1
            factor = self._signed(depth)
            if factor is None or (sign == "/" and factor == 0):
                self.position = before
                break
            self.operators += 1
            is_share = sign == "/"  # two thirds of, 20% of
            product = _bounded(product / factor if sign == "/" else product * factor)
        return product

    def _signed(self, depth: int) -> Fraction | None:
        if self._next != "-":
            return self._power(depth)
        self.position += 1
        value = self._power(depth)
        return None if value is None else -value

    def _power(self, depth: int) -> Fraction | None:
        base = self._operand(depth)
        if base is None or self._next != "^":
            return base
        self.position += 1
        exponent = self._signed(depth)
        if exponent is None or exponent.denominator != 1 or not 0 <= exponent <= MAX_EXPONENT:
            return None
        self.operators += 1
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        return base ** int(exponent) if bits * exponent <= MAX_BITS else None

    def _operand(self, depth: int) -> Fraction | None:
        token = self._next
        if token == "(":
            value = self._group(depth)
        elif token == FRACTION:
            value = self._fraction(depth)
        elif _is_number(token):
            value = self._number(depth)
        else:
            return None
        if value is not None:
            self._skip_unit()
        return value

    def _group(self, depth: int) -> Fraction | None:
        if self._next != "(" or depth == MAX_DEPTH:
            return None
        self.position += 1
        value = self._sum(depth + 1)
        if self._next != ")":
            return None
        self.position += 1
        return value

    def _fraction(self, depth: int) -> Fraction | None:
        self.position += 1
        above = self._group(depth)
        below = None if above is None else self._group(depth)
        if above is None or not below:
            return None
        self.operators += 1
        return _bounded(above / below)

    def _number(self, depth: int) -> Fraction | None:
        digits = self._next.replace(",", "")
        if len(digits) > MAX_DIGITS:
            return None
        self.position += 1
        value = Fraction(digits)
        self.last_place = Fraction(1, 10 ** len(digits.partition(".")[2]))
        if self._next == "%":
            self.position += 1
            self.last_place *= self.percent
            return value * self.percent
        return self._mixed(value, depth)

    def _mixed(self, whole: Fraction, depth: int) -> Fraction | None:
        r"""1 1/2 and 1\frac{1}{2}."""
        if self._next == FRACTION:
            part = self._fraction(depth)
            return None if part is None else whole + part
        over = self.tokens[self.position : self.position + 3]
        if len(over) < 3 or over[1] != "/" or not (over[0] + over[2]).isdecimal():
            return whole
        if len(over[0] + over[2]) > MAX_DIGITS or not int(over[0]) < int(over[2]):
            return whole
        self.position += 3
        self.last_place = None
        return whole + Fraction(int(over[0]), int(over[2]))

    def _skip_unit(self) -> None:
        """Pass over a few words, if an operator, a bracket or the end follows them."""
        end = self.position
        words = self.tokens[end : end + MAX_UNIT_WORDS + 1]
        count = next((i for i, word in enumerate(words) if not _is_unit(word)), len(words))
        after = words[count] if count < len(words) else ""
        at_end = end + count == len(self.tokens)
        if 0 < count <= MAX_UNIT_WORDS and (at_end or after in _AFTER_UNIT):
            self.units.add(_singular(words[0]))
            self.position = end + count


def _bounded(value: Fraction) -> Fraction | None:
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    return value if bits <= MAX_BITS else None
