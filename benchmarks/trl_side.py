"""One side of benchmarks/trl_step.py: trains, and takes a step for each line that it is sent.

python benchmarks/trl_side.py --side kit --size tiny --quantization none --folder FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from measuring import CUDA, SIZES, Size, noise, settle

from kit.config import EMBEDDED, EMBEDDED_RECIPES, Config
from kit.model.hardware import choose_hardware, peak_memory_mb, reset_peak_memory
from kit.reading import read_metrics
from kit.recipe import load_config

BASELINE = "LIBRARIES_MB"  # in the environment: the kit loads this file anew for its function
MARK = "@step "  # begins the lines that are for the other process
SIDES = ("kit", "TRL")
RECIPE = EMBEDDED_RECIPES[EMBEDDED]
MICRO = 16  # rows of a micro-batch
ROW = 230  # tokens that a row has about, for the kit, which counts them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--quantization", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    config = recipe(SIZES[options.size], options.quantization, options.folder)
    {"kit": train_kit, "TRL": train_trl}[options.side](config)


def recipe(size: Size, quantization: str, folder: Path) -> Config:
    """The word problems', as what TRL calls GRPO, without anything beside the steps."""
    prompts = size.prompts * (size.runs + 4)
    rows = min(MICRO, size.prompts * size.group)
    return load_config(
        RECIPE,
        [
            *(f"model.quantization={quantization}", "model.backend=transformers"),
            *("data.validation_size=0", f"data.options={{size: {20 * prompts}, seed: 0}}"),
            *(f"rollout.prompts_per_step={size.prompts}", f"rollout.group_size={size.group}"),
            f"rollout.max_new_tokens={size.tokens}",
            *("objective.trust_region={name: clip}", "objective.old_policy=sampler"),
            *("reward.correct=0", "reward.format=0", "optim.schedule=constant"),
            f"reward.functions=[{{path: '{__file__}:paced'}}]",
            *(f"train.steps={size.runs + 4}", "train.updates_per_rollout=1"),
            f"train.micro_batch_tokens={rows * ROW}",
            *("train.validate_every=0", "train.preflight_problems=0"),
            *(f"train.checkpoint_every={size.runs + 4}", f"output={folder / 'run'}"),
        ],
    )


since: list[float] = []  # when the reward function returned last


def paced(completions: list[Any], **columns: Any) -> list[float]:
    """The reward: says how long the step took, waits for its turn, and lets the next begin."""
    settle()
    if since:
        seconds = time.perf_counter() - since.pop()
        device = choose_hardware(load_config(RECIPE).model).device
        peak = max(peak_memory_mb(device), _peak_in_metrics())
        said = {
            "seconds": seconds,
            "peak_mb": peak - float(os.environ[BASELINE]),
            "characters": sum(len(m[0]["content"]) for m in completions) / len(completions),
        }
        print(MARK + json.dumps(said), flush=True)
        reset_peak_memory(device)
    if not sys.stdin.readline():
        os._exit(0)  # the other process has ended
    since.append(time.perf_counter())
    return noise(completions)


def _peak_in_metrics() -> float:
    """The kit measures each of its steps from its beginning, which forgets what was before."""
    folder = next(a.partition("=")[2] for a in sys.argv if a.startswith("--folder="))
    metrics = Path(folder, "run", "metrics.jsonl")
    return read_metrics(metrics)[-1]["memory/peak_mb"] if metrics.exists() else 0.0


def _libraries_are_loaded() -> None:
    """On the CPU what they take is not counted; on a GPU they take nothing."""
    taken = 0.0 if CUDA else psutil.Process().memory_info().rss / 2**20
    os.environ[BASELINE] = str(taken)


def train_kit(config: Config) -> None:
    from kit.training.trainer import train

    _libraries_are_loaded()
    train(config)


def train_trl(config: Config) -> None:
    """What TRL's user would write for it."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import GRPOConfig, GRPOTrainer

    from kit.model.base import NF4, use_exact_kernels
    from kit.training.data import load_training_data, problem_index

    _libraries_are_loaded()
    hardware = choose_hardware(config.model)
    bits = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=hardware.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        config.model.source,
        dtype=hardware.dtype,
        device_map={"": hardware.device},
        quantization_config=bits if config.model.quantization == "nf4" else None,
    )
    use_exact_kernels(model)  # of its 4 bits: the others have no gradients on some processors
    tokenizer = AutoTokenizer.from_pretrained(config.model.source)
    problems = load_training_data(config, tokenizer).train_set.problems
    steps, rollout = config.train.steps, config.rollout
    order = [
        problem_index(i, len(problems), config.train.seed)
        for i in range(steps * rollout.prompts_per_step)
    ]
    rows = rollout.prompts_per_step * rollout.group_size
    micro = min(MICRO, rows)
    GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=config.lora.targets
        ),
        reward_funcs=paced,
        train_dataset=Dataset.from_dict({"prompt": [problems[i]["prompt"] for i in order]}),
        args=GRPOConfig(
            output_dir=config.output,
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=rows // micro,
            num_generations=rollout.group_size,
            max_completion_length=rollout.max_new_tokens,
            temperature=rollout.temperature,
            learning_rate=config.optim.learning_rate,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            bf16=hardware.dtype == torch.bfloat16,
            fp16=hardware.dtype == torch.float16,
            use_cpu=not CUDA,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
    ).train()


if __name__ == "__main__":
    main()
