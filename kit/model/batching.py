"""Pack prompt + completion rows into micro-batches of a token budget.

B rows, S prompt and completion tokens of the longest row, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows ready for a forward pass, padded on the right."""

    input_ids: Tensor  # (B, S) int64, prompt then completion
    attention_mask: Tensor  # (B, S) int64, 0 on padding
    prompt_lengths: Tensor  # (B,) int64
    targets: Tensor  # (B, T) int64, the completion's tokens
    mask: Tensor  # (B, T) bool, False on padding; the stop token belongs to the completion

    def __post_init__(self) -> None:
        if self.input_ids.shape != self.attention_mask.shape:
            raise ValueError(
                f"attention_mask must be (B, S)={tuple(self.input_ids.shape)}, "
                f"got {tuple(self.attention_mask.shape)}"
            )
        if self.targets.shape != self.mask.shape:
            raise ValueError(
                f"mask must be (B, T)={tuple(self.targets.shape)}, got {tuple(self.mask.shape)}"
            )

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the backbone is called with."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    @property
    def cells(self) -> Tensor:
        """(N,) of the completions' tokens in the flattened (B, T)."""
        return self.mask.flatten().nonzero().squeeze(1)

    @property
    def predictors(self) -> Tensor:
        """(N,) the place in the flattened (B, S) whose hidden state predicts each of them."""
        rows, steps = self.mask.nonzero(as_tuple=True)
        return rows * self.input_ids.shape[1] + self.prompt_lengths[rows] + steps - 1


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows grouped so that rows x longest row <= budget, padding counted.

    Rows are taken longest first, so padding stays small and the first batch has the longest row.
    A row longer than the budget gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def make_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Batch:
    """Pad token lists into a Batch. Every prompt needs at least one token: it predicts the next."""
    if not prompts:
        raise ValueError("a batch needs at least one row")
    if any(not prompt for prompt in prompts):
        raise ValueError("every prompt needs at least one token")
    rows = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    input_ids, attention = pad_right(rows, pad_id)
    targets, mask = pad_right(completions, pad_id)
    return Batch(
        input_ids=input_ids.to(device),
        attention_mask=attention.to(device),
        prompt_lengths=torch.tensor([len(p) for p in prompts], device=device),
        targets=targets.to(device),
        mask=mask.bool().to(device),
    )


def pad_values(rows: Sequence[Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Per-token values of each row -> (B, T) float32, 0 on padding."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).float().to(device)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token lists -> ids (B, S) and mask (B, S), both int64."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return ids, mask
