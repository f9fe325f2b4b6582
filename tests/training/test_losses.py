"""The losses of DPO and KTO: values and slopes worked by hand, signs, and what metrics say."""

from __future__ import annotations

import pytest
import torch

from kit.config import PreferencesConfig
from kit.training.losses import dpo_loss, dpo_metrics, kto_loss, kto_metrics


def settings(**values) -> PreferencesConfig:
    return PreferencesConfig(source="pairs.jsonl", **values)


def slopes(loss, changes: torch.Tensor) -> torch.Tensor:
    leaf = changes.clone().requires_grad_()
    loss(leaf).backward()
    return leaf.grad


# --- DPO -----------------------------------------------------------------------------------------


def test_dpo_by_hand():
    # margins 0.5 (2 - (-1)) = 1.5 and 0.5 (-3 - 1) = -2
    # -log sigmoid(1.5) = log(1 + e^-1.5) = 0.2014132780; log(1 + e^2) = 2.1269280110
    changes = torch.tensor([[2.0, -1.0], [-3.0, 1.0]])
    assert dpo_loss(changes, settings(beta=0.5)).item() == pytest.approx(2.328341289, rel=1e-6)
    # slope by the chosen: -beta sigmoid(-margin): sigmoid(-1.5) = 0.1824255238,
    # sigmoid(2) = 0.8807970780; the rejected's is its opposite
    found = slopes(lambda leaf: dpo_loss(leaf, settings(beta=0.5)), changes)
    assert found[:, 0].tolist() == pytest.approx([-0.0912127619, -0.4403985390], rel=1e-6)
    assert found[:, 1].tolist() == pytest.approx([0.0912127619, 0.4403985390], rel=1e-6)


def test_label_smoothing_by_hand():
    # 0.8 * 0.2014132780 + 0.2 log(1 + e^1.5) = 0.1611306224 + 0.2 * 1.7014132780 = 0.5014132780
    changes = torch.tensor([[2.0, -1.0]])
    smoothed = settings(beta=0.5, label_smoothing=0.2)
    assert dpo_loss(changes, smoothed).item() == pytest.approx(0.5014132780, rel=1e-6)
    # slope: -0.5 (0.8 * 0.1824255238 - 0.2 * 0.8175744762) = 0.0087872381: margins above
    # log(0.8 / 0.2) = 1.386 are too sure, and are pulled back
    found = slopes(lambda leaf: dpo_loss(leaf, smoothed), changes)
    assert found.tolist()[0] == pytest.approx([0.0087872381, -0.0087872381], rel=1e-5)


def test_dpo_is_finite_however_far_the_policy_went():
    changes = torch.tensor([[-4000.0, 4000.0], [4000.0, -4000.0]])
    assert dpo_loss(changes, settings(beta=0.5)).item() == 4000.0
    assert slopes(lambda leaf: dpo_loss(leaf, settings()), changes).isfinite().all()


def test_dpo_metrics_by_hand():
    changes = torch.tensor([[2.0, -1.0], [-3.0, 1.0], [0.5, 0.5]])
    assert dpo_metrics(changes, settings(beta=0.5)) == pytest.approx(
        {
            "dpo/margin": 0.5 * (3 - 4 + 0) / 3,
            "dpo/accuracy": 1 / 3,  # what is not likelier is not right
            "dpo/chosen_change": -0.5 / 3,
            "dpo/rejected_change": 0.5 / 3,
        },
        rel=1e-6,
    )


# --- KTO -----------------------------------------------------------------------------------------


def test_kto_by_hand():
    # desirable: 1 - sigmoid(0.5 (2 - 1)) = 1 - 0.6224593312 = 0.3775406688, weight 3
    # undesirable: 1 - sigmoid(0.5 (1 - (-2))) = 1 - 0.8175744762 = 0.1824255238, weight 2
    changes, labels = torch.tensor([2.0, -2.0]), torch.tensor([True, False])
    weighted = settings(beta=0.5, desirable_weight=3, undesirable_weight=2)
    loss = kto_loss(changes, labels, 1.0, weighted).item()
    assert loss == pytest.approx(3 * 0.3775406688 + 2 * 0.1824255238, rel=1e-6)
    # slopes -w beta s (1 - s): -1.5 * 0.2350037122; +1 * 0.1491464521
    found = slopes(lambda leaf: kto_loss(leaf, labels, 1.0, weighted), changes)
    assert found.tolist() == pytest.approx([-0.3525055683, 0.1491464521], rel=1e-6)


def test_what_rises_less_than_the_drift_is_worth_less_and_does_less_harm():
    changes = torch.tensor([1.0, 1.0])

    def loss(label: bool, kl: float) -> float:
        return kto_loss(changes, torch.tensor([label, label]), kl, settings()).item()

    assert loss(True, kl=2.0) > loss(True, kl=0.0)
    assert loss(False, kl=2.0) < loss(False, kl=0.0)


def test_kto_metrics_by_hand():
    changes, labels = torch.tensor([2.0, 0.5, -2.0]), torch.tensor([True, True, False])
    assert kto_metrics(changes, labels, 1.0, settings(beta=0.5)) == pytest.approx(
        {
            "kto/kl": 1.0,
            "kto/accuracy": 2 / 3,  # 0.5 rose by less than everything did
            "kto/desirable_change": 1.25,
            "kto/undesirable_change": -2.0,
            "kto/margin": 0.5 * (1.25 + 2.0),
        }
    )
    alone = kto_metrics(changes[:2], labels[:2], 0.0, settings())
    assert alone.keys() == {"kto/kl", "kto/accuracy", "kto/desirable_change"}
