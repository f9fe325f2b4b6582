"""Sampling speed against `transformers`' generate: same model, prompts, length and temperature.

    python benchmarks/rollout.py [--model embedded] [--prompts 8] [--group 8] [--tokens 96]

Both run in turn; the figure to quote is the median of the paired ratios. generate pads finished
rows and computes every copy of a prompt; the kit's sampler does neither. Stop tokens are ignored
for the first table and honoured for the second, where rows leave the batch early.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import torch

from kit.config import ModelConfig
from kit.model.attention import library_attention
from kit.model.base import load_base
from kit.model.policy import BASE, Policy
from kit.model.rollout import Request, Sampling, sample

QUESTION = "Tom has {} apples and buys {} more. He gives half of them to Mia. How many are left?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    base = load_base(ModelConfig(id=options.model))
    for stop_ids, title in ((frozenset(), "fixed length"), (base.stop_ids, "rows end early")):
        policy = Policy(dataclasses.replace(base, stop_ids=stop_ids))
        pairs = [compare(policy, options, run) for run in range(options.runs + 1)][1:]
        print(f"{title}: {options.prompts} prompts x {options.group}, {options.tokens} tokens")
        names = ("kit", "kit, weights packed", "generate")
        for name, column in zip(names, zip(*pairs, strict=True), strict=True):
            print(f"  {name:20} {statistics.median(column):8.0f} tokens/s (median of {len(pairs)})")
        ratios = [kit / generate for kit, _, generate in pairs]
        print(f"  kit / generate       {statistics.median(ratios):8.2f} (median of paired ratios)")


def compare(policy: Policy, options: argparse.Namespace, run: int) -> tuple[float, float, float]:
    """Tokens per second of the kit (weights unpacked and packed) and of generate."""
    base = policy.base
    prompts = [
        tuple(base.prompt_ids([{"role": "user", "content": QUESTION.format(3 * i, 100 - i)}]))
        for i in range(options.prompts)
    ]
    requests = [
        Request(prompt, (run, i, j), BASE)
        for i, prompt in enumerate(prompts)
        for j in range(options.group)
    ]
    speeds = []
    for dequantize in ("always", "never"):
        sampling = Sampling(options.tokens, max_rows=len(requests), dequantize=dequantize)
        started = time.perf_counter()
        completions = sample(policy, requests, sampling)
        tokens = sum(len(completion.tokens) for completion in completions)
        speeds.append(tokens / (time.perf_counter() - started))
    return speeds[0], speeds[1], generate(policy, requests, options.tokens)


def generate(policy: Policy, requests: list[Request], tokens: int) -> float:
    """Tokens per second of `generate`, counting each row up to its stop token."""
    tokenizer, stops = policy.base.tokenizer, sorted(policy.base.stop_ids)
    width = max(len(request.prompt) for request in requests)
    ids = torch.tensor(
        [[tokenizer.pad_token_id] * (width - len(r.prompt)) + list(r.prompt) for r in requests]
    )
    mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in requests])
    device = policy.base.hardware.device
    started = time.perf_counter()
    with torch.no_grad(), library_attention(policy.causal, policy.base.hardware.attention):
        output = policy.causal.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            eos_token_id=stops or [-1],
            pad_token_id=tokenizer.pad_token_id,
        )
    seconds = time.perf_counter() - started
    new = output[:, width:]
    if not stops:
        return new.numel() / seconds
    ended = torch.isin(new, torch.tensor(stops, device=device)).int()
    lengths = torch.where(ended.any(1), ended.argmax(1) + 1, new.shape[1])
    return int(lengths.sum()) / seconds


if __name__ == "__main__":
    main()
