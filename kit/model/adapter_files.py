"""Adapter files: find them in a folder or on the hub, check them, and tell them apart by a hash.

Who wrote them is not known. What is read here is a plain LoRA adapter: settings of the right types,
patterns that are quickly matched, ranks that its weights have, and no tensor that is not LoRA's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError, safe_open

from kit.errors import AdapterError
from kit.reading import parse_json
from kit.spelling import did_you_mean_path

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

# what PEFT writes into the base's own weights or puts in their place
CHANGES = (
    *("modules_to_save", "trainable_token_indices", "target_parameters"),
    *("layer_replication", "ensure_weight_tying"),
)
# what decides the numbers of a plain LoRA adapter, or says where it came from
PLAIN = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "bias", "init_lora_weights", "lora_dropout", "inference_mode"),
    *("task_type", "peft_type", "auto_mapping", "peft_version"),
    *("base_model_name_or_path", "revision", "loftq_config", "eva_config", "runtime_config"),
)

_FLOATS = ("F64", "F32", "F16", "BF16")
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>[\w.]+)\."
    r"lora_(?:[AB]\.weight|B\.bias|embedding_[AB]|magnitude_vector(?:\.weight)?)"
)
# PEFT runs them as regular expressions: with one repeat and no groups none takes long
_PATTERN = re.compile(r"[^*+?{}()]*[*+]?[^*+?{}()]*")
MAX_PATTERN = 300  # characters


def read_adapter_config(source: str) -> dict[str, Any]:
    """adapter_config.json of a folder or hub id; AdapterError when it or safe weights lack."""
    return checked_files(source)[0]


@contextmanager
def suggesting(source: str) -> Iterator[None]:
    """AdapterErrors inside end with what is spelled like a source that does not exist.

    For names typed on the command line: a page that others can open tells them no file names.
    """
    try:
        yield
    except AdapterError as error:
        raise AdapterError(f"{error}{did_you_mean_path(source)}") from error


def check_leaves_base(source: str, settings: dict[str, Any]) -> None:
    """AdapterError when an adapter with these settings changes the base, which others share."""
    changes = {key: bool(settings.get(key)) for key in CHANGES} | {
        "bias": settings.get("bias", "none") != "none",
        "init_lora_weights": settings.get("init_lora_weights") not in HARMLESS_STARTS,
    }
    named = [f"{key}={settings[key]!r}" for key, is_set in changes.items() if is_set]
    if named:
        raise AdapterError(
            f"the adapter {source} changes the base model itself ({', '.join(named)[:200]}), which "
            "others share; convert it to a plain LoRA adapter"
        )


def adapted_modules(source: str, settings: dict[str, Any], weights: Path) -> set[str]:
    """Names of the base's modules that a checked adapter has LoRA weights for.

    Raises AdapterError for a tensor that is not LoRA's, for PEFT writes one that bears the name of
    one of the base's over that, and for ranks that no weight has, for which it would make room.
    """
    shapes = {key: shape for key, (shape, _) in _tensors(weights).items()}
    modules = set()
    for key in shapes:
        match = _TENSOR.fullmatch(key)
        if match is None:
            raise AdapterError(
                f"cannot load the adapter {source}: {key[:200]!r} is no weight of a LoRA adapter"
            )
        modules.add(match["module"])
    ranks = _ranks(shapes)
    said = {settings["r"], *(settings.get("rank_pattern") or {}).values()}
    if not ranks <= said or max(said) > max(ranks, default=0):
        raise _other_ranks(source, said, ranks)
    return modules


def is_expression(target: Any) -> bool:
    """Whether a setting that names modules does so by a regular expression, not by a list."""
    return isinstance(target, str) and target != "all-linear"


def adapter_sha256(source: str) -> str:
    """Hash of an adapter's weights and of the settings that change what it computes.

    A copy in another folder, or saved by another version of PEFT, has the same one. Raises
    AdapterError as `read_adapter_config` does.
    """
    settings, weights = checked_files(source)
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


def checked_files(source: str) -> tuple[dict[str, Any], Path]:
    """The checked configuration, and where the weights are; AdapterError as above."""
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
    _check_settings(source, settings)
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
    if is_folder(source):
        path = Path(source).expanduser() / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path
    return Path(hf_hub_download(source, name))


def is_folder(source: str) -> bool:
    """Whether a name is a folder's; hub ids of adapters are owner/name."""
    is_path = source.startswith((".", "/", "~")) or source.count("/") != 1
    return is_path or Path(source).exists()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _is_number(value: Any) -> bool:
    """Of those that a float holds; NaN is none."""
    is_number = _is_whole(value) or isinstance(value, float)
    return is_number and abs(value) <= sys.float_info.max


def _is_pattern(value: Any) -> bool:
    if not (isinstance(value, str) and 0 < len(value) <= MAX_PATTERN and _PATTERN.fullmatch(value)):
        return False
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def _one_or_list(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: is_one(value) or (isinstance(value, list) and all(map(is_one, value)))


def _by_pattern(is_value: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(_is_pattern(key) and is_value(one) for key, one in value.items())
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_SIMPLE = "with one repeat at most and no groups"
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number from 1"),
    "lora_alpha": (_is_number, "a finite number"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "from 0 to 1"),
    "rank_pattern": (_by_pattern(_is_rank), f"whole numbers by patterns {_SIMPLE}"),
    "alpha_pattern": (_by_pattern(_is_number), f"numbers by patterns {_SIMPLE}"),
    "target_modules": (_one_or_list(_is_text), "names of modules"),
    "exclude_modules": (_one_or_list(_is_text), "names of modules"),
    "layers_to_transform": (_one_or_list(_is_whole), "numbers of layers"),
    "layers_pattern": (_one_or_list(_is_pattern), f"patterns {_SIMPLE}"),
    "bias": (_is_text, "'none'"),
} | {
    key: (lambda value: isinstance(value, bool), "true or false")
    for key in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")
}
_NEEDED = ("r", "lora_alpha", "bias")  # null is no way to leave these out


def _check_settings(source: str, settings: dict[str, Any]) -> None:
    """Find what is of another type, or would keep PEFT busy for ever."""
    for key, (is_allowed, allowed) in _ALLOWED.items():
        value = settings.get(key)
        may_lack = key not in settings and key != "r"
        if may_lack or (value is None and key not in _NEEDED):
            continue
        if not is_allowed(value):
            raise AdapterError(
                f"cannot load the adapter {source}: {CONFIG} has {key}={_short(value)}, which must "
                f"be {allowed}"
            )


def _check_weights(source: str, path: Path, settings: dict[str, Any]) -> None:
    """Find an unreadable file or a wrong rank before PEFT has changed the base."""
    tensors = _tensors(path)
    for key, (shape, kind) in tensors.items():
        problem = None
        if kind not in _FLOATS:
            problem = f"is of type {kind}, not one of {', '.join(_FLOATS)}"
        elif "lora_A" in key and len(shape) != 2:
            problem = f"has the shape {shape}, not two dimensions"
        if problem:
            raise AdapterError(f"cannot load the adapter {source}: {key[:200]!r} {problem}")
    ranks = _ranks({key: shape for key, (shape, _) in tensors.items()})
    if not settings.get("rank_pattern") and ranks != {settings["r"]}:
        raise _other_ranks(source, {settings["r"]}, ranks)


def _tensors(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type of each tensor in a file; AdapterError for one that cannot be read."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:  # torch cannot open it
        raise AdapterError(
            f"cannot read the adapter {path}: its name is not valid UTF-8; rename it"
        ) from None
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {key: (one.get_shape(), one.get_dtype()) for key, one in slices.items()}
    except (OSError, SafetensorError, IndexError) as error:
        raise AdapterError(f"cannot read the adapter {path}: {error}") from error


def _ranks(shapes: dict[str, list[int]]) -> set[int]:
    a = ("lora_A", "lora_embedding_A")
    return {shape[0] for key, shape in shapes.items() if shape and any(part in key for part in a)}


def _other_ranks(source: str, said: set[int], ranks: set[int]) -> AdapterError:
    return AdapterError(
        f"cannot load the adapter {source}: its configuration says rank "
        f"{', '.join(map(_short, sorted(said)))}, its weights have {sorted(ranks)}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
