"""Adapter files: find them in a folder or on the hub, check them, and tell them apart by a hash."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError, safe_open

from kit.errors import AdapterError, RunError
from kit.files import parse_json
from kit.runs import RunFolder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROBE = "probe.safetensors"
CARD = "README.md"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    *(CHAT_TEMPLATE, "chat_template.json"),
)
ADAPTER_FILES = (CONFIG, WEIGHTS, PROBE, CARD, *TOKENIZER_FILES)

# settings that change what an adapter computes; all others say where it came from
DECISIVE = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("target_modules", "target_parameters", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "layer_replication", "fan_in_fan_out"),
    *("bias", "lora_bias", "use_qalora", "alora_invocation_tokens"),
)

# starts of an adapter that leave the base as it is; the others (PiSSA, OLoRA, …) subtract from it
HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")


def read_adapter_config(source: str) -> dict[str, Any]:
    """adapter_config.json of a folder or hub id; AdapterError when it or safe weights lack."""
    return _read(source)[0]


def check_leaves_base(source: str, settings: dict[str, Any]) -> None:
    """AdapterError when an adapter with these settings changes the base, which others share."""
    changes = {
        "bias": settings.get("bias", "none") != "none",
        "layer_replication": bool(settings.get("layer_replication")),
        "init_lora_weights": settings.get("init_lora_weights") not in HARMLESS_STARTS,
    }
    named = [f"{key}={settings[key]!r}" for key, is_set in changes.items() if is_set]
    if named:
        raise AdapterError(
            f"the adapter {source} changes the base model itself ({', '.join(named)}), which "
            "others share; convert it to a plain LoRA adapter"
        )


def adapter_sha256(source: str) -> str:
    """Hash of an adapter's weights and of the settings that change what it computes.

    A copy in another folder, or saved by another version of PEFT, has the same one. Raises
    AdapterError as `read_adapter_config` does.
    """
    settings, weights = _read(source)
    # what is not set is left out: other versions of PEFT leave it out of the file
    decisive = {key: settings[key] for key in DECISIVE if settings.get(key)}
    for key in ("target_modules", "exclude_modules"):  # sets, which PEFT saves in any order
        if isinstance(decisive.get(key), list):
            decisive[key] = sorted(decisive[key])
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    digest.update(weights.read_bytes())
    return digest.hexdigest()


def adapter_fault(source: str) -> str | None:
    """Why an adapter cannot be used as it was saved; None where nothing speaks against it.

    Of an adapter without the kit's probe nobody knows what was saved.
    """
    try:
        found, paths = adapter_sha256(source), _find(source)
        probe = paths[WEIGHTS].with_name(PROBE)
        if not os.path.lexists(probe):
            return None
        with safe_open(probe, framework="np") as file:
            saved = parse_json((file.metadata() or {})["settings"])["adapter_sha256"]
    except AdapterError as error:
        return str(error)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return f"{probe} cannot be read ({error!r})"
    if found != saved:
        return "its weights or settings are not those that were saved"
    return None


def check_unchanged(source: str) -> None:
    """AdapterError for an adapter of the kit's that was damaged or changed after it was saved."""
    if fault := adapter_fault(source):
        raise AdapterError(
            f"the adapter {source} cannot be used: {fault}. Put back a sound copy (the run's "
            f"checkpoints hold its weights too), or delete its {PROBE} to take it as it is now"
        )


def adapter_folder(source: str) -> Path:
    """Where the files of an adapter are: a run's best one, a folder's own, or a hub id's download.

    Raises AdapterError as `read_adapter_config` does, or when a run has none yet.
    """
    run = RunFolder(source)
    if run.exists:
        check_has_adapter(run)
        source = str(run.adapter)
    _, weights = _read(source)
    if _is_folder(source):
        return weights.parent
    try:
        return Path(snapshot_download(source, allow_patterns=list(ADAPTER_FILES)))
    except OSError as error:
        raise AdapterError(f"cannot download the adapter {source}: {error}") from error


def check_has_adapter(run: RunFolder) -> None:
    """AdapterError for a run that was stopped before it had one."""
    if not run.adapter.is_dir():
        try:
            status = run.status
        except RunError:  # run.json is damaged
            status = "unknown"
        raise AdapterError(
            f"{run.path} has no adapter yet (status: {status}); go on with: "
            f"kit train {run.path} --resume"
        )


def _read(source: str) -> tuple[dict[str, Any], Path]:
    """The checked configuration, and where the weights are."""
    paths = _find(source)
    try:
        settings = parse_json(paths[CONFIG].read_bytes())
    except OSError as error:
        raise AdapterError(f"cannot read {source}/{CONFIG}: {error.strerror}") from error
    except ValueError as error:
        raise AdapterError(f"{source}/{CONFIG} is not valid JSON: {error}") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise AdapterError(f"{source} is a {kind} adapter; only LORA works")
    _check_weights(source, paths[WEIGHTS], settings)
    return settings, paths[WEIGHTS]


def _find(source: str) -> dict[str, Path]:
    """Paths of both files by their names."""
    paths = {}
    for name in (CONFIG, WEIGHTS):
        try:
            paths[name] = _adapter_file(source, name)
        except LocalEntryNotFoundError as error:
            raise AdapterError(
                f"the adapter {source} is in no folder and not in the hub's cache, and the hub "
                "cannot be reached: connect to the network, or give a folder"
            ) from error
        except (OSError, EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
            raise AdapterError(
                f"no adapter at {source}: {name} was not found. Give a folder or hub id with "
                f"{CONFIG} and {WEIGHTS} (pickled weights are refused)"
            ) from error
    return paths


def _adapter_file(source: str, name: str) -> Path:
    if _is_folder(source):
        path = Path(source).expanduser() / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path
    return Path(hf_hub_download(source, name))


def _is_folder(source: str) -> bool:
    """Whether a name is a folder's; hub ids of adapters are owner/name."""
    is_path = source.startswith((".", "/", "~")) or source.count("/") != 1
    return is_path or Path(source).exists()


def _check_weights(source: str, path: Path, settings: dict[str, Any]) -> None:
    """Find an unreadable file or a wrong rank before PEFT has changed the base."""
    try:
        with safe_open(path, framework="pt") as file:
            ranks = {file.get_slice(k).get_shape()[0] for k in file.keys() if "lora_A" in k}  # noqa: SIM118
    except (OSError, SafetensorError, IndexError) as error:
        raise AdapterError(f"cannot read the adapter {path}: {error}") from error
    rank = settings.get("r")
    if type(rank) is not int:
        raise AdapterError(f"{source}/{CONFIG} names no rank: r is {str(rank)[:80]!r}")
    if not settings.get("rank_pattern") and ranks != {rank}:
        raise AdapterError(
            f"cannot load the adapter {source}: its configuration says rank {rank}, its weights "
            f"have {sorted(ranks)}"
        )
