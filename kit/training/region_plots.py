"""Draw what each trust region makes of a token's gradient, from the code itself by autograd."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from kit.config import TRUST_REGION_SETTINGS, TrustRegionSettings
from kit.files import write_atomically
from kit.reports.figures import COLOURS, DASHES, GREY
from kit.training.trust_regions import TRUST_REGIONS, Tokens

RATIOS = (0.01, 6.0)  # drawn from, to
FACTORS = (-2.5, 6.5)
POINTS = 240
SIGNS = {1.0: "A > 0", -1.0: "A < 0"}
OLD = 1e-3  # a probability so small that no ratio drawn makes it more than 1
OLDS = (0.05, 0.5, 0.9)  # where the region looks at probabilities


def factors(
    region: TrustRegionSettings, ratios: Sequence[float], advantage: float, old: float
) -> list[float]:
    """What multiplies A times the gradient of a token's log-probability, at each of these ratios.

    Args:
        region: the settings of a trust region.
        ratios: r > 0 of a token that is a completion of its own.
        advantage: A; only its sign matters but for ipo and dro, whose penalty it does not scale.
        old: probability of the token under the old policy.
    """
    start = torch.full((len(ratios), 1), old, dtype=torch.float64).log()
    steps = torch.tensor(ratios, dtype=torch.float64).log()[:, None]
    logprobs = (start + steps).requires_grad_()
    tokens = Tokens(logprobs, start, torch.ones_like(start, dtype=torch.bool))
    advantages = torch.full_like(start, advantage)
    surrogate: Tensor = TRUST_REGIONS[_name(region)](tokens, advantages, region)
    (gradient,) = torch.autograd.grad(surrogate.sum(), logprobs)
    return (gradient[:, 0] / advantage).tolist()


def looks_at_probabilities(region: TrustRegionSettings) -> bool:
    """Whether the same ratio means something else where the old probability is another."""
    ratios = [0.5, 0.7, 0.9, 1.05, 1.1]
    rare, common = (
        [factors(region, ratios, sign, old) for sign in SIGNS] for old in (OLDS[0], OLDS[-1])
    )
    return not np.allclose(rare, common, rtol=1e-6)


def draw(region: TrustRegionSettings) -> str:
    """An SVG of the factor against r: a line for each sign of A, and for each old probability."""
    # text stays text, and the same picture has the same bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kit", "font.size": 9}):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        olds = OLDS if looks_at_probabilities(region) else (OLD,)
        for (i, old), (j, sign) in product(enumerate(olds), enumerate(SIGNS)):
            ratios = _ratios(old)
            label = SIGNS[sign] if len(olds) == 1 else f"{SIGNS[sign]}, π_old = {old:g}"
            dash = DASHES[j if len(olds) == 1 else i]  # lines that coincide stay visible
            values = factors(region, ratios, sign, old)
            axes.plot(ratios, values, color=COLOURS[j], ls=dash, lw=1.6, label=label)
        axes.axhline(0, color=GREY, lw=0.6)
        axes.axvline(1, color=GREY, lw=0.6)
        axes.set(xlim=(0, RATIOS[1]), ylim=FACTORS, xlabel="r", ylabel="factor on A ∇log π")
        axes.set_title(_name(region), loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(
            loc="outside lower center", ncols=max(2, len(olds)), frameon=False, fontsize=7.5
        )
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


def write_all(folder: Path) -> list[Path]:
    """One SVG per trust region, with its default settings."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, settings in TRUST_REGION_SETTINGS.items():
        path = folder / f"{name}.svg"
        write_atomically(path, draw(settings.model_validate({"name": name})))
        written.append(path)
    return written


def _name(region: TrustRegionSettings) -> str:
    return region.model_dump()["name"]


def _ratios(old: float) -> list[float]:
    """Evenly spaced, as far as the probability stays below 1."""
    low, high = RATIOS[0], min(RATIOS[1], 0.999 / old)
    return [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
