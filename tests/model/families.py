"""Small stand-ins for families of causal language models, made on the spot.

Each has its family's configuration class with random weights, and a tokenizer of the family's kind
trained on a few lines, with the family's special tokens, post-processor and form of chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "What is 17 + 25? The answer is 42.",
    "Tom has 3 boxes with 12 apples each and gives 5 apples away. How many are left?",
    "A user asks the system, and the assistant or model answers: end of turn, start of text.",
    "Question: a train goes 60 km in 45 minutes.\nAnswer: it goes 160 km in 2 hours.\n#### 160",
    "naïve café, 東京, Ünïcödé – and <tags>, [brackets], | bars |, /slashes/ _ and “quotes”!",
]
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# --- tokenizers ----------------------------------------------------------------------------------


@cache
def _byte_level_model() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _byte_split()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _parts(tokenizer)


@cache
def _pieces_model() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """SentencePiece's form: words begin with ▁."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return _parts(tokenizer)


def _parts(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _byte_split() -> Any:
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, by_bytes])


def byte_level(special: list[str], plain: list[str] = (), before: str | None = None) -> Tokenizer:  # type: ignore[assignment]
    """Qwen, Llama 3, Phi, GPT-2: byte-level BPE, special tokens after the vocabulary."""
    tokenizer = Tokenizer(models.BPE(*_byte_level_model()))
    tokenizer.pre_tokenizer, tokenizer.decoder = _byte_split(), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in plain])
    return _opened(tokenizer, before)


def pieces(
    special: list[str],
    plain: list[str] = (),
    before: str = "<s>",
    kind: str = "first",  # type: ignore[assignment]
) -> Tokenizer:
    """Llama 2, Mistral, Gemma: BPE over pieces with bytes for the rest, special tokens first.

    `kind` says where ▁ is put before a text: at its beginning ('first'), after every special token
    too ('legacy'), or nowhere ('never').
    """
    learned, merges = _pieces_model()
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: i for i, name in enumerate(names)}
    for piece in learned:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    if kind == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    elif kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tokenizer.normalizer = spaces
    strip = [decoders.Strip(" ", 1, 0)] if kind != "never" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in plain])
    return _opened(tokenizer, before)


def unigram(special: list[str]) -> Tokenizer:
    """Some multilingual models: a Unigram vocabulary that has the special tokens as pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _opened(tokenizer, "</s>")


def _opened(tokenizer: Tokenizer, before: str | None) -> Tokenizer:
    if before is not None:
        ids = [(before, tokenizer.token_to_id(before))]
        single, pair = f"{before} $A", f"{before} $A {before} $B"
        template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
        tokenizer.post_processor = template
    return tokenizer


# --- chat templates ------------------------------------------------------------------------------

GENERATE = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    + GENERATE
    + "<|im_start|>assistant\n{% endif %}"
)
QWEN2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}" + CHATML
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}" + GENERATE + "<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\n\n' }}{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}"
    + GENERATE
    + "<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content +"
    " '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{{ ((first if loop.first else '') + m.content).strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user, assistant, user') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURN = "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    + TURN
    + "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    + GENERATE
    + "<start_of_turn>model\n{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
    + TURN
    + "{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    + GENERATE
    + "<start_of_turn>model\n{% endif %}"
)
PHI3 = (  # passes over a system message
    "{% for m in messages %}{% if m.role != 'system' %}{{ '<|' + m.role + '|>' }}\n"
    "{{ m.content }}<|end|>\n{% endif %}{% endfor %}" + GENERATE + "<|assistant|>\n{% endif %}"
)
XGLM = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    + GENERATE
    + "assistant:{% endif %}"
)


# --- families ------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GPT2_SIZE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
LLAMA2_TOKENS = ["<unk>", "<s>", "</s>"]
MISTRAL_TOKENS = [*LLAMA2_TOKENS, "[INST]", "[/INST]"]
GEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]
GEMMA_MARKS = ["<start_of_turn>", "<end_of_turn>"]
GEMMA_WORDS = ["\n\n", "\n\n\n", "▁▁", "<h1>"]  # added, not special: text has them
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_WORDS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
LLAMA3_TOKENS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    "<|eot_id|>",
]
PHI3_TOKENS = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


@dataclass(frozen=True)
class Family:
    """How one stand-in is made, and what is to be expected of it."""

    model_type: str
    make: Callable[[], Tokenizer]
    names: dict[str, str]  # the tokenizer's bos_token, eos_token, …
    template: str | None
    begins: str | None  # what every prompt begins with, exactly once
    ends: frozenset[str]  # what an answer ends with
    turn: str  # what an assistant's turn ends with
    eos: tuple[str, ...] = ()  # generation_config.eos_token_id, where it is a list of its own
    settings: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    own_system: bool = True  # whether the template knows a system message

    def tokenizer(self) -> PreTrainedTokenizerFast:
        made = PreTrainedTokenizerFast(tokenizer_object=self.make(), **self.names)
        made.chat_template = self.template
        return made

    def save(self, folder: Path) -> None:
        """A checkpoint as the hub has it."""
        tokenizer = self.tokenizer()
        ids = {f"{k.removesuffix('_token')}_token_id": v for k, v in self.names.items()}
        known = {k: tokenizer.convert_tokens_to_ids(v) for k, v in ids.items() if "unk" not in k}
        size = SMALL if self.model_type != "gpt2" else GPT2_SIZE
        config = AutoConfig.for_model(
            self.model_type, vocab_size=len(tokenizer), **size, **known, **self.settings
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        if self.eos:
            ends = [tokenizer.convert_tokens_to_ids(token) for token in self.eos]
            model.generation_config.eos_token_id = ends
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokens(**names: str) -> dict[str, str]:
    return {f"{name}_token": token for name, token in names.items()}


ENDOFTEXT = frozenset({"<|endoftext|>"})
LLAMA_NAMES = _tokens(bos="<s>", eos="</s>", unk="<unk>")
GEMMA_NAMES = _tokens(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>")
GEMMA_SIZE = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
QWEN_NAMES = _tokens(eos="<|im_end|>", pad="<|endoftext|>")
PHI3_NAMES = _tokens(bos="<|endoftext|>", eos="<|endoftext|>", pad="<|endoftext|>")
QWEN_ENDS = frozenset({"<|im_end|>", "<|endoftext|>"})
LLAMA3_ENDS = frozenset({"<|end_of_text|>", "<|eot_id|>"})
LLAMA3_NAMES = _tokens(bos="<|begin_of_text|>", eos="<|eot_id|>")
GEMMA = partial(pieces, before="<bos>", kind="never")
qwen = partial(byte_level, QWEN_TOKENS, QWEN_WORDS)
llama3 = partial(byte_level, LLAMA3_TOKENS, before="<|begin_of_text|>")


def phi3() -> Tokenizer:
    """Phi-3's marks swallow the space after them."""
    tokenizer = byte_level(PHI3_TOKENS[:1])
    marks = [AddedToken(t, normalized=False, special=True, rstrip=True) for t in PHI3_TOKENS[1:]]
    tokenizer.add_special_tokens(marks)
    return tokenizer


FAMILIES = {
    "qwen2": Family(
        "qwen2",
        qwen,
        QWEN_NAMES,
        QWEN2,
        None,
        QWEN_ENDS,
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3": Family(
        *("qwen3", qwen, QWEN_NAMES, QWEN3, None, QWEN_ENDS, "<|im_end|>"),
        eos=("<|im_end|>", "<|endoftext|>"),
        settings={"head_dim": 8},
    ),
    "llama2": Family(
        *("llama", partial(pieces, LLAMA2_TOKENS), LLAMA_NAMES, LLAMA2),
        *("<s>", frozenset({"</s>"}), "</s>"),
    ),
    "llama2-legacy": Family(
        *("llama", partial(pieces, LLAMA2_TOKENS, kind="legacy"), LLAMA_NAMES, LLAMA2),
        *("<s>", frozenset({"</s>"}), "</s>"),
    ),
    "llama2-base": Family(
        *("llama", partial(pieces, LLAMA2_TOKENS), LLAMA_NAMES, None),
        *("<s>", frozenset({"</s>"}), "</s>"),
    ),
    "llama2-legacy-base": Family(
        *("llama", partial(pieces, LLAMA2_TOKENS, kind="legacy"), LLAMA_NAMES, None),
        *("<s>", frozenset({"</s>"}), "</s>"),
    ),
    "llama3": Family(
        *("llama", llama3, LLAMA3_NAMES, LLAMA3, "<|begin_of_text|>", LLAMA3_ENDS, "<|eot_id|>"),
        settings={"attention_dropout": 0.2},
        eos=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "llama3-base": Family(
        *("llama", llama3, _tokens(bos="<|begin_of_text|>", eos="<|end_of_text|>"), None),
        *("<|begin_of_text|>", frozenset({"<|end_of_text|>"}), "<|end_of_text|>"),
    ),
    "mistral": Family(
        *("mistral", partial(pieces, MISTRAL_TOKENS, kind="legacy"), LLAMA_NAMES, MISTRAL),
        *("<s>", frozenset({"</s>"}), "</s>"),
        settings={"sliding_window": 16},
        own_system=False,
    ),
    "gemma2": Family(
        *("gemma2", partial(GEMMA, GEMMA_TOKENS, [*GEMMA_MARKS, *GEMMA_WORDS]), GEMMA_NAMES),
        *(GEMMA2, "<bos>", frozenset({"<eos>", "<end_of_turn>"}), "<end_of_turn>"),
        settings={**GEMMA_SIZE, "final_logit_softcapping": None},
        own_system=False,
    ),
    "gemma3": Family(
        *("gemma3_text", partial(GEMMA, [*GEMMA_TOKENS, *GEMMA_MARKS], GEMMA_WORDS), GEMMA_NAMES),
        *(GEMMA3, "<bos>", frozenset({"<eos>", "<end_of_turn>"}), "<end_of_turn>"),
        eos=("<eos>", "<end_of_turn>"),
        settings=GEMMA_SIZE,
    ),
    "gemma3-base": Family(
        *("gemma3_text", partial(GEMMA, [*GEMMA_TOKENS, *GEMMA_MARKS], GEMMA_WORDS), GEMMA_NAMES),
        *(None, "<bos>", frozenset({"<eos>"}), "<eos>"),
        settings=GEMMA_SIZE,
    ),
    "phi3": Family(
        *("phi3", phi3, PHI3_NAMES, PHI3, None),
        *(frozenset({"<|endoftext|>", "<|end|>"}), "<|end|>"),
        eos=("<|endoftext|>", "<|end|>", "<|assistant|>"),
        targets=("qkv_proj", "o_proj"),
        own_system=False,
    ),
    "phi": Family(
        *("phi", partial(byte_level, ["<|endoftext|>"])),
        *(_tokens(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>"), None),
        *(None, ENDOFTEXT, "<|endoftext|>"),
    ),
    "gpt2": Family(
        *("gpt2", partial(byte_level, ["<|endoftext|>"])),
        *(_tokens(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>"), None),
        *(None, ENDOFTEXT, "<|endoftext|>"),
        targets=("c_attn",),
    ),
    "unigram": Family(
        *("llama", partial(unigram, ["<s>", "<pad>", "</s>", "<unk>"])),
        *(_tokens(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>"), XGLM),
        *(None, frozenset({"</s>"}), "</s>"),
    ),
}
