"""What a study's file declares before anything is run: its grid, its tuning, its questions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kit.config import TRUST_REGION_SETTINGS, Config, NonNegativeInt, PositiveInt, SettingsSection
from kit.errors import ConfigError, RunError
from kit.estimate.fit import check_budget
from kit.evaluation.settings import EvalSettings, Temperature
from kit.files import only_one, write_atomically
from kit.reading import parse_json
from kit.recipe import build_config, flatten, load_config, read_layers
from kit.refusals import read_settings
from kit.runs import LOCK, writing
from kit.yaml_text import read_yaml

NAME = "study.json"
SCHEMA = 1  # of study.json, raised when a field changes its meaning
BASE = "base"  # the bare base, on the right of a pair
ALL = "all"  # every arm, on the left of a pair
MOST_SAMPLES = 9  # per problem: records keep one digit for each
MOST_SHOWN = 6  # differences of two declarations
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rates = Annotated[list[Rate], Field(min_length=1)]

# what the study's own fields decide; a recipe's values of these are not used
DECIDED = {
    "optim": ("learning_rate",),
    "train": (
        *("steps", "seed", "updates_per_rollout", "validate_every", "checkpoint_every"),
        *("keep_checkpoints", "preflight_problems", "report_to"),
    ),
}


class Tuning(SettingsSection):
    """How the learning rate of each arm at each staleness is chosen."""

    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Training seeds of the tuning runs; none of them is used again."""
    measure: Literal["lenient", "strict"] = "lenient"
    """The rate with the highest mean greedy accuracy on the validation problems at the end wins, of
    equals the smaller one. A run that failed counts as 0."""


class Question(SettingsSection):
    """What is asked, and which comparisons decide it."""

    name: str
    """Short: `a`, `smoothing`."""
    asks: str
    """The question, as a sentence."""
    pairs: Annotated[list[tuple[str, str]], Field(min_length=1)]
    """Arms whose difference decides it, [left, right]. `all` on the left: every arm; `base` on the
    right: the bare base."""
    staleness: list[PositiveInt] | None = None
    """At how many updates per rollout; None: at all of the grid."""
    measure: Literal["lenient", "strict"] = "lenient"
    """Which accuracy, on the problems of the evaluation."""
    temperature: Temperature | None = None
    """At which of the evaluation's temperatures; None: the lowest."""


class StudySettings(SettingsSection):
    """A study's file."""

    recipe: str
    """The recipe all arms share, as a path from the study's file."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """A layer over the recipe, as `extends` merges; it holds for all arms."""
    arms: Annotated[dict[str, str | dict[str, Any] | None], Field(min_length=2)]
    """By name: settings of `objective`, the name of a trust region, or a recipe whose objective is
    taken; nothing, where the arm is called like its region. `guidelines` beside the settings of
    `objective` are the arm's own."""
    staleness: Annotated[list[PositiveInt], Field(min_length=1)]
    """Updates per rollout, in the order in which they are done."""
    learning_rates: Rates | dict[PositiveInt, Rates]
    """Rates to choose from, the same for every arm; or those of each staleness."""
    tuning: Tuning
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Fresh training seeds for the tuned rates; a claim about methods needs five."""
    rollouts: PositiveInt | dict[PositiveInt, PositiveInt]
    """Rollouts of a run, or of a run at each staleness. Each is used `staleness` times, by every
    arm alike."""
    evaluation: EvalSettings
    """As of `kit evaluate`, on the test problems of the recipe's data set."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Lenient accuracy while training whose first step is noted, as a mean over five steps."""
    questions: Annotated[list[Question], Field(min_length=1)]
    """Asked before anything is run."""
    together: PositiveInt = 4
    """Runs that train at a time in one process; changes no result."""
    seconds: dict[PositiveInt, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """What a run takes at each staleness, for estimates before one has been measured."""

    @model_validator(mode="after")
    def _fits(self) -> StudySettings:
        for name, given in (("rollouts", self.rollouts), ("learning_rates", self.learning_rates)):
            if isinstance(given, dict) and given.keys() != set(self.staleness):
                raise ValueError(
                    f"{name} must be the same for all, or given for each staleness "
                    f"{self.staleness}, got {given}"
                )
        for staleness in self.staleness:
            _check_rates(self.rates_at(staleness))
        for name, values in (
            ("staleness", self.staleness),
            ("seeds", self.seeds),
            ("tuning.seeds", self.tuning.seeds),
            ("names of questions", [question.name for question in self.questions]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must be different, got {values}")
        if again := set(self.seeds) & set(self.tuning.seeds):
            raise ValueError(f"seeds must be fresh: {sorted(again)} are in tuning.seeds too")
        if self.evaluation.samples > MOST_SAMPLES:
            raise ValueError(f"evaluation.samples must be at most {MOST_SAMPLES}")
        if reserved := {ALL, BASE} & self.arms.keys():
            raise ValueError(f"no arm can be called {sorted(reserved)[0]!r}: it has a meaning")
        for arm in self.arms:
            _check_name(arm)
        for question in self.questions:
            self._check_question(question)
        return self

    def rates_at(self, staleness: int) -> list[float]:
        """Rising."""
        rates = self.learning_rates
        return sorted(rates if isinstance(rates, list) else rates[staleness])

    def rollouts_at(self, staleness: int) -> int:
        return self.rollouts if isinstance(self.rollouts, int) else self.rollouts[staleness]

    def _check_question(self, question: Question) -> None:
        where = f"question {question.name!r}"
        for left, right in question.pairs:
            for arm, also in ((left, ALL), (right, BASE)):
                if arm not in self.arms and arm != also:
                    arms = ", ".join(self.arms)
                    raise ValueError(f"{where} names {arm!r}; there are {arms} and {also!r}")
            if left == right:
                raise ValueError(f"{where} compares {left} with itself")
        if unknown := set(question.staleness or []) - set(self.staleness):
            raise ValueError(f"{where} asks at {sorted(unknown)[0]}; staleness is {self.staleness}")
        there = self.evaluation.temperature
        if question.temperature is not None and question.temperature not in there:
            raise ValueError(f"{where} asks at temperature {question.temperature:g} of {there}")


def _check_rates(rates: Sequence[float]) -> None:
    """Folders are called after them as they are printed."""
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise ValueError(f"learning_rates must differ in six digits, got {list(rates)}")


def _check_name(arm: str) -> None:
    """It is that of a folder."""
    if not re.fullmatch(r"[\w-][\w.-]*", arm):
        raise ValueError(
            f"no arm can be called {arm!r}: a name has letters, digits, _, - and ., not . first"
        )


@dataclass(frozen=True, slots=True)
class Declaration:
    """A study's file, read and checked: its settings, and each arm's configuration."""

    path: Path
    settings: StudySettings
    configs: dict[str, Config]  # by arm; rate, staleness, seed and output are those of a cell

    @property
    def base(self) -> Config:
        """The configuration of the first arm, for what all have in common."""
        return next(iter(self.configs.values()))

    def record(self) -> dict[str, Any]:
        """What binds the study, JSON-ready."""
        settings = self.settings.model_dump(mode="json")
        left_out = ("together", "seconds", "recipe", "overrides", "arms", "questions")
        return {
            **{key: value for key, value in settings.items() if key not in left_out},
            "questions": {
                question["name"]: {**question, "pairs": _joined(question["pairs"])}
                for question in settings["questions"]
            },
            "arms": {arm: _own(config) for arm, config in self.configs.items()},
            "recipe": _shared(self.base),
        }


def _joined(pairs: list[list[str]]) -> str:
    return ", ".join(f"{left} - {right}" for left, right in pairs)


def _own(config: Config) -> dict[str, Any]:
    """What an arm has for itself."""
    guidelines = config.model_dump(mode="json")["guidelines"]
    return config.objective.model_dump() | ({"guidelines": guidelines} if guidelines else {})


def _shared(config: Config) -> dict[str, Any]:
    """What all arms share and the study does not decide itself."""
    values = config.model_dump(mode="json", exclude={"objective", "guidelines", "output"})
    for section, keys in DECIDED.items():
        values[section] = {k: v for k, v in values[section].items() if k not in keys}
    return values


def load_study(path: str | Path) -> Declaration:
    """Read a study's file; ConfigError, before torch is imported, for what cannot be run."""
    path = Path(path)
    settings = read_settings(StudySettings, read_yaml(path))
    for section, keys in DECIDED.items():
        for key in keys:
            if f"{section}.{key}" in flatten(settings.overrides):
                raise ConfigError(
                    f"{path}: overrides sets {section}.{key}, which the study decides itself "
                    "(rollouts, staleness, learning_rates, seeds)"
                )
    recipe = path.parent / settings.recipe
    configs = {arm: _arm(path, recipe, settings, arm) for arm in settings.arms}
    declaration = Declaration(path, settings, configs)
    if declaration.base.method != "grpo" or not declaration.base.data.validation_size:
        raise ConfigError(
            f"{path}: a study needs method: grpo and data.validation_size above 0, on which rates "
            "are tuned"
        )
    return declaration


def _arm(path: Path, recipe: Path, settings: StudySettings, arm: str) -> Config:
    given = settings.arms[arm]
    own: dict[str, Any] = {"output": None}
    if isinstance(given, dict) and "guidelines" in given:
        own["guidelines"] = given["guidelines"]
        given = {key: value for key, value in given.items() if key != "guidelines"}
    own["objective"] = _objective(path, arm, given)
    try:
        return build_config(read_layers(recipe, [settings.overrides, own]))
    except ConfigError as error:
        raise ConfigError(f"{path}, arm {arm!r}: {error}") from None


def _objective(path: Path, arm: str, given: str | dict[str, Any] | None) -> dict[str, Any]:
    """The settings of `objective` an arm adds to the recipe's."""
    if isinstance(given, str) and given not in TRUST_REGION_SETTINGS:
        if given.endswith((".yaml", ".yml")):
            return load_config(path.parent / given).objective.model_dump()
    elif isinstance(given, dict):
        region = given.get("trust_region")
        name = region.get("name") if isinstance(region, dict) else None
        if name is None or name in TRUST_REGION_SETTINGS:
            return given
        given = str(name)
    name = given or arm
    if name not in TRUST_REGION_SETTINGS:
        raise ConfigError(
            f"{path}, arm {arm!r}: there is no trust region {name!r}; there are "
            f"{', '.join(TRUST_REGION_SETTINGS)}"
        )
    return {"trust_region": {"name": name}}


def check_budgets(declaration: Declaration) -> None:
    """Raise ConfigError, without torch, for a memory_budget that is too small for the arms that
    train together; all are of one size."""
    together = list(declaration.configs.values())[: declaration.settings.together]
    try:
        check_budget(together[0], together[1:])
    except ConfigError as error:
        advice = "; a smaller `together` needs less" if len(together) > 1 else ""
        raise ConfigError(f"{declaration.path}: {error}{advice}") from None


def begin(folder: Path, declaration: Declaration) -> None:
    """Keep in the study's folder what was declared; RunError where it holds another study."""
    kept = folder / NAME
    busy = RunError(f"another process holds {folder / LOCK}")
    with writing(kept), only_one(folder / LOCK, busy, wait=-1):
        if kept.exists():
            _check_unchanged(kept, _kept_record(declaration))
        else:
            write_atomically(kept, json.dumps(_kept_record(declaration), indent=2) + "\n")


def check_begun(folder: Path, declaration: Declaration) -> None:
    """RunError where a folder holds no study, or one that was declared otherwise."""
    if not (folder / NAME).exists():
        raise RunError(
            f"{folder} holds no study; name its folder with --output, or begin one with: "
            f"kit study {declaration.path}"
        )
    _check_unchanged(folder / NAME, _kept_record(declaration))


def _kept_record(declaration: Declaration) -> dict[str, Any]:
    return {"schema": SCHEMA, **json.loads(json.dumps(declaration.record()))}


def _defaults() -> dict[str, Any]:
    """What settings come to that a study does not name: those that an older kit did not have."""
    recipe = build_config({"model": {"id": "-"}, "data": {"name": "-"}})
    records = {"recipe": recipe, "evaluation": EvalSettings()}
    return flatten({name: record.model_dump(mode="json") for name, record in records.items()})


def _check_unchanged(kept: Path, now: Mapping[str, Any]) -> None:
    try:
        before = parse_json(kept.read_bytes())
        old, new = flatten(before), flatten(dict(now))
    except OSError as error:
        raise RunError(f"cannot read {kept}: {error.strerror}") from None
    except (ValueError, AttributeError) as error:
        raise RunError(f"{kept} is damaged: {error}; choose another --output") from None
    old = {key: value for key, value in _defaults().items() if key in new} | old
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        more = len(changed) - MOST_SHOWN
        listed = "; ".join(changed[:MOST_SHOWN]) + (f"; {more} more" if more > 0 else "")
        raise RunError(
            f"{kept.parent} holds a study that was declared otherwise ({listed}); put the file "
            "back, or choose another --output"
        )
