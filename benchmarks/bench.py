"""All benchmarks in one command: `make bench`, or `python benchmarks/bench.py [--quick]`.

Each is a program of its own beside this one. What they measure is gathered in two files, bench.md
and bench.json, which are written after every program: one that fails, or takes too long, leaves a
sentence in its place and the others are measured all the same. The status is then 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import CUDA, SIZES, Size, Table, add_sizes, machine

HERE = Path(__file__).parent
PROGRAMS = ("trl_step", "rollout", "loss", "evaluation", "growth", "limits", "recipes")
LONGEST = {"full": 3600, "quick": 900, "tiny": 300}  # seconds of a program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_sizes(parser)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="FOLDER")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"size": asdict(options.size), "machine": machine(), "programs": {}}
    for name in options.only:
        tables = run(name, options.size)
        report["programs"][name] = [asdict(table) for table in tables]
        report["machine"]["load at the end"] = machine()["load"]
        (options.output / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
        (options.output / "bench.md").write_text(page(report))
    print(f"-> {options.output}/bench.md and bench.json")
    return int(any(t["failed"] for tables in report["programs"].values() for t in tables))


def run(name: str, size: Size) -> list[Table]:
    """The tables of one program, in a process of its own; what it says is shown as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "tables.jsonl")
        command = [sys.executable, str(HERE / f"{name}.py"), f"--json={lines}"]
        command += [f"--{size.name}"] if size is not SIZES["full"] else []
        try:
            status = subprocess.run(command, check=False, timeout=LONGEST[size.name]).returncode
            ended = f"its process ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            ended = f"it took more than {LONGEST[size.name]} seconds"
        said = lines.read_text(encoding="utf-8").splitlines() if lines.exists() else []
    tables = [Table(**json.loads(line)) for line in said]
    return tables + ([Table(name, missing=ended, failed=True)] if ended else [])


def page(report: dict[str, Any]) -> str:
    """The tables as Markdown, with what they were measured on."""
    facts = report["machine"]
    git = facts["git"] or {"commit": "unknown", "dirty": False}
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    where = f"GPU {facts['gpu']}" if CUDA else f"{facts['threads']} of {facts['cores']} cores"
    lines = [
        f"## Benchmarks, {report['size']['name']}",
        f"{facts['processor']}, {where}, load {facts['load']} at the start and "
        f"{facts['load at the end']} at the end. {versions}. Commit {git['commit'][:10]}"
        f"{' with changes' if git['dirty'] else ''}, {facts['date']}.",
        'Sides are measured in turn. Seconds and speeds are medians; "kit / it" is the median over '
        "the pairs of how many times as fast the kit was.",
    ]
    tables = [Table(**table) for tables in report["programs"].values() for table in tables]
    return "\n\n".join([*lines, *map(str, tables)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
