"""Errors a user can act on: each says what came, what is allowed and what to do.

Every class also inherits the stdlib exception a caller would expect, so that code which knows
nothing of this kit can still catch it.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class KitError(Exception):
    """Base of every error this kit raises on purpose; the command line prints it as one line."""


class ConfigError(KitError, ValueError):
    """A configuration key or value is not allowed."""


class DataError(KitError, ValueError):
    """A data set is missing, empty, malformed or fails its own verifier."""


class RewardError(KitError, ValueError):
    """A reward function cannot be imported or returned something that is not a reward."""


class ModelError(KitError, OSError):
    """A base model cannot be loaded or is of a kind the kit does not support."""


class AdapterError(KitError, ValueError):
    """An adapter is missing, unreadable or belongs to another base."""


class RunError(KitError, RuntimeError):
    """A run folder cannot be created, resumed or written."""


class TrainingError(KitError, RuntimeError):
    """Training cannot start or go on."""


class ResultsError(KitError, ValueError):
    """A result file is missing, unreadable, of another schema or of other settings."""


class InstallError(KitError, RuntimeError):
    """Packages cannot be installed, do not work together, or need a restart of the session."""


class OutOfMemoryError(KitError, MemoryError):
    """Memory ran out, of the GPU or of this machine, where nothing smaller is left to try."""


class OutputError(KitError, OSError):
    """What is printed cannot be written: a full disk, or a pipe that nobody reads any more.

    `stream` is where it was to go.
    """

    def __init__(self, stream: Any, error: OSError) -> None:
        name = "standard error" if stream is sys.__stderr__ else "standard output"
        super().__init__(f"cannot write to the {name}: {error.strerror or error}")
        self.stream = stream
        self.is_unread = isinstance(error, BrokenPipeError)


class NotFiniteError(KitError, ArithmeticError):
    """A model computed NaN or infinite numbers.

    `request` is what was asked of it, where that was a completion to sample.
    """

    def __init__(self, message: str, request: Any = None) -> None:
        super().__init__(message)
        self.request = request

    def at(self, place: str) -> NotFiniteError:
        """The same, with where it happened in front."""
        return NotFiniteError(f"{place}: {self}", self.request)


# what allocators and libraries say who have no exception of their own for it
_NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of the GPU, or of the machine, whose errors have many types."""
    torch = sys.modules.get("torch")  # where it is not loaded, none of its errors can come
    if isinstance(error, (MemoryError, torch.OutOfMemoryError) if torch else MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


@contextmanager
def room_for(what: str, advice: str = "") -> Iterator[None]:
    """OutOfMemoryError when memory runs out inside: "out of memory while `what`; `advice`"."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # its frames would keep what filled the memory
        said = str(error) if isinstance(error, OutOfMemoryError) else f"out of memory while {what}"
        raise OutOfMemoryError(f"{said}; {advice}" if advice else said) from error


def first_line(error: BaseException) -> str:
    """The first line of its message that says something; how it is written where it has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), repr(error))
