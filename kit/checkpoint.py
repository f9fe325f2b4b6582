"""Checkpoints: saved atomically, resumed exactly.

One folder `checkpoints/step-000025` holds the adapter, the optimizer, the loss scaler, the random
states and the counters. It is written beside its final name and renamed when complete, so a crash
or a full disk leaves the one before untouched.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from kit.errors import RunError
from kit.models import TRAINED
from kit.policy import Policy


def save_adapter(policy: Policy, path: Path) -> None:
    """Write the trained adapter as plain PEFT files, replacing an older one atomically."""
    partial = path.with_name(path.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    # PEFT writes an adapter of another name than TRAINED into a folder of that name
    target = partial if policy.trained == TRAINED else partial.with_name(path.name + ".all")
    shutil.rmtree(target, ignore_errors=True)
    policy.peft.save_pretrained(
        str(target), selected_adapters=[policy.trained], save_embedding_layers=False
    )
    if target != partial:
        (target / policy.trained).rename(partial)
        shutil.rmtree(target)
    _sync(partial)
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(
    folder: Path, step: int, policy: Policy, state: dict[str, Any], keep: int
) -> Path:
    """Save everything needed to go on with `step`, then delete all but the `keep` newest.

    Raises RunError when the disk is full or not writable; earlier checkpoints survive that.
    """
    path = folder / f"step-{step:06d}"
    partial = folder / f"{path.name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_adapter(policy, partial / "adapter")
        torch.save({**state, "step": step, "random": random_state()}, partial / "state.pt")
        _sync(partial)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = latest_checkpoint(folder)
        rescue = f"the last good one is {before}" if before else "there is none before it"
        raise RunError(
            f"could not save the checkpoint of step {step}: {error}; {rescue}. "
            "Free some disk space and continue with --resume"
        ) from error
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def load_checkpoint(path: Path, policy: Policy) -> dict[str, Any]:
    """Put the adapter and the random states back; returns the rest of the saved state."""
    state = torch.load(path / "state.pt", weights_only=True)
    weights = load_file(path / "adapter" / "adapter_model.safetensors")
    set_peft_model_state_dict(policy.peft, weights, adapter_name=policy.trained)
    set_random_state(state.pop("random"))
    return state


def random_state() -> dict[str, Any]:
    """States of the global generators; the kit draws from none of them after start-up, but a
    user's reward function may."""
    version, keys, gauss = random.getstate()
    name, numpy_keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    state = {
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(numpy_keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numpy_keys, *rest = state["numpy"]
    np.random.set_state((name, numpy_keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _complete(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".part")


def _sync(folder: Path) -> None:
    """Make the files durable before a rename makes them visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
