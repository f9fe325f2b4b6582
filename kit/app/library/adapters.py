"""What can be put on a side of the comparison: the bare base, and the adapters that fit on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from kit.app.inert import short
from kit.app.library.folders import natural, walk
from kit.app.library.roots import (
    OutsideRoots,
    adapter_source,
    check_within,
    confine,
    confined_source,
    given_source,
    read_run_config,
    read_settings,
)
from kit.app.options import AppOptions
from kit.config import EMBEDDED, SYSTEM_PROMPT, ModelConfig
from kit.errors import AdapterError, ConfigError, KitError, RunError
from kit.guideline import Guideline
from kit.model.adapter_files import CONFIG, WEIGHTS
from kit.runs import RunFolder

BASE_LABEL = "base"
MAX_DEPTH = 6  # folders below a root that are searched
MAX_REASON = 399  # characters
SKIPPED = {"checkpoints", "eval", "report"}  # hold no finished adapters, but many files


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing to compare."""

    label: str  # unique in its catalogue: the path below the folder searched, or the name given
    adapter: str | None  # folder or hub id; None: the bare base
    base: str
    system_prompt: str  # without what its guidelines add
    data: str | None = None  # the data set it was trained on, where a run says so
    run: str | None = None  # its run folder
    region: str | None = None  # clip, … of the run's objective; None: not by policy gradient
    is_named: bool = False  # the user asked for it with --adapters
    preferences: str | None = None  # what its run learned from, where that was preferences
    parent: str | None = None  # the adapter that its run began with; None: a fresh one
    learning_rate: float | None = None  # of its run
    guidelines: Mapping[str, Guideline] = field(default_factory=dict, compare=False)  # of its run


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The base in memory, what goes with it, and what does not."""

    model: ModelConfig
    choices: tuple[Choice, ...]  # the base, those named, then the others by label
    unusable: tuple[tuple[str, str], ...]  # label and reason, in one line


@dataclass(frozen=True, slots=True)
class _Found:
    """An adapter, and the base it was trained on."""

    choice: Choice
    model: ModelConfig
    changed: float  # seconds since the epoch

    def misfit(self, model: ModelConfig) -> str | None:
        """Why it cannot be put on `model`; None: it can."""
        own = self.model
        if not _is_same_base(own.id, model.id):
            return (
                f"trained on {own.id}, the base in memory is {model.id}; start the app with "
                f"--base {own.id} for it"
            )
        if self.choice.run and own.quantization != model.quantization:
            return f"trained on the base in {own.quantization}, it is in {model.quantization} here"
        if own.revision and model.revision and own.revision != model.revision:
            return f"trained on revision {own.revision} of the base, not {model.revision}"
        return None


def find(options: AppOptions) -> Catalogue:
    """Search the app's folders for adapters and choose the base they go on.

    The base is `options.base`, or that of the adapters named, or of the run that changed last
    among those that are not alone on their base; without any, the embedded model. Raises KitError
    when an adapter that was named cannot be read or does not fit.
    """
    by_source = {found.choice.adapter: found for found in map(_named, options.adapters)}
    named = list(by_source.values())
    others, unusable = _search(options, by_source.keys())
    model, prompt = _choose_base(options.base, [*named, *others])
    for found in named:
        if reason := found.misfit(model):
            raise ConfigError(f"--adapters {found.choice.label} does not fit: {reason}")
    fitting = []
    for found in others:
        if reason := found.misfit(model):
            unusable.append((found.choice.label, short(reason, MAX_REASON)))
        else:
            fitting.append(found)
    fitting.sort(key=lambda found: [natural(part) for part in found.choice.label.split("/")])
    base = Choice(BASE_LABEL, None, model.id, prompt)
    choices = _with_own_labels([base, *(found.choice for found in (*named, *fitting))])
    return Catalogue(model, choices, tuple(sorted(unusable)))


def read_choice(text: str, options: AppOptions, model: ModelConfig) -> Choice:
    """What a path or hub id typed into the page stands for, read as `find` reads what it lists.

    Raises OutsideRoots for what the page may not load, another KitError for what cannot be put on
    `model`.
    """
    try:
        folder = confine(text.strip(), options.roots)
    except OutsideRoots:  # then it may be a hub id, or named with --adapters
        found = _describe(text, adapter_source(text, options), run=None)
    else:
        try:
            found = _read(folder, text, options)
        except OSError as error:
            raise AdapterError(f"cannot read {text}: {error}") from error
    if reason := found.misfit(model):
        raise AdapterError(f"{text} does not fit: {reason}")
    return found.choice


def default_pair(catalogue: Catalogue) -> tuple[Choice, Choice]:
    """The two sides to begin with.

    The first two that were named; else the clipped and the smoothed arm of one comparison and
    seed; else the base and the first adapter there is; else the base twice.
    """
    base, *adapters = catalogue.choices
    named = [choice for choice in adapters if choice.is_named]
    if named:
        return (named[0], named[1]) if len(named) > 1 else (base, named[0])
    for clipped, smoothed in product(adapters, adapters):
        if (clipped.region, smoothed.region) == ("clip", "pspo") and _are_arms(clipped, smoothed):
            return clipped, smoothed
    return base, adapters[0] if adapters else base


def advice(catalogue: Catalogue) -> str | None:
    """What to do where there is no adapter to compare; None where there is one."""
    if len(catalogue.choices) > 1:
        return None
    return (
        f"There is no adapter for {catalogue.model.id} here yet: Run asks the bare base, and "
        "kit demo (or make demo) trains four on an embedded model in minutes."
    )


def _search(
    options: AppOptions, seen: Collection[str | None]
) -> tuple[list[_Found], list[tuple[str, str]]]:
    """Adapters in the app's folders that are not in `seen`, and what is unusable, with reasons."""
    found: dict[str | None, _Found] = {}
    unusable = []
    for root in filter(None, (options.runs, options.adapters_root)):
        for folder, reason in _folders(root, options.roots):
            below = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
            label = _printable(below)
            try:
                if reason:
                    raise RunError(reason)
                adapter = _read(folder, label, options)
                if adapter.choice.adapter not in seen:
                    found.setdefault(adapter.choice.adapter, adapter)
            except (KitError, OSError) as error:
                unusable.append((label, short(str(error), MAX_REASON)))
    return list(found.values()), unusable


def _folders(root: Path, roots: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Folders of runs and adapters, and those that cannot be searched with the reason."""
    troubles: list[OSError] = []
    for folder, below, files in walk(root, MAX_DEPTH, SKIPPED, troubles.append):
        if files & {"config.yaml", CONFIG, WEIGHTS}:
            below.clear()
            yield folder, None
        for path in (folder / name for name in below):
            if path.is_symlink() and not any(path.resolve().is_relative_to(r) for r in roots):
                yield path, "a link to a folder the app does not read; --adapters-root would add it"
    for error in troubles:
        yield Path(error.filename), f"cannot be searched: {error.strerror}"


def _read(folder: Path, label: str, options: AppOptions) -> _Found:
    """The adapter in a folder that was found; KitError or OSError when it cannot be used."""
    run = _finished_run(folder)
    check_within([folder / "config.yaml"], options.roots)
    source = confined_source(run.adapter if run else folder, options.roots)
    found = _describe(label, source, run)
    base = Path(found.model.id)
    if base.is_absolute() and not base.is_dir():
        raise AdapterError(
            f"trained on {base}, which is not there; write where it is now into "
            f"base_model_name_or_path of {CONFIG}"
        )
    return found


def _named(name: str) -> _Found:
    """An adapter that was named with --adapters; KitError or OSError when it cannot be used."""
    run = _finished_run(Path(name))
    found = _describe(_printable(name), given_source(name), run)
    return replace(found, choice=replace(found.choice, is_named=True))


def _finished_run(folder: Path) -> RunFolder | None:
    """The run folder, with an adapter; None for a folder that is none."""
    run = RunFolder(folder)
    if not os.path.isfile(folder / "config.yaml"):
        return None
    if os.path.isdir(run.adapter):
        return run
    try:
        status = run.status
    except RunError:
        status = "unreadable"  # run.json is cut off, or no record
    raise AdapterError(
        f"no adapter yet (status: {status}); go on with: kit train {folder} --resume"
    )


def _describe(label: str, source: str, run: RunFolder | None) -> _Found:
    settings = read_settings(source)
    base_id, revision = settings["base_model_name_or_path"], settings.get("revision")
    model, choice = ModelConfig(id=base_id), Choice(label, source, base_id, SYSTEM_PROMPT)
    if run is not None:
        path = run.path / "config.yaml"
        try:
            config = read_run_config(path)
        except ConfigError as error:
            raise ConfigError(f"cannot use {path}: {error}") from None
        model = config.model
        choice = replace(
            choice,
            system_prompt=config.data.system_prompt,
            data=config.data.name,
            run=str(run.path),
            region=config.objective.trust_region.name if config.method == "grpo" else None,
            preferences=config.preferences.source if config.learns_from_preferences else None,
            parent=config.model.adapter,
            learning_rate=config.optim.learning_rate,
            guidelines=config.guidelines,
        )
    # the adapter's own word on its base is what it is checked against when it is loaded
    own = {"id": base_id, "revision": revision or model.revision, "adapter": None}
    weights = Path(source) / WEIGHTS
    changed = os.path.getmtime(weights) if os.path.isfile(weights) else 0.0  # a hub id has none
    return _Found(choice, model.model_copy(update=own), changed)


def _choose_base(base_id: str | None, found: Sequence[_Found]) -> tuple[ModelConfig, str]:
    """The base to hold in memory, at the revision that any adapter on it names, and its prompt."""
    if base_id is not None:
        found = [f for f in found if _is_same_base(f.model.id, base_id)]
    if not found:
        return ModelConfig(id=base_id or EMBEDDED), SYSTEM_PROMPT
    on_base = Counter(f.model.id for f in found)

    def weight(f: _Found) -> tuple[bool, bool, bool, float]:
        return f.choice.is_named, on_base[f.model.id] > 1, f.choice.run is not None, f.changed

    best = max(found, key=weight)
    revisions = (f.model.revision for f in found if f.model.id == best.model.id)
    revision = best.model.revision or next(filter(None, revisions), None)
    own = {"id": base_id or best.model.id, "revision": revision}
    return best.model.model_copy(update=own), best.choice.system_prompt


def _is_same_base(own_id: str, base_id: str) -> bool:
    """As kit.model.base compares them when it loads an adapter."""
    return own_id in (base_id, str(Path(base_id)))


def _with_own_labels(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Choices of one label, in two folders or called like the base, get their whole path."""
    labels = Counter(choice.label for choice in choices)
    return tuple(
        replace(choice, label=_printable(choice.adapter))
        if choice.adapter is not None and labels[choice.label] > 1
        else choice
        for choice in choices
    )


def _are_arms(a: Choice, b: Choice) -> bool:
    """Whether two runs look like arms of one comparison: one part of their paths differs."""
    if a.run is None or b.run is None or (a.data, a.system_prompt) != (b.data, b.system_prompt):
        return False
    parts_a, parts_b = Path(a.run).parts, Path(b.run).parts
    if len(parts_a) != len(parts_b):
        return False
    return sum(x != y for x, y in zip(parts_a, parts_b, strict=True)) == 1


def _printable(text: str) -> str:
    """One line that can be sent as UTF-8, which names of files need not be."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
