r"""Read a model's answer to a task whose scorer evaluates it, and write it down again.

Nine reasoning-gym tasks hand the answer to `eval` or to sympy's parser, which evaluates too. What
they are given is therefore not the model's text, but what this module has read in it: rows of
words, lists, arithmetic, or a formula in the task's own variables. There are no names but those, no
attributes, no text but short ASCII words, and no powers large enough to matter. Everything else
cannot be read, in time linear in the text.

Two deviations from what the scorers take: `Integral(f, x)`, which would be right for every f, is no
antiderivative; powers and decimals are no arithmetic in tasks that name four operators.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_CHARS = 2_000  # of a formula; gold answers have 130 at most
MAX_DEPTH = 16  # brackets, signs of exponents and powers within one another
MAX_BITS = 2048  # of a numerator or denominator
MAX_EXPONENT = 256

_CELL = r"[A-Za-z0-9_+-]{1,40}"
_ROWS = re.compile(rf"\s*{_CELL}(?:\s+{_CELL})*\s*", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_ ]{0,40}")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})|(?P<name>[A-Za-z]{1,20})"
    r"|(?P<sign>\*\*|[-+*/()]))",
    re.ASCII,
)
FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"}
    | {"sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt"}
)
_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_CONSTANTS = frozenset({"C", "E", "pi"})

Entry = Mapping[str, Any]


def rewrite(task: str, answer: str, entry: Entry) -> str | None:
    """The answer as the task's scorer may have it, or None where it cannot be read.

    `task` is one of `EVALUATING_TASKS`; `entry` is the task's own problem.
    """
    return _READERS[task](answer, entry)


def _matrix(answer: str, _: Entry) -> str | None:
    """Rows of words, single blanks between them; or a list of numbers and words, or of such."""
    if _ROWS.fullmatch(answer):
        rows = (" ".join(row.split()) for row in answer.strip().splitlines())
        return "\n".join(rows)
    return _list(answer)


def _list(text: str) -> str | None:
    try:
        value = json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    cells = [c for row in value for c in (row if isinstance(row, list) else [row])]
    return repr(value) if all(map(_is_cell, cells)) else None


def _is_cell(value: Any) -> bool:
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return type(value) is int and value.bit_length() <= 64


def _arithmetic(answer: str, _: Entry) -> str | None:
    return _Formula(answer, names=frozenset(), four_operators=True).read()


def _polynomial(answer: str, entry: Entry) -> str | None:
    return _Formula(answer, names=frozenset(map(str, entry["metadata"]["variables"]))).read()


def _antiderivative(answer: str, entry: Entry) -> str | None:
    names = _CONSTANTS | {str(entry["metadata"]["variable"])}
    return _Formula(answer, names, functions=FUNCTIONS).read()


_READERS: dict[str, Callable[[str, Entry], str | None]] = {
    "binary_matrix": _matrix,
    "countdown": _arithmetic,
    "intermediate_integration": _antiderivative,
    "n_queens": _matrix,
    "polynomial_multiplication": _polynomial,
    "puzzle24": _arithmetic,
    "simple_integration": _antiderivative,
    "spiral_matrix": _matrix,
    "string_insertion": _matrix,
}
# Tasks whose scorer evaluates the answer; a test compares this with their source.
EVALUATING_TASKS = frozenset(_READERS)


class _Unreadable(Exception):
    """The text is no formula of this grammar."""


class _Formula:
    """Recursive descent over sum, product, signed, power and operand.

    What is read is written again token by token, so that its form stays as it was. The methods
    return the value where it is a rational number, to bound powers; None: it depends on a name.
    """

    def __init__(
        self,
        text: str,
        names: frozenset[str],
        functions: frozenset[str] = frozenset(),
        four_operators: bool = False,
    ) -> None:
        self.text, self.names, self.functions = text, names, functions
        self.four_operators = four_operators
        self.tokens: list[str] = []
        self.position = self.depth = 0

    def read(self) -> str | None:
        """The formula written again, or None where the whole text is none."""
        try:
            self.tokens = self._tokenize()
            self._sum()
        except _Unreadable:
            return None
        return " ".join(self.tokens) if self.position == len(self.tokens) else None

    def _tokenize(self) -> list[str]:
        tokens, position, text = [], 0, self.text.rstrip()
        if len(text) > MAX_CHARS:
            raise _Unreadable
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or (self.four_operators and not _in_four_operators(match)):
                raise _Unreadable
            tokens.append(match[match.lastgroup or 0])
            position = match.end()
        return tokens

    @property
    def _next(self) -> str:
        """The next token, empty at the end."""
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take(self, *allowed: str) -> str:
        """The next token, if it is one of these; else nothing is taken."""
        token = self._next
        if token not in allowed:
            return ""
        self.position += 1
        return token

    def _sum(self) -> Fraction | None:
        total = self._product()
        while sign := self._take("+", "-"):
            total = _combined(sign, total, self._product())
        return total

    def _product(self) -> Fraction | None:
        product = self._signed()
        while sign := self._take("*", "/"):
            product = _combined(sign, product, self._signed())
        return product

    def _signed(self) -> Fraction | None:
        minus = False
        while sign := self._take("+", "-"):
            minus ^= sign == "-"
        value = self._power()
        return -value if minus and value is not None else value

    def _power(self) -> Fraction | None:
        base = self._operand()
        if not self._take("**"):
            return base
        exponent = self._deeper(self._signed)
        if exponent is None:  # E**x
            return None
        if abs(exponent) > MAX_EXPONENT or (base == 0 and exponent <= 0):
            raise _Unreadable
        if base is None or exponent.denominator != 1:
            return None
        if _bits(base) * abs(exponent) > MAX_BITS:
            raise _Unreadable
        return base ** int(exponent)

    def _operand(self) -> Fraction | None:
        token = self._next
        self.position += 1
        if token == "(":
            return self._closed()
        if token in self.functions:
            if not self._take("("):
                raise _Unreadable
            self._closed()
            return None
        if token in self.names:
            return None
        if token[:1].isdigit() or token[:1] == ".":
            return Fraction(token)
        raise _Unreadable

    def _closed(self) -> Fraction | None:
        value = self._deeper(self._sum)
        if not self._take(")"):
            raise _Unreadable
        return value

    def _deeper(self, read: Callable[[], Fraction | None]) -> Fraction | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable
        value = read()
        self.depth -= 1
        return value


def _in_four_operators(token: re.Match[str]) -> bool:
    return (token["number"] or "0").isdigit() and token["sign"] != "**"


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _combined(sign: str, a: Fraction | None, b: Fraction | None) -> Fraction | None:
    if sign == "/" and b == 0:
        raise _Unreadable
    if a is None or b is None:
        return None
    value = _OPERATORS[sign](a, b)
    if _bits(value) > MAX_BITS:
        raise _Unreadable
    return value
