"""Read a recipe: YAML files, what they extend, and key=value overrides."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kit.config import (
    GUIDELINES,
    TRUST_REGION_SETTINGS,
    Config,
    SettingsSection,
    parse_argument,
    read_yaml,
)
from kit.errors import ConfigError
from kit.guideline import CHECK_SETTINGS, MOST_GUIDELINES, Guideline

LONGEST_SHOWN = 200  # characters of a value that was refused
TAGGED: dict[str, type[SettingsSection]] = {**TRUST_REGION_SETTINGS, **CHECK_SETTINGS}  # by name
NEAR = 0.7  # of difflib's likeness: one slip in a word of four letters
# what pydantic finds, in the words of a user who knows neither it nor Python; {…} are its findings
ALLOWED = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "must be {expected_tags}",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_unicode": "must have no characters that UTF-8 cannot write",
    "string_pattern_mismatch": "must begin and end with a letter or a digit, and be one line",
    "invalid_key": "a key must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list, such as [a, b]",
    "tuple_type": "must be a list, such as [0, 1]",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "dict_type": "must be a section with settings of its own",
    "model_type": "must be a section with settings of its own",
    "model_attributes_type": "must be a section with a name, such as name: {example}",
}

# in pydantic's location of an error: no key, but one of the kinds that a value may have
KIND = re.compile(r"str|int|float|(?:list|dict|literal|constrained-\w+)\[.*\]|constrained-\w+")
NOT_ALLOWED = " is not allowed: "

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
            raise ConfigError(_unknown(pair.partition("=")[0], "", known))
        _apply_override(values, pair.removeprefix(prefix), prefix)
    return read_settings(section, values, prefix)


def listed(given: Any) -> list[Any]:
    """One is a list of one: a text is a sequence, too, of letters."""
    return [given] if isinstance(given, str | Path | int) else list(given)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`, did you mean 'rank'?`: the known name that is spelled most like it; "" where none is."""
    near = _spelled_like(given, known)
    return f", did you mean {near!r}?" if near else ""


def _spelled_like(given: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest, if one is near: difflib counts letters that were swapped as
    two slips."""
    names = list(known)
    swapped = (name for name in names if sorted(name) == sorted(given))
    return next(iter(difflib.get_close_matches(given, names, 1, NEAR)), next(swapped, None))


def did_you_mean_path(given: str | Path) -> str:
    """The same of files and folders that exist; "" where the given one does or none is alike."""
    near = _nearest(Path(given))
    return f", did you mean {str(near)!r}?" if near and near != Path(given) else ""


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
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    section[last] = parse_argument(text)


def read_settings(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """A section from values by key; `prefix` is what errors name before a key.

    Raises ConfigError for an unknown key, or a value that is missing or out of range.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        found: dict[str, str] = {}  # a value may be refused by each of the kinds it could be
        for given in error.errors():
            said = _explain(given, section, prefix)
            start, _, allowed = said.partition(NOT_ALLOWED)
            found[start] = f"{found[start]} or {allowed}" if start in found and allowed else said
        raise ConfigError("; ".join(found.values())) from None


def _explain(error: ErrorDetails, section: type[SettingsSection], prefix: str) -> str:
    """One pydantic error as a sentence: what came, what is allowed."""
    is_a_key = error["type"] == "extra_forbidden"
    location = [str(part) for part in error["loc"] if is_a_key or not KIND.fullmatch(str(part))]
    is_check = location[:1] == ["checks"]
    if is_check or location[:2] == ["objective", "trust_region"]:
        del location[2:3]  # a tagged union puts its tag here; it is not a key the user wrote
    name = prefix + ".".join(location)
    if is_a_key:
        parents = (prefix + ".".join(location[:-1])).strip(".")
        said = _unknown(location[-1], parents, _known_keys(section, error["loc"][:-1]))
        is_a_regions = location[:2] == ["objective", "trust_region"]
        return said + (_whose(location[-1], str(error["loc"][2])) if is_a_regions else "")
    if error["type"] == "missing":
        return f"{name} is required"
    known = CHECK_SETTINGS if is_check else TRUST_REGION_SETTINGS
    if error["type"] == "union_tag_not_found":
        *others, last = known
        return f"{name}.name is required: {', '.join(others)} or {last}"
    if error["type"] == "union_tag_invalid":
        tag = str(error["ctx"]["tag"])[:LONGEST_SHOWN]
        hint = did_you_mean(tag, known)
        there = f"{' There' if hint else '; there'} are {', '.join(map(repr, known))}"
        return f"{name}.name = {tag!r} is not known{hint}{there}"
    if error["type"] == "refused":
        return error["msg"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ALLOWED:
        findings = {"example": "equations" if is_check else "clip", **error.get("ctx", {})}
        message = ALLOWED[error["type"]].format_map(findings)
    if not location:
        return f"{prefix.rstrip('.: ')}: {message}" if prefix else message
    given = repr(error["input"])
    if len(given) > LONGEST_SHOWN:
        given = f"{given[:LONGEST_SHOWN]}…"
    return f"{name} = {given}{NOT_ALLOWED}{message[0].lower()}{message[1:]}"


def _whose(key: str, region: str) -> str:
    """`; it is a setting of clip, dgpo, and the region is pspo`; "" where it is of none."""
    owners = [name for name, other in TRUST_REGION_SETTINGS.items() if key in other.model_fields]
    if not owners:
        return ""
    return f"; it is a setting of {', '.join(owners)}, and objective.trust_region.name is {region}"


def _unknown(key: str, parents: str, known: Sequence[str]) -> str:
    where = f" under {parents}" if parents else ""
    hint = did_you_mean(key, known) or f", known keys: {', '.join(known)}"
    return f"unknown key {key!r}{where}{hint}"


def _known_keys(section: Any, location: tuple[str | int, ...]) -> list[str]:
    """Field names of the part of a section that a pydantic error location points to."""
    for part in location:
        if part in TAGGED:
            section = TAGGED[str(part)]
        elif isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            # a list of sections is not one
            section = annotation if hasattr(annotation, "model_fields") else get_args(annotation)[0]
    return list(section.model_fields)


def _nearest(path: Path) -> Path | None:
    """The path, or the one there is that is spelled most like it, folder by folder.

    What is named without a folder is looked for in configs/ and runs/ too.
    """
    if os.path.exists(path):
        return path
    folder = None if path == path.parent else _nearest(path.parent)
    if folder is None:
        return None
    folders = [folder] if folder.name else [folder, folder / "configs", folder / "runs"]
    known = {
        name.removesuffix(".yaml"): within / name for within in folders for name in _names(within)
    }
    near = _spelled_like(path.name.removesuffix(".yaml"), known)
    return known[near] if near else None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
