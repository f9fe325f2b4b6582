"""The process in which answers that must be evaluated to be compared are compared, from outside.

math-verify (LaTeX) and the reasoning-gym tasks are large libraries that evaluate what they are
given: on hostile text that can take forever, exhaust memory or act on the machine. `Worker` starts
a process that has imported them and nothing else (`kit.tasks.sandboxed`): its environment is what
Python needs to find packages, and what it says is read as JSON (`kit.tasks.protocol`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from kit.errors import DataError
from kit.tasks.protocol import START_SECONDS, Reply, Request

GRACE_SECONDS = 10.0  # for a process that should have answered, on a busy machine

# of the environment: what Python and its packages need to be found and loaded
_KEPT = ("PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH")
_Lines = queue.SimpleQueue[str | None]  # None: there will be no more


class Worker:
    """Starts the process on first use, one per `Worker`; thread-safe.

    The process ends with this one, however this one ends.
    """

    def __init__(self, *task: str, limit: float = 3.0) -> None:
        """`task`: nothing for LaTeX, else the name of a reasoning-gym task and its options as JSON.

        `limit`: seconds one answer may take.
        """
        self.task, self.limit = task, limit
        self.timeouts = 0
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._replies: _Lines = queue.SimpleQueue()
        self._stop: Callable[[], None] = lambda: None

    def ask_many(self, requests: Sequence[Request]) -> list[Reply]:
        """Judge a batch. What takes longer than the limit is wrong, and counted in `timeouts`.

        A child that is found dead, whatever ended it, is replaced and asked again, once: the
        answer need not have been the cause. Raises DataError when the child cannot start, for
        instance because a library is missing.
        """
        replies: list[Reply] = []
        deaths = 0  # over the answer whose turn it is
        with self._lock:
            while len(replies) < len(requests):
                new = self._ask(requests[len(replies) :])
                deaths = 0 if new else deaths + 1
                replies += new
                if deaths == 2:
                    replies.append(Reply(right=False, read=False))
                    deaths = 0
        self.timeouts += sum(reply.timed_out for reply in replies)
        return replies

    def close(self) -> None:
        """End the child; a later `ask_many` starts another."""
        with self._lock:
            self._stop()

    def _ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies until the child is dead or hangs."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        replies: list[Reply] = []
        try:
            self._send({"limit": self.limit, "requests": requests})
            for _ in requests:
                line = self._replies.get(timeout=self.limit + GRACE_SECONDS)
                if line is None:
                    self._stop()
                    break
                replies.append(Reply(**json.loads(line)))
        except queue.Empty:
            self._stop()
            replies.append(Reply(right=False, read=True, timed_out=True))
        except OSError:  # a broken pipe
            self._stop()
        except BaseException:  # interrupted: a late reply must not answer the next request
            self._stop()
            raise
        return replies

    def _send(self, batch: dict[str, Any]) -> None:
        assert self._child is not None and self._child.stdin is not None
        self._child.stdin.write(json.dumps(batch) + "\n")
        self._child.stdin.flush()

    def _start(self) -> None:
        self._stop()
        child = subprocess.Popen(
            [sys.executable, "-m", "kit.tasks.sandboxed", *self.task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=_environment(),
        )
        self._stop = weakref.finalize(self, _end, child)
        # a queue of its own: a late line of the previous child can never answer this one's request
        self._child, self._replies = child, queue.SimpleQueue()
        threading.Thread(target=_forward, args=(child.stdout, self._replies), daemon=True).start()
        fatal = _fatal(self._replies)
        if fatal is not None:
            self._stop()
            raise DataError(f"the process that compares answers cannot start: {fatal}")


def _environment() -> dict[str, str]:
    """`_KEPT`, this package, and one thread: a pool per core would use up the memory limit."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | one_thread | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _forward(stream: IO[str], replies: _Lines) -> None:
    with stream:
        for line in stream:
            replies.put(line)
    replies.put(None)


def _fatal(replies: _Lines) -> str | None:
    """Why a child cannot start, by its first line; None: it can."""
    with contextlib.suppress(queue.Empty):
        if line := replies.get(timeout=START_SECONDS):
            return json.loads(line).get("fatal")
    return "it ended or hung while starting"


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
