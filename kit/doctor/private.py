"""Keep paths, names of people and machines, and tokens out of what is meant to be shown."""

from __future__ import annotations

import getpass
import os
import platform
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kit.doctor.findings import Finding

_TOKENS = re.compile(r"\b(?:hf|api|sk|gh[a-z])_[\w-]{8,}|\bsk-[\w-]{8,}")
# a slash, a tilde or a drive that begins a word, and what follows of it
_PATHS = re.compile(r"(?<![\w.)<])(?:~|[A-Za-z]:\\|/)(?=[\w.~/\\])[^\s'\",;)\]]*")
SHORTEST_NAME = 3  # letters of a name that is looked for: shorter ones are in every word


def without_private(finding: Finding) -> Finding:
    """The finding, its words made ready to be shown to others; figures are numbers."""
    return replace(
        finding,
        what=shown(finding.what),
        found=shown(finding.found),
        expected=shown(finding.expected),
        why=shown(finding.why),
    )


def shown(text: str) -> str:
    """A text without what is private in it."""
    text = _PATHS.sub("<path>", _TOKENS.sub("<token>", text))
    for name in _names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", text)
    return text


def model_name(model: str) -> str:
    """A hub id as it is, of a folder no more than that it is one."""
    return "a folder" if os.path.isdir(model) or Path(model).is_absolute() else model


def _names() -> set[str]:
    """Of the user and of the machine, and of the folders the user's files are in."""
    found = {platform.node(), Path.home().name}
    with suppress(KeyError, OSError):  # a container's user may have none
        found.add(getpass.getuser())
    return {name for name in found - {"root"} if len(name) >= SHORTEST_NAME}
