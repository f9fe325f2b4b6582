"""Disturb the kit's commands, let them go on, and print what was lost: nothing, it is hoped.

    python -m tests.faults [--faults N] [--seed S] [--only NAME …]

Each scenario is run to its end once, undisturbed, which counts its operations. Then N faults are
spread over the scenarios: every rename, sync and write in turn, kills at random seconds, and a disk
that is full from some operation on. After each, the same command is given again and must end with
the same files. A second fault meets every third of these attempts to go on.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.injection import KINDS, Fault, Injector
from tests.faults.scenarios import Scenario, differences, outline, scenarios, snapshot

SHARE_OF_SECONDS = 0.25  # of the faults: kills at random seconds
SHARE_OF_FULL = 0.2  # of the faults: a full disk
# what commands import as they go, some of it late: imported once, before the first fork
IMPORTED = (
    *("datasets", "reasoning_gym", "tests.reward_functions", "peft.tuners.lora.bnb"),
    *("transformers.models.qwen2.modeling_qwen2", "transformers.quantizers.quantizer_bnb_4bit"),
    *("kit.adapters.merge", "kit.comparison", "kit.reports"),
)


def main() -> int:
    options = _parse()
    for name in IMPORTED:  # each command then runs in a fork, a real process of its own
        importlib.import_module(name)
    from kit import cli

    random.seed(options.seed)
    chosen = [s for s in scenarios(cli.main) if not options.only or s.name in options.only]
    number = max(1, round(options.faults / len(chosen)))
    failures: list[str] = []
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scenario in chosen:
            table[scenario.name], lost = _disturb(scenario, number, Path(folder) / scenario.name)
            failures += lost
    print(json.dumps({name: dict(counts) for name, counts in table.items()}))
    print("\n".join(failures) or "nothing was lost")
    return bool(failures)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    return parser.parse_args()


def _disturb(scenario: Scenario, number: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Counts of what was done, and a line for each fault that lost something."""
    start = folder / "start"
    (start / "made").mkdir(parents=True)
    # where files are is written into them: each attempt is made in the same place
    here = folder / "here"
    counts: Counter[str] = Counter()
    failures = []
    shutil.copytree(start, here)
    _run(lambda: scenario.prepare(here, _quiet_main), folder / "log", Injector(here, None))
    shutil.rmtree(start)
    shutil.copytree(here, start)
    injector = Injector(here / "made", None)
    began = time.monotonic()
    status, operations = _run(lambda: scenario.command(here), folder / "log", injector)
    seconds = time.monotonic() - began
    if status != 0:
        raise SystemExit(f"{scenario.name} fails undisturbed: {(folder / 'log').read_text()}")
    seen = snapshot if scenario.is_exact else lambda folder: outline(snapshot(folder))
    wanted = seen(here / "made")
    for index, fault in enumerate(_faults(operations, seconds, number)):
        shutil.rmtree(here)
        shutil.copytree(start, here)
        said = _attempts(scenario, here, folder / "log", fault, again=index % 3 == 2)
        counts["disk full" if fault.full else fault.kind] += 1
        lost = said or [f"{name} differs" for name in differences(wanted, seen(here / "made"))]
        rests = [p.name for p in (here / "made").rglob("*") if p.suffix in (".part", ".old")]
        lost += [f"{name} is left" for name in rests]
        if lost:
            failures.append(f"{scenario.name}, {fault}: {'; '.join(lost)}")
        print(f"{scenario.name} {index + 1}/{number}: {fault}", file=sys.stderr, flush=True)
    return counts, failures


def _attempts(scenario: Scenario, here: Path, log: Path, fault: Fault, again: bool) -> list[str]:
    """The command with a fault, then again until its end; what went wrong beyond the fault."""
    faults = [fault, Fault(fault.kind, max(1, fault.at // 2), fault.full)] if again else [fault]
    for one in (*faults, None):
        injector = Injector(here / "made", one)
        status, _ = _run(lambda: scenario.command(here), log, injector)
        text = log.read_text(errors="replace")
        if "Traceback (most recent call last)" in text:
            return [f"a traceback: {text.strip().splitlines()[-1]}"]
        if one is None and status != 0:
            return [f"it does not go on: {text.strip().splitlines()[-1]}"]
    return []


def _faults(operations: dict[str, int], seconds: float, number: int) -> Iterator[Fault]:
    """`number` faults: every operation in turn, as long as there are any, the rest at random."""
    timed = round(number * SHARE_OF_SECONDS)
    full = round(number * SHARE_OF_FULL)
    every = [Fault(kind, n + 1) for kind in KINDS for n in range(operations[kind])]
    random.shuffle(every)
    kills = number - timed - full
    yield from itertools.islice(itertools.cycle(every), kills)
    for fault in random.choices([f for f in every if f.kind != "rename"], k=full):
        yield Fault(fault.kind, fault.at, full=True)
    for _ in range(timed):
        yield Fault("seconds", random.uniform(0.01, seconds))


def _run(work: Callable[[], Any], log: Path, injector: Injector) -> tuple[int, dict[str, int]]:
    """Run in a fork: exit status (negative: the signal), and the operations it counted."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _end_of_child(work, log, injector, writing)
    os.close(writing)
    with os.fdopen(reading) as told:
        counted = told.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, 1, -signal.SIGKILL):
        raise SystemExit(f"an unexpected end, {status}: {log.read_text()}")
    return status, json.loads(counted) if counted else {}


def _end_of_child(work: Callable[[], Any], log: Path, injector: Injector, writing: int) -> None:
    status = 1
    try:
        output = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        logging.getLogger().handlers.clear()
        random.seed(0)  # a checkpoint holds these states too
        np.random.seed(0)
        injector.install()
        status = int(work() or 0)
        os.write(writing, json.dumps(injector.counts).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _quiet_main(arguments: Any) -> int:
    from kit import cli

    return cli.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main())
