"""Decoding in steps: the same rows at every pace, in both caches, called or replayed."""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache

from kit.errors import ModelError, NotFiniteError
from kit.model import attention, decoding, graphs, rollout
from kit.model.caches import GrowingCache, StaticCache
from kit.model.decoding import EVERY_TOKEN, Pace, pace_of
from kit.model.graphs import Replay, ReplayingPlayer, record
from kit.model.lora import TRAINED
from kit.model.policy import BASE
from kit.model.requests import Sampling
from kit.model.rollout import sample, stream
from kit.model.siblings import Joint, apart, join, siblings, side_by_side
from tests.model.sampled import assert_same, requests_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def at(pace, monkeypatch):
    monkeypatch.setattr(rollout, "pace_of", lambda device, watched=False: pace)


def test_the_pace_is_the_devices_and_of_who_watches():
    assert pace_of(CPU) == pace_of(CPU, watched=True) == EVERY_TOKEN
    assert pace_of(CUDA) == Pace(tokens=16, length=128, rows=8)
    assert pace_of(CUDA, watched=True) == Pace(tokens=1, length=128, rows=8)


@pytest.mark.parametrize("pace", [Pace(16, 128, 8), Pace(7, 20, 3), Pace(1000, 1, 1)])
@pytest.mark.parametrize("top_p", [1.0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_rows_say_the_same_at_every_pace(double_policy, monkeypatch, pace, top_p):
    requests = requests_for(double_policy.base, (TRAINED, BASE), 6)
    expected = sample(double_policy, requests, Sampling(70, top_p=top_p))
    assert len({len(row.tokens) for row in expected}) > 5  # so that rows have left the batch
    at(pace, monkeypatch)
    found = sample(double_policy, requests, Sampling(70, top_p=top_p))
    assert_same(found, expected)
    cut_off = [[row.cut_off for row in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*cut_off, rtol=0, atol=2e-5)


def test_a_cache_that_grows_says_the_same(double_policy, monkeypatch):
    requests = requests_for(double_policy.base, (TRAINED, BASE), 6)
    expected = sample(double_policy, requests, Sampling(40))
    monkeypatch.setattr(decoding, "GROUPED", "another")
    seen = []
    step = GrowingCache.inputs
    monkeypatch.setattr(GrowingCache, "inputs", lambda self: seen.append(self) or step(self))
    assert_same(sample(double_policy, requests, Sampling(40)), expected)
    assert seen


def test_bad_numbers_between_two_looks_name_their_token(policy, monkeypatch):
    at(Pace(16, 128, 8), monkeypatch)
    layer, calls = policy.causal.get_submodule("model.layers.0.self_attn.o_proj"), []

    def spoil(module, inputs, output):
        calls.append(output)
        return output * math.nan if len(calls) > 6 else output  # the prompt, and five tokens

    handle = layer.register_forward_hook(spoil)
    try:
        with pytest.raises(NotFiniteError, match="when token 7 after"):
            sample(policy, requests_for(policy.base, samples=2), Sampling(40))
    finally:
        handle.remove()


def test_somebody_who_watches_sees_every_token(policy):
    counts = [
        max(len(row.tokens) for row in rows)
        for rows in stream(policy, requests_for(policy.base, samples=2), Sampling(9))
    ]
    assert counts == list(range(1, 10))


# --- the cache that stays ------------------------------------------------------------------------


def read(prompts=2, width=3):
    cache = DynamicCache()
    for layer in range(2):
        cache.update(*torch.randn(2, prompts, 2, width, 4), layer)
    return cache


def test_the_cache_stays_where_it_is_and_shows_what_is_there():
    prompts = read()
    keys = prompts.layers[1].keys.clone()
    owner, mask = torch.tensor([1, 0, 1]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    cache = StaticCache(prompts, owner, mask, room=6, grain=4)
    assert cache.layers[0][0].shape == (3, 2, 12, 4) and not prompts.layers
    cache.extend(1)
    inputs = cache.inputs()
    where = inputs["attention_mask"]
    assert where.shape == (3, 1, 1, 4)
    assert (where[:, 0, 0] == 0).tolist() == [
        [False, True, True, True],
        [True, True, True, True],
        [False, True, True, True],
    ]
    new = torch.randn(2, 3, 2, 1, 4)
    found, _ = cache.update(new[0], new[1], 1)
    assert found.equal(torch.cat([keys[owner], new[0]], dim=2))
    address = found.data_ptr()
    cache.advance()
    cache.keep(torch.tensor([0, 2]))
    cache.extend(1)
    where = cache.inputs()["attention_mask"]
    assert (where[0, 0, 0] == 0).tolist() == [False, True, True, True, True, False, False, False]
    found, _ = cache.update(new[0][:2], new[1][:2], 1)
    assert found.shape == (2, 2, 8, 4) and found.data_ptr() == address
    assert found[1, :, 3].equal(new[0][2, :, 0]) and found[1, :, 4].equal(new[0][1, :, 0])
    assert not found[:, :, 5:].any()  # no NaN of others' where the mask is


def test_attention_to_masked_room_is_attention_without_it():
    query, keys, values = torch.randn(2, 4, 1, 8), *torch.randn(2, 2, 2, 9, 8)
    mask = torch.zeros(2, 1, 1, 16)
    mask[..., 9:] = -torch.inf
    room = [torch.nn.functional.pad(x, (0, 0, 0, 7)) for x in (keys, values)]
    found, _ = attention.grouped_attention(None, query, *room, mask)
    expected, _ = attention.grouped_attention(None, query, keys, values, mask[..., :9])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# --- replaying -----------------------------------------------------------------------------------


class Graph:
    def __init__(self, log):
        self.log = log

    def replay(self):
        self.log.append("replayed")


def test_a_shape_is_called_then_recorded_then_replayed(monkeypatch):
    done = []
    monkeypatch.setattr(graphs, "record", lambda step: done.append("recorded") or Graph(done))
    player = Replay().player(CUDA, asked=True, cache_stays=True)
    for shape in ((8, 128), (8, 128), (8, 128), (8, 256), (8, 256)):
        player.play(lambda: done.append("called"), shape)
    once = ["called", "recorded", "replayed"]
    assert done == [*once, "replayed", *once]


def test_what_cannot_be_recorded_is_called_and_said_once(monkeypatch, caplog):
    def failing(step):
        raise RuntimeError("operation not permitted\nwhen capturing")

    said = "operation not permitted"

    monkeypatch.setattr(graphs, "record", failing)
    replay, done = Replay(), []
    for _ in range(2):
        player = replay.player(CUDA, asked=True, cache_stays=True)
        for _ in range(3):
            player.play(lambda: done.append("called"), (1, 128))
    assert done == ["called"] * 6
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.endswith(f"slower: a step could not be recorded ({said})")
    assert replay.said == f"each step is called: a step could not be recorded ({said})"


def test_a_batch_too_large_to_be_recorded_leaves_the_next_its_chance(monkeypatch):
    def full(step):
        raise torch.OutOfMemoryError("tried")

    replay, done = Replay(), []
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "record", full)
        player = replay.player(CUDA, asked=True, cache_stays=True)
        for _ in range(3):
            player.play(lambda: done.append("called"), (8, 128))
    assert done == ["called"] * 3 and not replay.obstacle
    monkeypatch.setattr(graphs, "record", lambda step: Graph(done))
    player = replay.player(CUDA, asked=True, cache_stays=True)
    for _ in range(2):
        player.play(lambda: done.append("called"), (1, 128))
    assert done[3:] == ["called", "replayed"]


@pytest.mark.parametrize(
    ("device", "asked", "stays", "said"),
    [
        (CPU, True, True, "each step is called: there is no GPU"),
        (CUDA, False, True, "each step is called: rollout.cuda_graph=false"),
        (CUDA, True, False, "each step is called: the model's attention has a cache that grows"),
        (CUDA, True, True, "steps are replayed"),
    ],
)
def test_how_a_base_decodes_is_told(device, asked, stays, said):
    replay = Replay()
    replay.player(device, asked=asked, cache_stays=stays)
    assert replay.said == said


class Recording:
    """torch.cuda, where the driver refuses to record, as torch has it before and since 2.12."""

    def __init__(self, stays_open: bool, can_be_ended: bool = True) -> None:
        self.stays_open, self.can_be_ended = stays_open, can_be_ended
        self.opened: list[object] = []
        self.emptied = 0

    @contextmanager
    def graph(self, graph, pool, capture_error_mode):
        self.opened.append(pool)
        yield
        if not self.stays_open:
            self.opened.remove(pool)
        raise RuntimeError("operation not permitted when stream is capturing")

    def empty_cache(self) -> None:
        if self.opened:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        self.emptied += 1

    def end(self, device, pool) -> None:
        if not self.can_be_ended:
            raise RuntimeError("not currently recording to this pool")
        self.opened.remove(pool)

    def install(self, monkeypatch) -> Recording:
        for name, value in {
            "CUDAGraph": object,
            "graph_pool_handle": object,
            "current_stream": lambda: None,
            "current_device": lambda: 0,
            "stream": lambda stream: nullcontext(),
            "synchronize": lambda: None,
            "graph": self.graph,
            "empty_cache": self.empty_cache,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        return self


@pytest.mark.parametrize("stays_open", [False, True])
def test_a_recording_that_fails_leaves_the_allocator_usable(monkeypatch, stays_open):
    recording = Recording(stays_open).install(monkeypatch)
    steps: list[int] = []
    player = ReplayingPlayer(replay := Replay())
    for number in range(4):
        player.play(lambda number=number: steps.append(number), (1, 1))
    assert (recording.opened, recording.emptied) == ([], 1)
    assert steps == [0, 1, 1, 2, 3]  # the second was asked for when it was to be recorded, too
    assert "not permitted when stream is capturing" in replay.obstacle


def test_an_allocator_that_cannot_be_mended_ends_it_with_what_to_do(monkeypatch):
    Recording(True, can_be_ended=False).install(monkeypatch)
    with pytest.raises(ModelError, match=r"goes on with rollout\.cuda_graph=false, or with torch"):
        record(lambda: None)


# --- modules side by side ------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(3, 4), nn.Linear(3, 2)
        self.o_proj, self.v_proj = nn.Linear(4, 3), nn.Linear(3, 2)


def test_modules_that_read_the_same_input_are_found():
    model = nn.ModuleList([Layer(), Layer()])
    first = model[0]
    assert siblings(model, nn.Linear)[:2] == [
        [first.q_proj, first.k_proj, first.v_proj],
        [first.o_proj],
    ]
    assert len(siblings(model, nn.Linear)) == 4


def test_a_group_is_computed_once_and_anew_for_another_input():
    layer, inputs = Layer(), []
    group = [layer.q_proj, layer.k_proj, layer.v_proj]
    whole = side_by_side(group)

    def compute(x):
        inputs.append(x)
        return torch.cat([nn.functional.linear(x, m.weight, m.bias) for m in group], dim=-1)

    join(group, compute, [4, 2, 2])
    x, y = torch.randn(2, 1, 5, 3)
    for given in (x, y, x):
        expected = compute(given).split([4, 2, 2], dim=-1)
        for module, part in zip(group, expected, strict=True):
            assert module(given).equal(part)
    assert len(inputs) == 3 + 3
    layer.q_proj(x), layer.q_proj(x)  # asked twice: computed twice
    layer.k_proj(y)  # another input, while the others of x wait
    assert len(inputs) == 6 + 3
    assert side_by_side(group) is compute
    apart(group)
    torch.testing.assert_close(whole(x), compute(x))


def test_what_one_of_a_group_computes_otherwise_is_asked_of_it():
    layer = Layer()
    group = [layer.q_proj, layer.k_proj, layer.v_proj]
    join(group, lambda x: x.new_zeros(*x.shape[:-1], 8), [4, 2, 2])
    join([layer.k_proj], lambda x: x.new_ones(*x.shape[:-1], 2), [2])
    assert side_by_side(group)(torch.randn(1, 3)).tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]


def test_a_group_holds_no_input_once_all_have_theirs():
    joint = Joint(lambda x: torch.cat([x, 2 * x], dim=-1), [3, 3])
    x = torch.ones(1, 3)
    assert joint.part(1, x).equal(2 * x)
    assert joint.input is x
    assert joint.part(0, x).equal(x)
    assert joint.input is None and not joint.waiting
