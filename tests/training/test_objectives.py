"""The objective against numbers worked by hand and against a slow reference in numpy float64."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from kit.config import (
    CFPO,
    CISPO,
    DGPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    IPO,
    PSPO,
    SAPO,
    VESPO,
    Clip,
    NoClip,
    ObjectiveConfig,
)
from kit.training.objectives import (
    Denominator,
    LossInputs,
    TokenStats,
    aggregate,
    diagnostics,
    group_advantages,
    has_signal,
    k3_divergence,
    policy_loss,
)
from kit.training.trust_regions import MAX_LOG_RATIO, Tokens, pspo

REGIONS = {
    "pspo": PSPO(alpha=0.3),
    "clip": Clip(name="clip", epsilon_low=0.2, epsilon_high=0.28),
    "noclip": NoClip(name="noclip"),
    "sapo": SAPO(name="sapo", tau_positive=1.0, tau_negative=1.5),
    "dual": Clip(name="clip", dual=1.5),
    "cispo": CISPO(name="cispo", epsilon_max=1.4),
    "gmpo": GMPO(name="gmpo", epsilon_low=0.4, epsilon_high=0.3),
    "dppo_tv": DPPOTV(name="dppo_tv", delta_low=0.1, delta_high=0.05, max_ratio=1.8),
    "dppo_kl": DPPOKL(name="dppo_kl", delta_low=0.02, delta_high=0.03, max_ratio=1.8),
    "ipo": IPO(name="ipo", delta=0.1, tau=0.2),
    "vespo": VESPO(name="vespo"),
    "cfpo": CFPO(name="cfpo", epsilon=0.3),
    "dgpo": DGPO(name="dgpo", epsilon_low=0.2, epsilon_high=0.28, n=1.5, m=2.0),
    "dro": DRO(name="dro", beta=0.3),
}
LEVELS = ("token", "sequence")
LEVEL_CASES = [
    (name, level)
    for name, region in REGIONS.items()
    for level in LEVELS
    if level == "token" or not region.sequence_refused
]
OLD_POLICY_CASES = [
    (name, level, old_policy)
    for name, level in LEVEL_CASES
    for old_policy in ("base", "sampler")
    if old_policy == "sampler" or not REGIONS[name].base_refused
]
AGGREGATIONS = ("token", "sequence", "constant")


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def objective(region, **settings) -> ObjectiveConfig:
    return ObjectiveConfig(trust_region=region, **settings)


def close(got, expected, rtol=1e-12, atol=1e-14) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.detach().double(), expected, rtol=rtol, atol=atol)


def make_inputs(ratio, advantages, *, weight=None, base=None, mask=None) -> LossInputs:
    """(B, T) ratios current/old and, where given, weights old/sampler, around an arbitrary old."""
    ratio = f64(ratio)
    old = torch.linspace(-2.5, -0.5, ratio.numel(), dtype=torch.float64).reshape(ratio.shape)
    sampler = old if weight is None else old - f64(weight).log()
    return LossInputs(
        logprobs=(old + ratio.log()).requires_grad_(),
        old=old,
        sampler=sampler,
        base=old if base is None else base,
        entropy=torch.ones_like(old),
        advantages=f64(advantages),
        mask=torch.ones_like(old, dtype=torch.bool) if mask is None else torch.tensor(mask),
    )


def loss_and_gradient(inputs, config, denominator=None):
    """Detached loss, gradient with respect to the current log-probabilities, token statistics."""
    rows, width = inputs.mask.shape
    denominator = denominator or Denominator(int(inputs.mask.sum()), rows, width)
    leaf = inputs.logprobs.detach().clone().requires_grad_()
    output = policy_loss(dataclasses.replace(inputs, logprobs=leaf), denominator, config)
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    return output.loss.detach(), gradient, output.stats


def surrogate_gradient(region, ratio: float, advantage: float, **settings) -> float:
    """d surrogate / d logprob of one token; the loss is the surrogate negated."""
    inputs = make_inputs([[ratio]], [advantage], weight=settings.pop("weight", None))
    _, gradient, _ = loss_and_gradient(inputs, objective(region, **settings))
    return -gradient.item()


def random_inputs(seed: int, lengths, advantages=None, spread: float = 0.6) -> LossInputs:
    """A ragged batch whose four policies all differ; arbitrary numbers outside the mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    sampler = -normal(*shape).abs() - 0.1
    return LossInputs(
        logprobs=(sampler + spread * normal(*shape)).requires_grad_(),
        old=sampler + spread * normal(*shape),
        sampler=sampler,
        base=sampler + spread * normal(*shape),
        entropy=normal(*shape).abs(),
        advantages=normal(len(lengths)) if advantages is None else f64(advantages),
        mask=torch.arange(shape[1]) < torch.tensor(lengths)[:, None],
    )


def rows_of(inputs: LossInputs, rows) -> LossInputs:
    names = [field.name for field in dataclasses.fields(LossInputs)]
    return LossInputs(**{name: getattr(inputs, name)[rows] for name in names})


# --- limits of the trust regions -----------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_pspo_without_smoothing_is_noclip(level):
    inputs = random_inputs(0, [3, 5, 1])
    settings = {"level": level, "old_policy": "sampler"}
    loss, gradient, _ = loss_and_gradient(inputs, objective(PSPO(alpha=0.0), **settings))
    plain = loss_and_gradient(inputs, objective(NoClip(name="noclip"), **settings))
    assert gradient.abs().max() > 0.01
    close(loss, plain[0])
    close(gradient, plain[1])


@pytest.mark.parametrize("level", LEVELS)
def test_clip_with_a_range_nothing_leaves_is_noclip(level):
    # exp(20) = 4.9e8 is the largest ratio there is, and no ratio is below 0 = 1 - epsilon_low
    wide = Clip(name="clip", epsilon_low=1.0, epsilon_high=1e9)
    inputs = random_inputs(1, [3, 5, 1], spread=3.0)
    loss, gradient, _ = loss_and_gradient(inputs, objective(wide, level=level))
    plain = loss_and_gradient(inputs, objective(NoClip(name="noclip"), level=level))
    assert gradient.abs().max() > 0.01
    close(loss, plain[0])
    close(gradient, plain[1])


@pytest.mark.parametrize("level", LEVELS)
def test_smoothing_of_one_leaves_the_advantage_and_no_gradient(level):
    inputs = make_inputs([[3.0, 0.2], [1.0, 50.0]], [2.0, -0.5])
    config = objective(PSPO(alpha=1.0), level=level, old_policy="sampler")
    loss, gradient, _ = loss_and_gradient(inputs, config)
    close(loss, -(2 * 2.0 + 2 * -0.5) / 4)  # the ratio is 1 everywhere: minus the mean advantage
    assert torch.equal(gradient, torch.zeros_like(gradient))


# --- the gradient at token level -----------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("advantage", [1.7, -0.4])
@pytest.mark.parametrize("ratio", [1e-6, 0.01, 0.5, 1.0, 1.3, 3.0, 100.0, 1e6])
def test_pspo_scales_the_plain_gradient_by_one_minus_alpha(ratio, advantage, alpha):
    smoothed = surrogate_gradient(PSPO(alpha=alpha), ratio, advantage, old_policy="sampler")
    plain = surrogate_gradient(NoClip(name="noclip"), ratio, advantage)
    assert plain == pytest.approx(ratio * advantage, rel=1e-12)  # d(r A)/d logprob = r A
    assert smoothed == pytest.approx((1 - alpha) * plain, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        # range 0.8 ... 1.28; min(r A, clip(r) A)
        (3.0, 2.0, 2.56, 0.0),  # 1.28 * 2: above the range, the advantage pushes further up
        (3.0, -2.0, -6.0, -6.0),  # r A: above the range but pushed back
        (0.5, 2.0, 1.0, 1.0),  # r A: below the range but pushed back
        (0.5, -2.0, -1.6, 0.0),  # 0.8 * -2: below the range, pushed further down
        (1.1, 2.0, 2.2, 2.2),  # inside: r A
        (0.9, -2.0, -1.8, -1.8),
        (1.0, 2.0, 2.0, 2.0),
    ],
)
def test_clip(ratio, advantage, value, gradient):
    loss, got, stats = loss_and_gradient(
        make_inputs([[ratio]], [advantage]), objective(REGIONS["clip"])
    )
    close(-loss, value)
    close(-got, [[gradient]])
    assert stats.silenced.tolist() == [gradient == 0.0]


def test_pspo_keeps_the_gradient_that_clip_drops():
    settings = {"old_policy": "sampler"}
    assert surrogate_gradient(REGIONS["clip"], 3.0, 2.0, **settings) == 0.0
    # (1 - 0.1) * 3 * 2 = 5.4
    assert surrogate_gradient(PSPO(alpha=0.1), 3.0, 2.0, **settings) == pytest.approx(5.4, rel=1e-9)


def test_the_smoothed_surrogate_by_hand():
    inputs = make_inputs([[3.0, 0.5]], [2.0])
    loss, _, _ = loss_and_gradient(inputs, objective(PSPO(alpha=0.1), old_policy="sampler"))
    # ratios 0.9 * 3 + 0.1 = 2.8 and 0.9 * 0.5 + 0.1 = 0.55; -(2.8 + 0.55) * 2 / 2
    close(loss, -3.35)


@pytest.mark.parametrize("advantage", [1.0, -2.0])
@pytest.mark.parametrize("ratio", [0.05, 0.7, 1.0, 1.9, 8.0])
def test_sapo_is_the_papers_gate(ratio, advantage):
    # arXiv 2511.20347: f(r) = 4 / tau * sigmoid(tau (r - 1)), f'(r) = 4 p (1 - p)
    tau = 1.0 if advantage > 0 else 1.05
    p = 1 / (1 + math.exp(-tau * (ratio - 1)))
    config = objective(SAPO(name="sapo"))
    loss, gradient, _ = loss_and_gradient(make_inputs([[ratio]], [advantage]), config)
    close(-loss, 4 / tau * p * advantage)
    close(-gradient, [[4 * p * (1 - p) * ratio * advantage]])
    if ratio == 1.0:  # on-policy: 4 * 1/2 * 1/2 = 1, the plain gradient
        close(-gradient, [[advantage]])


# --- sequence level ------------------------------------------------------------------------------


def test_sequence_ratio_is_gspos_geometric_mean():
    # arXiv 2507.18071: (2 * 8)^(1/2) = 4 for the first completion, 0.25^(1/1) for the second
    inputs = make_inputs([[2.0, 8.0], [0.25, 7.0]], [1.0, 1.0], mask=[[True, True], [True, False]])
    config = objective(NoClip(name="noclip"), level="sequence", aggregation="sequence")
    loss, gradient, _ = loss_and_gradient(inputs, config)
    close(loss, -(4 + 0.25) / 2)
    # the ratio's derivative to each of its n tokens is ratio / n: -4/2/2, -4/2/2; -0.25/1/2, 0
    close(gradient, [[-1.0, -1.0], [-0.125, 0.0]])


def test_sequence_clip_silences_whole_completions():
    # ratios 4 > 1.28 and (0.9 * 1.1)^(1/2) = 0.995, in range though made of the same kind of tokens
    inputs = make_inputs([[2.0, 8.0], [0.9, 1.1]], [1.0, 1.0])
    _, gradient, stats = loss_and_gradient(inputs, objective(REGIONS["clip"], level="sequence"))
    assert stats.silenced.tolist() == [True, True, False, False]
    assert (gradient[0] == 0).all() and (gradient[1] < 0).all()


def test_sequence_pspo_smooths_tokens_before_it_pools_them():
    config = objective(
        PSPO(alpha=0.5), level="sequence", old_policy="sampler", aggregation="sequence"
    )
    loss, gradient, _ = loss_and_gradient(make_inputs([[2.0, 0.5]], [3.0]), config)
    # smoothed: 0.5 * 2 + 0.5 = 1.5 and 0.5 * 0.5 + 0.5 = 0.75; pooled sqrt(1.125)
    pooled = math.sqrt(1.125)
    close(loss, -3 * pooled)
    # factors (1 - alpha) r / r~: 0.5 * 2 / 1.5 = 2/3 and 0.5 * 0.5 / 0.75 = 1/3, times pooled A / 2
    close(gradient, [[-3 * pooled / 2 * 2 / 3, -3 * pooled / 2 * 1 / 3]])


@pytest.mark.parametrize("advantage", [0.8, -1.3])
@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_sequence_pspo_gradient_factor(alpha, advantage):
    ratios = np.array([1e-7, 0.02, 0.4, 1.0, 2.5, 60.0, 1e7])
    config = objective(PSPO(alpha=alpha), level="sequence", old_policy="sampler")
    _, gradient, _ = loss_and_gradient(make_inputs(ratios[None].tolist(), [advantage]), config)
    smoothed = (1 - alpha) * ratios + alpha
    pooled = np.prod(smoothed) ** (1 / 7)
    factor = -gradient[0].numpy() / (pooled * advantage / 7)
    np.testing.assert_allclose(factor, (1 - alpha) * ratios / smoothed, rtol=1e-10)
    assert (np.diff(factor) > 0).all()
    assert factor[0] == pytest.approx(0, abs=1e-5)  # pushed far down: not pushed further
    assert factor[3] == pytest.approx(1 - alpha, rel=1e-10)  # unmoved
    assert factor[-1] == pytest.approx(1, abs=1e-5)  # far up: bounded


# --- smoothing contracts distances ---------------------------------------------------------------


def total_variation(p, q):
    return 0.5 * np.abs(p - q).sum(-1)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_smoothing_contracts_total_variation_and_kl(alpha):
    rng = np.random.default_rng(0)
    old = rng.dirichlet(np.full(30, 0.7), size=64) + 1e-9  # 64 distributions over 30 tokens
    old /= old.sum(1, keepdims=True)
    current = rng.dirichlet(np.full(30, 0.4), size=64) + 1e-9
    current /= current.sum(1, keepdims=True)
    mixed = (1 - alpha) * current + alpha * old
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-12)

    np.testing.assert_allclose(
        total_variation(mixed, old), (1 - alpha) * total_variation(current, old), rtol=1e-10
    )
    assert (kl(mixed, old) < (1 - alpha) * kl(current, old)).all()

    # with A = 1 the surrogate is the smoothed policy over the old one, token by token
    ratio, ones = torch.from_numpy(current / old), torch.ones(64, 1, dtype=torch.float64)
    tokens = Tokens(ratio.log(), torch.zeros_like(ratio), torch.ones_like(ratio).bool())
    surrogate = pspo(tokens, ones, PSPO(alpha=alpha))
    close(surrogate * torch.from_numpy(old), mixed)


# --- old policy: the decoupled objective ---------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "expected"),
    [(name, "base" if name == "pspo" else "sampler") for name in REGIONS],
)
def test_old_policy_auto(region, expected):
    assert objective(REGIONS[region]).resolved_old_policy == expected
    for name, _, explicit in OLD_POLICY_CASES:
        if name == region:
            resolved = objective(REGIONS[region], old_policy=explicit).resolved_old_policy
            assert resolved == explicit


def test_old_policy_auto_decides_whether_the_weight_applies():
    # ratio 2, weight old/sampler 3, A = 1: pspo 3 * (0.7 * 2 + 0.3) = 5.1; noclip 2 without it
    inputs = make_inputs([[2.0]], [1.0], weight=[[3.0]])
    close(loss_and_gradient(inputs, objective(REGIONS["pspo"]))[0], -5.1)
    close(loss_and_gradient(inputs, objective(REGIONS["noclip"]))[0], -2.0)
    close(loss_and_gradient(inputs, objective(REGIONS["noclip"], old_policy="base"))[0], -6.0)


@pytest.mark.parametrize("seed", range(4))
def test_decoupled_token_gradient_does_not_depend_on_the_old_policy(seed):
    inputs = random_inputs(seed, [4, 2, 3])
    config = objective(PSPO(alpha=0.3), old_policy="base", max_weight=1e6)  # truncates nothing
    _, gradient, _ = loss_and_gradient(inputs, config)
    importance = np.exp((inputs.logprobs.detach() - inputs.sampler).numpy())
    expected = -0.7 * importance * inputs.advantages.numpy()[:, None] / 9  # 4 + 2 + 3 tokens
    close(gradient, np.where(inputs.mask.numpy(), expected, 0.0))
    for shift in (2.0, -3.0):
        moved = dataclasses.replace(inputs, old=inputs.old + shift)
        close(loss_and_gradient(moved, config)[1], gradient)


def test_importance_weight_is_truncated():
    settings = {"old_policy": "base", "max_weight": 10.0}
    # weight 4 kept: 4 * 0.9 * 2 * 1.5 = 10.8; weight 50 cut to 10: 10 * 0.9 * 2 * 1.5 = 27
    for weight, expected in ((4.0, 10.8), (50.0, 27.0)):
        got = surrogate_gradient(PSPO(alpha=0.1), 2.0, 1.5, weight=[[weight]], **settings)
        assert got == pytest.approx(expected, rel=1e-12)


def test_sequence_weight_is_pooled_before_it_is_truncated():
    # weights 0.5 and 32 pool to sqrt(16) = 4 <= 10, though 32 alone exceeds the cap;
    # ratios 2 and 8 pool to 4: surrogate 4 * 4
    inputs = make_inputs([[2.0, 8.0]], [1.0], weight=[[0.5, 32.0]])
    config = objective(NoClip(name="noclip"), level="sequence", old_policy="base")
    close(loss_and_gradient(inputs, config)[0], -16.0)
    # 1 and 400 pool to 20, cut to 10: surrogate 10 * 4
    inputs = make_inputs([[2.0, 8.0]], [1.0], weight=[[1.0, 400.0]])
    close(loss_and_gradient(inputs, config)[0], -40.0)


def test_the_weight_carries_no_gradient():
    inputs = make_inputs([[2.0]], [1.0], weight=[[3.0]])
    old = inputs.old.clone().requires_grad_()
    sampler = inputs.sampler.clone().requires_grad_()
    inputs = dataclasses.replace(inputs, old=old, sampler=sampler)
    policy_loss(inputs, Denominator(1, 1, 1), objective(PSPO(alpha=0.1))).loss.backward()
    assert sampler.grad is None
    # through the ratio alone: d(-w (0.9 r + 0.1))/d old = +3 * 0.9 * 2
    close(old.grad, [[5.4]])


# --- KL ------------------------------------------------------------------------------------------


def test_k3_by_hand():
    log2 = math.log(2)
    current = f64([[-2.0, -2.0, -2.0, -2.0]]).requires_grad_()
    base = current.detach() + f64([[log2, -log2, 0.0, math.nan]])
    mask = torch.tensor([[True, True, True, False]])
    k3 = k3_divergence(current, base, mask)
    # base twice as likely: 2 - ln 2 - 1; half as likely: 1/2 + ln 2 - 1; equal: 0; masked: 0
    close(k3, [[1 - log2, log2 - 0.5, 0.0, 0.0]])
    (gradient,) = torch.autograd.grad(k3.sum(), current)
    close(gradient, [[-1.0, 0.5, 0.0, 0.0]])  # 1 - base / current


def test_k3_expectation_is_the_kl_divergence():
    rng = np.random.default_rng(1)
    current, base = rng.dirichlet(np.ones(40)), rng.dirichlet(np.ones(40))
    k3 = k3_divergence(
        torch.from_numpy(np.log(current))[None],
        torch.from_numpy(np.log(base))[None],
        torch.ones(1, 40, dtype=torch.bool),
    )
    assert k3.min() >= 0
    np.testing.assert_allclose((current * k3[0].numpy()).sum(), kl(current, base), rtol=1e-12)


def test_k3_keeps_its_digits_in_float32():
    difference = torch.linspace(-3e-3, 3e-3, 1001)
    k3 = k3_divergence(torch.zeros(1, 1001), difference[None], torch.ones(1, 1001).bool())
    assert k3.min() >= 0
    exact = np.expm1(difference.double().numpy()) - difference.double().numpy()
    np.testing.assert_allclose(k3[0].double().numpy(), exact, rtol=0, atol=5e-10)


def test_beta_adds_the_kl_term():
    log2 = math.log(2)
    inputs = make_inputs([[1.0]], [2.0])
    inputs = dataclasses.replace(inputs, base=inputs.old + log2)
    loss, gradient, stats = loss_and_gradient(inputs, objective(REGIONS["noclip"], beta=0.5))
    close(loss, -2.0 + 0.5 * (1 - log2))
    close(gradient, [[-2.0 + 0.5 * -1.0]])
    close(stats.k3_base, [1 - log2])
    # with beta = 0 it is measured but costs nothing
    loss, gradient, stats = loss_and_gradient(inputs, objective(REGIONS["noclip"]))
    close(loss, -2.0)
    close(gradient, [[-2.0]])
    close(stats.k3_base, [1 - log2])


# --- aggregation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("token", 16 / 4),  # (1 + 2 + 3 + 10) / 4 tokens
        ("sequence", (2 + 10) / 2),  # means 6/3 and 10/1 over 2 completions
        ("constant", 16 / (2 * 5)),  # 2 completions of at most 5 tokens
    ],
)
def test_aggregate(how, expected):
    values = f64([[1.0, 2.0, 3.0], [10.0, 77.0, 77.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    close(aggregate(values, mask, Denominator(4, 2, 5), how), expected)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_an_empty_completion_adds_nothing(how):
    values = f64([[1.0, 3.0], [9.0, 9.0]])
    mask = torch.tensor([[True, True], [False, False]])
    expected = {"token": 4 / 2, "sequence": 2 / 2, "constant": 4 / (2 * 4)}[how]
    close(aggregate(values, mask, Denominator(2, 2, 4), how), expected)


@pytest.mark.parametrize(("region", "level", "old_policy"), OLD_POLICY_CASES)
def test_a_completion_without_tokens_leaves_the_others_gradient_alone(region, level, old_policy):
    inputs = random_inputs(3, [3, 0, 2], [1.0, 1.0, -1.0])
    config = objective(REGIONS[region], level=level, old_policy=old_policy)
    _, gradient, _ = loss_and_gradient(inputs, config)
    assert torch.equal(gradient[1], torch.zeros(3, dtype=torch.float64))
    others = loss_and_gradient(rows_of(inputs, [0, 2]), config, Denominator(5, 3, 3))[1]
    close(gradient[[0, 2]], others)
    assert gradient.abs().max() > 0.01


def test_aggregate_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="token, sequence or constant, got 'mean'"):
        aggregate(f64([[1.0]]), torch.tensor([[True]]), Denominator(1, 1, 1), "mean")


# --- advantages ----------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    rewards = f64([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0]])
    # group 1: mean 0.5, variance (4 * 0.25) / 3; group 2: mean 1.5, (2.25 + 3 * 0.25) / 3 = 1
    deviation = math.sqrt(1 / 3) + 1e-4
    expected = [
        [0.5 / deviation, -0.5 / deviation, -0.5 / deviation, 0.5 / deviation],
        [1.5 / 1.0001, -0.5 / 1.0001, -0.5 / 1.0001, -0.5 / 1.0001],
    ]
    close(group_advantages(rewards), expected)
    close(group_advantages(rewards, "none"), [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]])
    # batch: sum 8, mean 1; squares 0 1 1 0 4 0 0 0 = 6; variance 6 / 7
    deviation = math.sqrt(6 / 7) + 1e-4
    centred = f64([[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]])
    close(group_advantages(rewards, "batch"), centred / deviation)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(scale):
    residues = 0
    for reward, size in itertools.product((0.1, 0.7, 1.05, -0.2), range(2, 40)):
        equal = torch.full((size,), reward)
        residues += bool((equal - equal.mean() != 0).any())
        rewards = torch.stack([equal, equal + torch.arange(size)])
        advantages = group_advantages(rewards, scale)
        assert advantages[0].tolist() == [0.0] * size
        assert advantages[1][0] < 0 < advantages[1][-1]
        assert has_signal(rewards).tolist() == [False, True]
    assert residues > 0  # the mean of equal floats is not always that float: the case to guard


def test_signal_is_judged_group_by_group():
    # the second is all equal though not at the smallest reward of the batch
    rewards = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.5], [1.0, 0.5]])
    assert has_signal(rewards).tolist() == [True, False, False, True]


def test_group_advantages_errors():
    with pytest.raises(ValueError, match=r"rewards must be \(P, G\) with G >= 2, got \(4,\)"):
        group_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match=r"with G >= 2, got \(4, 1\)"):
        group_advantages(torch.zeros(4, 1))
    with pytest.raises(ValueError, match="group, batch or none, got 'grupo'"):
        group_advantages(torch.zeros(2, 2), "grupo")


# --- one denominator for the whole step ----------------------------------------------------------

LENGTHS = [5, 2, 1, 7, 3, 4, 6, 2]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(("region", "level"), LEVEL_CASES)
def test_gradient_is_the_same_for_every_micro_batch_size(region, level, aggregation):
    inputs = random_inputs(2, LENGTHS)
    config = objective(REGIONS[region], level=level, aggregation=aggregation, beta=0.1)
    denominator = Denominator(sum(LENGTHS), len(LENGTHS), 9)
    loss, gradient, stats = loss_and_gradient(inputs, config, denominator)
    for size in (1, 2, 4):
        parts = [
            loss_and_gradient(rows_of(inputs, slice(start, start + size)), config, denominator)
            for start in range(0, len(LENGTHS), size)
        ]
        close(sum(part[0] for part in parts), loss)
        close(torch.cat([part[1] for part in parts]), gradient)
        joined = TokenStats.concatenate([part[2] for part in parts])
        for field in dataclasses.fields(TokenStats):
            assert torch.equal(getattr(joined, field.name), getattr(stats, field.name))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(("region", "level"), LEVEL_CASES)
def test_rows_without_signal_can_be_left_out(region, level, aggregation):
    config = objective(REGIONS[region], level=level, aggregation=aggregation)
    assert config.needs_all_rows == (region in ("ipo", "dro"))
    if config.needs_all_rows:
        return  # the next test
    keep = [0, 3, 4, 6]
    advantages = [0.7 if i in keep else 0.0 for i in range(8)]
    inputs = random_inputs(3, LENGTHS, advantages)
    denominator = Denominator(sum(LENGTHS), len(LENGTHS), 9)  # of all rows, in both cases
    _, everything, _ = loss_and_gradient(inputs, config, denominator)
    _, kept, _ = loss_and_gradient(rows_of(inputs, keep), config, denominator)
    close(everything[keep], kept)
    others = [i for i in range(8) if i not in keep]
    assert torch.equal(everything[others], torch.zeros_like(everything[others]))


@pytest.mark.parametrize("region", ["ipo", "dro"])
def test_a_penalty_pulls_on_rows_without_signal_too(region):
    inputs = make_inputs([[2.0]], [0.0])
    _, gradient, stats = loss_and_gradient(inputs, objective(REGIONS[region]))
    # the loss has tau log^2 r or beta / 2 log^2 r: 2 * 0.2 * log 2, and 0.3 * log 2
    close(gradient, [[{"ipo": 0.4, "dro": 0.3}[region] * math.log(2)]])
    assert not stats.silenced.any()
    assert objective(REGIONS["clip"], beta=0.1).needs_all_rows


# --- hostile numbers -----------------------------------------------------------------------------

COMBINATIONS = [
    pytest.param(region, level, old, aggregation, beta, id="-".join(map(str, names)))
    for case, aggregation, beta in itertools.product(OLD_POLICY_CASES, AGGREGATIONS, (0.0, 0.2))
    for region, level, old in [case]
    for names in [(*case, aggregation, beta)]
]


@pytest.mark.parametrize(("region", "level", "old_policy"), OLD_POLICY_CASES)
def test_what_lies_outside_the_mask_does_no_harm(region, level, old_policy):
    inputs = random_inputs(4, [2, 4, 3])
    config = objective(REGIONS[region], level=level, old_policy=old_policy, beta=0.3)
    loss, gradient, stats = loss_and_gradient(inputs, config)
    poison = itertools.cycle([math.nan, math.inf, -math.inf])
    names = ("logprobs", "old", "sampler", "base", "entropy")
    for _ in range(3):  # five tensors, three values: each tensor meets each value
        poisoned = {
            name: getattr(inputs, name).detach().masked_fill(~inputs.mask, next(poison))
            for name in names
        }
        got = loss_and_gradient(dataclasses.replace(inputs, **poisoned), config)
        close(got[0], loss)
        close(got[1], gradient)
        assert diagnostics(got[2]) == diagnostics(stats)
    assert (gradient[~inputs.mask] == 0).all() and (gradient[inputs.mask] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("region", "level", "old_policy"), OLD_POLICY_CASES)
def test_extreme_log_ratios_stay_finite(region, level, old_policy, dtype):
    far = torch.tensor([[0.0, -1e4, -1e4, -0.0], [-3.0, -2.0, -1e30, -1.0]], dtype=dtype)
    near = torch.tensor([[-1e4, 0.0, -1.0, -1e30], [-1e4, -90.0, -1.0, -700.0]], dtype=dtype)
    inputs = LossInputs(
        logprobs=far.requires_grad_(),
        old=near,
        sampler=near.flip(1),
        base=near.flip(0),
        entropy=torch.ones_like(near),
        advantages=torch.tensor([1.0, -1.0], dtype=dtype),
        mask=torch.ones(2, 4, dtype=torch.bool),
    )
    config = objective(REGIONS[region], level=level, old_policy=old_policy, beta=1.0)
    loss, gradient, stats = loss_and_gradient(inputs, config)
    assert loss.isfinite() and gradient.isfinite().all()
    assert stats.log_ratio.abs().max() == MAX_LOG_RATIO == 20
    assert all(math.isfinite(value) for value in diagnostics(stats).values())


def test_log_ratio_is_clamped_at_twenty_and_no_earlier():
    inputs = make_inputs([[math.exp(19.5)]], [1.0])
    loss, gradient, _ = loss_and_gradient(inputs, objective(REGIONS["noclip"]))
    close(-loss, math.exp(19.5), rtol=1e-10)
    close(-gradient, [[math.exp(19.5)]], rtol=1e-10)
    inputs = make_inputs([[math.exp(20.5)]], [1.0])
    loss, gradient, _ = loss_and_gradient(inputs, objective(REGIONS["noclip"]))
    close(-loss, math.exp(20.0), rtol=1e-10)
    close(gradient, [[0.0]])


@pytest.mark.parametrize(("region", "level"), LEVEL_CASES)
def test_inputs_are_not_modified(region, level):
    inputs = random_inputs(5, [2, 4, 3])
    names = [field.name for field in dataclasses.fields(LossInputs)]
    before = {name: getattr(inputs, name).detach().clone() for name in names}
    config = objective(REGIONS[region], level=level, beta=0.3)
    policy_loss(inputs, Denominator(9, 3, 4), config).loss.backward()
    for name in names:
        assert torch.equal(getattr(inputs, name).detach(), before[name]), name
    assert inputs.logprobs.grad is not None
    assert not any(getattr(inputs, n).requires_grad for n in names if n != "logprobs")


# --- statistics ----------------------------------------------------------------------------------


def test_silenced_share_is_clips_definition_and_zero_for_pspo():
    inputs = random_inputs(6, [40, 25, 60, 10], [0.8, -1.2, 0.0, 0.3])
    r = np.exp((inputs.logprobs.detach() - inputs.old).numpy())
    a = np.broadcast_to(inputs.advantages.numpy()[:, None], r.shape)
    outside = ((r > 1.28) & (a > 0)) | ((r < 0.8) & (a < 0))
    mask = inputs.mask.numpy()
    _, _, stats = loss_and_gradient(inputs, objective(REGIONS["clip"]))
    assert stats.silenced.tolist() == outside[mask].tolist()
    share = diagnostics(stats)["ratio/zero_gradient_share"]
    assert 0.1 < share < 0.6
    assert share == pytest.approx(outside[mask].sum() / 135, rel=1e-12)
    for region, level in itertools.product(("pspo", "noclip", "sapo"), LEVELS):
        _, _, stats = loss_and_gradient(inputs, objective(REGIONS[region], level=level))
        assert not stats.silenced.any()
    _, _, stats = loss_and_gradient(inputs, objective(PSPO(alpha=1.0)))
    # alpha = 1 silences all tokens whose advantage is not 0: 40 + 25 + 10
    assert stats.silenced.sum() == 75


def test_a_token_whose_advantage_counts_nothing_is_silenced_though_a_penalty_pulls():
    # probabilities 0.5 -> 0.8 and 0.5 -> 0.55, of which ipo's 0.1 allows the second
    inputs = make_inputs([[1.6, 1.1]], [1.0])
    half = torch.full_like(inputs.old, math.log(0.5))
    inputs = dataclasses.replace(inputs, logprobs=f64([[0.8, 0.55]]).log(), old=half, sampler=half)
    _, gradient, stats = loss_and_gradient(inputs, objective(REGIONS["ipo"]))
    assert stats.silenced.tolist() == [True, False]
    assert (gradient != 0).all()


def test_diagnostics_by_hand():
    stats = TokenStats(
        log_ratio=f64([0.5, 2.0, 4.0, 1.5]).log(),
        log_weight=f64([1.0, 1.0, 2.0, 4.0]).log(),
        silenced=torch.tensor([False, True, False, False]),
        pull=f64([2.0, -6.0, 3.0, 0.0]),
        k3_base=f64([0.1, 0.2, 0.3, 0.6]),
        entropy=f64([1.0, 2.0, 3.0, 0.0]),
        completion_log_weight=f64([-3.0, 1.0]),
    )
    expected = {
        "ratio/mean": 8 / 4,
        "ratio/min": 0.5,
        "ratio/max": 4.0,
        # of 0.5, 1.5, 2, 4: 1 % and 99 % of three gaps are 0.03 of the first and 0.97 of the last
        "ratio/p01": 0.5 + 0.03 * 1.0,
        "ratio/p99": 2.0 + 0.97 * 2.0,
        "ratio/zero_gradient_share": 1 / 4,
        "ratio/silenced_norm_share": 6 / 7,  # 6 of sqrt(4 + 36 + 9)
        "ratio/effective_sample_share": 8**2 / (4 * (1 + 1 + 4 + 16)),  # (sum w)^2 / (n sum w^2)
        "ratio/mismatch_token": (math.log(2) + math.log(4)) / 4,
        "ratio/mismatch_completion": 4 / 2,
        "policy/entropy": 6 / 4,
        "policy/k3_to_base": 1.2 / 4,
    }
    assert diagnostics(stats) == pytest.approx(expected, rel=1e-12)


def test_statistics_of_a_batch():
    inputs = random_inputs(7, [3, 5])
    _, _, stats = loss_and_gradient(inputs, objective(REGIONS["pspo"]))
    mask = inputs.mask.numpy()
    current, old, sampler, base, entropy = (
        getattr(inputs, name).detach().numpy()[mask]
        for name in ("logprobs", "old", "sampler", "base", "entropy")
    )
    close(stats.log_ratio, current - old)
    close(stats.log_weight, current - sampler)
    gaps = current - sampler  # the first three tokens are the first completion
    close(stats.completion_log_weight, [gaps[:3].sum(), gaps[3:].sum()])
    # pspo's old policy is the base: the weight is old / sampler, noclip's gradient r A / 8 tokens
    weight = np.minimum(np.exp(old - sampler), 10) * np.exp(current - old)
    close(stats.pull, weight * np.repeat(inputs.advantages.numpy(), [3, 5]) / 8)
    close(stats.k3_base, np.exp(base - current) - (base - current) - 1)
    close(stats.entropy, entropy)
    assert not any(
        getattr(stats, field.name).requires_grad for field in dataclasses.fields(TokenStats)
    )


def test_diagnostics_of_nothing():
    assert diagnostics(stats_of(0)) == {}


def test_equal_weights_are_a_full_sample():
    assert diagnostics(stats_of(5))["ratio/effective_sample_share"] == 1.0


def test_nothing_is_silenced_where_nothing_would_have_been_carried():
    assert diagnostics(stats_of(5))["ratio/silenced_norm_share"] == 0.0


def stats_of(tokens: int) -> TokenStats:
    """Tokens of which there is nothing to say."""
    names = [field.name for field in dataclasses.fields(TokenStats)]
    zeros = {name: torch.zeros(tokens) for name in names}
    return TokenStats(**zeros | {"silenced": torch.zeros(tokens).bool()})


def test_silenced_norm_share_by_hand():
    # ratios 2, 0.5, 1.1 and A = 1: clip silences the first; noclip would give 2, 0.5 and 1.1
    _, _, stats = loss_and_gradient(
        make_inputs([[2.0, 0.5, 1.1]], [1.0]), objective(REGIONS["clip"])
    )
    expected = 2 / math.sqrt(4 + 0.25 + 1.21)
    assert diagnostics(stats)["ratio/silenced_norm_share"] == pytest.approx(expected, rel=1e-12)


def test_the_pull_is_weighted_as_the_loss_is():
    # means per completion, over two completions: r A / length / 2
    inputs = make_inputs([[2.0, 4.0], [3.0, 9.0]], [1.0, -1.0], mask=[[True, True], [True, False]])
    _, _, stats = loss_and_gradient(inputs, objective(REGIONS["clip"], aggregation="sequence"))
    close(stats.pull, [2 / 4, 4 / 4, -3 / 2])


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["logprobs", "old", "sampler", "base", "entropy"])
def test_shape_errors(name):
    inputs = random_inputs(8, [3, 2])
    with pytest.raises(ValueError, match=rf"{name} must be \(B, T\)=\(2, 3\), got \(2, 2\)"):
        dataclasses.replace(inputs, **{name: torch.zeros(2, 2)})


def test_advantages_and_mask_shape_errors():
    inputs = random_inputs(8, [3, 2])
    with pytest.raises(ValueError, match=r"advantages must be \(B,\)=\(2,\), got \(2, 1\)"):
        dataclasses.replace(inputs, advantages=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"mask must be \(B, T\) bool, got \(2,\) torch.bool"):
        dataclasses.replace(inputs, mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be \(B, T\) bool, got \(2, 3\) torch.int64"):
        dataclasses.replace(inputs, mask=inputs.mask.long())


# --- everything together, against a slow reference -----------------------------------------------


def reference_loss(current, inputs, config, denominator, detached=None) -> float:
    """The loss in plain floats, one token at a time; `current` is a (B, T) numpy array, and so is
    `detached`, the log-probabilities that what carries no gradient is computed from."""
    detached = current if detached is None else detached
    old, sampler, base = inputs.old.numpy(), inputs.sampler.numpy(), inputs.base.numpy()
    region = config.trust_region
    total = 0.0
    for i, advantage in enumerate(inputs.advantages.tolist()):
        length = int(inputs.mask[i].sum())
        r = [math.exp(current[i, t] - old[i, t]) for t in range(length)]
        if region.name == "pspo":
            r = [(1 - region.alpha) * x + region.alpha for x in r]
        if region.name == "gmpo":  # a ratio may not pass the bound the advantage pushes it to
            bound = math.exp(region.epsilon_high if advantage > 0 else -region.epsilon_low)
            r = [min(x, bound) if advantage > 0 else max(x, bound) for x in r]
        fixed = [math.exp(detached[i, t] - old[i, t]) for t in range(length)]
        product = math.prod(fixed)
        w = [math.exp(old[i, t] - sampler[i, t]) for t in range(length)]
        if config.level == "sequence" or region.name == "gmpo":
            r = [math.prod(r) ** (1 / length)] * length
            fixed = [math.prod(fixed) ** (1 / length)] * length
            w = [math.prod(w) ** (1 / length)] * length
        if config.resolved_old_policy == "sampler":
            w = [1.0] * length
        row = 0.0
        for t in range(length):
            value = reference_value(
                region,
                advantage,
                r[t],
                fixed[t],
                product,
                logprob=current[i, t],
                probability=math.exp(detached[i, t]),
                old=math.exp(old[i, t]),
            )
            d = base[i, t] - current[i, t]
            row += -min(w[t], config.max_weight) * value + config.beta * (math.exp(d) - d - 1)
        if config.aggregation == "token":
            total += row / denominator.tokens
        elif config.aggregation == "sequence":
            total += row / length / denominator.completions
        else:
            total += row / (denominator.completions * denominator.max_tokens)
    return total


def reference_value(region, advantage, r, fixed, product, *, logprob, probability, old) -> float:
    """The surrogate of one token; `fixed` is the ratio and `product` the completion's, detached."""
    up = advantage > 0
    rise = (probability - old) * (1 if up else -1)  # the way the advantage pushes
    match region.name:
        case "clip":
            clipped = min(max(r, 1 - region.epsilon_low), 1 + region.epsilon_high)
            value = min(r * advantage, clipped * advantage)
            return value if up or region.dual is None else max(value, region.dual * advantage)
        case "sapo":
            tau = region.tau_positive if up else region.tau_negative
            return 4 / tau / (1 + math.exp(-tau * (r - 1))) * advantage
        case "cispo":
            return min(fixed, region.epsilon_max) * advantage * logprob
        case "dppo_tv":
            kept = rise <= (region.delta_high if up else region.delta_low)
            return kept * min(fixed, region.max_ratio) * advantage * logprob
        case "dppo_kl":
            kl = old * math.log(old / probability)
            kl += (1 - old) * math.log((1 - old) / (1 - probability))
            kept = rise <= 0 or kl <= (region.delta_high if up else region.delta_low)
            return kept * min(fixed, region.max_ratio) * advantage * logprob
        case "ipo":
            kept = abs(probability - old) <= region.delta
            return kept * r * advantage - region.tau * math.log(r) ** 2
        case "vespo":
            k = region.k_positive if up else region.k_negative
            decay = region.lambda_positive if up else region.lambda_negative
            return product**k * math.exp(decay * (1 - product)) * advantage * logprob
        case "cfpo":
            return r * advantage - abs(advantage) / (2 * region.epsilon) * (r - 1) ** 2
        case "dgpo":
            low, high = 1 - region.epsilon_low, 1 + region.epsilon_high
            if not up and fixed < low:
                return r * fixed**region.n / low**region.n * advantage
            if up and fixed > high:
                return r * fixed ** (-1 / region.m) * high ** (1 / region.m) * advantage
            return r * advantage
        case "dro":
            return advantage * logprob - region.beta / 2 * math.log(r) ** 2
        case _:
            return r * advantage


def with_probabilities(inputs: LossInputs) -> LossInputs:
    """The same ratios, of log-probabilities below 0."""
    names = ("logprobs", "old", "sampler", "base")
    highest = max(getattr(inputs, name).max().item() for name in names)
    lower = {name: getattr(inputs, name).detach() - highest - 0.1 for name in names}
    return dataclasses.replace(inputs, **lower)


@pytest.mark.parametrize(("region", "level", "old_policy", "aggregation", "beta"), COMBINATIONS)
def test_loss_and_gradient_against_the_reference(region, level, old_policy, aggregation, beta):
    inputs = with_probabilities(random_inputs(9, [3, 1, 4], [1.1, -0.7, -1.6], spread=0.8))
    config = objective(
        REGIONS[region],
        level=level,
        old_policy=old_policy,
        aggregation=aggregation,
        beta=beta,
        max_weight=1.5,
    )
    truncated = (inputs.old - inputs.sampler)[inputs.mask].exp() > config.max_weight
    assert truncated.any() and not truncated.all()
    denominator = Denominator(11, 5, 6)  # the step has more than this micro-batch
    loss, gradient, _ = loss_and_gradient(inputs, config, denominator)
    current = inputs.logprobs.detach().numpy()
    assert loss.item() == pytest.approx(
        reference_loss(current, inputs, config, denominator), rel=1e-12
    )
    step = 1e-5
    for i, t in np.argwhere(inputs.mask.numpy()):
        values = []
        for sign in (1, -1):
            moved = current.copy()
            moved[i, t] += sign * step
            values.append(reference_loss(moved, inputs, config, denominator, current))
        slope = (values[0] - values[1]) / (2 * step)
        assert gradient[i, t].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)
