"""What an evaluation is asked about: run folders, adapters and bare bases, and their problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kit.config import SYSTEM_PROMPT, Config, DataConfig, ModelConfig
from kit.errors import ConfigError
from kit.evaluation.compared import compared_by, compared_ids
from kit.guideline import Guideline
from kit.model.adapter_files import read_adapter_config, suggesting
from kit.model.base_files import base_of
from kit.refusals import read_settings
from kit.runs import RunFolder, check_has_adapter, lineage
from kit.tasks.problems import ProblemSet, load_problems, same_question, split_validation
from kit.tasks.sources import is_task

# fields that decide which problems there are and when an answer is right; `name` aside
PROBLEM_FIELDS = {"categories", "options", "question_column", "answer_column", "verifier"}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to evaluate: an adapter or, with none, the bare base.

    It is asked with its system prompt and what its guidelines add.
    """

    name: str
    model: ModelConfig
    adapter: str | None  # folder or hub id
    system_prompt: str
    results: Path  # folder of its result files
    run: str | None = None  # the run folder the adapter is from
    guidelines: Mapping[str, Guideline] = field_of(default_factory=dict)  # it was trained with

    @classmethod
    def of_run(cls, name: str, run: RunFolder, model: ModelConfig, config: Config) -> Subject:
        """The adapter that a run of this configuration ended with, on this base."""
        results, prompt = run.path / "eval", config.data.system_prompt
        return cls(name, model, str(run.adapter), prompt, results, str(run.path), config.guidelines)


def resolve_targets(
    names: Sequence[str], base_id: str | None = None, system_prompt: str | None = None
) -> list[Subject]:
    """Run folders, adapters (folders or hub ids) and, first, the bare base `base_id`.

    `system_prompt` None is each run's own, and the kit's outside runs. Raises AdapterError for
    what is no adapter, ConfigError for targets that cannot be evaluated together.
    """
    targets = [_resolve(name, system_prompt) for name in names]
    if base_id is not None:
        bare = read_settings(ModelConfig, {"id": base_id}, "model.")
        model = next((t.model for t in targets if t.model.id == base_id), bare)
        default = targets[0].system_prompt if targets else SYSTEM_PROMPT
        prompt = default if system_prompt is None else system_prompt
        targets.insert(0, Subject(base_id, model, None, prompt, _outside_runs(base_id)))
    names_there = Counter(target.name for target in targets)
    targets = [replace(t, name=t.run) if t.run and names_there[t.name] > 1 else t for t in targets]
    check_targets(targets)
    return targets


def check_targets(targets: Sequence[Subject]) -> None:
    """Raise ConfigError unless one base, prompt and set of problems fits all of them."""
    if not targets:
        raise ConfigError("nothing to evaluate: name run folders or adapters, or --base MODEL")
    for what, values in (
        ("name", [target.name for target in targets]),
        ("folder of results", [str(target.results.resolve()) for target in targets]),
    ):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise ConfigError(f"two targets have the same {what}, {repeated[0]}; name each once")
    bases = sorted({f"{t.model.id} ({t.model.quantization})" for t in targets})
    revisions = sorted({t.model.revision for t in targets if t.model.revision})
    if len(bases) > 1 or len(revisions) > 1:
        different = bases if len(bases) > 1 else [f"{bases[0]} at {r}" for r in revisions]
        raise ConfigError(
            f"the targets have different bases ({', '.join(different)}); evaluate them separately"
        )
    if len({target.system_prompt for target in targets}) > 1:
        prompts = "; ".join(f"{target.name}: {target.system_prompt!r}" for target in targets)
        raise ConfigError(
            f"the targets have different system prompts ({prompts}); evaluate them separately, or "
            "choose that of adapters outside runs with --system-prompt"
        )


def all_guidelines(targets: Sequence[Subject]) -> dict[str, Guideline]:
    """Those of all targets, by name; ConfigError where two of one name differ."""
    found: dict[str, Guideline] = {}
    for target in targets:
        for name, guideline in target.guidelines.items():
            if found.setdefault(name, guideline) != guideline:
                raise ConfigError(
                    f"the targets have different guidelines called {name!r}; evaluate them "
                    "separately"
                )
    return found


def shared_model(targets: Sequence[Subject]) -> ModelConfig:
    """The base of all targets, at the revision that any of them names."""
    model = targets[0].model
    revision = next((t.model.revision for t in targets if t.model.revision), None)
    return model.model_copy(update={"revision": revision})


def resolve_data(
    names: Sequence[str], targets: Sequence[Subject], data_dir: str | None = None
) -> list[DataConfig]:
    """The data sets of these names, as the runs that were trained on them describe them.

    `data_dir` None is that of the runs, where it has the data set. Raises ConfigError when none is
    named or two runs describe one differently.
    """
    if not names:
        raise ConfigError("no data set to evaluate on: name one or several with --data")
    runs = {t.name: RunFolder(t.run).load_config().data for t in targets if t.run}
    configs = []
    for name in dict.fromkeys(names):
        config = data_config(name, *runs.values(), data_dir=data_dir)
        for run, trained_on in runs.items():
            for field in sorted(PROBLEM_FIELDS):
                own, shared = getattr(trained_on, field), getattr(config, field)
                if trained_on.name == name and own != shared:
                    raise ConfigError(
                        f"the runs have different problems of {name}: data.{field} is {own!r} in "
                        f"{run} but {shared!r} in another; evaluate them separately"
                    )
        configs.append(config)
    return configs


def data_config(name: str, *trained_on: DataConfig, data_dir: str | None = None) -> DataConfig:
    """The data set `name`: the first of `trained_on` with that name, else with the defaults.

    `data_dir` None is the first folder of `trained_on` that has the data set.
    """
    config = next((c for c in trained_on if c.name == name), None)
    config = config or read_settings(DataConfig, {"name": name}, "data.")
    folders = [c.data_dir for c in (config, *trained_on) if c.data_dir]
    there = (folder for folder in folders if (Path(folder).expanduser() / name).is_dir())
    return config.model_copy(update={"data_dir": data_dir or next(there, None)})


class Seen(NamedTuple):
    """Which problems a run, and the runs that it went on from, have learned from."""

    problems: int | None  # how many; None: not known
    compared: list[str] | None = None  # ids of those whose answers were compared; None: of none


def seen_in_training(target: Subject, problem_set: ProblemSet) -> Seen:
    """Which of these problems the target was trained on.

    Data sets with one split are trained on and tested on alike. A task makes its test problems
    from another seed, and the bare base has learned from none. Of preferences those problems count
    whose answers were compared.
    """
    if target.run is None:
        return Seen(0 if target.adapter is None else None)
    runs = lineage(target.run)
    try:
        questions = compared_by(runs)
    except ConfigError:
        return Seen(None)
    compared = compared_ids(questions, problem_set) if questions else None
    learned = frozenset[str]().union(*(_learned(run, problem_set.name) for run in runs))
    return Seen(len({*(compared or ()), *compared_ids(learned, problem_set)}), compared)


def _learned(run: RunFolder, name: str) -> frozenset[str]:
    """The questions of a data set that a run sampled answers to, or learned solutions of."""
    config = run.load_config()
    if config.learns_from_preferences or config.data.name != name or is_task(name):
        return frozenset()
    return _trained_on(config.data.model_dump_json(), config.train.seed)


@cache  # the arms of a comparison were trained on the same problems
def _trained_on(data: str, seed: int) -> frozenset[str]:
    """The questions a run learned from, as `same_question` has them; `data` is its DataConfig as
    JSON."""
    config = DataConfig.model_validate_json(data)
    problem_set = load_problems(config, seed=seed)
    if config.validation_size:
        problem_set, _ = split_validation(problem_set, config.validation_size, seed)
    return frozenset(map(same_question, problem_set.problems["question"]))


def _resolve(name: str, system_prompt: str | None) -> Subject:
    run = RunFolder(name)
    if not run.exists:
        with suggesting(name):
            base = base_of(name)
        model = ModelConfig(id=base.id, revision=base.revision)
        prompt = SYSTEM_PROMPT if system_prompt is None else system_prompt
        return Subject(name, model, name, prompt, _outside_runs(name))
    check_has_adapter(run)
    config = run.load_config()
    if system_prompt not in (None, config.data.system_prompt):
        raise ConfigError(
            f"{run.path} was trained with the system prompt {config.data.system_prompt!r}, not "
            f"{system_prompt!r}; leave --system-prompt out, or evaluate {run.adapter} instead"
        )
    # the base exactly as it was trained on, even where its default branch has moved on
    revision = config.model.revision or read_adapter_config(str(run.adapter)).get("revision")
    model = config.model.model_copy(update={"revision": revision})
    return Subject.of_run(run.path.resolve().name, run, model, config)


def results_folder(name: str) -> Path:
    """Where the results of a run, or of an adapter or base outside one, are."""
    inside = Path(name) / "eval"
    return inside if inside.is_dir() or RunFolder(name).exists else _outside_runs(name)


def _outside_runs(name: str) -> Path:
    return Path("runs") / "eval" / name.strip("/").replace("/", "_")
