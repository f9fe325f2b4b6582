"""Comparisons for other tools: Markdown to paste, JSON, and files for PAIR's LLM Comparator.

LLM Comparator (https://github.com/PAIR-code/llm-comparator, section "JSON Data Format") shows pairs
of answers with a score between -1.5 and 1.5, which is positive where A, our left, is better.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA = 1  # of `pair_json`; raised when a field changes its meaning

Measure = Literal["strict", "lenient"]
MEASURES: tuple[Measure, ...] = ("strict", "lenient")

SCORE_MEANING = (
    "1: A is right and B is wrong by the {measure} verdict; -1: B is right and A is wrong; 0: both "
    "are right or both are wrong; null: the problem has no known answer"
)


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """One completion, what wrote it, and how it was judged; None: not known."""

    name: str
    adapter: str | None  # folder or hub id; None: the bare base
    adapter_sha256: str | None
    completion: str
    strict_answer: str | None  # None: no answer was found
    lenient_answer: str | None
    strict: bool | None  # None: the problem has no known answer
    lenient: bool | None
    tokens: int  # the stop token counted
    truncated: bool
    seconds: float | None = None
    mean_logprob: float | None = None  # nats per token, at temperature 1
    kl_to_base: float | None = None  # nats per token

    def verdict(self, measure: Measure) -> tuple[str, str | None]:
        """The verdict in words, and the answer that was judged."""
        right: bool | None = getattr(self, measure)
        answer: str | None = getattr(self, f"{measure}_answer")
        if answer is None:
            return "no answer", None
        return ("not judged" if right is None else "right" if right else "wrong"), answer


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two completions of one prompt."""

    question: str
    system_prompt: str
    prompt: str | None  # the text as sent, chat template applied; None: not kept
    answer: str | None  # the gold answer
    settings: Mapping[str, Any]  # how both sides were sampled
    left: ComparedSide
    right: ComparedSide
    time: str  # of the comparison, ISO 8601
    id: str | None = None  # of the problem, where it is one of a data set
    category: str = ""
    difficulty: str = ""


def pair_json(pair: ComparedPair) -> dict[str, Any]:
    """All fields of one comparison."""
    return {"schema": SCHEMA, **dataclasses.asdict(pair)}


def pair_markdown(pair: ComparedPair) -> str:
    """One comparison as GitHub Markdown, in which no text of a model or data set has an effect."""
    about = {"Problem": pair.id, "Category": pair.category, "Difficulty": pair.difficulty}
    facts = [f"- {name}: {_code(value)}" for name, value in about.items() if value]
    facts += [f"- Time: {_code(pair.time)}", *(_fact(k, v) for k, v in pair.settings.items())]
    answer = "not known" if pair.answer is None else _code(pair.answer)
    return "\n\n".join(
        [
            "## Comparison",
            "\n".join(facts),
            *_part("### System prompt", pair.system_prompt),
            *_part("### Question", pair.question),
            f"Gold answer: {answer}",
            *(_part("### Prompt as sent", pair.prompt) if pair.prompt is not None else ()),
            *_side("Left", pair.left),
            *_side("Right", pair.right),
        ]
    )


def comparator_json(
    pairs: Sequence[ComparedPair],
    left_name: str,
    right_name: str,
    *,
    measure: Measure = "strict",
    source: str = "",
) -> dict[str, Any]:
    """A file for LLM Comparator: `left_name` is its model A, `measure` decides the score.

    The two verdicts are its individual ratings, so that both and the answers can be read there.
    """
    meaning = SCORE_MEANING.format(measure=measure)
    columns = [_columns(pair) for pair in pairs]
    known = [name for name in _TYPES if any(_known(values[name]) for values in columns)]
    return {
        "metadata": {
            "source_path": f"{source} (score: {meaning})".strip(),
            "custom_fields_schema": [{"name": name, "type": _TYPES[name]} for name in known],
        },
        "models": [{"name": left_name}, {"name": right_name}],
        "examples": [
            {
                "input_text": pair.question,
                "tags": [pair.category] if pair.category else [],
                "output_text_a": pair.left.completion,
                "output_text_b": pair.right.completion,
                "score": _score(pair, measure),
                "individual_rater_scores": [_rating(pair, name) for name in MEASURES],
                "custom_fields": {name: values[name] for name in known},
            }
            for pair, values in zip(pairs, columns, strict=True)
        ],
    }


def json_text(record: dict[str, Any]) -> str:
    """As a file holds it."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


_TYPES = {  # of LLM Comparator's columns; `per_model_…`: a value for A and one for B
    "id": "string",
    "gold_answer": "string",
    "difficulty": "category",
    "temperature": "number",
    "sample": "number",
    "strict": "per_model_boolean",
    "lenient": "per_model_boolean",
    "truncated": "per_model_boolean",
    "tokens": "per_model_number",
    "mean_logprob": "per_model_number",
    "kl_to_base": "per_model_number",
}


def _columns(pair: ComparedPair) -> dict[str, Any]:
    """What stands in each of them; None: not known."""
    own = {"id": pair.id, "gold_answer": pair.answer, "difficulty": pair.difficulty or None}
    own |= {name: pair.settings.get(name) for name in ("temperature", "sample")}
    sides = [name for name in _TYPES if name not in own]
    return own | {n: [getattr(pair.left, n), getattr(pair.right, n)] for n in sides}


def _known(value: Any) -> bool:
    return value != [None, None] if isinstance(value, list) else value is not None


def _score(pair: ComparedPair, measure: Measure) -> float | None:
    left, right = getattr(pair.left, measure), getattr(pair.right, measure)
    return None if left is None or right is None else float(left) - float(right)


def _rating(pair: ComparedPair, measure: Measure) -> dict[str, Any]:
    def words(side: ComparedSide) -> str:
        verdict, answer = side.verdict(measure)
        shown = "" if answer is None else f" ({answer})"
        return f"{verdict}{shown}{', truncated' if side.truncated else ''}"

    return {
        "score": _score(pair, measure),
        "rating_label": None,
        "is_flipped": False,
        "rationale": f"{measure} verdict: A {words(pair.left)}; B {words(pair.right)}",
        "custom_fields": {},
    }


def _side(which: str, side: ComparedSide) -> list[str]:
    facts = [_fact("adapter", side.adapter or "none, the bare base")]
    if side.adapter_sha256 is not None:
        facts.append(_fact("SHA-256 of the adapter", side.adapter_sha256))
    for measure in MEASURES:
        verdict, answer = side.verdict(measure)
        found = "" if answer is None else f", answer {_code(answer)}"
        facts.append(f"- {measure} verdict: {verdict}{found}")
    facts.append(f"- tokens: {side.tokens}{', truncated' if side.truncated else ''}")
    for name, digits in (("seconds", 2), ("mean_logprob", 4), ("kl_to_base", 4)):
        value = getattr(side, name)
        if value is not None:
            facts.append(f"- {name}: {value:.{digits}f}")
    return [f"### {which}: {_code(side.name)}", "\n".join(facts), _fenced(side.completion)]


def _part(heading: str, text: str) -> tuple[str, str]:
    return heading, _fenced(text)


def _fact(name: str, value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"- {name}: {_code(shown)}"


def _fenced(text: str) -> str:
    """A code block: its fence is longer than any row of backticks in it."""
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def _code(text: str) -> str:
    """A code span on one line."""
    line = " ".join(text.split())
    fence = "`" * (_longest(line) + 1)
    return f"{fence} {line} {fence}"


def _longest(text: str) -> int:
    """Length of the longest row of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
