"""The update phase at Qwen2.5-0.5B's shape, with random weights: the kit, full logits, TRL's loss.

    OMP_NUM_THREADS=1 python benchmarks/loss.py [--quick]

Rows of one prompt, as sampled from a group. The kit's whole update has what the others have not:
the pass of the reference, gradients clipped and applied, and metrics. Memory is what is added while
it runs to what is there before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from measuring import (
    CUDA,
    QWEN,
    TINY,
    Size,
    Table,
    against,
    benchmark,
    measured_base,
    paired,
    random_checkpoint,
)
from torch import Tensor

from kit.config import DEMO_RECIPE, ModelConfig
from kit.model.base import Base, load_base
from kit.model.hardware import peak_memory_mb, reset_peak_memory
from kit.model.lora import TRAINED
from kit.model.policy import Policy
from kit.model.rollout import Completion, Request, Sampled
from kit.model.shape import find_shape
from kit.recipe import load_config
from kit.runs import RunFolder
from kit.training.data import load_training_data
from kit.training.learner import Learner

FIRST = 100  # token ids from here on, none of which is a control token's


def main() -> None:
    benchmark(str(__doc__), (update,))


def update(size: Size) -> Table:
    """The update at Qwen2.5-0.5B's shape"""
    with qwen(size) as base, tempfile.TemporaryDirectory() as folder:
        learner = build_learner(base, size, folder)
        rows = build_rows(learner.policy, size)
        ways: dict[str, Callable[[], object]] = {
            "kit, its whole update": lambda: learner.method.learn(0, rows.sampled),
            "kit, loss and gradients": lambda: kit_loss(learner.policy, rows).backward(),
            "full logits": lambda: full_logits(learner.policy, rows).backward(),
            "TRL's loss": trl(learner.policy, rows, folder),
        }
        runs = max(1, size.runs // 2)  # each takes long on a CPU
        peaks: dict[str, float] = {}

        def side(name: str) -> Callable[[int], float]:
            def work(_: int) -> float:
                for parameter in learner.policy.trainable:
                    parameter.grad = None
                peaks[name] = _added(ways[name], base.hardware.device)
                return 1

            return work

        speeds = paired({name: side(name) for name in ways}, runs)
        table = against(speeds)
        for row in table:
            row["kit's loss / it"] = _ratio(speeds, "kit, loss and gradients", row[""])
            row["memory, MiB"] = round(peaks[row[""]])
        count, prompt, tokens = size.update
        note = f'{count} rows of {prompt} + {tokens} tokens; "kit / it" is the whole update\'s.'
        return Table("", table, note, runs=speeds)


def _ratio(speeds: dict[str, list[float]], name: str, other: str) -> float:
    pairs = zip(speeds[name], speeds[other], strict=True)
    return sorted(a / b for a, b in pairs)[len(speeds[name]) // 2]


def _added(work: Callable[[], object], device: torch.device) -> float:
    """MiB that it takes beyond what is there."""
    reset_peak_memory(device)
    before = peak_memory_mb(device)
    work()
    return peak_memory_mb(device) - before


@contextmanager
def qwen(size: Size) -> Iterator[Base]:
    if size is TINY:
        with measured_base(size) as base:
            yield base
        return
    with random_checkpoint(find_shape(QWEN)[0]) as folder:
        yield load_base(ModelConfig(id=folder, quantization="none", backend="transformers"))


def build_learner(base: Base, size: Size, folder: str) -> Learner:
    """A learner as `kit train` has it, with the demo's problems."""
    config = load_config(
        DEMO_RECIPE,
        [
            *("data.validation_size=0", "data.options={size: 200, seed: 0}"),
            *("rollout.prompts_per_step=1", f"rollout.group_size={size.update[0]}"),
            *("objective.trust_region={name: clip}", "objective.old_policy=sampler"),
            *("train.updates_per_rollout=1", "train.validate_every=0"),
            "optim.learning_rate=1e-12",  # the rows stay what this policy samples
            *("train.preflight_problems=0", f"output={folder}/run"),
        ],
    )
    run = RunFolder(f"{folder}/run")
    run.open(config, False).release()
    data = load_training_data(config, base.tokenizer)
    accelerator = Accelerator(cpu=not CUDA)
    learner = Learner(config, run, accelerator, base, data, adapter_name=TRAINED, model=None)
    learner.policy.activate()
    return learner


@dataclass(frozen=True)
class Rows:
    """The same rows for all."""

    sampled: Sampled
    advantages: Tensor  # (B,)

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [request.prompt for request in self.sampled.requests]

    @property
    def completions(self) -> list[list[int]]:
        return [completion.tokens for completion in self.sampled.completions]


def build_rows(policy: Policy, size: Size) -> Rows:
    """Random tokens, with the log-probs that the policy gives them and rewards that differ."""
    count, prompt, length = size.update
    generator = torch.Generator().manual_seed(0)
    vocabulary = policy.causal.config.vocab_size

    def draw(tokens: int) -> list[int]:
        return torch.randint(FIRST, vocabulary, (tokens,), generator=generator).tolist()

    shared = tuple(draw(prompt))
    requests = [Request(shared, (0, 0, row), TRAINED) for row in range(count)]
    tokens = [draw(length) for _ in requests]
    with torch.no_grad():
        logprobs = policy.logprobs(policy.batch([shared] * count, tokens))[0].tolist()
    texts = ["#### 1"] + [""] * (count - 1)  # the first is rewarded for its form
    completions = [
        Completion(own, said, False, text)
        for own, said, text in zip(tokens, logprobs, texts, strict=True)
    ]
    advantages = torch.tensor([1.0] + [-1.0] * (count - 1))
    return Rows(Sampled(requests, completions, 0.0), advantages)


def kit_loss(policy: Policy, rows: Rows) -> Tensor:
    logprobs, _ = policy.logprobs(policy.batch(rows.prompts, rows.completions))
    return -(logprobs * rows.advantages.to(logprobs.device)[:, None]).sum()


def full_logits(policy: Policy, rows: Rows) -> Tensor:
    """As it is written first: log_softmax over the logits of every position."""
    ids = torch.tensor(
        [[*p, *c] for p, c in zip(rows.prompts, rows.completions, strict=True)],
        device=policy.base.hardware.device,
    )
    length = len(rows.completions[0])
    logits = policy.causal(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    every = torch.log_softmax(logits[:, -length - 1 : -1].float(), -1)
    logprobs = every.gather(-1, ids[:, -length:, None]).squeeze(-1)
    return -(logprobs * rows.advantages.to(ids.device)[:, None]).sum()


def trl(policy: Policy, rows: Rows, folder: str) -> Callable[[], object]:
    """TRL's own computation of the loss, and its gradients, on the same model."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    trainer: Any = GRPOTrainer(
        model=policy.peft,
        processing_class=policy.base.tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_dict({"prompt": ["1 + 1 ="] * 4}),
        args=GRPOConfig(
            output_dir=str(Path(folder) / "trl"),
            per_device_train_batch_size=len(rows.prompts),
            num_generations=len(rows.prompts),
            max_completion_length=len(rows.completions[0]),
            bf16=policy.base.hardware.dtype == torch.bfloat16,
            fp16=policy.base.hardware.dtype == torch.float16,
            use_cpu=not CUDA,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.current_gradient_accumulation_steps = 1  # its loop sets this
    device = policy.base.hardware.device
    prompts, completions = torch.tensor(rows.prompts), torch.tensor(rows.completions)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "old_per_token_logps": torch.tensor([c.logprobs for c in rows.sampled.completions]),
        "advantages": rows.advantages,
        "num_items_in_batch": torch.tensor(completions.numel()),
    }
    moved = {name: value.to(device) for name, value in inputs.items()}
    return lambda: trainer.compute_loss(trainer.model, moved).backward()


if __name__ == "__main__":
    main()
