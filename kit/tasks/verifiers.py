"""Judge completions against gold answers: as numbers, as LaTeX, or by a reasoning-gym task.

What needs more than comparing exact fractions runs in a process of its own (`kit.tasks.sandbox`),
because it evaluates expressions that a model wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kit.tasks.answers import (
    MAX_ANSWER_CHARS,
    extract_lenient,
    extract_lenient_text,
    extract_strict,
    extract_strict_text,
    last_box,
    last_number,
    numbers_equal,
    parse_number,
)
from kit.tasks.protocol import pack
from kit.tasks.sandbox import Worker

Row = Mapping[str, Any]


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


class WorkerVerifier:
    """What the verifiers share whose judgement runs in a process of its own.

    What cannot be read is wrong and counted in `parse_failures`; what takes too long is wrong and
    counted in `timeouts`.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.parse_failures = 0

    @property
    def timeouts(self) -> int:
        return self.worker.timeouts

    def verify(self, completion: str, row: Row) -> Verdict:
        return self.verify_many([completion], [row])[0]

    def verify_many(self, completions: Sequence[str], rows: Sequence[Row]) -> list[Verdict]:
        """Judge each different (problem, answer) of the batch once."""
        found = [self._extract(text, row) for text, row in zip(completions, rows, strict=True)]
        questions = {
            _key(answer, row): self._question(answer, row)
            for answers, row in zip(found, rows, strict=True)
            for answer in answers
            if answer is not None
        }
        replies = self.worker.ask_many(list(questions.values()))
        self.parse_failures += sum(not reply.read for reply in replies)
        right = {key: reply.right for key, reply in zip(questions, replies, strict=True)}
        return [
            Verdict(right.get(_key(s, row), False), right.get(_key(n, row), False), s, n)
            for (s, n), row in zip(found, rows, strict=True)
        ]

    def _extract(self, completion: str, row: Row) -> tuple[str | None, str | None]:
        """The strict and the lenient answer."""
        raise NotImplementedError

    def _question(self, answer: str, row: Row) -> dict[str, Any]:
        """What the worker is asked about an answer."""
        raise NotImplementedError


def _key(answer: str | None, row: Row) -> tuple[Any, str, str | None]:
    return row.get("id"), str(row["answer"]), answer


class LatexVerifier(WorkerVerifier):
    """LaTeX answers, compared by math-verify, `limit` seconds each."""

    def __init__(self, limit: float = 3.0) -> None:
        super().__init__(Worker(limit=limit))

    def _extract(self, completion: str, row: Row) -> tuple[str | None, str | None]:
        lenient = extract_lenient_text(completion) or last_number(completion)
        return extract_strict_text(completion), lenient

    def _question(self, answer: str, row: Row) -> dict[str, str]:
        return {"gold": str(row["answer"]), "answer": last_box(answer) or answer}


def task_answers(completion: str, lines: bool = False) -> tuple[str | None, str | None]:
    """The strict and the lenient answer to a task's problem; `lines`: strict may have several."""
    last_line = completion.strip().rpartition("\n")[2][-MAX_ANSWER_CHARS:].strip()
    lenient = extract_lenient_text(completion, lines) or last_line or None
    return extract_strict_text(completion, lines), lenient


class TaskVerifier(WorkerVerifier):
    """Answers of a reasoning-gym task, scored by the task itself; right is a score of exactly 1.

    Some tasks evaluate the answer, so scoring runs in a process of its own. Strict is the text
    after `####`, lenient in the end the last line; where the gold answer has several lines,
    strict reads on to the end.
    """

    def __init__(
        self, task: str, options: str, entries: Mapping[str, Any], limit: float = 3.0
    ) -> None:
        """`options`: the arguments of reasoning_gym.create_dataset, as JSON; `entries`: the task's
        own problems, by the `id` of the row. Raises DataError where they cannot be handed on."""
        super().__init__(Worker(task, options, limit=limit))
        self.entries = {id: pack(entry) for id, entry in entries.items()}

    def _extract(self, completion: str, row: Row) -> tuple[str | None, str | None]:
        return task_answers(completion, lines="\n" in str(row["answer"]).strip())

    def _question(self, answer: str, row: Row) -> dict[str, Any]:
        return {"entry": self.entries[row["id"]], "answer": answer}
