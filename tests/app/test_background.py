"""A listener gets the newest item, and whoever leaves holds nothing up."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from kit.app.compare.background import Background

LONG = 20.0  # seconds; it takes milliseconds where nothing else runs


def counting(seen, closed, pause=0.001):
    def produce():
        try:
            for number in itertools.count():
                seen.append(number)
                yield number
                time.sleep(pause)
        finally:
            closed.set()

    return produce


def test_every_listener_sees_the_last_item():
    def produce():
        yield from range(1000)

    items = list(Background(produce))
    assert items[-1] == 999 and items == sorted(set(items))


def test_a_slow_listener_skips_items_and_does_not_slow_the_work():
    closed, seen = threading.Event(), []
    job = Background(counting(seen, closed))
    listener = iter(job)
    next(listener)
    end = time.monotonic() + LONG
    while len(seen) <= 10 and time.monotonic() < end:
        time.sleep(0.01)
    assert next(listener) >= 9  # the newest, not the second
    listener.close()
    assert closed.wait(LONG) and job.join(LONG)


def test_leaving_closes_the_producer():
    closed, seen = threading.Event(), []
    job = Background(counting(seen, closed))
    for _ in job:
        break
    assert closed.wait(LONG) and job.join(LONG)
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count


def test_stop_ends_the_iteration_with_what_there_is():
    closed, seen = threading.Event(), []
    job = Background(counting(seen, closed))
    items = []
    for item in job:
        items.append(item)
        if len(items) == 3:
            job.stop()
    assert job.is_stopped and closed.is_set()
    assert items[-1] == seen[-1]


def test_a_listener_who_never_comes_back_is_given_up():
    closed, seen = threading.Event(), []
    job = Background(counting(seen, closed), patience=0.05)
    listener = iter(job)
    next(listener)  # and never again; not closed either
    assert closed.wait(LONG) and job.join(LONG)


def test_a_listener_who_waits_for_a_slow_item_is_still_there():
    def produce():
        time.sleep(0.3)
        yield from range(10)

    for _ in range(5):
        assert list(Background(produce, patience=0.1))[-1] == 9


def test_an_error_reaches_the_listener():
    def produce():
        yield 1
        raise MemoryError("none left")

    seen = []
    with pytest.raises(MemoryError, match="none left"):
        for item in Background(produce):
            seen.append(item)
    assert seen in ([1], [])  # the item may have been overtaken by the error


def test_context_managers_of_the_producer_end_in_its_own_thread():
    ended_in = []

    def produce():
        try:
            while True:
                yield threading.get_ident()
                time.sleep(0.001)
        finally:
            ended_in.append(threading.get_ident())

    job = Background(produce)
    listener = iter(job)
    worker = next(listener)
    listener.close()
    assert job.join(LONG)
    assert ended_in == [worker] != [threading.get_ident()]
