"""Build a group of settings from values, and say in a user's words why one is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kit.config import TRUST_REGION_SETTINGS
from kit.errors import ConfigError
from kit.guideline import CHECK_SETTINGS
from kit.section import SettingsSection
from kit.spelling import did_you_mean

LONGEST_SHOWN = 200  # characters of a value that was refused
TAGGED: dict[str, type[SettingsSection]] = {**TRUST_REGION_SETTINGS, **CHECK_SETTINGS}  # by name
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
        said = unknown_key(location[-1], parents, _known_keys(section, error["loc"][:-1]))
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


def unknown_key(key: str, parents: str, known: Sequence[str]) -> str:
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
