"""Memory budgets and checkpointing as training settles them, on the CPU and on a card."""

from __future__ import annotations

import logging

import pytest
import torch

from kit.errors import ConfigError
from kit.estimate.fit import chosen
from kit.model.hardware import free_memory, limited
from kit.recipe import build_config
from kit.training import room
from kit.training.room import settle
from kit.training.trainer import train

GIB = 2**30
CPU, CARD = torch.device("cpu"), torch.device("cuda")


def config(name: str = "Qwen/Qwen2.5-0.5B", **sections):
    values = {"model": {"id": name}, "data": {"name": "gsm8k"}}
    return build_config({**values, **sections})


def settled(*configs, device=CPU):
    return [chosen(found) for found in settle(configs, device)]


@pytest.fixture
def card(monkeypatch):
    """A card with so many GiB free."""

    def install(free: float) -> None:
        monkeypatch.setattr(room, "free_memory", lambda device: int(free * GIB))

    return install


def test_on_the_cpu_nothing_is_recomputed():
    (found,) = settled(config())
    assert found["model.gradient_checkpointing"] is False
    (found,) = settled(config(model={"id": "x/y", "gradient_checkpointing": True}))
    assert found["model.gradient_checkpointing"] is True


@pytest.mark.parametrize(("free", "expected"), [(14.5, True), (79, False)])
def test_on_a_card_where_the_update_would_not_fit(card, free, expected):
    """0.5B without checkpointing takes 18 GiB."""
    card(free)
    (found,) = settled(config(), device=CARD)
    assert found["model.gradient_checkpointing"] is expected
    (found,) = settled(config(model={"id": "x", "gradient_checkpointing": False}), device=CARD)
    assert found["model.gradient_checkpointing"] is False


def test_on_a_card_for_a_model_of_unknown_shape(card, tmp_path, caplog):
    card(79)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with caplog.at_level(logging.INFO):
        (found,) = settled(config(str(tmp_path)), device=CARD)
    assert found["model.gradient_checkpointing"] is True
    assert "gradient checkpointing is on: kit estimate knows" in caplog.text
    with pytest.raises(ConfigError, match="memory_budget cannot be obeyed: kit estimate knows"):
        settle([config(str(tmp_path), memory_budget="6GB")], CARD)


def test_a_budget_is_no_more_than_the_card_has(card):
    card(3)
    (found,) = settled(config(memory_budget="6GB"), device=CARD)
    assert [found] == settled(config(memory_budget="3GiB"), device=CARD)
    card(40)
    assert found != settled(config(memory_budget="6GB"), device=CARD)[0]


def test_on_the_cpu_numbers_have_four_bytes():
    (found,) = settled(config(memory_budget="5GB"))
    model = {"id": "Qwen/Qwen2.5-0.5B"}
    (wide,) = settled(config(model={**model, "dtype": "float32"}, memory_budget="5GB"))
    (half,) = settled(config(model={**model, "dtype": "bfloat16"}, memory_budget="5GB"))
    assert found == wide
    assert found["rollout.max_rows"] < half["rollout.max_rows"]


def test_arms_of_one_base_get_the_same(card):
    card(12)
    first, second = settled(
        config(memory_budget="4GB"), config(optim={"learning_rate": 1e-3}), device=CARD
    )
    assert first == second


def test_each_arm_keeps_its_own_micro_batch():
    small = config(train={"micro_batch_tokens": 2048})
    assert [c["train.micro_batch_tokens"] for c in settled(config(), small)] == [8192, 2048]
    both = settled(config(memory_budget="9GB"), small.model_copy(update={"memory_budget": "9GB"}))
    assert [c["train.micro_batch_tokens"] for c in both] == [
        settled(config(memory_budget="9GB"))[0]["train.micro_batch_tokens"],
        2048,
    ]


def test_a_budget_is_for_all_arms(card):
    card(12)
    alone, together = (
        settled(*[config(memory_budget="3GB")] * arms, device=CARD) for arms in (1, 3)
    )
    assert together[0] == together[2]
    assert [found["rollout.dequantize"] for found in (*alone, *together[:1])] == ["always", "never"]


@pytest.mark.parametrize("budget", ["3GiB", None])
def test_a_base_that_is_there_already_is_counted_once(card, base, monkeypatch, budget):
    """Free memory is less by what the base and the context take, which the estimate counts too."""
    taken = base.model.get_memory_footprint()
    monkeypatch.setattr(base.model, "get_memory_footprint", lambda: taken)
    asked = [config(memory_budget=budget)] if budget else [config()]
    at = 2.9 if budget else 18.5  # GiB; without a budget the update needs 18 of them
    card(at)
    fresh = settle(asked, CARD)
    card(at - 0.6 - taken / GIB)
    assert settle(asked, CARD, base) == fresh
    assert settle(asked, CARD) != fresh


def test_free_memory_is_what_a_budget_leaves(monkeypatch):
    memory = {"mem_get_info": (9 * GIB, 10 * GIB), "memory_reserved": GIB, "memory_allocated": 0}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: None)
    assert free_memory(CARD) == 10 * GIB  # 9 and the cached one
    with limited("4.6GiB", CARD):
        assert free_memory(CARD) == pytest.approx(4 * GIB, abs=2)  # besides the context of 0.6
    assert free_memory(CARD) == 10 * GIB


def test_pytorch_is_held_to_the_budget(monkeypatch):
    shares = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * GIB, 10 * GIB))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    with limited("6GiB", CPU), limited(None, CARD):
        assert shares == []
    with limited("5.6GiB", CARD):
        assert shares == [pytest.approx(0.5)]  # 5 of 10 GiB besides the context of 0.6
    assert shares[1:] == [1.0]


@pytest.mark.smoke
def test_a_budget_is_obeyed_and_written_down(base, make_config, caplog):
    with caplog.at_level(logging.INFO):
        run = train(make_config(memory_budget="700MB"), base=base)
    record = run.read_description()["memory"]
    assert record["budget"] == "700MB" and record["model.gradient_checkpointing"] is True
    assert record["rollout.max_rows"] > 0 and record["rollout.dequantize"] != "auto"
    said = next(r.message for r in caplog.records if r.message.startswith("memory_budget=700MB"))
    for key in ("rollout.max_rows", "train.micro_batch_tokens", "rollout.dequantize"):
        assert f"{key}={record[key]}" in said
    assert "memory_budget: 700MB" in (run.path / "config.yaml").read_text()
    assert "max_rows: 0" in (run.path / "config.yaml").read_text()  # what the user left open


def test_too_little_is_refused_before_anything_is_loaded(make_config, monkeypatch):
    def never(*_):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("kit.training.trainer.load_base", never)
    with pytest.raises(ConfigError, match=r"memory_budget=100MB: .*; the smallest that is: "):
        train(make_config(memory_budget="100MB"))
