"""Several completions of a prompt in one row without padding, their prompt computed once.

N tokens: of every group its prompt, then its completions one after the other. C completions of a
group, P tokens of its prompt, T tokens of its longest completion; H query heads, K key heads, D
numbers a head. Every completion attends to the prompt and to itself; its positions go on from the
prompt's. All layers but attention see tokens alone, so nothing else has to know.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kit.model.batching import pad_right
from kit.model.shape import rounded_up

ALIGNED = 8  # numbers between the rows of a mask, or CUDA's kernels copy it at every use


@dataclass(frozen=True, slots=True)
class Group:
    """Where a prompt and its completions stand among the packed tokens, and who may look where."""

    prompt: slice
    places: Tensor  # (C, T) int64, of the completions' tokens; padding names a token that is there
    real: Tensor  # (n,) int64, of the completions' tokens in the flattened (C, T)
    prompt_mask: Tensor  # (P * H / K, P), 0 where a query may look and -inf elsewhere
    mask: Tensor  # (T * H / K, P + T)


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows ready for a forward pass as one row; B completions in all, S tokens of the longest."""

    input_ids: Tensor  # (1, N) int64
    position_ids: Tensor  # (1, N) int64
    targets: Tensor  # (B, S) int64, the completions' tokens
    mask: Tensor  # (B, S) bool, False on padding
    cells: Tensor  # (n,) int64, of the completions' tokens in the flattened (B, S)
    predictors: Tensor  # (n,) int64, the place among the N that predicts each of them
    groups: tuple[Group, ...]

    @property
    def inputs(self) -> dict[str, Any]:
        """What the backbone is called with. A mask of four dimensions is passed on unread."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.input_ids.new_zeros(1, 1, 1, 1),
            "groups": self.groups,
        }


def packed_batches(
    prompts: Sequence[Sequence[int]], lengths: Sequence[int], budget: int
) -> list[list[int]]:
    """Indices of rows, those with the same prompt side by side, within a budget of tokens.

    A group of C rows counts P + C * T: its prompt once, its completions with the padding that
    attention sees. One that is larger than the budget is cut, and a row that is larger goes alone.
    The largest groups are taken first.
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows_of.setdefault(tuple(prompt), []).append(i)
    pieces = [
        piece
        for prompt, rows in rows_of.items()
        for piece in _pieces(len(prompt), rows, lengths, budget)
    ]
    batches: list[list[int]] = []
    room: list[int] = []
    for size, rows in sorted(pieces, key=lambda piece: (-piece[0], piece[1][0])):
        fitting = (
            number
            for number, batch in enumerate(batches)
            # two parts of a group would be one again, and padded to the longest of both
            if size <= room[number] and all(prompts[i] != prompts[rows[0]] for i in batch)
        )
        number = next(fitting, None)
        if number is None:
            batches.append(rows)
            room.append(budget - size)
        else:
            batches[number] += rows
            room[number] -= size
    return batches


def _pieces(
    prompt: int, rows: Sequence[int], lengths: Sequence[int], budget: int
) -> Iterator[tuple[int, list[int]]]:
    """(tokens, rows) of the parts of a group that fit, longest rows first."""
    rows = sorted(rows, key=lambda i: (-lengths[i], i))
    while rows:
        longest = lengths[rows[0]] - prompt
        count = max(1, (budget - prompt) // max(1, longest))
        piece, rows = rows[:count], rows[count:]
        yield prompt + len(piece) * longest, piece


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    heads_per_key: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Packed:
    """Lay rows out as one; neighbours with the same prompt share it.

    `heads_per_key`: H / K. `dtype`: of the queries. Every prompt needs at least one token.
    """
    if not prompts or not all(prompts):
        raise ValueError("a batch needs at least one row, and every prompt at least one token")
    tokens: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    groups: list[Group] = []
    pairs = zip(prompts, completions, strict=True)
    for prompt, members in itertools.groupby(pairs, key=lambda pair: tuple(pair[0])):
        start, last = len(tokens), len(tokens) + len(prompt) - 1
        tokens += prompt
        positions += range(len(prompt))
        firsts, counts = [], []
        for _, completion in members:
            firsts.append(len(tokens))
            counts.append(len(completion))
            predictors += [last, *range(len(tokens), len(tokens) + len(completion))][
                : len(completion)
            ]
            tokens += completion
            positions += range(len(prompt), len(prompt) + len(completion))
        groups.append(_group(start, len(prompt), firsts, counts, heads_per_key, dtype, device))
    targets, mask = pad_right(completions, 0)
    return Packed(
        input_ids=torch.tensor([tokens], device=device),
        position_ids=torch.tensor([positions], device=device),
        targets=targets.to(device),
        mask=mask.bool().to(device),
        cells=torch.tensor(_cells([len(tokens) for tokens in completions]), device=device),
        predictors=torch.tensor(predictors, device=device),
        groups=tuple(groups),
    )


def _group(
    start: int,
    prompt: int,
    firsts: list[int],
    counts: list[int],
    heads_per_key: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Group:
    """`firsts` and `counts`: the place of each completion's first token, and how many it has."""
    longest = max(counts)
    steps = torch.arange(longest)
    lengths = torch.tensor(counts)[:, None]
    places = torch.tensor(firsts)[:, None] + torch.minimum(steps, lengths - 1)  # (C, T)
    return Group(
        prompt=slice(start, start + prompt),
        places=places.to(device),
        real=torch.tensor(_cells(counts), device=device),
        prompt_mask=_causal(prompt, prompt, heads_per_key, dtype, device),
        mask=_causal(longest, prompt + longest, heads_per_key, dtype, device),
    )


def _cells(counts: Sequence[int]) -> list[int]:
    """The places of tokens in rows of so many, padded to the longest and flattened."""
    width = max(counts)
    return [row * width + step for row, count in enumerate(counts) for step in range(count)]


def _causal(
    queries: int, keys: int, heads: int, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """(queries * heads, keys): the last query sees all keys, the one before it one less, …"""
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)
    width = rounded_up(keys, ALIGNED)
    mask = torch.zeros(queries, heads, width, dtype=dtype, device=device)[..., :keys]
    return mask.masked_fill_(hidden[:, None], -torch.inf).flatten(0, 1)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Group], scaling: float | None
) -> Tensor:
    """(1, H, N, D), (1, K, N, D) twice -> (1, N, H, D)."""
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    results = []
    for group in groups:
        asked, key_P, value_P = (states[None, group.prompt] for states in (query, key, value))
        results.append(_attend(asked, key_P, value_P, group.prompt_mask, scaling).flatten(0, 1))
        asked, *own = (_rows(states, group.places) for states in (query, key, value))
        keys, values = (
            torch.cat([shared.expand(len(mine), -1, -1, -1), mine], dim=1)
            for shared, mine in zip((key_P, value_P), own, strict=True)
        )  # (C, P + T, K, D)
        found = _attend(asked, keys, values, group.mask, scaling).flatten(0, 1)
        results.append(found.index_select(0, group.real))
    return torch.cat(results)[None]


def _rows(states: Tensor, places: Tensor) -> Tensor:
    """(N, H, D) at places (C, T) -> (C, T, H, D)."""
    return states.index_select(0, places.flatten()).unflatten(0, places.shape)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """(R, T, H, D), (R, S, K, D) twice -> (R, T, H, D). Heads that share a key are positions of one
    head: nothing is repeated, and the mask is the same for all rows."""
    rows, steps, heads, width = query.shape
    keys = key.shape[2]
    folded = query.view(rows, steps, keys, -1, width).transpose(1, 2).flatten(2, 3)
    found = scaled_dot_product_attention(
        folded, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=scaling
    )  # (R, K, T * H / K, D)
    return found.unflatten(2, (steps, -1)).transpose(1, 2).reshape(rows, steps, heads, width)
