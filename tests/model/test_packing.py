"""A prompt computed once for its completions: the same numbers and gradients as row by row."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from kit.config import LoraConfig, ModelConfig
from kit.model.base import Base, load_base
from kit.model.batching import Batch, make_batch, micro_batches
from kit.model.lora import add_lora
from kit.model.packing import Packed, pack, packed_batches
from kit.model.policy import Policy
from tests.model.families import FAMILIES
from tests.model.test_attention import PLAIN
from tests.noise import add_noise

CPU = torch.device("cpu")
INF = float("inf")


# --- where everything stands ---------------------------------------------------------------------


def test_pack_by_hand():
    """Two completions of (7, 8), one of (9,), and one of (7, 8) again, which is no neighbour."""
    prompts = [(7, 8), (7, 8), (9,), (7, 8)]
    packed = pack(prompts, [[1], [2, 3, 4], [5, 6], [1]], heads_per_key=1, dtype=torch.float32)
    assert packed.input_ids.tolist() == [[7, 8, 1, 2, 3, 4, 9, 5, 6, 7, 8, 1]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 4, 0, 1, 2, 0, 1, 2]]
    # token 1 is predicted by the prompt's end at 1; 2 too, 3 and 4 by the token before
    assert packed.predictors.tolist() == [1, 1, 3, 4, 6, 7, 10]
    assert packed.targets.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0], [1, 0, 0]]
    assert packed.mask.sum(1).tolist() == [1, 3, 2, 1]
    first, second, third = packed.groups
    assert (first.prompt, second.prompt, third.prompt) == (slice(0, 2), slice(6, 7), slice(9, 11))
    assert first.places.tolist() == [[2, 2, 2], [3, 4, 5]]
    assert first.real.tolist() == [0, 3, 4, 5]
    assert first.prompt_mask.tolist() == [[0, -INF], [0, 0]]
    assert first.mask.tolist() == [[0, 0, 0, -INF, -INF], [0, 0, 0, 0, -INF], [0, 0, 0, 0, 0]]


def test_heads_that_share_a_key_are_neighbours_in_the_mask():
    packed = pack([(1,)], [[2, 3]], heads_per_key=2, dtype=torch.bfloat16)
    (group,) = packed.groups
    assert group.mask.tolist() == [[0, 0, -INF], [0, 0, -INF], [0, 0, 0], [0, 0, 0]]
    assert group.mask.dtype == torch.bfloat16 and group.mask.stride() == (8, 1)


def test_a_completion_without_tokens_has_no_predictor():
    packed = pack([(1, 2), (1, 2)], [[], [3]], heads_per_key=1, dtype=torch.float32)
    assert packed.input_ids.tolist() == [[1, 2, 3]] and packed.predictors.tolist() == [1]


def test_pack_errors():
    for prompts, completions in (([], []), ([(1,), ()], [[2], [3]])):
        with pytest.raises(ValueError, match="at least one row, and every prompt at least one"):
            pack(prompts, completions, heads_per_key=1, dtype=torch.float32)


@pytest.mark.parametrize(
    ("prompts", "lengths", "budget", "expected"),
    [
        ("", [], 10, []),
        # one prompt of 1: 1 + 2 x 3 = 7, and 1 + 3 x 3 = 10
        ("aa", [4, 4], 7, [[0, 1]]),
        ("aaaa", [4, 4, 4, 4], 10, [[0, 1, 2], [3]]),
        # the padding that attention sees counts: 1 + 2 x 6 > 12 though 1 + 6 + 1 is not
        ("aa", [7, 2], 12, [[0], [1]]),
        # groups stay together: 1 + 2 x 4 = 9, 1 + 2 x 2 = 5, and both are too many
        ("abab", [5, 3, 5, 3], 13, [[0, 2], [1, 3]]),
        ("abab", [5, 3, 5, 3], 14, [[0, 2, 1, 3]]),
        # the largest first, and what is left over goes where there is room
        ("abbc", [2, 6, 6, 9], 11, [[1, 2], [3, 0]]),
        ("ab", [20, 3], 10, [[0], [1]]),  # longer than the budget: on its own
        ("aa", [2, 2], 1, [[0], [1]]),
    ],
)
def test_packed_batches_by_hand(prompts, lengths, budget, expected):
    assert packed_batches([(ord(c),) for c in prompts], lengths, budget) == expected


@pytest.mark.parametrize("seed", range(100))
def test_packed_batches_of_random_groups(seed):
    rng = random.Random(seed)
    prompts, lengths = [], []
    for number in range(rng.randint(1, 8)):
        prompt = (number,) * rng.randint(1, 20)
        for _ in range(rng.randint(1, 6)):
            prompts.append(prompt)
            lengths.append(len(prompt) + rng.randint(1, 30))
    budget = rng.randint(1, 300)
    batches = packed_batches(prompts, lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        chosen = [prompts[i] for i in batch]
        assert sum(a != b for a, b in itertools.pairwise(chosen)) == len(set(chosen)) - 1
        size = 0
        for prompt in set(chosen):
            own = [lengths[i] for i in batch if prompts[i] == prompt]
            size += len(prompt) + len(own) * (max(own) - len(prompt))
        assert size <= budget or len(batch) == 1


# --- the same numbers ----------------------------------------------------------------------------


def rows(vocabulary: int, seed: int = 0) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Prompts of 1 to 40 tokens with 1 to 5 completions of 1 to 30 each."""
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(4, vocabulary) for _ in range(count)]

    prompts, completions = [], []
    for length, count in ((40, 5), (9, 3), (1, 2), (25, 1)):
        prompt = tuple(tokens(length))
        for _ in range(count):
            prompts.append(prompt)
            completions.append(tokens(rng.randint(1, 30)))
    return prompts, completions


def gradient(
    policy: Policy, batches: list[list[int]], batch_of
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all completion tokens, and the gradient of a weighted sum of them."""
    prompts, completions = rows(policy.causal.config.vocab_size)
    found: dict[int, torch.Tensor] = {}
    for batch in batches:
        own = batch_of([prompts[i] for i in batch], [completions[i] for i in batch])
        logprobs, _ = policy.logprobs(own, temperature=0.9, chunk=16)
        weights = torch.tensor([(-1.0) ** i * (1 + i) for i in batch])
        torch.where(own.mask, logprobs * weights[:, None], 0.0).sum().backward()
        found |= {
            i: row[real].detach() for i, row, real in zip(batch, logprobs, own.mask, strict=True)
        }
    total = torch.cat([p.grad.flatten() for p in policy.trainable])
    for parameter in policy.trainable:
        parameter.grad = None
    return torch.cat([found[i] for i in range(len(prompts))]), total


@pytest.fixture
def checkpointed(base: Base):
    base.model.gradient_checkpointing_enable({"use_reentrant": False})
    base.model.train()
    yield
    base.model.gradient_checkpointing_disable()
    base.model.eval()


def padded(prompts, completions) -> Batch:
    return make_batch(prompts, completions, pad_id=0)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("budget", [100_000, 200, 50, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_padded_rows(policy, budget, checkpointing, request):
    if checkpointing:
        request.getfixturevalue("checkpointed")
    prompts, completions = rows(policy.causal.config.vocab_size)
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    expected = gradient(policy, micro_batches(lengths, 400), padded)
    batches = packed_batches(prompts, lengths, budget)
    assert (len(batches) == 1) == (budget == 100_000)
    found = gradient(policy, batches, policy.batch)
    assert difference(found[0], expected[0]) < 1e-6
    assert difference(found[1], expected[1]) < 1e-5


def test_a_completion_sees_its_prompt_and_itself_alone(policy):
    prompts, completions = [(5, 6, 7)] * 3, [[8, 9], [10, 11, 12, 13], [14]]
    before, _ = policy.logprobs(policy.batch(prompts, completions))
    completions[1] = [20, 21, 22, 23]
    after, _ = policy.logprobs(policy.batch(prompts, completions))
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]], rtol=0, atol=1e-6)
    assert (before[1] - after[1]).abs().max() > 0.01
    after, _ = policy.logprobs(policy.batch([(5, 30, 7)] * 3, completions))
    assert (before[[0, 2], 0] - after[[0, 2], 0]).abs().min() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_what_it_says_of_padded_rows(name, tmp_path):
    """Windows, learned positions and caps are left to padding: see kit.model.attention.suits."""
    FAMILIES[name].save(tmp_path)
    base = load_base(ModelConfig(id=str(tmp_path), quantization="none"), CPU)
    targets = list(FAMILIES[name].targets)
    policy = Policy(base, add_lora(base, LoraConfig(rank=2, alpha=4, targets=targets), seed=0))
    add_noise(policy.peft, 0)
    prompts, completions = rows(base.model.config.vocab_size)
    own = policy.batch(prompts, completions)
    assert isinstance(own, Packed) == policy.shares_prompts == (name in PLAIN)
    assert policy.shared(prompts) == (prompts if name in PLAIN else None)
    found, _ = policy.logprobs(own)
    expected, _ = policy.logprobs(padded(prompts, completions))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    everything = [list(range(len(prompts)))]
    _, one = gradient(policy, everything, policy.batch)
    _, other = gradient(policy, everything, padded)
    assert difference(one, other) < 1e-5


@pytest.mark.parametrize("asked", ["sdpa", "eager"])
def test_prompts_are_not_shared_where_another_attention_is_asked_for(asked):
    base = load_base(ModelConfig(id="embedded", quantization="none", attention=asked), CPU)
    assert isinstance(Policy(base).batch([(5, 6)], [[7]]), Batch)
