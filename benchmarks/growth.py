"""How sampling and update grow with group size, length, prompts, adapters and vocabulary.

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--quick]

Each grows alone, doubling; the exponent is the slope of log seconds over log size, by least
squares: 1 is in proportion, below 1 the larger is cheaper by the piece. All completions run to the
cap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from measuring import (
    Row,
    Size,
    Table,
    asked,
    benchmark,
    measured_base,
    measured_shape,
    per_second,
    random_checkpoint,
    without_ends,
)

from kit.config import LoraConfig, ModelConfig
from kit.model.base import Base, load_base
from kit.model.lora import TRAINED, add_lora
from kit.model.packing import packed_batches
from kit.model.policy import Policy
from kit.model.rollout import Sampling, sample

BUDGET = 4096  # tokens of a micro-batch
ANSWER = 7  # the token that all completions of an update consist of


@dataclass(frozen=True)
class Work:
    """What is sampled, or learned from."""

    prompts: int = 4
    group: int = 4
    tokens: int = 32
    adapters: int = 1
    vocabulary: int = 0  # 0: the model's own


GROWS = {  # in words, the field that grows, and where it begins
    "group size": ("group", 2),
    "tokens of a completion": ("tokens", 16),
    "prompts": ("prompts", 1),
    "adapters in the same 16 rows": ("adapters", 1),
    "vocabulary": ("vocabulary", 4096),
}


def main() -> None:
    benchmark(str(__doc__), (sampling, update))


def sampling(size: Size) -> Table:
    """Growth of sampling"""
    return curves(size, draw, GROWS)


def update(size: Size) -> Table:
    """Growth of log-probabilities and their gradients"""
    return curves(size, learn, {k: v for k, v in GROWS.items() if v[0] != "adapters"})


def curves(
    size: Size, act: Callable[[Policy, Work], Any], grows: dict[str, tuple[str, int]]
) -> Table:
    with measured_base(size) as base:
        policy = with_adapters(base, 2 ** (size.growth - 1))
        found = {
            name: curve(size, act, policy, field, start) for name, (field, start) in grows.items()
        }
    rows = [row(name, points) for name, points in found.items()]
    work = Work()
    note = (
        f"What does not grow: {work.prompts} prompts, {work.group} completions each, of "
        f"{work.tokens} tokens, one adapter. Seconds are medians of {size.runs}."
    )
    return Table("", rows, note, runs=found)


def curve(
    size: Size, act: Callable[[Policy, Work], Any], policy: Policy, field: str, start: int
) -> dict[int, float]:
    """Median seconds at each size; every run goes up the whole curve."""
    works = [replace(Work(), **{field: start * 2**i}) for i in range(size.growth)]
    found: dict[int, list[float]] = {getattr(work, field): [] for work in works}
    with ExitStack() as held:
        policies = [
            held.enter_context(random_policy(size, work.vocabulary)) if work.vocabulary else policy
            for work in works
        ]
        for _ in range(size.runs + 1):
            for own, work in zip(policies, works, strict=True):
                speed = per_second(lambda own=own, work=work: bool(act(own, work)) or 1)
                found[getattr(work, field)].append(1 / speed)
    return {value: median(seconds[1:]) for value, seconds in found.items()}


def row(name: str, points: dict[int, float]) -> Row:
    first, last = min(points), max(points)
    slope, _ = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
    return {
        "grows": name,
        "from": first,
        "to": last,
        "seconds, first": points[first],
        "seconds, last": points[last],
        "exponent": float(slope),
    }


def draw(policy: Policy, work: Work) -> object:
    """Sampling; the rows take the adapters in turn."""
    names = [TRAINED, *(f"arm{i}" for i in range(1, work.adapters))]
    requests = [
        replace(request, adapter=names[i % len(names)])
        for i, request in enumerate(asked(policy.base, work.prompts, work.group, 0))
    ]
    return sample(policy, requests, Sampling(work.tokens))


def learn(policy: Policy, work: Work) -> None:
    """Log-probabilities of as many rows and their gradients, in micro-batches."""
    policy.activate()
    prompts = [request.prompt for request in asked(policy.base, work.prompts, work.group, 0)]
    completion = [ANSWER] * work.tokens
    for rows in packed_batches(prompts, [len(prompt) + work.tokens for prompt in prompts], BUDGET):
        batch = policy.batch([prompts[i] for i in rows], [completion for _ in rows])
        policy.logprobs(batch)[0].sum().backward()
    for parameter in policy.trainable:
        parameter.grad = None


def with_adapters(base: Base, count: int) -> Policy:
    """The base with so many fresh adapters, whose completions run to the cap."""
    model = add_lora(base, LoraConfig(), seed=0)
    for number in range(1, count):
        model = add_lora(base, LoraConfig(), number, name=f"arm{number}", model=model)
    return Policy(without_ends(base), model)


@contextmanager
def random_policy(size: Size, vocabulary: int) -> Iterator[Policy]:
    """The same shape with another vocabulary and random weights."""
    with random_checkpoint(replace(measured_shape(size), vocab=vocabulary)) as folder:
        base = load_base(ModelConfig(id=folder, quantization="none", backend="transformers"))
        yield with_adapters(base, 1)


if __name__ == "__main__":
    main()
