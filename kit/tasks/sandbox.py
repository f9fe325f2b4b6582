"""One process in which answers that must be evaluated to be compared are compared.

math-verify (LaTeX) and the reasoning-gym tasks are large libraries that evaluate what they are
given: on hostile text that can take forever, exhaust memory or act on the machine. `Worker` starts
a process that has imported them and nothing else: its environment is what Python needs to find
packages. That process judges nothing itself: each batch of answers is judged by a fork of it, which
may not do anything but compute (`kit.tasks.confine`) and ends with the batch, so that no answer can
change what judges the next batch. One past its time is killed, one in which something was raised
ends, and another goes on. Tasks whose scorer evaluates the answer are handed what
`kit.tasks.task_grammar` has read in it. Without `fork` (Windows) the process judges itself: what an
answer could change there would last, and one past its time costs a new start.

Protocol: JSON lines. Parent -> child `{"limit", "requests"}`; each request has `"answer"`, and
`"gold"` (LaTeX) or `"entry"` (a task's problem, by `pack`: made again in the child it may come out
differently). Child -> parent one `Reply` for each. The child's first line is `{"ready": true}` or
`{"fatal": reason}`. One batch is under way at a time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple

from kit.errors import DataError
from kit.tasks.answers import parse_number
from kit.tasks.confine import confine
from kit.tasks.latex import judge_latex
from kit.tasks.task_grammar import EVALUATING_TASKS, rewrite

START_SECONDS = 120.0  # importing sympy from a cold disk
GRACE_SECONDS = 10.0  # for a process that should have answered, on a busy machine
FORKS = hasattr(os, "fork")

# of the environment: what Python and its packages need to be found and loaded
_KEPT = (
    *("PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("SYSTEMROOT", "PATH", "APPDATA"),
)
# what a fork writes for an answer: right, wrong, not read
_VERDICTS = {b"1": (True, True), b"0": (False, True), b"?": (False, False)}
_RAISED = b"!"  # not read, and the fork ends
NEAR = Fraction(1, 100)  # relative: tasks round their golds to as much
_DENIALS = re.compile(r"\b(?:not|isn't|never|false|wrong|incorrect|or)\b")
_CONTAINERS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


Request = dict[str, Any]


class Reply(NamedTuple):
    """What the child found out about one answer."""

    right: bool
    read: bool
    """False where the answer could not be parsed, or its judge died over it."""
    timed_out: bool = False


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

    def ask(self, request: Request) -> Reply:
        """Judge one answer, as `ask_many` does."""
        return self.ask_many([request])[0]

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

    def _ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies until the child is dead or hangs."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        replies: list[Reply] = []
        try:
            self._send({"limit": self.limit, "requests": requests})
            for _ in requests:
                line = self._replies.get(timeout=self.limit + (GRACE_SECONDS if FORKS else 0))
                if line is None:
                    self._stop()
                    break
                replies.append(Reply(**json.loads(line)))
        except queue.Empty:
            self._stop()
            replies.append(Reply(right=False, read=True, timed_out=True))
        except OSError:  # a broken pipe, on Windows by another name
            self._stop()
        except BaseException:  # interrupted: a late reply must not answer the next request
            self._stop()
            raise
        return replies

    def close(self) -> None:
        """End the child; a later `ask` starts another."""
        with self._lock:
            self._stop()

    def _send(self, batch: dict[str, Any]) -> None:
        assert self._child is not None and self._child.stdin is not None
        self._child.stdin.write(json.dumps(batch) + "\n")
        self._child.stdin.flush()

    def _start(self) -> None:
        self._stop()
        child = subprocess.Popen(
            [sys.executable, "-m", "kit.tasks.sandbox", *self.task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=_environment(),
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


def _environment() -> dict[str, str]:
    """`_KEPT`, this package, and one thread: a pool per core would use up the memory limit."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | one_thread | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


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


def pack(value: Any) -> Any:
    """What JSON can hold of a task's problem: containers are lists that begin with their type.

    Raises DataError where it holds anything else but numbers, text, booleans and None.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    name = type(value).__name__
    if type(value) is dict:
        return [name, *([pack(key), pack(held)] for key, held in value.items())]
    if type(value) in (list, tuple, set, frozenset):
        return [name, *map(pack, value)]
    raise DataError(
        f"this task cannot be used: its problems hold a {type(value).__module__}.{name}, and only "
        "numbers, text, lists, tuples, sets and dictionaries can be handed to the process that "
        "scores answers; choose another task"
    )


def unpack(packed: Any) -> Any:
    """What `pack` was given."""
    if not isinstance(packed, list):
        return packed
    name, *held = packed
    if name == "dict":
        return {unpack(key): unpack(value) for key, value in held}
    return _CONTAINERS[name](map(unpack, held))


def judge_task(dataset: Any, entry: Any, answer: str) -> Reply:
    """Score an answer by its reasoning-gym data set; right is a score of exactly 1."""
    task = entry["metadata"]["source_dataset"]
    rewritten = rewrite(task, answer, entry) if task in EVALUATING_TASKS else answer
    if rewritten is None:
        return Reply(right=False, read=False)
    right = bool(dataset.score_answer(rewritten, entry) == 1.0)
    return Reply(right and _stands(task, rewritten, entry), read=True)


def _stands(task: str, answer: str, entry: Any) -> bool:
    """Whether an answer is right that the task's own scorer takes for right.

    Some take what they should not: NaN, which is near every number; any four numbers for a game
    with four given ones; every answer for yes; the first number of several; what is denied.
    """
    if task in ("complex_arithmetic", "number_sorting"):
        return "nan" not in answer.lower()
    if task == "puzzle24":
        return sorted(map(int, re.findall("[0-9]+", answer))) == sorted(
            entry["metadata"]["numbers"]
        )
    if task == "game_of_life_halting":
        return answer.strip().lower() == str(entry["answer"]).lower()
    return _says_no_other_number(answer, str(entry["answer"])) and _takes_nothing_back(
        answer, entry
    )


def _says_no_other_number(answer: str, gold: str) -> bool:
    """Where the gold answer is a number: whether the answer is it, or near it where it has places.

    Several scorers take the first number of whatever they are given.
    """
    if (wanted := parse_number(gold)) is None:
        return True
    value = parse_number(answer)
    if value is None:
        return False
    return value == wanted or (
        wanted.denominator != 1 and abs(value - wanted) <= NEAR * abs(wanted)
    )


def _takes_nothing_back(answer: str, entry: Any) -> bool:
    """Whether it has no more words that deny than the gold answer; scorers look for that inside."""
    denied, gold = (_DENIALS.findall(text.lower()) for text in (answer, str(entry["answer"])))
    return len(denied) <= len(gold)


Judge = Callable[[Request], Reply]


def _judge_for(task: list[str]) -> tuple[Judge, Request, set[str]]:
    """The judge, a first request to it, and what its formulas may name besides."""
    if not task:
        first = {"gold": "\\frac{1}{2}", "answer": "0.5"}
        return lambda request: Reply(*judge_latex(request["gold"], request["answer"])), first, set()

    import reasoning_gym

    name, options = task
    dataset: Any = reasoning_gym.create_dataset(name, **json.loads(options))

    def judge(request: Request) -> Reply:
        return judge_task(dataset, unpack(request["entry"]), request["answer"])

    own = dataset[0]
    names = {n for field in ("symbols", "variables") for n in getattr(dataset.config, field, ())}
    return judge, {"entry": pack(own), "answer": str(own["answer"])}, names


def _judged(judge: Judge, request: Request) -> Reply | None:
    """None where the judge raised something."""
    try:
        return judge(request)
    except Exception:  # hostile input meets large libraries: whatever they raise, it is not right
        return None


def judge_batch(
    judge: Judge, requests: Sequence[Request], limit: float, names: Iterable[str] = ()
) -> Iterator[Reply]:
    """Judge in forks of this process that may only compute, `limit` seconds an answer."""
    done = 0
    while done < len(requests):
        for reply in _judge_in_fork(judge, requests[done:], limit, names):
            yield reply
            done += 1


def _judge_in_fork(
    judge: Judge, requests: Sequence[Request], limit: float, names: Iterable[str]
) -> Iterator[Reply]:
    """The replies until the fork has ended or is stopped: one at least."""
    verdicts, held = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            _judge_confined(judge, requests, limit, names, held)
        finally:
            os._exit(0)  # whatever happened: the fork must never go on as its parent
    os.close(held)
    try:
        for _ in requests:
            if not select.select([verdicts], [], [], limit)[0]:
                yield Reply(right=False, read=True, timed_out=True)
                return
            verdict = os.read(verdicts, 1)
            yield Reply(*_VERDICTS.get(verdict, (False, False)))
            if verdict not in _VERDICTS:  # it ended, or died over the answer
                return
    finally:
        os.close(verdicts)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _judge_confined(
    judge: Judge, requests: Sequence[Request], limit: float, names: Iterable[str], held: int
) -> None:
    """Write a verdict on each request to `held`, the only thing that is left open."""
    seconds = (limit + 1) * len(requests)
    # a fork whose parent is gone must not live on: the signal is not handled, so it kills
    signal.setitimer(signal.ITIMER_REAL, seconds)
    os.dup2(2, 0)  # nothing is read there, and what is written there is lost
    os.closerange(3, held)
    os.closerange(held + 1, held + 64)
    confine(seconds, names)
    for request in requests:
        reply = _judged(judge, request)
        if reply is None:
            os.write(held, _RAISED)
            return
        os.write(held, b"1" if reply.right else b"0" if reply.read else b"?")


def _check(judge: Judge, first: Request, names: Iterable[str]) -> None:
    """Load what libraries load when first used, and see that a fork judges as this process does."""
    here = _judged(judge, first)
    if FORKS and here is not None:
        there = next(judge_batch(judge, [first], START_SECONDS, names))
        if there != here:
            raise RuntimeError(f"confined, it judges {there} what is {here}")


def main(task: list[str]) -> None:
    """The child's end: answer requests until the parent closes the pipe."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    logging.disable(logging.CRITICAL)
    for name in ("SIGINT", "SIGHUP"):  # Ctrl-C and a closed terminal are for the parent
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        judge, first, names = _judge_for(task)
        _check(judge, first, names)
    except Exception as error:  # a library missing or broken, whatever it raises
        send({"fatal": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of all that is loaded
    if not FORKS:
        confine(float("inf"), names)
    send({"ready": True})
    for line in sys.stdin:
        batch = json.loads(line)
        for reply in _replies(judge, batch, names):
            send(reply._asdict())


def _replies(judge: Judge, batch: dict[str, Any], names: Iterable[str]) -> Iterator[Reply]:
    if FORKS:
        yield from judge_batch(judge, batch["requests"], batch["limit"], names)
    else:
        for request in batch["requests"]:
            yield _judged(judge, request) or Reply(right=False, read=False)


if __name__ == "__main__":
    main(sys.argv[1:])
