"""One token of each row through Llama, Mistral, Qwen2 or Qwen3, without what is not needed for it.

R rows, H query heads, K key heads, D numbers a head, V vocabulary. transformers' own forward pass
computes the same to the bit, in a hundred calls of modules a token: on small models and on a GPU
without graphs these take longer than the arithmetic. Modules that read the same input are computed
side by side, queries and keys are turned together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from kit.model.attention import grouped_attention
from kit.model.caches import StaticCache
from kit.model.siblings import one_by_one, side_by_side


class OneToken:
    """A model as it computes now: `siblings` that are joined later are not seen."""

    def __init__(self, causal: Any) -> None:
        self.backbone, self.head = causal.model, causal.lm_head
        self.layers = [Layer(layer) for layer in self.backbone.layers]

    def __call__(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: StaticCache
    ) -> Tensor:
        """Read (R, 1) tokens into the cache; (R, V) logits of what follows, float32."""
        hidden = self.backbone.embed_tokens(input_ids)
        turn = self.backbone.rotary_emb(hidden, position_ids)  # cosine and sine, (R, 1, D) each
        for layer in self.layers:
            hidden = layer(hidden, turn, cache, attention_mask)
        return self.head(normed(hidden, self.backbone.norm))[:, -1].float()


class Layer:
    """A decoder layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = attention.o_proj
        # gelu and others round by how their numbers lie in memory
        self.gate_up = one_by_one([mlp.gate_proj, mlp.up_proj])
        self.activate, self.down = mlp.act_fn, mlp.down_proj
        self.number = attention.layer_idx
        self.width, self.scaling = attention.head_dim, attention.scaling
        self.shared_by = attention.num_key_value_groups  # query heads of a key head
        self.head_norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)

    def __call__(
        self, hidden: Tensor, turn: tuple[Tensor, Tensor], cache: StaticCache, mask: Tensor
    ) -> Tensor:
        """(R, 1, hidden) -> the same."""
        hidden = hidden + self.attend(normed(hidden, self.norms[0]), turn, cache, mask)
        gate, up = self.gate_up(normed(hidden, self.norms[1]))
        return hidden + self.down(self.activate(gate) * up)

    def attend(
        self, x: Tensor, turn: tuple[Tensor, Tensor], cache: StaticCache, mask: Tensor
    ) -> Tensor:
        heads = self.qkv(x).view(len(x), -1, self.width)  # (R, H + 2 K, D)
        keys = heads.shape[1] // (self.shared_by + 2)
        asking = keys * self.shared_by
        turning = turned(self._normed(heads[:, : asking + keys], asking), *turn)
        new = turning[:, asking:, None], heads[:, asking + keys :, None]
        key, value = cache.update(*new, self.number)
        query = turning[:, :asking, None]
        answer, _ = grouped_attention(None, query, key, value, mask, scaling=self.scaling)
        return self.out(answer.reshape(len(x), 1, -1))

    def _normed(self, heads: Tensor, asking: int) -> Tensor:
        """Qwen3's norms of queries and of keys."""
        query, key = self.head_norms
        if query is None or key is None:
            return heads
        return torch.cat([normed(heads[:, :asking], query), normed(heads[:, asking:], key)], 1)


def normed(x: Tensor, norm: Any) -> Tensor:
    """RMSNorm, as all four families compute it."""
    return norm.weight * rms_norm(x.float(), x.shape[-1:], eps=norm.variance_epsilon).to(x.dtype)


def turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, of all heads (R, heads, D) alike."""
    left, right = heads.chunk(2, -1)
    return heads * cosine + torch.cat((-right, left), -1) * sine
