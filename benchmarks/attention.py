"""The kit's attention against transformers' own: paired and interleaved, in one process.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--runs 9]

A decode step in Qwen2.5-0.5B's shape (random weights, 4 of 24 layers, the head by itself), then
sampling and an update of the embedded model. Medians, and the median of the ratios.
"""

import argparse
from dataclasses import replace
from statistics import median
from timeit import timeit

import torch
from tabulate import tabulate
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from kit.config import LoraConfig, ModelConfig
from kit.model.attention import GROUPED, LIBRARY, use_grouped
from kit.model.base import load_base
from kit.model.batching import make_batch
from kit.model.lora import TRAINED, add_lora
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample

ROWS, CACHED, LAYERS, SAMPLING = 64, 400, 4, Sampling(128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    table = [compare(runs, *case) for cases in (qwen(), embedded()) for case in cases]
    print(tabulate(table, ["", "sdpa, s", "auto, s", "ratio"], floatfmt=".2f"))


def compare(runs: int, model: Qwen2ForCausalLM, name: str, work) -> list:
    """Both in turn, `runs` times after one to warm up."""
    times: dict[str, list[float]] = {LIBRARY: [], GROUPED: []}
    for _ in range(runs + 1):
        for attention, seconds in times.items():
            model.set_attn_implementation(attention)
            seconds.append(timeit(work, number=1))
    pairs = list(zip(*times.values(), strict=True))[1:]
    medians = (median(column) for column in zip(*pairs, strict=True))
    return [name, *medians, median(a / b for a, b in pairs)]


def qwen():
    """One token for every row after a random cache, a third of the rows padded."""
    sizes = {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": LAYERS, "intermediate_size": 4864, "vocab_size": 151_936}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)).eval().requires_grad_(False)
    use_grouped(model)
    cache, mask = DynamicCache(), torch.ones(ROWS, CACHED + 1)
    mask[::3, :20] = 0
    for layer in range(LAYERS):
        cache.update(*torch.randn(2, ROWS, 2, CACHED, 64), layer)

    def step() -> None:
        model.model(torch.ones(ROWS, 1).long(), attention_mask=mask, past_key_values=cache)
        cache.crop(-1)

    yield model, f"Qwen2.5-0.5B, 64 rows, 400 cached: {LAYERS} layers", step
    yield model, "Qwen2.5-0.5B, 64 rows: the head", lambda: model.lm_head(torch.ones(ROWS, 896))


def embedded():
    """Sampling without stop tokens, so that all rows stay; then log-probs and their gradients."""
    base = replace(load_base(ModelConfig(id="embedded")), stop_ids=frozenset())
    policy = Policy(base, add_lora(base, LoraConfig(), seed=0))
    asked = [Request(tuple(range(5, 45 + i % 8)), (0, i), TRAINED) for i in range(ROWS)]
    answers = [answer.tokens for answer in sample(policy, asked[:16], SAMPLING)]
    batch = make_batch([row.prompt for row in asked[:16]], answers, pad_id=0)
    yield policy.causal, "embedded: sample 64 x 128", lambda: sample(policy, asked, SAMPLING)
    yield policy.causal, "embedded: update, 16", lambda: policy.logprobs(batch)[0].sum().backward()


if __name__ == "__main__":
    main()
