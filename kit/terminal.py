r"""Text that a terminal shows and does not obey, whoever wrote it.

Questions, completions, votes, rewards' errors, names of runs: a terminal takes what is in them for
commands (set the clipboard, clear the screen, write over a line). All that the command line says
goes through two streams, which write every control as Python does in a string: `\x1b`, `\u202e`.
"""

from __future__ import annotations

import os
import re
import sys
from typing import IO, Any

from kit.errors import OutputError

# C0 but for tab and newline, DEL and C1; line and paragraph separators; what reorders a line or is
# not seen (Unicode's "format"), but for the joiners that scripts and emoji need; halves of pairs,
# which cannot be encoded, or are raw bytes of a file's name
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e007f]"
)
_MOVES = re.compile(r"\n+|(?:\x1b\[A)+")  # what tqdm goes down and up with between its bars


def inert(text: str) -> str:
    """The text with its controls spelled out; tabs and line breaks are kept."""
    return _CONTROLS.sub(_spelled, text.replace("\r\n", "\n"))


def one_line(text: str, longest: int = 60) -> str:
    """A name that goes into a sentence: inert, without line breaks, and no longer than this."""
    line = " ".join(inert(text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _spelled(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


class InertStream:
    """A text stream that writes everything inert, and lets progress bars be drawn again.

    A carriage return, or a move up, is handed on where the cursor can reach nothing by it but bars
    and empty lines. So no text can hide what was written before it.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._is_free = True  # nothing but a bar is on the line of the cursor
        self._free_above = 0  # lines straight above of which that is true too

    def write(self, text: str) -> int:
        """Write it inert; the number of characters that came. OutputError where that fails."""
        try:
            self._stream.write(self._moved(text) or self._bar(text) or self._said(text))
        except OSError as error:
            raise OutputError(self._stream, error) from error
        return len(text)

    def flush(self) -> None:
        """Hand on what is held back. OutputError where that fails."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError(self._stream, error) from error

    def writelines(self, lines: list[str]) -> None:
        """As `write` does, each."""
        for line in lines:
            self.write(line)

    def _moved(self, text: str) -> str:
        """Moves between lines, where they are allowed; else nothing."""
        if not _MOVES.fullmatch(text):
            return ""
        if text[0] == "\n":
            self._free_above = self._free_above + len(text) if self._is_free else len(text) - 1
            self._is_free = True
            return text
        up = text.count("\x1b")
        if up > self._free_above or not self._is_free:
            return ""
        self._free_above -= up
        return text

    def _bar(self, text: str) -> str:
        """A bar that is drawn from the start of its line; else nothing."""
        if text[:1] != "\r" or "\n" in text or not self._is_free:
            return ""
        return "\r" + inert(text[1:])

    def _said(self, text: str) -> str:
        """Anything else."""
        if text:
            self._is_free, self._free_above = text.endswith("\n"), 0
        return inert(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_inert() -> None:
    """Replace this process's output streams by inert ones, for good."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, InertStream):
            setattr(sys, name, InertStream(stream))
    os.environ["PYTHON_COLORS"] = (
        "0"  # of tracebacks, from Python 3.13 on: they would be spelled out
    )
