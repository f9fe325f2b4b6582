"""Whether bitsandbytes' kernels for 4-bit weights agree, by the number of rows they multiply.

Up to 1,536 rows it may take a kernel that multiplies packed weights, beyond it unpacks them first:
sampling and training can compute the same product in two ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.doctor.findings import Finding, judged
from kit.doctor.patient import Patient
from kit.model.hardware import choose_hardware

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

ROWS = (1, 64, 512, 1536, 2048)
# in units of the type's rounding, relative to the root mean square of the product: the packed
# weights are not rounded to 16 bits before they are multiplied, and sums have another order
MEAN, LARGEST = 1.0, 16.0


def agreement(patient: Patient) -> Iterator[Finding]:
    """Differences between what bitsandbytes chooses and the unpacked product, for each row count.

    Of the two products of the MLP, whose sizes the recipe's model has.
    """
    if patient.device.type == "cpu":
        return
    chosen = choose_hardware(patient.recipe.model, patient.device).dtype
    dtype = chosen if chosen.itemsize == 2 else torch.float16
    for name in ("mlp.gate_proj", "mlp.down_proj"):
        linear = next(one for one in patient.shape.linears if one.name == name)
        packed, state = _packed(linear.outputs, linear.inputs, dtype, patient.device)
        for rows in ROWS:
            yield _compare(rows, packed, state, dtype, name.removeprefix("mlp."))


def _packed(
    outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, QuantState]:
    """A random weight in 4 bits as the kit loads them, and how it is packed."""
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, device=device).mul_(0.02).to(dtype)
    return quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")


def _compare(
    rows: int, packed: Tensor, state: QuantState, dtype: torch.dtype, name: str
) -> Finding:
    """One row count: bitsandbytes' choice against the product with the unpacked weight."""
    import bitsandbytes as bnb

    outputs, inputs = state.shape
    x = torch.randn(rows, inputs, device=packed.device).to(dtype)
    chosen = bnb.matmul_4bit(x, packed, quant_state=state).float()
    dense = bnb.functional.dequantize_4bit(packed, state).to(dtype)
    unpacked = torch.nn.functional.linear(x, dense).float()
    difference = (chosen - unpacked).abs()
    size = unpacked.square().mean().sqrt().item()
    largest, mean = difference.max().item() / size, difference.mean().item() / size
    unit = torch.finfo(dtype).eps
    kernel = "the same numbers" if largest == 0 else "another kernel"
    return judged(
        f"4-bit {name}, {rows:,} rows",
        mean <= MEAN * unit and largest <= LARGEST * unit,
        f"{kernel}: largest difference {largest:.2g}, mean {mean:.2g} of the product's size",
        f"at most {LARGEST * unit:.2g} and {MEAN * unit:.2g}",
        f"{inputs} × {outputs} in {str(dtype).removeprefix('torch.')}; what roundings come to",
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        largest=largest,
        mean=mean,
    )
