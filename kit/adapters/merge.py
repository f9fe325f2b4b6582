"""`kit merge`: put an adapter into the 16-bit weights of its base, one shard at a time.

W' = W + s B A is computed in float32 from the base's own files, never from its 4-bit copy, and then
rounded to 16 bits. In memory are one shard and one weight matrix, not the model.
"""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kit.adapters.locate import adapter_folder
from kit.adapters.merge_drift import Agreement, agreements, tokenizer_of
from kit.errors import AdapterError
from kit.files import WRITE_ERRORS, new_folder, write_atomically
from kit.model.adapter_files import (
    CHAT_TEMPLATE,
    HARMLESS_STARTS,
    TOKENIZER_FILES,
    WEIGHTS,
    adapter_sha256,
    check_unchanged,
    read_adapter_config,
)
from kit.model.base import check_torchao
from kit.model.base_files import BaseSource, base_of
from kit.model.hardware import DTYPES
from kit.model.tokenizer import stop_ids
from kit.reading import parse_json

SHARD = 10**9  # bytes of a file of merged weights; making one takes this and some more memory
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
RECORD = "merge.json"
PREFIX = "base_model.model."
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # all it takes for --max-lora-rank
# settings whose meaning is covered here, or that mean nothing once an adapter is trained
COVERED = frozenset(
    [
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("base_model_name_or_path", "revision", "task_type", "inference_mode", "lora_dropout"),
        *("peft_type", "peft_version", "auto_mapping", "init_lora_weights", "ensure_weight_tying"),
    ]
)


@dataclass(frozen=True, slots=True)
class Update:
    """s B A of one weight: A (rank, inputs), B (outputs, rank), float32."""

    a: Tensor
    b: Tensor
    scaling: float

    def added_to(self, weight: Tensor) -> Tensor:
        """(outputs, inputs), float32."""
        return torch.addmm(weight.float(), self.b, self.a, alpha=self.scaling)


@dataclass(frozen=True, slots=True)
class Merged:
    """A folder of merged weights, and how near they are to what was merged."""

    folder: Path
    base: BaseSource
    adapter: Path
    agreements: list[Agreement]


def merge(adapter: str, output: Path, dtype: str = "bfloat16", shard_bytes: int = SHARD) -> Merged:
    """Merge an adapter (run, folder or hub id) and compare the result with it.

    Raises AdapterError when `output` exists, for an adapter that is more than W + s B A, that
    belongs to another base or overflows `dtype`, and when the disk is full; nothing is left then.
    """
    if dtype not in ("bfloat16", "float16"):
        raise AdapterError(f"--dtype must be bfloat16 or float16, got {dtype!r}")
    if output.exists():
        raise AdapterError(f"{output} exists; choose another folder, or delete it first")
    check_torchao()  # before gigabytes are written
    folder = adapter_folder(adapter)
    check_unchanged(str(folder))
    base = base_of(str(folder))
    updates = read_updates(folder)
    shards = base_shards(base)
    _check_match(base, updates, shards)
    try:
        with new_folder(output) as partial:
            _write_weights(shards, updates, partial, DTYPES[dtype], shard_bytes)
            _write_settings(base, folder, partial, dtype)
            found = agreements(base, folder, partial, dtype)
            record = {
                "adapter_sha256": adapter_sha256(str(folder)),
                "base": {"id": base.id, "revision": base.revision},
                "dtype": dtype,
                "agreement": [asdict(agreement) for agreement in found],
            }
            write_atomically(partial / RECORD, json.dumps(record, indent=2) + "\n")
    except WRITE_ERRORS as error:
        raise AdapterError(f"could not merge into {output}: {error}") from error
    return Merged(output, base, folder, found)


def read_updates(folder: Path) -> dict[str, Update]:
    """The updates of an adapter by the names of the base's weights.

    Raises AdapterError when they are not the whole of what the adapter does.
    """
    settings = read_adapter_config(str(folder))
    defaults = LoraConfig().to_dict()
    special = {
        key: value
        for key, value in settings.items()
        if key not in COVERED and value and value != defaults.get(key)
    }
    if (start := settings.get("init_lora_weights")) not in HARMLESS_STARTS:
        special["init_lora_weights"] = start
    weights = load_file(folder / WEIGHTS)
    pairs = ("lora_A.weight", "lora_B.weight")
    for name in weights:
        other = name.replace(*(("lora_A", "lora_B") if "lora_A" in name else ("lora_B", "lora_A")))
        if name.endswith(pairs) and other not in weights:
            raise AdapterError(f"{folder / WEIGHTS} has {name} without {other}")
    special |= {f"the tensor {name}": "" for name in weights if not name.endswith(pairs)}
    if special:
        listed = ", ".join(f"{key}={value!r}" if value else key for key, value in special.items())
        raise AdapterError(
            f"{folder} does more than add B A to weights ({listed}), which the kit cannot "
            "compute with; PEFT's own merge_and_unload() may"
        )
    updates = {}
    for name in weights:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight").removeprefix(PREFIX)
            a, b = weights[name].float(), weights[name.replace("lora_A", "lora_B")].float()
            updates[f"{module}.weight"] = Update(a, b, _scaling(settings, module))
    return updates


def _scaling(settings: dict[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732), of one module."""
    ranks, alphas = (settings.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    rank = ranks.get(get_pattern_key(list(ranks), module), settings["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), module), settings["lora_alpha"])
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def base_shards(base: BaseSource) -> dict[str, Path]:
    """Names of the base's weights, with the safetensors file each is in.

    Raises AdapterError for a base without safetensors, or one that is quantized itself.
    """
    config = _read_json(base, "config.json")
    if config.get("quantization_config"):
        raise AdapterError(f"the base {base.id} is quantized; merging needs its 16-bit weights")
    if base.file(INDEX) is not None:
        files = set(_read_json(base, INDEX)["weight_map"].values())
    else:
        files = {SINGLE}
    shards: dict[str, Path] = {}
    for name in sorted(files):
        path = base.file(name)
        if path is None:
            raise AdapterError(
                f"the base {base.id} has no {name} here; check the network, and that it is stored "
                "as safetensors (pickled weights are refused)"
            )
        with safe_open(path, framework="pt") as file:
            shards |= dict.fromkeys(file.keys(), path)
    return shards


def _read_json(base: BaseSource, name: str) -> dict[str, Any]:
    path = base.file(name)
    if path is None:
        raise AdapterError(f"the base {base.id} has no {name} here; check the folder or network")
    try:
        record = parse_json(path.read_bytes())
    except ValueError as error:
        raise AdapterError(f"{path} of the base {base.id} is not valid JSON ({error})") from None
    if not isinstance(record, dict):
        raise AdapterError(f"{path} of the base {base.id} holds no JSON object")
    return record


def _check_match(base: BaseSource, updates: dict[str, Update], shards: dict[str, Path]) -> None:
    """Raise AdapterError unless every update has a weight of its shape, used for nothing else."""
    tied = _read_json(base, "config.json").get("tie_word_embeddings")
    for name, update in updates.items():
        if name not in shards or (tied and name == "lm_head.weight"):
            raise AdapterError(
                f"the adapter changes {name}, which the base {base.id} does not store by itself: "
                "it is another base, or the weight is tied to the embeddings. Such an adapter "
                "cannot be merged here; use PEFT's merge_and_unload()"
            )
        with safe_open(shards[name], framework="pt") as file:
            shape = file.get_slice(name).get_shape()
        if shape != [update.b.shape[0], update.a.shape[1]]:
            raise AdapterError(
                f"the adapter belongs to another base than {base.id}: its {name} is "
                f"{update.b.shape[0]} x {update.a.shape[1]}, the base's {shape[0]} x {shape[1]}"
            )


def _write_weights(
    shards: dict[str, Path],
    updates: dict[str, Update],
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    """Write merged weights in files of `shard_bytes`, making one after the other."""
    shapes = {name: _empty(path, name, dtype) for name, path in shards.items()}
    size = sum(tensor.nbytes for tensor in shapes.values())
    if size > shutil.disk_usage(folder).free:
        raise AdapterError(f"{folder.parent} has less than the {size / 1e9:.1f} GB this needs")
    plan = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    for filename, names in plan.filename_to_tensors.items():
        tensors = {name: _merged(shards[name], name, updates.get(name), dtype) for name in names}
        save_file(tensors, folder / filename, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": {"total_size": size}, "weight_map": plan.tensor_to_filename}
        write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _empty(path: Path, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor without memory, of the shape and type that will be written."""
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor(name)  # mapped, not read
    kept = dtype if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=kept, device="meta")


def _merged(path: Path, name: str, update: Update | None, dtype: torch.dtype) -> Tensor:
    with safe_open(path, framework="pt") as file:
        weight = file.get_tensor(name)
        if not weight.is_floating_point():
            return weight.clone()
        result = (update.added_to(weight) if update else weight).to(dtype, copy=True)
    if not torch.stack(result.aminmax()).isfinite().all():
        raise AdapterError(f"{name} has values beyond the range of {dtype}; use --dtype bfloat16")
    return result


def _write_settings(base: BaseSource, adapter: Path, folder: Path, dtype: str) -> None:
    """The base's own files, so that other programs find what they know; the adapter's template."""
    config = _read_json(base, "config.json")
    key = "dtype" if "dtype" in config else "torch_dtype"
    text = json.dumps(config | {key: dtype}, indent=2) + "\n"
    write_atomically(folder / "config.json", text)
    text = json.dumps(_generation_settings(base, adapter, config), indent=2) + "\n"
    write_atomically(folder / "generation_config.json", text)
    for name in TOKENIZER_FILES:
        if (path := base.file(name)) is not None:
            shutil.copyfile(path, folder / name)
    if (adapter / CHAT_TEMPLATE).is_file():
        shutil.copyfile(adapter / CHAT_TEMPLATE, folder / CHAT_TEMPLATE)


def _generation_settings(base: BaseSource, adapter: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The base's, with every token the adapter learned to end with, and no repetition penalty.

    The kit samples without that penalty, which acts on greedy decoding too.
    """
    if base.file("generation_config.json") is not None:
        settings = _read_json(base, "generation_config.json")
    else:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {name: config[name] for name in names if config.get(name) is not None}
    ends = stop_ids(tokenizer_of(base, adapter), settings.get("eos_token_id"))
    return settings | {"eos_token_id": sorted(ends), "repetition_penalty": 1.0}


def commands(merged: Merged) -> str:
    """How to serve the result elsewhere, and on vLLM the adapter without merging."""
    folder, gguf = (shlex.quote(str(merged.folder) + ending) for ending in ("", ".gguf"))
    absolute = shlex.quote(str(merged.folder.resolve()))
    name = shlex.quote(merged.folder.resolve().name)
    base = shlex.quote(merged.base.source)
    if merged.base.revision:
        base += f" --revision {shlex.quote(merged.base.revision)}"
    settings = read_adapter_config(str(merged.adapter))
    largest = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    rank = next((rank for rank in VLLM_RANKS if rank >= largest), largest)
    return f"""\
vLLM            vllm serve {folder}
vLLM, unmerged  vllm serve {base} --enable-lora --max-lora-rank {rank} \\
                  --generation-config vllm --lora-modules {name}={shlex.quote(str(merged.adapter))}
TGI             docker run --gpus all --shm-size 1g -p 8080:80 -v {absolute}:/model \\
                  ghcr.io/huggingface/text-generation-inference --model-id /model
llama.cpp       python llama.cpp/convert_hf_to_gguf.py {folder} --outfile {gguf}
                llama-server -m {gguf}
Ollama          echo FROM {gguf} > Modelfile && ollama create {name} -f Modelfile"""
