"""Time, memory and numbers of both backends on one recipe, in one table.

    python benchmarks/backends.py configs/qwen2.5-0.5b-instruct-pspo.yaml [--steps 6] [key=value …]

Each backend trains in a process of its own, from the same start. Then both load the adapter that
the first one has trained and give their log-probs of the same completions: the exit status is 1
when they differ by more than TOLERANCE. `--backend transformers` runs one of them alone, without a
GPU too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from kit.config import Config
from kit.model.base import load_base
from kit.model.batching import make_batch, pad_values
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from kit.reading import read_metrics
from kit.recipe import load_config
from kit.training.data import load_training_data
from kit.training.trainer import train

BACKENDS = ("transformers", "unsloth")
PROBLEMS = 16
# mean difference of a token's log-prob between the backends, in nats
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    parser.add_argument("--part", choices=("training", "numbers"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.part is not None:
        return part(options, Path(options.folder))
    backends = options.backend or list(BACKENDS)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("training", "numbers"):
            for backend in backends:
                command = [sys.executable, __file__, options.recipe, *options.overrides]
                command += [f"--steps={options.steps}", f"--backend={backend}"]
                subprocess.run([*command, f"--part={name}", f"--folder={folder}"], check=True)
        rows, status = report(Path(folder), backends)
    if options.json is not None:
        options.json.write_text(json.dumps(rows), encoding="utf-8")
    return status


def part(options: argparse.Namespace, folder: Path) -> int:
    """What one process does."""
    (backend,) = options.backend
    fixed = [f"train.steps={options.steps}", f"train.checkpoint_every={options.steps}"]
    fixed += ["train.validate_every=0", "train.preflight_problems=0", f"model.backend={backend}"]
    config = load_config(options.recipe, [*options.overrides, *fixed, f"output={folder / backend}"])
    if options.part == "training":
        train(config)
    else:
        numbers(config, folder, backend)
    return 0


def numbers(config: Config, folder: Path, backend: str) -> None:
    """Log-probs of completions, which the first process to come samples for all."""
    first = folder / "completions.pt"
    chosen = torch.load(first, weights_only=True)["backend"] if first.exists() else backend
    adapter = str(folder / chosen / "adapter")
    base = load_base(config.model)
    policy = Policy(base, add_lora(base, config.lora, 0, adapter))
    problems = load_training_data(config, base.tokenizer).train_set.problems
    prompts = [base.prompt_ids(problems[i]["prompt"]) for i in range(PROBLEMS)]
    requests = [Request(tuple(prompt), (i,), "default") for i, prompt in enumerate(prompts)]
    sampled = sample(policy, requests, Sampling.from_config(config.rollout))
    completions = [completion.tokens for completion in sampled]
    if not first.exists():
        torch.save({"backend": backend, "completions": completions}, first)
    mu = pad_values([torch.tensor(completion.logprobs) for completion in sampled])
    pad_id = base.tokenizer.pad_token_id

    def logprobs(tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = make_batch(prompts, tokens, pad_id=pad_id, device=base.hardware.device)
        with torch.no_grad():
            values, _ = policy.logprobs(batch, temperature=config.rollout.temperature)
        return values.cpu(), batch.mask.cpu()

    own, mask = logprobs(completions)
    shared, shared_mask = logprobs(torch.load(first, weights_only=True)["completions"])
    torch.save(
        {
            "logprobs": shared[shared_mask],
            "gap": (own - mu)[mask].abs().mean().item(),
            "dtype": base.hardware.dtype,
        },
        folder / f"{backend}.pt",
    )


def report(folder: Path, backends: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Print the table, and return it; 1 when the numbers disagree."""
    rows, status = [], 0
    reference = torch.load(folder / f"{backends[0]}.pt", weights_only=True)
    for backend in backends:
        found = torch.load(folder / f"{backend}.pt", weights_only=True)
        difference = (found["logprobs"] - reference["logprobs"]).abs()
        status |= not difference.mean() <= TOLERANCE[found["dtype"]]
        rows.append(
            {
                "backend": backend,
                **speed(folder / backend),
                "sampler - trainer, nats": found["gap"],
                f"against {backends[0]}, mean": difference.mean().item(),
                "largest": difference.max().item(),
            }
        )
    for backend in backends:
        run = json.loads((folder / backend / "run.json").read_text())
        print(f"{backend}: {run['hardware']}")
    allowed = TOLERANCE[reference["dtype"]]
    print(f"differences of a token's log-prob in nats; allowed in the mean: {allowed:g}")
    print(tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github"))
    return rows, int(status)


def speed(run: Path) -> dict[str, Any]:
    """Medians over the steps after the first, which compiles and allocates."""
    steps = [m for m in read_metrics(run / "metrics.jsonl") if "time/step_seconds" in m]

    def median(key: str) -> float:
        return statistics.median(m[key] for m in steps[1:] or steps)

    return {
        "s/step": median("time/step_seconds"),
        "rollout tok/s": median("time/rollout_tokens_per_second"),
        "update tok/s": median("time/update_tokens_per_second"),
        "peak MiB": max(m["memory/peak_mb"] for m in steps),
    }


if __name__ == "__main__":
    sys.exit(main())
