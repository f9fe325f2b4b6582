"""The engine gap: its figures, the warning, and that it is the trained adapter that is sampled."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from kit.config import ObjectiveConfig
from kit.errors import TrainingError
from kit.model.policy import BASE
from kit.model.rollout import sample
from kit.reading import read_metrics
from kit.training.engine_gap import EngineGap, in_words
from kit.training.objectives import Denominator, LossInputs, TokenStats, policy_loss
from kit.training.trainer import train


def inputs_of(trainer, sampler, reference, mask) -> LossInputs:
    mask = torch.tensor(mask)
    tensors = [torch.tensor(values) for values in (trainer, sampler, sampler, reference)]
    return LossInputs(*tensors, torch.zeros(mask.shape), torch.zeros(len(mask)), mask)


def gap_of(to_trainer, to_reference) -> EngineGap:
    to_trainer = torch.tensor(to_trainer)
    return EngineGap(to_trainer, torch.tensor(to_reference), to_trainer.sum()[None])


def test_figures_of_tokens_and_of_completions():
    inputs = inputs_of(
        trainer=[[-1.0, -2.0, 9.0], [-3.0, -1.0, -1.0]],
        sampler=[[-1.5, -1.75, 0.0], [-3.0, -1.5, -1.0]],
        reference=[[-1.0, -1.0, 0.0], [-3.0, -1.0, 0.0]],
        mask=[[True, True, False], [True, True, True]],
    )
    stats = policy_loss(inputs, Denominator(5, 2, 3), ObjectiveConfig()).stats
    rows = [
        [own[real] for own, real in zip(values, inputs.mask, strict=True)]
        for values in (inputs.base, inputs.sampler)
    ]
    gap = EngineGap.of(stats, *rows)
    # 0.5, -0.25 and 0, 0.5, 0; what is masked does not count
    assert gap.to_trainer.tolist() == [0.5, -0.25, 0.0, 0.5, 0.0]
    assert gap.to_reference.tolist() == [0.5, 0.75, 0.0, 0.5, 1.0]
    assert gap.of_completions.tolist() == [0.25, 0.5]
    assert gap.metrics() == {
        "rollout/engine_gap_mean": pytest.approx(1.25 / 5),
        "rollout/engine_gap_max": 0.5,
        "rollout/engine_gap_completion_mean": 0.375,
        "rollout/engine_gap_completion_max": 0.5,
    }
    said = "0.25 nats per token, at most 0.5; 0.38 per completion, at most 0.5"
    assert in_words(gap.metrics()) == said
    both = EngineGap.of(TokenStats.concatenate([stats, stats]), *rows)
    assert len(both.to_trainer) == 10 and len(both.of_completions) == 4


@pytest.mark.parametrize(
    ("dtype", "usual", "wide"), [(torch.float32, 9e-4, 2e-3), (torch.float16, 4e-2, 6e-2)]
)
def test_a_wide_gap_is_said_and_is_no_error(caplog, dtype, usual, wide):
    assert not gap_of([usual, -usual], [1.0, 1.0]).warn(dtype)
    assert not gap_of([math.nan, 1.0], [1.0, 1.0]).warn(dtype)
    assert not caplog.records
    gap = gap_of([wide, -wide], [wide, wide])
    gap.check_sampled("step 1", dtype)
    assert gap.warn(dtype)
    assert f"disagree by {wide:.2g} nats per token and 0 per completion" in caplog.text


def test_the_reference_in_place_of_the_adapter_is_an_error():
    with pytest.raises(TrainingError, match=r"^step 3: the frozen reference was sampled, not the "):
        gap_of([0.1, -0.3], [0.01, 0.01]).check_sampled("step 3", torch.bfloat16)
    # the adapter is no further from the reference than kernels round
    gap_of([0.04, -0.04], [0.0, 0.0]).check_sampled("step 3", torch.bfloat16)
    # engines that round badly are as far from the one as from the other
    gap_of([0.9, -0.9], [0.8, -0.9]).check_sampled("step 3", torch.bfloat16)


@pytest.mark.smoke
def test_a_sampler_that_leaves_the_adapter_out_ends_the_training(base, make_config, monkeypatch):
    def of_the_base(policy, requests, *rest):
        return sample(policy, [dataclasses.replace(r, adapter=BASE) for r in requests], *rest)

    monkeypatch.setattr("kit.training.trainer.sample", of_the_base)
    config = make_config(optim={"learning_rate": 1e-2}, train={"steps": 6})
    with pytest.raises(TrainingError, match="the frozen reference was sampled, not the adapter"):
        train(config, base=base)


@pytest.mark.smoke
def test_an_adapter_of_its_own_is_sampled(base, make_config, caplog):
    """It moves as far, and nothing is wrong; how wide the gap is is said once."""
    caplog.set_level("INFO", "kit")
    config = make_config(optim={"learning_rate": 1e-2}, train={"steps": 3})
    first, *_, last = read_metrics(train(config, base=base).metrics)
    assert caplog.text.count(f"sampler and trainer differ by {in_words(first)}") == 1
    assert caplog.text.count("nats per token") == 1
    assert last["rollout/engine_gap_mean"] < 1e-3 < last["policy/k3_to_base"]


@pytest.mark.smoke
def test_updates_that_change_nothing_end_the_training(base, make_config, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    with pytest.raises(TrainingError, match=r"^step 1: .* changed no weight of the adapter"):
        train(make_config(), base=base)
