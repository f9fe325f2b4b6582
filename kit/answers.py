r"""Find and compare the final answer in hostile text.

Two ways of finding it: *strict* is the format the prompt asks for, `#### <answer>`; *lenient* also
takes `\boxed{...}`, "the answer is ..." and, last, the last number (line, for tasks whose answers
are not numbers). What strict finds, lenient finds too, so a strictly right completion is also
leniently right, and no completion can offer one answer to each.

Model text is never evaluated here: numbers are read by bounded patterns into exact fractions, and
what needs evaluation goes to a process of its own (`kit.math_worker`). All of it takes time linear
in the text.
"""

from __future__ import annotations

import base64
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from kit.math_worker import Worker

Row = Mapping[str, Any]

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
    box = _last_box(text)
    if box is not None:
        for content in (box, box.rpartition("=")[2]):
            if parse_number(content) is not None:
                return content.strip()
    stated = _after_answer_is(text)
    if stated is not None:
        number = _readable(_INSIDE.findall(_clean(stated.rpartition("=")[2])))
        if number is not None:
            return number
    return _last_number(text)


def extract_strict_text(text: str, lines: bool = False) -> str | None:
    """What follows `####`, number or not, to the end of the line; of the text with `lines`.

    Two different ones are no answer, nor is a placeholder such as `<number>`.
    """
    found = [piece for piece in _marked(text, lines) if not _PLACEHOLDER.match(piece)]
    return found[0] if len(found) == 1 and len(found[0]) <= MAX_ANSWER_CHARS else None


def extract_lenient_text(text: str, lines: bool = False) -> str | None:
    r"""Like `extract_lenient` where answers need not be numbers, without the last number."""
    return extract_strict_text(text, lines) or _last_box(text) or _after_answer_is(text)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One completion judged: right or not, and the answers found (None: none)."""

    strict: bool
    lenient: bool
    strict_answer: str | None
    lenient_answer: str | None

    @property
    def has_format(self) -> bool:
        """Whether there is an answer, right or wrong, in the strict format."""
        return self.strict_answer is not None


class Verifier(Protocol):
    """Judges completions against the problem they answer (`row['answer']` is the gold answer)."""

    def verify(self, completion: str, row: Row) -> Verdict: ...

    def verify_many(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]: ...


class NumberVerifier:
    """Answers that are one number, compared as exact fractions."""

    def verify(self, completion: str, row: Row) -> Verdict:
        gold = parse_number(str(row["answer"]))

        def right(answer: str | None) -> bool:
            value = None if answer is None else parse_number(answer)
            return gold is not None and value is not None and numbers_equal(value, gold)

        strict, lenient = extract_strict(completion), extract_lenient(completion)
        return Verdict(right(strict), right(lenient), strict, lenient)

    def verify_many(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        return [self.verify(text, row) for text, row in zip(completions, rows, strict=True)]


class LatexVerifier:
    r"""LaTeX answers, compared by math-verify in a process of its own, `limit` seconds each.

    What math-verify cannot read is wrong and counted in `parse_failures`; what takes too long is
    wrong and counted in `timeouts`.
    """

    def __init__(self, limit: float = 3.0) -> None:
        self.worker = Worker(limit=limit)
        self.parse_failures = 0

    @property
    def timeouts(self) -> int:
        return self.worker.timeouts

    def verify(self, completion: str, row: Row) -> Verdict:
        return self.verify_many([completion], [row])[0]

    def verify_many(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        return _verdicts(completions, rows, self._extract, self._judge)

    def _extract(self, completion: str, row: Row) -> tuple[str | None, str | None]:
        lenient = extract_lenient_text(completion) or _last_number(completion)
        return extract_strict_text(completion), lenient

    def _judge(self, answer: str, row: Row) -> bool:
        answer = _last_box(answer) or answer
        reply = self.worker.ask({"gold": str(row["answer"]), "answer": answer})
        self.parse_failures += not reply.read
        return reply.right


class TaskVerifier:
    """Answers of a reasoning-gym task, scored by the task itself; right is a score of exactly 1.

    Some tasks evaluate the answer, so scoring runs in a process of its own. Strict is the text
    after `####`, lenient in the end the last line; where the gold answer has several lines,
    strict reads on to the end.
    """

    def __init__(
        self, task: str, options: str, entries: Mapping[str, Any], limit: float = 3.0
    ) -> None:
        """`options`: the arguments of reasoning_gym.create_dataset, as JSON; `entries`: the task's
        own problems, by the `id` of the row."""
        self.entries = entries
        self.worker = Worker(task, options, limit=limit)
        self.parse_failures = 0

    @property
    def timeouts(self) -> int:
        return self.worker.timeouts

    def verify(self, completion: str, row: Row) -> Verdict:
        return self.verify_many([completion], [row])[0]

    def verify_many(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        return _verdicts(completions, rows, self._extract, self._judge)

    def _extract(self, completion: str, row: Row) -> tuple[str | None, str | None]:
        lines = "\n" in str(row["answer"]).strip()
        last_line = completion.strip().rpartition("\n")[2][-MAX_ANSWER_CHARS:].strip()
        lenient = extract_lenient_text(completion, lines) or last_line or None
        return extract_strict_text(completion, lines), lenient

    def _judge(self, answer: str, row: Row) -> bool:
        entry = base64.b64encode(pickle.dumps(self.entries[row["id"]])).decode()
        reply = self.worker.ask({"entry": entry, "answer": answer})
        self.parse_failures += not reply.read
        return reply.right


def _verdicts(
    completions: Sequence[str],
    rows: Sequence[Row],
    extract: Callable[[str, Row], tuple[str | None, str | None]],
    judge: Callable[[str, Row], bool],
) -> list[Verdict]:
    """Judge each different (problem, answer) of the batch once."""
    judged: dict[tuple[Any, str, str], bool] = {}

    def right(answer: str | None, row: Row) -> bool:
        if answer is None:
            return False
        key = (row.get("id"), str(row["answer"]), answer)
        if key not in judged:
            judged[key] = judge(answer, row)
        return judged[key]

    found = [(*extract(text, row), row) for text, row in zip(completions, rows, strict=True)]
    return [Verdict(right(s, row), right(n, row), s, n) for s, n, row in found]


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


def _last_box(text: str) -> str | None:
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


def _last_number(text: str) -> str | None:
    last = max(text.rfind(digit) for digit in "0123456789")
    if last < 0:
        return None
    return _readable(_INSIDE.findall(_clean(text[max(0, last - MAX_CHARS) : last + 3]))[-1:])


def _readable(numbers: list[str]) -> str | None:
    """The first of these, if it can be read."""
    return numbers[0] if numbers and parse_number(numbers[0]) is not None else None
