"""How an evaluation samples: the settings of `kit evaluate`, typed and closed like a recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kit.config import MemorySize, NonNegativeInt, PositiveInt, SettingsSection

Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


class EvalSettings(SettingsSection):
    """How answers are sampled: `key=value` arguments of `kit evaluate`."""

    temperature: list[Temperature] = Field(default=[0.0], min_length=1)
    """One or several, e.g. 0,0.2,0.4; 0 is greedy."""
    samples: PositiveInt = 1
    """Completions per problem at each temperature above 0; greedy decoding has always one."""
    max_new_tokens: PositiveInt = 512
    """Longer completions are cut off and count as truncated."""
    seed: NonNegativeInt = 0
    """Seeds the samples and the choice of problems."""
    limit: PositiveInt | None = None
    """Only this many problems, the first after shuffling; None: all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus truncation."""
    split: Literal["test", "train"] = "test"
    """Which split, where there are several."""
    memory_budget: MemorySize | None = Field(default=None, exclude=True)
    """Memory of a GPU that sampling may take, e.g. 6GB; None: all there is. Changes no result, so
    results do not record it."""

    leave_out: list[str] = Field(default=[])
    """votes.jsonl, files of kit preferences, or runs trained on preferences, with commas: the
    problems that these compare answers to are not asked."""

    @field_validator("temperature", "leave_out", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return list(value) if isinstance(value, list | tuple) else [value]

    @field_validator("leave_out")
    @classmethod
    def _named_alike(cls, value: list[str]) -> list[str]:
        return [str(Path(source)) for source in value]  # ./runs/a and runs/a/ are runs/a

    @field_validator("temperature")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _several_differ(self) -> EvalSettings:
        if self.samples > 1 and not any(self.temperature):
            raise ValueError(
                f"samples = {self.samples} needs a temperature above 0: greedy samples are equal"
            )
        return self

    def samples_at(self, temperature: float) -> int:
        return self.samples if temperature > 0 else 1

    def within(self, budget: str | None) -> EvalSettings:
        """These settings, with this budget where they name none."""
        return self.model_copy(update={"memory_budget": self.memory_budget or budget})

    def joined(self, before: dict[str, Any]) -> EvalSettings:
        """These settings grown to cover those of a result file."""
        limits = (self.limit, before["limit"])
        return self.model_copy(
            update={
                "temperature": sorted({*self.temperature, *before["temperatures"]}),
                "samples": max(self.samples, before["samples"]),
                "limit": None if None in limits else max(limits),
            }
        )
