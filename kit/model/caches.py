"""Keys and values of the tokens read so far: in place for good, or growing with each token.

R rows, K key heads, L positions, D numbers a head. Both kinds give `inputs` to the model's forward
pass, which puts the new token's keys in; `extend` says how many tokens more will come.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kit.model.shape import rounded_up


class StaticCache:
    """Room for every token from the beginning, at addresses that stay.

    What the model sees of it is the first rows and the first positions, a multiple of `grain`;
    of these it may look at the ones that hold a token of the row, by a mask that is added to the
    scores. transformers passes a mask with four dimensions through unread.
    """

    def __init__(self, read: DynamicCache, owner: Tensor, mask: Tensor, room: int, grain: int):
        """Copy what was `read` of the prompts, and empty it. `owner` (R,) has each row's prompt,
        `mask` (U, width) where the prompts are; `room` tokens can follow."""
        rows, self.filled = len(owner), mask.shape[1]
        size, self.grain = rounded_up(self.filled + room, grain), grain
        self.layers: list[tuple[Tensor, Tensor]] = []
        while read.layers:
            layer: Any = read.layers.pop(0)
            self.layers.append(
                (_spread(layer.keys, owner, size), _spread(layer.values, owner, size))
            )
        keys = self.layers[0][0]
        self.mask = keys.new_full((rows, 1, 1, size), -torch.inf)
        self.mask[:, 0, 0, : self.filled][mask[owner].bool()] = 0
        self.cursor = torch.full((1,), self.filled, device=keys.device)  # where the next token goes
        self.rows = rows
        self.extend(0)

    def extend(self, tokens: int) -> None:
        """So many tokens will be read next: let the model see that far."""
        self.filled += tokens
        self.length = rounded_up(self.filled, self.grain)
        self.seen = [tuple(x[: self.rows, :, : self.length] for x in both) for both in self.layers]
        self.seen_mask = self.mask[: self.rows, ..., : self.length]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, in this order, at the front."""
        self.rows, filled = len(rows), slice(self.filled)
        self.mask[: self.rows] = self.mask[rows]
        for stored in itertools.chain.from_iterable(self.layers):
            stored[: self.rows, :, filled] = stored[:, :, filled][rows]

    def inputs(self) -> dict[str, Any]:
        """For the model's forward pass of one more token of each row."""
        self.seen_mask.index_fill_(3, self.cursor, 0)
        return {"attention_mask": self.seen_mask, "past_key_values": self}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, ...]:
        """What transformers calls in every layer, with (R, K, 1, D) twice: all keys and values."""
        for stored, new in zip(self.seen[layer], (keys, values), strict=True):
            stored.index_copy_(2, self.cursor, new)
        return self.seen[layer]

    def advance(self) -> None:
        """The next token goes to the next position."""
        self.cursor += 1


class GrowingCache:
    """Transformers' own, one position longer after every token: for attention with windows and
    other additions, and for backends with a way of their own."""

    def __init__(self, read: DynamicCache, owner: Tensor, mask: Tensor):
        self.cache, self.mask = read, mask
        self.keep(owner)

    @property
    def length(self) -> int:
        """Positions that have been read."""
        return self.mask.shape[1]

    def extend(self, tokens: int) -> None:
        """It makes room as it goes."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, in this order."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def inputs(self) -> dict[str, Any]:
        """For the model's forward pass of one more token of each row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return {"attention_mask": self.mask, "past_key_values": self.cache}

    def advance(self) -> None:
        """The forward pass has done so."""


def _spread(prompts: Tensor, owner: Tensor, size: int) -> Tensor:
    """(U, K, width, D) -> (R, K, size, D), zero after the prompt: a masked NaN would be none."""
    stored = prompts.new_zeros(len(owner), prompts.shape[1], size, prompts.shape[3])
    stored[:, :, : prompts.shape[2]] = prompts[owner]
    return stored
