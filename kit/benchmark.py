"""`kit evaluate`: run folders, adapters and a bare base on one data set, on one loaded base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from kit.config import SYSTEM_PROMPT, Config, DataConfig, ModelConfig, build_config
from kit.data import load_problems
from kit.errors import ConfigError
from kit.evaluate import Evaluation, evaluate, write_evaluation
from kit.models import load_adapters, load_base, read_adapter_config
from kit.policy import BASE, Policy
from kit.rollout import Sampling
from kit.runs import RunFolder


@dataclass(frozen=True, slots=True)
class Target:
    """Something to evaluate: an adapter or, with none, the bare base."""

    name: str
    model: ModelConfig
    adapter: str | None
    system_prompt: str
    results: Path


def benchmark(
    targets: Sequence[str],
    *,
    base_id: str | None,
    data: str,
    data_dir: str | None = None,
    limit: int | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    seed: int = 0,
) -> list[Evaluation]:
    """Evaluate each target, write its result files, print a table line each.

    Raises ConfigError when there is nothing to evaluate or the targets have different bases.
    """
    resolved = [resolve(target) for target in targets]
    if base_id is not None:
        model = next((t.model for t in resolved if t.model.id == base_id), ModelConfig(id=base_id))
        prompt = resolved[0].system_prompt if resolved else SYSTEM_PROMPT
        resolved.insert(0, Target(base_id, model, None, prompt, _outside_runs(base_id)))
    _check_targets(resolved)
    settings = DataConfig(
        name=data, data_dir=data_dir, limit=limit, system_prompt=resolved[0].system_prompt
    )
    problem_set = load_problems(settings, "test", seed=seed)
    base = load_base(resolved[0].model)
    adapters = {f"adapter{i}": t.adapter for i, t in enumerate(resolved) if t.adapter}
    policy = Policy(base, load_adapters(base, adapters) if adapters else None)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
    results = []
    for i, target in enumerate(resolved):
        with tqdm(total=len(problem_set.problems), desc=target.name, unit="problem") as bar:
            name = f"adapter{i}" if target.adapter else BASE
            result = evaluate(policy, name, problem_set, sampling, seed=seed, progress=bar.update)
        path = write_evaluation(
            target.results,
            result,
            target=target.name,
            base=base.id,
            base_revision=base.revision,
            quantization=target.model.quantization,
            hardware=base.hardware.reason,
            system_prompt=target.system_prompt,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            limit=limit,
            seed=seed,
        )
        print(
            f"{target.name} on {data}: {result.strict} strict, {result.lenient} lenient, "
            f"n={result.strict.n}, {result.mean_tokens:.0f} tokens, "
            f"{result.truncated.value:.1%} truncated -> {path}",
            flush=True,
        )
        results.append(result)
    return results


def resolve(target: str) -> Target:
    """A run folder (its adapter, model and system prompt) or an adapter's folder or hub id."""
    run = RunFolder(target)
    if run.exists:
        config: Config = run.load_config()
        return Target(
            name=run.path.name,
            model=config.model,
            adapter=str(run.adapter),
            system_prompt=config.data.system_prompt,
            results=run.path / "eval",
        )
    settings = read_adapter_config(target)
    model = build_config(
        {
            "model": {
                "id": settings["base_model_name_or_path"],
                "revision": settings.get("revision"),
            },
            "data": {"name": "gsm8k"},
        }
    ).model
    return Target(target, model, target, SYSTEM_PROMPT, _outside_runs(target))


def _outside_runs(name: str) -> Path:
    return Path("runs") / "eval" / name.strip("/").replace("/", "_")


def _check_targets(targets: Sequence[Target]) -> None:
    if not targets:
        raise ConfigError("nothing to evaluate: name run folders or adapters, or --base MODEL")
    bases = sorted({f"{t.model.id} ({t.model.quantization})" for t in targets})
    if len(bases) > 1:
        raise ConfigError(
            f"the targets have different bases ({', '.join(bases)}); evaluate them separately"
        )
    prompts = {t.system_prompt for t in targets}
    if len(prompts) > 1:
        raise ConfigError(
            "the targets were trained with different system prompts; evaluate them separately"
        )
