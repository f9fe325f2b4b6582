"""Save an adapter as plain PEFT, with its tokenizer, card and probe."""

from __future__ import annotations

import shutil
from pathlib import Path

from kit.adapters.probe import take_probe, write_probe
from kit.errors import RunError
from kit.files import WRITE_ERRORS, new_folder
from kit.model.adapter_files import CARD, CONFIG, WEIGHTS
from kit.model.lora import TRAINED
from kit.model.policy import Policy


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
    save_weights(policy, folder)
    policy.base.tokenizer.save_pretrained(str(folder))
    write_probe(take_probe(policy), folder)


def save_weights(policy: Policy, folder: Path) -> None:
    """Write the trained adapter's configuration and weights, as PEFT does."""
    # PEFT writes an adapter of another name than TRAINED into a folder of that name
    target = folder if policy.trained == TRAINED else folder / ".all"
    policy.peft.save_pretrained(
        str(target), selected_adapters=[policy.trained], save_embedding_layers=False
    )
    if target != folder:
        for name in (CONFIG, WEIGHTS):
            (target / policy.trained / name).rename(folder / name)
        shutil.rmtree(target)
    (folder / CARD).unlink(missing_ok=True)  # PEFT's is a form to be filled in
