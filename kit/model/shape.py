"""A model's sizes, known before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from kit.config import EMBEDDED_PATHS
from kit.errors import ConfigError, ModelError, first_line
from kit.reading import parse_json

PREFILL_TOKENS = 8192  # of prompts, padding included, that the sampler reads in one forward pass
LENGTH_BUCKET = 128  # on a GPU the cache has room for a multiple of so many tokens
# modules of a layer that read the same input; the sampler computes them side by side
TOGETHER = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 1, "up_proj": 1}


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear module of every layer."""

    name: str  # as PEFT sees it, e.g. self_attn.q_proj
    inputs: int
    outputs: int
    bias: bool

    @property
    def size(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Shape:
    """What a decoder of the Llama kind is made of."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool  # the head is the embedding
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """As Qwen2's configuration in transformers names them."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "tie_word_embeddings": self.tied,
        }

    @property
    def query(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def linears(self) -> list[Linear]:
        keys = self.kv_heads * self.head_dim
        return [
            Linear("self_attn.q_proj", self.hidden, self.query, self.qkv_bias),
            Linear("self_attn.k_proj", self.hidden, keys, self.qkv_bias),
            Linear("self_attn.v_proj", self.hidden, keys, self.qkv_bias),
            Linear("self_attn.o_proj", self.query, self.hidden, self.output_bias),
            Linear("mlp.gate_proj", self.hidden, self.intermediate, self.mlp_bias),
            Linear("mlp.up_proj", self.hidden, self.intermediate, self.mlp_bias),
            Linear("mlp.down_proj", self.intermediate, self.hidden, self.mlp_bias),
        ]

    @property
    def linear_size(self) -> int:
        """Weights of all linear modules, without the head: what quantization acts on."""
        return self.layers * sum(linear.size for linear in self.linears)

    @property
    def other_size(self) -> int:
        """Weights that stay in the compute type: embeddings, head, norms, biases."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        return embeddings + self.hidden + self.layers * (norms + biases)

    def cache_per_token(self, c: int) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * c

    def adapted(self, targets: str | list[str]) -> list[Linear]:
        """The linear modules that get LoRA; names match at their end, as in PEFT."""
        if targets == "all-linear":
            return self.linears
        found = [
            linear
            for linear in self.linears
            if any(f"layers.0.{linear.name}".endswith(f".{target}") for target in targets)
        ]
        if not found:
            names = ", ".join(linear.name.rpartition(".")[2] for linear in self.linears)
            raise ConfigError(f"lora.targets = {targets!r} matches no module; there are {names}")
        return found

    def together(self, targets: str | list[str]) -> list[list[Linear]]:
        """The modules of a layer that get LoRA, in groups that the sampler computes at once."""
        groups: dict[str | int, list[Linear]] = {}
        for linear in self.adapted(targets):
            name = linear.name.rpartition(".")[2]
            groups.setdefault(TOGETHER.get(name, name), []).append(linear)
        return list(groups.values())

    def lora_side_by_side(self, targets: str | list[str], rank: int) -> int:
        """Numbers in the sampler's copy of an adapter: zeros between the modules of a group."""
        sizes = (
            len(group) * (group[0].inputs + sum(linear.outputs for linear in group))
            for group in self.together(targets)
        )
        return self.layers * rank * sum(sizes)


def rounded_up(number: int, grain: int) -> int:
    """The next multiple of `grain`."""
    return -(-number // grain) * grain


def bucketed(tokens: int) -> int:
    """Tokens that the cache has room for, where it is to hold so many."""
    return rounded_up(tokens, LENGTH_BUCKET)


def rows_that_fit(cache_per_token: int, vocab: int, longest: int, free: float) -> int:
    """Rows the sampler decodes at once: their cache and logits take less than half of `free`."""
    # rows that leave have a layer of the cache copied; logits exist in several forms at once
    per_row = 1.5 * cache_per_token * bucketed(longest) + 32 * vocab
    return max(1, int(free / 2 / per_row))


# hidden, layers, heads, key-value heads, MLP, vocabulary, tied: from the hub's config.json files
_QWEN = {
    "0.5B": (896, 24, 14, 2, 4864, 151_936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936, True),
    "3B": (2048, 36, 16, 2, 11_008, 151_936, True),
    "7B": (3584, 28, 28, 4, 18_944, 152_064, False),
}


FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def find_shape(model: str, revision: str | None = None) -> tuple[Shape, str]:
    """The model's shape, and in words where it is from."""
    size = model.removeprefix("Qwen/Qwen2.5-").removesuffix("-Instruct")
    cached = None if _is_local(model) else _cached(model, revision)
    if cached is not None:
        file, source = cached, "from the hub's cache"
    elif model.startswith("Qwen/Qwen2.5-") and size in _QWEN and revision is None:
        hidden, layers, heads, kv_heads, width, vocab, tied = _QWEN[size]
        shape = Shape(
            hidden, layers, heads, kv_heads, hidden // heads, width, vocab, tied, qkv_bias=True
        )
        return shape, "from the kit's own table"
    elif model in EMBEDDED_PATHS:
        file, source = EMBEDDED_PATHS[model] / "config.json", "of the embedded model"
    elif _is_local(model):
        file = Path(model) / "config.json"
        source = f"from {file}"
    else:
        file, source = _download(model, revision), "from the hub"
    try:
        values = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is missing or no JSON: {error}") from None
    return read_shape(values, model), source


def read_shape(values: Any, model: str) -> Shape:
    """The shape that a config.json describes; ModelError for what the arithmetic does not know."""
    family = values.get("model_type") if isinstance(values, dict) else None
    if family not in FAMILIES:
        raise ModelError(
            f"kit estimate knows models of the families {', '.join(FAMILIES)}; {model} is of "
            f"{family!r}. kit train may still run it: it halves what does not fit by itself"
        )
    if values.get("quantization_config") is not None:
        raise ModelError(f"{model} is already quantized; give the id of its full-precision weights")

    def number(key: str, default: int | None = None) -> int:
        value = values.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= 10**7:
            raise ModelError(f"config.json of {model}: {key} must be a whole number, got {value!r}")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    bias = bool(values.get("attention_bias"))
    return Shape(
        hidden=hidden,
        layers=number("num_hidden_layers"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads),
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        tied=bool(values.get("tie_word_embeddings")),
        qkv_bias=bias or family == "qwen2",
        output_bias=bias,
        mlp_bias=bool(values.get("mlp_bias")),
        qk_norm=family == "qwen3",
    )


def _is_local(model: str) -> bool:
    return model in EMBEDDED_PATHS or Path(model).is_dir()


def _cached(model: str, revision: str | None) -> Path | None:
    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError as error:
        raise ModelError(f"no folder and no hub id: {model!r} ({error})") from None
    return Path(found) if isinstance(found, str) else None


def _download(model: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(model, "config.json", revision=revision))
    except OSError as error:
        reason = first_line(error)
        raise ModelError(
            f"cannot read config.json of {model!r}: {reason} Check the id, the network and (for "
            "gated models) your hub login, or give a folder with that file: model.id=folder. Known "
            f"without the network: Qwen/Qwen2.5-{{{','.join(_QWEN)}}}[-Instruct]"
        ) from error
