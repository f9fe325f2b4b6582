"""Which lines of an answer fulfil a guideline that one of the adapters was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kit.app.compare.comparison import Answer
from kit.app.compare.setup import Setup
from kit.app.inert import printable
from kit.guideline import Guideline
from kit.tasks.guidelines import Attempt, follower_of


def marks(answer: Answer, setup: Setup, side: str) -> dict[int, str]:
    """Names of guidelines by number of line, and which of several checks it is that the line
    fulfils. No function is run that a guideline names."""
    guidelines = _all(choice.guidelines for choice in setup.sides.values())
    if answer.verdict is None or not guidelines:
        return {}
    problem = {"id": "", "question": setup.question, "answer": setup.gold}
    text = printable(answer.completion.text)  # whose lines are those that are shown
    attempt = Attempt(text, problem, setup.messages_to(side), answer.verdict)
    found: dict[int, dict[str, list[str]]] = {}
    for name, guideline in guidelines.items():
        findings = follower_of(name, guideline, trusted=False)([attempt]).findings
        for check, (finding,) in findings.items():
            for line in finding.lines:
                found.setdefault(line, {}).setdefault(name, []).append(check)
    several = {name for name, guideline in guidelines.items() if len(guideline.checks) > 1}
    return {
        line: "; ".join(
            f"{name}: {', '.join(checks)}" if name in several else name
            for name, checks in names.items()
        )
        for line, names in sorted(found.items())
    }


def _all(each: Iterable[Mapping[str, Guideline]]) -> dict[str, Guideline]:
    """Those of all sides; of one name the last."""
    return {name: guideline for own in each for name, guideline in own.items()}
