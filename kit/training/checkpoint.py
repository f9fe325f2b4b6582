"""Checkpoints: saved atomically, checked before they are used, resumed exactly.

One folder `checkpoints/step-000025` holds the adapter, the optimizer, the loss scaler, the random
states and the counters, and a manifest with the size and hash of each file. It is written beside
its final name and renamed when complete, so a crash or a full disk leaves the one before untouched.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from kit.adapters.save import save_weights
from kit.errors import AdapterError, RunError, first_line
from kit.files import WRITE_ERRORS, new_folder, remove, write_atomically
from kit.manifest import MANIFEST, MANIFEST_SCHEMA, read_manifest
from kit.model.adapter_files import CONFIG, WEIGHTS, read_adapter_config
from kit.model.policy import Policy
from kit.reading import digest

log = logging.getLogger(__name__)

STATE = "state.pt"
FILES = (STATE, f"adapter/{CONFIG}", f"adapter/{WEIGHTS}")
NAME = re.compile(r"step-\d{6,}")
# what torch makes of a file that is none of its own, or a damaged one
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, TypeError, AttributeError)


class Restorable(Protocol):
    """What a state can be put back into."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Damaged(Exception):
    """A checkpoint that cannot be trusted; the message says why, without its path."""


def save_checkpoint(
    folder: Path,
    step: int,
    policy: Policy,
    state: dict[str, Any],
    keep: int,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Save everything needed to go on with `step`, then delete all but the `keep` newest.

    `about` goes into the manifest: `records`, size and hash of metrics and samples up to here,
    `settings`, the configuration's by their dotted names, and `hardware`, in words. Raises RunError
    when the disk is full or not writable; earlier checkpoints survive that.
    """
    path = folder / f"step-{step:06d}"
    try:
        with new_folder(path, replace=True) as partial:
            save_weights(policy, partial / "adapter")
            torch.save({**state, "step": step, "random": random_state()}, partial / STATE)
            _write_manifest(partial, step, about or {})
        remove_old(folder, step, keep)
    except WRITE_ERRORS as error:
        before = latest_checkpoint(folder)
        rescue = f"the last good one is {before}" if before else "there is none before it"
        raise RunError(
            f"could not save the checkpoint of step {step}: {error}; {rescue}. "
            "Free some disk space and continue with --resume"
        ) from error
    return path


def remove_old(folder: Path, step: int, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints of the steps up to `step`."""
    known = [path for path in _complete(folder) if path.name <= f"step-{step:06d}"]
    for path in known[:-keep]:
        remove(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None; whether it is sound is seen
    when it is loaded."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def load_newest(folder: Path, policy: Policy, optimizer: Restorable) -> dict[str, Any] | None:
    """Put the newest sound checkpoint's adapter, optimizer and random states back.

    Returns its `best` score and `step`, and of its manifest `records`, `settings` and `hardware`
    (None where it does not say); None where there is no checkpoint at all.

    Newer ones that are damaged are named in a warning. Raises RunError when all are damaged.
    """
    faults = []
    for path in reversed(_complete(folder)):
        try:
            state = load_checkpoint(path, policy, optimizer)
        except Damaged as damage:
            faults.append(f"{path}: {damage}")
            continue
        for fault in faults:
            log.warning("%s; it is damaged and not used", fault)
        log.info("resuming from %s", path)
        return state
    if faults:
        raise RunError(
            f"no checkpoint can be used ({'; '.join(faults)}). Put a sound copy there, or delete "
            f"{folder} to train from the start"
        )
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        log.warning("%s is no finished checkpoint; training begins at step 0", path)
    return None


def load_checkpoint(path: Path, policy: Policy, optimizer: Restorable) -> dict[str, Any]:
    """Put adapter, optimizer and random states back; returns the rest of the saved state.

    Raises Damaged for files that are not those that were saved; the adapter is as it was then.
    """
    manifest = _check_manifest(path)
    state, weights = _read_state(path), _read_weights(path, policy)
    step = int(path.name.removeprefix("step-"))
    if state["step"] != step:
        raise Damaged(f"{STATE} is of step {state['step']}")
    try:
        optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])
    except torch.OutOfMemoryError:  # a RuntimeError, but no fault of the checkpoint
        raise
    except UNREADABLE as error:
        raise Damaged(f"{STATE} does not fit this run: {first_line(error)}") from error
    set_peft_model_state_dict(policy.peft, weights, adapter_name=policy.trained)
    if manifest is None:
        log.warning(
            "%s has no %s (an older version wrote it, or it was deleted): it could not be "
            "compared with what was saved",
            *(path, MANIFEST),
        )
    about = {key: (manifest or {}).get(key, {}) for key in ("records", "settings")}
    return {
        "best": state["best"],
        "owes_validation": state.get("owes_validation", False),
        "step": step,
        "hardware": (manifest or {}).get("hardware"),
        **about,
    }


def _write_manifest(folder: Path, step: int, about: Mapping[str, Any]) -> None:
    """The last file: what is there is complete."""
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": digest(folder / name)}
        for name in FILES
    }
    manifest = {"schema": MANIFEST_SCHEMA, "step": step, "files": files}
    manifest |= {"records": {}, "settings": {}, **about}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _check_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, once all files are as it says; None where there is none."""
    try:
        lacking = [name for name in FILES if not (path / name).is_file()]
        if lacking:
            raise Damaged(f"it lacks {', '.join(lacking)}")
        if not os.path.lexists(path / MANIFEST):
            return None
        manifest = read_manifest(path / MANIFEST)
        if manifest["files"].keys() != set(FILES):
            raise ValueError(f"it names {', '.join(sorted(manifest['files'])) or 'nothing'}")
        for name in FILES:
            stated = manifest["files"][name]
            if (path / name).stat().st_size != stated["size"]:
                raise Damaged(f"{name} has another size than was saved")
            if digest(path / name) != stated["sha256"]:
                raise Damaged(f"{name} has other bytes than were saved")
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Damaged(f"{MANIFEST} is not usable: {error}") from error
    return manifest


def _read_state(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path / STATE) as packed:  # torch does not compare the checksums
            if (broken := packed.testzip()) is not None:
                raise Damaged(f"{STATE} is damaged in {broken}")
        # to the processor first: another machine may have no GPU, or fewer
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (*UNREADABLE, zipfile.BadZipFile, NotImplementedError) as error:
        raise Damaged(f"{STATE} cannot be read: {first_line(error)}") from error
    wanted = {"optimizer": dict, "random": dict, "step": int}
    if not isinstance(state, dict) or "best" not in state:
        raise Damaged(f"{STATE} holds no state of a run")
    wrong = [name for name, kind in wanted.items() if not isinstance(state.get(name), kind)]
    if wrong:
        raise Damaged(f"{STATE} lacks {', '.join(wrong)}")
    return state


def _read_weights(path: Path, policy: Policy) -> dict[str, torch.Tensor]:
    """All weights of the adapter, finite and of their shapes."""
    try:
        read_adapter_config(str(path / "adapter"))
        weights = load_file(path / "adapter" / WEIGHTS)
    except AdapterError as error:
        raise Damaged(first_line(error)) from error
    except (*UNREADABLE, SafetensorError) as error:
        raise Damaged(f"{WEIGHTS} cannot be read: {first_line(error)}") from error
    own = get_peft_model_state_dict(
        policy.peft, adapter_name=policy.trained, save_embedding_layers=False
    )
    shapes, wanted = ({k: tuple(v.shape) for k, v in ws.items()} for ws in (weights, own))
    if shapes != wanted:
        odd = sorted(name for name, _ in shapes.items() ^ wanted.items())
        raise Damaged(f"{WEIGHTS} lacks weights or has others, e.g. {odd[0]}")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise Damaged(f"{WEIGHTS}: {name} is not finite")
    return weights


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
    """Checkpoints by step; .part and .old are remains, other names are not the kit's."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name))
