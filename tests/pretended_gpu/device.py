"""A GPU that is pretended: torch's device "cuda" in this machine's memory, as one of two cards.

`python -m pytest -p tests.pretended_gpu.device …` loads it before anything imports torch, which
asks for its CUDA hooks once; PRETENDED_GPU names the card. What torch.cuda is asked for by the kit
and its libraries is answered for that card, what is computed is computed by the CPU's kernels.
Written for the versions in constraints.txt: it reaches into torch's and bitsandbytes' insides.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_name("device.cpp")
CACHE = Path(__file__).parents[2] / "build" / "pretended_gpu"
CARDS = {  # name, capability, bytes, multiprocessors
    "T4": ("Tesla T4", (7, 5), int(14.56 * 2**30), 40),
    "A100": ("NVIDIA A100-SXM4-40GB", (8, 0), int(39.4 * 2**30), 108),
}


class Asked(NamedTuple):
    """Counts."""

    launches: int  # of kernels
    waits: int  # of the host for what the card has computed
    uploads: int  # of numbers that were the host's

    def since(self, before: Asked) -> Asked:
        return Asked(*(now - then for now, then in zip(self, before, strict=True)))


class Card:
    """The card, and what happens to its memory."""

    def __init__(self, library: ctypes.CDLL, card: str) -> None:
        self.name, self.capability, self.memory, self.multiprocessors = CARDS[card]
        for name in ("gpu_allocated", "gpu_peak", "gpu_launches", "gpu_waits", "gpu_uploads"):
            getattr(library, name).restype = ctypes.c_int64
        for name in ("gpu_set_limit", "gpu_fail_after"):
            getattr(library, name).argtypes = [ctypes.c_int64]
        self._library = library
        self.limit(self.memory)

    @property
    def allocated(self) -> int:
        """Bytes in use, in blocks of 512."""
        return self._library.gpu_allocated()

    @property
    def peak(self) -> int:
        return self._library.gpu_peak()

    @property
    def asked(self) -> Asked:
        """What the host has asked of the card since it was made."""
        library = self._library
        return Asked(library.gpu_launches(), library.gpu_waits(), library.gpu_uploads())

    def reset_peak(self) -> None:
        self._library.gpu_reset_peak()

    def limit(self, size: int) -> None:
        """Let the card have this many bytes."""
        self.memory = size
        self._library.gpu_set_limit(size)

    def restrict(self, share: float) -> None:
        """Let PyTorch have this share of the card, which stays as large as it is."""
        self._library.gpu_set_limit(int(share * self.memory))

    def fail_after(self, allocations: int) -> None:
        """The allocation after so many raises torch.OutOfMemoryError, once; -1: none."""
        self._library.gpu_fail_after(allocations)


def build() -> Path:
    """The compiled device, of this source for this torch; half a minute the first time."""
    key = hashlib.sha256(metadata.version("torch").encode() + SOURCE.read_bytes()).hexdigest()
    built = CACHE / f"device-{key[:16]}.so"
    if built.exists():
        return built
    CACHE.mkdir(parents=True, exist_ok=True)
    torch = Path(str(find_spec("torch").origin)).parent
    includes = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
    libraries = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
    partial = built.with_suffix(f".{os.getpid()}")
    options = ["-O1", "-g0", "-w", "-shared", "-fPIC", "-std=c++20", "-o", str(partial)]
    subprocess.run(["g++", *options, *includes, str(SOURCE), *libraries], check=True)
    os.replace(partial, built)
    return built


def install(card: str) -> Card:
    """Load the device, and let torch and bitsandbytes believe in it."""
    if "torch" in sys.modules:
        raise ImportError("torch was imported before the pretended GPU")
    library = ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL)
    import torch._dynamo  # builds its table of functions while they are torch's own

    gpu = Card(library, card)
    import bitsandbytes  # noqa: F401  # as on the CPU: its library for CUDA is not looked for

    _answer_for(gpu, torch)
    _move_storages(torch)
    from tests.pretended_gpu import kernels

    kernels.install()
    return gpu


def _answer_for(gpu: Card, torch: ModuleType) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        pass

    def zero(*_: Any) -> int:
        return 0

    def one() -> int:
        return 1

    def yes() -> bool:
        return True

    def random_state(*_: Any) -> Any:
        return torch.zeros(16, dtype=torch.uint8)

    def allocated(_: Any = None) -> int:
        return gpu.allocated

    def peak(_: Any = None) -> int:
        return gpu.peak

    def properties(_: Any = None) -> SimpleNamespace:
        return SimpleNamespace(
            name=gpu.name,
            major=gpu.capability[0],
            minor=gpu.capability[1],
            total_memory=gpu.memory,
            multi_processor_count=gpu.multiprocessors,
            gcnArchName="",
            warp_size=32,
            max_threads_per_multi_processor=1024,
            regs_per_multiprocessor=65536,
            L2_cache_size=4 * 2**20,
        )

    cuda, inside = torch.cuda, torch._C
    for name in (
        *("_lazy_init", "init", "set_device", "synchronize", "empty_cache", "ipc_collect"),
        *("manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all"),
    ):
        setattr(cuda, name, nothing)
    for name in ("is_available", "is_initialized", "_is_compiled"):
        setattr(cuda, name, yes)
    cuda.device_count, cuda.current_device = one, zero
    cuda.get_device_name = lambda device=None: gpu.name
    cuda.get_device_capability = lambda device=None: gpu.capability
    cuda.get_device_properties = properties
    cuda.get_arch_list = lambda: ["sm_75", "sm_80"]
    cuda.mem_get_info = lambda device=None: (gpu.memory - gpu.allocated, gpu.memory)
    cuda.set_per_process_memory_fraction = lambda share, device=None: gpu.restrict(share)
    cuda.memory_allocated = cuda.memory_reserved = allocated
    cuda.max_memory_allocated = cuda.max_memory_reserved = peak
    cuda.reset_peak_memory_stats = lambda device=None: gpu.reset_peak()
    cuda.get_rng_state = random_state
    cuda.get_rng_state_all = lambda: [random_state()]
    cuda.is_bf16_supported = lambda including_emulation=True: (
        gpu.capability[0] >= 8 or including_emulation
    )
    cuda.is_current_stream_capturing = lambda: False
    cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0, synchronize=nothing)
    cuda.device = cuda.device_of = _Device
    inside._cuda_getDeviceCount = one
    inside._cuda_getDevice = zero
    inside._cuda_setDevice = nothing
    inside._cuda_getCurrentRawStream = zero
    inside._cuda_exchangeDevice = inside._cuda_maybeExchangeDevice = zero
    torch.accelerator.is_available = yes
    torch.accelerator.synchronize = torch.accelerator.empty_cache = nothing


class _Device:
    """torch.cuda.device: there is only one."""

    def __init__(self, device: Any) -> None:
        self.idx = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


def _move_storages(torch: ModuleType) -> None:
    """Storages that go to the device by way of tensors: theirs is compiled out of a CPU's torch."""

    def tensor_of(storage: Any) -> Any:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def moved(storage: Any, device: Any, non_blocking: bool = False) -> Any:
        if storage.device.type == torch.device(device).type:
            return storage
        return tensor_of(storage).to(device).untyped_storage()

    torch.storage._to = torch._utils._to = moved
    torch.storage._StorageBase.clone = lambda self: tensor_of(self).clone().untyped_storage()


gpu = install(os.environ["PRETENDED_GPU"])
