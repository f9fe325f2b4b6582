"""What the kit and the process that compares answers tell each other: JSON lines, never pickles.

Parent -> child `{"limit", "requests"}`; each request has `"answer"`, and `"gold"` (LaTeX) or
`"entry"` (a task's problem, by `pack`: made again in the child it may come out differently).
Child -> parent one `Reply` for each. The child's first line is `{"ready": true}` or
`{"fatal": reason}`. One batch is under way at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kit.errors import DataError

START_SECONDS = 120.0  # importing sympy from a cold disk

Request = dict[str, Any]

_CONTAINERS: dict[str, Callable[[Iterable[Any]], Any]] = {
    kind.__name__: kind for kind in (list, tuple, set, frozenset)
}


class Reply(NamedTuple):
    """What the child found out about one answer."""

    right: bool
    read: bool
    """False where the answer could not be parsed, or its judge died over it."""
    timed_out: bool = False


def pack(value: Any) -> Any:
    """What JSON can hold of a task's problem: containers are lists that begin with their type.

    Raises DataError where it holds anything else but numbers, text, booleans and None.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value)
    if kind is dict:
        return ["dict", *([pack(key), pack(held)] for key, held in value.items())]
    if kind in _CONTAINERS.values():
        return [kind.__name__, *map(pack, value)]
    raise DataError(
        f"this task cannot be used: its problems hold a {kind.__module__}.{kind.__name__}, and "
        "only numbers, text, lists, tuples, sets and dictionaries can be handed to the process "
        "that scores answers; choose another task"
    )


def unpack(packed: Any) -> Any:
    """What `pack` was given."""
    if not isinstance(packed, list):
        return packed
    name, *held = packed
    if name == "dict":
        return {unpack(key): unpack(value) for key, value in held}
    return _CONTAINERS[name](map(unpack, held))
