"""The settings a run is bound to, and those that may change between its parts."""

from __future__ import annotations

from typing import Any

from kit.config import Config
from kit.recipe import differences, flatten

# settings that may change between the parts of one run without making it another experiment
MAY_CHANGE = {
    # of these nothing but the memory depends, and the last digits
    "memory_budget",
    "model.gradient_checkpointing",
    "rollout.cuda_graph",
    "rollout.dequantize",
    "rollout.max_rows",
    "train.logprob_chunk",
    "train.micro_batch_tokens",
    "data.data_dir",  # where a copy of the same problems is: see keep_to
    "model.path",
    "output",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.report_to",
    "train.steps",
}


def binding_settings(config: Config) -> dict[str, Any]:
    """The settings that stay the same as long as a run lasts, by their dotted names."""
    flat = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key not in MAY_CHANGE}


def binding_differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """{dotted name: (before, now)} of the settings that make it another run."""
    changed = differences(before, now)
    return {key: values for key, values in changed.items() if key not in MAY_CHANGE}
