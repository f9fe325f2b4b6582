"""bitsandbytes' backend for CUDA, its C functions answered by the CPU.

Its Python runs as it is: its checks, its choice of kernels, its allocations. The C functions get
raw pointers. The fused 4-bit product multiplies unrounded weights and adds up in float32.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
calls: Counter[str] = Counter()  # of C functions, by name


def install() -> None:
    """Load bitsandbytes' backend for CUDA with these functions in place of its library."""
    from bitsandbytes import cextension

    cpu = cextension.lib
    cextension.lib = Library(cpu)
    import bitsandbytes.backends.cuda.ops  # noqa: F401

    cextension.lib = cpu


class Library:
    """What bitsandbytes calls `lib`."""

    def __init__(self, cpu: Any) -> None:
        self.functions: dict[str, Callable[..., None]] = {
            "cadam32bit_grad_fp32": _adam_32bit,
            "cadam_8bit_blockwise_grad_fp32": _adam_8bit,
        }
        for name, dtype in DTYPES.items():
            plain = getattr(cpu, f"cdequantize_blockwise_cpu_{name}")
            nf4 = getattr(cpu, f"cdequantize_blockwise_cpu_nf4_{name}")
            quantize = getattr(cpu, f"cquantize_blockwise_cpu_{name}", None)
            self.functions |= {
                f"cdequantize_blockwise_{name}": partial(_dequantize, plain),
                f"cdequantize_blockwise_{name}_nf4": partial(_dequantize_nf4, nf4),
                f"cquantize_blockwise_{name}": partial(_quantize, quantize),
                f"cquantize_blockwise_{name}_nf4": partial(_quantize_nf4, dtype),
                f"cgemm_4bit_{name}": partial(_product, cpu, dtype),
            }

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            calls[name] += 1
            if name not in self.functions:
                raise NotImplementedError(f"{name} is not pretended")
            self.functions[name](*arguments)

        return call


def _tensor(pointer: Any, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The memory behind a raw pointer."""
    size = count * dtype.itemsize
    buffer = (ctypes.c_uint8 * size).from_address(_plain(pointer))
    return torch.frombuffer(buffer, dtype=dtype)


def _plain(value: Any) -> Any:
    """The number that ctypes has wrapped."""
    return getattr(value, "value", value)


def _pointers(*values: Any) -> tuple[ctypes.c_void_p, ...]:
    return tuple(ctypes.c_void_p(_plain(value)) for value in values)


def _sizes(*values: Any) -> tuple[ctypes.c_longlong, ...]:
    return tuple(ctypes.c_longlong(_plain(value)) for value in values)


def _dequantize(run, code, packed, scales, out, block, count, stream) -> None:
    run(*_pointers(code, packed, scales, out), *_sizes(block, count))


def _dequantize_nf4(run, code, packed, scales, out, block, count, stream=None) -> None:
    run(*_pointers(packed, scales, out), *_sizes(block, 1, count))


def _quantize(run, code, values, scales, out, block, count) -> None:
    run(*_pointers(code, values, scales, out), *_sizes(block, count))


def _quantize_nf4(dtype, code, values, scales, out, block, count) -> None:
    block, count = _plain(block), _plain(count)
    values = _tensor(values, count, dtype)
    packed, found = torch.ops.bitsandbytes.quantize_4bit(values, block, "nf4", torch.uint8)
    _tensor(out, packed.numel(), torch.uint8).copy_(packed.flatten())
    _tensor(scales, found.numel(), torch.float32).copy_(found)


def _product(cpu: Any, dtype: torch.dtype, *arguments: Any) -> None:
    """x (m, k) times the transposed weight (n, k), whose scales may be in 8 bits themselves."""
    x, packed, scales, scales8, code, offset, out, bias, m, n, k, block, _, _ = arguments
    blocks = n * k // block
    found = torch.empty(blocks)
    if scales8:
        plain = cpu.cdequantize_blockwise_cpu_fp32
        _dequantize(plain, code, scales8, scales, found.data_ptr(), 256, blocks, None)
        found += _tensor(offset, 1, torch.float32)
    else:
        found.copy_(_tensor(scales, blocks, torch.float32))
    weight = torch.empty(n, k)
    nf4 = cpu.cdequantize_blockwise_cpu_nf4_fp32
    _dequantize_nf4(nf4, None, packed, found.data_ptr(), weight.data_ptr(), block, n * k)
    result = _tensor(x, m * k, dtype).view(m, k).float() @ weight.T
    if bias:
        result += _tensor(bias, n, dtype).float()
    _tensor(out, m * n, dtype).copy_(result.to(dtype).flatten())


def _adam_32bit(*arguments: Any) -> None:
    gradient, weight, first, second, _, _, _, *numbers, count = map(_plain, arguments)
    tensors = [_tensor(p, count, torch.float32) for p in (gradient, weight, first, second)]
    *numbers, skip = numbers
    torch.ops.bitsandbytes.optimizer_update_32bit(
        "adam", *tensors, None, 0.0, 0.0, *numbers, bool(skip)
    )


def _adam_8bit(*arguments: Any) -> None:
    weight, gradient, *states = map(_plain, arguments)
    first, second, b1, b2, b3, alpha, eps, step, rate, map1, map2, *rest = states
    scales1, scales2, decay, scale, skip, count = rest
    blocks = -(-count // 256)
    torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
        "adam",
        _tensor(gradient, count, torch.float32),
        _tensor(weight, count, torch.float32),
        _tensor(first, count, torch.uint8),
        _tensor(second, count, torch.uint8),
        *(b1, b2, b3, alpha, eps, step, rate),
        _tensor(map1, 256, torch.float32),
        _tensor(map2, 256, torch.float32),
        _tensor(scales1, blocks, torch.float32),
        _tensor(scales2, blocks, torch.float32),
        *(decay, scale, bool(skip)),
    )
