"""A group of settings: typed, closed, and fixed once built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError


class SettingsSection(BaseModel):
    """A group of settings: unknown keys are refused, values are fixed once built."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _true_is_no_number(
        cls, values: Any, validate: ModelWrapValidatorHandler[SettingsSection]
    ) -> SettingsSection:
        """pydantic takes true for 1."""
        found = validate(values)
        given = values.items() if isinstance(values, Mapping) else ()
        error = PydanticCustomError("no_number", "must be a number, not true or false")
        if wrong := [
            InitErrorDetails(type=error, loc=(name,), input=value)
            for name, value in given
            if isinstance(value, bool) and not isinstance(getattr(found, name), bool)
        ]:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return found
