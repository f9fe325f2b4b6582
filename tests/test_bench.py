"""`make bench`: the driver goes on when a program fails, and every program measures its tables."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TABLES = (
    *(("rollout", name) for name in ("fixed", "ragged", "packed")),
    *(("growth", name) for name in ("sampling", "update")),
    *(("loss", "update"), ("evaluation", "adapters"), ("limits", "arithmetic")),
    ("recipes", "recipes"),
)


@pytest.fixture
def benchmarks(monkeypatch):
    """Its folder is where programs look for their neighbours."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


# --- the driver ----------------------------------------------------------------------------------

GOOD = """
import json, sys
path = next(a for a in sys.argv if a.startswith("--json=")).removeprefix("--json=")
row = {"": "kit", "seconds": 0.25, "kit / it": 1.0}
with open(path, "a") as file:
    table = {"title": "What is good", "rows": [row], "note": " ".join(sys.argv[2:])}
    file.write(json.dumps(table) + "\\n")
"""


def test_the_driver_survives_what_fails(benchmarks, tmp_path, monkeypatch):
    bench = benchmarks("bench")
    programs = {
        "good": GOOD,
        "dies": GOOD + "import os; os._exit(3)",
        "hangs": "",
        "last": GOOD,
    }
    for name, text in programs.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "PROGRAMS", tuple(programs))
    run = subprocess.run

    def or_hang(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        if command[1].endswith("hangs.py"):
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", or_hang)
    output = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["bench.py", "--tiny", "--output", str(output)])
    assert bench.main() == 1
    page = (output / "bench.md").read_text()
    assert page.count("### What is good") == 3 and page.count("| kit |      0.25 |") == 3
    assert page.count("--tiny") == 3  # each was told the size
    assert "Failed: its process ended with status 3." in page
    assert "Failed: it took more than 300 seconds." in page
    assert "torch 2" in page and "load" in page
    report = json.loads((output / "bench.json").read_text())
    assert list(report["programs"]) == list(programs)
    assert report["machine"]["threads"] >= 1 and report["size"]["name"] == "tiny"


def test_the_driver_is_content_when_all_is_well(benchmarks, tmp_path, monkeypatch):
    bench = benchmarks("bench")
    (tmp_path / "good.py").write_text(GOOD)
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "PROGRAMS", ("good",))
    monkeypatch.setattr("sys.argv", ["bench.py", "--output", str(tmp_path / "out")])
    assert bench.main() == 0


# --- tables --------------------------------------------------------------------------------------


def test_medians_are_of_pairs(benchmarks):
    measuring = benchmarks("measuring")
    # runs of 2, 10 and 6 against 1, 20 and 2: ratios 2, 0.5, 3, whose median is 2
    rows = measuring.against({"kit": [2.0, 10.0, 6.0], "other": [1.0, 20.0, 2.0]}, "tokens/s")
    assert rows == [
        {"": "kit", "tokens/s": 6.0, "kit / it": 1.0},
        {"": "other", "tokens/s": 2.0, "kit / it": 2.0},
    ]
    assert measuring.against({"kit": [4.0]})[0]["seconds"] == 0.25


def test_a_peer_that_fails_leaves_the_others(benchmarks):
    measuring = benchmarks("measuring")

    def fails(run: int) -> float:
        raise RuntimeError(f"no memory in run {run}")

    sides = {"kit": float, "broken": fails, "other": lambda _: 1.0}
    lost: dict[str, str] = {}
    speeds = measuring.paired(sides, 2, lost)
    assert {name: len(values) for name, values in speeds.items()} == {"kit": 2, "other": 2}
    assert lost == {"broken": "RuntimeError: no memory in run 0"}
    with pytest.raises(RuntimeError):
        measuring.paired({"kit": fails, "other": float}, 2, lost)
    with pytest.raises(RuntimeError):
        measuring.paired(sides, 2)


def test_a_table_that_fails_is_a_sentence(benchmarks):
    measuring = benchmarks("measuring")

    def fails(_: Any) -> None:
        """What cannot be measured."""
        raise RuntimeError("no\nroom")

    def left_out(_: Any) -> None:
        """What needs a GPU."""
        raise measuring.LeftOut("there is none here")

    failed, missing = (measuring.measured(each, measuring.TINY) for each in (fails, left_out))
    assert str(failed) == "### What cannot be measured\n\nFailed: RuntimeError: no room."
    assert str(missing) == "### What needs a GPU\n\nLeft out: there is none here."
    assert failed.failed and not missing.failed


def test_exponents(benchmarks):
    growth = benchmarks("growth")
    # 3 * x^2: the slope of the logarithms is 2
    assert growth.row("squares", {1: 3.0, 2: 12.0, 4: 48.0})["exponent"] == pytest.approx(2)


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.parametrize("program, table", TABLES, ids=" ".join)
def test_every_table_is_measured(benchmarks, program, table):
    if program == "loss":
        pytest.importorskip("trl")
    measuring = benchmarks("measuring")
    found = measuring.measured(getattr(benchmarks(program), table), measuring.TINY)
    assert found.rows and not found.missing, found.missing
    for row in found.rows:
        row = {name: value for name, value in row.items() if name != "exponent"}  # of noise here
        numbers = [value for value in row.values() if isinstance(value, int | float)]
        assert numbers and all(number >= 0 for number in numbers if number is not None)


@pytest.mark.smoke
@pytest.mark.slow
def test_the_driver_end_to_end(tmp_path):
    """Training steps beside TRL's, each in a process of its own, and what needs a GPU."""
    pytest.importorskip("trl")
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--tiny", "--output", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    only = ["--only", "trl_step", "recipes"]
    done = subprocess.run([*command, *only], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tables = json.loads((tmp_path / "bench.json").read_text())["programs"]
    for table in tables["trl_step"]:
        assert [row[""] for row in table["rows"]] == ["kit", "TRL"]
        assert all(row["peak, MiB"] > 0 and row["characters"] > 0 for row in table["rows"])
    assert tables["recipes"][0]["rows"][0]["recipe"] == "smoke"
