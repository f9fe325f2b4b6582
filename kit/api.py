"""The functions of `import kit` that put several rooms together.

torch is imported where it is needed, so that what can be refused without is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.config import SYSTEM_PROMPT, ModelConfig
from kit.errors import ConfigError
from kit.evaluation.settings import EvalSettings
from kit.recipe import listed
from kit.refusals import read_settings

if TYPE_CHECKING:
    from kit.evaluation.results import Result
    from kit.model.policy import Policy
    from kit.model.rollout import Completion


def evaluate(
    targets: str | Path | Sequence[str | Path],
    data: str | Sequence[str],
    *,
    base: str | None = None,
    data_dir: str | Path | None = None,
    system_prompt: str | None = None,
    tag: str | None = None,
    overwrite: bool = False,
    functions: bool = False,
    command: str | None = None,
    **settings: Any,
) -> list[Result]:
    """Answers of run folders or adapters, and of the bare `base`, to the problems of data sets.

    All are sampled together. Results go to <run>/eval/, or to runs/eval/ outside a run; what is
    there is kept, and an interrupted evaluation goes on. `settings` are those of EvalSettings, e.g.
    limit=300, temperature=[0, 0.4], samples=16. `data_dir` has local copies of data sets;
    `system_prompt` is for adapters outside runs and the base; `tag` keeps these results beside
    those of other settings, `overwrite` replaces them; `functions` runs those that guidelines of
    the runs name, which are code of whoever made them; `command` is recorded.

    Returns results by data set, then target, the base first. Raises ConfigError for settings and
    for targets that do not go together, AdapterError, DataError, ModelError, and ResultsError where
    results of other settings are in the way.
    """
    from kit.evaluation.subjects import resolve_data, resolve_targets

    chosen = read_settings(EvalSettings, settings)
    subjects = resolve_targets([str(t) for t in listed(targets)], base, system_prompt)
    sets = resolve_data(listed(data), subjects, str(data_dir) if data_dir else None)
    from kit.evaluation.benchmark import benchmark

    return benchmark(
        *(subjects, sets, chosen),
        tag=tag,
        overwrite=overwrite,
        command=command,
        functions=functions,
    )


def load_policy(base: str, adapter: str | Path | None = None, **model: Any) -> Policy:
    """A base in memory, and an adapter on it: a run folder, an adapter's folder or a hub id.

    `base` is a hub id, a folder or "embedded"; `model` has further settings of ModelConfig, e.g.
    quantization="none". The base is loaded at the revision that the adapter was trained on.

    Raises ConfigError for a setting, ModelError for a base that cannot be loaded, AdapterError for
    an adapter that is missing or of another base.
    """
    config = read_settings(ModelConfig, {"id": base, **model})
    folder = None
    if adapter is not None:
        from kit.adapters.locate import adapter_folder
        from kit.model.base_files import base_of

        folder = str(adapter_folder(str(adapter)))
        trained_on = base_of(folder)
        if config.revision is None and trained_on.id == base:
            config = config.model_copy(update={"revision": trained_on.revision})
    from kit.model.base import load_base
    from kit.model.lora import TRAINED, load_adapters
    from kit.model.policy import Policy

    loaded = load_base(config)
    return Policy(loaded, load_adapters(loaded, {TRAINED: folder}) if folder else None)


def sample(
    policy: Policy,
    prompts: Sequence[str],
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    top_p: float = 1.0,
    seed: int = 0,
    system_prompt: str | None = None,
    bare: bool = False,
) -> list[Completion]:
    """What a policy answers to each of these texts, in order; decoded together.

    A text is the user's message in the base's chat template, after `system_prompt` (None: the
    kit's own, "": none); control tokens in it stay text. Each draws from a seed of its own, made of
    `seed` and its place: a text that is there twice has two answers. Temperature 0 is greedy.
    `bare` asks the base without the adapter.

    Raises ConfigError for a value that is not allowed, OutOfMemoryError, and NotFiniteError for a
    model whose logits are not finite.
    """
    if not isinstance(prompts, list | tuple) or not all(isinstance(t, str) for t in prompts):
        raise ConfigError(f"prompts must be a list of texts, got {prompts!r:.100}")
    read_settings(
        EvalSettings,
        {
            "temperature": [temperature],
            "max_new_tokens": max_new_tokens,
            "top_p": top_p,
            "seed": seed,
        },
    )
    from kit.model import rollout
    from kit.model.policy import BASE

    adapter = BASE if bare or policy.model is None else policy.trained
    system = SYSTEM_PROMPT if system_prompt is None else system_prompt
    opening = [{"role": "system", "content": system}] if system else []
    chats = [[*opening, {"role": "user", "content": text}] for text in prompts]
    requests = [
        rollout.Request(tuple(policy.base.prompt_ids(chat)), (seed, number), adapter)
        for number, chat in enumerate(chats)
    ]
    return rollout.sample(policy, requests, rollout.Sampling(max_new_tokens, temperature, top_p))
