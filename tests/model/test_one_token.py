"""Reading one token the shorter way: what transformers computes, and only where it may."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from kit.config import LoraConfig, ModelConfig
from kit.model.base import load_base
from kit.model.lora import TRAINED, add_lora
from kit.model.one_token import OneToken
from kit.model.policy import BASE, Policy, _last_logits
from kit.model.rollout import Request, Sampling, sample
from tests.model.families import FAMILIES
from tests.model.test_attention import PLAIN
from tests.noise import add_noise

PROMPTS = ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14), (15,))


@pytest.fixture
def read(monkeypatch):
    """The number of rows of every token that is read in the shorter way."""
    rows: list[int] = []
    call = OneToken.__call__

    def counted(self, **inputs):
        rows.append(len(inputs["input_ids"]))
        return call(self, **inputs)

    monkeypatch.setattr(OneToken, "__call__", counted)
    return rows


def loaded(folder, name, dtype="float32", **changed) -> Policy:
    FAMILIES[name].save(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | changed))
    settings = ModelConfig(id=str(folder), quantization="none", dtype=dtype)
    base = load_base(settings, torch.device("cpu"))
    torch.manual_seed(0)
    for weight in base.model.parameters():
        if weight.dim() == 1:  # norms begin as ones, biases as zeros, which say little
            weight.data += 0.3 * torch.randn_like(weight)
    model = add_lora(base, LoraConfig(rank=2), seed=0)
    model.add_adapter("other", model.peft_config[TRAINED])
    add_noise(model, 1)
    return Policy(base, model)


def answers(policy, *adapters, **settings):
    asked = [
        Request(prompt, (0, i), adapters[i % len(adapters)]) for i, prompt in enumerate(PROMPTS * 2)
    ]
    return sample(policy, asked, Sampling(8, **settings))


@pytest.mark.parametrize(
    "name, dtype", [*((name, "float32") for name in sorted(PLAIN)), ("qwen3", "bfloat16")]
)
def test_every_family_computes_what_the_library_computes(name, dtype, tmp_path, monkeypatch, read):
    policy = loaded(tmp_path, name, dtype)
    rows = ([TRAINED], [BASE], [TRAINED, BASE, "other"])
    shorter = [answers(policy, *adapters) for adapters in rows]
    assert len(read) > 10 and max(read) == 6
    monkeypatch.setattr(Policy, "_reader", lambda self: partial(_last_logits, self.causal))
    assert shorter == [answers(policy, *adapters) for adapters in rows]
    assert shorter[0] != shorter[1]


def test_gelu_computes_to_the_bit_too(tmp_path, monkeypatch, read):
    policy = loaded(tmp_path, "qwen2", hidden_act="gelu")
    for layer in policy.causal.model.layers:
        layer.mlp.gate_proj.weight.data *= 30  # random weights are too small to leave gelu's middle
    shorter = answers(policy, BASE)
    assert read
    monkeypatch.setattr(Policy, "_reader", lambda self: partial(_last_logits, self.causal))
    assert shorter == answers(policy, BASE)


@pytest.mark.parametrize("dequantize", ["always", "never"])
@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj", "down_proj"], ["k_proj", "up_proj"]]
)
def test_packed_weights_and_adapters_on_some_layers(base, monkeypatch, read, dequantize, targets):
    model = add_lora(base, LoraConfig(rank=2, targets=targets), seed=0)
    model.add_adapter("other", model.peft_config[TRAINED])
    add_noise(model, 1)
    policy = Policy(base, model)
    try:
        rows = ([TRAINED], [BASE], [TRAINED, BASE, "other"])
        shorter = [answers(policy, *adapters, dequantize=dequantize) for adapters in rows]
        assert read
        monkeypatch.setattr(Policy, "_reader", lambda self: partial(_last_logits, self.causal))
        assert shorter == [answers(policy, *adapters, dequantize=dequantize) for adapters in rows]
    finally:
        model.unload()


def test_others_are_left_to_the_library(tmp_path, read):
    answers(loaded(tmp_path / "window", "gemma2"), TRAINED)
    policy = loaded(tmp_path / "dora", "qwen2")
    settings = policy.peft.peft_config[TRAINED]
    policy.peft.add_adapter("dora", type(settings)(**{**settings.to_dict(), "use_dora": True}))
    for adapters in ([BASE], ["dora"]):
        answers(policy, *adapters)
    assert not read
