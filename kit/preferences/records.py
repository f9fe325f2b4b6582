"""A preference and where it comes from: a line in TRL's format, and what the kit adds to it.

A line has `prompt`, `chosen`, `rejected`, or `prompt`, `completion`, `label`; texts are chats or
plain. `provenance` is the kit's: other tools pass over it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from kit.preferences.votes import Message
from kit.tasks.questions import Questions

PAIR_COLUMNS = ("chosen", "rejected")  # and the prompt, unless they hold the whole chat
LABEL_COLUMNS = ("prompt", "completion", "label")
SCHEMA: Literal[1] = 1  # of the provenance; raised when a field changes its meaning
_MARK = "kit_schema"  # tells the kit's provenance from a column that others call so

Row: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = tuple[Message, ...]
_CHECKED = ConfigDict(extra="forbid")


@checked(frozen=True, slots=True, config=_CHECKED)
class Writer:
    """What wrote a completion."""

    name: str
    sha256: str | None  # of the adapter; None: the bare base, or not known


@checked(frozen=True, slots=True, config=_CHECKED, kw_only=True)
class Provenance:
    """Who or what preferred, and of what. None: not known, or not of this kind."""

    kind: Literal["vote", "verdict", "judge"]
    by: str | None = None  # the voter, "strict", or the judge's model
    blind: bool | None = None  # of a vote
    base: str | None = None  # id of the model
    writers: tuple[Writer, ...] = ()  # of chosen and rejected, or of the one completion
    data: str | None = None  # the data set of the problem
    split: str | None = None
    problem: str | None = None  # its id
    vote: str | None = None  # its id
    time: str | None = None
    kit_schema: Literal[1] = SCHEMA

    def of_side(self, position: int) -> Provenance:
        """The same, of the chosen (0) or the rejected (1) completion alone."""
        return dataclasses.replace(self, writers=self.writers[position : position + 1])


@dataclasses.dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt, of which one is better."""

    prompt: Prompt
    chosen: str
    rejected: str
    provenance: Provenance | None = None

    def line(self) -> dict[str, Any]:
        """For JSON, in TRL's conversational preference format."""
        return _line(self, chosen=_answer(self.chosen), rejected=_answer(self.rejected))

    def labelled(self) -> tuple[LabelledCompletion, LabelledCompletion]:
        """The two completions one by one: chosen is good, rejected is not."""
        texts = (self.chosen, self.rejected)
        origins = [self.provenance and self.provenance.of_side(i) for i in range(2)]
        good, bad = (
            LabelledCompletion(self.prompt, text, label, origin)
            for text, label, origin in zip(texts, (True, False), origins, strict=True)
        )
        return good, bad


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledCompletion:
    """One completion of a prompt, and whether it is good."""

    prompt: Prompt
    completion: str
    label: bool
    provenance: Provenance | None = None

    def line(self) -> dict[str, Any]:
        """For JSON, in TRL's conversational unpaired preference format."""
        return _line(self, completion=_answer(self.completion), label=self.label)


Example = TypeVar("Example", PreferencePair, LabelledCompletion)
_PROVENANCE = TypeAdapter(Provenance)


def asked_in(prompt: Prompt, questions: Questions) -> bool:
    """Whether one of these questions is asked in any turn."""
    said = (message.content for message in prompt if message.role == "user")
    return any(map(questions.asked_in, said))


def parse_pair(row: Row, system_prompt: str = "") -> PreferencePair:
    """A row of a preference data set; `system_prompt` is put before prompts that are plain text.

    Raises ValueError, in one line, for a row that is none.
    """
    chosen, rejected = (_parse_sides(row, row.get(name), system_prompt) for name in PAIR_COLUMNS)
    if chosen[0] != rejected[0]:
        raise ValueError("chosen and rejected part before their last answer")
    return PreferencePair(chosen[0], chosen[1], rejected[1], parse_provenance(row))


def parse_labelled(row: Row, system_prompt: str = "") -> LabelledCompletion:
    """As `parse_pair`, for a completion with its label."""
    prompt, completion = _parse_sides(row, row.get("completion"), system_prompt)
    label = row.get("label")
    if not isinstance(label, bool):
        raise ValueError(
            f"label must be true or false, no number and no text in quotes; got {label!r:.40}"
        )
    return LabelledCompletion(prompt, completion, label, parse_provenance(row))


def parse_provenance(row: Row) -> Provenance | None:
    """The kit's provenance of a row; None without one."""
    value = row.get("provenance")
    if not isinstance(value, Mapping) or _MARK not in value:
        return None
    try:
        found = _PROVENANCE.validate_python(value)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, ("provenance", *fault["loc"])))
        raise ValueError(f"{where}: {fault['msg']}") from None
    json.dumps(dataclasses.asdict(found), ensure_ascii=False).encode()  # as for messages
    return found


def _parse_sides(row: Row, answer: Any, system_prompt: str) -> tuple[Prompt, str]:
    """Prompt and answer of one side, which may be a text, one message, or the whole chat."""
    prompt = row.get("prompt")
    chat = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    *before, last = _messages(chat)
    if last.role != "assistant":
        raise ValueError(f"an answer is by the assistant, got one by {last.role!r}")
    if not before:
        return _parse_prompt(prompt, system_prompt), last.content
    if isinstance(prompt, list) and _messages(prompt) != before:
        raise ValueError("an answer must be one message, or the whole chat with its prompt")
    return _checked_prompt(before), last.content


def _parse_prompt(prompt: Any, system_prompt: str) -> Prompt:
    if not isinstance(prompt, str):
        return _checked_prompt(_messages(prompt))
    system = [Message("system", system_prompt)] if system_prompt else []
    return _checked_prompt([*system, *_messages([{"role": "user", "content": prompt}])])


def _checked_prompt(messages: list[Message]) -> Prompt:
    if messages[-1].role != "user" or not messages[-1].content:
        raise ValueError("a prompt must end with what the user says")
    return tuple(messages)


def _messages(chat: Any) -> list[Message]:
    """Roles and contents, and nothing else: templates act on other fields too."""
    if chat is None:
        raise ValueError("it lacks a prompt or an answer")
    if not isinstance(chat, list) or not chat:
        raise ValueError(f"a prompt or answer must be text or messages, got {chat!r:.40}")
    try:
        messages = [Message(message["role"], message["content"]) for message in chat]
    except (KeyError, TypeError, ValidationError):
        raise ValueError(
            "a message must have a role (system, user or assistant) and a content that is text"
        ) from None
    for message in messages:
        message.content.encode()  # ValueError for half of a surrogate pair, as no file takes
    return messages


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _line(example: PreferencePair | LabelledCompletion, **columns: Any) -> dict[str, Any]:
    prompt = [dataclasses.asdict(message) for message in example.prompt]
    origin = example.provenance and dataclasses.asdict(example.provenance)
    return {"prompt": prompt, **columns, "provenance": origin}
