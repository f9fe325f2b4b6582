"""One process in which answers that must be evaluated to be compared are compared.

math-verify (LaTeX) and some reasoning-gym tasks evaluate expressions: on hostile text that can
take forever or exhaust memory. `Worker` runs them in a child process with a limit per answer; a
child that exceeds it is killed and replaced. Signal-based limits inside those libraries would not
do: they only work in the main thread and cannot interrupt native code.

Protocol: JSON lines. Parent -> child `{"limit", "answer"}` with `"gold"` (LaTeX) or `"entry"` (a
task's problem, pickled by the parent and in base64: made again in the child it may come out
differently); child -> parent `{"right", "read"}`. The child's first line is `{"ready": true}` or
`{"fatal": reason}`. One request is under way at a time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from kit.errors import DataError
from kit.latex import judge_latex

START_SECONDS = 120.0  # importing sympy from a cold disk
MEMORY_BYTES = 4 << 30

# Tasks whose scorer evaluates the answer as Python; a test compares this with their source.
EVALUATING_TASKS = frozenset(
    {"binary_matrix", "countdown", "intermediate_integration", "n_queens"}
    | {"polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix"}
    | {"string_insertion"}
)
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan"}
    | {"sinh", "cosh", "tanh", "exp", "log", "ln", "sqrt", "Integral"}
)
_BEFORE_PARENTHESIS = re.compile(r"(\w+|\S|)\s*\(")


class Reply(NamedTuple):
    """What the child found out about one answer."""

    right: bool
    read: bool
    """False where the answer could not be parsed, or the child died over it."""


class Worker:
    """The parent's end: starts the child on first use, one per `Worker`; thread-safe.

    The child ends with the parent, however the parent ends.
    """

    def __init__(self, *task: str, limit: float = 3.0) -> None:
        """`task`: nothing for LaTeX, else the name of a reasoning-gym task and its options as JSON.

        `limit`: seconds one answer may take.
        """
        self.task = task
        self.limit = limit
        self.timeouts = 0
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stop: Callable[[], None] = lambda: None

    def ask(self, request: dict[str, Any]) -> Reply:
        """Judge one answer. Past the limit it is wrong, and counted in `timeouts`.

        Raises DataError when the child cannot start, for instance because a library is missing.
        """
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            try:
                self._send(request | {"limit": self.limit})
                line = self._replies.get(timeout=self.limit)
            except queue.Empty:
                self.timeouts += 1
                self._stop()
                return Reply(right=False, read=True)
            except BrokenPipeError:
                line = None
            except BaseException:  # interrupted: a late reply must not answer the next request
                self._stop()
                raise
            if line is None:  # it died over this answer: out of memory, or a stack overflow
                self._stop()
                return Reply(right=False, read=False)
            return Reply(**json.loads(line))

    def close(self) -> None:
        """End the child; a later `ask` starts another."""
        with self._lock:
            self._stop()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._child is not None and self._child.stdin is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()

    def _start(self) -> None:
        self._stop()
        child = subprocess.Popen(
            [sys.executable, "-m", "kit.math_worker", *self.task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=_child_environment(),
        )
        # a queue of its own: a late line of the previous child can never answer this one's request
        replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(child.stdout, replies), daemon=True).start()
        self._child, self._replies = child, replies
        self._stop = weakref.finalize(self, _end, child)
        try:
            line = replies.get(timeout=START_SECONDS)
        except queue.Empty:
            line = None
        greeting = json.loads(line) if line else {"fatal": "it ended or hung while starting"}
        if "fatal" in greeting:
            self._stop()
            raise DataError(f"the process that compares answers cannot start: {greeting['fatal']}")


def _child_environment() -> dict[str, str]:
    """One thread (a BLAS pool per core would use up the memory limit), and this package's path."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _forward(stream: IO[str], replies: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            replies.put(line)
    replies.put(None)


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def may_evaluate(answer: str) -> bool:
    """Whether an answer calls nothing but elementary functions, so that evaluating it is harmless.

    An expression without calls cannot act on anything outside it: every `(` must open a bracket,
    not a call, or follow the name of a function in the list.
    """
    if "__" in answer:
        return False
    before = {match[1] for match in _BEFORE_PARENTHESIS.finditer(answer)}
    return all(word in _FUNCTIONS or word in {"", *"+-*/^,([{=<>"} for word in before)


def judge_task(dataset: Any, entry: Any, answer: str) -> Reply:
    """Score an answer by its reasoning-gym data set; right is a score of exactly 1."""
    if entry["metadata"]["source_dataset"] in EVALUATING_TASKS and not may_evaluate(answer):
        return Reply(right=False, read=False)
    return Reply(bool(dataset.score_answer(answer, entry) == 1.0), read=True)


def _judge_for(task: list[str]) -> Callable[[dict[str, Any]], Reply]:
    """The judge, with all that is slow to build built before any limit applies."""
    if not task:
        judge_latex("\\frac{1}{2}", "0.5")
        return lambda request: Reply(*judge_latex(request["gold"], request["answer"]))

    import reasoning_gym

    name, options = task
    dataset = reasoning_gym.create_dataset(name, **json.loads(options))

    def judge(request: dict[str, Any]) -> Reply:
        entry = pickle.loads(base64.b64decode(request["entry"]))
        return judge_task(dataset, entry, request["answer"])

    return judge


def _limit_memory() -> None:
    if sys.platform == "win32":  # the time limit alone protects
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # a lower limit is already set, or none can be
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))


def main(task: list[str]) -> None:
    """The child's end: answer requests until the parent closes the pipe."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        judge = _judge_for(task)
    except Exception as error:  # a library missing or broken, whatever it raises
        send({"fatal": f"{type(error).__name__}: {error}"})
        return
    _limit_memory()
    send({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _set_alarm(2 * request["limit"] + 1)
        try:
            reply = judge(request)
        except Exception:  # hostile input meets two large libraries; the child must outlive it
            reply = Reply(right=False, read=False)
        _set_alarm(0)
        send(reply._asdict())


def _set_alarm(seconds: float) -> None:
    """The signal is not handled, so it kills: a child whose parent is gone must not live on."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
