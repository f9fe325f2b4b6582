"""What goes wrong in a process: it is killed, or the disk is full, at the n-th operation or second.

Operations are counted below one folder: renames, syncs, and writes of Python's own files. (What
safetensors and torch write happens in native code: kills at random seconds meet that.)
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("rename", "sync", "write")


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` "seconds": a kill after that long; else at operation number `at`, counted from 1."""

    kind: str
    at: float
    full: bool = False  # the disk is full from there on, instead of a kill

    def __str__(self) -> str:
        where = f"after {self.at:.2f} s" if self.kind == "seconds" else f"at {self.kind} {self.at}"
        return f"disk full {where}" if self.full else f"killed {where}"


class Injector:
    """Counts the operations below `folder`, and lets one of them fail."""

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder = os.path.realpath(folder)
        self.fault = fault
        self.counts = dict.fromkeys(KINDS, 0)
        self.is_full = False

    def install(self) -> None:
        """In a process that is to be disturbed, for the rest of its life."""
        if self.fault is not None and self.fault.kind == "seconds":
            threading.Thread(target=self._kill_later, args=(self.fault.at,), daemon=True).start()
        for name in ("rename", "replace"):
            setattr(os, name, self._renaming(getattr(os, name)))
        real_sync, real_open = os.fsync, io.open

        def sync(number: Any) -> None:
            target = number if isinstance(number, int) else number.fileno()
            self.before("sync", os.path.realpath(f"/proc/self/fd/{target}"))
            real_sync(number)

        def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            opened = real_open(file, mode, *args, **options)
            writes = isinstance(file, (str, os.PathLike)) and set(mode) & set("wax+")
            return Written(opened, self, os.path.realpath(file)) if writes else opened

        os.fsync = sync
        io.open = builtins.open = opening  # type: ignore[assignment]

    def before(self, kind: str, path: str, spoil: Callable[[], object] = lambda: None) -> None:
        """Count an operation on `path`; `spoil` does a part of it where the process is killed."""
        if not path.startswith(self.folder):
            return
        self.counts[kind] += 1
        if self.fault is not None and (kind, self.counts[kind]) == (self.fault.kind, self.fault.at):
            self.is_full = self.fault.full
            if not self.is_full:
                spoil()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.is_full and kind != "rename":  # a full disk still renames
            spoil()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _renaming(self, real: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **options: Any) -> None:
            self.before("rename", os.path.realpath(os.path.dirname(os.path.abspath(target))))
            real(source, target, **options)

        return rename

    @staticmethod
    def _kill_later(seconds: float) -> None:
        threading.Event().wait(seconds)
        os.kill(os.getpid(), signal.SIGKILL)


class Written:
    """An open file whose writes are counted; a spoiled one writes the first half of its data."""

    def __init__(self, file: Any, injector: Injector, path: str) -> None:
        self._file, self._injector, self._path = file, injector, path

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._injector.before("write", self._path, half)
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
