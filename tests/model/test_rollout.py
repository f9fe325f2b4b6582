"""Sampling: independent of batching, equal to plain generation, honest about its log-probs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kit.model import rollout
from kit.model.batching import make_batch, pad_values
from kit.model.draw import choose, truncate
from kit.model.lora import TRAINED
from kit.model.policy import BASE
from kit.model.rollout import Request, Sampling, sample
from tests.model.sampled import ROUNDING, assert_same, requests_for


def test_a_row_is_the_same_alone_and_in_a_padded_batch_with_shared_prefill(double_policy):
    requests = requests_for(double_policy.base)
    assert len({len(r.prompt) for r in requests}) == 3  # so that the batch is padded
    together = sample(double_policy, requests, Sampling(60))
    alone = [sample(double_policy, [request], Sampling(60))[0] for request in requests]
    assert_same(together, alone)
    # rows that end early leave the batch: the test must have seen that happen
    assert len({len(c.tokens) for c in together}) > 3


def test_prompts_that_are_read_in_several_passes_say_the_same(double_policy, monkeypatch):
    requests = requests_for(double_policy.base, adapters=(TRAINED, BASE))
    whole = sample(double_policy, requests, Sampling(40))
    reader = type(double_policy.causal).forward
    read: list[torch.Size] = []

    def forward(self, input_ids, **inputs):
        if input_ids.shape[1] > 1:
            read.append(input_ids.shape)
        return reader(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(double_policy.causal), "forward", forward)
    longest = max(len(request.prompt) for request in requests)
    prompts = len({(request.prompt, request.adapter) for request in requests})
    monkeypatch.setattr("kit.model.prefill.PREFILL_TOKENS", 2 * longest + 1)
    assert_same(whole, sample(double_policy, requests, Sampling(40)))
    assert read == [(2, longest)] * (prompts // 2) and prompts % 2 == 0
    read.clear()
    monkeypatch.setattr("kit.model.prefill.PREFILL_TOKENS", 1)  # one prompt at least
    assert_same(whole, sample(double_policy, requests, Sampling(40)))
    assert read == [(1, longest)] * prompts


def test_order_and_number_of_rows_at_once_change_nothing(double_policy):
    requests = requests_for(double_policy.base)
    whole = sample(double_policy, requests, Sampling(40))
    assert_same(whole, sample(double_policy, requests, Sampling(40, max_rows=5)))
    assert_same(whole[::-1], sample(double_policy, requests[::-1], Sampling(40)))


def test_the_same_seed_says_the_same_and_another_seed_something_else(policy):
    requests = requests_for(policy.base, samples=8)
    texts = [c.text for c in sample(policy, requests, Sampling(40))]
    assert texts == [c.text for c in sample(policy, requests, Sampling(40))]
    assert len(set(texts[:8])) > 1


def test_rows_of_different_adapters_share_a_batch(double_policy):
    mixed = requests_for(double_policy.base, adapters=(TRAINED, BASE), samples=2)
    together = sample(double_policy, mixed, Sampling(40))
    for adapter in (TRAINED, BASE):
        mine = [i for i, request in enumerate(mixed) if request.adapter == adapter]
        separate = sample(double_policy, [mixed[i] for i in mine], Sampling(40))
        assert_same([together[i] for i in mine], separate)
    texts = [c.text for c in together]
    assert texts[0::2] != texts[1::2]  # the adapter does make a difference


def test_greedy_equals_transformers_generate(double_policy):
    requests = requests_for(double_policy.base, samples=1)
    ours = sample(double_policy, requests, Sampling(40, temperature=0.0))
    for request, completion in zip(requests, ours, strict=True):
        with double_policy.sampling():
            ids = torch.tensor([request.prompt])
            generated = double_policy.causal.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=40,
                do_sample=False,
                eos_token_id=sorted(double_policy.base.stop_ids),
                pad_token_id=double_policy.base.tokenizer.pad_token_id,
            )
        assert completion.tokens == generated[0, len(request.prompt) :].tolist()


def trainers_gap(policy, temperature):
    """(N,) by how much the trainer's log-probability of each sampled token is off the sampler's."""
    requests = requests_for(policy.base)
    completions = sample(policy, requests, Sampling(60, temperature=temperature))
    batch = make_batch([r.prompt for r in requests], [c.tokens for c in completions], pad_id=0)
    policy.causal.train()
    logprobs, _ = policy.logprobs(batch, temperature=temperature, chunk=32)
    with torch.no_grad():
        assert policy.causal(batch.input_ids).logits.abs().max() / temperature < 40  # ROUNDING's
    policy.causal.eval()
    recorded = pad_values([torch.tensor(c.logprobs) for c in completions])
    assert recorded[batch.mask].min() < -1  # the test saw unlikely tokens too
    return (logprobs.detach() - recorded)[batch.mask]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_trainer_computes_the_samplers_logprobs(double_policy, temperature):
    """The first update's importance ratio is 1, for every token."""
    gap = trainers_gap(double_policy, temperature)
    assert gap.abs().max() < 8 * ROUNDING
    assert (gap.exp() - 1).abs().max() < 8 * ROUNDING


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_trainer_computes_the_samplers_logprobs_in_four_bits(policy, temperature):
    assert trainers_gap(policy, temperature).square().mean().sqrt() < 16 * ROUNDING


def test_the_stop_token_belongs_to_the_completion(policy):
    completions = sample(policy, requests_for(policy.base, samples=8), Sampling(80))
    ended = [c for c in completions if not c.truncated]
    assert ended
    for completion in ended:
        assert completion.tokens[-1] in policy.base.stop_ids
        assert not set(completion.tokens[:-1]) & policy.base.stop_ids
        assert len(completion.logprobs) == len(completion.tokens)
        assert "<|im_end|>" not in completion.text
    for completion in sample(policy, requests_for(policy.base), Sampling(3)):
        assert completion.truncated == (completion.tokens[-1] not in policy.base.stop_ids)
        assert len(completion.tokens) <= 3


def test_dequantized_weights_give_the_same_completions(policy):
    requests = requests_for(policy.base, samples=2)
    packed = sample(policy, requests, Sampling(30, dequantize="never"))
    dense = sample(policy, requests, Sampling(30, dequantize="always"))
    assert [c.tokens for c in packed] == [c.tokens for c in dense]
    gaps = [np.subtract(a.logprobs, b.logprobs) for a, b in zip(packed, dense, strict=True)]
    assert np.sqrt(np.mean(np.square(np.concatenate(gaps)))) < 16 * ROUNDING


def test_running_out_of_memory_halves_the_batch(double_policy, monkeypatch):
    requests = requests_for(double_policy.base)
    whole = sample(double_policy, requests, Sampling(20))
    decode, sizes = rollout._decode, []

    def tight(double_policy, rows, sampling):
        sizes.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("no room")
        return decode(double_policy, rows, sampling)

    monkeypatch.setattr(rollout, "_decode", tight)
    assert_same(whole, sample(double_policy, requests, Sampling(20)))
    assert sizes == [12, 6, 3, 3, 3, 3]


def test_progress_counts_completions_and_no_request_is_no_work(policy):
    seen = []
    sample(policy, requests_for(policy.base), Sampling(5, max_rows=5), seen.append)
    assert seen == [5, 5, 2]
    assert sample(policy, [], Sampling(5)) == []
    with pytest.raises(ValueError, match="at least one token"):
        sample(policy, [Request((), (0,), TRAINED)], Sampling(5))


def test_choose_inverts_the_cumulative_distribution():
    # probabilities 0.1, 0.2, 0.3, 0.4 -> cumulative 0.1, 0.3, 0.6, 1.0
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(6, 1)
    uniforms = torch.tensor([0.0, 0.0999, 0.1001, 0.5, 0.6001, 0.9999], dtype=torch.float64)
    tokens, logprobs, _ = choose(logits, uniforms, Sampling(1))
    assert tokens.tolist() == [0, 0, 1, 2, 3, 3]
    expected = np.log([0.1, 0.1, 0.2, 0.3, 0.4, 0.4])
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5)


def test_choose_with_temperature_and_greedy():
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    tokens, logprobs, _ = choose(logits, torch.tensor([0.0]), Sampling(1, temperature=2.0))
    # softmax(0, 0.5, 1.5): e^0 = 1, e^0.5 = 1.6487, e^1.5 = 4.4817, sum 7.1304
    assert tokens.item() == 0
    assert logprobs.item() == pytest.approx(-np.log(7.1304), abs=1e-4)
    assert choose(logits, torch.tensor([0.0]), Sampling(1, temperature=0.0))[0].item() == 2


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, *_ = choose(logits, uniforms, Sampling(1))
    assert tokens.tolist() == [1, 3, 3]


def test_truncate():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert truncate(probs, 1.0, 0) is probs
    torch.testing.assert_close(truncate(probs, 1.0, 2), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    # 0.4 + 0.3 = 0.7 is the smallest set that reaches 0.65
    torch.testing.assert_close(truncate(probs, 0.65, 0), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    torch.testing.assert_close(truncate(probs, 0.75, 0), torch.tensor([[0.0, 0.4, 0.2, 0.3]]))
    torch.testing.assert_close(truncate(probs, 0.01, 0), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))


def test_truncation_does_not_change_the_recorded_logprob():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    _, logprobs, _ = choose(logits, torch.tensor([0.0]), Sampling(1, top_k=1))
    assert logprobs.item() == pytest.approx(np.log(0.4), abs=1e-6)
