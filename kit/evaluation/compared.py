"""Problems whose answers were compared: voted on, or in preferences that a run was trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.errors import ConfigError, DataError
from kit.reading import parse_json
from kit.runs import RunFolder, lineage
from kit.tasks.problems import ProblemSet, same_question
from kit.tasks.questions import Questions

log = logging.getLogger(__name__)


def compared_ids(said: frozenset[str], problem_set: ProblemSet) -> list[str]:
    """Ids of the problems that these texts ask, in their order."""
    rows = problem_set.problems
    asked = set[str]().union(*map(Questions(rows["question"]).asked_in, said))
    return [
        id_
        for id_, question in zip(rows["id"], rows["question"], strict=True)
        if same_question(question) in asked
    ]


def leave_out(problem_set: ProblemSet, sources: Iterable[str]) -> ProblemSet:
    """The problems that no source has compared answers to; DataError where none is left."""
    questions = frozenset[str]().union(*map(questions_of, sources))
    left_out = set(compared_ids(questions, problem_set))
    kept = [i for i, id_ in enumerate(problem_set.problems["id"]) if id_ not in left_out]
    if not kept:
        raise DataError(
            f"all {len(left_out)} problems of {problem_set.name} are in leave_out; evaluate on "
            "other problems, or raise limit"
        )
    return problem_set.select(kept)


def questions_of(source: str) -> frozenset[str]:
    """What users say in votes.jsonl, in a preference file of JSON lines, or in what a run learned
    from, and those that it went on from.

    Lines that cannot be read are counted in a warning. ConfigError where nothing is asked.
    """
    path = Path(source).expanduser()
    if not RunFolder(path).exists:
        return _said(path)
    if not (found := compared_by(lineage(path))):
        raise ConfigError(
            f"the run {path} of leave_out learned from no preferences; name votes.jsonl, a file of "
            "kit preferences, or a run that did"
        )
    return found


def compared_by(runs: Iterable[RunFolder]) -> frozenset[str]:
    """What the preferences that some of these runs learned from ask; nothing where none did.
    ConfigError for those that cannot be read."""
    copies = (run.preferences for run in runs if run.learned_from_preferences)
    return frozenset[str]().union(*map(_said, copies))


def _said(path: Path) -> frozenset[str]:
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except OSError as error:
        raise ConfigError(f"cannot read {path} of leave_out: {error.strerror}") from None
    said = [_said_in(line) for line in lines]
    found = frozenset(same_question(question) for questions in said for question in questions)
    if not found:
        raise ConfigError(
            f"{path} of leave_out has no prompt in any line; name votes.jsonl, a file of kit "
            "preferences, or a run that was trained on preferences"
        )
    if unreadable := said.count([]):
        log.warning(
            "%s: what %d of %d lines ask cannot be read, so their problems count as not compared; "
            "mend these lines",
            *(path, unreadable, len(lines)),
        )
    return found


def _said_in(line: bytes) -> list[str]:
    """What the user says in the prompt of a line, as training reads it; [] where it has none."""
    try:
        chat = _prompt_of(parse_json(line))
        said = [message["content"] for message in chat if message["role"] == "user"]
    except (ValueError, LookupError, TypeError, AttributeError):  # it is of another form
        return []
    return said if all(isinstance(text, str) for text in said) else []


def _prompt_of(row: dict[str, Any]) -> Any:
    """Messages: those before an answer that is a whole chat, else `prompt`, which may be text."""
    for name in ("chosen", "completion"):
        if isinstance(answer := row.get(name), list) and len(answer) > 1:
            return answer[:-1]
    prompt = row["prompt"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
