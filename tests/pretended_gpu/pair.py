"""`kit …` as one of several processes with a pretended card each, for `accelerate launch -m`.

Gloo stands in for NCCL: what it is given of a card goes through the machine's memory.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["LOCAL_RANK"] = "0"  # each process sees its own card alone

from tests.pretended_gpu.device import gpu  # noqa: F401, I001  # before torch

import torch.distributed as dist

from kit.cli import main


def through_memory(collective: Any) -> Any:
    """The collective, for tensors of the card too."""

    def call(tensor: Any, *arguments: Any, **named: Any) -> None:
        copy = tensor.cpu()
        collective(copy, *arguments, **named)
        tensor.copy_(copy)

    return call


if __name__ == "__main__":
    dist.init_process_group("gloo")
    barrier = dist.barrier
    dist.barrier = lambda *arguments, **named: barrier()  # it would name a device of NCCL
    dist.all_reduce = through_memory(dist.all_reduce)
    status = main(sys.argv[1:])
    dist.destroy_process_group()
    sys.exit(status)
