"""Sampling against transformers' `generate` and its continuous batching, and vLLM where installed.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py [--quick]

The same model, prompts, cap and temperature, all of the vocabulary. A row counts up to its stop
token. Not counted are what vLLM takes to load, and the cache that continuous batching would
else make of all free memory: on the CPU it is given what the rows need.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from measuring import (
    CUDA,
    TINY,
    Size,
    Table,
    against,
    asked,
    benchmark,
    measured_base,
    paired,
    peer,
    without_ends,
)
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from kit.config import ModelConfig
from kit.model.base import Base
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, count_tokens, sample

BLOCK = 256  # tokens, of the cache of continuous batching

Side = Callable[[int], float]  # the number of a run -> tokens sampled in it


def main() -> None:
    benchmark(str(__doc__), (fixed, ragged, packed))


def fixed(size: Size) -> Table:
    """Sampling, every completion as long as the cap"""
    with measured_base(size) as base:
        return measure(without_ends(base), size)


def ragged(size: Size) -> Table:
    """Sampling, completions that end early"""
    with measured_base(size) as base:
        return measure(base, size)


def packed(size: Size) -> Table:
    """Sampling from 4-bit weights, completions that end early"""
    with measured_base(size, "nf4") as base:
        return measure(base, size)


def measure(base: Base, size: Size) -> Table:
    policy, model = Policy(base), peer(base)

    def requests(run: int) -> list[Request]:
        return asked(base, size.prompts, size.group, run)

    def kit(run: int) -> float:
        return count_tokens(sample(policy, requests(run), Sampling(size.tokens)))

    sides: dict[str, Side] = {
        "kit": kit,
        "generate": lambda run: generate(model, base, requests(run), size.tokens),
        "continuous batching": lambda run: continuous(model, base, requests(run), size.tokens),
    }
    if CUDA and size is not TINY and find_spec("vllm"):
        sides["vLLM"] = vllm(base, size.tokens, requests)
    lost: dict[str, str] = {}
    speeds = paired(sides, size.runs, lost)
    note = f"{size.prompts} prompts x {size.group}, at most {size.tokens} tokens each."
    failed = [f"Failed: {name}, {reason}." for name, reason in lost.items()]
    return Table("", against(speeds, "tokens/s"), " ".join([note, *failed]), runs=speeds)


def generation(base: Base, tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=sorted(base.stop_ids) or [-1],
        pad_token_id=base.tokenizer.pad_token_id,
    )


@torch.no_grad()
def generate(model: PreTrainedModel, base: Base, requests: list[Request], tokens: int) -> int:
    """Tokens sampled, each row up to its stop token."""
    prompts = [list(request.prompt) for request in requests]
    width = max(map(len, prompts))
    pad = base.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=generation(base, tokens),
    )
    return lengths(output[:, width:], base)


def lengths(new: torch.Tensor, base: Base) -> int:
    ended = torch.isin(new, torch.tensor(sorted(base.stop_ids), device=new.device)).int()
    until = torch.where(ended.any(1), ended.argmax(1) + 1, new.shape[1])
    return int(until.sum())


def continuous(model: PreTrainedModel, base: Base, requests: list[Request], tokens: int) -> int:
    """Tokens sampled by transformers' continuous batching, which shares the blocks of prompts."""
    prompts = [list(request.prompt) for request in requests]
    room: dict[str, Any] = {}
    if not CUDA:
        each = -(-(max(map(len, prompts)) + tokens) // BLOCK)
        room = {"num_blocks": len(prompts) * each + 2, "max_batch_tokens": 8 * BLOCK}
    outputs = model.generate_batch(
        prompts,
        generation_config=generation(base, tokens),
        continuous_batching_config=ContinuousBatchingConfig(block_size=BLOCK, **room),
    )
    if len(outputs) < len(prompts):
        raise RuntimeError(f"it answered {len(outputs)} of {len(prompts)} requests")
    return sum(len(output.generated_tokens) for output in outputs.values())


def vllm(base: Base, tokens: int, requests: Callable[[int], list[Request]]) -> Side:
    """vLLM on the same checkpoint, in 16 bits, without its tokenizer."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        ModelConfig(id=base.id).source,
        dtype=str(base.hardware.dtype).removeprefix("torch."),
        gpu_memory_utilization=0.4,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    sampled = SamplingParams(
        temperature=1.0,
        max_tokens=tokens,
        stop_token_ids=sorted(base.stop_ids),
        ignore_eos=True,
        detokenize=False,
    )

    def side(run: int) -> float:
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests(run)]
        outputs = engine.generate(prompts, sampled, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return side


if __name__ == "__main__":
    main()
