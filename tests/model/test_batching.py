"""Micro-batches within a token budget, and the alignment of prompts, completions and padding."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from kit.model.batching import Batch, make_batch, micro_batches, pad_right, pad_values


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], 10, []),
        ([4], 10, [[0]]),
        ([3, 5, 2, 5], 10, [[1, 3], [0, 2]]),  # 2 x 5 = 10; 2 x 3 = 6
        ([3, 5, 2, 5], 9, [[1], [3], [0, 2]]),  # 2 x 5 > 9; a third row of 3 is not there
        ([4, 4, 4, 4], 12, [[0, 1, 2], [3]]),  # 3 x 4 = 12; equal lengths keep their order
        ([20, 2, 3], 10, [[0], [2, 1]]),  # longer than the budget: on its own
        ([1, 20, 20], 10, [[1], [2], [0]]),
        ([6, 1, 1, 1], 10, [[0], [1, 2, 3]]),  # 2 x 6 > 10 although 6 + 1 <= 10: padding counts
        ([2, 2], 1, [[0], [1]]),
    ],
)
def test_micro_batches_by_hand(lengths, budget, expected):
    assert micro_batches(lengths, budget) == expected


@pytest.mark.parametrize("seed", range(200))
def test_micro_batches_of_random_lengths(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 50))]
    budget = rng.randint(1, 300)
    batches = micro_batches(lengths, budget)
    taken = [i for batch in batches for i in batch]
    assert sorted(taken) == list(range(len(lengths)))
    assert [lengths[i] for i in taken] == sorted(lengths, reverse=True)
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        longest = max(lengths[i] for i in batch)
        assert len(batch) * longest <= budget or len(batch) == 1
        if following is not None:  # nothing closes a batch but the budget
            assert (len(batch) + 1) * longest > budget


def test_make_batch_by_hand():
    # 0 is the padding and a token of both a prompt and a completion; the mask is by length
    batch = make_batch([[7, 8, 9], [0]], [[5, 0], [4, 3, 2]], pad_id=0)
    assert batch.input_ids.tolist() == [[7, 8, 9, 5, 0], [0, 4, 3, 2, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.prompt_lengths.tolist() == [3, 1]
    assert batch.targets.tolist() == [[5, 0, 0], [4, 3, 2]]
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
    for name in ("input_ids", "attention_mask", "prompt_lengths", "targets"):
        assert getattr(batch, name).dtype == torch.int64, name
    assert batch.mask.dtype == torch.bool


@pytest.mark.parametrize("seed", range(20))
def test_make_batch_aligns_targets_with_positions(seed):
    rng = random.Random(seed)
    pad = 3

    def tokens(shortest, longest):
        return [rng.randint(0, 9) for _ in range(rng.randint(shortest, longest))]

    prompts = [tokens(1, 6) for _ in range(5)]
    completions = [tokens(0, 8) for _ in range(5)]
    batch = make_batch(prompts, completions, pad_id=pad)
    assert batch.input_ids.shape[1] == max(
        len(p) + len(c) for p, c in zip(prompts, completions, strict=True)
    )
    assert batch.targets.shape[1] == max(map(len, completions))
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        row = batch.input_ids[i].tolist()
        length, end = len(prompt), len(prompt) + len(completion)
        assert row[:end] == prompt + completion
        assert set(row[end:]) <= {pad}
        assert batch.attention_mask[i].tolist() == [1] * end + [0] * (len(row) - end)
        assert batch.prompt_lengths[i] == length
        assert batch.targets[i][batch.mask[i]].tolist() == completion
        assert batch.mask[i].sum() == len(completion)
        # token t of the completion stands at prompt_length + t of the row
        for t in range(len(completion)):
            assert batch.input_ids[i, length + t] == batch.targets[i, t]
        assert set(batch.targets[i, len(completion) :].tolist()) <= {pad}


def test_make_batch_without_completion_tokens():
    batch = make_batch([[1, 2], [3]], [[], []], pad_id=0)
    assert batch.targets.shape == batch.mask.shape == (2, 0)
    assert batch.targets.dtype == torch.int64  # an empty list of numbers would be float
    assert batch.input_ids.tolist() == [[1, 2], [3, 0]]


def test_all_of_a_batch_is_on_the_device_asked_for():
    batch = make_batch([[1, 2], [3]], [[4], [5, 6]], pad_id=0, device="meta")
    tensors = [getattr(batch, field.name) for field in dataclasses.fields(Batch)]
    assert len(tensors) == 5 and {tensor.device.type for tensor in tensors} == {"meta"}
    assert pad_values([torch.ones(2)], device="meta").device.type == "meta"


def test_make_batch_leaves_its_arguments_alone():
    prompts, completions = [[1, 2], [3]], [[4], [5, 6]]
    make_batch(prompts, completions, pad_id=0)
    assert (prompts, completions) == ([[1, 2], [3]], [[4], [5, 6]])


def test_pad_right():
    ids, mask = pad_right([[1], [2, 3, 4], []], 9)
    assert ids.tolist() == [[1, 9, 9], [2, 3, 4], [9, 9, 9]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_pad_values():
    padded = pad_values([torch.tensor([-0.5]), torch.tensor([-1.0, -2.0]), torch.tensor([])])
    assert padded.tolist() == [[-0.5, 0.0], [-1.0, -2.0], [0.0, 0.0]]
    assert padded.dtype == torch.float32


def test_make_batch_errors():
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        make_batch([[1], []], [[2], [3]], pad_id=0)
    with pytest.raises(ValueError, match="at least one row"):
        make_batch([], [], pad_id=0)
    with pytest.raises(ValueError, match="shorter"):
        make_batch([[1], [2]], [[3]], pad_id=0)


def test_batch_shape_errors():
    ids = torch.zeros(2, 5, dtype=torch.long)
    lengths = torch.ones(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"attention_mask must be \(B, S\)=\(2, 5\), got \(2, 4\)"):
        Batch(ids, ids[:, :4], lengths, ids, ids.bool())
    with pytest.raises(ValueError, match=r"mask must be \(B, T\)=\(2, 5\), got \(2,\)"):
        Batch(ids, ids, lengths, ids, ids[:, 0].bool())
