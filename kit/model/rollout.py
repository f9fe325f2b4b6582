"""Sample completions, recording the sampler's own log-probability of every token.

R rows decoded together, U distinct prompts among them, V vocabulary. Each distinct prompt is
computed once and its cache shared by the rows that continue it; rows that have finished leave the
batch. The random numbers of a row come from its own seed, so what it says does not depend on
which rows it was batched with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from kit.config import RolloutConfig
from kit.errors import ModelError, NotFiniteError, OutOfMemoryError, is_out_of_memory
from kit.model.base import dequantized
from kit.model.finite import watched
from kit.model.hardware import empty_cache, free_memory
from kit.model.policy import BASE, NextLogits, Policy
from kit.model.shape import PREFILL_TOKENS, rows_that_fit

log = logging.getLogger(__name__)

COMPACT_SHARE = 8  # finished rows are removed once they are 1/8 of the batch: removing copies it


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to sample."""

    prompt: tuple[int, ...]  # token ids
    seed: tuple[int, ...]  # e.g. (run seed, place of the problem in the run, sample)
    adapter: str


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled: token ids, the stop token included, and the sampler's log-probs."""

    tokens: list[int]
    logprobs: list[float]  # nats, at the sampling temperature, over the whole vocabulary
    truncated: bool  # no stop token within the cap
    text: str  # without special tokens
    cut_off: float = 0.0  # probability that top_p and top_k took away, summed over the tokens


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was asked for and what came back, in the same order."""

    requests: list[Request]
    completions: list[Completion]
    tokens_per_second: float  # of the whole batch, other arms' rows included


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw; temperature 0 is greedy (log-probs are then those at temperature 1)."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_rows: int = 0
    dequantize: str = "auto"

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are never drawn."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)

    @classmethod
    def from_config(cls, config: RolloutConfig) -> Sampling:
        return cls(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_rows=config.max_rows,
            dequantize=config.dequantize,
        )


def count_tokens(completions: Iterable[Completion]) -> int:
    """Sampled tokens, stop tokens included."""
    return sum(len(completion.tokens) for completion in completions)


def sample(
    policy: Policy,
    requests: Sequence[Request],
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion per request, in order. `progress` is told how many completions are new.

    When a batch runs out of memory it is halved and repeated; the completions are the same.
    Raises OutOfMemoryError where a single completion does not fit, NotFiniteError for a model whose
    logits are not finite, with the request and the first place that goes wrong.
    """
    if not requests:
        return []
    if any(not request.prompt for request in requests):
        raise ValueError("every prompt needs at least one token")
    order = _in_order(policy, requests)
    results: dict[int, Completion] = {}
    with _ready(policy, sampling):
        rows = sampling.max_rows or _rows_that_fit(policy, requests, sampling)
        while order:
            wave = _wave(policy, requests, order[:rows])
            try:
                completions = _decode(policy, [requests[i] for i in wave], sampling)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                error.__traceback__ = None  # its frames would keep the batch's cache alive
                empty_cache(policy.base.hardware.device)
                if len(wave) == 1:
                    raise _too_large(requests[wave[0]], sampling) from error
                rows = len(wave) // 2
                log.warning("out of memory while sampling; going on with %d rows at once", rows)
                continue
            results.update(zip(wave, completions, strict=True))
            order = order[len(wave) :]
            if progress is not None:
                progress(len(wave))
    return [results[i] for i in range(len(requests))]


def stream(
    policy: Policy, requests: Sequence[Request], sampling: Sampling
) -> Iterator[list[Completion]]:
    """Decode all rows together and show, after every token, what each says so far.

    A completion of the last list has stopped or reached the cap; in those before, `truncated` means
    "not at its end yet". Closing the iterator stops the decoding. While it is suspended the model
    stays in evaluation mode and gradients are off, in the thread that runs it.

    Raises ModelError for rows of different adapters with the unsloth backend, whose kernels compute
    all rows of a batch with the same adapter; NotFiniteError as `sample` does.
    """
    if policy.base.unsloth is not None and len({request.adapter for request in requests}) > 1:
        raise ModelError(
            "rows of different adapters cannot be decoded together by the unsloth backend; "
            "load the base with model.backend=transformers"
        )
    with _ready(policy, sampling):
        for drawn in _draw(policy, requests, sampling):
            yield drawn.completions(policy)


def _too_large(request: Request, sampling: Sampling) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"out of memory while sampling a single completion of up to {sampling.max_new_tokens} "
        f"tokens after a prompt of {len(request.prompt)}"
    )


def _in_order(policy: Policy, requests: Sequence[Request]) -> list[int]:
    """Indices of requests: neighbours share prompts and have similar lengths, so that prefill is
    shared and unpadded. Unsloth's kernels also want one adapter after the other."""

    def key(i: int) -> tuple[str, int, tuple[int, ...], int]:
        adapter = "" if policy.base.unsloth is None else requests[i].adapter
        return adapter, len(requests[i].prompt), requests[i].prompt, i

    return sorted(range(len(requests)), key=key)


def _wave(policy: Policy, requests: Sequence[Request], order: list[int]) -> list[int]:
    """As many of these as can be decoded together."""
    if policy.base.unsloth is None:
        return order
    first = requests[order[0]].adapter
    return list(takewhile(lambda i: requests[i].adapter == first, order))


@contextmanager
def _ready(policy: Policy, sampling: Sampling) -> Iterator[None]:
    """Evaluation mode, with what makes decoding fast on the backend at hand."""
    base, whole = policy.base, policy.model if policy.model is not None else policy.causal
    with policy.sampling():
        if base.unsloth is not None:
            with base.unsloth.inference(whole):
                yield
        else:
            with dequantized(policy.causal, sampling.dequantize, base.hardware):
                yield


@torch.no_grad()
def _decode(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
    """Decode one batch of rows to the end."""
    *_, drawn = _draw(policy, requests, sampling)
    return drawn.completions(policy)


class _Drawn:
    """What has been drawn so far; written in place by `_draw`."""

    def __init__(self, rows: int, cap: int, device: torch.device) -> None:
        self.tokens = torch.zeros(rows, cap, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, cap, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.bad = torch.zeros(rows, dtype=torch.bool, device=device)  # had logits with NaN
        self.cut_off = torch.zeros(rows, dtype=torch.float64, device=device)

    def completions(self, policy: Policy) -> list[Completion]:
        columns = (self.tokens, self.logprobs, self.lengths, self.finished, self.cut_off)
        return [
            Completion(
                tokens=ids[:length],
                logprobs=values[:length],
                truncated=not finished,
                text=str(policy.base.tokenizer.decode(ids[:length], skip_special_tokens=True)),
                cut_off=cut_off,
            )
            for ids, values, length, finished, cut_off in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]

    def add(self, active: Tensor, step: int, chosen: Chosen, stops: Tensor) -> Tensor:
        """Note what was drawn for the rows in the batch, `active` (R,); which go on, (R,) bool."""
        going = ~self.finished[active]
        self.tokens[active, step] = chosen.tokens
        self.logprobs[active, step] = chosen.logprobs
        self.lengths[active] += going
        self.bad[active] = going & chosen.logprobs.isnan()
        if chosen.cut_off is not None:
            self.cut_off[active] += torch.where(going, chosen.cut_off, 0.0)
        self.finished[active] |= torch.isin(chosen.tokens, stops)
        return ~self.finished[active]


def _draw(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> Iterator[_Drawn]:
    """Decode one batch of rows, one token of each per round; yields the same record every time."""
    device = policy.base.hardware.device
    rows, cap = len(requests), sampling.max_new_tokens
    stops = torch.tensor(sorted(policy.base.stop_ids), device=device)
    uniforms = _uniforms([request.seed for request in requests], cap).to(device)  # (R, cap)
    drawn = _Drawn(rows, cap, device)
    active = torch.arange(rows, device=device)  # rows still in the batch

    with policy.decoder([request.adapter for request in requests]) as next_logits:
        state = _prefill(next_logits, requests, policy.base.tokenizer.pad_token_id, device)
        for step in range(cap):
            chosen = choose(state.logits, uniforms[active, step], sampling)
            alive = drawn.add(active, step, chosen, stops)
            # the one wait for the device per token
            count, bad = torch.stack([alive.sum(), drawn.bad.sum()]).tolist()
            if bad:
                break
            yield drawn
            if count == 0 or step + 1 == cap:
                return
            tokens = chosen.tokens
            if (len(active) - count) * COMPACT_SHARE >= len(active):
                keep = alive.nonzero().squeeze(1)
                active, tokens = active[keep], tokens[keep]
                state.keep(keep)
            state.advance(next_logits, tokens)
    del state  # room to look for the fault
    raise _not_finite(policy, requests, drawn, step)


def _not_finite(
    policy: Policy, requests: Sequence[Request], drawn: _Drawn, step: int
) -> NotFiniteError:
    """What to raise where the logits of token `step` were bad.

    NaN in one adapter reaches the rows of all in a mixed batch, so the first bad row of each is
    computed again by itself; the fault is that of the first which goes wrong alone.
    """
    bad = drawn.bad.nonzero().squeeze(1).tolist()
    for row in {requests[row].adapter: row for row in reversed(bad)}.values():
        request = requests[row]
        ids = torch.tensor([[*request.prompt, *drawn.tokens[row, :step].tolist()]])
        ids = ids.to(policy.base.hardware.device)
        with policy.decoder([request.adapter]) as next_logits, watched(policy.causal) as found:
            next_logits(
                [request.adapter],
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                use_cache=False,
            )
        if found:
            return NotFiniteError(_in_words(request, step, found[0], policy), request)
    request = requests[bad[0]]
    found = ["the logits are not finite, but they are when the same tokens are read at once"]
    return NotFiniteError(_in_words(request, step, found[0], policy), request)


def _in_words(request: Request, step: int, where: str, policy: Policy) -> str:
    dtype = policy.base.hardware.dtype
    advice = "" if dtype == torch.float32 else "; if it overflows, model.dtype=float32 will not"
    return (
        f"NaN or infinite numbers in {'the base' if request.adapter == BASE else 'the adapter'} "
        f"when token {step + 1} after a prompt of {len(request.prompt)} is sampled: "
        f"{where}{advice}"
    )


class _DecodingState:
    """Cache, mask and last logits of the rows in the batch."""

    def __init__(
        self, cache: DynamicCache, mask: Tensor, logits: Tensor, adapters: list[str]
    ) -> None:
        self.cache, self.mask, self.logits, self.adapters = cache, mask, logits, adapters

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.adapters = [self.adapters[i] for i in rows.tolist()]

    def advance(self, next_logits: NextLogits, tokens: Tensor) -> None:
        """Feed one token (R,) per row."""
        positions = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = next_logits(
            self.adapters,
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )


def _prefill(
    next_logits: NextLogits, requests: Sequence[Request], pad_id: int, device: torch.device
) -> _DecodingState:
    """Compute each distinct (adapter, prompt) once, left-padded, and share it among its rows.

    A forward pass reads up to PREFILL_TOKENS: its activations would else be the most memory that
    anything here takes.
    """
    index: dict[tuple[str, tuple[int, ...]], int] = {}
    owner = [index.setdefault((r.adapter, r.prompt), len(index)) for r in requests]
    names = [adapter for adapter, _ in index]
    prompts = [prompt for _, prompt in index]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()  # (U, width)
    share = max(1, PREFILL_TOKENS // width)
    caches, logits = [], []
    for start in range(0, len(prompts), share):
        some = slice(start, start + share)
        caches.append(DynamicCache())
        logits.append(
            next_logits(
                names[some],
                input_ids=ids[some],
                attention_mask=mask[some],
                position_ids=(mask[some].cumsum(1) - 1).clamp(min=0),
                past_key_values=caches[-1],
                use_cache=True,
            )
        )
    rows = torch.tensor(owner, device=device)
    cache = _joined(caches)
    cache.batch_select_indices(rows)
    return _DecodingState(cache, mask[rows], torch.cat(logits)[rows], [names[i] for i in owner])


def _joined(caches: list[DynamicCache]) -> DynamicCache:
    """One cache with the rows of all; these are emptied, so that only one layer exists twice."""
    if len(caches) == 1:
        return caches[0]
    joined = DynamicCache()
    for number in range(len(caches[0].layers)):
        parts: list[Any] = [cache.layers.pop(0) for cache in caches]
        joined.update(
            torch.cat([part.keys for part in parts]),
            torch.cat([part.values for part in parts]),
            number,
        )
    return joined


class Chosen(NamedTuple):
    """One token per row, each (R,)."""

    tokens: Tensor
    logprobs: Tensor  # before any truncation by top_p or top_k; NaN where any logit was
    cut_off: Tensor | None  # probability that the truncation took away, float64; None without one


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Chosen:
    """Draw one token per row by inverting the cumulative distribution at `uniforms`.

    Args: logits (R, V) float32, uniforms (R,) in [0, 1).
    """
    cut_off = None
    greedy = sampling.temperature == 0
    logprobs = torch.log_softmax(logits / (1 if greedy else sampling.temperature), dim=-1)
    if greedy:
        tokens = logits.argmax(-1)
    else:
        probs = truncate(logprobs.exp(), sampling.top_p, sampling.top_k).double()
        cumulative = probs.cumsum(-1)
        if sampling.truncates:
            cut_off = (1 - cumulative[:, -1]).clamp(min=0)
        target = uniforms[:, None].double() * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return Chosen(tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1), cut_off)


def truncate(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero all but the top_k most likely tokens, then all beyond the smallest set whose
    probability reaches top_p. (R, V) -> (R, V), not renormalised."""
    if top_k == 0 and top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k > 0:
        keep[:, top_k:] = False
    ordered = torch.where(keep, ordered, torch.zeros_like(ordered))
    if top_p < 1:
        share = ordered.cumsum(-1) / ordered.sum(-1, keepdim=True)
        before = share - ordered / ordered.sum(-1, keepdim=True)
        ordered = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probs).scatter(-1, order, ordered)


def _uniforms(seeds: Sequence[tuple[int, ...]], count: int) -> Tensor:
    """(R, count) uniform numbers in [0, 1), each row from its own seed."""
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(count) for seed in seeds]))


def _rows_that_fit(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> int:
    """Rows that can be decoded at once in the free memory."""
    config = policy.causal.config
    hardware = policy.base.hardware
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
    per_token = 2 * config.num_hidden_layers * heads * head_dim * hardware.dtype.itemsize
    return rows_that_fit(per_token, config.vocab_size, longest, free_memory(hardware.device))
