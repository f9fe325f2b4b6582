"""What a process that evaluates model text may still do: compute, and read files.

What holds where:

- Everywhere, by an audit hook, which cannot be removed: Python compiles nothing but numbers,
  operators and a few known names, whichever library would have it compiled (`eval`, `sympify`,
  `lambdify`); it opens no file to write it, and calls no function on networks, processes, signals
  or folders. Code that ran natively could go round this.
- On Linux and macOS, by the kernel: limits on processor time, open files and new processes (none,
  except for root), and no file can grow; on Linux, a limit on memory too.
- On Linux (x86-64, ARM64), by the kernel's filter of system calls (seccomp): all are refused but
  the few that computing and reading files need. Native code gets out no more than Python: no
  socket, no process, no signal, no file written, removed or renamed.

Limits of time are up to the caller.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import math
import os
import platform
import re
import resource
import struct
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

from kit.tasks.task_grammar import FUNCTIONS

MEMORY_BYTES = 4 << 30
OPEN_FILES = 64


class Refused(NotImplementedError):
    """An attempt at what is not allowed; sympy goes on as where it has no method for something."""


def confine(seconds: float, names: Iterable[str] = ()) -> None:
    """Give up, in this process and for good, what evaluating does not need.

    `seconds`: of processor time that are left; `names`: what else may be named in what is compiled.
    """
    known = _NAMES | set(names)
    _limit(seconds)
    filter_calls()
    sys.addaudithook(lambda event, arguments: _audit(event, arguments, known))


# --- everywhere: an audit hook ------------------------------------------------------------------

_TEXT = re.compile(r"'[A-Za-z0-9_ .+-]*'", re.ASCII)
_PLAIN = re.compile(r"[-+*/%(),\[\]<>&|^~.\sA-Za-z0-9]*", re.ASCII)
_NAME = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9]+", re.ASCII
)  # one letter names no function
_NAMES = FUNCTIONS | {"Integer", "Float", "Rational", "Symbol", "pi"}
# modules that compile what a file holds, what is made of names they have checked, or loops over
# exponents (sympy's monomials, written of numbers alone)
_COMPILERS = frozenset(
    {"importlib._bootstrap_external", "dataclasses", "collections", "sympy.polys.monomials"}
)
_FIXED = frozenset({"from sympy import *"})  # sympy's parser does, each time
_CLOSED = frozenset(
    {"socket", "subprocess", "os", "pty", "shutil", "tempfile", "signal", "ctypes", "fcntl", "mmap"}
    | {"sqlite3", "syslog", "winreg", "_winapi", "msvcrt"}
)
_READING = frozenset({"os.listdir", "os.scandir"})
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _audit(event: str, arguments: tuple[Any, ...], names: frozenset[str]) -> None:
    if event == "compile":
        if not _is_plain(arguments[0], names) and not _is_loading():
            raise Refused("this may not be compiled")
    elif event == "open":
        _, mode, flags = arguments
        if flags & _WRITE or set(mode or "") & set("wax+"):
            raise Refused("files may only be read")
    elif event.partition(".")[0] in _CLOSED and event not in _READING:
        raise Refused(f"{event} is not allowed")


def _is_plain(source: Any, names: frozenset[str]) -> bool:
    """Whether code can name nothing by which it could act: strings are short and plain."""
    if source is None or isinstance(source, ast.AST):  # its text was compiled before
        return True
    text = source.decode("utf-8", "replace") if isinstance(source, bytes) else str(source)
    if text in _FIXED:
        return True
    text = _TEXT.sub(" ", text)
    return _PLAIN.fullmatch(text) is not None and names.issuperset(_NAME.findall(text))


def _is_loading() -> bool:
    """Whether one of `_COMPILERS` asks: who called what the hook is called for.

    Python's loader of files has another of its modules call for it.
    """
    frame: FrameType | None = sys._getframe(3)
    if frame and frame.f_globals.get("__name__") == "importlib._bootstrap":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in _COMPILERS


# --- Linux and macOS: limits --------------------------------------------------------------------


def _limit(seconds: float) -> None:
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: math.ceil(seconds),
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower one is set, or none can be
            resource.setrlimit(kind, (limit, limit))


# --- Linux: a filter of system calls ------------------------------------------------------------

# machine -> its number in <linux/audit.h>, that of openat, and those of what may be called:
# read write close fstat newfstatat statx lseek pread64 getdents64 readlink(at) (f)access(at) getcwd
# mmap mprotect munmap mremap madvise brk futex sched_yield rt_sigaction rt_sigprocmask rt_sigreturn
# sigaltstack restart_syscall getpid gettid getrusage sysinfo uname getrandom clock_gettime
# gettimeofday exit exit_group; x86-64 has the older stat, lstat and time besides
_CALLS = {
    "x86_64": (
        0xC000003E,
        257,
        "0 1 3 5 262 332 8 17 217 89 267 21 269 79 9 10 11 25 28 12 202 24 13 14 15 131 219 39 186 "
        "98 99 63 318 228 96 60 231 4 6 201",
    ),
    "aarch64": (
        0xC00000B7,
        56,
        "63 64 57 80 79 291 62 67 61 78 48 17 222 226 215 216 233 214 98 124 134 135 139 132 128 "
        "172 178 165 179 160 278 113 169 93 94",
    ),
}
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # <linux/filter.h>
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM  # <linux/seccomp.h>
_NUMBER, _MACHINE, _THIRD_ARGUMENT = 0, 4, 32  # offsets in struct seccomp_data, little-endian
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def filter_calls() -> bool:
    """Have the kernel refuse all other system calls from now on; False: it cannot."""
    if sys.platform != "linux" or platform.machine() not in _CALLS or sys.maxsize < 2**32:
        return False
    program = _program(*_CALLS[platform.machine()])
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions of 8 bytes, and where they are
    fprog = struct.pack("H6xP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0:
        return False
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    return libc.prctl(_PR_SET_SECCOMP, mode, ctypes.c_char_p(fprog), zero, zero) == 0


def _program(machine: int, openat: int, calls: str) -> bytes:
    """The filter in the kernel's instructions: code, jump where true, where false, operand."""
    refuse, allow = (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)
    steps = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, machine), refuse, (_LOAD, 0, 0, _NUMBER)]
    for call in map(int, calls.split()):
        steps += [(_EQUAL, 0, 1, call), allow]
    steps += [(_EQUAL, 0, 3, openat), (_LOAD, 0, 0, _THIRD_ARGUMENT), (_ANY_BIT, 1, 0, _WRITE)]
    steps += [allow, refuse]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
