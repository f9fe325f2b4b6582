"""Choose device, compute type, attention and backend in one place, with the reason; read memory."""

from __future__ import annotations

import logging
import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
import torch

from kit.cards import CONTEXT
from kit.config import ModelConfig, memory_size
from kit.errors import ModelError
from kit.model.attention import GROUPED

log = logging.getLogger(__name__)

MAKE_ROOM = (
    "end what else uses it, take a smaller model, or model.quantization=nf4 (`kit estimate` says "
    "what fits)"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and in which precision the model computes, and why."""

    device: torch.device
    dtype: torch.dtype
    attention: str
    reason: str
    backend: Literal["transformers", "unsloth"] = "transformers"

    def without_unsloth(self, because: str) -> Hardware:
        """The same with the transformers backend, for a reason found while loading."""
        reason = f"{self.reason}, but {because}; backend transformers instead"
        return replace(self, backend="transformers", reason=reason)

    def grouped(self) -> Hardware:
        """The same with the kit's attention, for a model that it suits."""
        reason = f"{self.reason}; keys are not repeated while decoding"
        return replace(self, attention=GROUPED, reason=reason)

    @property
    def in_words(self) -> str:
        """Device and type: "Tesla T4 in float16"."""
        return f"{_device_name(self.device)} in {str(self.dtype).removeprefix('torch.')}"

    @property
    def scales_loss(self) -> bool:
        """float16 gradients overflow and underflow without loss scaling."""
        return self.dtype == torch.float16


def choose_hardware(config: ModelConfig, device: torch.device | None = None) -> Hardware:
    """Pick device, dtype, attention and backend for this machine and configuration.

    `device` is the process's own under a distributed launcher; None: the first GPU, else the CPU.
    Raises ModelError when the configuration asks for what this machine cannot do.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if config.dtype != "auto":
        dtype, why = DTYPES[config.dtype], f"{config.dtype} was asked for"
    elif has_bfloat16:
        dtype, why = torch.bfloat16, "this GPU computes in bfloat16"
    elif device.type == "cuda":
        dtype, why = torch.float16, "this GPU has no bfloat16; losses are scaled against overflow"
    else:
        dtype, why = torch.float32, "float32 is the fastest type of the CPU kernels"
    if device.type == "cpu" and dtype == torch.float16:
        raise ModelError("model.dtype=float16 needs a GPU; on the CPU use float32 or bfloat16")
    name = _device_name(device)
    if device.type == "cuda" and dtype == torch.bfloat16 and not has_bfloat16:
        log.warning(
            "model.dtype=bfloat16: %s has no bfloat16 and imitates it, many times slower than "
            "float16; set model.dtype=auto",
            name,
        )
    attention = "sdpa" if config.attention == "auto" else config.attention
    if attention == "flash_attention_2" and device.type != "cuda":
        raise ModelError("model.attention=flash_attention_2 needs a CUDA GPU; use sdpa")
    backend, because = _choose_backend(config, device)
    reason = f"{name}: {why}; attention {attention}; backend {backend}: {because}"
    return Hardware(device, dtype, attention, reason, backend)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _choose_backend(
    config: ModelConfig, device: torch.device
) -> tuple[Literal["transformers", "unsloth"], str]:
    """The backend and why; a model that Unsloth cannot load is found out when it is loaded."""
    if config.backend == "transformers":
        return "transformers", "it was asked for"
    obstacle = _obstacle_to_unsloth(config, device)
    if obstacle is None:
        why = "it was asked for" if config.backend == "unsloth" else "it is installed"
        return "unsloth", why
    if config.backend == "unsloth":
        raise ModelError(f"model.backend=unsloth: {obstacle}; or set model.backend=transformers")
    return "transformers", f"for unsloth, {obstacle}"


def _obstacle_to_unsloth(config: ModelConfig, device: torch.device) -> str | None:
    """What is missing, and what to do about it."""
    if device.type != "cuda":
        return "a CUDA GPU is needed and there is none here"
    if find_spec("unsloth") is None:
        return "install it with `pip install -r requirements-gpu.txt`"
    if config.quantization == "int8":
        return "model.quantization must be nf4 or none, not int8"
    if config.attention != "auto":
        return f"model.attention must be auto (it has kernels of its own), not {config.attention}"
    return None


def no_room(name: str, error: Exception) -> ModelError:
    """What to raise for a model that does not fit; `error` says of which memory."""
    where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
    return ModelError(f"not enough {where} memory to load {name!r}; {MAKE_ROOM}")


class _Limit:
    """What `limited` leaves to PyTorch: of the process, as PyTorch's own limit is."""

    size: float = math.inf  # bytes


@contextmanager
def limited(budget: str | None, device: torch.device | None = None) -> Iterator[None]:
    """Inside, PyTorch takes no more than this of a GPU; what runs out then is cut up as ever.

    `device` None: the GPU where there is one. On the CPU nothing is held to a budget.
    """
    if budget is None or (device.type != "cuda" if device else not torch.cuda.is_available()):
        yield
        return
    _, total = torch.cuda.mem_get_info(device)
    _Limit.size = min(total, memory_size(budget) - CONTEXT)
    torch.cuda.set_per_process_memory_fraction(_Limit.size / total, device)
    try:
        yield
    finally:
        _Limit.size = math.inf
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def free_memory(device: torch.device) -> int:
    """Bytes a new tensor on this device may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        cached = reserved - torch.cuda.memory_allocated(device)
        return int(max(0, min(free, _Limit.size - reserved)) + cached)
    return psutil.virtual_memory().available


def empty_cache(device: torch.device) -> None:
    """Give back what the allocator holds but nothing uses, after memory ran out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement for `peak_memory_mb` (on macOS the process's whole life counts)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Most memory in use since the last reset, in MiB: of the GPU, or of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
