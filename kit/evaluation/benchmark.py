"""`kit evaluate`: several adapters and their bare base, decoded together, into result files.

Rows are written as they are finished; an interrupted evaluation goes on, and a larger one only adds
rows.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from kit.config import DataConfig
from kit.errors import ConfigError, room_for
from kit.evaluation.compared import leave_out
from kit.evaluation.result_writer import ResultWriter, open_writer
from kit.evaluation.results import Result, read_result, result_path
from kit.evaluation.sampling import Group, finish, sample_missing
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import (
    Subject,
    all_guidelines,
    check_targets,
    seen_in_training,
    shared_model,
)
from kit.guideline import prompted, prompts_of
from kit.model.adapter_files import adapter_sha256
from kit.model.base import Base, load_base
from kit.model.hardware import limited
from kit.model.lora import load_adapters
from kit.model.policy import BASE, Policy
from kit.run_json import environment
from kit.tasks.guidelines import Follower, follower_of
from kit.tasks.problems import ProblemSet, guided, load_problems
from kit.tasks.splits import TEST_SPLIT

log = logging.getLogger(__name__)


def benchmark(
    targets: Sequence[Subject],
    data: Sequence[DataConfig],
    settings: EvalSettings,
    *,
    base: Base | None = None,
    tag: str | None = None,
    overwrite: bool = False,
    command: str | None = None,
    functions: bool = False,
) -> list[Result]:
    """Evaluate every target on every data set, as far as that is not done yet.

    Each target's answers are looked at by the guidelines of all. `functions`: whether those may run
    the functions that they name, which are code of whoever made the runs.

    `base` may be passed when it is loaded already; adapters are taken off it again at the end.
    `tag` keeps results of other settings beside those there; `command` is recorded.
    Ctrl-C, SIGTERM and a closed terminal end it with KeyboardInterrupt; what is written is kept.
    Returns results by data set, then target. Raises KitError subclasses for everything a user can
    mend: before the base is loaded where possible, and before anything is written.
    """
    check_targets(targets)
    about = {target.name: _describe(target) for target in targets}
    followers = _followers(targets, functions)
    groups = [
        _open_group(config, targets, about, settings, tag, overwrite, followers) for config in data
    ]
    writers = [writer for group in groups for writer in group.values()]
    shared = [
        path for path, count in Counter(writer.path for writer in writers).items() if count > 1
    ]
    if shared:
        raise ConfigError(f"two data sets would share {shared[0]}; evaluate them one by one")
    model = shared_model(targets)
    if base is not None and base.id != model.id:
        raise ConfigError(f"the targets' base is {model.id}, but the loaded one is {base.id}")
    with ExitStack() as held:
        for writer in writers:
            if writer.record["status"] != "finished":
                held.enter_context(writer.claimed())
        if any(writer.missing for writer in writers):
            device = base.hardware.device if base else None
            with (
                limited(settings.memory_budget, device),
                _loaded(targets, base) as (policy, adapters),
            ):
                sample_missing(groups, policy, adapters, environment() | {"command": command})
        for writer in writers:
            # stopped after the last row was written, or asked for other guidelines
            if writer.record["status"] != "finished":
                finish(writer)
    return [read_result(writer.path) for writer in writers]


def table(results: Sequence[Result]) -> str:
    """A line for each target, data set and temperature, and where to look."""
    width = max(len(result.name) for result in results)
    across = max(len(_problems(result)) for result in results)
    lines = [
        "95 % intervals. Strict: the answer stands as '#### <number>'; lenient: anywhere. pass@k: "
        "one of k\nsamples is strictly right; majority@k: the most frequent answer of k is.",
        f"{'':{width}}  {'':{across}}  {'T':>4} {'n':>5}  {'strict':^22}  {'lenient':^22}  "
        f"{'tokens':>6}  {'cut off':>7}",
    ]
    for result in results:
        for entry in result.record["results"]:
            k = str(entry["samples"])
            several = (
                f"  pass@{k} {_share(entry['pass_at']['strict'][k])}"
                f"  majority@{k} {_share(entry['majority_at']['strict'][k])}"
            )
            follows = [
                f"  {name} {value:.1%} followed"
                for name, found in entry.get("adherence", {}).items()
                if (value := found["value"]) is not None
            ]
            lines.append(
                f"{result.name:{width}}  {_problems(result):{across}}  {entry['temperature']:>4g} "
                f"{result.record['n']:>5}  {_share(entry['strict']):^22}  "
                f"{_share(entry['lenient']):^22}  {entry['tokens']['mean']:>6.0f}  "
                f"{entry['truncated']['value']:>7.1%}{several if entry['samples'] > 1 else ''}"
                + "".join(follows)
            )
    return "\n".join([*lines, *(f"-> {result.path}" for result in results)])


def _problems(result: Result) -> str:
    """The data set; its split where that is not what is measured on, as a rule."""
    split = result.settings["split"]
    return result.data if split == TEST_SPLIT else f"{result.data} ({split})"


def _share(estimate: dict[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['value']:.1%} [{low:.1%}, {high:.1%}]"


def _describe(target: Subject) -> dict[str, Any]:
    """The field `target` of its result files, as far as it is known before the base is loaded."""
    return {
        "name": target.name,
        "run": target.run,
        "adapter": target.adapter,
        "adapter_sha256": adapter_sha256(target.adapter) if target.adapter else None,
        "base": target.model.id,
        "base_revision": target.model.revision,
        "quantization": target.model.quantization,
        **({"guidelines": prompts_of(target.guidelines)} if target.guidelines else {}),
    }


def _followers(targets: Sequence[Subject], functions: bool) -> list[Follower]:
    """What looks at answers, for the guidelines of all targets."""
    followers = [
        follower_of(name, guideline, trusted=functions)
        for name, guideline in all_guidelines(targets).items()
    ]
    for follower in followers:
        if not follower.is_measurable:
            log.warning(
                "how far %s is followed is not measured, for a function of its own says it; add "
                "--functions if you trust the runs' code",
                follower.name,
            )
    return followers


def _open_group(
    config: DataConfig,
    targets: Sequence[Subject],
    about: dict[str, dict[str, Any]],
    settings: EvalSettings,
    tag: str | None,
    overwrite: bool,
    followers: Sequence[Follower],
) -> Group:
    """The writers of all targets on one data set."""

    plain = targets[0].system_prompt  # of all
    config = config.model_copy(update={"system_prompt": plain})

    @cache
    def load(limit: int | None) -> ProblemSet:
        limited = config.model_copy(update={"limit": limit})
        loaded = load_problems(limited, settings.split, seed=settings.seed)
        return leave_out(loaded, settings.leave_out) if settings.leave_out else loaded

    def open_one(target: Subject) -> ResultWriter:
        own = {"system_prompt": prompted(plain, target.guidelines)}
        return open_writer(
            result_path(target.results, config.name, tag),
            about[target.name],
            config.model_copy(update=own),
            settings,
            lambda limit: guided(load(limit), plain, target.guidelines),
            tag=tag,
            overwrite=overwrite,
            followers=followers,
        )

    group = {target.name: open_one(target) for target in targets}
    for target in targets:
        _note_seen(target, group[target.name])
    return group


def _note_seen(target: Subject, writer: ResultWriter) -> None:
    """Record, and say, which of the problems the target's run was trained on."""
    seen, compared = seen_in_training(target, writer.problem_set)
    writer.record["seen_in_training"] = seen
    if compared is not None:
        writer.record["compared_in_training"] = compared
    if compared:
        log.warning(
            "%d of these %d problems of %s were in the preferences that %s was trained on: its "
            "figures there are not those of held-out problems; leave_out=%s leaves them out",
            *(len(compared), len(writer.problems), writer.record["data"], target.name, target.run),
        )
    elif seen:
        log.warning(
            "%s was trained on %d of the %d problems of %s: its figures there are not those "
            "of held-out problems",
            *(target.name, seen, len(writer.problems), writer.record["data"]),
        )


@contextmanager
def _loaded(
    targets: Sequence[Subject], base: Base | None
) -> Iterator[tuple[Policy, dict[str, str]]]:
    """The base with all adapters on it, and the adapter's name of each target."""
    model = shared_model(targets)
    base = base or load_base(model)
    names = {t.name: f"target{i}" if t.adapter else BASE for i, t in enumerate(targets)}
    sources = {names[t.name]: t.adapter for t in targets if t.adapter}
    with room_for("loading the adapters", "evaluate fewer of them at once"):
        policy = Policy(base, load_adapters(base, sources) if sources else None)
    try:
        yield policy, names
    finally:
        if sources:
            policy.peft.unload()
