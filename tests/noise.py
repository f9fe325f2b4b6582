"""Adapters that say something: a fresh LoRA's B matrices are zero, so that it is the base."""

from __future__ import annotations

import torch
from torch import nn


def add_noise(model: nn.Module, seed: int) -> None:
    """Fill the B matrices of every adapter, N(0, 0.05²), the same numbers for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.data = noise.to(parameter.device)
