"""The program that compares answers which must be evaluated: `python -m kit.tasks.sandboxed`.

It imports the libraries and judges nothing itself: each batch of answers is judged by a fork of it,
which may not do anything but compute (`kit.tasks.confine`) and ends with the batch, so that no
answer can change what judges the next batch. One past its time is killed, one in which something
was raised ends, and another goes on.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from kit.tasks.confine import confine
from kit.tasks.latex import judge_latex
from kit.tasks.protocol import START_SECONDS, Reply, Request, pack, unpack
from kit.tasks.task_scores import judge_task

# what a fork writes for an answer: right, wrong, not read
_VERDICTS = {b"1": (True, True), b"0": (False, True), b"?": (False, False)}
_RAISED = b"!"  # not read, and the fork ends

Judge = Callable[[Request], Reply]


class _Court(NamedTuple):
    """A judge, a first request to it, and what its formulas may name besides."""

    judge: Judge
    first: Request
    names: Iterable[str] = ()


# --- forks ----------------------------------------------------------------------------------------


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
        reply = judged(judge, request)
        if reply is None:
            os.write(held, _RAISED)
            return
        os.write(held, b"1" if reply.right else b"0" if reply.read else b"?")


def judged(judge: Judge, request: Request) -> Reply | None:
    """None where the judge raised something."""
    try:
        return judge(request)
    except Exception:  # hostile input meets large libraries: whatever they raise, it is not right
        return None


# --- the program ----------------------------------------------------------------------------------


def main(task: list[str]) -> None:
    """Answer requests until the parent closes the pipe; `task`: see `kit.tasks.sandbox.Worker`."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    _keep_to_itself()

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        court = _tasks_court(*task) if task else _latex_court()
        _rehearse(court)
    except Exception as error:  # a library missing or broken, whatever it raises
        send({"fatal": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of all that is loaded
    send({"ready": True})
    for line in sys.stdin:
        batch = json.loads(line)
        for reply in judge_batch(court.judge, batch["requests"], batch["limit"], court.names):
            send(reply._asdict())


def _keep_to_itself() -> None:
    """What libraries print is no reply; Ctrl-C and a closed terminal are for the parent."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.CRITICAL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _latex_court() -> _Court:
    def judge(request: Request) -> Reply:
        return Reply(*judge_latex(request["gold"], request["answer"]))

    return _Court(judge, {"gold": "\\frac{1}{2}", "answer": "0.5"})


def _tasks_court(name: str, options: str) -> _Court:
    import reasoning_gym

    dataset: Any = reasoning_gym.create_dataset(name, **json.loads(options))

    def judge(request: Request) -> Reply:
        return judge_task(dataset, unpack(request["entry"]), request["answer"])

    own = dataset[0]
    names = {n for field in ("symbols", "variables") for n in getattr(dataset.config, field, ())}
    return _Court(judge, {"entry": pack(own), "answer": str(own["answer"])}, names)


def _rehearse(court: _Court) -> None:
    """Load what libraries load when first used, and see that a fork judges as this process does."""
    here = judged(court.judge, court.first)
    if here is not None:
        there = next(judge_batch(court.judge, [court.first], START_SECONDS, court.names))
        if there != here:
            raise RuntimeError(f"confined, it judges {there} what is {here}")


if __name__ == "__main__":
    main(sys.argv[1:])
