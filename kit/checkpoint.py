"""Checkpoints: saved atomically, resumed exactly.

One folder `checkpoints/step-000025` holds the adapter, the optimizer, the loss scaler, the random
states and the counters. It is written beside its final name and renamed when complete, so a crash
or a full disk leaves the one before untouched.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from kit.adapters import CARD, CONFIG, WEIGHTS
from kit.errors import RunError
from kit.models import TRAINED
from kit.policy import Policy
from kit.probe import take_probe, write_probe

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what a full disk makes libraries raise


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder beside `path` to write into, renamed to it at the end; removed if anything fails.

    Raises FileExistsError when `path` exists, unless it is to be replaced.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists")
    partial, old = (path.with_name(path.name + ending) for ending in (".part", ".old"))
    for rest in (partial, old):  # of an earlier attempt that was killed
        shutil.rmtree(rest, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _sync(partial)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def save_adapter(policy: Policy, path: Path) -> None:
    """Write the trained adapter into `path`, replacing an older one atomically.

    Raises RunError when the disk is full or not writable; the older one survives that.
    """
    try:
        with new_folder(path, replace=True) as partial:
            write_adapter(policy, partial)
    except WRITE_ERRORS as error:
        raise RunError(f"could not save {path}: {error}") from error


def write_adapter(policy: Policy, folder: Path) -> None:
    """All that others need: plain PEFT files, tokenizer and chat template, `kit verify`'s probe."""
    _save_weights(policy, folder)
    policy.base.tokenizer.save_pretrained(str(folder))
    write_probe(take_probe(policy), folder)


def _save_weights(policy: Policy, folder: Path) -> None:
    """Write the trained adapter's configuration and weights, as PEFT does."""
    # PEFT writes an adapter of another name than TRAINED into a folder of that name
    target = folder if policy.trained == TRAINED else folder / ".all"
    policy.peft.save_pretrained(
        str(target), selected_adapters=[policy.trained], save_embedding_layers=False
    )
    for name in (CONFIG, WEIGHTS) if target != folder else ():
        (target / policy.trained / name).rename(folder / name)
    if target != folder:
        shutil.rmtree(target)
    (folder / CARD).unlink(missing_ok=True)  # PEFT's is a form to be filled in


def save_checkpoint(
    folder: Path, step: int, policy: Policy, state: dict[str, Any], keep: int
) -> Path:
    """Save everything needed to go on with `step`, then delete all but the `keep` newest.

    Raises RunError when the disk is full or not writable; earlier checkpoints survive that.
    """
    path = folder / f"step-{step:06d}"
    try:
        with new_folder(path, replace=True) as partial:
            _save_weights(policy, partial / "adapter")
            torch.save({**state, "step": step, "random": random_state()}, partial / "state.pt")
    except WRITE_ERRORS as error:
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
    return sorted(p for p in folder.glob("step-*") if not p.suffix)  # .part, .old


def _sync(folder: Path) -> None:
    """Make the files durable before a rename makes them visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
