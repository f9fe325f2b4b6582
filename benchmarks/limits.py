"""How near sampling and update come to the limits: arithmetic, and on a GPU bandwidth.

    OMP_NUM_THREADS=1 python benchmarks/limits.py [--quick]

The limit is a bare product of matrices of the same size, measured in turn with the work: as many
rows as the work has at once, times the largest weight of a layer. The work's own products are
counted by torch's FlopCounterMode. Decoding on a GPU reads all weights, and the cache, once for
every token of a row; its limit is a copy within the GPU's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from growth import Work, learn, with_adapters
from measuring import (
    CUDA,
    LeftOut,
    Row,
    Size,
    Table,
    asked,
    benchmark,
    measured_base,
    measured_shape,
    paired,
)
from torch.utils.flop_counter import FlopCounterMode

from kit.model.base import Base
from kit.model.lora import TRAINED
from kit.model.policy import Policy
from kit.model.rollout import Sampling, count_tokens, sample

PRODUCTS = 50  # of the bare product, so that it takes a measurable time
COPIED = 2**28  # bytes, more than any cache holds


def main() -> None:
    benchmark(str(__doc__), (arithmetic, bandwidth))


def arithmetic(size: Size) -> Table:
    """Share of the arithmetic limit"""
    with measured_base(size) as base:
        policy = with_adapters(base, 1)
        work = Work(size.prompts, size.group, size.tokens)
        at_once = min(16, size.prompts * size.group) * (size.tokens + 40)
        rows = [
            share("sampling", lambda: decode(policy, size), base, work.prompts * work.group, size),
            share("update", lambda: learn(policy, work), base, at_once, size),
        ]
    return Table("", rows)


def share(name: str, act: Callable[[], Any], base: Base, rows: int, size: Size) -> Row:
    """Operations per second of the work and of the product with as many rows."""
    operations = counted(act)
    product, in_product = bare_product(base, rows, measured_shape(size))

    def work(_: int) -> float:
        act()
        return operations

    def limit(_: int) -> float:
        for _ in range(PRODUCTS):
            product()
        return PRODUCTS * in_product

    speeds = paired({"work": work, "limit": limit}, size.runs)
    pairs = zip(speeds["work"], speeds["limit"], strict=True)
    return {
        "": name,
        "GFLOP": operations / 1e9,
        "GFLOP/s": median(speeds["work"]) / 1e9,
        "a product of as many rows, GFLOP/s": median(speeds["limit"]) / 1e9,
        "share": median(a / b for a, b in pairs),
    }


def counted(act: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


def bare_product(base: Base, rows: int, shape: Any) -> tuple[Callable[[], Any], int]:
    """(rows, hidden) times (hidden, intermediate) in the model's type, and its operations."""
    options: Any = {"device": base.hardware.device, "dtype": base.hardware.dtype}
    left = torch.randn(rows, shape.hidden, **options)
    weight = torch.randn(shape.intermediate, shape.hidden, **options)
    operations = 2 * rows * shape.hidden * shape.intermediate
    return lambda: torch.nn.functional.linear(left, weight), operations


def decode(policy: Policy, size: Size) -> int:
    requests = asked(policy.base, size.prompts, size.group, 0, TRAINED)
    return count_tokens(sample(policy, requests, Sampling(size.tokens)))


def bandwidth(size: Size) -> Table:
    """Share of the memory's bandwidth that decoding takes"""
    if not CUDA:
        raise LeftOut("it is the limit of decoding on a GPU, and there is none here")
    with measured_base(size) as base:
        policy = with_adapters(base, 1)
        read = bytes_read(base, size)
        source = torch.empty(COPIED, dtype=torch.uint8, device=base.hardware.device)
        target = torch.empty_like(source)

        def work(_: int) -> float:
            decode(policy, size)
            return read

        def limit(_: int) -> float:
            for _ in range(PRODUCTS):
                target.copy_(source)
            return 2 * PRODUCTS * COPIED

        speeds = paired({"decoding": work, "a copy": limit}, size.runs)
    pairs = zip(speeds["decoding"], speeds["a copy"], strict=True)
    row = {name + ", GB/s": median(values) / 1e9 for name, values in speeds.items()}
    row |= {"share": median(a / b for a, b in pairs)}
    return Table("", [row], f"{read / 1e9:.2f} GB read.", runs=speeds)


def bytes_read(base: Base, size: Size) -> float:
    """Weights once for every token, and the cache as it grows from the prompts'."""
    shape = measured_shape(size)
    weights = shape.linear_size + shape.vocab * shape.hidden
    prompt = len(asked(base, 1, 1, 0)[0].prompt)
    in_cache = size.prompts * size.group * (prompt + size.tokens / 2)
    item = base.hardware.dtype.itemsize
    return size.tokens * (weights * item + in_cache * shape.cache_per_token(item))


if __name__ == "__main__":
    main()
