"""The update with each prompt computed once against padded rows: paired, interleaved, one process.

    OMP_NUM_THREADS=1 python benchmarks/update.py [--runs 7] [--layers 2]

Log-probabilities and gradients of LoRA for what a step sampled: the embedded model at the demo's
settings (4 bits, completions as they come), then Qwen2.5-0.5B's shape with random weights and a
small vocabulary (some of its 24 layers; the head costs the same in both and is left out), for one
group of 8 with short and with long texts. Medians, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from tabulate import tabulate
from transformers import Qwen2Config, Qwen2ForCausalLM

from kit.config import DEMO_RECIPE, LoraConfig, ModelConfig
from kit.model.attention import use_grouped
from kit.model.base import Base, load_base
from kit.model.batching import make_batch, micro_batches
from kit.model.hardware import choose_hardware
from kit.model.lora import TRAINED, add_lora
from kit.model.packing import packed_batches
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from kit.model.shape import find_shape
from kit.recipe import load_config
from kit.training.data import load_training_data

Rows = tuple[list[tuple[int, ...]], list[list[int]]]  # prompts and completions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    table = []
    for case in (embedded(), qwen(options.layers, 128, 192), qwen(options.layers, 512, 512)):
        table.append(compare(options.runs, *case))
        print(table[-1], flush=True)
    head = ["", "rows", "tokens, padded", "shared", "padded, s", "shared, s", "ratio"]
    print(tabulate(table, head, floatfmt=".2f"))


def compare(runs: int, name: str, policy: Policy, rows: Rows, budget: int) -> list[Any]:
    """Both in turn, `runs` times after one to warm up."""
    prompts, completions = rows
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    ways = (
        (micro_batches(lengths, budget), lambda *own: make_batch(*own, pad_id=0)),
        (packed_batches(prompts, lengths, budget), policy.batch),
    )
    tokens = [sum(policy_tokens(way, rows)) for way in ways]
    pairs = [tuple(seconds(policy, rows, *way) for way in ways) for _ in range(runs + 1)][1:]
    medians = [median(column) for column in zip(*pairs, strict=True)]
    return [name, len(prompts), *tokens, *medians, median(a / b for a, b in pairs)]


def policy_tokens(way: tuple, rows: Rows) -> Iterator[int]:
    for batch in batches_of(rows, *way):
        yield batch.input_ids.numel()


def batches_of(rows: Rows, batches: list[list[int]], batch_of: Any) -> Iterator[Any]:
    for batch in batches:
        yield batch_of(*([column[i] for i in batch] for column in rows))


def seconds(policy: Policy, rows: Rows, batches: list[list[int]], batch_of: Any) -> float:
    started = time.perf_counter()
    for batch in batches_of(rows, batches, batch_of):
        policy.logprobs(batch)[0].sum().backward()
    return time.perf_counter() - started


def embedded() -> tuple[str, Policy, Rows, int]:
    config = load_config(str(DEMO_RECIPE))
    base = load_base(config.model, torch.device("cpu"))
    policy = Policy(base, add_lora(base, config.lora, seed=0))
    problems = load_training_data(config, base.tokenizer).train_set.problems
    asked = [
        Request(tuple(base.prompt_ids(problems[i]["prompt"])), (0, i, j), TRAINED)
        for i in range(config.rollout.prompts_per_step)
        for j in range(config.rollout.group_size)
    ]
    answers = sample(policy, asked, Sampling.from_config(config.rollout))
    rows = [request.prompt for request in asked], [answer.tokens for answer in answers]
    return "the embedded model, demo", policy, rows, config.train.micro_batch_tokens


def qwen(layers: int, prompt: int, longest: int) -> tuple[str, Policy, Rows, int]:
    """A group of 8: completions from a third of `longest` to all of it."""
    shape = replace(find_shape("Qwen/Qwen2.5-0.5B")[0], layers=layers, vocab=2048)
    model = Qwen2ForCausalLM(Qwen2Config(**shape.settings)).eval().requires_grad_(False)
    use_grouped(model)
    hardware = choose_hardware(ModelConfig(id="random"), torch.device("cpu"))
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    base = Base("random", None, model, tokenizer, frozenset(), 0, hardware)
    policy = Policy(base, add_lora(base, LoraConfig(rank=32), seed=0))
    rng = random.Random(0)
    shared = tuple(rng.randrange(2048) for _ in range(prompt))
    lengths = [longest * (3 + i) // 10 for i in range(8)]
    completions = [[rng.randrange(2048) for _ in range(length)] for length in lengths]
    name = f"Qwen2.5-0.5B, {layers} layers, {prompt} + {lengths[0]} to {lengths[-1]}"
    return name, policy, ([shared] * 8, completions), 8192


if __name__ == "__main__":
    main()
