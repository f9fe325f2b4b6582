"""Signals that ask a long command to stop: Ctrl-C, SIGTERM, and a terminal that was closed."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# a closed terminal or a lost connection; Windows has no such signal
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)


@contextmanager
def on_signals(handle: Callable[[int], None], *numbers: signal.Signals | None) -> Iterator[None]:
    """Inside, `handle` gets these signals' numbers; None is left out.

    A hang-up that is ignored (nohup) stays ignored. Outside the main thread nothing changes: who
    runs that handles signals.
    """
    before = {}
    try:
        for number in numbers:
            ignored = number is HANGUP and number and signal.getsignal(number) == signal.SIG_IGN
            if number is not None and not ignored:
                before[number] = signal.signal(number, lambda got, _frame: _pass_on(got, handle))
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def stop_as_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal do what Ctrl-C does: they raise KeyboardInterrupt."""

    hung_up = False  # a closed terminal is often told twice: by the shell and by the system

    def stop(number: int) -> None:
        nonlocal hung_up
        if not hung_up or number != HANGUP:
            hung_up = number == HANGUP
            raise KeyboardInterrupt

    with on_signals(stop, signal.SIGTERM, HANGUP):
        yield


def _pass_on(number: int, handle: Callable[[int], None]) -> None:
    if number == HANGUP:
        _leave_terminal()
    handle(number)


def _leave_terminal() -> None:
    """Write to nowhere from here on, where output went to what is gone: it would be an error."""
    for descriptor in (1, 2):
        watch = select.poll()
        watch.register(descriptor, 0)
        if any(event & (select.POLLHUP | select.POLLERR) for _, event in watch.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
