"""Rows of many adapters in one batch: the numbers each adapter computes alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn

from kit.config import LoraConfig
from kit.errors import ModelError
from kit.model.dequantized import dequantized
from kit.model.lora import add_lora
from kit.model.mixed_lora import _of_any, _of_tokens, is_plain, mixed_lora
from kit.model.policy import BASE, Policy
from kit.model.requests import Sampling
from kit.model.rollout import sample, stream
from tests.model.sampled import requests_for
from tests.noise import add_noise

ADAPTERS = {"one": 2, "two": 4, "three": 3}  # name: rank


def noisy_adapters(base):
    """Three adapters of different rank and scaling."""
    model = None
    for seed, (name, rank) in enumerate(ADAPTERS.items()):
        model = add_lora(base, LoraConfig(rank=rank, alpha=6), seed, name=name, model=model)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def policy(double_base):
    """In float64: logits of up to 30, rounded to float32 at the end, are off by 2e-6 at most."""
    model = noisy_adapters(double_base).double()
    yield Policy(double_base, model, "one")
    model.unload()


@pytest.fixture
def packed_policy(base):
    model = noisy_adapters(base)
    yield Policy(base, model, "one")
    model.unload()


def inputs(rows):
    """Prompts of different length, with padding on the left."""
    width = 12
    ids = torch.arange(3, 3 + rows * width).view(rows, width)
    mask = (torch.arange(width) >= torch.arange(rows)[:, None] % 4).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def logits(policy, names):
    """(R, V) after `inputs`."""
    with policy.sampling(), policy.decoder(names) as next_logits:
        return next_logits(names, **inputs(len(names)))


def logits_of(model, rows):
    return model(**inputs(rows)).logits[:, -1].float()


def test_every_row_is_computed_by_its_own_adapter(policy):
    names = ["two", BASE, "one", "three", "two", BASE, "one"]
    mixed = logits(policy, names)
    for name in {*ADAPTERS, BASE}:
        rows = [i for i, own in enumerate(names) if own == name]
        alone = logits(policy, [name] * len(names))
        torch.testing.assert_close(mixed[rows], alone[rows], atol=4e-6, rtol=0)
        others = [i for i in range(len(names)) if i not in rows]
        assert ((mixed - alone)[others].abs().amax(dim=1) > 1e-3).all()


def test_one_adapter_alone_computes_what_peft_does(policy, monkeypatch):
    ours = {name: logits(policy, [name] * 3) for name in ADAPTERS}
    monkeypatch.setattr("kit.model.policy.is_plain", lambda model, adapters: False)
    for name, found in ours.items():
        torch.testing.assert_close(found, logits(policy, [name] * 3), atol=4e-6, rtol=0)


def test_adapters_need_not_be_on_the_same_layers(double_base):
    """One on queries, one on values and gates; a layer that neither has is the base's."""
    model = None
    for seed, (name, targets) in enumerate(
        {"one": ["q_proj"], "two": ["v_proj", "gate_proj"]}.items()
    ):
        config = LoraConfig(rank=2 + seed, alpha=6, targets=targets)
        model = add_lora(double_base, config, seed, name=name, model=model)
    add_lora(double_base, LoraConfig(rank=2), 3, name="everywhere", model=model)
    add_noise(model, 1)
    policy = Policy(double_base, model.double(), "one")
    try:
        names = ["two", BASE, "one", "two"]
        mixed = logits(policy, names)
        for row, name in enumerate(names):
            with policy.sampling(), policy.view(name):
                alone = logits_of(policy.causal, 4)
            torch.testing.assert_close(mixed[row], alone[row], atol=4e-6, rtol=0)
    finally:
        model.unload()


def test_it_agrees_with_pefts_own_rows(policy, monkeypatch):
    names = ["two", BASE, "one", "three"]
    ours = logits(policy, names)
    monkeypatch.setattr("kit.model.policy.is_plain", lambda model, adapters: False)
    torch.testing.assert_close(ours, logits(policy, names), atol=4e-6, rtol=0)


def test_it_works_on_unpacked_weights_and_leaves_nothing_behind(packed_policy):
    names = ["one", "two", BASE]
    packed = logits(packed_policy, names)
    with dequantized(packed_policy.causal, "always", packed_policy.base.hardware):
        # the same product; a kernel that sums in another order is off by this at most
        torch.testing.assert_close(logits(packed_policy, names), packed, atol=1e-5, rtol=1e-5)
    assert not [m for m in packed_policy.causal.modules() if "forward" in vars(m)]


def test_tokens_on_a_gpu_are_the_same_product():
    """Rows of adapters 1, 0, none and 1, in a type that the mask widens."""
    x, a = torch.randn(4, 1, 6, dtype=torch.bfloat16), torch.randn(2, 3, 6)
    mask = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 1]])[..., None]
    low = _of_tokens(x, a, mask)
    torch.testing.assert_close(low, _of_any(x, a, mask))
    expected = torch.stack([a[1] @ x[0, 0].float(), a[0] @ x[1, 0].float()])
    torch.testing.assert_close(torch.stack([low[0, 0, 3:], low[1, 0, :3]]), expected)
    assert low[0, 0, :3].eq(0).all() and low[2].eq(0).all()


def test_rows_may_leave_the_batch(policy):
    ids = torch.arange(3, 9).view(3, 2)
    with policy.sampling(), mixed_lora(policy.peft, ["one", "two"]) as rows:
        rows.set(["one", "two", BASE])
        whole = policy.causal(input_ids=ids).logits
        rows.set(["two", BASE])
        part = policy.causal(input_ids=ids[1:]).logits
    torch.testing.assert_close(part, whole[1:], atol=4e-6, rtol=0)


@pytest.mark.parametrize(
    "special", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["head"]}]
)
def test_adapters_that_are_more_than_two_matrices_are_left_to_peft(special):
    def model(**settings):
        layers = nn.Sequential()
        layers.add_module("body", nn.Linear(4, 4))
        layers.add_module("head", nn.Linear(4, 4))
        config = PeftLoraConfig(r=2, target_modules=["body"], **settings)
        return get_peft_model(layers, config, adapter_name="mine")

    assert is_plain(model(), ["mine"])
    assert not is_plain(model(**special), ["mine"])


def test_rows_of_dora_are_sampled_one_adapter_after_the_other(base):
    """PEFT, to which they are left, refuses them in a batch of several adapters."""
    model = noisy_adapters(base)
    plain = model.peft_config["one"]
    model.add_adapter("dora", PeftLoraConfig(**{**plain.to_dict(), "use_dora": True}))
    add_noise(model, 2)
    policy = Policy(base, model, "one")
    requests = requests_for(base, ("dora", BASE, "one"), 1)
    try:
        alone = [sample(policy, [request], Sampling(8))[0].tokens for request in requests]
        for some in (slice(None), slice(1, 3)):
            found = sample(policy, requests[some], Sampling(8))
            assert [row.tokens for row in found] == alone[some]
        with pytest.raises(ModelError, match="'dora' cannot be decoded together with others"):
            next(stream(policy, requests, Sampling(8)))
    finally:
        model.unload()
