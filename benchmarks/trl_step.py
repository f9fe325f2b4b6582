"""A whole training step of `kit train` against one of TRL's GRPOTrainer: time and memory.

    OMP_NUM_THREADS=1 python benchmarks/trl_step.py [--quick]

The same model, prompts, group size, cap, LoRA, loss (GRPO's clip over all tokens), rows in a
micro-batch and updates; each in a process of its own. The reward differs from text to text, so that
no group is without signal. A step is what lies between two calls of the reward function: update,
records, and the sampling of the next step. The function waits for its turn, so that the two
sides take their steps one after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from measuring import CUDA, Size, Table, against, benchmark
from trl_side import MARK, SIDES

PROGRAM = Path(__file__).with_name("trl_side.py")


def main() -> None:
    benchmark(str(__doc__), (unquantized, four_bits))


def unquantized(size: Size) -> Table:
    """A whole step against TRL's, weights as they are"""
    return measure(size, "none")


def four_bits(size: Size) -> Table:
    """A whole step against TRL's, weights in 4 bits"""
    return measure(size, "nf4")


def measure(size: Size, quantization: str) -> Table:
    """Both sides' steps in turn, after one to warm up."""
    with ExitStack() as held:
        steps = {side: held.enter_context(started(side, size, quantization)) for side in SIDES}
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(size.runs + 1):
            for side, step in steps.items():
                found[side].append(step())
    found = {side: steps[1:] for side, steps in found.items()}
    speeds = {side: [1 / step["seconds"] for step in steps] for side, steps in found.items()}
    rows = against(speeds)
    peaks = {side: max(step["peak_mb"] for step in steps) for side, steps in found.items()}
    for row, (side, steps_of) in zip(rows, found.items(), strict=True):
        row["characters"] = median(step["characters"] for step in steps_of)
        row["peak, MiB"] = round(peaks[side])
        row["kit's peak / its"] = peaks["kit"] / peaks[side]
    where = "GPU" if CUDA else "the process, above what the libraries take"
    note = (
        f"{size.prompts} prompts x {size.group}, at most {size.tokens} tokens each; characters of "
        f"a completion; memory of {where}."
    )
    return Table("", rows, note, runs=found)


@contextmanager
def started(side: str, size: Size, quantization: str) -> Iterator[Callable[[], dict[str, float]]]:
    """A training in a process of its own, as a function that lets it take a step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROGRAM), f"--side={side}", f"--size={size.name}"]
        command += [f"--quantization={quantization}", f"--folder={folder}"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

        def step() -> dict[str, float]:
            assert child.stdin and child.stdout
            child.stdin.write("\n")
            for line in child.stdout:
                if line.startswith(MARK):
                    return json.loads(line.removeprefix(MARK))
            raise RuntimeError(f"the process of {side} ended with status {child.wait()}")

        try:
            yield step
        finally:
            child.kill()
            child.wait()


if __name__ == "__main__":
    main()
