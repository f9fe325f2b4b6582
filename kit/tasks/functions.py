"""Functions of the user's that score completions: imported, called with copies, held to numbers.

Their signature is TRL's,

    f(prompts, completions, **columns) -> list[float | None]

where `completions` holds one `[{"role": "assistant", "content": text}]` per completion and each
column of the data set is a list as long. None means "does not apply". Whatever such a function
raises is a RewardError, sys.exit() included; Ctrl-C alone stays what it is.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import itertools
import math
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import RewardError

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class UserPart:
    """A function of the user's, its weight and the name of its part."""

    name: str
    weight: float
    function: Callable[..., Any]


def import_function(path: str) -> Callable[..., Any]:
    """The function behind `package.module:function` or `file.py:function`."""
    where, colon, name = path.rpartition(":")
    if not (where and colon and name.isidentifier()):
        raise RewardError(
            f"reward function {path!r} must be 'package.module:function' or 'file.py:function'"
        )
    with _users_code(f"reward function {path!r}: cannot import {where!r}: "):
        module = _load_file(where) if where.endswith(".py") else importlib.import_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise RewardError(
            f"reward function {path!r}: {where!r} has no function {name!r}; "
            f"it has {', '.join(functions) or 'none'}"
        )
    return function


def _load_file(file: str) -> Any:
    path = Path(file).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(str(path), path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look their module up
    spec.loader.exec_module(module)
    return module


def call(
    part: UserPart,
    prompts: Sequence[Messages],
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> list[float | None]:
    """One user part, weighted. It gets copies: it cannot change what is ours."""
    names = dict.fromkeys(name for row in rows for name in row)
    for name in ("prompts", "completions"):
        if name in names:
            raise RewardError(
                f"the problems have a column {name!r}, and reward functions are given something "
                "else by that name; rename it"
            )
    columns = {name: [row.get(name) for row in rows] for name in names if name != "prompt"}
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    given = copy.deepcopy({"prompts": list(prompts), **columns})
    with _users_code(f"reward function {part.name!r} raised "):
        returned = part.function(completions=messages, **given)
    listed = hasattr(returned, "__iter__") or hasattr(returned, "__getitem__")
    if not listed or isinstance(returned, (bytes, Mapping, Set)):
        raise RewardError(
            f"reward function {part.name!r} must return a list of numbers, "
            f"got {type(returned).__name__}"
        )
    count = len(completions)
    with _users_code(f"reward function {part.name!r} raised "):  # it may be a generator
        values = list(itertools.islice(returned, count + 1))
    if len(values) != count:
        raise RewardError(
            f"reward function {part.name!r} must return one number for each of the "
            f"{count} completions, got {len(values) if len(values) < count else 'more'}"
        )
    return [
        None if value is None else _number(part, index, value) for index, value in enumerate(values)
    ]


def _number(part: UserPart, index: int, value: Any) -> float:
    """A returned value times the weight."""
    number = math.nan
    is_complex = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    if hasattr(value, "__float__") and not is_complex:  # also scalars of numpy and torch; no text
        # an array of several numbers has no value, nor has an integer beyond the largest float;
        # a class of the user's may raise anything
        with contextlib.suppress(Exception):
            number = part.weight * float(value)
    if not math.isfinite(number):
        raise RewardError(
            f"reward function {part.name!r} must return finite numbers or None, "
            f"got {_shown(value)} for completion {index}"
        )
    return number


def _shown(value: Any) -> str:
    """The beginning of how a value is written; its type where that cannot be written."""
    try:
        return f"{value!r:.100}"
    except Exception:  # integers of thousands of digits, and classes of the user's
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@contextlib.contextmanager
def _users_code(what: str) -> Iterator[None]:
    """RewardError for whatever is raised inside but Ctrl-C; sys.exit() is no end of ours."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise RewardError(f"{what}{type(error).__name__}: {error}") from error
