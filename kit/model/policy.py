"""The Policy: the trained adapter, the frozen base and any named adapter, as views of one model.

B rows, S tokens of the longest row, T tokens of the longest completion, N completion tokens, V
vocabulary. A view switches adapters on one set of weights, so a reference costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.errors import AdapterError
from kit.model.attention import GROUPED
from kit.model.base import Base
from kit.model.batching import Batch, make_batch
from kit.model.caches import StaticCache
from kit.model.logprobs import token_logprobs
from kit.model.lora import REFERENCE, TRAINED
from kit.model.mixed_lora import is_plain, mixed_lora
from kit.model.one_token import OneToken
from kit.model.packing import Packed, pack

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

BASE = "__base__"  # PEFT's own name for "no adapter" in a batch of mixed rows

# input_ids, attention_mask, position_ids, cache and the adapter of each row -> last logits (B, V)
Prompt = tuple[int, ...]
NextLogits = Callable[..., Tensor]


class Policy:
    """One base and its adapters. `base.model` alone, without any adapter, is a policy too.

    `trained` names the adapter that learns. Several policies may share one model, each with an
    adapter of its own; `activate` before computing anything that is to be differentiated.
    """

    def __init__(self, base: Base, model: PeftModel | None = None, trained: str = TRAINED) -> None:
        self.base = base
        self.model = model
        self.trained = trained
        self.causal: PreTrainedModel = base.model

    @property
    def peft(self) -> PeftModel:
        """The model with its adapters; AdapterError when there are none."""
        if self.model is None:
            raise AdapterError("no adapter is loaded, only the base")
        return self.model

    @property
    def adapters(self) -> list[str]:
        """Names a row may ask for."""
        return [BASE, *(self.model.peft_config if self.model is not None else [])]

    @property
    def reference(self) -> str:
        """The frozen reference: the bare base, or the snapshot of the adapter training began at."""
        return REFERENCE if REFERENCE in self.adapters else BASE

    @property
    def trainable(self) -> list[torch.nn.Parameter]:
        """The weights of the trained adapter."""
        return list(self.trained_weights.values())

    @property
    def trained_weights(self) -> dict[str, torch.nn.Parameter]:
        """The weights of the trained adapter, by name."""
        mine = f".{self.trained}."
        return {name: p for name, p in self.causal.named_parameters() if mine in name}

    def activate(self) -> None:
        """Make the trained adapter the model's active one, and the only one with gradients."""
        self.peft.set_adapter(self.trained)

    @contextmanager
    def view(self, adapter: str) -> Iterator[None]:
        """Inside, the model computes as `adapter` (BASE: none); afterwards as it did before."""
        self._check(adapter)
        if adapter == BASE:
            with self.model.disable_adapter() if self.model is not None else nullcontext():
                yield
        elif adapter == self.peft.active_adapter:
            yield
        else:
            before = self.peft.active_adapter
            self.peft.set_adapter(adapter, inference_mode=True)
            try:
                yield
            finally:
                self.peft.set_adapter(before, inference_mode=before != self.trained)

    @property
    def shares_prompts(self) -> bool:
        """Whether rows of a forward pass that have the same prompt compute it once."""
        return self.base.unsloth is None and self.causal.config._attn_implementation == GROUPED

    def alone_of(self, adapters: Sequence[str]) -> str:
        """Which of several adapters cannot be in a batch with others; "": all can.

        Unsloth's kernels compute all rows with the same one, and so does PEFT those of DoRA.
        """
        names = sorted(set(adapters))
        if len(names) == 1:
            return ""
        if self.base.unsloth is not None:
            return names[0]
        loaded = self.model.peft_config if self.model is not None else {}
        return next((n for n in names if getattr(loaded.get(n), "use_dora", False)), "")

    def shared(self, prompts: list[Prompt]) -> list[Prompt] | None:
        """The prompt of each row, for making micro-batches that share them; None: they do not."""
        return prompts if self.shares_prompts else None

    def batch(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Batch | Packed:
        """Rows for `logprobs`, with what they can share; neighbours share a prompt."""
        device = self.base.hardware.device
        if not self.shares_prompts:
            pad_id = self.base.tokenizer.pad_token_id
            return make_batch(prompts, completions, pad_id=pad_id, device=device)
        config = self.causal.config
        return pack(
            prompts,
            completions,
            heads_per_key=config.num_attention_heads // config.num_key_value_heads,
            dtype=self.causal.dtype,
            device=device,
        )

    def logprobs(
        self,
        batch: Batch | Packed,
        adapter: str | None = None,
        *,
        temperature: float = 1.0,
        chunk: int = 256,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every completion token, (B, T) float32; 0 on padding.

        `adapter` None is the trained one. The head is applied to the hidden states of completion
        positions only, in chunks.
        """
        with self.view(adapter or self.trained):
            backbone = getattr(self.causal, self.causal.base_model_prefix)
            hidden = backbone(**batch.inputs, use_cache=False).last_hidden_state
            head = self.causal.get_output_embeddings()
            cells = batch.cells
            logprobs, entropy = token_logprobs(
                hidden.flatten(0, 1)[batch.predictors],
                head.weight,
                batch.targets.flatten()[cells],
                temperature=temperature,
                bias=getattr(head, "bias", None),
                chunk=chunk,
            )
        shape = batch.mask.shape
        empty = logprobs.new_zeros(shape.numel())
        return (
            empty.index_put((cells,), logprobs).view(shape),
            empty.index_put((cells,), entropy).view(shape),
        )

    @contextmanager
    def decoder(self, adapters: Sequence[str]) -> Iterator[NextLogits]:
        """A function that computes the next token's logits for rows of these adapters.

        The caller names the rows' adapters again in each call because rows leave the batch.
        """
        distinct = sorted(set(adapters))
        for name in distinct:
            self._check(name)
        own = [name for name in distinct if name != BASE]
        alone = len(distinct) == 1
        if own and self.base.unsloth is None and is_plain(self.peft, own):
            with mixed_lora(self.peft, own, alone=alone) as rows:
                read = self._reader()

                def next_logits(names: Sequence[str], **inputs: Any) -> Tensor:
                    rows.set(names)
                    return read(**inputs)

                yield next_logits
        elif alone:
            with self.view(distinct[0]):
                read = self._reader()
                yield lambda names, **inputs: read(**inputs)
        else:  # slower, but PEFT knows every kind of adapter
            yield lambda names, **inputs: _last_logits(
                self.peft, **inputs, adapter_names=list(names)
            )

    def _reader(self) -> Callable[..., Tensor]:
        """What reads prompts, and then one token of each row in the shorter way where there is
        one; to be asked for when the adapters are in place."""
        loaded = list(self.model.peft_config) if self.model is not None else []
        if not self.shares_prompts or (loaded and not is_plain(self.peft, loaded)):
            return partial(_last_logits, self.causal)
        one_token = OneToken(self.causal)

        def read(past_key_values: Any = None, **inputs: Any) -> Tensor:
            if isinstance(past_key_values, StaticCache):
                return one_token(cache=past_key_values, **inputs)
            return _last_logits(self.causal, past_key_values=past_key_values, **inputs)

        return read

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Evaluation mode without gradients; checkpointing must not disable the cache."""
        whole = self.model if self.model is not None else self.causal
        training = whole.training
        whole.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            whole.train(training)

    def _check(self, adapter: str) -> None:
        if adapter not in self.adapters:
            raise AdapterError(f"no adapter {adapter!r} is loaded; there are {self.adapters}")


def _last_logits(model: Any, **inputs: Any) -> Tensor:
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].float()
