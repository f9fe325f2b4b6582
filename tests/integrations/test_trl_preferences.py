"""DPO and KTO: the loss and gradient of the kit's steps are those of TRL's trainers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from kit.config import LoraConfig
from kit.model.base import Base
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.model.rollout import Sampled
from kit.recipe import build_config
from kit.training.dpo import DPO
from kit.training.examples import Labelled, Pair
from kit.training.kto import KTO, mismatched
from kit.training.optimizer import Optimizer
from kit.training.whole_logprobs import Row

trl = pytest.importorskip("trl", reason='needs TRL: pip install "trl>=1.14,<1.17"')
pytestmark = pytest.mark.smoke

# The network computes in float64; the kit's log-probabilities of tokens, at most 16 nats, are
# rounded to float32 once, and up to 12 of them are added to those of a completion.
NOISE = 12 * 16 * 2**-24
GRADIENT_NOISE = 10 * NOISE  # in which tokens cancel
PROMPTS = [(5, 6, 7, 8, 9, 10, 11), (12, 13, 14), (5, 6, 15), (20, 21, 22, 23)]
LENGTHS = [(9, 4), (1, 12), (6, 6), (3, 8)]
LABELS = [True, False, True, True]
WEIGHTS = {"desirable_weight": 0.7, "undesirable_weight": 1.9}
UNREAD: Any = None


@pytest.fixture
def fresh(double_base: Base) -> Iterator[Policy]:
    """A policy that is its reference still."""
    policy = Policy(double_base, add_lora(double_base, LoraConfig(rank=4, alpha=8), 0).double())
    yield policy
    policy.peft.unload()


@pytest.fixture
def pairs(double_base: Base) -> list[Pair]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = double_base.model.config.vocab_size

    def row(prompt: tuple[int, ...], length: int) -> Row:
        return Row(
            prompt, tuple(torch.randint(vocabulary, (length,), generator=generator).tolist())
        )

    sides = zip(PROMPTS, LENGTHS, strict=True)
    return [Pair(*(row(prompt, n) for n in lengths), UNREAD) for prompt, lengths in sides]


@pytest.fixture
def labelled(pairs: list[Pair]) -> list[Labelled]:
    return [Labelled(p.chosen, label, UNREAD) for p, label in zip(pairs, LABELS, strict=True)]


def move(policy: Policy) -> None:
    """Away from the reference, by some nats a completion."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in policy.trained_weights.items():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def kit_step(
    method: type, policy: Policy, examples: list[Any], **preferences: Any
) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of one step on all examples, in several micro-batches."""
    config = build_config(
        {
            "method": method.__name__.lower(),
            "model": {"id": "embedded", "quantization": "none"},
            "data": {"name": "gsm_symbolic"},
            "preferences": {
                "source": "x.jsonl",
                "batch": len(examples),
                "beta": 0.3,
                **preferences,
            },
            "optim": {"max_grad_norm": math.inf, "learning_rate": 1e-12},
            "train": {"micro_batch_tokens": 40},
        }
    )
    accelerator = Accelerator(cpu=True)
    optimizer = Optimizer(policy.trainable, config.optim, config.train, accelerator, False)
    gradients: list[Tensor] = []
    optimizer._adam.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.flatten().clone() for p in policy.trainable)
    )
    policy.activate()
    step = method(config.preferences, config.train, policy, optimizer, examples, accelerator)
    metrics = step.learn(0, Sampled([], [], 0.0))
    return metrics[f"{config.method}/loss"], torch.cat(gradients), metrics


def trl_step(trainer: Any, policy: Policy, inputs: dict[str, Tensor]) -> tuple[float, Tensor]:
    policy.activate()
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.trainable])
    policy.peft.zero_grad(set_to_none=True)
    return loss.item(), gradient


def trainer_of(kind: str, policy: Policy, folder: Path, columns: dict[str, Any], **settings) -> Any:
    """A trainer of TRL's on this policy; what it copies as its reference is the policy as it is."""
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        beta=0.3,
        **settings,
    )
    return getattr(trl, f"{kind}Trainer")(
        model=policy.peft,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=policy.base.tokenizer,
    )


def dpo_trainer(policy: Policy, folder: Path, **settings) -> Any:
    columns = {"prompt": ["1 + 1 ="], "chosen": [" 2"], "rejected": [" 3"]}
    return trainer_of("DPO", policy, folder, columns, **settings)


def kto_trainer(policy: Policy, folder: Path, **settings) -> Any:
    columns = {"prompt": ["1 + 1 ="] * 4, "completion": [" 2"] * 4, "label": LABELS}
    size = {"per_device_train_batch_size": 4}
    return trainer_of("KTO", policy, folder, columns, **size, **settings)


def dpo_inputs(trainer: Any, pairs: list[Pair]) -> dict[str, Tensor]:
    return trainer.data_collator(
        [
            {
                "prompt_ids": list(pair.chosen.prompt),
                "chosen_ids": list(pair.chosen.completion),
                "rejected_ids": list(pair.rejected.completion),
            }
            for pair in pairs
        ]
    )


def kto_inputs(trainer: Any, examples: list[Labelled]) -> dict[str, Tensor]:
    rows = zip(examples, mismatched(examples), strict=True)
    return trainer.data_collator(
        [
            {
                "prompt_ids": list(example.row.prompt),
                "completion_ids": list(example.row.completion),
                "KL_completion_ids": list(other.completion),
                "label": example.label,
            }
            for example, other in rows
        ]
    )


def gap(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_dpo_is_trls(fresh, pairs, tmp_path):
    trainer = dpo_trainer(fresh, tmp_path)
    move(fresh)
    theirs, gradient = trl_step(trainer, fresh, dpo_inputs(trainer, pairs))
    ours, own, metrics = kit_step(DPO, fresh, pairs)
    assert abs(ours - theirs) < NOISE and gap(own, gradient) < GRADIENT_NOISE
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["dpo/margin"] == pytest.approx(logged["rewards/margins"], abs=NOISE)
    assert metrics["dpo/accuracy"] == logged["rewards/accuracies"]
    for side in ("chosen", "rejected"):
        change = logged[f"rewards/{side}"] / 0.3
        assert metrics[f"dpo/{side}_change"] == pytest.approx(change, abs=NOISE)
        assert abs(change) > 0.1  # the policy has moved


def test_label_smoothing_mixes_trls_loss_with_that_of_the_opposite(fresh, pairs, tmp_path):
    """TRL's own `sigmoid` takes no smoothing."""
    trainer = dpo_trainer(fresh, tmp_path)
    move(fresh)
    swapped = [Pair(pair.rejected, pair.chosen, UNREAD) for pair in pairs]
    right, wrong = (trl_step(trainer, fresh, dpo_inputs(trainer, p)) for p in (pairs, swapped))
    ours, own, _ = kit_step(DPO, fresh, pairs, label_smoothing=0.2)
    assert abs(ours - 0.8 * right[0] - 0.2 * wrong[0]) < NOISE
    assert gap(own, 0.8 * right[1] + 0.2 * wrong[1]) < GRADIENT_NOISE


def test_what_is_wrong_breaks_dpos_parity(fresh, pairs, tmp_path):
    trainer = dpo_trainer(fresh, tmp_path)
    move(fresh)
    _, gradient = trl_step(trainer, fresh, dpo_inputs(trainer, pairs))
    swapped = [Pair(pair.rejected, pair.chosen, UNREAD) for pair in pairs]
    shorter = Row(pairs[0].chosen.prompt, pairs[0].chosen.completion[:-1])
    cut = [Pair(shorter, pairs[0].rejected, UNREAD), *pairs[1:]]
    for examples, settings in ((swapped, {}), (cut, {}), (pairs, {"beta": 0.31})):
        _, own, _ = kit_step(DPO, fresh, examples, **settings)
        assert gap(own, gradient) > 0.01


@pytest.mark.parametrize("weights", [{}, WEIGHTS])
def test_kto_is_trls(fresh, labelled, tmp_path, weights):
    trainer = kto_trainer(fresh, tmp_path, **weights)
    move(fresh)
    theirs, gradient = trl_step(trainer, fresh, kto_inputs(trainer, labelled))
    ours, own, metrics = kit_step(KTO, fresh, labelled, **weights)
    assert abs(ours - theirs) < NOISE and gap(own, gradient) < GRADIENT_NOISE
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["kto/kl"] == pytest.approx(logged["kl"], abs=NOISE)
    assert metrics["kto/margin"] == pytest.approx(logged["rewards/margins"], abs=NOISE)


def test_what_is_wrong_breaks_ktos_parity(fresh, labelled, tmp_path):
    trainer = kto_trainer(fresh, tmp_path)
    move(fresh)
    _, gradient = trl_step(trainer, fresh, kto_inputs(trainer, labelled))
    turned = [Labelled(e.row, not e.label, UNREAD) for e in labelled]
    for examples, settings in ((turned, {}), (labelled, {"desirable_weight": 1.02})):
        _, own, _ = kit_step(KTO, fresh, examples, **settings)
        assert gap(own, gradient) > 0.01
