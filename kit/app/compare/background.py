"""An iterator that runs in a thread of its own and stops when nobody listens any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 20.0  # seconds without a listener after which the work is given up


class Background(Generic[T]):
    """Runs `produce()` in a thread; iterating gives its newest item, skipping what came between.

    The thread never waits for the listener, so a listener who leaves holds nothing up: the producer
    is closed after its next item when the listener closes the iterator, calls `stop`, or has left
    an item for `patience` seconds. What the producer raises is raised to the listener.
    """

    def __init__(self, produce: Callable[[], Iterator[T]], patience: float = PATIENCE) -> None:
        self._produce, self._patience = produce, patience
        self._changed = threading.Condition()
        self._item: list[T] = []  # the newest one nobody has seen
        self._error: BaseException | None = None
        self._is_over = self._is_stopped = False
        self._left_since = 0.0  # when what is in _item began to wait
        self._thread = threading.Thread(target=self._run, daemon=True)

    def stop(self) -> None:
        """Let the producer finish its item and no other; the listener still gets that one."""
        self._is_stopped = True

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __iter__(self) -> Iterator[T]:
        self._thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._item or self._is_over)
                    item, self._item = self._item, []
                if item:
                    yield item[0]
                elif self._error is not None:
                    raise self._error
                else:
                    return
        finally:
            self.stop()

    def _run(self) -> None:
        items = self._produce()
        try:
            for item in items:
                now = time.monotonic()
                with self._changed:
                    if not self._item:
                        self._left_since = now
                    self._item = [item]
                    self._changed.notify()
                if self._is_stopped or now - self._left_since > self._patience:
                    break
        except BaseException as error:  # handed to the listener, whose thread can show it
            self._error = error
        finally:
            if hasattr(items, "close"):
                items.close()  # here, because contexts of torch belong to a thread
            with self._changed:
                self._is_over = True
                self._changed.notify()
