"""The packages the kit computes with: what is installed, what is accepted, what is tested.

A checkout has them in files; an installed kit has the same lines in its metadata, where the tested
set is the extra `tested`. Imports the standard library alone until requirements are read: a
notebook asks before anything is installed.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "gr-pspo-kit"
CHECKOUT = Path(__file__).resolve().parents[1]
REQUIREMENTS = CHECKOUT / "requirements.txt"
CONSTRAINTS = CHECKOUT / "constraints.txt"
TESTED = "tested"


def installed() -> dict[str, str]:
    """Version of everything that is installed, read from disk anew."""
    return {
        canonical(name): version
        for found in reversed(list(metadata.distributions()))  # of two, the first is imported
        # an interrupted installation leaves folders that say neither
        if (name := found.metadata["Name"]) and (version := found.version)
    }


def required() -> list[Requirement]:
    """What the kit needs, and the versions it accepts."""
    return _read(REQUIREMENTS, "")


def tested() -> dict[str, str]:
    """The version of each package that the kit is tested with on this Python."""
    return {
        canonical(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in _read(CONSTRAINTS, TESTED)
    }


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _read(file: Path, extra: str) -> list[Requirement]:
    """The requirements that hold here: those of a file, or of the installed kit's metadata."""
    from packaging.requirements import Requirement  # ipykernel, of every notebook, needs it

    if file.is_file():
        given = map(Requirement, _lines(file))
        return [one for one in given if one.marker is None or one.marker.evaluate()]
    given = map(Requirement, metadata.requires(PROJECT) or [])
    return [one for one in given if _is_of(one, extra)]


def _is_of(requirement: Requirement, extra: str) -> bool:
    """Whether it is asked for with an extra ("": with none) and not without."""
    marker = requirement.marker
    if marker is None:
        return not extra
    plain = marker.evaluate({"extra": ""})
    return not plain and marker.evaluate({"extra": extra}) if extra else plain


def _lines(path: Path) -> list[str]:
    """Requirements without comments and empty lines."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line]
