"""How long the parts of a step take on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kit.config import Config
from kit.estimate.gpus import GPU
from kit.estimate.memory import Memory, Wave, update_rows, update_tokens
from kit.model.shape import LENGTH_BUCKET, Shape


@dataclass(frozen=True, slots=True)
class Pace:
    """How long texts get and how well the GPU is used: the ends of the range, and in between.

    Chosen so that published times fall into the range; docs/estimate.md lists them.
    """

    length: float  # of the longest prompt and completion allowed
    signal: float  # share of groups that are learned from
    bandwidth: float  # share of the data sheet's
    flops: float  # likewise
    operation: float  # seconds to launch one


FAST = Pace(length=0.5, signal=0.5, bandwidth=0.8, flops=0.4, operation=8e-6)
LIKELY = Pace(length=0.6, signal=0.7, bandwidth=0.6, flops=0.25, operation=18e-6)
SLOW = Pace(length=1.0, signal=1.0, bandwidth=0.4, flops=0.1, operation=25e-6)

# operations launched per layer of an update, counted: a forward of the base, LoRA on one linear
# layer, backward
LAYER_OPERATIONS, LORA_OPERATIONS, BACKWARD_OPERATIONS = 50, 7, 139
# and of a decoded token, counted on the pretended card: whatever the layers, per layer, and LoRA on
# modules that are computed at once
TOKEN_LAUNCHES, LAYER_LAUNCHES, LORA_LAUNCHES = 46, 32, 4

# forwards without gradient over the rows of a step: the reference of grpo and dpo; of kto also
# mismatched completions, under the policy and under the reference
FIXED_PASSES = {"grpo": 1, "sft": 0, "dpo": 1, "kto": 3}


def step_seconds(memory: Memory, gpu: GPU) -> dict[str, tuple[float, float, float]]:
    """{what: (least, likely, most)}; empty where the speed of the GPU is not known."""
    if gpu.bandwidth is None or gpu.flops is None:
        return {}
    train = memory.config.train
    ends = []
    for pace in (FAST, LIKELY, SLOW):
        sampling = {
            wave.name: _sampling(memory, wave, pace, gpu.bandwidth, gpu.flops)
            for wave in memory.waves
        }
        update = sum(_update(memory, arm, pace, gpu.flops) for arm in memory.arms)
        step = sampling.get("steps", 0.0) + update
        validation = len(memory.arms) * sampling.get("validation", 0.0)
        times = 1 + math.ceil(train.steps / train.validate_every) if train.validate_every else 0
        run = train.steps * step + times * validation + sampling.get("pre-flight", 0.0)
        ends.append(
            {
                "sampling": sampling.get("steps", 0.0),
                "update": update,
                "one step": step,
                "validation": validation,
                "whole run": run,
            }
        )
    return {
        name: (least, ends[1][name], ends[2][name])
        for name, least in ends[0].items()
        if ends[2][name]
    }


def token_launches(shape: Shape, config: Config) -> int:
    """Operations that the host asks for to decode a token of all rows, each launched by itself."""
    groups = len(shape.together(config.lora.targets))
    return TOKEN_LAUNCHES + shape.layers * (LAYER_LAUNCHES + LORA_LAUNCHES * groups)


def _sampling(memory: Memory, wave: Wave, pace: Pace, bandwidth: float, flops: float) -> float:
    """Prompts once, then one token at a time: bound by launches or by the bytes that move."""
    shape, c, config = memory.shape, memory.c, memory.config
    rows = memory.rows(wave)
    prompt = pace.length * config.data.max_prompt_tokens
    new = pace.length * config.rollout.max_new_tokens
    if memory.copy or config.model.quantization == "none":
        weights: float = shape.linear_size * c
    else:  # at best unpacked inside the product, at worst written out and read again
        weights = shape.linear_size * (0.5 if pace is FAST else 0.5 + 2 * c)
    # the cache is read, what is masked of its last bucket too
    cache = rows * (prompt + (new + LENGTH_BUCKET) / 2) * shape.cache_per_token(c)
    if config.model.attention != "auto":  # copied to append a token, and repeated for every head
        cache *= 3 + 2 * shape.heads / shape.kv_heads
    head = shape.vocab * shape.hidden * c
    moved = weights + memory.side_by_side(wave) + head + cache + rows * 24 * shape.vocab
    launches = max(token_launches(shape, arm) for arm in memory.arms)
    token = max(launches * pace.operation, moved / (bandwidth * pace.bandwidth))
    prompts = 2 * shape.linear_size * prompt * wave.rows / wave.samples
    return math.ceil(wave.rows / rows) * new * token + prompts / (flops * pace.flops)


def _update(memory: Memory, config: Config, pace: Pace, flops: float) -> float:
    """Forward (again with checkpointing) and backward to the inputs; what is fixed, once."""
    shape = memory.shape
    updates = config.updates_per_step
    fixed = FIXED_PASSES[config.method]
    again = memory.checkpointed
    signal = pace.signal if config.method == "grpo" else 1.0
    rows, row = update_rows(config) * signal, pace.length * memory.row
    tokens = update_tokens(config) * signal * pace.length
    forward = 2 * tokens * (shape.linear_size + shape.layers * shape.query * row)
    head = 2 * rows * pace.length * config.rollout.max_new_tokens * shape.vocab * shape.hidden
    work = forward * (fixed + updates * (2 + again)) + head * (fixed + 2 * updates)
    with_lora = LAYER_OPERATIONS + LORA_OPERATIONS * len(shape.adapted(config.lora.targets))
    launches = float(fixed * LAYER_OPERATIONS)
    launches += updates * (with_lora * (1 + again) + BACKWARD_OPERATIONS)
    launches *= math.ceil(tokens / memory.micro_batch) * shape.layers
    return max(work / (flops * pace.flops), launches * pace.operation)
