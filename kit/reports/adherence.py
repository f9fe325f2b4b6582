"""How far the arms follow guidelines, and what that costs: adherence beside accuracy and length."""

from __future__ import annotations

from collections.abc import Sequence

from kit.reports.document import Table, number, percent, share
from kit.reports.scores import Score, label, origin


def adherence_table(data: str, scores: Sequence[Score]) -> Table | None:
    """A row for each arm and temperature; None where nobody looked for guidelines."""
    names = list(dict.fromkeys(name for score in scores for name in score.figures["adherence"]))
    if not names:
        return None
    return Table(
        name=f"adherence {data}",
        title=f"Adherence to guidelines on {data}, beside accuracy",
        header=("arm", "temperature", "strict, %", "tokens", *(f"{name}, %" for name in names)),
        rows=[
            (
                score.arm,
                label(score.temperature),
                percent(score.figures["strict"]["value"]),
                number(score.figures["tokens_mean"], 1),
                *(share(score.figures["adherence"].get(name)) for name in names),
            )
            for score in scores
        ],
        origin=origin(scores),
        note="Every arm's answers are looked at for every guideline, each arm asked with the "
        "prompt it was trained with. Means, with the standard deviation over seeds; - where a "
        "guideline does not apply. docs/guidelines.md says what each counts.",
    )
