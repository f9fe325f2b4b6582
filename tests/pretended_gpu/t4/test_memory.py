"""Memory that runs out on the card: what is tried smaller, what is said, what is left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from kit.cards import CONTEXT
from kit.config import DataConfig, LoraConfig, ModelConfig, OptimConfig, TrainConfig
from kit.errors import ModelError, OutOfMemoryError
from kit.evaluation.benchmark import benchmark
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.model import base as base_module
from kit.model.base import load_base
from kit.model.batching import make_batch
from kit.model.dequantized import dequantized
from kit.model.lora import add_lora
from kit.model.packing import Packed
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from kit.reading import read_metrics
from kit.training.optimizer import Optimizer
from kit.training.trainer import train, train_together

QUESTIONS = ("Ann has 3 apples and buys 4 more. How many?", "Ann has 3 apples. How many?")


def requests_of(policy: Policy, *adapters: str) -> list[Request]:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tuple(policy.base.prompt_ids(chat)) for chat in chats]
    return [Request(prompts[i % 2], (1, i), adapters[i % len(adapters)]) for i in range(4)]


def said(policy: Policy, requests: list[Request], mode: str = "auto") -> list[list[int]]:
    return [answer.tokens for answer in sample(policy, requests, Sampling(8, dequantize=mode))]


def is_patched(policy: Policy) -> bool:
    return any("forward" in vars(module) for module in policy.base.model.modules())


def failing(function: Callable[..., Any], gpu) -> Callable[..., Any]:
    """The function, whose first allocation on the card fails."""

    def call(*arguments: Any, **named: Any) -> Any:
        gpu.fail_after(0)
        return function(*arguments, **named)

    return call


def test_while_sampling(gpu, policy):
    requests = requests_of(policy, "default")
    wanted = said(policy, requests)
    gc.collect()
    before = gpu.allocated
    for after in (200, 2000):
        gpu.fail_after(after)
        assert said(policy, requests) == wanted
        gc.collect()
        assert gpu.allocated == before


def test_while_adapters_are_put_side_by_side(gpu, policy):
    add_lora(policy.base, LoraConfig(rank=4, alpha=8), 1, name="arm1", model=policy.peft)
    requests = requests_of(policy, "default", "arm1")
    gpu.fail_after(20)
    with pytest.raises(torch.OutOfMemoryError), policy.decoder(["default", "arm1"]):
        pass  # never gets here
    gc.collect()
    assert not is_patched(policy)
    assert len(said(policy, requests, "never")) == 4


def test_while_weights_are_unpacked(gpu, policy, caplog):
    requests = requests_of(policy, "default")
    hardware = policy.base.hardware
    gpu.fail_after(24)
    with (
        pytest.raises(OutOfMemoryError, match=r"unpacking the 4-bit .* rollout.dequantize=never"),
        dequantized(policy.causal, "always", hardware),
    ):
        pass
    assert not is_patched(policy)

    gpu.fail_after(24)
    with dequantized(policy.causal, "auto", hardware) as done:
        assert not done
        assert not is_patched(policy)
    assert "decoding from packed weights, which is slower: out of memory" in caplog.text
    assert said(policy, requests, "auto")


def test_there_is_no_copy_where_there_is_no_room_for_one(gpu, policy):
    with dequantized(policy.causal, "auto", policy.base.hardware) as done:
        assert done
    gpu.limit(gpu.allocated + 500_000)
    with dequantized(policy.causal, "auto", policy.base.hardware) as done:
        assert not done


def test_while_the_base_is_loaded(gpu):
    """The first allocation is room for all weights; of a later one transformers says no reason."""
    gpu.fail_after(0)
    with pytest.raises(ModelError, match=r"^not enough GPU memory to load 'embedded'; .*=nf4"):
        load_base(ModelConfig(id="embedded"), torch.device("cuda"))
    gpu.fail_after(10)
    with pytest.raises(ModelError, match=r"^cannot load .* if memory ran out, .*=nf4"):
        load_base(ModelConfig(id="embedded"), torch.device("cuda"))


def test_while_the_loaded_base_is_tried(gpu, monkeypatch):
    monkeypatch.setattr(base_module, "_check_supported", failing(base_module._check_supported, gpu))
    with pytest.raises(ModelError, match=r"^not enough GPU memory to load 'embedded'; .*=nf4"):
        load_base(ModelConfig(id="embedded"), torch.device("cuda"))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_while_the_first_update_makes_its_moments(gpu, name):
    weight = torch.nn.Parameter(torch.ones(5000, device="cuda"))
    optimizer = Optimizer(
        [weight], OptimConfig(name=name), TrainConfig(), Accelerator(), scales_loss=False
    )
    optimizer.scaler.step = failing(optimizer.scaler.step, gpu)
    with pytest.raises(OutOfMemoryError, match=r"applying an update; set optim.name=adamw_8bit"):
        optimizer.step([1], lambda rows: (weight.sum(), None))


def test_training_keeps_to_its_budget(gpu, make_config):
    total, before = gpu.memory, gpu.allocated
    run = train(make_config(memory_budget="700MB", train={"validate_every": 2}))
    record = run.read_description()["memory"]
    assert record["budget"] == "700MB" and record["rollout.max_rows"] >= 1
    assert gpu.memory == total
    steps = [metrics for metrics in read_metrics(run.metrics) if "memory/peak_mb" in metrics]
    assert steps and all(m["memory/peak_mb"] * 2**20 - before < 700e6 - CONTEXT for m in steps)


def test_arms_that_train_together_keep_to_their_budget(gpu, make_config, tmp_path):
    """As many adapters as the base weighs; what an arm has for itself, all have."""
    asked = {"memory_budget": "720MB", "lora": {"rank": 64, "alpha": 64}}
    configs = [
        make_config(output=str(tmp_path / name), **asked) for name in ("one", "two", "three")
    ]
    gc.collect()
    before = gpu.allocated
    runs = train_together(configs)
    for run in runs:
        steps = [metrics for metrics in read_metrics(run.metrics) if "memory/peak_mb" in metrics]
        assert steps
        assert all(m["memory/peak_mb"] * 2**20 - before < 720e6 - CONTEXT for m in steps)


def test_an_evaluation_keeps_to_its_budget(gpu, policy, tmp_path):
    """More rows than fit at once, which the sampler knows before it runs out of memory."""
    base, total = policy.base, gpu.memory
    policy.peft.unload()
    gc.collect()
    before = gpu.allocated
    size = before + 30_000_000  # less than all rows take
    settings = EvalSettings(
        limit=60, max_new_tokens=300, memory_budget=f"{(CONTEXT + size) / 1e6:.0f}MB"
    )
    data = DataConfig(name="gsm_symbolic", options={"size": 60})
    model = ModelConfig(id="embedded")
    subject = Subject("base", model, None, data.system_prompt, tmp_path)
    gpu.reset_peak()
    benchmark([subject], [data], settings, base=base)
    assert before < gpu.peak < size
    assert gpu.memory == total


def test_prompts_are_shared_in_float16(policy):
    """Log-probabilities and gradients of packed rows against padded ones."""
    prompts = [request.prompt for request in requests_of(policy, "default")]
    prompts = [prompts[0], prompts[0], prompts[1], prompts[1]]
    completions = [[10, 11, 12], [13], [14, 15], [16, 17, 18, 19]]
    policy.activate()
    found = []
    pad_id, device = policy.base.tokenizer.pad_token_id, torch.device("cuda")
    for batch in (
        policy.batch(prompts, completions),
        make_batch(prompts, completions, pad_id=pad_id, device=device),
    ):
        logprobs, _ = policy.logprobs(batch)
        (1000 * logprobs.sum()).backward()
        found.append((logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.trainable])))
        for parameter in policy.trainable:
            parameter.grad = None
    (packed, one), (padded, other) = found
    assert isinstance(policy.batch(prompts, completions), Packed)
    assert (packed - padded).abs().max() < 2e-2
    assert (one - other).norm() < 2e-2 * other.norm()
