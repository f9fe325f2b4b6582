"""A command of the kit in a process of its own, which stops when the one that started it is gone.

Its GPU memory is free again when it ends. It reads nothing, but its standard input is a pipe: when
the starting process dies, however that happens, the pipe closes, and the command stops as after a
SIGTERM: a training finishes its step and saves. Its output goes to a file, which outlives both.
"""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from kit.errors import RunError
from kit.notebook.place import CHECKOUT

EVERY = 3.0  # seconds between two looks
LAST_LINES = 15  # of the output that an error quotes
_BAR = re.compile(r"\d+%\|")  # a progress bar of tqdm


class Output:
    """What is appended to a log file: finished lines, and the progress bar as it stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0
        self.lines: list[str] = []  # all since the beginning
        self.progress = ""
        self._rest = ""  # of a line that is not finished
        # a character may be cut in two where the file ends
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self) -> list[str]:
        """The lines that are new, without progress bars."""
        with self.path.open("rb") as file:
            file.seek(self.position)
            new = file.read()
        self.position += len(new)
        *lines, self._rest = (self._rest + self._decoder.decode(new)).split("\n")
        for line in [*lines, self._rest]:  # a bar is drawn again after a carriage return
            bars = [part for part in line.split("\r") if _BAR.search(part)]
            self.progress = bars[-1].strip() if bars else self.progress
        ends = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
        found = [line for line in ends if line and not _BAR.search(line)]
        self.lines += found
        return found


def run(
    arguments: Sequence[str],
    log: Path,
    watch: Callable[[Output], None],
    every: float = EVERY,
    may_end_with: Container[int] = (0,),
) -> None:
    """Run `kit ARGUMENTS`, appending its output to `log`, and call `watch` every few seconds.

    An interrupt is passed on to the command, once each time; what it does about it is waited for
    before KeyboardInterrupt is raised. Raises RunError with the last lines when the command ends
    with any other status than those.
    """
    _run([(arguments, environment())], log, watch, every, may_end_with)


def run_on_cards(
    commands: Sequence[Sequence[str]],
    log: Path,
    watch: Callable[[Output], None],
    every: float = EVERY,
) -> None:
    """As `run`, several at the same time: the first sees the first GPU alone, and so on."""
    visible = [environment() | {"CUDA_VISIBLE_DEVICES": str(i)} for i in range(len(commands))]
    _run(list(zip(commands, visible, strict=True)), log, watch, every)


def _run(
    commands: Sequence[tuple[Sequence[str], dict[str, str]]],
    log: Path,
    watch: Callable[[Output], None],
    every: float,
    may_end_with: Container[int] = (0,),
) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    output, interrupted = Output(log), False
    with log.open("ab") as file, ExitStack() as stack:
        children = [stack.enter_context(_start(*command, file)) for command in commands]
        while running := [child for child in children if child.poll() is None]:
            try:
                with suppress(subprocess.TimeoutExpired):
                    running[0].wait(timeout=every)
                watch(output)
            except KeyboardInterrupt:
                interrupted = True
                for child in running:
                    child.send_signal(signal.SIGINT)
        watch(output)  # what came at the very end
    if interrupted:
        raise KeyboardInterrupt
    for (arguments, _), child in zip(commands, children, strict=True):
        if child.returncode not in may_end_with:
            raise _failed(arguments[0], child.returncode, output)


def _start(
    arguments: Sequence[str], environment: dict[str, str], file: IO[bytes]
) -> subprocess.Popen[bytes]:
    """In a session of its own: Jupyter interrupts the whole group, which would be once more."""
    return subprocess.Popen(
        [sys.executable, "-m", "kit.notebook.process", *arguments],
        stdin=subprocess.PIPE,
        stdout=file,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _failed(command: str, status: int, output: Output) -> RunError:
    killed = f" (killed by signal {-status})" if status < 0 else ""
    last = "\n".join(output.lines[-LAST_LINES:])
    return RunError(
        f"kit {command} ended with status {status}{killed}. Its last lines:\n{last}\n"
        f"All of its output is in {output.path}"
    )


def environment() -> dict[str, str]:
    """Of a process that finds this kit, installed or not, and whose output is written at once."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def main() -> int:
    """Run the command line in this process; end when standard input is closed."""
    # the starting process may have ignored interrupts, and handed that down
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_follow_parent, daemon=True).start()
    from kit.cli import main as kit

    return kit(sys.argv[1:])


def _follow_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
