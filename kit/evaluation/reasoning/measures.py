r"""Measures of how an answer is reasoned, read off its text alone; docs/reasoning.md defines each.

The text is hostile: longer ones than MAX_CHARS are measured on their beginning, and nothing in
them is evaluated.
"""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

from kit.tasks.answers import parse_number
from kit.tasks.steps import MAX_CHARS, Step, find_steps

NGRAM = 4  # words
MAX_ANSWERS = 32  # read of each way to state one

_CJK = r"\u3040-\u30ff\u3400-\u9fff"  # written without spaces: each sign counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_ANSWERS = (
    re.compile(r"(?<!#)####(?!#)([^\n#]{0,100})"),
    re.compile(r"\\boxed ?\{((?:[^{}\n]|\{[^{}\n]{0,30}\}){0,60})\}"),
    re.compile(r"\banswer(?: is\b|:)[ :*]{0,4}([^\n]{0,100})", re.IGNORECASE),
)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|;|,(?![0-9])")
_MACRO = re.compile(r"\\[A-Za-z]+")
_JAPANESE = {"HIRAGANA", "KATAKANA", "CJK"}
# beginnings of the Unicode names of letters that stand in mathematics in any language
_SYMBOLS = re.compile(
    "(?:GREEK|MATHEMATICAL|DOUBLE-STRUCK|SCRIPT|BLACK-LETTER|MICRO|OHM|KELVIN|ANGSTROM|PLANCK|EULER"
    "|FEMININE|MASCULINE|MODIFIER|SUPERSCRIPT|SUBSCRIPT) "
)


@dataclass(frozen=True, slots=True)
class ReasoningMeasures:
    """What one text shows."""

    words: int
    steps: int
    steps_right: int
    consistent: bool | None  # final answer = result of the last step; None where one is missing
    repetition: float  # share of word 4-grams that occurred before
    language_drift: float  # share of letters in a script that the question does not use
    contradiction: bool  # two results of one expression, or two final answers


def measure(text: str, question: str, final_answer: str | None) -> ReasoningMeasures:
    """Measure one completion; `final_answer` is what was extracted from it, None: nothing."""
    steps = find_steps(text)
    answer = None if final_answer is None else parse_number(final_answer)
    comparable = bool(steps) and answer is not None and len(text) <= MAX_CHARS
    text = text[:MAX_CHARS]
    words = _WORD.findall(text.lower())
    return ReasoningMeasures(
        words=len(words),
        steps=len(steps),
        steps_right=sum(step.is_right for step in steps),
        consistent=steps[-1].result == answer if comparable else None,
        repetition=_repetition(words),
        language_drift=_drift(text, question),
        contradiction=_contradicts(steps) or len(_stated_answers(text)) > 1,
    )


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Aggregate the rows of an evaluation, ready for JSON.

    Reads `question`, `completion` and `lenient_answer` of each row, and `strict` and `tokens`
    where it has them. A share is {value, count, n}; values are null where there is nothing to
    count.
    """
    measures = [measure(r["completion"], r["question"], r.get("lenient_answer")) for r in rows]
    compared = [m.consistent for m in measures if m.consistent is not None]
    right = [(r, m) for r, m in zip(rows, measures, strict=True) if r.get("strict")]
    return {
        "completions": len(rows),
        "steps_right": _share(sum(m.steps_right for m in measures), sum(m.steps for m in measures)),
        "completions_with_steps": _share(sum(m.steps > 0 for m in measures), len(rows)),
        "consistent": _share(sum(compared), len(compared)),
        "contradiction": _share(sum(m.contradiction for m in measures), len(rows)),
        "repetition": _mean([m.repetition for m in measures]),
        "language_drift": _mean([m.language_drift for m in measures]),
        "words_among_right": _mean([m.words for _, m in right]),
        "tokens_among_right": _mean([r["tokens"] for r, _ in right if "tokens" in r]),
    }


def _share(count: int, n: int) -> dict[str, Any]:
    return {"value": count / n if n else None, "count": count, "n": n}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _repetition(words: Sequence[str]) -> float:
    count = len(words) - NGRAM + 1
    if count < 1:
        return 0.0
    different = len(set(zip(*(words[i:] for i in range(NGRAM)), strict=False)))
    return (count - different) / count


def _contradicts(steps: Sequence[Step]) -> bool:
    """Whether one expression is given two results that are not roundings of the same value."""
    results: dict[str, Step] = {}
    for step in steps:
        first = results.setdefault(step.expression, step) if step.is_computed else step
        if first.result != step.result and not (first.is_right and step.is_right):
            return True
    return False


def _stated_answers(text: str) -> set[Fraction]:
    r"""The numbers after `####`, in `\boxed{...}` and after "answer is"."""
    matches = (match for p in _ANSWERS for match in islice(p.finditer(text), MAX_ANSWERS))
    sentences = (_SENTENCE_END.split(match[1], maxsplit=1)[0] for match in matches)
    numbers = (parse_number(sentence.rpartition("=")[2]) for sentence in sentences)
    return {number for number in numbers if number is not None}


def _drift(text: str, question: str) -> float:
    """Share of letters in a script the question does not use; 0 where it has no letters."""
    own = set(_scripts(question))
    if not own:
        return 0.0
    if own & {"HIRAGANA", "KATAKANA"}:
        own |= _JAPANESE
    scripts = _scripts(text)
    return sum(n for script, n in scripts.items() if script not in own) / max(1, scripts.total())


def _scripts(text: str) -> Counter[str]:
    """How many letters there are of each script, mathematical symbols and LaTeX names left out."""
    scripts: Counter[str] = Counter()
    for character, count in Counter(_MACRO.sub(" ", text)).items():
        script = _script(character)
        if script is not None:
            scripts[script] += count
    return scripts


@lru_cache(maxsize=65536)
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "UNNAMED")
    return None if _SYMBOLS.match(name) else name.partition(" ")[0]
