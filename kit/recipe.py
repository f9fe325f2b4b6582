"""Read a recipe: YAML files, what they extend, and key=value overrides."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kit.config import PSPO, SAPO, YAML_ERRORS, Clip, Config, NoClip, RewardFunction, read_yaml
from kit.errors import ConfigError


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML recipe, apply `key=value` overrides, and validate.

    The overrides together are one more layer over the file, merged as `extends` merges: another
    `objective.trust_region.name` drops the settings of the region it replaces.

    Raises ConfigError for a missing file, bad YAML, an unknown key or a value out of range.
    """
    path = Path(path)
    values = _read(path, seen=())
    layer: dict[str, Any] = {}
    for override in overrides or []:
        _apply_override(layer, override)
    values = _merge(values, layer)
    values.setdefault("output", str(Path("runs") / path.stem))
    return build_config(values)


def build_config(values: dict[str, Any]) -> Config:
    """Validate plain nested values; all problems are reported at once, as a ConfigError."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(e) for e in error.errors()]
        raise ConfigError("; ".join(lines)) from None


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields in which two configurations differ, with both values."""
    flat_a, flat_b = flatten(a.model_dump()), flatten(b.model_dump())
    return {
        key: (flat_a.get(key), flat_b.get(key))
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key)
    }


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """One YAML file, merged over what it extends."""
    values = read_yaml(path)  # first: a link in a circle cannot be resolved
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself, through {', '.join(str(p) for p in seen)}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends must name one file, got {parent!r}")
    return _merge(_read(path.parent / parent, (*seen, path.resolve())), values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings are merged; a trust region of another name replaces the one below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            renamed = "name" in value and value["name"] != old.get("name")
            replaced = key == "trust_region" and renamed
            merged[key] = value if replaced else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must have the form key=value")
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        section[last] = yaml.safe_load(text)
    except YAML_ERRORS:
        section[last] = text


def _explain(error: ErrorDetails) -> str:
    """One pydantic error as a sentence: what came, what is allowed."""
    location = [str(part) for part in error["loc"]]
    if location[:2] == ["objective", "trust_region"]:
        del location[2:3]  # a tagged union puts its tag here; it is not a key the user wrote
    if error["type"] == "extra_forbidden":
        *parents, key = location
        where = f" under {'.'.join(parents)}" if parents else ""
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}{where}, {hint}"
    name = ".".join(location) or "configuration"
    if error["type"] == "missing":
        return f"{name} is required"
    if error["type"] == "union_tag_not_found":
        return f"{name}.name is required: pspo, clip, noclip or sapo"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name} = {error['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    """Field names of the section that a pydantic error location points to."""
    regions = {"pspo": PSPO, "clip": Clip, "noclip": NoClip, "sapo": SAPO}
    section: Any = Config
    for part in location:
        if part in regions:
            section = regions[str(part)]
        elif isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            # a list of sections is not one: reward.functions is the only list there is
            section = annotation if hasattr(annotation, "model_fields") else RewardFunction
    return list(section.model_fields)
