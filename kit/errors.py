"""Errors a user can act on: each says what came, what is allowed and what to do.

Every class also inherits the stdlib exception a caller would expect, so that code which knows
nothing of this kit can still catch it.
"""


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


def first_line(error: BaseException) -> str:
    """The first line of its message that says something; how it is written where it has none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), repr(error))
