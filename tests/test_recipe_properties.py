"""Configuration under random input: a Config or one line that says what is wrong, nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from hypothesis import assume, given
from hypothesis import strategies as st

from kit.config import (
    CFPO,
    CISPO,
    DGPO,
    PREFERENCE_METHODS,
    SAPO,
    Clip,
    Config,
    NoClip,
    PreferencesConfig,
    SettingsSection,
    TrainConfig,
)
from kit.errors import ConfigError
from kit.recipe import build_config, differences, flatten, load_config, read_guidelines

# --- what is drawn -------------------------------------------------------------------------------

words = st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)


def section_of(annotation: Any) -> type[SettingsSection] | None:
    return (
        annotation
        if isinstance(annotation, type) and issubclass(annotation, SettingsSection)
        else None
    )


def settings_like(section: type[SettingsSection]) -> st.SearchStrategy[dict[str, Any]]:
    """Known keys, some of them, with sections where there are sections, or anything at all."""
    optional = {}
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        optional[name] = anything if inner is None else settings_like(inner) | scalars
    return st.fixed_dictionaries({}, optional=optional)


def allowed_numbers(metadata: list[Any]) -> st.SearchStrategy[float]:
    limits: dict[str, Any] = {"allow_nan": False, "allow_infinity": False}
    for bound in metadata:
        if isinstance(bound, (Ge, Gt)):
            limits["min_value"] = bound.ge if isinstance(bound, Ge) else bound.gt
            limits["exclude_min"] = isinstance(bound, Gt)
        if isinstance(bound, (Le, Lt)):
            limits["max_value"] = bound.le if isinstance(bound, Le) else bound.lt
            limits["exclude_max"] = isinstance(bound, Lt)
    return st.floats(**limits)


def allowed(section: type[SettingsSection]) -> st.SearchStrategy[SettingsSection]:
    """Sections that are valid, with any of their fields set."""
    required, optional = {}, {}
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if name == "options":
            values = st.dictionaries(st.text("abc", min_size=1), scalars.filter(is_finite))
        elif name == "limit":  # its bound is inside of a union
            values = st.none() | st.integers(min_value=1)
        elif name == "dual":
            values = st.none() | st.floats(min_value=1, exclude_min=True, allow_infinity=False)
        elif name == "clamp":
            bounds = st.tuples(st.floats(-9, 0), st.floats(0, 9, exclude_min=True))
            values = st.none() | bounds
        elif name == "memory_budget":
            values = st.sampled_from([None, "6GB", "900MB", "5.5GiB"])
        elif name == "trust_region":
            values = st.one_of(allowed(region) for region in REGIONS)
        elif name == "guidelines":
            values = st.sampled_from([{}, read_guidelines(["concise", "units-named"])])
        elif name == "functions":
            continue  # their values are floats within a list; test_config.py has them
        elif inner is not None:
            values = allowed(inner)
        elif field.annotation is float:
            values = allowed_numbers(field.metadata)
        else:
            values = st.from_type(Annotated[(field.annotation, *known_bounds(field.metadata))])
        (required if field.is_required() else optional)[name] = values
    drawn = st.fixed_dictionaries(required, optional=optional)
    if section is Config:
        drawn = drawn.map(of_its_method)
    return drawn.map(section.model_validate)


def of_its_method(values: dict[str, Any]) -> dict[str, Any]:
    """Sections of a configuration, with preferences and guidelines that go with its method."""
    if values.get("method", "grpo") != "grpo":
        values = {name: value for name, value in values.items() if name != "guidelines"}
    unused = PREFERENCE_METHODS.get(values.get("method", "grpo"))
    if unused is None:
        return {name: value for name, value in values.items() if name != "preferences"}
    given = values.get("preferences", PreferencesConfig()).model_dump(exclude=set(unused))
    given |= {"source": given["source"] or "pairs.jsonl", "batch": given["batch"] + 1}
    train = values.get("train", TrainConfig()).model_copy(update={"updates_per_rollout": 1})
    return values | {"preferences": PreferencesConfig(**given), "train": train}


REGIONS = (Clip, NoClip, SAPO, CISPO, CFPO, DGPO)


def known_bounds(metadata: list[Any]) -> list[Any]:
    # the None is for Annotated, which wants one argument at least
    return [bound for bound in metadata if isinstance(bound, (Ge, Gt, Le, Lt, MinLen))] or [None]


def is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def config_or_sentence(make: Callable[[], Config]) -> None:
    try:
        assert isinstance(make(), Config)
    except ConfigError as error:
        assert str(error) and "\n" not in str(error)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


# --- what must hold ------------------------------------------------------------------------------


@given(settings_like(Config) | anything)
def test_plain_values_are_a_config_or_a_sentence(values):
    config_or_sentence(lambda: build_config(values))


# what YAML reads as more than text, and what may go wrong there
MARKS = [
    *("2001-99-99", "2001-01-01 25:61:61", "0x", "0b2", "1_000", "1:99", ".inf", "~", "=", "<<"),
    *("!!int", "!!python/name:os", "!!binary", "!!timestamp", "!!float", "!!set", "!!omap", "!"),
    *("&a", "*a", "? ", ": ", "- ", "{", "}", "[", "]", ",", "|", ">", '"', "'", "%", "@", "`"),
    *("model", "data", "extends", "id", "name", " ", "  ", "\n", "\t", "---", "...", "#"),
    *("\0", "\ufeff", "\u2028", "\x85", "[" * 3000, "{a: " * 3000, "- " * 3000, "9" * 5000),
]
documents = st.lists(st.sampled_from(MARKS), max_size=12).map("".join)


@given(st.binary(max_size=200) | (st.text(max_size=200) | documents).map(str.encode))
def test_any_file_is_a_config_or_a_sentence(recipe, content):
    recipe.write_bytes(content)
    config_or_sentence(lambda: load_config(recipe))


@given(settings_like(Config), st.sampled_from(["extends", "model", "data"]), anything)
def test_any_recipe_is_a_config_or_a_sentence(recipe, values, key, value):
    recipe.write_text(yaml.safe_dump({**values, key: value}), encoding="utf-8")
    config_or_sentence(lambda: load_config(recipe))


KEYS = sorted(flatten(build_config({"model": {"id": "m"}, "data": {"name": "d"}}).model_dump()))


@given(st.lists(st.tuples(st.sampled_from(KEYS) | words, words | scalars.map(str)), max_size=4))
def test_any_overrides_are_a_config_or_a_sentence(recipe, pairs):
    recipe.write_text("model: {id: m}\ndata: {name: d}\n", encoding="utf-8")
    config_or_sentence(lambda: load_config(recipe, [f"{key}={value}" for key, value in pairs]))


@given(allowed(Config))
def test_what_is_written_is_read_as_it_was(recipe, config):
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    again = load_config(recipe)
    changed = set() if config.output else {"output"}  # it is named after the file then
    assert differences(config, again).keys() <= changed


@given(allowed(Config))
def test_overrides_of_all_settings_are_the_config(recipe, config):
    flat = flatten(config.model_dump(mode="json"))
    recipe.write_text("{}", encoding="utf-8")
    again = load_config(
        recipe,
        [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in flat.items()],
    )
    assert differences(config, again).keys() <= (set() if config.output else {"output"})


@given(st.data())
def test_a_slip_of_the_pen_gets_a_suggestion(data):
    known = data.draw(st.sampled_from([key for key in KEYS if "trust_region" not in key]))
    *parents, name = known.split(".")
    assume(len(name) >= 4)
    at = data.draw(st.integers(0, len(name) - 1))
    wrong = data.draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:]])
    )
    section: Any = Config
    for parent in parents:
        section = section.model_fields[parent].annotation
    assume(wrong not in section.model_fields)
    values: dict[str, Any] = {"model": {"id": "m"}, "data": {"name": "d"}}
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[wrong] = 1
    with pytest.raises(ConfigError, match=f"unknown key '{wrong}'.*did you mean '") as caught:
        build_config(values)
    assert str(caught.value).split("did you mean '")[1].partition("'")[0] in section.model_fields
