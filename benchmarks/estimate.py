"""What torch allocates against what kit.estimate.memory says, on the CPU, with random weights.

    python benchmarks/estimate.py [--model Qwen/Qwen2.5-0.5B] [--prompt 32] [--new 32] [--rows 4]

The model is built in its real shape, quantized to 4 bits and computed in bfloat16, as on a GPU.
Weights, LoRA, optimizer and cache are sums over tensors; what a layer keeps is counted by
saved-tensor hooks; peaks are the bytes of all tensors alive between operations (a CUDA device
would allocate the same; what a CPU kernel borrows for itself is left out).
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from accelerate import Accelerator
from measuring import random_checkpoint
from tabulate import tabulate
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from kit.config import Config
from kit.estimate.memory import GIB, Memory, Wave, lora_size
from kit.model.base import Base, load_base
from kit.model.batching import make_batch
from kit.model.dequantized import dequantized
from kit.model.draw import choose
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.model.rollout import Sampling
from kit.model.shape import Shape, find_shape
from kit.recipe import build_config
from kit.training.optimizer import Optimizer

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    shape, source = find_shape(options.model)
    print(
        f"{options.model}, shape {source}: {options.rows} rows of {options.prompt} + {options.new}"
    )
    with random_checkpoint(shape) as folder:
        config = _config(folder, options)
        base = load_base(config.model, torch.device("cpu"))
    rows = [
        [name, f"{found / MIB:.2f}", f"{said / MIB:.2f}", f"{said / found:.3f}"]
        for name, found, said in compare(base, shape, config)
    ]
    print(tabulate(rows, ["MiB", "measured", "estimated", "ratio"], disable_numparse=True))


def compare(base: Base, shape: Shape, config: Config) -> Iterator[tuple[str, int, int]]:
    """(what, bytes measured, bytes estimated)."""
    memory = Memory(shape, config, 1000 * GIB)
    weights = [value for name, value in memory.resident.items() if name.startswith("weights")]
    layers = [module for module in base.model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    packed = [tensor for layer in layers for tensor in _packed(layer)]
    dense = {p.data_ptr(): p for p in base.model.parameters() if p.dtype != torch.uint8}
    yield "weights, 4 bits", _bytes(packed), weights[0]
    yield "weights, the rest", _bytes(dense.values()), weights[1]
    with dequantized(base.model, "always", base.hardware):
        copies = {id(layer.forward.joint): layer.forward.joint.compute.args[0] for layer in layers}
        yield "dequantized copy", _bytes(copies.values()), memory.copy
        del copies
    policy = Policy(base, add_lora(base, config.lora, seed=0))
    yield "LoRA", _bytes(policy.trainable), 4 * lora_size(shape, config)
    yield from _update(policy, memory)
    yield from _sampling(policy, memory)


def _update(policy: Policy, memory: Memory) -> Iterator[tuple[str, int, int]]:
    """Without and with checkpointing: what waits for the backward pass, and the peak."""
    config = memory.config
    prompt, new = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    # one row is shorter, so that there is a mask, as in training
    lengths = [new - (i == 0) for i in range(memory.update_rows)]
    batch = make_batch([[5] * prompt for _ in lengths], [[7] * n for n in lengths], pad_id=0)
    accelerator = Accelerator(cpu=True)
    optimizer = Optimizer(
        policy.trainable, config.optim, config.train, accelerator, scales_loss=False
    )
    total = [prompt + n for n in lengths]

    def loss_of(rows: list[int]) -> tuple[torch.Tensor, None]:
        return policy.logprobs(batch, chunk=config.train.logprob_chunk)[0].sum(), None

    frozen = [*policy.causal.parameters(), *_all_packed(policy.causal)]
    for checkpointed in (False, True):
        if checkpointed:
            policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
            policy.causal.train()
        model = config.model.model_copy(update={"gradient_checkpointing": checkpointed})
        said = Memory(memory.shape, config.model_copy(update={"model": model}), memory.gpu)
        parts = said.phases()[-1].parts
        name = "with checkpointing" if checkpointed else "kept"
        yield f"activations, {name}", _saved(lambda: loss_of([])[0], frozen), parts["activations"]
        loss_of([])[0].backward()  # gradients of an earlier micro-batch
        expected = parts["activations"] + parts["log-probs or backward"]
        there = [*frozen, *(p.grad for p in policy.trainable if p.grad is not None)]
        yield f"  peak, {name}", _peak(lambda: loss_of([])[0].backward(), there), expected
    optimizer.step(total, loss_of)
    state = tree_leaves([list(s.values()) for s in optimizer._adam.state.values()])
    moments = [tensor for tensor in state if tensor.numel() > 1]
    yield "optimizer state", _bytes(moments), memory.resident["optimizer state"]
    policy.causal.gradient_checkpointing_disable()


def _sampling(policy: Policy, memory: Memory) -> Iterator[tuple[str, int, int]]:
    """Reading the prompts of all rows, the cache when they are full, drawing a token."""
    rows, prompt = memory.update_rows, memory.config.data.max_prompt_tokens
    wave = Wave("all", rows, 1)
    cache = DynamicCache()
    mask = torch.ones(rows, memory.row, dtype=torch.long)
    mask[0, 0] = 0
    frozen = [*policy.causal.parameters(), *_all_packed(policy.causal)]
    with policy.sampling(), policy.decoder([policy.trained]) as next_logits:

        def read(start: int, end: int) -> None:
            next_logits(
                [policy.trained] * rows,
                input_ids=torch.full((rows, end - start), 5),
                attention_mask=mask[:, :end],
                position_ids=torch.arange(start, end).expand(rows, -1),
                past_key_values=cache,
                use_cache=True,
            )

        parts = memory._prompts(wave).parts
        said = parts["activations"] + parts["key-value cache"] + parts["LoRA, side by side"]
        yield "reading the prompts, peak", _peak(lambda: read(0, prompt), frozen), said
        read(prompt, memory.row)
        held = _bytes(t for layer in cache.layers for t in (layer.keys, layer.values))
        yield "key-value cache", held, rows * memory.row * memory.shape.cache_per_token(memory.c)
    logits = torch.zeros(rows, memory.shape.vocab)
    uniforms = torch.full((rows,), 0.5)
    for top_p, per_logit in ((1.0, 24), (0.9, 42)):
        drawn = Sampling(1, top_p=top_p)
        peak = _peak(lambda drawn=drawn: choose(logits, uniforms, drawn), []) + logits.nbytes
        yield f"drawing a token, top_p {top_p}", peak, rows * per_logit * memory.shape.vocab


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations inside have made and that are still alive."""

    def __init__(self, ignored: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, Any] = {t.untyped_storage()._cdata: None for t in ignored}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return

        def gone(_reference: object) -> None:
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _peak(function: Callable[[], object], ignored: Iterable[torch.Tensor]) -> int:
    with LiveBytes(ignored) as live:
        function()
    return live.peak


def _saved(function: Callable[[], object], ignored: Iterable[torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of what `function` returns."""
    skip = {t.untyped_storage()._cdata for t in ignored}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in skip:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _packed(layer: bnb.nn.Linear4bit) -> list[torch.Tensor]:
    state = layer.weight.quant_state
    scales = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return [layer.weight.data, *scales]


def _all_packed(model: torch.nn.Module) -> list[torch.Tensor]:
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    return [tensor for layer in layers for tensor in _packed(layer)]


def _config(folder: str, options: argparse.Namespace) -> Config:
    tokens = options.rows * (options.prompt + options.new)
    return build_config(
        {
            "method": "sft",
            "model": {"id": folder, "dtype": "bfloat16"},
            "lora": {"rank": 32},
            "data": {"name": "gsm8k", "max_prompt_tokens": options.prompt},
            "rollout": {"max_new_tokens": options.new, "dequantize": "always"},
            "train": {
                "sft_batch": options.rows,
                "micro_batch_tokens": tokens,
                "logprob_chunk": 8,
                "validate_every": 0,
            },
        }
    )


if __name__ == "__main__":
    main()
