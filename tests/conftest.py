"""What several test files share: the embedded model, and a small configuration that trains it."""

from __future__ import annotations

import os

# set before any library reads them: tests reach for nothing outside this machine
os.environ["HF_HUB_OFFLINE"] = "1"
# one thread each: tests run in several processes, and threads that wait for each other are slow
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from kit.adapters.save import save_adapter
from kit.config import Config, LoraConfig, ModelConfig
from kit.model.base import Base, load_base
from kit.model.lora import add_lora
from kit.model.policy import Policy
from kit.recipe import build_config
from tests.noise import add_noise

# What is ignored under nohup, or in a shell's background, would be ignored by the processes that
# tests start and then ask to stop.
for number, handler in {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
}.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# Property tests draw the same few cases on every machine, so that a change is what turns them red;
# `make fuzz` looks for new ones. How long a case takes says more about the machine than about it.
COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("default", max_examples=50, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **COMMON)
settings.load_profile("default")


@pytest.fixture(scope="session")
def base() -> Base:
    """The embedded model in 4 bits. Tests that put adapters on it take them off again."""
    return load_base(ModelConfig(id="embedded"), torch.device("cpu"))


@pytest.fixture(scope="session")
def double_base() -> Base:
    """The embedded model in float64, for what is to be the same however it is computed.

    In float32 the order of a sum depends on the processor's kernels and on a batch's shape, and
    what that rounds differently grows on its way through the layers. Here only the
    log-probabilities are float32, rounded once at the end.
    """
    base = load_base(ModelConfig(id="embedded", quantization="none"), torch.device("cpu"))
    base.model.double()
    return base


@pytest.fixture
def double_policy(double_base: Base) -> Iterator[Policy]:
    """`policy` in float64, its adapter too."""
    model = add_lora(double_base, LoraConfig(rank=4, alpha=8), seed=0)
    add_noise(model, 1)
    yield Policy(double_base, model.double())
    model.unload()


@pytest.fixture
def policy(base: Base) -> Iterator[Policy]:
    """A policy whose adapter differs from the base: its B matrices are not zero."""
    model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=0)
    add_noise(model, 1)
    yield Policy(base, model)
    model.unload()


@pytest.fixture(scope="session")
def adapters(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved adapters that differ from the base and from each other."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=seed)
        add_noise(model, seed)
        save_adapter(Policy(base, model), folder / name)
        model.unload()
    return folder


@pytest.fixture
def make_config(tmp_path) -> Callable[..., Config]:
    """A configuration of two quick steps; keyword arguments replace whole sections' fields."""

    def make(**sections: Any) -> Config:
        values: dict[str, Any] = {
            "model": {"id": "embedded"},
            "lora": {"rank": 4, "alpha": 8},
            "data": {
                "name": "gsm_symbolic",
                "options": {"size": 60},
                "validation_size": 4,
            },
            "rollout": {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 12},
            # rewards differ within nearly every group, so that every step learns
            "reward": {"functions": [{"path": "tests.reward_functions:share_of_vowels"}]},
            "optim": {"learning_rate": 1e-3, "warmup_fraction": 0.0},
            "train": {
                "steps": 2,
                "updates_per_rollout": 2,
                "validate_every": 0,  # who looks at it asks for it
                "checkpoint_every": 1,
                "preflight_problems": 0,
            },
            "output": str(tmp_path / "run"),
        }
        for name, fields in sections.items():
            old = values.get(name)
            merge = isinstance(old, dict) and isinstance(fields, dict)
            values[name] = {**old, **fields} if merge else fields
        return build_config(values)

    return make
