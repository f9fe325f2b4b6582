"""`kit blend`: a mixture of adapters as one adapter, by PEFT's add_weighted_adapter."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kit.adapters.card import blend_card
from kit.adapters.locate import adapter_folder
from kit.adapters.merge import read_updates
from kit.adapters.save import write_adapter
from kit.config import SYSTEM_PROMPT, ModelConfig
from kit.errors import AdapterError
from kit.files import WRITE_ERRORS, new_folder, write_atomically
from kit.model.adapter_files import CARD, adapter_sha256
from kit.model.base import load_base
from kit.model.base_files import BaseSource, base_of
from kit.model.lora import load_adapters
from kit.model.policy import Policy
from kit.runs import RunFolder

log = logging.getLogger(__name__)

METHODS = {
    "cat": "exactly the weighted sum of the updates; the ranks add up",
    "linear": "weighted sums of A and of B apart, an approximation that keeps the rank",
    "ties": "linear, after small values and signs of the minority are dropped",
    "dare_linear": "linear, after random values are dropped and the rest is scaled up",
    "dare_ties": "ties, after random values are dropped and the rest is scaled up",
}
SPARSE = ("ties", "dare_linear", "dare_ties")
BLEND = "blend"


def blend(
    adapters: Sequence[str],
    weights: Sequence[float],
    output: Path,
    method: str = "cat",
    *,
    density: float = 0.5,
    seed: int = 0,
) -> Path:
    """Mix adapters (runs, folders, hub ids) of one base into a new adapter folder.

    `density` is the share of values that the sparse methods keep; `seed` decides which ones DARE
    does. Raises AdapterError when `output` exists, for adapters that do not go together, and when
    the disk is full; nothing is left then.
    """
    _check(adapters, weights, method, density)
    if output.exists():
        raise AdapterError(f"{output} exists; choose another folder, or delete it first")
    folders = [adapter_folder(adapter) for adapter in adapters]
    source = _shared_base(folders)
    _check_ranks(folders, method)
    how = f"`{method}`" + (f", density {density:g}, seed {seed}" if method in SPARSE else "")
    parts = [
        (adapter, weight, adapter_sha256(str(folder)))
        for adapter, weight, folder in zip(adapters, weights, folders, strict=True)
    ]
    base = load_base(ModelConfig(id=source.id, revision=source.revision))
    names = [f"part{i}" for i in range(len(folders))]
    model: Any = load_adapters(base, dict(zip(names, map(str, folders), strict=True)))
    keep = density if method in SPARSE else None
    torch.manual_seed(seed)  # DARE drops values by the global generator
    try:
        # PEFT gives the mixture alpha = rank and the first part's kind of scaling: it has to be 1
        model.peft_config[names[0]].use_rslora = False
        model.add_weighted_adapter(
            names, list(weights), BLEND, combination_type=method, density=keep
        )
        with new_folder(output) as partial:
            write_adapter(Policy(base, model, BLEND), partial)
            card = blend_card(partial, parts, how, _system_prompt(adapters), output.name)
            write_atomically(partial / CARD, card.content)
    except WRITE_ERRORS as error:
        raise AdapterError(f"could not write {output}: {error}") from error
    finally:
        model.unload()
    return output


def _check(adapters: Sequence[str], weights: Sequence[float], method: str, density: float) -> None:
    if len(adapters) < 2:
        raise AdapterError(f"a blend needs two adapters or more, got {len(adapters)}")
    if len(weights) != len(adapters):
        raise AdapterError(f"{len(adapters)} adapters need as many --weights, got {len(weights)}")
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise AdapterError(f"--weights must be finite and not all 0, got {list(weights)}")
    if method not in METHODS:
        raise AdapterError(f"unknown --method {method!r}; there are {', '.join(METHODS)}")
    if not 0 < density <= 1:
        raise AdapterError(f"--density must be above 0 and at most 1, got {density:g}")


def _shared_base(folders: Sequence[Path]) -> BaseSource:
    bases = [base_of(str(folder)) for folder in folders]
    if len(set(bases)) > 1:
        named = [f"{f}: {b.id} at {b.revision}" for f, b in zip(folders, bases, strict=True)]
        raise AdapterError(f"the adapters have different bases ({'; '.join(named)})")
    return bases[0]


def _check_ranks(folders: Sequence[Path], method: str) -> None:
    """One rank within each adapter, and between them unless they are laid side by side."""
    ranks = []
    for folder in folders:
        found = sorted({update.a.shape[0] for update in read_updates(folder).values()})
        if len(found) != 1:
            raise AdapterError(f"{folder} has several ranks, {found}; it cannot be blended")
        ranks += found
    if method != "cat" and len(set(ranks)) > 1:
        raise AdapterError(f"--method {method} needs one rank, got {ranks}; use --method cat")


def _system_prompt(adapters: Sequence[str]) -> str:
    """That of the first run among them, or the kit's."""
    runs = [run for run in map(RunFolder, adapters) if run.exists]
    prompts = [run.load_config().system_prompt for run in runs] or [SYSTEM_PROMPT]
    if len(set(prompts)) > 1:
        log.warning(
            "the runs have different system prompts; the card names that of %s", runs[0].path
        )
    return prompts[0]
