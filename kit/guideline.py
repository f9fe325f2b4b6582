"""A guideline: what it asks of a solution, the checks that reward that, and what it reports.

docs/guidelines.md shows how to write one. Only settings are here: `kit.recipe` reads the files, and
`kit.tasks.guidelines` looks at completions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from kit.section import SettingsSection

LONGEST_PROMPT = 2000  # characters that a guideline adds to the system prompt
MOST_CHECKS = 16  # of a guideline
MOST_GUIDELINES = 16  # of a recipe

_Heading = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[^\W_](?:[^\n]*[^\W_])?$")]


class CheckSettings(SettingsSection):
    """What all checks have."""

    weight: Annotated[float, Field(allow_inf_nan=False)]
    """Reward of a completion that fulfils it wholly; a right answer gives `reward.correct`."""

    @property
    def label(self) -> str:
        """What its reward and its figures are called."""
        return get_args(type(self).model_fields["name"].annotation)[0]


class Sections(CheckSettings):
    """The share of parts that are there: each begun by its heading, in order, with content.

    Content are three different words or numbers that no other part has, at least one of which the
    prompt does not have either; letters alone, and five words in a row of the prompt, are none.
    """

    name: Literal["sections"]
    headings: Annotated[list[_Heading], Field(min_length=2, max_length=12)]
    """The parts, in their order."""
    computed: list[str] = Field(default_factory=list)
    """Those of them that must hold a right equation, of which no part before has any, with the
    stated answer in it."""

    @model_validator(mode="after")
    def _known(self) -> Sections:
        folded = [heading.casefold() for heading in self.headings]
        if len(set(folded)) < len(folded):
            raise ValueError(f"headings must be different, got {self.headings}")
        if odd := set(self.computed) - set(self.headings):
            raise ValueError(f"computed names {sorted(odd)[0]!r}; headings are {self.headings}")
        return self


class Equations(CheckSettings):
    """The share of equations that stand alone in a line, come out and lead to the answer.

    One that was there before counts against it; one that changes nothing (7 + 0 = 7), or was there
    in another spelling, not at all.
    """

    name: Literal["equations"]


class Units(CheckSettings):
    """The share of equations whose result has a unit: the problem's, or one of the same kind.

    Of the same kind are minutes where the problem has hours. Where it has none it does not apply.
    """

    name: Literal["units"]


class Estimate(CheckSettings):
    """Half for an estimate before the first equation, near the answer; half for comparing them.

    The comparison stands after the equation with the answer and has both numbers.
    """

    name: Literal["estimate"]
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """How far the estimate may be from the stated answer, as a share of it."""


class Concise(CheckSettings):
    """Of right answers: how short the shortest right one of the group is beside this one.

    Where fewer than two are right there is nothing to compare with: it does not apply.
    """

    name: Literal["concise"]


class Function(CheckSettings):
    """A function of yours, with TRL's signature: from 0 to 1, or None where it does not apply."""

    name: Literal["function"]
    path: str
    """`package.module:function` or `file.py:function`."""

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, path: str) -> str:
        where, _, name = path.rpartition(":")
        if not (where and name.isidentifier()):
            raise ValueError("must be package.module:function or file.py:function")
        return path

    @property
    def label(self) -> str:
        """The function's name."""
        return self.path.rpartition(":")[2]


Check = Annotated[
    Sections | Equations | Units | Estimate | Concise | Function, Field(discriminator="name")
]

# by name
CHECK_SETTINGS: dict[str, type[CheckSettings]] = {
    get_args(check.model_fields["name"].annotation)[0]: check
    for check in get_args(get_args(Check)[0])
}


class Guideline(SettingsSection):
    """What a solution is asked to be like, and what rewards it."""

    prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)]
    """Stands after `data.system_prompt`; empty: it is rewarded without being asked for."""
    checks: Annotated[list[Check], Field(min_length=1, max_length=MOST_CHECKS)]
    """What rewards it, beside the right answer."""
    metric: str | None = None
    """The check whose mean is reported as adherence; None: the mean of all with a weight above 0,
    by their weights."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Guideline:
        labels = [check.label for check in self.checks]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(
                f"two checks are called {sorted(twice)[0]!r}: name each once, put what belongs "
                "together into one, or give functions different names"
            )
        if self.metric is not None and self.metric not in labels:
            raise ValueError(f"metric names {self.metric!r}; the checks are {', '.join(labels)}")
        self._check_weights()
        return self

    def _check_weights(self) -> None:
        weights = [check.weight for check in self.checks]
        listed = ", ".join(f"{check.label} {check.weight:g}" for check in self.checks)
        if not any(weights):
            raise ValueError(
                f"all weights are 0 ({listed}), so nothing is rewarded; give a check a weight "
                "above 0, such as 0.1"
            )
        if not sum(weights) > 1e-9:
            raise ValueError(
                f"the weights cancel ({listed} add up to {sum(weights):g}), so following it does "
                "not pay; raise those above 0 until the sum is above 0"
            )


def prompted(system_prompt: str, guidelines: Mapping[str, Guideline]) -> str:
    """The system prompt with what guidelines add to it, each on lines of its own."""
    return with_parts(system_prompt, [guideline.prompt for guideline in guidelines.values()])


def prompts_of(guidelines: Mapping[str, Guideline]) -> dict[str, str]:
    """What each adds to the system prompt, for records."""
    return {name: guideline.prompt for name, guideline in guidelines.items()}


def with_parts(system_prompt: str, parts: Iterable[str]) -> str:
    return "\n".join(filter(None, [system_prompt, *(part.strip() for part in parts)]))


def without_parts(system_prompt: str, parts: Iterable[str]) -> str:
    """What `with_parts` made a longer one of."""
    added = with_parts("", parts)
    return system_prompt.removesuffix(added).removesuffix("\n") if added else system_prompt
