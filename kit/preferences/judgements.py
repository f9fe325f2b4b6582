"""Judgements: what a judge model was asked and answered, kept in a JSON-lines file as it comes.

A second call with the same file asks only for what is missing or failed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kit.errors import ResultsError
from kit.evaluation.results import Key, fields_of, writing
from kit.files import append_line
from kit.preferences.judge_models import JudgeModel, Reply
from kit.preferences.rubric import Messages, Verdict
from kit.reading import parse_json

log = logging.getLogger(__name__)

SCHEMA = 1  # of the lines; raised when a field changes its meaning
_GOES_ON = "; once that is mended, the same command goes on from the last that was written"


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt to the judge, about one completion or a pair in one order."""

    key: Key
    order: str | None  # left_first or right_first; None: there is one completion
    messages: Messages


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came back. Without a reply it failed, without a verdict it is malformed."""

    reply: Reply
    verdict: Verdict | None

    @property
    def status(self) -> str:
        if self.reply.text is None:
            return "failed"
        return "malformed" if self.verdict is None else "judged"


def read_judgements(
    signature: str,
    questions: Sequence[Question],
    path: Path,
    read: Callable[[str], Verdict | None],
) -> list[Judgement | None]:
    """The judgements that a file holds; None for questions it has none of.

    Raises ResultsError when the file holds judgements of another judge or other completions.
    """
    asked = [_digest(signature, question.messages) for question in questions]
    there = _stored(path, questions, asked)
    found = {i: Judgement(reply, read(reply.text or "")) for i, reply in there.items()}
    return [found.get(i) for i in range(len(questions))]


def collect(
    judge: JudgeModel,
    questions: Sequence[Question],
    path: Path,
    read: Callable[[str], Verdict | None],
) -> list[Judgement]:
    """A judgement for each question, from the file where it has one, else from the judge.

    Raises ResultsError when the file holds judgements of another judge or other completions.
    """
    stored = read_judgements(judge.signature, questions, path, read)
    found = {i: judgement for i, judgement in enumerate(stored) if judgement is not None}
    missing = [i for i in range(len(questions)) if i not in found]
    with tqdm(total=len(questions), initial=len(found), desc="judge", unit="verdict") as bar:
        for position, reply in judge.ask([questions[i].messages for i in missing]):
            i = missing[position]
            found[i] = Judgement(reply, None if reply.text is None else read(reply.text))
            line = _line(questions[i], judge.signature, found[i])
            with writing(path, _GOES_ON):
                append_line(path, json.dumps(line).encode())
            counts = Counter(judgement.status for judgement in found.values())
            bar.set_postfix(malformed=counts["malformed"], failed=counts["failed"], refresh=False)
            bar.update()
    return [found[i] for i in range(len(questions))]


def _stored(path: Path, questions: Sequence[Question], asked: Sequence[str]) -> dict[int, Reply]:
    """The replies in the file, by the position of their question; failed requests are none."""
    positions = {(question.key, question.order): i for i, question in enumerate(questions)}
    replies: dict[int, Reply] = {}
    unreadable = 0
    for text in _lines(path):
        try:
            line = parse_json(text)
            key = (line["id"], line["temperature"], line["sample"])
            reply, digest = Reply(line["reply"], None, **line["usage"]), line["asked"]
            i = positions.get((key, line["order"]))  # TypeError for what is no key
        except (ValueError, KeyError, TypeError):
            unreadable += 1
            continue
        if i is None or reply.text is None:
            continue
        if digest != asked[i]:
            raise ResultsError(
                f"{path} holds judgements by another judge or of other completions (problem "
                f"{key[0]!r}); choose another output, or delete it"
            )
        replies[i] = reply
    if unreadable:
        log.warning("%s: %d lines cannot be read; they count as not asked", path, unreadable)
    return replies


def _lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResultsError(f"cannot read the judgements {path}: {error.strerror}") from None


def _line(question: Question, signature: str, judgement: Judgement) -> dict[str, Any]:
    reply = judgement.reply
    return {
        "schema": SCHEMA,
        **fields_of(question.key),
        "order": question.order,
        "status": judgement.status,
        "verdict": judgement.verdict,
        "reply": reply.text,
        "failure": reply.failure,
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        },
        "judge": signature,
        "asked": _digest(signature, question.messages),
        "time": time.strftime("%FT%T%z"),
    }


def _digest(signature: str, messages: Messages) -> str:
    return hashlib.sha256(json.dumps([signature, messages]).encode()).hexdigest()[:16]
