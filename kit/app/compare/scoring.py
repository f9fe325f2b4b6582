"""How likely each side finds every token of an answer, and how far it has moved from the base.

T tokens of the answer, H hidden size, V vocabulary, C chunk of positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.app.compare.tokens import BASE_SIDE, Scores, Token
from kit.model.policy import BASE, Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 64  # positions whose distributions over the vocabulary exist at once
ALTERNATIVES = 5
WINDOW = 16  # tokens that are decoded together: an unfinished character never spans more


@torch.no_grad()
def score(
    policy: Policy,
    prompt: Sequence[int],
    completion: list[int],
    adapters: Mapping[str, str],
    own: str,
) -> Scores:
    """Score a completion under every side's adapter and the base, at temperature 1.

    `adapters` maps sides to names on the model, `own` is the side that wrote the completion: the
    alternatives and the divergence are its own.
    """
    views = {**adapters, BASE_SIDE: BASE}
    states = {n: _hidden(policy, prompt, completion, n) for n in dict.fromkeys(views.values())}
    hidden = {side: states[name] for side, name in views.items()}
    targets = torch.tensor(completion, device=policy.base.hardware.device)  # (T,)
    chosen: dict[str, list[float]] = {side: [] for side in views}
    likely: list[tuple[tuple[str, float], ...]] = []
    divergence = 0.0
    for start in range(0, len(completion), CHUNK):
        rows = slice(start, start + CHUNK)
        logprobs = {side: _logprobs(policy, hidden[side][rows]) for side in views}  # (C, V) each
        for side, values in logprobs.items():
            chosen[side] += values.gather(1, targets[rows, None]).squeeze(1).tolist()
        mine = logprobs[own]
        divergence += float((mine.exp() * (mine - logprobs[BASE_SIDE])).sum())
        likely += _alternatives(policy.base.tokenizer, mine)
    texts = pieces(policy.base.tokenizer, completion)
    return Scores(
        tokens=tuple(
            Token(text, {side: chosen[side][i] for side in views}, likely[i])
            for i, text in enumerate(texts)
        ),
        kl_to_base=divergence / len(completion),
    )


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Iterator[str]:
    """What each token adds to the text; "" where it only begins a character.

    Tokens are decoded a few at a time together with those before them, because bytes and spaces of
    one token show only beside its neighbours.
    """
    start, before = 0, ""
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[start:end]))
        if text.endswith("\ufffd") and end - start < WINDOW:
            yield ""
            continue
        yield text[len(before) :]
        start, before = end - 1, str(tokenizer.decode(ids[end - 1 : end]))


def _hidden(policy: Policy, prompt: Sequence[int], completion: Sequence[int], name: str) -> Tensor:
    """(T, H) at the positions that predict the completion's tokens."""
    ids = torch.tensor([[*prompt, *completion]], device=policy.base.hardware.device)
    with policy.view(name):
        backbone = getattr(policy.causal, policy.causal.base_model_prefix)
        states = backbone(input_ids=ids, use_cache=False).last_hidden_state
    return states[0, len(prompt) - 1 : -1]


def _logprobs(policy: Policy, hidden: Tensor) -> Tensor:
    """(C, H) -> (C, V) float32."""
    return policy.causal.get_output_embeddings()(hidden).float().log_softmax(-1)


def _alternatives(
    tokenizer: PreTrainedTokenizerBase, logprobs: Tensor
) -> Iterator[tuple[tuple[str, float], ...]]:
    values, ids = logprobs.topk(min(ALTERNATIVES, logprobs.shape[1]), dim=-1)
    for row_values, row_ids in zip(values.exp().tolist(), ids.tolist(), strict=True):
        yield tuple(
            (str(tokenizer.decode([i])), p) for i, p in zip(row_ids, row_values, strict=True)
        )
