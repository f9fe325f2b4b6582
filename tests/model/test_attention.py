"""Attention without repeated keys: equal to repeating them, masked, and not where it is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)
from transformers.integrations import sdpa_attention

from kit.config import EMBEDDED_PATH, LoraConfig, ModelConfig
from kit.model.attention import GROUPED, grouped_attention, library_attention, suits
from kit.model.base import load_base
from kit.model.batching import make_batch
from kit.model.lora import TRAINED, add_lora
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from tests.model.families import FAMILIES

CPU = torch.device("cpu")
PLAIN = {"qwen2", "qwen3", "llama2", "llama2-legacy", "llama2-base", "llama2-legacy-base"}
PLAIN |= {"llama3", "llama3-base", "unigram"}
PROMPTS = ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14), (15,))


def repeated(query, key, value, mask, scaling=None):
    """What transformers does: a copy of each key for each of its heads. (R, H, S, D)."""
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def tensors(rows, heads, groups, steps, length, width=8):
    """query, key, value with gradients, and a mask: padded on the left, the right, or not."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((heads, steps), (groups, length), (groups, length))
    numbers = [torch.randn(rows, *size, width, generator=generator) for size in sizes]
    mask = torch.ones(rows, 1, steps, length, dtype=torch.bool).tril(length - steps)
    mask[0, ..., :2] = False
    mask[-1, ..., -2:] = False
    return [x.double().requires_grad_() for x in numbers], mask


class Module(torch.nn.Module):
    """What transformers' own function reads off a layer."""

    def __init__(self, heads, groups):
        super().__init__()
        self.num_key_value_groups = heads // groups


@pytest.mark.parametrize("heads, groups", [(1, 1), (4, 4), (4, 2), (6, 2), (14, 2), (8, 1)])
@pytest.mark.parametrize("rows, steps, length", [(3, 1, 9), (2, 1, 5), (3, 9, 9), (2, 3, 9)])
def test_values_and_gradients_are_those_of_repeated_keys(rows, steps, length, heads, groups):
    inputs, mask = tensors(rows, heads, groups, steps, length)
    for scaling in (None, 0.3):
        expected = repeated(*inputs, mask, scaling).transpose(1, 2)
        module = Module(heads, groups)
        found, weights = grouped_attention(module, *inputs, mask, scaling=scaling)
        assert weights is None and found.shape == (rows, steps, heads, 8)
        kept = mask.any(-1).transpose(1, 2)[..., None]  # a padded query's result is nobody's
        torch.testing.assert_close(found * kept, expected * kept, rtol=0, atol=1e-12)
        upstream = torch.randn(expected.shape, dtype=torch.double) * kept
        for a, b in zip(
            *(torch.autograd.grad(x, inputs, upstream) for x in (found, expected)), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_two_heads_share_a_key_by_hand():
    """Scores q·k: head 0 has (0, ln 3), weights (1/4, 3/4); head 1 sees the same keys, scores
    (0, 0), weights (1/2, 1/2); values 4 and 8. The third position is masked."""
    query = torch.tensor([[[[math.log(3)]], [[0.0]]]])
    key = torch.tensor([[[[0.0], [1.0], [5.0]]]])
    value = torch.tensor([[[[4.0], [8.0], [100.0]]]])
    mask = torch.tensor([[[[True, True, False]]]])
    found, _ = grouped_attention(None, query, key, value, mask, scaling=1.0)
    torch.testing.assert_close(found, torch.tensor([[[[7.0], [6.0]]]]))


# --- in a model ----------------------------------------------------------------------------------


def masks_seen(model):
    """The mask of every call of every attention layer from now on; the list grows."""
    seen: list[torch.Tensor | None] = []
    layers = [m for name, m in model.named_modules() if name.endswith("self_attn")]
    assert len(layers) == model.config.num_hidden_layers
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda _layer, _args, named: seen.append(named["attention_mask"]), with_kwargs=True
        )
    return seen


@pytest.fixture
def base():
    return load_base(ModelConfig(id="embedded", quantization="none"), CPU)


def test_every_layer_has_a_mask_with_padding_and_without(base):
    seen = masks_seen(base.model)
    policy = Policy(base, add_lora(base, LoraConfig(rank=2), seed=0))
    for prompts in (PROMPTS, PROMPTS[:1]):
        asked = [Request(prompt, (0, i), TRAINED) for i, prompt in enumerate(prompts)]
        answers = [answer.tokens for answer in sample(policy, asked, Sampling(4))]
        policy.logprobs(make_batch(prompts, answers, pad_id=0))
    base.model(torch.tensor([PROMPTS[0]]))
    assert len(seen) == 4 * 5 and all(mask is not None for mask in seen)
    # the last: one row without padding
    assert seen[-1].tolist() == torch.ones(7, 7, dtype=torch.bool).tril()[None, None].tolist()


def test_nothing_is_repeated_while_decoding(base, monkeypatch):
    def repeat_kv(states, times):
        assert states.shape[2] <= 7, "keys were repeated after the prompt"
        return once(states, times)

    once = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", repeat_kv)
    asked = [Request(prompt, (0, i), "__base__") for i, prompt in enumerate(PROMPTS)]
    sample(Policy(base), asked, Sampling(6))
    base.model.set_attn_implementation("sdpa")  # the test can fail
    with pytest.raises(AssertionError, match="repeated after the prompt"):
        sample(Policy(base), asked, Sampling(6))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_what_the_library_computes(name, tmp_path):
    FAMILIES[name].save(tmp_path)
    base = load_base(ModelConfig(id=str(tmp_path), quantization="none"), CPU)
    assert (base.hardware.attention == GROUPED) == (name in PLAIN)
    assert ("keys are not repeated" in base.hardware.reason) == (name in PLAIN)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(4, 64).view(2, 30) % base.model.config.vocab_size
    for padded in (slice(0, 0), slice(0, 9), slice(24, 30)):
        mask = torch.ones_like(ids)
        mask[0, padded] = 0
        found, expected = (logits(model, ids, mask)[mask == 1] for model in (base.model, plain))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config, expected",
    [
        (MistralConfig(sliding_window=None), True),
        (MistralConfig(sliding_window=4096), False),
        (Qwen2Config(sliding_window=4096), True),  # as published: not used
        (Qwen2Config(sliding_window=4096, use_sliding_window=True), False),
        (LlamaConfig(), True),
        (Gemma2Config(), False),
        (Phi3Config(), False),
    ],
)
def test_windows_and_unknown_families_are_left_to_the_library(config, expected):
    assert suits(config) is expected


@torch.no_grad()
def logits(model, ids, mask):
    """(R, S, V): all but three tokens read at once, those one by one from the cache."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    steps, cache = [(0, 27), (27, 28), (28, 29), (29, 30)], None
    parts = []
    for start, end in steps:
        output = model(
            ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        parts.append(output.logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("asked", ["sdpa", "eager"])
def test_the_library_has_its_own_where_it_is_asked_for(asked):
    base = load_base(ModelConfig(id="embedded", quantization="none", attention=asked), CPU)
    assert base.hardware.attention == base.model.config._attn_implementation == asked


def test_the_library_attention_is_the_librarys_to_the_bit(base):
    ids = torch.tensor([PROMPTS[0]])
    plain = AutoModelForCausalLM.from_pretrained(EMBEDDED_PATH, dtype=torch.float32)
    with library_attention(base.model, base.hardware.attention) as name, torch.no_grad():
        assert name == "sdpa"
        assert base.model(ids).logits.equal(plain(ids).logits)
    assert base.model.config._attn_implementation == GROUPED
