"""GPU memory of training, part by part, by arithmetic from the model's shape; imports no torch.

c bytes of a number in the compute type, `row` tokens of a row. The formulas follow what the kit,
transformers, PEFT and bitsandbytes allocate; docs/estimate.md compares them with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kit.cards import CONTEXT
from kit.config import PREFLIGHT_SAMPLES, Config
from kit.model.shape import PREFILL_TOKENS, Shape, bucketed, rows_that_fit

GIB = 2**30
FRAGMENTATION = 0.1  # of everything that comes and goes: an allowance

NF4_BLOCK = 64  # weights that share a scale
SCALE_BLOCK = 256  # scales that share a scale of their own (double quantization)
NF4_TABLES = (16 + 256 + 1) * 4  # per layer: the two code books and an offset, float32
SMALL_TENSOR = 4096  # adamw_8bit keeps the state of smaller tensors in float32


@dataclass(frozen=True, slots=True)
class Phase:
    """What is in memory at the fullest moment of one phase."""

    name: str
    parts: dict[str, int]  # bytes

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Wave:
    """Completions that are asked for together."""

    name: str
    rows: int
    samples: int  # of each prompt
    arms: int = 1  # whose rows are among them


def weight_bytes(shape: Shape, quantization: str, c: int) -> dict[str, int]:
    """Bytes of the frozen base: the linear layers, and everything that is never quantized."""
    dense = shape.other_size * c
    if quantization == "none":
        return {"weights, linear layers": shape.linear_size * c, "weights, the rest": dense}
    if quantization == "int8":  # a float32 scale per output
        each = [linear.size + 4 * linear.outputs for linear in shape.linears]
    else:
        each = [_nf4_bytes(linear.size) for linear in shape.linears]
    return {
        f"weights, linear layers ({quantization})": shape.layers * sum(each),
        "weights, the rest (embeddings, …)": dense,
    }


def _nf4_bytes(size: int) -> int:
    scales = math.ceil(size / NF4_BLOCK)
    return math.ceil(size / 2) + scales + 4 * math.ceil(scales / SCALE_BLOCK) + NF4_TABLES


def with_value(config: Config, key: str, value: Any) -> Config:
    """The configuration with another value for a dotted name."""
    name, field = key.split(".")
    section = getattr(config, name).model_copy(update={field: value})
    return config.model_copy(update={name: section})


def lora_size(shape: Shape, config: Config) -> int:
    """Trained weights."""
    return sum(_lora_tensors(shape, config)) * shape.layers


def optimizer_bytes(shape: Shape, config: Config) -> int:
    """AdamW's two moments."""
    if config.optim.name == "adamw":
        return 8 * lora_size(shape, config)
    each = [
        8 * size if size < SMALL_TENSOR else 2 * (size + 4 * math.ceil(size / 256))
        for size in _lora_tensors(shape, config)
    ]
    return shape.layers * sum(each)


def _lora_tensors(shape: Shape, config: Config) -> list[int]:
    """Sizes of the A and B matrices of one layer."""
    rank = config.lora.rank
    adapted = shape.adapted(config.lora.targets)
    return [rank * side for linear in adapted for side in (linear.inputs, linear.outputs)]


def shares_prompts(config: Config) -> bool:
    """Whether the update computes a prompt once for its group: see kit.model.packing."""
    return config.method != "sft" and config.model.attention == "auto"


def group_size(config: Config) -> int:
    """Completions of an optimizer step that have the same prompt."""
    return {"grpo": config.rollout.group_size, "dpo": 2}.get(config.method, 1)


def update_rows(config: Config) -> int:
    """Rows of an optimizer step."""
    if config.method == "sft":
        return config.train.sft_batch
    if config.learns_from_preferences:
        return config.preferences.batch * group_size(config)
    return config.rollout.prompts_per_step * config.rollout.group_size


def update_tokens(config: Config) -> int:
    """Tokens that all rows of an optimizer step have, a shared prompt counted once."""
    rows, prompt = update_rows(config), config.data.max_prompt_tokens
    prompts = rows // group_size(config) if shares_prompts(config) else rows
    return prompts * prompt + rows * config.rollout.max_new_tokens


def kept_per_token(shape: Shape, config: Config, c: int, row: int, keys: float = 1.0) -> int:
    """Bytes that one layer keeps of a token until its backward pass.

    In 16 bits LoRA and the norms keep float32 copies of their inputs; in 32 bits those inputs are
    shared. Where prompts are shared, attention keeps `keys` keys for each token, none of them
    repeated; else every head has its own, and the mask is one row of S numbers per token.
    """
    adapted = shape.adapted(config.lora.targets)
    names = {linear.name.rpartition(".")[2] for linear in adapted}
    norms = 2 * 4 * shape.hidden + 8
    low_rank = 4 * config.lora.rank * len(adapted)
    if c == 4:
        groups = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
        inputs = 4 * shape.hidden * sum(bool(group & names) for group in groups)
        inputs += 4 * shape.intermediate * ("down_proj" in names)
    else:
        inputs = 4 * sum(linear.inputs for linear in adapted)
    attention = 4 * shape.heads
    if shares_prompts(config):
        gathered = shape.query if c == 4 and "o_proj" in names else 0
        attention += c * (2 * shape.query + gathered)
        attention += int(2 * keys * c * shape.kv_heads * shape.head_dim)
    else:
        attention += c * (4 * shape.query + row)
    if config.model.attention == "eager":
        attention += shape.heads * row * (4 + (c if c < 4 else 0))
    return norms + inputs + low_rank + attention + 3 * c * shape.intermediate


class Memory:
    """Bytes in use in the phases of training, at their fullest moment."""

    def __init__(
        self, shape: Shape, config: Config, gpu: int, others: Sequence[Config] = ()
    ) -> None:
        """`gpu`: bytes the GPU has. `others`: arms that train together with this one, of which only
        LoRA, optimizer and rows of preferences count; the rest holds for all.

        Each arm has weights, optimizer state and rows of its own, but updates one after the other.
        """
        self.shape, self.config, self.gpu = shape, config, gpu
        self.arms = (config, *others)
        self.c = 4 if config.model.dtype == "float32" else 2
        prompt, new = config.data.max_prompt_tokens, config.rollout.max_new_tokens
        self.row = prompt + new  # the longest there can be
        lora = [4 * lora_size(shape, arm) for arm in self.arms]
        self.gradients = max(lora)
        self.resident = {
            **weight_bytes(shape, config.model.quantization, self.c),
            # all arms share one snapshot of what they continue
            "LoRA weights": sum(lora) + (lora[0] if config.model.adapter else 0),
            "optimizer state": sum(optimizer_bytes(shape, arm) for arm in self.arms),
            "CUDA context": int(CONTEXT),
        }
        self.copy = self._dequantized_copy()

    @property
    def checkpointed(self) -> bool:
        """As the configuration says; auto: where the update would not fit without."""
        asked = self.config.model.gradient_checkpointing
        return self._update(False).total > self.gpu if asked == "auto" else asked

    @property
    def peak(self) -> int:
        return max(phase.total for phase in self.phases())

    @property
    def sampling_peak(self) -> int:
        return max((phase.total for phase in self.sampling()), default=0)

    @property
    def waves(self) -> list[Wave]:
        """Whatever samples: the steps, the look before them, the validations."""
        config = self.config
        waves = []
        if config.method == "grpo":
            group, problems = config.rollout.group_size, config.train.preflight_problems
            arms = len(self.arms)
            rows = arms * config.rollout.prompts_per_step * group
            waves.append(Wave("steps", rows, group, arms))
            waves.append(Wave("pre-flight", problems * PREFLIGHT_SAMPLES, PREFLIGHT_SAMPLES))
        if config.train.validate_every:
            waves.append(Wave("validation", config.data.validation_size, 1))
        return [wave for wave in waves if wave.rows]

    def rows(self, wave: Wave) -> int:
        """Completions of a wave that are decoded at once."""
        free = max(0, self.gpu - sum(self.resident.values()) - self.copy)
        fit = rows_that_fit(self.shape.cache_per_token(self.c), self.shape.vocab, self.row, free)
        return min(wave.rows, self.config.rollout.max_rows or fit)

    @property
    def unit(self) -> int:
        """Tokens of what a micro-batch cannot cut: a row, or a pair of them (dpo)."""
        if self.config.method != "dpo":
            return self.row
        shared = self.config.data.max_prompt_tokens if shares_prompts(self.config) else 0
        return 2 * self.row - shared

    @property
    def micro_batch(self) -> int:
        """Tokens of the largest micro-batch; a unit that is longer than the budget goes alone."""
        budget = max(self.config.train.micro_batch_tokens, self.unit)
        return min(budget, max(map(update_tokens, self.arms)))

    def phases(self) -> list[Phase]:
        """Reading prompts and decoding, of the wave that needs most; the update."""
        return [*self.sampling(), self.update()]

    def sampling(self) -> list[Phase]:
        return [
            max((build(wave) for wave in self.waves), key=lambda phase: phase.total)
            for build in (self._prompts, self._decoding)
            if self.waves
        ]

    def _prompts(self, wave: Wave) -> Phase:
        """The last forward over distinct prompts of the rows."""
        prompt = self.config.data.max_prompt_tokens
        tokens = math.ceil(self.rows(wave) / wave.samples) * prompt
        at_once = min(tokens, max(PREFILL_TOKENS // prompt, 1) * prompt)
        return self._phase(
            f"prompts ({wave.name})",
            {
                "dequantized copy": self.copy,
                "LoRA, side by side": self.side_by_side(wave),
                "key-value cache": tokens * self.shape.cache_per_token(self.c),
                "activations": at_once * self._forward_per_token(prompt) + self._unpacked(),
            },
        )

    def _decoding(self, wave: Wave) -> Phase:
        """The last token of rows that all reach the cap."""
        shape, c, rows = self.shape, self.c, self.rows(wave)
        # dropping rows copies the keys of a layer, and so does giving every head its own
        cache = shape.cache_per_token(c)
        growing = cache / (2 * shape.layers)
        grouped = shape.heads == shape.kv_heads or self.config.model.attention == "auto"
        repeated = 0 if grouped else 2 * shape.query * c
        # rows of several arms hold the input of LoRA's products once for each
        inputs = 4 * wave.arms * shape.intermediate if wave.arms > 1 else 0
        per_row = self._forward_per_token(self.row) + inputs
        rollout = self.config.rollout
        per_logit = 42 if rollout.top_p < 1 else 33 if rollout.top_k else 24
        return self._phase(
            f"decoding ({wave.name})",
            {
                "dequantized copy": self.copy,
                "LoRA, side by side": self.side_by_side(wave),
                "key-value cache": int(rows * bucketed(self.row) * (cache + growing + repeated)),
                "logits": rows * per_logit * shape.vocab,
                "activations": rows * per_row + self._unpacked(),
            },
        )

    def update(self) -> Phase:
        return self._update(self.checkpointed)

    def _update(self, checkpointed: bool) -> Phase:
        """Backward of the largest micro-batch, when gradients are there from an earlier one."""
        shape, c, tokens = self.shape, self.c, self.micro_batch
        group, positions, keys = self._shares()
        each = (kept_per_token(shape, arm, c, self.row, keys) for arm in self.arms)
        kept = max(each) * tokens
        # the final norm's input in float32, the states that predict completions, cosine and sine
        ends = (4 * shape.hidden + 2 * c * shape.head_dim) * tokens
        ends += c * positions * shape.hidden
        backward = tokens * ((3 if c < 4 else 2) * c * shape.intermediate + 8 * shape.hidden)
        backward += self._unpacked(with_copy=False)
        stored = c * shape.hidden * shape.layers * tokens if checkpointed else kept * shape.layers
        logits = 8 * min(self.config.train.logprob_chunk, positions) * shape.vocab
        working = max(logits, backward + (kept if checkpointed else 0))
        return self._phase(
            "update",
            {
                "gradients": self.gradients,
                "activations": stored + ends + self._masks(group),
                "log-probs or backward": working,
            },
        )

    def side_by_side(self, wave: Wave) -> int:
        """The sampler's copy of the adapters that are in a wave; of one, the largest."""
        sizes = (
            4 * self.shape.lora_side_by_side(arm.lora.targets, arm.lora.rank) for arm in self.arms
        )
        return sum(sorted(sizes)[-wave.arms :])

    def _shares(self) -> tuple[int, int, float]:
        """Of the largest micro-batch: completions that share a prompt, the positions that predict
        completions, and the keys there are for each token."""
        prompt, new = self.config.data.max_prompt_tokens, self.config.rollout.max_new_tokens
        if not shares_prompts(self.config):
            return 1, self.micro_batch * new // self.row, 1.0
        group = max(1, (self.micro_batch - prompt) // new)
        group = min(group, group_size(self.config))
        tokens = prompt + group * new
        return group, self.micro_batch * group * new // tokens, 1 + group * prompt / tokens

    def _masks(self, group: int) -> int:
        """Who may look where, of every group in a micro-batch; the same for all layers."""
        if not shares_prompts(self.config):
            return 0
        prompt, new = self.config.data.max_prompt_tokens, self.config.rollout.max_new_tokens
        groups = max(1, self.micro_batch // (prompt + group * new))
        cells = prompt * prompt + new * self.row
        return groups * cells * self.c * self.shape.heads // self.shape.kv_heads

    def _forward_per_token(self, row: int) -> int:
        """Bytes of one layer's intermediate results, none of them kept, and of its mask."""
        shape, c = self.shape, self.c
        return (8 + 2 * c) * (shape.intermediate + shape.hidden) + (1 + c) * row

    def _unpacked(self, *, with_copy: bool = True) -> int:
        """The largest linear layer in compute precision, where it has to be unpacked for use."""
        if self.config.model.quantization == "none" or (with_copy and self.copy):
            return 0
        return max(linear.size for linear in self.shape.linears) * self.c

    def _dequantized_copy(self) -> int:
        size = self.shape.linear_size * self.c
        free = self.gpu - sum(self.resident.values())
        mode = self.config.rollout.dequantize
        fits = mode == "always" or (mode == "auto" and size < free / 3)
        return size if fits and self.config.model.quantization == "nf4" else 0

    def _phase(self, name: str, parts: dict[str, int]) -> Phase:
        passing = sum(parts.values()) - parts.get("dequantized copy", 0)
        allowance = {"fragmentation": int(FRAGMENTATION * passing)}
        return Phase(name, self.resident | parts | allowance)
