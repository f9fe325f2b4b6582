"""Step times and memory of the shipped recipes on a GPU, with random weights of the real shape.

    python benchmarks/recipes.py [--quick]

Random weights never end an answer: every completion runs to its cap, which is the most that a step
of the recipe can take. Problems are generated, and the reward differs from text to text.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import measuring
from measuring import CUDA, TINY, LeftOut, Row, Size, Table, benchmark, random_checkpoint

from kit.model.shape import find_shape
from kit.reading import read_metrics
from kit.recipe import load_config
from kit.training.trainer import train

HERE = Path(__file__).parent
RECIPES = ("t4-pspo", "qwen2.5-0.5b-instruct-pspo", "qwen2.5-1.5b-instruct-pspo")
STEPS = 3  # the first of which compiles and allocates
GENERATED = (
    *("data.name=gsm_symbolic", "data.options={size: 200, seed: 0}", "data.split=null"),
    *("data.validation_size=0", "train.validate_every=0", "train.preflight_problems=0"),
    *("reward.correct=0", f"reward.functions=[{{path: '{measuring.__file__}:noise'}}]"),
)


def main() -> None:
    benchmark(str(__doc__), (recipes, unsloth))


def recipes(size: Size) -> Table:
    """Step times of the recipes"""
    if size is TINY:
        return Table("", [measure("smoke", [])])
    needs_gpu()
    rows = []
    for name in RECIPES[: 1 if size.name == "quick" else None]:
        with random_model(name) as changes:
            rows.append(measure(name, changes))
    return Table("", rows)


def unsloth(size: Size) -> Table:
    """A recipe with the backend of Unsloth"""
    needs_gpu()
    if size is TINY or not find_spec("unsloth"):
        raise LeftOut("Unsloth is not installed, or this is only a test")
    with random_model(RECIPES[1]) as changes, tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "rows.json")
        command = [sys.executable, str(HERE / "backends.py"), str(path_of(RECIPES[1]))]
        command += [f"--steps={STEPS}", f"--json={result}", *GENERATED, *changes]
        subprocess.run(command, check=False)  # its status says whether the numbers agree
        return Table("", json.loads(result.read_text(encoding="utf-8")), f"{RECIPES[1]}.")


def needs_gpu() -> None:
    if not CUDA:
        raise LeftOut("it is for a GPU, and there is none here")


def path_of(name: str) -> Path:
    return HERE.parent / "configs" / f"{name}.yaml"


@contextmanager
def random_model(name: str) -> Iterator[list[str]]:
    """Overrides that put random weights of its shape in the place of the recipe's model."""
    shape, _ = find_shape(load_config(path_of(name)).model.id)
    with random_checkpoint(shape) as folder:
        yield [f"model.id={folder}", "model.revision=null", "model.path=null"]


def measure(name: str, changes: list[str]) -> Row:
    with tempfile.TemporaryDirectory() as place:
        steps = [f"train.steps={STEPS}", f"train.checkpoint_every={STEPS}"]
        config = load_config(path_of(name), [*GENERATED, *changes, *steps, f"output={place}/run"])
        if train(config).status != "finished":
            raise KeyboardInterrupt  # it was told to stop
        records = read_metrics(Path(place, "run", "metrics.jsonl"))[1:]

    def middle(key: str) -> float:
        return median(record[key] for record in records)

    return {
        "recipe": name,
        "seconds a step": middle("time/step_seconds"),
        "sampled tokens/s": middle("time/rollout_tokens_per_second"),
        "updated tokens/s": middle("time/update_tokens_per_second"),
        "peak, MiB": round(max(record["memory/peak_mb"] for record in records)),
    }


if __name__ == "__main__":
    main()
