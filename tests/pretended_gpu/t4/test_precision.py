"""float16 on a card without bfloat16: the loss scaler, the numbers that overflow, the kernels."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from accelerate import Accelerator

from kit.config import ModelConfig, OptimConfig, TrainConfig
from kit.errors import NotFiniteError
from kit.model.batching import make_batch
from kit.model.hardware import choose_hardware
from kit.model.policy import Policy
from kit.model.rollout import Request, Sampling, sample
from kit.training.optimizer import INITIAL_LOSS_SCALE, Optimizer
from tests.pretended_gpu import kernels


def optimizer_of(*weights: torch.nn.Parameter, name: str = "adamw") -> Optimizer:
    return Optimizer(
        weights, OptimConfig(name=name), TrainConfig(), Accelerator(), scales_loss=True
    )


def requests_of(policy: Policy) -> list[Request]:
    chat = [{"role": "user", "content": "Ann has 3 apples. How many?"}]
    return [Request(tuple(policy.base.prompt_ids(chat)), (1, i), "default") for i in range(3)]


def test_a_process_without_rows_in_the_first_update():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = optimizer_of(weight)
    result, _ = optimizer.step([], lambda rows: None)
    assert (result.applied, result.grad_norm) == (True, 0.0)
    assert optimizer.scaler.get_scale() == INITIAL_LOSS_SCALE
    result, _ = optimizer.step([1], lambda rows: (2 * weight.sum(), None))
    assert result.grad_norm == pytest.approx(2 * math.sqrt(3))  # the scale is taken out again


def test_a_gradient_that_overflows_halves_the_scale():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = optimizer_of(weight)
    result, _ = optimizer.step([1], lambda rows: (weight.sum() * math.inf, None))
    assert not result.applied
    assert optimizer.scaler.get_scale() == INITIAL_LOSS_SCALE / 2
    assert weight.tolist() == [1, 1, 1]


def test_moments_in_8_bits_go_on_from_a_checkpoint():
    weight = torch.nn.Parameter(torch.ones(5000, device="cuda"))
    optimizer = optimizer_of(weight, name="adamw_8bit")
    optimizer.step([1], lambda rows: (weight.sum(), None))
    before = kernels.calls["cadam_8bit_blockwise_grad_fp32"]
    assert before > 0
    state = torch.utils._pytree.tree_map_only(
        torch.Tensor, torch.Tensor.cpu, optimizer.state_dict()
    )
    optimizer = optimizer_of(weight, name="adamw_8bit")
    optimizer.load_state_dict(state)
    assert optimizer.step([1], lambda rows: (weight.sum(), None))[0].applied
    assert kernels.calls["cadam_8bit_blockwise_grad_fp32"] == before + 1


def test_bfloat16_on_a_card_without_it_is_warned_of(caplog):
    device = torch.device("cuda")
    assert choose_hardware(ModelConfig(id="x"), device).dtype == torch.float16
    assert not caplog.records
    choose_hardware(ModelConfig(id="x", dtype="bfloat16"), device)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Tesla T4 has no bfloat16" in record.message and "model.dtype=auto" in record.message


def test_numbers_that_are_not_finite_are_named(policy):
    norm = policy.base.model.model.norm
    handle = norm.register_forward_hook(lambda module, inputs, output: output * math.nan)
    try:
        with pytest.raises(NotFiniteError, match=r"the output of .*norm is not finite; .*float32"):
            sample(policy, requests_of(policy), Sampling(4))
    finally:
        handle.remove()


@pytest.mark.parametrize(("mode", "fused"), [("always", False), ("never", True)])
def test_sampler_and_trainer_agree_whichever_kernel_decodes(policy, mode, fused):
    """Few rows of packed weights go through bitsandbytes' fused kernel, many through another."""
    requests = requests_of(policy)
    kernels.calls.clear()
    answers = sample(policy, requests, Sampling(16, dequantize=mode))
    used = kernels.calls["cgemm_4bit_fp16"] > 0
    assert used is fused
    batch = make_batch(
        [request.prompt for request in requests],
        [answer.tokens for answer in answers],
        pad_id=policy.base.tokenizer.pad_token_id,
        device=torch.device("cuda"),
    )
    policy.activate()
    with torch.no_grad():
        logprobs, entropy = policy.logprobs(batch)
    assert logprobs.device.type == entropy.device.type == "cuda"
    sampler = torch.tensor([value for answer in answers for value in answer.logprobs])
    gap = (logprobs[batch.mask].cpu() - sampler).abs()
    assert gap.mean() < 5e-2
