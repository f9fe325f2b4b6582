"""The trust regions as a table: what each does, its settings and where it is published."""

from __future__ import annotations

import re

from tabulate import tabulate

from kit.config import TRUST_REGION_SETTINGS, TrustRegionSettings

HEADERS = ("region", "what it does", "settings", "source")
CHOOSING = (
    "Any recipe takes another: objective.trust_region=cispo, and its settings: "
    "objective.trust_region.epsilon_max=3"
)


def table() -> str:
    """For the terminal, in the order of the configuration's own list."""
    widths = (None, 44, 22, 28)
    shown = tabulate(_rows(), HEADERS, tablefmt="simple_grid", maxcolwidths=list(widths))
    return f"{shown}\n{CHOOSING}"


def markdown() -> str:
    """For docs/trust-regions.md."""
    lines = [f"| {' | '.join(HEADERS)} |", "|---" * len(HEADERS) + "|"]
    for name, sentence, settings, source in _rows():
        shown = f"`{settings}`" if settings else ""
        lines.append(f"| [`{name}`](#{name}) | {sentence} | {shown} | {_linked(source)} |")
    return "\n".join(lines)


def _rows() -> list[tuple[str, str, str, str]]:
    return [
        (name, _sentence(region), _settings(region), region.source)
        for name, region in TRUST_REGION_SETTINGS.items()
    ]


def _sentence(region: type[TrustRegionSettings]) -> str:
    """The first of its docstring."""
    first = (region.__doc__ or "").partition("\n\n")[0]
    return " ".join(first.split()).removesuffix(".")


def _settings(region: type[TrustRegionSettings]) -> str:
    """`epsilon=0.2, …`, each with its default."""
    fields = {name: field for name, field in region.model_fields.items() if name != "name"}
    shown = (f"{name}={_plain(field.default)}" for name, field in fields.items())
    return ", ".join(shown)


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _linked(source: str) -> str:
    return re.sub(r"(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", source)
