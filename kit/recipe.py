"""Read a recipe: YAML files, what they extend, and key=value overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from kit.config import GUIDELINES, Config, spelled_out
from kit.errors import ConfigError
from kit.guideline import MOST_GUIDELINES, Guideline
from kit.refusals import LONGEST_SHOWN, NOT_ALLOWED, read_settings, unknown_key
from kit.section import SettingsSection
from kit.spelling import did_you_mean, did_you_mean_path
from kit.yaml_text import parse_argument, read_yaml

S = TypeVar("S", bound=SettingsSection)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML recipe, apply `key=value` overrides, and validate.

    The overrides together are one more layer over the file, merged as `extends` merges: another
    `objective.trust_region.name` drops the settings of the region it replaces.

    Raises ConfigError for a missing file, bad YAML, an unknown key or a value out of range.
    """
    path = Path(path)
    layer: dict[str, Any] = {}
    for override in overrides or []:
        _apply_override(layer, override)
    values = read_layers(path, [layer])
    values.setdefault("output", str(Path("runs") / path.stem))
    return build_config(values)


def read_layers(path: Path, layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A recipe with further layers over it, each merged as `extends` merges; not yet validated."""
    return reduce(_merge, layers, _read(path, seen=()))


def build_config(values: dict[str, Any]) -> Config:
    """Validate plain nested values; all problems are reported at once, as a ConfigError.

    Guidelines that are named are read, so that the configuration holds them whole.
    """
    if isinstance(values, dict) and "guidelines" in values:
        values = values | {"guidelines": read_guidelines(values["guidelines"])}
    return read_settings(Config, values)


def read_guidelines(given: Any) -> dict[str, Guideline]:
    """Guidelines by name, from names of shipped ones and paths, or from mappings as runs have them.
    None are none.

    Raises ConfigError for one that is unknown, cannot be read, or has the name of another.
    """
    if given is None or isinstance(given, Mapping):
        named = [(str(name), values) for name, values in (given or {}).items()]
    elif isinstance(given, str) or (
        isinstance(given, list) and all(isinstance(one, str) for one in given)
    ):
        named = [(Path(one).stem, _guideline_file(one)) for one in listed(given)]
    else:
        raise ConfigError(
            f"guidelines = {given!r:.{LONGEST_SHOWN}}{NOT_ALLOWED}must be a list of names and "
            "paths, [] for none"
        )
    if len(named) > MOST_GUIDELINES:
        raise ConfigError(f"guidelines has {len(named)} of them, at most {MOST_GUIDELINES} work")
    found: dict[str, Guideline] = {}
    for name, source in named:
        if name in found:
            raise ConfigError(
                f"two guidelines are called {name!r}: name each once, and a file of yours unlike "
                "others"
            )
        found[name] = _guideline(name, source)
    return found


def _guideline(name: str, source: Path | Any) -> Guideline:
    """One guideline, from its file or from its settings."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,59}", name, re.ASCII):
        raise ConfigError(
            f"no guideline can be called {name!r:.80}: a name has letters, digits, _ and -, and at "
            "most 60 of them"
        )
    values = read_yaml(source) if isinstance(source, Path) else source
    where = f"{source}: " if isinstance(source, Path) else f"guidelines.{name}."
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"guidelines.{name} must hold prompt, checks and metric, got {values!r:.80}; to take "
            "one by its name or path, make guidelines a list"
        )
    return read_settings(Guideline, values, where)


def _guideline_file(name: str) -> Path:
    """The file of a shipped guideline, or of the user's."""
    if "/" in name or os.sep in name or name.endswith((".yaml", ".yml")):
        if not os.path.lexists(name):
            raise ConfigError(
                f"cannot read the guideline {name}: No such file or directory"
                f"{did_you_mean_path(name)}"
            )
        return Path(name)
    shipped = {path.stem: path for path in sorted(GUIDELINES.glob("*.yaml"))}
    if name not in shipped:
        hint = did_you_mean(name, shipped)
        raise ConfigError(
            f"there is no guideline {name!r}{hint}{' There' if hint else '; there'} are "
            f"{', '.join(shipped)}; one of yours is named by its file, such as mine.yaml"
        )
    return shipped[name]


def read_pairs(section: type[S], pairs: Sequence[str], prefix: str = "") -> S:
    """A section from `<prefix>key=value` texts; the prefix is empty or ends with a point.

    Raises ConfigError for an unknown key, or a value that is missing or out of range.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        if not pair.startswith(prefix):
            known = [prefix + name for name in section.model_fields]
            raise ConfigError(unknown_key(pair.partition("=")[0], "", known))
        _apply_override(values, pair.removeprefix(prefix), prefix)
    return read_settings(section, values, prefix)


def listed(given: Any) -> list[Any]:
    """One is a list of one: a text is a sequence, too, of letters."""
    return [given] if isinstance(given, str | Path | int) else list(given)


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
    if not os.path.lexists(path):
        raise ConfigError(
            f"cannot read the configuration {path}: No such file or directory"
            f"{did_you_mean_path(path)}"
        )
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
    """Nested mappings are merged; a trust region of another name replaces the one below, and no
    guidelines, {}, replace those there are."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if key == "trust_region":
            old, value = spelled_out(old), spelled_out(value)
        if isinstance(old, dict) and isinstance(value, dict):
            renamed = "name" in value and value["name"] != old.get("name")
            replaced = key == "trust_region" and renamed
            emptied = key == "guidelines" and not value
            merged[key] = value if replaced or emptied else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _apply_override(values: dict[str, Any], override: str, prefix: str = "") -> None:
    """Set one `dotted.key=value` in place; `prefix` is what errors name before it."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must have the form key=value")
    if not text.strip():
        raise ConfigError(
            f"override {prefix + override!r} has no value; write {prefix}{key}=null for none, "
            f"{prefix}{key}=[] for an empty list, {prefix}{key}=\"''\" for an empty text"
        )
    value = parse_argument(text)
    if key.endswith("trust_region") and isinstance(value, str):  # for short
        key += ".name"
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    section[last] = value
