"""What is learned from: problems whose prompts fit, and those held out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from accelerate import Accelerator

from kit.config import Config
from kit.errors import ConfigError, DataError
from kit.model.tokenizer import prompt_ids, warn_of_forged
from kit.tasks.problems import ProblemSet, guided, load_problems, log, split_validation

Example = TypeVar("Example")


def drop_long_prompts(
    problem_set: ProblemSet, tokenizer: Any, max_tokens: int
) -> tuple[ProblemSet, int]:
    """The problems whose prompt, as a chat, has at most `max_tokens` tokens; how many others.

    `tokenizer` is a base's. Raises DataError when none is left.
    """
    lengths = [len(prompt_ids(tokenizer, prompt)) for prompt in problem_set.problems["prompt"]]
    kept = [index for index, length in enumerate(lengths) if length <= max_tokens]
    if not kept:
        raise DataError(
            f"every prompt of {problem_set.name} is longer than {max_tokens} tokens, the shortest "
            f"has {min(lengths, default=0)}; raise data.max_prompt_tokens"
        )
    return problem_set.select(kept), len(lengths) - len(kept)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Problems to learn from, and those held out (None: no validation)."""

    train_set: ProblemSet
    validation: ProblemSet | None


def load_training_data(config: Config, tokenizer: Any) -> TrainingData:
    """What one arm learns from."""
    return load_data_of_arms([config], tokenizer)[0]


def load_data_of_arms(configs: Sequence[Config], tokenizer: Any) -> list[TrainingData]:
    """What each of several arms learns from: the same problems, asked as its guidelines say.

    Raises ConfigError where the prompts of some arms alone are too long for some problems.
    """
    loaded = load_problems(configs[0].data, seed=configs[0].train.seed)
    by_prompt: dict[str, TrainingData] = {}
    for config in configs:
        if config.system_prompt not in by_prompt:
            by_prompt[config.system_prompt] = _prepare(config, loaded, tokenizer)
    kept = [data.train_set.problems["id"] for data in by_prompt.values()]
    if any(list(ids) != list(kept[0]) for ids in kept):
        raise ConfigError(
            "the guidelines make the arms' prompts of different lengths, and some are over "
            f"data.max_prompt_tokens={configs[0].data.max_prompt_tokens}, so that the arms would "
            "learn from different problems; raise it"
        )
    return [by_prompt[config.system_prompt] for config in configs]


def _prepare(config: Config, loaded: ProblemSet, tokenizer: Any) -> TrainingData:
    """Leave out the problems with long prompts, hold out the validation problems."""
    data = config.data
    loaded = guided(loaded, data.system_prompt, config.guidelines)
    solved = config.method == "sft"
    chats = ([*p["prompt"], {"content": p["solution"] if solved else ""}] for p in loaded.problems)
    warn_of_forged(tokenizer, chats, data.name)
    problems, dropped = drop_long_prompts(loaded, tokenizer, data.max_prompt_tokens)
    if dropped:
        log.warning(
            "%d problems with prompts over %d tokens are left out", dropped, data.max_prompt_tokens
        )
    if data.validation_size == 0:
        return TrainingData(problems, None)
    return TrainingData(*split_validation(problems, data.validation_size, config.train.seed))


def problem_index(position: int, count: int, seed: int) -> int:
    """Which of `count` problems is the `position`-th of a run: a new shuffle every epoch."""
    epoch, place = divmod(position, count)
    return int(np.random.default_rng((seed, epoch)).permutation(count)[place])


def batch_of(step: int, size: int, examples: Sequence[Example], seed: int) -> list[Example]:
    """The `size` examples of a step, of all processes together."""
    positions = range(step * size, (step + 1) * size)
    return [examples[problem_index(position, len(examples), seed)] for position in positions]


def share_of(batch: Sequence[Example], accelerator: Accelerator) -> Sequence[Example]:
    """What this process takes of a step's examples."""
    return batch[accelerator.process_index :: accelerator.num_processes]
