"""How far completions follow a guideline: what its checks say, what that earns, one number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.errors import RewardError
from kit.guideline import CheckSettings, Function, Guideline
from kit.tasks.functions import UserPart, call, import_function
from kit.tasks.guidelines.attempt import NOTHING, Attempt, Finding
from kit.tasks.guidelines.concise import concise
from kit.tasks.guidelines.equations import equations
from kit.tasks.guidelines.estimate import estimate
from kit.tasks.guidelines.sections import sections
from kit.tasks.guidelines.units import units

Check = Callable[[Sequence[Attempt], Any], list[Finding]]


def _each(check: Callable[[Attempt, Any], Finding]) -> Check:
    """A check that looks at one completion at a time."""

    def of_all(attempts: Sequence[Attempt], settings: Any) -> list[Finding]:
        return [check(attempt, settings) for attempt in attempts]

    return of_all


def _by_problem(check: Check) -> Check:
    """A check that compares the completions of a problem with each other."""

    def of_all(attempts: Sequence[Attempt], settings: Any) -> list[Finding]:
        members: dict[Any, list[int]] = {}
        for index, attempt in enumerate(attempts):
            members.setdefault(attempt.problem["id"], []).append(index)
        findings: dict[int, Finding] = {}
        for indices in members.values():
            found = check([attempts[i] for i in indices], settings)
            findings |= dict(zip(indices, found, strict=True))
        return [findings[index] for index in range(len(attempts))]

    return of_all


# by the name of their settings; `function` is in Follower
CHECKS: dict[str, Check] = {
    "sections": _each(sections),
    "equations": _each(equations),
    "units": _each(units),
    "estimate": _each(estimate),
    "concise": _by_problem(concise),
}


@dataclass(frozen=True, slots=True)
class Following:
    """How far N completions follow one guideline."""

    findings: dict[str, list[Finding]]  # by check
    rewards: dict[str, list[float]]  # by <guideline>.<check>, weighted
    adherence: list[float | None]  # from 0 to 1; None: it does not apply, or cannot be measured


class Follower:
    """A guideline, ready to look at completions."""

    def __init__(
        self, name: str, guideline: Guideline, functions: Mapping[str, UserPart] | None
    ) -> None:
        """`functions`: the user's, by check; None: what they say is not asked."""
        self.name = name
        self.guideline = guideline
        self.functions = functions

    @property
    def parts(self) -> list[str]:
        """What its rewards are called."""
        return [f"{self.name}.{check.label}" for check in self._checks]

    @property
    def is_measurable(self) -> bool:
        """Whether its adherence can be told without the functions that are not asked."""
        return {check.label for check in self._reported} <= {c.label for c in self._checks}

    def __call__(self, attempts: Sequence[Attempt]) -> Following:
        """Raises RewardError for functions that fail, or return what is not from 0 to 1."""
        findings = {check.label: self._find(check, attempts) for check in self._checks}
        rewards = {
            f"{self.name}.{check.label}": [
                check.weight * (found.value or 0.0) for found in findings[check.label]
            ]
            for check in self._checks
        }
        measured = range(len(attempts)) if self.is_measurable else ()
        adherence = [self._adherence(findings, index) for index in measured]
        return Following(findings, rewards, adherence or [None] * len(attempts))

    @property
    def _checks(self) -> list[CheckSettings]:
        asked = self.functions is not None
        return [c for c in self.guideline.checks if asked or not isinstance(c, Function)]

    @property
    def _reported(self) -> list[CheckSettings]:
        metric = self.guideline.metric
        return [
            c for c in self.guideline.checks if c.label == metric or (not metric and c.weight > 0)
        ]

    def _find(self, check: CheckSettings, attempts: Sequence[Attempt]) -> list[Finding]:
        """A text that states no answer follows nothing, whatever a check says of it; a price is
        paid without an answer too."""
        if isinstance(check, Function):
            findings = self._ask(check, attempts)
        else:
            findings = CHECKS[check.label](attempts, check)
        pairs = zip(attempts, findings, strict=True)
        return [
            found
            if check.weight < 0 or attempt.states_an_answer or found.value is None
            else NOTHING
            for attempt, found in pairs
        ]

    def _ask(self, check: Function, attempts: Sequence[Attempt]) -> list[Finding]:
        part = (self.functions or {})[check.label]
        prompts = [attempt.prompt for attempt in attempts]
        texts = [attempt.text for attempt in attempts]
        values = call(part, prompts, texts, [attempt.problem for attempt in attempts])
        for index, value in enumerate(values):
            if value is not None and not 0 <= value <= 1:
                raise RewardError(
                    f"the check {part.name!r} of guideline {self.name!r} must return numbers from "
                    f"0 to 1 or None, got {value:g} for completion {index}; its weight makes it "
                    "larger"
                )
        return [Finding(value) for value in values]

    def _adherence(self, findings: Mapping[str, Sequence[Finding]], index: int) -> float | None:
        """The mean of the checks it reports, by their weights where they are several."""
        values = [(c.weight, findings[c.label][index].value) for c in self._reported]
        if len(values) == 1:
            return values[0][1]
        applies = [(weight, value) for weight, value in values if value is not None]
        total = sum(weight for weight, _ in applies)
        return sum(weight * value for weight, value in applies) / total if applies else None


def follower_of(name: str, guideline: Guideline, *, trusted: bool = True) -> Follower:
    """Raises RewardError for a function that cannot be imported; unless `trusted`, none is."""
    if not trusted:
        return Follower(name, guideline, None)
    checks = (check for check in guideline.checks if isinstance(check, Function))
    functions = {
        check.label: UserPart(check.label, 1.0, import_function(check.path)) for check in checks
    }
    return Follower(name, guideline, functions)


def mean_adherence(values: Iterable[float | None]) -> dict[str, Any]:
    """{value, n} of the completions to which a guideline applies, ready for JSON."""
    known = [value for value in values if value is not None]
    return {"value": sum(known) / len(known) if known else None, "n": len(known)}
