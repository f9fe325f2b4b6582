"""The probe of an adapter: what it computed when it was saved, to be compared with later.

N prompts, P last positions of each, K likeliest tokens there, V vocabulary. probe.safetensors holds
the prompts' token ids, the K tokens, and their logits with the adapter and without it; its metadata
holds the settings they depend on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kit.adapters.fresh_process import last_logits, surroundings
from kit.errors import AdapterError, NotFiniteError, room_for
from kit.model.adapter_files import PROBE, adapter_sha256
from kit.model.attention import library_attention
from kit.model.hardware import DTYPES
from kit.model.policy import BASE, Policy
from kit.model.tokenizer import prompt_ids
from kit.reading import parse_json

QUESTIONS = (
    "Tom has 3 boxes with 12 apples each and gives 5 apples away. How many are left?",
    "A train goes 60 km in 45 minutes. How far does it go in 2 hours?",
    "What is 17 + 25?",
    "A book costs $14 and a pen costs a quarter of that. What do 2 books and 4 pens cost?",
    "Write the word 'seven' as a number.",
    "Name the three largest oceans.",
)
POSITIONS = 8
LIKELIEST = 64
SETTINGS: dict[str, Any] = {  # what every probe says
    **dict.fromkeys(("adapter_sha256", "dtype", "attention", "device", "processor"), str),
    **dict.fromkeys(("positions", "threads"), int),
    "questions": list,
    "versions": dict,
    "quantization": dict | None,
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Logits (N, P, K) of an adapter and of its base at the tokens `top` (N, P, K)."""

    settings: dict[str, Any]
    ids: list[list[int]]
    top: Tensor
    adapter: Tensor
    base: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.top, self.adapter, self.base)}
        if len(shapes) > 1 or self.top.dim() != 3 or self.top.shape[0] != len(self.ids):
            raise ValueError(f"shapes {sorted(shapes)} for {len(self.ids)} prompts")
        if self.top.dtype != torch.int64 or not self.top.numel() or self.top.min() < 0:
            raise ValueError("its likeliest tokens are no token ids")


def question_ids(tokenizer: Any) -> list[list[int]]:
    """Token ids of the questions, each as a chat."""
    return [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS]


def take_probe(policy: Policy) -> Probe:
    """Compute a few logits of the trained adapter, as it is, and of the base.

    Raises NotFiniteError, and OutOfMemoryError.
    """
    base = policy.base
    ids = question_ids(base.tokenizer)
    with (
        room_for("computing the probe of the adapter"),
        policy.sampling(),
        library_attention(policy.causal, base.hardware.attention) as attention,
    ):
        with policy.view(policy.trained):
            full = torch.stack([last_logits(policy.causal, row, POSITIONS) for row in ids])
        with policy.view(BASE):
            plain = torch.stack([last_logits(policy.causal, row, POSITIONS) for row in ids])
    if not (full.isfinite().all() and plain.isfinite().all()):
        raise NotFiniteError("the adapter gives NaN or infinite logits; it is not saved")
    values, top = full.topk(min(LIKELIEST, full.shape[-1]), dim=-1)
    settings = probe_settings(
        dtype=str(base.hardware.dtype).removeprefix("torch."),
        attention=attention,
        quantization=_quantization(base.model),
        stop_ids=sorted(base.stop_ids),
        **surroundings(base.hardware.device),
    )
    return Probe(settings, ids, top, values, plain.gather(-1, top))


def probe_settings(**settings: Any) -> dict[str, Any]:
    """What a probe's numbers depend on besides the weights."""
    return {"questions": list(QUESTIONS), "positions": POSITIONS, **settings}


def write_probe(probe: Probe, folder: Path) -> None:
    """Put it beside an adapter's files, with their hash."""
    tensors = {"top": probe.top, "adapter": probe.adapter, "base": probe.base}
    tensors |= {f"ids.{i}": torch.tensor(row) for i, row in enumerate(probe.ids)}
    settings = probe.settings | {"adapter_sha256": adapter_sha256(str(folder))}
    save_file(tensors, folder / PROBE, metadata={"settings": json.dumps(settings)})


def read_probe(folder: Path) -> Probe | None:
    """The probe of an adapter, None where there is none; AdapterError when it cannot be read."""
    path = folder / PROBE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            settings = parse_json((file.metadata() or {})["settings"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, kind in SETTINGS.items():
            if not isinstance(settings[name], kind):
                raise ValueError(f"{name} is {str(settings[name])[:80]!r}")
        if settings["dtype"] not in DTYPES:
            raise ValueError(f"dtype is {settings['dtype'][:80]!r}")
        ids = [tensors[f"ids.{i}"].tolist() for i in range(len(settings["questions"]))]
        return Probe(settings, ids, tensors["top"], tensors["adapter"], tensors["base"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"cannot read {path}: {error!r}; save the adapter anew") from error


def _quantization(model: Any) -> dict[str, Any] | None:
    config = getattr(model.config, "quantization_config", None)
    return None if config is None else config.to_dict()
