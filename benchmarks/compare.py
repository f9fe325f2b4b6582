"""Training k arms together against training them one after the other: same recipes, same base.

    python benchmarks/compare.py configs/embedded-clip.yaml configs/embedded-pspo.yaml … [--steps 2]

Both run in turn; the figures to quote are the medians of the paired ratios. "sampling" is the part
that is shared: the rollouts of all arms in one batch against k batches, and against PEFT's own
per-row adapters; updates are taken in turn either way.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import kit.model.policy
from kit.config import Config
from kit.model.base import Base, load_base
from kit.model.lora import add_lora
from kit.model.mixed_lora import is_plain
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from kit.recipe import load_config
from kit.training.data import load_training_data
from kit.training.trainer import train, train_together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    fixed = [f"train.steps={options.steps}", "train.validate_every=0", "train.preflight_problems=0"]
    configs = [load_config(recipe, fixed) for recipe in options.recipes]
    base = load_base(configs[0].model)
    print(f"{len(configs)} arms, {options.steps} steps, median of {options.runs} paired ratios")
    for title, measure in (("sampling", sampling), ("training", training)):
        timed = [measure(base, configs) for _ in range(options.runs)]
        for name in [key for key in timed[0] if key != "together"]:
            ratio = statistics.median(times[name] / times["together"] for times in timed)
            seconds = statistics.median(times["together"] for times in timed)
            print(f"  {title}: {name} / together = {ratio:.2f} (together {seconds:.1f} s)")


def sampling(base: Base, configs: list[Config]) -> dict[str, float]:
    """Seconds for the rollouts of one step of all arms."""
    model = None
    names = [f"arm{i}" for i in range(len(configs))]
    for name, config in zip(names, configs, strict=True):
        model = add_lora(base, config.lora, 0, name=name, model=model)
    policy = Policy(base, model, names[0])
    rollout = configs[0].rollout
    problems = load_training_data(configs[0], base.tokenizer).train_set.problems
    per_arm = [
        [
            Request(tuple(base.prompt_ids(problems[i]["prompt"])), (0, i, j), name)
            for i in range(rollout.prompts_per_step)
            for j in range(rollout.group_size)
        ]
        for name in names
    ]
    everything = [request for requests in per_arm for request in requests]
    settings = Sampling.from_config(rollout)
    times = {
        "one after the other": timed(lambda: [sample(policy, own, settings) for own in per_arm]),
        "together": timed(lambda: sample(policy, everything, settings)),
    }
    kit.model.policy.is_plain = lambda model, adapters: False  # leave mixed rows to PEFT
    times["PEFT's per-row adapters"] = timed(lambda: sample(policy, everything, settings))
    kit.model.policy.is_plain = is_plain
    policy.peft.unload()
    return times


def training(base: Base, configs: list[Config]) -> dict[str, float]:
    """Seconds for whole runs."""
    with tempfile.TemporaryDirectory() as folder:

        def placed(group: str) -> list[Config]:
            return [
                config.model_copy(update={"output": str(Path(folder) / group / str(i))})
                for i, config in enumerate(configs)
            ]

        return {
            "one after the other": timed(lambda: [train(c, base=base) for c in placed("alone")]),
            "together": timed(lambda: train_together(placed("together"), base=base)),
        }


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
