"""The arms of a comparison: their configurations, and what they may differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.config import Config
from kit.errors import ConfigError
from kit.recipe import flatten, load_config

OWN = {"output", "train.seed"}  # every run has its own
DECLARED = ("objective",)
MAY_VARY = (
    *("objective", "preferences", "optim", "lora", "reward", "guidelines"),
    "train.updates_per_rollout",
)


def load_arms(recipes: Sequence[str | Path], overrides: Sequence[str]) -> dict[str, Config]:
    """{name of the file: configuration}; ConfigError for fewer than two or equal names."""
    names = [Path(recipe).stem for recipe in recipes]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or repeated:
        raise ConfigError(
            f"arms are called like their files, which must differ; got {', '.join(repeated)} twice"
            if repeated
            else f"a comparison needs at least two configurations, got {len(names)}"
        )
    return {
        name: load_config(recipe, list(overrides))
        for name, recipe in zip(names, recipes, strict=True)
    }


def differing_fields(arms: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """{arm: {dotted field: value}} of the fields that are not the same in all arms."""
    flat = {arm: flatten(config.model_dump(mode="json")) for arm, config in arms.items()}
    keys = {key for values in flat.values() for key in values} - OWN
    # a mapping that is empty in one arm differs by what the others have in it
    keys -= {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    differing = [
        key
        for key in sorted(keys)
        if len({json.dumps(values.get(key)) for values in flat.values()}) > 1
    ]
    return {
        arm: {key: values[key] for key in differing if key in values}
        for arm, values in flat.items()
    }


def check_arms(arms: Mapping[str, Config], vary: Sequence[str] = ()) -> None:
    """Raise ConfigError when arms differ in a field that is not declared, or not at all."""
    unknown = [field for field in vary if not _is_under(field, MAY_VARY)]
    if unknown:
        raise ConfigError(
            f"arms can not vary in {', '.join(unknown)}: they share base, problems and rollouts; "
            f"allowed are fields of {', '.join(MAY_VARY)}"
        )
    differing = differing_fields(arms)
    declared = tuple(dict.fromkeys((*DECLARED, *vary)))
    keys = sorted({key for values in differing.values() for key in values})
    undeclared = [key for key in keys if not _is_under(key, declared)]
    if undeclared:
        listed = "; ".join(
            f"{key}: " + ", ".join(f"{arm} {differing[arm].get(key)!r}" for arm in arms)
            for key in undeclared
        )
        more = "" if set(MAY_VARY) <= set(vary) else ", or declare what is compared with --vary"
        raise ConfigError(
            f"the arms differ in more than {', '.join(declared)}: {listed}. Make these equal (an "
            f"override key=value holds for all arms){more}"
        )
    seen: dict[str, str] = {}
    for arm, values in differing.items():
        same = seen.setdefault(json.dumps(values, sort_keys=True), arm)
        if same != arm:
            raise ConfigError(f"{same} and {arm} are the same configuration; name each arm once")


def _is_under(field: str, prefixes: Sequence[str]) -> bool:
    return any(field == prefix or field.startswith(f"{prefix}.") for prefix in prefixes)
