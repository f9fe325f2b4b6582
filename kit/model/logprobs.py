"""Log-probabilities of chosen tokens from hidden states, without ever holding the full logits.

N positions, H hidden size, V vocabulary, C chunk of positions. The logits of a batch would take
N x V floats several times over (Qwen2.5 has V = 151,936); here only C x V of them exist at once,
and what the backward pass needs of them, N x H numbers, is taken while they do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    """d logprob / d logits = (onehot(target) - softmax(logits / T)) / T, chunk by chunk.

    A log-prob depends on its own hidden state alone, so its gradient is known up to the factor that
    the loss puts before it: what points from the mean of the head's rows to the target's, (N, H).
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, temperature, chunk):
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        directions = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = _scaled_logits(hidden[rows], weight, bias, temperature)
            logprobs[rows], entropy[rows], probs = _read(logits, targets[rows, None])
            del logits
            if directions is not None:
                directions[rows] = _direction(probs, targets[rows, None], weight)
            del probs  # before the next chunk's logits are there
        ctx.save_for_backward(directions)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, _grad_entropy):
        (directions,) = ctx.saved_tensors
        # the loss's small factor comes after the product: before it, float16 would underflow
        grad_hidden = directions * (grad_logprobs / ctx.temperature)[:, None]
        return grad_hidden.to(directions.dtype), None, None, None, None, None


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float):
    """(C, V) logits / temperature in float32."""
    logits = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias)
    return logits.float().div_(temperature)


def _read(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and entropy (C,), and probabilities (C, V); the logits' memory is written over, so
    that two (C, V) tensors are the most that exist."""
    logits -= logits.logsumexp(-1, keepdim=True)
    logprobs = logits.gather(-1, targets).squeeze(-1)
    probs = logits.exp()
    # a token masked out with -inf has probability 0 and adds nothing
    return logprobs, -logits.clamp_(min=-1e4).mul_(probs).sum(-1), probs


def _direction(probs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """(onehot(target) - probs) times the head, (C, H); the memory of `probs` is written over."""
    probs.neg_().scatter_add_(-1, targets, torch.ones_like(probs[:, :1]))
    return probs.to(weight.dtype) @ weight
