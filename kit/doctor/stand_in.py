"""A checkpoint of a model's real architecture with random weights, for where its own are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from kit.config import EMBEDDED_PATH, ModelConfig
from kit.errors import ModelError
from kit.model.shape import find_shape

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SPREAD = 0.02  # standard deviation of the weights, as models are initialised
INDEX = "model.safetensors.index.json"


def write_stand_in(model: ModelConfig, folder: Path, device: torch.device) -> None:
    """Write the checkpoint, with the embedded model's tokenizer; drawn on the device, part by part.

    Raises ModelError where the architecture is not known without the hub, or the disk is too full.
    """
    settings = _settings(model)
    with torch.device("meta"):
        plan = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).state_dict()
    if settings.tie_word_embeddings:
        plan.pop("lm_head.weight", None)
    size = sum(tensor.nbytes for tensor in plan.values())
    if (free := shutil.disk_usage(folder).free) < 1.1 * size:
        raise ModelError(
            f"random weights of {model.id} take {size / 2**30:.1f} GiB of the disk, which has "
            f"{free / 2**30:.1f} GiB left; free some, or set TMPDIR"
        )
    settings.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(EMBEDDED_PATH / name, folder)
    files = dict(_write_parts(plan, folder, device))
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _write_parts(
    plan: dict[str, Tensor], folder: Path, device: torch.device
) -> Iterator[tuple[str, str]]:
    """A file for each layer and for what is between them; yields weights and their files."""
    torch.manual_seed(0)
    for number, (_, names) in enumerate(groupby(plan, key=lambda name: name.split(".")[:3])):
        file = f"model-{number:05}.safetensors"
        part = {name: _draw(name, plan[name], device) for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})
        yield from ((name, file) for name in part)


def _draw(name: str, planned: Tensor, device: torch.device) -> Tensor:
    """Random matrices; norms are ones and biases zeros, as when training begins."""
    drawn = torch.empty(planned.shape, dtype=planned.dtype, device=device)
    if planned.ndim > 1:
        return drawn.normal_(0.0, SPREAD).cpu()
    return drawn.fill_(0.0 if name.endswith("bias") else 1.0).cpu()


def _settings(model: ModelConfig) -> PreTrainedConfig:
    """The model's own configuration where it is at hand, else one of its shape."""
    try:
        return AutoConfig.from_pretrained(
            model.source, revision=model.revision, local_files_only=True
        )
    except (OSError, ValueError):
        shape, _ = find_shape(model.id)  # without the hub, the kit's table of Qwen2.5
    return Qwen2Config(
        **shape.settings,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=2,
    )
