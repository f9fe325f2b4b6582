"""Durable files: whole or not at all, on the disk before a call returns, one writer at a time.

Everything the kit writes goes through `write_atomically`, `append_line`, `append_json` or
`new_folder`. A rename is durable only once its folder is synced too, so all of them do that.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

if os.name == "posix":
    import fcntl

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what a full disk makes libraries raise


# --- files ---------------------------------------------------------------------------------------


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part. Of processes that
    write it at once one waits for the other."""
    partial = path.with_name(path.name + ".part")
    with _held(partial, Path.touch, wait=True):
        try:
            with partial.open("wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                sync_file(file)
            publish(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)  # on a full disk it is in the way of everything else
            raise


def publish(partial: Path, path: Path) -> None:
    """Put a finished file or folder at its place, for good: the folder's entry is synced too."""
    partial.replace(path)
    sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append a line behind a lock beside the file: safe from several processes at once."""
    with appending(path) as append:
        append(line)


@contextmanager
def appending(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Hold the lock beside a file, so that what is read there is true until a line is appended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_of(path)):
        yield lambda line: _append(path, line + b"\n")


def append_json(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append records to a JSON-lines file that no other process writes."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    _append(path, "".join(lines).encode("utf-8"))


def _append(path: Path, lines: bytes) -> None:
    """Append all of it or nothing. A line that was cut off by a crash is ended first, so that it
    spoils no other."""
    is_new = not path.exists()
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        try:
            rest = memoryview(lines)
            while rest:  # a raw write may take a part
                rest = rest[file.write(rest) :]
            sync_file(file)
        except OSError:
            file.truncate(size)  # which a full disk allows
            raise
    if is_new:
        sync_folder(path.parent)


# --- folders -------------------------------------------------------------------------------------


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder beside `path` to write into, renamed to it at the end; removed if anything fails.

    Raises FileExistsError when `path` exists, unless it is to be replaced; BlockingIOError when
    another process is writing it.
    """
    if os.path.lexists(path) and not replace:
        raise FileExistsError(errno.EEXIST, "it exists", str(path))
    partial, old = _beside(path, ".part"), _beside(path, ".old")
    with _held(partial, _make_folder):
        restore_folder(path)
        for rest in partial.iterdir():  # of an earlier attempt that was killed
            remove(rest)
        try:
            yield partial
            sync_tree(partial)
            if os.path.lexists(path):
                if not replace:
                    raise FileExistsError(errno.EEXIST, "it exists by now", str(path))
                path.rename(old)
            partial.rename(path)
            sync_folder(path.parent)
        except BaseException:
            remove(partial)
            restore_folder(path)
            raise
        remove(old)


def restore_folder(path: Path) -> None:
    """Put the old folder back where a kill came between the two renames that replace it."""
    old = _beside(path, ".old")
    if not os.path.lexists(old):
        return
    if os.path.lexists(path):
        remove(old)
    else:
        old.rename(path)
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file, link or folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Make all files of a folder, and their names, durable before a rename makes them visible."""
    for name, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(name, file), "rb") as opened:
                sync_file(opened)
        sync_folder(Path(name))


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable: what was created, renamed or deleted there."""
    if os.name != "posix":
        return  # Windows cannot open folders
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # some network and user-space file systems have no such thing for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(number)


def sync_file(file: IO[bytes]) -> None:
    """Wait until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _beside(path: Path, ending: str) -> Path:
    path = path if path.name else path.absolute()  # the folder one is in
    return path.with_name(path.name + ending)


# --- one writer at a time ------------------------------------------------------------------------


def lock_of(path: Path) -> Path:
    """The lock file of a file that several processes may want to write."""
    return _beside(path, ".lock")


@contextmanager
def only_one(lock: Path, busy: Exception, wait: float = 0) -> Iterator[None]:
    """Hold a lock file, made with its folder; raises `busy` while another process has it.

    `wait`: seconds; -1 for ever.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=wait)
    except Timeout:
        raise busy from None
    with held:
        yield


@contextmanager
def _held(path: Path, make: Callable[[Path], None], *, wait: bool = False) -> Iterator[None]:
    """Make a file or folder and hold it: a lock that goes where it goes and leaves no file behind.

    Raises BlockingIOError while another process holds it, unless that is to be waited for.
    """
    if os.name != "posix":
        make(path)
        yield
        return
    number = _open_held(path, make, wait)
    try:
        yield
    finally:
        os.close(number)


def _open_held(path: Path, make: Callable[[Path], None], wait: bool) -> int:
    while True:
        make(path)
        try:
            number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        except FileNotFoundError:  # its owner has just finished
            continue
        try:
            fcntl.flock(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(number)
            raise BlockingIOError(
                errno.EWOULDBLOCK, "another process is writing it", str(path)
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                os.close(number)
                raise
            return number
        os.close(number)  # it was renamed in between


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        remove(path)
    path.mkdir(parents=True, exist_ok=True)
