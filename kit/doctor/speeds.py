"""What a launch, a wait and a byte take: the three numbers that decoding is bound by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from kit.doctor.findings import Finding, judged, measured
from kit.doctor.patient import Patient
from kit.estimate.gpus import find_gpu
from kit.estimate.times import FAST, SLOW

LAUNCHES = 2000
WAITS = 200
COPIED = 256 * 2**20  # bytes, far beyond any cache
REPEATS = 5


def launches(patient: Patient) -> Iterator[Finding]:
    """Seconds to launch an operation, and to wait for the card."""
    if patient.device.type == "cpu":
        return
    number = torch.zeros(1, device=patient.device)

    def launch() -> None:
        for _ in range(LAUNCHES):
            number.add_(1)

    def wait() -> None:
        for _ in range(WAITS):
            number.item()

    each = _seconds(launch) / LAUNCHES
    yield judged(
        "launching an operation",
        each <= SLOW.operation,
        f"{each * 1e6:.1f} µs",
        f"at most {SLOW.operation * 1e6:.0f} µs",
        f"kit estimate counts with {FAST.operation * 1e6:.0f} to {SLOW.operation * 1e6:.0f} µs; "
        "the processor decides it",
        seconds=each,
    )
    pause = _seconds(wait) / WAITS
    yield measured("waiting for the card", f"{pause * 1e6:.0f} µs", seconds=pause)


def bandwidth(patient: Patient) -> Iterator[Finding]:
    """Bytes read and written per second in a long copy."""
    if patient.device.type == "cpu":
        return
    free, _ = torch.cuda.mem_get_info(patient.device)
    count = min(COPIED, free // 4)
    source = torch.zeros(count, dtype=torch.uint8, device=patient.device)
    target = torch.empty_like(source)
    speed = 2 * count / _seconds(lambda: target.copy_(source))
    found = f"{speed / 1e9:.0f} GB/s"
    sheet = find_gpu(patient.gpu).bandwidth
    if sheet is None:
        yield measured("memory bandwidth", found, "no data sheet of this card here", speed=speed)
        return
    share = speed / sheet
    yield judged(
        "memory bandwidth",
        SLOW.bandwidth <= share <= 1.1,
        f"{found}, {share:.0%} of the data sheet",
        f"{SLOW.bandwidth:.0%} to 110 % of {sheet / 1e9:.0f} GB/s",
        f"kit estimate counts with {SLOW.bandwidth:.0%} to {FAST.bandwidth:.0%}",
        speed=speed,
        share=share,
    )


def _seconds(work: Callable[[], object]) -> float:
    """Median time of the work on the card, after once without counting."""
    times = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
