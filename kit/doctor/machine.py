"""The card and its driver: what it is, whether this torch can use it, how much of it is free."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import torch

from kit.cards import CONTEXT, Card, read_cards
from kit.config import ModelConfig
from kit.doctor.findings import Finding, judged, measured, not_measured
from kit.doctor.patient import Patient
from kit.estimate.memory import GIB
from kit.model.hardware import choose_hardware

LEAST_FREE = 0.9  # share of the memory, where nothing else runs


def card(patient: Patient) -> Iterator[Finding]:
    """What torch computes on, and whether it has kernels for it."""
    if patient.device.type == "cpu":
        yield _no_card(read_cards())
        return
    properties = torch.cuda.get_device_properties(patient.device)
    count = torch.cuda.device_count()
    others = f"; {count} cards, of which the first is examined" if count > 1 else ""
    yield measured(
        "card",
        f"{properties.name}, capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors{others}",
        name=properties.name,
        capability=[properties.major, properties.minor],
        multiprocessors=properties.multi_processor_count,
        count=count,
    )
    yield _kernels(properties.major, properties.minor)


def precision(patient: Patient) -> Iterator[Finding]:
    """What `model.dtype=auto` chooses here."""
    hardware = choose_hardware(ModelConfig(id="embedded"), patient.device)
    chosen = str(hardware.dtype).removeprefix("torch.")
    wanted = "float32"
    if patient.device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(patient.device)
        wanted = "bfloat16" if major >= 8 else "float16"
    yield judged(
        "model.dtype=auto",
        chosen == wanted,
        f"{chosen}: {hardware.reason.partition(': ')[2]}",
        wanted,
        "bfloat16 from capability 8.0 on, float16 with a loss scale before, float32 without a card",
    )


def driver(patient: Patient) -> Iterator[Finding]:
    """Whether the driver is new enough for the CUDA that torch was built for."""
    built = torch.version.cuda
    if patient.device.type == "cpu" or built is None:
        return
    speaks = driver_cuda()
    if speaks is None:
        yield not_measured("driver", "its library libcuda.so.1 does not say its version")
        return
    names = {found.driver for found in read_cards()}
    named = f"driver {', '.join(names)}, " if names else ""
    major = int(built.partition(".")[0])
    yield judged(
        "driver",
        speaks[0] >= major,
        f"{named}CUDA {speaks[0]}.{speaks[1]}",
        f"CUDA {major}.0 or newer",
        f"torch was built for CUDA {built}; a driver of the same major version or a newer one runs "
        "it. Update the driver, or install a torch for an older CUDA",
        driver_cuda=list(speaks),
        torch_cuda=built,
    )


def memory(patient: Patient) -> Iterator[Finding]:
    """Free and total memory, and what CUDA itself takes of it."""
    if patient.device.type == "cpu":
        return
    torch.zeros(1, device=patient.device)  # makes the context
    free, total = torch.cuda.mem_get_info(patient.device)
    reserved = torch.cuda.memory_reserved(patient.device)
    yield judged(
        "free memory",
        free >= LEAST_FREE * total,
        f"{free / GIB:.2f} of {total / GIB:.2f} GiB",
        f"at least {LEAST_FREE:.0%}",
        "less, and something else uses the card: nvidia-smi names it",
        free=free,
        total=total,
    )
    context = total - free - reserved
    yield judged(
        "CUDA context",
        context <= CONTEXT,
        f"{context / GIB:.2f} GiB in use beside what torch holds",
        f"at most {CONTEXT / GIB:.1f} GiB",
        "what kit estimate allows for context, kernels and workspaces; other programs count too",
        bytes=context,
    )


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver speaks, as (major, minor); None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _no_card(there: list[Card]) -> Finding:
    """No card, or one that torch cannot use, with the reason."""
    if not there:
        return not_measured(
            "card",
            "there is no GPU here, so the versions and a step of the embedded model are checked, "
            "and nothing else",
        )
    names = ", ".join(dict.fromkeys(found.name for found in there))
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return not_measured("card", f"CUDA_VISIBLE_DEVICES hides {names}")
    return judged("card", False, f"torch cannot use {names}", "torch uses it", _obstacle(there))


def _obstacle(there: list[Card]) -> str:
    """Why torch sees no card, and what to do."""
    built, speaks = torch.version.cuda, driver_cuda()
    if built is None:
        return (
            f"torch {torch.__version__} was built without CUDA; install one that was "
            "(pytorch.org, Get Started)"
        )
    if speaks is not None and speaks[0] < int(built.partition(".")[0]):
        return (
            f"driver {there[0].driver} is older than torch's CUDA: it speaks CUDA {speaks[0]}."
            f"{speaks[1]}, torch {torch.__version__} was built for {built}. Update the driver, or "
            "install a torch for its CUDA (pytorch.org, Previous Versions)"
        )
    return (
        f"torch {torch.__version__} is for CUDA {built}, and the driver {there[0].driver} speaks "
        f"{'.'.join(map(str, speaks)) if speaks else 'none'}: restart the machine or the container"
        ", or install the driver anew"
    )


def _kernels(major: int, minor: int) -> Finding:
    """Whether torch was compiled for this card."""
    compiled = torch.cuda.get_arch_list()
    if not compiled:
        return not_measured("torch's kernels", "this torch does not say what it was compiled for")
    numbers = [int("".join(filter(str.isdigit, name.partition("_")[2]))) for name in compiled]
    # code for an older card of the same generation runs, and so does what is compiled when loaded
    fits = any(n // 10 == major and n % 10 <= minor for n in numbers) or any(
        name.startswith("compute_") and n <= 10 * major + minor
        for name, n in zip(compiled, numbers, strict=True)
    )
    return judged(
        "torch's kernels",
        fits,
        f"compiled for {', '.join(compiled)}",
        f"code that capability {major}.{minor} runs",
        "" if fits else "install an older torch, or choose another card",
    )
