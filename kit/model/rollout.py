"""Sample completions, recording the sampler's own log-probability of every token.

What is asked for is sampled in waves of as many rows as memory allows; a wave that does not fit is
halved and repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

import torch

from kit.errors import ModelError, OutOfMemoryError, is_out_of_memory
from kit.model.decoding import Decoding, decode, pace_of
from kit.model.dequantized import dequantized
from kit.model.hardware import empty_cache, free_memory
from kit.model.policy import Policy
from kit.model.requests import Request, Sampling
from kit.model.shape import rows_that_fit

log = logging.getLogger(__name__)


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

    Raises ModelError for rows of different adapters where one of them cannot be decoded together
    with others; NotFiniteError as `sample` does.
    """
    if name := policy.alone_of([request.adapter for request in requests]):
        advice = "ask one adapter after the other"
        if policy.base.unsloth is not None:
            advice = "load the base with model.backend=transformers"
        raise ModelError(f"rows of {name!r} cannot be decoded together with others; {advice}")
    with _ready(policy, sampling):
        pace = pace_of(policy.base.hardware.device, watched=True)
        for decoding in decode(policy, requests, sampling, pace):
            yield _completions(policy, decoding)


def _too_large(request: Request, sampling: Sampling) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"out of memory while sampling a single completion of up to {sampling.max_new_tokens} "
        f"tokens after a prompt of {len(request.prompt)}"
    )


def _in_order(policy: Policy, requests: Sequence[Request]) -> list[int]:
    """Indices of requests: neighbours share prompts and have similar lengths, so that prefill is
    shared and unpadded. Where an adapter has to be alone, all come one after the other."""
    apart = policy.alone_of([request.adapter for request in requests])

    def key(i: int) -> tuple[str, int, tuple[int, ...], int]:
        adapter = requests[i].adapter if apart else ""
        return adapter, len(requests[i].prompt), requests[i].prompt, i

    return sorted(range(len(requests)), key=key)


def _wave(policy: Policy, requests: Sequence[Request], order: list[int]) -> list[int]:
    """As many of these as can be decoded together."""
    if not policy.alone_of([requests[i].adapter for i in order]):
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
    *_, decoding = decode(policy, requests, sampling, pace_of(policy.base.hardware.device))
    return _completions(policy, decoding)


def _completions(policy: Policy, decoding: Decoding) -> list[Completion]:
    """What each row says so far, in the order of the requests."""
    drawn = decoding.all
    columns = (drawn.tokens, drawn.logprobs, drawn.lengths, drawn.finished, drawn.cut_off)
    rows = zip(decoding.order, *(column.tolist() for column in columns), strict=True)
    return [
        Completion(
            tokens=ids[:length],
            logprobs=values[:length],
            truncated=not finished,
            text=str(policy.base.tokenizer.decode(ids[:length], skip_special_tokens=True)),
            cut_off=cut_off,
        )
        for _, ids, values, length, finished, cut_off in sorted(rows, key=itemgetter(0))
    ]


def _rows_that_fit(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> int:
    """Rows that can be decoded at once in the free memory."""
    config = policy.causal.config
    hardware = policy.base.hardware
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(len(request.prompt) for request in requests) + sampling.max_new_tokens
    per_token = 2 * config.num_hidden_layers * heads * head_dim * hardware.dtype.itemsize
    return rows_that_fit(per_token, config.vocab_size, longest, free_memory(hardware.device))
