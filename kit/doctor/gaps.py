"""How far sampler and trainer are apart in each 16-bit type, with the embedded model.

N completion tokens of C completions. The same adapter, the same tokens, other kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from kit.config import EMBEDDED, LoraConfig, ModelConfig
from kit.doctor.findings import Finding, judged
from kit.doctor.patient import Patient
from kit.doctor.questions import ask
from kit.model.base import load_base
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.model.rollout import Sampling, sample
from kit.training.engine_gap import EngineGap, in_words

PROMPTS, GROUP, TOKENS = 8, 2, 48
HalfType = Literal["float16", "bfloat16"]
NOISE = 0.05  # of the adapter's B matrices, which are zero in a fresh one
# mean nats per token; from 5e-2 on every run warns
MOST: dict[HalfType, float] = {"float16": 5e-3, "bfloat16": 5e-2}
IMITATED = {"float16": 1e-3, "bfloat16": 3e-3}
LEAST_RATIO, MOST_RATIO = 2, 60


def gaps(patient: Patient) -> Iterator[Finding]:
    """The gap in float16 and in bfloat16, sampled from unpacked and from packed weights."""
    if patient.device.type == "cpu":
        return
    medians = {}  # the mean is that of a few tokens
    for dtype, most in MOST.items():
        policy = _noisy(dtype, patient.device)
        for mode, words in (("always", "unpacked"), ("never", "packed")):
            gap = measure(policy, mode)
            mean, medians[dtype, mode] = gap["rollout/engine_gap_mean"], gap["median"]
            yield judged(
                f"{dtype}, {words} weights",
                mean <= most,
                in_words(gap),
                f"at most {most:g} nats per token",
                f"sampler against trainer; about {IMITATED[dtype]:g} where a card was imitated",
                dtype=dtype,
                dequantize=mode,
                **gap,
            )
    ratio = medians["bfloat16", "always"] / max(medians["float16", "always"], 1e-9)
    yield judged(
        "bfloat16 against float16",
        LEAST_RATIO <= ratio <= MOST_RATIO,
        f"a median gap {ratio:.1f} times as wide",
        f"{LEAST_RATIO} to {MOST_RATIO} times",
        "it has three bits less, a factor of 8; the wider, the more speaks for model.dtype=float16",
        ratio=ratio,
    )


def measure(policy: Policy, dequantize: str) -> dict[str, float]:
    """What the trainer computes of what was sampled, minus what the sampler said: the metrics of a
    step, and the median over tokens."""
    requests = ask(policy, PROMPTS, GROUP, policy.trained)
    said = sample(policy, requests, Sampling(TOKENS, dequantize=dequantize))
    batch = policy.batch(
        [request.prompt for request in requests], [completion.tokens for completion in said]
    )
    policy.activate()
    with torch.no_grad():
        logprobs, _ = policy.logprobs(batch)
    rows = zip(logprobs.cpu(), batch.mask.cpu(), said, strict=True)
    differences = [own[mask] - torch.tensor(one.logprobs) for own, mask, one in rows]
    of_tokens = torch.cat(differences)
    of_completions = torch.stack([row.sum() for row in differences])
    gap = EngineGap(of_tokens, torch.empty(0), of_completions)
    return {**gap.metrics(), "median": of_tokens.abs().median().item()}


def _noisy(dtype: HalfType, device: torch.device) -> Policy:
    """The embedded model in this type, with an adapter that says something."""
    base = load_base(ModelConfig(id=EMBEDDED, dtype=dtype, backend="transformers"), device)
    policy = Policy(base, add_lora(base, LoraConfig(rank=8, alpha=16), seed=0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.trained_weights.items():
            if "lora_B" in name:
                weight.copy_(NOISE * torch.randn(weight.shape, generator=generator))
    return policy
