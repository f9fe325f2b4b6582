"""The fault harness finds what is lost, and a little of it finds that the kit loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.__main__ import _disturb
from tests.faults.scenarios import Scenario

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/fd").is_dir(),
    reason="the harness forks, and reads /proc to tell files apart",
)


def nothing(folder, main):
    """No preparation."""


def in_place(folder: Path) -> int:
    """Overwrites a file that a reader needs whole, as the kit never does."""
    path = folder / "made" / "record.json"
    done = json.loads(path.read_text()) if path.exists() else []
    for number in range(len(done), 3):
        with open(path, "w") as file:
            file.write(json.dumps([*done, number]))
        done.append(number)
    return 0


def durable(folder: Path) -> int:
    from kit.files import write_atomically

    path = folder / "made" / "record.json"
    done = json.loads(path.read_text()) if path.exists() else []
    for number in range(len(done), 3):
        done.append(number)
        try:
            write_atomically(path, json.dumps(done))
        except OSError as error:
            print(error)
            return 1
    return 0


def test_a_command_that_loses_something_is_found_out(tmp_path):
    _, failures = _disturb(Scenario("in place", nothing, in_place), 8, tmp_path)
    assert any("JSONDecodeError" in failure for failure in failures)


@pytest.mark.slow
def test_a_command_that_loses_nothing_passes(tmp_path):
    counts, failures = _disturb(Scenario("durable", nothing, durable), 22, tmp_path)
    assert failures == []
    # 3 renames, 3 writes, 6 syncs (file and folder): a kill at each
    assert (counts["rename"], counts["write"], counts["sync"]) == (3, 3, 6)
    assert counts["disk full"] == 4 and counts["seconds"] == 6


@pytest.mark.slow
def test_commands_lose_nothing():
    """Three faults for each command; `make faults` puts in more."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--faults", "15"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[1],
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    table, said = run.stdout.splitlines()[-2:]
    counts = {name: sum(faults.values()) for name, faults in json.loads(table).items()}
    assert counts == dict.fromkeys(("train", "evaluate", "compare", "merge", "votes"), 3)
    assert said == "nothing was lost"
