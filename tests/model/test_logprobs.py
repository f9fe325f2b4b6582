"""Chunked log-probabilities against the full softmax in float64, and the memory they save."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kit.model import logprobs as logprobs_module
from kit.model.logprobs import token_logprobs

# float32 rounds logits of size 10 by 1e-6 at most; everything below is that, not a loose bound
TOLERANCE = {"rtol": 2e-6, "atol": 3e-6}


def problem(n=7, hidden_size=5, vocabulary=11, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, hidden_size, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=generator).to(dtype)
    bias = torch.randn(vocabulary, generator=generator).to(dtype)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    upstream = torch.randn(n, generator=generator)  # d loss / d logprobs
    return hidden, weight, bias, targets, upstream


def reference(hidden, weight, targets, upstream, temperature=1.0, bias=None):
    """Log-probabilities, entropy and the hidden states' gradient from the full softmax, float64."""
    hidden = hidden.detach().double().requires_grad_()
    logits = hidden @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    log_softmax = (logits / temperature).log_softmax(-1)
    logprobs = log_softmax.gather(-1, targets[:, None]).squeeze(-1)
    probabilities = log_softmax.exp()
    entropy = -torch.where(probabilities > 0, probabilities * log_softmax, 0.0).sum(-1)
    (gradient,) = torch.autograd.grad((logprobs * upstream.double()).sum(), hidden)
    return logprobs.detach(), entropy.detach(), gradient


def evaluate(hidden, weight, targets, upstream, **settings):
    hidden = hidden.detach().requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, targets, **settings)
    (gradient,) = torch.autograd.grad((logprobs * upstream).sum(), hidden)
    return logprobs.detach(), entropy, gradient


def test_two_tokens_by_hand():
    # logits (ln 3, 0) at T = 1: probabilities 3/4 and 1/4
    hidden = torch.tensor([[math.log(3)], [math.log(3)]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]])
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([0, 1]))
    expected = torch.tensor([math.log(3 / 4), math.log(1 / 4)])
    torch.testing.assert_close(logprobs.detach(), expected, **TOLERANCE)
    both = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    torch.testing.assert_close(entropy, torch.tensor([both, both]), **TOLERANCE)
    logprobs.sum().backward()
    # d logprob / d hidden = w[target] - sum_v p_v w_v = 1 - 3/4 and 0 - 3/4
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.25], [-0.75]]), **TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 3, 7, 256], ids=lambda c: f"chunk{c}")
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
def test_values_entropy_and_gradient(temperature, with_bias, chunk):
    hidden, weight, bias, targets, upstream = problem()
    settings = {"temperature": temperature, "bias": bias if with_bias else None}
    got = evaluate(hidden, weight, targets, upstream, chunk=chunk, **settings)
    expected = reference(hidden, weight, targets, upstream, **settings)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE)


def test_large_logits_do_not_overflow():
    hidden, weight, _, targets, upstream = problem()
    got = evaluate(1000 * hidden, weight, targets, upstream)
    expected = reference(1000 * hidden, weight, targets, upstream)
    # logits near 5,000: one float32 rounding there is 5e-4
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-3)


def test_gradient_by_finite_differences():
    hidden, weight, bias, targets, _ = problem(n=3, hidden_size=4, dtype=torch.float64)

    def function(h):
        return token_logprobs(h, weight, targets, temperature=0.7, bias=bias, chunk=2)[0].double()

    # the result is rounded to float32 (1e-7 x 4): over a step of 2 x 1e-2 that is 4e-5, and the
    # central difference itself is off by 1e-4 / 6 times the third derivative
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(function, (hidden,), eps=1e-2, atol=5e-4, rtol=1e-3)


def test_entropy_carries_no_gradient():
    hidden, weight, _, targets, _ = problem()
    hidden.requires_grad_()
    logprobs, entropy = token_logprobs(hidden, weight, targets)
    assert logprobs.requires_grad
    assert not entropy.requires_grad
    (gradient,) = torch.autograd.grad(logprobs.sum() + 5 * entropy.sum(), hidden)
    (alone,) = torch.autograd.grad(token_logprobs(hidden, weight, targets)[0].sum(), hidden)
    assert torch.equal(gradient, alone)


def test_entropy_of_a_uniform_distribution():
    _, entropy = token_logprobs(torch.zeros(2, 3), torch.ones(32, 3), torch.tensor([0, 31]))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(32)), **TOLERANCE)


def test_tokens_forbidden_by_the_bias():
    hidden, weight, bias, targets, upstream = problem()
    bias[[2, 9]] = -math.inf
    targets = torch.where((targets == 2) | (targets == 9), 0, targets)
    got = evaluate(hidden, weight, targets, upstream, bias=bias)
    keep = [v for v in range(11) if v not in (2, 9)]
    renumbered = torch.tensor([keep.index(target) for target in targets.tolist()])
    expected = reference(hidden, weight[keep], renumbered, upstream, bias=bias[keep])
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE)
    logprobs, _ = token_logprobs(hidden[:1], weight, torch.tensor([2]), bias=bias)
    assert logprobs.item() == -math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_head(dtype):
    hidden, weight, _, targets, upstream = problem(dtype=dtype)
    logprobs, entropy, gradient = evaluate(hidden, weight, targets, upstream)
    assert (logprobs.dtype, entropy.dtype, gradient.dtype) == (torch.float32, torch.float32, dtype)
    # the logits, up to 6 here, carry the head's rounding; the softmax over them must add none
    logits = torch.nn.functional.linear(hidden, weight).double()
    expected = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(logprobs.double(), expected, **TOLERANCE)
    exact = reference(hidden, weight, targets, upstream)[2]
    relative = (gradient.double() - exact).norm() / exact.norm()
    assert relative < 4 * torch.finfo(dtype).eps


def test_small_gradients_survive_float16():
    hidden, weight, _, targets, upstream = problem(vocabulary=4000)
    # a loss divided by 30,000 tokens; float16's smallest number is 6e-8
    upstream = upstream / 30_000
    got = evaluate(hidden, weight.half(), targets, upstream)[2]
    exact = reference(hidden.half(), weight.half(), targets, upstream)[2]
    assert (got.double() - exact).norm() / exact.norm() < 2e-3


@pytest.mark.parametrize("chunk", [1, 3, 7, 8])
def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch, chunk):
    rows: list[int] = []
    scaled_logits = logprobs_module._scaled_logits

    def counting(hidden, *others):
        rows.append(len(hidden))
        return scaled_logits(hidden, *others)

    monkeypatch.setattr(logprobs_module, "_scaled_logits", counting)
    hidden, weight, _, targets, upstream = problem(n=7)
    evaluate(hidden, weight, targets, upstream, chunk=chunk)
    pieces = [min(chunk, 7 - start) for start in range(0, 7, chunk)]
    assert rows == pieces  # the backward pass computes none


def test_results_are_on_the_device_of_the_hidden_states_and_in_float32():
    hidden, weight, _, targets, _ = problem()
    here = token_logprobs(hidden.to("meta"), weight.to("meta"), targets.to("meta"))
    assert [values.device.type for values in here] == ["meta", "meta"]
    torch.set_default_dtype(torch.float64)
    try:
        results = token_logprobs(hidden, weight, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [values.dtype for values in results] == [torch.float32] * 2


def test_no_positions():
    hidden = torch.zeros(0, 5, requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, torch.ones(11, 5), torch.zeros(0, dtype=torch.long))
    logprobs.sum().backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, 5)


def test_arguments_are_not_modified():
    arguments = problem()
    before = [argument.clone() for argument in arguments]
    hidden, weight, bias, targets, upstream = arguments
    evaluate(hidden, weight, targets, upstream, bias=bias, temperature=0.5, chunk=2)
    assert all(map(torch.equal, arguments, before))


def test_errors():
    hidden, weight, bias, targets, _ = problem()
    with pytest.raises(ValueError, match=r"targets \(N,\), got \(7, 5\) and \(6,\)"):
        token_logprobs(hidden, weight, targets[:6])
    with pytest.raises(ValueError, match=r"hidden must be \(N, H\).* got \(1, 7, 5\)"):
        token_logprobs(hidden[None], weight, targets)
    with pytest.raises(ValueError, match=r"weight must be \(V, H=5\), got \(5, 11\)"):
        token_logprobs(hidden, weight.T, targets)
    with pytest.raises(ValueError, match="quantized output head is not supported"):
        token_logprobs(hidden, torch.zeros(55, 1, dtype=torch.uint8), targets)
    for trainable in ("weight", "bias"):
        head = {"weight": weight.clone(), "bias": bias.clone()}
        head[trainable].requires_grad_()
        with pytest.raises(ValueError, match="output head must be frozen"):
            token_logprobs(hidden, head["weight"], targets, bias=head["bias"])


def peak_bytes(function, path) -> int:
    """Most bytes of tensor memory that `function` holds at once, temporaries of kernels included.

    Counted from the allocator's own events, which does not depend on the operating system.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    events = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    live = peak = 0
    for event in events:
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


@pytest.mark.slow
def test_memory_at_qwens_vocabulary(tmp_path):
    rows, tokens, vocabulary, hidden_size = 4, 256, 151_936, 8
    hidden, weight, _, targets, _ = problem(rows * tokens, hidden_size, vocabulary)
    hidden.requires_grad_()

    def plain():
        logits = torch.nn.functional.linear(hidden, weight)
        torch.nn.functional.cross_entropy(logits, targets).backward()

    def chunked():
        token_logprobs(hidden, weight, targets)[0].sum().backward()

    whole = rows * tokens * vocabulary * 4
    full_peak = peak_bytes(plain, tmp_path / "plain.json")
    assert full_peak >= 2 * whole  # else the meter missed the logits or their gradient
    chunk_peak = peak_bytes(chunked, tmp_path / "chunked.json")
    assert chunk_peak >= whole / 4  # one chunk of 256 positions must have been seen
    assert chunk_peak < full_peak / 5
