"""Log-probabilities of chosen tokens from hidden states, without ever holding the full logits.

N positions, H hidden size, V vocabulary, C chunk of positions. The logits of a batch would take
N x V floats several times over (Qwen2.5 has V = 151,936); here only C x V of them exist at once,
and the backward pass computes them again instead of storing them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[target] in nats, and the entropy of that distribution.

    Args:
        hidden: (N, H), last hidden states after the final norm; gets an exact gradient.
        weight: (V, H), the output head, frozen.
        targets: (N,) int64, token ids.
        temperature: the sampler's; > 0.
        bias: (V,) or None, the head's bias, frozen.
        chunk: positions whose logits exist at once.

    Returns:
        logprobs (N,) float32 with gradient, entropy (N,) float32 without.

    Raises ValueError when shapes disagree or the head is trainable.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden must be (N, H) and targets (N,), got {tuple(hidden.shape)} "
            f"and {tuple(targets.shape)}"
        )
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight must be (V, H={hidden.shape[1]}), got {tuple(weight.shape)}; "
            "a quantized output head is not supported"
        )
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("the output head must be frozen; it gets no gradient here")
    return _TokenLogprobs.apply(hidden, weight, bias, targets, temperature, chunk)


class _TokenLogprobs(torch.autograd.Function):
    """d logprob / d logits = (onehot(target) - softmax(logits / T)) / T, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk):
        n = hidden.shape[0]
        logprobs = torch.empty(n, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        normalizer = torch.empty_like(logprobs)
        for rows in _chunks(n, chunk):
            logits = _scaled_logits(hidden[rows], weight, bias, temperature)  # (C, V)
            normalizer[rows] = logits.logsumexp(-1)
            logits -= normalizer[rows, None]
            logprobs[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1)
            # in place, so that two (C, V) tensors are the most that exist; a token masked out with
            # -inf has probability 0 and adds nothing
            entropy[rows] = -logits.exp().mul_(logits.clamp_(min=-1e4)).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, _grad_entropy):
        hidden, weight, bias, targets, normalizer = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        scale = grad_logprobs / ctx.temperature
        for rows in _chunks(hidden.shape[0], ctx.chunk):
            logits = _scaled_logits(hidden[rows], weight, bias, ctx.temperature)
            grad = logits.sub_(normalizer[rows, None]).exp_().neg_()  # -softmax, (C, V)
            grad.scatter_add_(-1, targets[rows, None], torch.ones_like(grad[:, :1]))
            # the loss's small factor comes after the product: before it, float16 would underflow
            grad_hidden[rows] = (grad.to(weight.dtype) @ weight) * scale[rows, None]
        return grad_hidden, None, None, None, None, None


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float):
    """(C, V) logits / temperature in float32."""
    logits = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)
    return logits.float().div_(temperature)


def _chunks(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
