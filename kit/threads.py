"""How the threads of the arithmetic share the processor with what else runs there, and what must be
one process.

A step is thousands of short products, after each of which the threads wait for one another. OpenMP
lets them wait awake, for milliseconds: beside another busy program each holds a core while the one
it waits for has none, and a step takes many times as long instead of twice. Here they go to sleep
after about the time that waking up takes.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from kit.errors import ConfigError

SPINS = "1000"  # some ten microseconds; libgomp's own number for more threads than cores
WAITING = {
    "OMP_WAIT_POLICY": "PASSIVE",  # for every OpenMP
    "GOMP_SPINCOUNT": SPINS,  # for libgomp, which torch has on Linux: not quite at once
}
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this container: microseconds per period, or "max"


def share_processor(environ: MutableMapping[str, str] = os.environ, quota: Path = QUOTA) -> None:
    """Set threads and waiting for the OpenMP that torch brings; what the user has set stays.

    To be called before anything imports torch: OpenMP reads its variables once. In a container
    that may use fewer cores than the machine has there are as many threads as it may use.
    """
    if not {*WAITING, "KMP_BLOCKTIME"} & set(environ):
        environ.update(WAITING)
    cores = _allowed_cores(quota)
    if cores is not None and cores < (os.cpu_count() or 1):
        environ.setdefault("OMP_NUM_THREADS", str(cores))


def check_one_process(command: str) -> None:
    """ConfigError under a launcher of several processes, which would all do the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{command} runs in one process; start it without a launcher")


def _allowed_cores(quota: Path) -> int | None:
    """How many cores a container may use at once, rounded up; None: all."""
    try:
        allowed, period = quota.read_text(encoding="utf-8").split()
        return max(1, -(-int(allowed) // int(period)))
    except (OSError, ValueError):
        return None
