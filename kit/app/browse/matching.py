"""Which stored results can stand side by side, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import takewhile

from kit.app.library.results import Settings, Stored

NAMED = 3  # results that cannot be compared and are named; the others are counted

# what may differ without the problems or their sampling being others; of prompts the guidelines
_MAY_DIFFER = {"temperatures", "system_prompt"}


def differences(left: Stored, right: Stored) -> list[str]:
    """Why two results cannot be compared, a few words each; [] where they can."""
    pairs = {
        "data": (left.about.data, right.about.data),
        "temperature": (left.temperature, right.temperature),
        "system_prompt": (left.about.shared_prompt, right.about.shared_prompt),
    }
    for field in fields(Settings):
        if field.name not in _MAY_DIFFER:
            both = (getattr(side.about.settings, field.name) for side in (left, right))
            pairs[field.name] = tuple(both)
    return [
        name if name in ("system_prompt", "problems") else f"{name} {ours} and {theirs}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]


def comparable(left: Stored, stored: Iterable[Stored]) -> list[Stored]:
    """The other results that can be compared with one."""
    return [right for right in stored if right != left and not differences(left, right)]


def first_choice(stored: Sequence[Stored]) -> Stored:
    """A bare base where there is one: what adapters are compared with."""
    return next((one for one in stored if one.about.target.adapter is None), stored[0])


def nearest(left: Stored, others: Sequence[Stored]) -> Stored:
    """The result that shares most of its folders with `left`."""

    def shared(one: Stored) -> int:
        pairs = zip(left.name.split("/"), one.name.split("/"), strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    return max(others, key=shared)


def explain(left: Stored, stored: Sequence[Stored]) -> str:
    """How many results can be compared with one, and why the others of `stored` cannot.

    Where there is none, what to run.
    """
    can = comparable(left, stored)
    refused = [one for one in stored if one != left and one not in can]
    sentences = [
        f"{one.name} cannot: it differs in {', '.join(differences(left, one))}."
        for one in refused[:NAMED]
    ]
    if len(refused) > NAMED:
        sentences.append(f"{len(refused) - NAMED} more cannot.")
    if can:
        results = "1 result" if len(can) == 1 else f"{len(can)} results"
        return " ".join([f"{results} can be compared with the left one.", *sentences])
    settings = f"temperature={left.temperature:g} max_new_tokens="
    settings += str(left.about.settings.max_new_tokens)
    todo = (
        "There is nothing to compare it with: evaluate another run or the base with the same "
        f"settings (kit evaluate OTHER_RUN --data {left.about.data} {settings}) and refresh."
    )
    return " ".join([todo, *sentences])
