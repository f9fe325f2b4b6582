"""Decode a batch of rows: one step for every token, and a look now and then at who has finished.

R rows in the batch, V vocabulary. A step reads and writes buffers that stay where they are, asks
nothing of the host and sends nothing to the device, so that a GPU can replay it. Between two looks
rows that have finished are computed on, and nothing of that is used. The random numbers of a row
come from its own seed, so what it says does not depend on which rows it was batched with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kit.errors import NotFiniteError
from kit.model.attention import GROUPED
from kit.model.caches import GrowingCache, StaticCache
from kit.model.draw import Chosen, choose, uniform_numbers
from kit.model.finite import watched
from kit.model.graphs import Player
from kit.model.policy import BASE, NextLogits, Policy
from kit.model.prefill import Prompts, read_prompts
from kit.model.requests import Request, Sampling
from kit.model.shape import LENGTH_BUCKET, rounded_up

COMPACT_SHARE = 8  # rows are removed once they are 1/8 of the batch: removing copies it


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the host looks, and in which sizes it lets the batch shrink and the cache grow."""

    tokens: int  # between two looks; each makes the host wait for the device
    length: int  # the model sees a multiple of so many positions
    rows: int  # a multiple of so many rows stays in the batch


EVERY_TOKEN = Pace(1, 1, 1)  # on the CPU a look costs nothing, and what is masked is computed
ON_GPU = Pace(16, LENGTH_BUCKET, 8)


def pace_of(device: torch.device, *, watched: bool = False) -> Pace:
    """How to decode on a device; `watched`: somebody reads along."""
    if device.type != "cuda":
        return EVERY_TOKEN
    return replace(ON_GPU, tokens=1) if watched else ON_GPU


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a step reads and writes, a row each, in the order of the batch."""

    last: Tensor  # (R, 1) int64, the token to read
    positions: Tensor  # (R, 1) int64, its place in the text
    uniforms: Tensor  # (R, cap) float64 in [0, 1)
    tokens: Tensor  # (R, cap) int64, what was drawn
    logprobs: Tensor  # (R, cap) float32
    lengths: Tensor  # (R,) int64, of what counts
    finished: Tensor  # (R,) bool
    bad: Tensor  # (R,) bool, had logits that were not finite
    cut_off: Tensor  # (R,) float64, what top_p and top_k took away

    @classmethod
    def of(cls, requests: Sequence[Request], prompts: Prompts, cap: int) -> Buffers:
        """Nothing has been drawn."""
        device, rows = prompts.owner.device, len(requests)
        positions = prompts.lengths[prompts.owner][:, None]
        return cls(
            last=torch.zeros_like(positions),
            positions=positions - 1,
            uniforms=uniform_numbers([request.seed for request in requests], cap).to(device),
            tokens=torch.zeros(rows, cap, dtype=torch.long, device=device),
            logprobs=torch.zeros(rows, cap, device=device),
            lengths=torch.zeros(rows, dtype=torch.long, device=device),
            finished=torch.zeros(rows, dtype=torch.bool, device=device),
            bad=torch.zeros(rows, dtype=torch.bool, device=device),
            cut_off=torch.zeros(rows, dtype=torch.float64, device=device),
        )

    def first(self, rows: int) -> Buffers:
        """The same memory, its first rows alone."""
        return Buffers(*(getattr(self, field.name)[:rows] for field in fields(self)))

    def reorder(self, rows: Tensor) -> None:
        """Put these rows, which are all, into this order."""
        for field in fields(self):
            buffer = getattr(self, field.name)
            buffer.copy_(buffer[rows])

    def record(self, chosen: Chosen, column: Tensor, stops: Tensor) -> None:
        """Note what was drawn, in this column (1,); it is what is read next."""
        going = ~self.finished
        bad = going & chosen.logprobs.isnan()
        self.tokens.index_copy_(1, column, chosen.tokens[:, None])
        self.logprobs.index_copy_(1, column, chosen.logprobs[:, None])
        self.lengths.add_(going)
        self.bad.logical_or_(bad)
        if chosen.cut_off is not None:
            self.cut_off.add_(torch.where(going, chosen.cut_off, 0.0))
        self.finished.logical_or_(bad | (chosen.tokens[:, None] == stops).any(1))
        self.last.copy_(chosen.tokens[:, None])
        self.positions.add_(1)


class Decoding:
    """A batch on its way."""

    def __init__(
        self,
        next_logits: NextLogits,
        requests: Sequence[Request],
        prompts: Prompts,
        cache: StaticCache | GrowingCache,
        player: Player,
        stops: Tensor,
        sampling: Sampling,
        pace: Pace,
    ) -> None:
        self.next_logits, self.cache, self.stops = next_logits, cache, stops
        self.player, self.sampling, self.pace = player, sampling, pace
        self.adapters = [request.adapter for request in requests]  # of the rows in the batch
        self.order = list(range(len(requests)))  # the request of each row, those that left too
        self.all = Buffers.of(requests, prompts, sampling.max_new_tokens)
        self.batch = self.all
        self.column = torch.zeros(1, dtype=torch.long, device=stops.device)
        self._draw(prompts.logits[prompts.owner])
        self.drawn = 1

    def step(self) -> None:
        """Read the last token of each row, and draw the next."""
        logits = self.next_logits(
            self.adapters,
            input_ids=self.batch.last,
            position_ids=self.batch.positions,
            **self.cache.inputs(),
        )
        self.cache.advance()
        self._draw(logits)

    def _draw(self, logits: Tensor) -> None:
        uniforms = self.batch.uniforms.index_select(1, self.column).squeeze(1)
        self.batch.record(choose(logits, uniforms, self.sampling), self.column, self.stops)
        self.column.add_(1)

    def look(self) -> tuple[list[int], bool]:
        """The rows that go on, and whether the numbers of any went bad: the wait for the device."""
        finished, bad = torch.stack([self.batch.finished, self.batch.bad]).tolist()
        return [row for row, done in enumerate(finished) if not done], any(bad)

    def go_on(self, alive: list[int]) -> None:
        """Steps up to the next look, with these rows and as few others as the pace allows."""
        self._compact(alive)
        steps = min(self.pace.tokens, self.sampling.max_new_tokens - self.drawn)
        self.cache.extend(steps)
        for _ in range(steps):
            self.player.play(self.step, (len(self.adapters), self.cache.length))
        self.drawn += steps

    def _compact(self, alive: list[int]) -> None:
        rows = len(self.adapters)
        wanted = min(rows, rounded_up(len(alive), self.pace.rows))
        if (rows - wanted) * COMPACT_SHARE < rows:
            return
        ended = sorted(set(range(rows)) - set(alive))
        spare = wanted - len(alive)
        kept = sorted(alive + ended[:spare])
        order = torch.tensor(kept + ended[spare:], device=self.stops.device)
        self.batch.reorder(order)
        self.cache.keep(order[:wanted])
        self.order[:rows] = [self.order[row] for row in kept + ended[spare:]]
        self.adapters = [self.adapters[row] for row in kept]
        self.batch = self.all.first(wanted)


def decode(
    policy: Policy, requests: Sequence[Request], sampling: Sampling, pace: Pace
) -> Iterator[Decoding]:
    """Decode one batch of rows; yields the same object at every look, until all have finished.

    Raises NotFiniteError, with the request and the first place that goes wrong.
    """
    with policy.decoder([request.adapter for request in requests]) as next_logits:
        decoding = _begun(policy, next_logits, requests, sampling, pace)
        while True:
            alive, is_bad = decoding.look()
            if is_bad:
                break
            yield decoding
            if not alive or decoding.drawn == sampling.max_new_tokens:
                return
            decoding.go_on(alive)
    bad = _first_bad(decoding, requests)
    del decoding  # room to look for the fault
    raise _not_finite(policy, bad)


def _begun(
    policy: Policy,
    next_logits: NextLogits,
    requests: Sequence[Request],
    sampling: Sampling,
    pace: Pace,
) -> Decoding:
    """A batch whose prompts have been read, and its first tokens drawn."""
    base = policy.base
    device = base.hardware.device
    prompts = read_prompts(next_logits, requests, base.tokenizer.pad_token_id, device)
    given = (prompts.cache, prompts.owner, prompts.mask)
    cache: StaticCache | GrowingCache
    stays = base.hardware.attention == GROUPED
    if stays:
        cache = StaticCache(*given, sampling.max_new_tokens - 1, pace.length)
    else:
        cache = GrowingCache(*given)
    player = base.replay.player(device, asked=sampling.cuda_graph, cache_stays=stays)
    stops = torch.tensor(sorted(base.stop_ids), device=device)
    return Decoding(next_logits, requests, prompts, cache, player, stops, sampling, pace)


def _first_bad(decoding: Decoding, requests: Sequence[Request]) -> list[tuple[Request, list[int]]]:
    """Of each adapter the first request that went wrong, and what was drawn before."""
    found = sorted(
        (decoding.order[row], decoding.all.tokens[row, : length - 1].tolist())
        for row, (is_bad, length) in enumerate(
            zip(decoding.all.bad.tolist(), decoding.all.lengths.tolist(), strict=True)
        )
        if is_bad
    )
    by_adapter = {requests[place].adapter: (requests[place], drawn) for place, drawn in found[::-1]}
    return list(by_adapter.values())


def _not_finite(policy: Policy, bad: Sequence[tuple[Request, list[int]]]) -> NotFiniteError:
    """What to raise where logits were bad.

    NaN in one adapter reaches the rows of all in a mixed batch, so the first bad row of each is
    computed again by itself; the fault is that of the first which goes wrong alone.
    """
    for request, drawn in bad:
        ids = torch.tensor([[*request.prompt, *drawn]], device=policy.base.hardware.device)
        with policy.view(request.adapter), watched(policy.causal) as found:
            policy.causal(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        if found:
            return NotFiniteError(_in_words(request, len(drawn), found[0], policy), request)
    request, drawn = bad[0]
    said = "the logits are not finite, but they are when the same tokens are read at once"
    return NotFiniteError(_in_words(request, len(drawn), said, policy), request)


def _in_words(request: Request, step: int, where: str, policy: Policy) -> str:
    dtype = policy.base.hardware.dtype
    advice = "" if dtype == torch.float32 else "; if it overflows, model.dtype=float32 will not"
    return (
        f"NaN or infinite numbers in {'the base' if request.adapter == BASE else 'the adapter'} "
        f"when token {step + 1} after a prompt of {len(request.prompt)} is sampled: "
        f"{where}{advice}"
    )
