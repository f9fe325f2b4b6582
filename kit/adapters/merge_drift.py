"""How near merged weights are to the adapter they came from: mean KL and greedy agreement.

T tokens of all completions together, V vocabulary. The adapter on the 4-bit base writes greedy
completions; every model then predicts their tokens. One model is in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from kit.adapters.probe import question_ids
from kit.model.base import NF4, use_exact_kernels
from kit.model.base_files import BaseSource
from kit.model.tokenizer import prepare_tokenizer

NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Agreement:
    """The merged model beside another one, over `tokens` predictions."""

    against: str
    kl: float  # nats per token: KL(other, merged), exact over the vocabulary, temperature 1
    same_greedy: float  # share of positions with the same likeliest token
    tokens: int

    def __str__(self) -> str:
        return (
            f"against {self.against}: mean KL {self.kl:.2g} nats, the same greedy token at "
            f"{100 * self.same_greedy:.1f} % of {self.tokens} positions"
        )


def agreements(base: BaseSource, adapter: Path, merged: Path, dtype: str) -> list[Agreement]:
    """Compare the folder `merged` with the adapter on the 16-bit and on the 4-bit base."""
    tokenizer = tokenizer_of(base, adapter)
    prompts = question_ids(tokenizer)
    model = _load(base.source, base.revision, dtype, adapter, BitsAndBytesConfig(**NF4))
    settings = GenerationConfig.from_pretrained(str(merged))
    texts = [_continued(model, prompt, settings) for prompt in prompts]
    others = {"the adapter on the 4-bit base": _logits(model, prompts, texts)}
    del model  # before the next one is loaded
    model = _load(base.source, base.revision, dtype, adapter)
    others[f"the adapter on the {dtype} base"] = _logits(model, prompts, texts)
    del model
    result = _logits(_load(str(merged), None, dtype), prompts, texts)
    return [compare(name, logits, result) for name, logits in others.items()]


def compare(against: str, other: Tensor, merged: Tensor) -> Agreement:
    """From logits (T, V) of two models at the same positions."""
    log_p, log_q = other.log_softmax(-1), merged.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    same = (other.argmax(-1) == merged.argmax(-1)).float().mean().item()
    return Agreement(against, kl, same, len(other))


def tokenizer_of(base: BaseSource, adapter: Path) -> Any:
    """The adapter's own, or the base's, prepared as the kit does."""
    own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(
        str(adapter) if own else base.source, revision=None if own else base.revision
    )
    prepare_tokenizer(tokenizer, base.id)
    return tokenizer


def _load(
    source: str,
    revision: str | None,
    dtype: str,
    adapter: Path | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(
        source,
        revision=revision,
        dtype=dtype,
        quantization_config=quantization,
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    use_exact_kernels(model)
    return model.eval()


def _continued(model: Any, prompt: list[int], settings: GenerationConfig) -> list[int]:
    """A prompt with the model's greedy answer, ended where `settings` say."""
    ids = torch.tensor([prompt], device=model.device)
    mask = torch.ones_like(ids)
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=settings, **greedy
    )
    return output[0].tolist()


@torch.no_grad()
def _logits(model: Any, prompts: list[list[int]], texts: list[list[int]]) -> Tensor:
    """(T, V) float32 on the CPU, at the positions that predict the answers' tokens."""
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([text], device=model.device)
        kept = len(text) - len(prompt) + 1
        rows.append(model(input_ids=ids, logits_to_keep=kept).logits[0, :-1].float().cpu())
    return torch.cat(rows)
