"""The trust regions by hand: values, signs and what they do at r = 1, r -> 0 and r -> infinity.

tests/training/test_objectives.py holds every one of them, at every level, against a slow reference
in plain floats with finite differences, and in micro-batches, padding and extreme numbers.
"""

from __future__ import annotations

import math

import pytest
import torch

from kit.config import TRUST_REGION_SETTINGS
from kit.training.trust_regions import (
    LEAST_LOG_WEIGHT,
    TRUST_REGIONS,
    Tokens,
    binary_kl,
    geometric_mean,
)

NAMES = list(TRUST_REGIONS)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def settings_of(name: str, **values):
    return TRUST_REGION_SETTINGS[name](name=name, **values)


def surrogate(name, ratios, advantage, old=0.3, level="token", **values):
    """Values of one completion's tokens, and the gradient of their sum by the log-probabilities.

    `old` is the probability of each token under the old policy, or of all of them.
    """
    ratio = f64([ratios])
    old = (f64(old) * torch.ones_like(ratio)).log()
    logprobs = (old + ratio.log()).requires_grad_()
    tokens = Tokens(logprobs, old, torch.ones_like(ratio).bool(), level)
    value = TRUST_REGIONS[name](tokens, f64([[advantage]]), settings_of(name, **values))
    (gradient,) = torch.autograd.grad(value.sum(), logprobs)
    return value.detach()[0].tolist(), gradient[0].tolist()


def factor(name, ratio, advantage, old, **values) -> float:
    """What multiplies A times the gradient of the token's log-probability."""
    _, (gradient,) = surrogate(name, [ratio], advantage, old, **values)
    return gradient / advantage


def test_every_region_has_a_function_and_settings():
    assert list(TRUST_REGION_SETTINGS) == NAMES
    for name, settings in TRUST_REGION_SETTINGS.items():
        assert settings.source and settings.__doc__, name


# --- r = 1, r -> 0, r -> infinity ----------------------------------------------------------------


@pytest.mark.parametrize("advantage", [0.7, -1.3])
@pytest.mark.parametrize("name", NAMES)
def test_on_policy_all_regions_are_the_plain_gradient(name, advantage):
    expected = 0.9 if name == "pspo" else 1.0  # 1 - alpha
    assert factor(name, 1.0, advantage, 0.3) == pytest.approx(expected, rel=1e-12)


LOG = math.log(1e6)
LIMITS = {  # r = 1e-6 of pi_old 0.5, A = 0.5 and -0.5; then r = 1e6 of pi_old 5e-7 likewise
    "pspo": (0.9e-6, 0.9e-6, 0.9e6, 0.9e6),
    "clip": (1e-6, 0.0, 0.0, 1e6),
    "noclip": (1e-6, 1e-6, 1e6, 1e6),
    # the slope of a sigmoid, 4 p (1 - p) r: at r = 0 p = sigmoid(-tau), which is 0.269 and 0.259
    "sapo": (0.7864e-6, 0.7681e-6, 0.0, 0.0),
    "cispo": (1e-6, 1e-6, 5.0, 5.0),
    "gmpo": (1e-6, 0.0, 0.0, 1e6),
    "dppo_tv": (1e-6, 0.0, 0.0, 20.0),  # the probability moved by 0.5
    "dppo_kl": (1e-6, 0.0, 0.0, 20.0),
    # the advantage counts nothing; what pulls back is 2 tau log r / A
    "ipo": (4e-3 * LOG, -4e-3 * LOG, -4e-3 * LOG, 4e-3 * LOG),
    "vespo": (math.exp(3) * 1e-12, math.exp(2) * 1e-18, 0.0, 0.0),  # e^lambda w^k
    # r (1 - (r - 1) / epsilon) and r (1 + (r - 1) / epsilon)
    "cfpo": (6e-6, -4e-6, -5e12, 5e12),
    "dgpo": (1e-6, 1e-12 / 0.8, math.sqrt(1.2e6), 1e6),
    "dro": (1 + 0.2 * LOG, 1 - 0.2 * LOG, 1 - 0.2 * LOG, 1 + 0.2 * LOG),  # beta log r / A
}


@pytest.mark.parametrize("name", NAMES)
def test_far_from_one(name):
    got = [factor(name, r, a, old) for r, old in ((1e-6, 0.5), (1e6, 5e-7)) for a in (0.5, -0.5)]
    assert got == pytest.approx(LIMITS[name], rel=1e-3, abs=1e-20)


# --- one by one ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (2.9, -2.0, -5.8, -5.8),  # below the bound of 3: r A
        (3.1, -2.0, -6.0, 0.0),  # beyond it: 3 A, no gradient
        (3.1, 2.0, 2.56, 0.0),  # a positive advantage meets the upper clip, 1.28 A, as before
        (3.1, 0.5, 0.64, 0.0),
        (3.1, -0.5, -1.5, 0.0),
        (0.5, -2.0, -1.6, 0.0),  # and a negative one the lower
        (1.0, -2.0, -2.0, -2.0),
    ],
)
def test_dual_clip(ratio, advantage, value, gradient):
    got = surrogate("clip", [ratio], advantage, dual=3.0)
    assert got == ([pytest.approx(value, rel=1e-12)], [pytest.approx(gradient, rel=1e-12)])


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"), [(0.5, 2.0, 0.5), (4.0, 2.0, 4.0), (9.0, 2.0, 5.0)]
)
def test_cispo_weighs_the_log_probability(ratio, advantage, weight):
    value, gradient = surrogate("cispo", [ratio], advantage, old=0.1)
    assert value == [pytest.approx(weight * advantage * math.log(0.1 * ratio), rel=1e-12)]
    assert gradient == [pytest.approx(weight * advantage, rel=1e-12)]
    assert surrogate("cispo", [ratio], -2.0, old=0.1)[1] == [pytest.approx(-2 * weight, rel=1e-12)]


def test_cispo_at_sequence_level_caps_the_completions_ratio():
    # (2 * 8)^(1/2) = 4, of which 3 is kept, for both tokens
    _, gradient = surrogate("cispo", [2, 8], 1.5, old=0.1, level="sequence", epsilon_max=3.0)
    assert gradient == pytest.approx([4.5, 4.5], rel=1e-12)


def test_gmpo_clips_each_token_before_it_takes_the_mean():
    # A > 0: log ratios 0.4 (1.0 clipped), -1.0 (not clipped: the advantage pushes it back), 0.1
    ratios = [math.e, 1 / math.e, math.exp(0.1)]
    mean = math.exp((0.4 - 1.0 + 0.1) / 3)
    value, gradient = surrogate("gmpo", ratios, 2.0)
    assert value == pytest.approx([2 * mean] * 3, rel=1e-12)
    # three tokens have that value, each of which moves by a third with an unclipped token
    assert gradient == pytest.approx([0.0, 2 * mean, 2 * mean], rel=1e-12)
    # A < 0: 1.0 (not clipped), -0.4 (clipped), 0.1
    mean = math.exp((1.0 - 0.4 + 0.1) / 3)
    value, gradient = surrogate("gmpo", ratios, -2.0)
    assert value == pytest.approx([-2 * mean] * 3, rel=1e-12)
    assert gradient == pytest.approx([-2 * mean, 0.0, -2 * mean], rel=1e-12)


@pytest.mark.parametrize(
    ("old", "ratio", "advantage", "kept"),
    [
        (0.5, 1.5, 1.0, 0.0),  # 0.5 -> 0.75: risen by 0.25 > 0.2, and pushed further
        (0.5, 1.5, -1.0, 1.5),  # pushed back
        (0.5, 0.5, -1.0, 0.0),  # fallen by 0.25, and pushed further
        (0.5, 0.5, 1.0, 0.5),
        (0.5, 1.3, 1.0, 1.3),  # 0.15: clip at 1.28 would have silenced it
        (0.01, 15.0, 1.0, 15.0),  # 0.14: rare tokens may rise by any factor
        (0.001, 30.0, 1.0, 20.0),  # up to the cap
        (0.9, 0.8, -1.0, 0.8),  # 0.18, inside; clip's lower bound as well
        (0.9, 0.77, -1.0, 0.0),  # 0.207
    ],
)
def test_dppo_by_total_variation(old, ratio, advantage, kept):
    assert factor("dppo_tv", ratio, advantage, old) == pytest.approx(kept, rel=1e-12)
    value, _ = surrogate("dppo_tv", [ratio], advantage, old)
    assert value == [pytest.approx(kept * advantage * math.log(old * ratio), rel=1e-12)]


def test_dppo_by_total_variation_has_a_bound_on_either_side():
    bounds = {"delta_low": 0.1, "delta_high": 0.3}
    assert factor("dppo_tv", 1.5, 1.0, 0.5, **bounds) == 1.5  # risen by 0.25
    assert factor("dppo_tv", 0.7, -1.0, 0.5, **bounds) == 0.0  # fallen by 0.15


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("name", ["dppo_tv", "ipo"])
def test_a_change_of_exactly_the_bound_is_kept(name, advantage):
    # 0.5 -> 1 and 1 -> 0.5, in which nothing is rounded
    half, one = f64([[0.5]]).log(), f64([[0.0]])
    old, logprobs = (half, one) if advantage > 0 else (one, half)
    bounds = {"delta": 0.5, "tau": 0.0} if name == "ipo" else {"delta_low": 0.5, "delta_high": 0.5}
    leaf = logprobs.clone().requires_grad_()
    tokens = Tokens(leaf, old, torch.ones_like(old).bool())
    value = TRUST_REGIONS[name](tokens, f64([[advantage]]), settings_of(name, **bounds))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert gradient.item() == pytest.approx(2.0 if advantage > 0 else -0.5, rel=1e-12)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_divergence_of_exactly_the_bound_is_kept(advantage):
    old, ratio = 0.5, 1.5 if advantage > 0 else 0.5
    start = f64([[old]]).log()
    tokens = Tokens(start + f64([[ratio]]).log(), start, torch.ones(1, 1).bool())
    bound = binary_kl(tokens).item()
    kept = dict.fromkeys(("delta_low", "delta_high"), bound)
    assert factor("dppo_kl", ratio, advantage, old, **kept) == pytest.approx(ratio, rel=1e-12)
    less = dict.fromkeys(("delta_low", "delta_high"), bound * (1 - 1e-9))
    assert factor("dppo_kl", ratio, advantage, old, **less) == 0.0


def test_binary_kl_of_a_certain_token_is_bounded():
    # q = 0.5, p = 1: the others have 1e-8, not 0: 0.5 log(0.5 / 1e-8) + 0.5 log 0.5
    got = binary_kl(Tokens(f64([[0.0]]), f64([[0.5]]).log(), torch.ones(1, 1).bool()))
    assert got.item() == pytest.approx(0.5 * math.log(0.25 / 1e-8), rel=1e-12)


def test_binary_kl_by_hand():
    # q = 0.5, p = 0.75: 0.5 log(2/3) + 0.5 log 2 = 0.5 log(4/3) = 0.143841
    # q = 0.5, p = 0.55: 0.5 log(10/11) + 0.5 log(10/9) = 0.5 log(100/99) = 0.005025
    old = f64([[0.5, 0.5, 1.0, 0.5]]).log()
    logprobs = f64([[0.75, 0.55, 1.0, 0.5]]).log()
    mask = torch.tensor([[True, True, True, False]])
    got = binary_kl(Tokens(logprobs.requires_grad_(), old, mask))
    assert got[0].tolist() == pytest.approx([0.5 * math.log(4 / 3), 0.5 * math.log(100 / 99), 0, 0])
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("old", "ratio", "advantage", "kept"),
    [
        (0.5, 1.5, 1.0, 0.0),  # 0.144 nats > 0.05
        (0.5, 1.5, -1.0, 1.5),  # pushed back
        (0.5, 1.1, 1.0, 1.1),  # 0.005 nats
        (0.5, 0.5, -1.0, 0.0),  # q = 0.5, p = 0.25: 0.5 log(4/3)
        (0.5, 0.5, 1.0, 0.5),
        (0.001, 30.0, 1.0, 20.0),  # 0.0263 nats: kept, up to the cap
    ],
)
def test_dppo_by_kl(old, ratio, advantage, kept):
    assert factor("dppo_kl", ratio, advantage, old) == pytest.approx(kept, rel=1e-12)


def test_dppo_by_kl_has_a_bound_on_either_side():
    bounds = {"delta_low": 0.1, "delta_high": 0.2}  # 0.144 nats lie between
    assert factor("dppo_kl", 1.5, 1.0, 0.5, **bounds) == 1.5
    assert factor("dppo_kl", 0.5, -1.0, 0.5, **bounds) == 0.0


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize(
    ("old", "ratio", "kept"),
    [(0.5, 1.18, 1), (0.5, 1.22, 0), (0.5, 0.82, 1), (0.5, 0.78, 0), (0.01, 9.0, 1)],
)
def test_ipo_looks_both_ways_and_pulls_back(old, ratio, kept, advantage):
    value, gradient = surrogate("ipo", [ratio], advantage, old, tau=0.01)
    log = math.log(ratio)
    assert value == [pytest.approx(kept * ratio * advantage - 0.01 * log**2, rel=1e-12)]
    assert gradient == [pytest.approx(kept * ratio * advantage - 0.02 * log, rel=1e-12)]


@pytest.mark.parametrize(
    ("advantage", "weight"),
    [
        # w = 0.5 * 4 = 2 is the product, not the mean: e^(3 - 3 * 2) 2^2 and e^(2 - 2 * 2) 2^3
        (1.5, 4 * math.exp(-3)),
        (0.0, 4 * math.exp(-3)),
        (-1.5, 8 * math.exp(-2)),
    ],
)
def test_vespo_weighs_whole_completions(advantage, weight):
    value, gradient = surrogate("vespo", [0.5, 4.0], advantage, old=[[0.4, 0.1]])
    assert gradient == pytest.approx([weight * advantage] * 2, rel=1e-12)
    expected = [weight * advantage * math.log(0.2), weight * advantage * math.log(0.4)]
    assert value == pytest.approx(expected, rel=1e-12)


def test_vespo_bounds_the_weight_of_a_completion():
    # 1e-6^2 = 1e-12 is taken for 1e-8; with k = 1 and lambda 1 the weight is e * 1e-8
    _, gradient = surrogate("vespo", [1e-6, 1e-6], 1.0, k_positive=1.0, lambda_positive=1.0)
    assert gradient == pytest.approx([math.e * 1e-8] * 2, rel=1e-6)
    assert math.exp(LEAST_LOG_WEIGHT) == pytest.approx(1e-8, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.1, 2.0, 2.15, 1.1),  # 2.2 - 2 * 0.01 / 0.4; 1.1 (2 - 2 * 0.1 / 0.2)
        (1.2, 2.0, 2.2, 0.0),  # 2.4 - 2 * 0.04 / 0.4: the top of the parabola
        (1.4, 2.0, 2.0, -2.8),  # 2.8 - 2 * 0.16 / 0.4; 1.4 (2 - 2 * 0.4 / 0.2): turned round
        (0.8, -2.0, -1.8, 0.0),  # -1.6 - 2 * 0.04 / 0.4
        (0.6, -2.0, -2.0, 1.2),  # -1.2 - 2 * 0.16 / 0.4; 0.6 (-2 + 2 * 0.4 / 0.2)
    ],
)
def test_cfpo_turns_round_at_the_clip_range(ratio, advantage, value, gradient):
    (got,), (slope,) = surrogate("cfpo", [ratio], advantage)
    assert got == pytest.approx(value, rel=1e-12)
    assert slope == pytest.approx(gradient, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [
        (0.4, -2.0, 0.5),  # 0.4 / 0.8
        (0.4, 2.0, 1.0),  # pushed back
        (0.8, -2.0, 1.0),  # continuous at the bound
        (4.8, 2.0, 0.5),  # (1.2 / 4.8)^(1/2)
        (4.8, -2.0, 1.0),
        (1.2, 2.0, 1.0),
        (1.1, 2.0, 1.0),
    ],
)
def test_dgpo_decays_beyond_the_clip_range(ratio, advantage, weight):
    value, gradient = surrogate("dgpo", [ratio], advantage)
    assert value == gradient == [pytest.approx(weight * ratio * advantage, rel=1e-12)]


def test_dgpos_powers():
    # (0.4 / 0.8)^3 = 1/8 and (1.5 / 12)^(1/3) = 1/2
    values = {"n": 3.0, "m": 3.0, "epsilon_high": 0.5}
    assert factor("dgpo", 0.4, -1.0, 0.3, **values) == pytest.approx(0.4 / 8, rel=1e-12)
    assert factor("dgpo", 12.0, 1.0, 0.01, **values) == pytest.approx(6.0, rel=1e-12)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_dro_is_the_log_probability_and_a_parabola(advantage):
    value, gradient = surrogate("dro", [2.0], advantage, old=0.2, beta=0.5)
    log = math.log(2)
    assert value == [pytest.approx(advantage * math.log(0.4) - 0.25 * log**2, rel=1e-12)]
    assert gradient == [pytest.approx(advantage - 0.5 * log, rel=1e-12)]


# --- what they are made of -----------------------------------------------------------------------


def test_geometric_mean_leaves_padding_out():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    got = geometric_mean(f64([[2.0, 8.0, 5.0], [0.25, 7.0, 7.0], [9.0, 9.0, 9.0]]), mask)
    assert got.tolist() == [[pytest.approx(x)] * 3 for x in (4.0, 0.25, 1.0)]


def test_the_tokens_properties():
    old = f64([[0.2, 0.5, 0.5]]).log()
    logprobs = f64([[0.4, 0.4, 0.1]]).log().requires_grad_()
    tokens = Tokens(logprobs, old, torch.tensor([[True, True, False]]), "sequence")
    assert tokens.ratio[0].tolist() == pytest.approx([2.0, 0.8, 1.0])
    assert tokens.pooled[0].tolist() == pytest.approx([math.sqrt(1.6)] * 3)
    assert tokens.current[0].tolist() == pytest.approx([math.log(0.4), math.log(0.4), 0.0])
    assert tokens.moved[0].tolist() == pytest.approx([0.2, -0.1, 0.0])
    assert not tokens.moved.requires_grad and tokens.current.requires_grad
