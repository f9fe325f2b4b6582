"""What a training would take on a card, at a model's real size, without the card or the weights.

The kit's own forward and backward run on fake tensors, which have shapes and no numbers; a dispatch
mode sees every operation and adds up what is alive. bitsandbytes' layers are quantized by its own
function, so that they have the real parts. What a card has besides (its context, the gaps between
blocks) is not here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import bitsandbytes as bnb
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from kit.config import Config
from kit.estimate.memory import group_size
from kit.model.attention import use_grouped
from kit.model.base import Base
from kit.model.caches import StaticCache
from kit.model.decoding import Decoding, pace_of
from kit.model.dequantized import dequantized
from kit.model.graphs import Player
from kit.model.hardware import Hardware
from kit.model.lora import add_lora
from kit.model.packing import Packed
from kit.model.policy import Policy
from kit.model.prefill import Prompts, read_prompts
from kit.model.requests import Request, Sampling
from kit.model.shape import Shape

BLOCK = 512  # bytes that CUDA's allocator rounds up to


class Alive(TorchDispatchMode):
    """Bytes of all tensors that operations inside have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self.seen[storage] = None
        weakref.finalize(storage, self._gone, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size

    @contextmanager
    def peak_of(self) -> Iterator[list[int]]:
        """The most that is alive at once inside, put in the list that is yielded."""
        self.peak = self.now
        found: list[int] = []
        yield found
        found.append(self.peak)


@contextmanager
def fake_card() -> Iterator[Alive]:
    """Inside, whatever is made is fake, and counted."""
    # bitsandbytes' table of 8-bit numbers is computed, once
    bnb.functional.name2qmap.setdefault("dynamic", bnb.functional.create_dynamic_map())
    with FakeTensorMode(allow_non_fake_inputs=True), Alive() as alive:
        yield alive


def fake_policy(shape: Shape, config: Config, arms: int) -> Policy:
    """A model of this shape with fresh LoRA for each arm, 4-bit where the configuration says so, in
    float16; the last arm is the one that learns."""
    settings = Qwen2Config(
        **shape.settings,
        dtype=torch.float16,
    )
    model = Qwen2ForCausalLM._from_config(settings)
    if config.model.quantization == "nf4":
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, child in list(part.named_children()):
                    if isinstance(child, torch.nn.Linear):
                        setattr(part, name, packed_linear(child))
        model.is_loaded_in_4bit = True
    model.requires_grad_(False)
    model.eval()
    use_grouped(model)
    hardware = Hardware(torch.device("cpu"), torch.float16, "sdpa", "fake")
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    base = Base("fake", None, model, tokenizer, frozenset({1}), 1, hardware)
    # everything is where it belongs, and fake parameters cannot be moved
    with (
        patch.object(
            BaseTunerLayer, "_move_adapter_to_device_of_base_layer", lambda *_, **__: None
        ),
        patch.object(torch.nn.Module, "to", lambda module, *_, **__: module),
    ):
        peft = None
        for arm in range(arms):
            peft = add_lora(base, config.lora, seed=0, name=f"arm{arm}", model=peft)
        return Policy(base, peft, f"arm{arms - 1}")


def packed_linear(linear: torch.nn.Linear) -> bnb.nn.Linear4bit:
    """The same layer in 4 bits, with the parts that loading a checkpoint gives it."""
    weight, state = bnb.functional.quantize_4bit(
        linear.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    new = bnb.nn.Linear4bit.__new__(bnb.nn.Linear4bit)
    torch.nn.Module.__init__(new)
    new.in_features, new.out_features = linear.in_features, linear.out_features
    new.weight = torch.nn.Parameter(weight, requires_grad=False)
    for key, value in {
        "quant_state": state,
        "blocksize": 64,
        "compress_statistics": True,
        "quant_type": "nf4",
        "quant_storage": torch.uint8,
        "bnb_quantized": True,
    }.items():
        setattr(new.weight, key, value)
    new.bias = linear.bias
    new.compute_dtype, new.compute_type_is_set = linear.weight.dtype, True
    new.quant_state, new.quant_storage = state, torch.uint8
    new.support_avx512bf16_for_cpu = False
    return new


Peaks = dict[str, tuple[int, int]]
FEW, MORE = 2, 4  # layers


def trace(shape: Shape, config: Config, arms: int = 1) -> Peaks:
    """`trace_all` from two models of few layers: every layer adds what the one before it added."""
    few, more = (trace_all(replace(shape, layers=layers), config, arms) for layers in (FEW, MORE))
    times = (shape.layers - FEW) / (MORE - FEW)

    def at_full_depth(phase: str, part: int) -> int:
        return round(few[phase][part] + times * (more[phase][part] - few[phase][part]))

    return {phase: (at_full_depth(phase, 0), at_full_depth(phase, 1)) for phase in few}


def trace_all(shape: Shape, config: Config, arms: int = 1) -> Peaks:
    """{phase: (bytes at its fullest moment, of which stay from phase to phase)}.

    All arms have the same LoRA. What a micro-batch, a batch of prompts and a batch of rows hold is
    the most that the configuration allows.
    """
    with fake_card() as alive:
        policy = fake_policy(shape, config, arms)
        moments = [torch.zeros_like(p) for p in policy.trainable for _ in range(2 * arms)]
        resident = alive.now
        found = {
            "prompts": prompts_peak(policy, config, alive),
            "decoding": decoding_peak(policy, config, alive),
            "update": update_peak(policy, config, alive),
        }
        del moments
    return {phase: (peak, resident) for phase, peak in found.items()}


def trace_update(shape: Shape, config: Config) -> tuple[int, int]:
    """Of the update alone: bytes at its fullest moment, and of them those that stay."""
    with fake_card() as alive:
        policy = fake_policy(shape, config, arms=1)
        moments = [torch.zeros_like(p) for p in policy.trainable for _ in range(2)]
        resident = alive.now
        peak = update_peak(policy, config, alive)
        del moments
    return peak, resident


def update_peak(policy: Policy, config: Config, alive: Alive) -> int:
    """Backward of a full micro-batch when the gradients of an earlier one are there."""
    batch = full_micro_batch(policy, config)
    if config.model.gradient_checkpointing:
        policy.causal.train()
        policy.causal.gradient_checkpointing_enable({"use_reentrant": False})
    chunk = config.train.logprob_chunk
    for parameter in policy.trainable:
        parameter.grad = torch.zeros_like(parameter)
    with alive.peak_of() as peak:
        with torch.no_grad():
            policy.logprobs(batch, policy.reference, chunk=chunk)
        policy.logprobs(batch, chunk=chunk)[0].sum().backward()
    for parameter in policy.trainable:
        parameter.grad = None
    policy.causal.gradient_checkpointing_disable()
    policy.causal.eval()
    return peak[0]


def full_micro_batch(policy: Policy, config: Config) -> Packed:
    """Whole groups, as many as are nearest to full length and fill the micro-batch; else a part."""
    prompt, new = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    tokens, group = config.train.micro_batch_tokens, group_size(config)
    groups = max(1, -(-tokens // (prompt + group * new)))
    each = tokens // groups
    if groups == 1:
        group = max(1, (each - prompt) // new)
    length = min(new, (each - prompt) // group)
    prompts = [(5 + number,) * prompt for number in range(groups) for _ in range(group)]
    return policy.batch(prompts, [[7] * length] * len(prompts))  # type: ignore[return-value]


def prompts_peak(policy: Policy, config: Config, alive: Alive) -> int:
    """Distinct prompts of the most rows at once, of the wave that has most of them: a validation,
    which is of one arm."""
    asked = _requests(config, [policy.trained])
    with _decoding(policy, config, alive, [policy.trained]) as (next_logits, peak):
        read_prompts(next_logits, asked, 0, torch.device("cpu"))
    return peak[0]


def decoding_peak(policy: Policy, config: Config, alive: Alive) -> int:
    """A token of the most rows at once, each of whose prompts has been read."""
    settings, sampling = policy.causal.config, Sampling.from_config(config.rollout)
    arms = policy.adapters[1:]
    asked = _requests(config, arms)
    prompt, groups = config.data.max_prompt_tokens, -(-len(asked) // config.rollout.group_size)
    shape = (groups, settings.num_key_value_heads, prompt)
    width = settings.hidden_size // settings.num_attention_heads
    with _decoding(policy, config, alive, arms) as (next_logits, peak):
        read = DynamicCache()
        for layer in range(settings.num_hidden_layers):
            held = (torch.zeros(*shape, width, dtype=torch.float16) for _ in range(2))
            read.update(*held, layer)
        prompts = Prompts(
            read,
            torch.ones(groups, prompt, dtype=torch.long),
            torch.zeros(groups, settings.vocab_size),
            torch.arange(len(asked)) // config.rollout.group_size,
            torch.full((groups,), prompt),
        )
        pace = pace_of(torch.device("cuda"))
        room = sampling.max_new_tokens - 1
        cache = StaticCache(read, prompts.owner, prompts.mask, room, pace.length)
        cache.extend(room)  # as for the last token
        stops = torch.tensor([1])
        Decoding(next_logits, asked, prompts, cache, Player(), stops, sampling, pace).step()
    return peak[0]


def _requests(config: Config, arms: list[str]) -> list[Request]:
    """As many rows as are decoded at once, with prompts as long as they may be, all distinct; they
    are the arms' in turn."""
    prompt = config.data.max_prompt_tokens
    return [
        Request((5,) * (prompt - 1) + (10 + number,), (0, number), arms[number % len(arms)])
        for number in range(config.rollout.max_rows)
    ]


@contextmanager
def _decoding(policy: Policy, config: Config, alive: Alive, arms: list[str]) -> Iterator[Any]:
    """The sampler's surroundings, with or without unpacked weights."""
    hardware = policy.base.hardware
    with (
        policy.sampling(),
        alive.peak_of() as peak,
        dequantized(policy.causal, config.rollout.dequantize, hardware),
        policy.decoder(arms) as next_logits,
    ):
        yield next_logits, peak
