"""What the page shows of the sides of one comparison, in the order in which they stand."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kit.app.compare.comparison import Answer, Shown
from kit.app.compare.marks import marks
from kit.app.compare.reader import Column, nats
from kit.app.compare.setup import BASE_SIDE, LEFT, RIGHT
from kit.app.library.folders import display_names
from kit.app.parts import table_html

LATER = "Asked when the others have answered: an adapter of DoRA is computed alone."
NOT_STORED = "No stored answer of the base; Run asks it."


def columns(shown: Shown, silenced: Mapping[str, Collection[int]] | None = None) -> list[Column]:
    """By place; what would give a hidden name away, or bias a vote, waits for the vote.

    `silenced`: by side, the tokens that clip leaves without gradient.
    """
    scores = {} if shown.hides_names else shown.comparison.scores.get(shown.sample, {})
    names = dict(zip(shown.names, display_names([*shown.names.values()]), strict=True))
    found = []
    for place, side in enumerate(shown.columns):
        if side not in shown.comparison.answers:
            found.append(Column(side, side, names[side], text="", note=NOT_STORED))
            continue
        answer, samples = shown.answer(side), shown.comparison.answers[side]
        is_told = not shown.hides_names
        waits = answer.verdict is None and not answer.completion.tokens
        found.append(
            Column(
                side=side,
                colour=side if is_told else (LEFT, RIGHT)[place],
                name=names[side],
                text=LATER if waits else answer.completion.text,
                badge=answer.badge if is_told else None,
                answer=final_answer(answer),
                tokens=len(answer.completion.tokens),
                figures=_measured(answer) | _scored(shown, side) if is_told else {},
                scored=scores[side].tokens if side in scores else (),
                silenced=(silenced or {}).get(side, ()),
                samples=[each.badge if is_told else None for each in samples],
                sample=shown.sample,
                marks=marks(answer, shown.comparison.setup, side) if is_told else {},
            )
        )
    return found


def final_answer(answer: Answer) -> str | None:
    """The one in the strict format, else the one found anywhere; None while it is written."""
    if answer.verdict is None:
        return None
    return answer.verdict.strict_answer or answer.verdict.lenient_answer


def samples_html(shown: Shown) -> str:
    """A table of what several samples of each side say together; '' for one sample."""
    comparison = shown.comparison
    samples = comparison.setup.samples
    if samples == 1 or not comparison.is_over or shown.hides_names:
        return ""
    is_judged = comparison.setup.is_judged
    ks = sorted({1, 2, 4, 8, 16, 32, samples} & set(range(1, samples + 1)))
    head = ["", "strictly right", *(f"pass@{k}" for k in ks), "majority answer", "agreement"]
    rows = []
    for side, name in shown.names.items():
        tally = comparison.tally(side)
        cells = [name, f"{tally.right} of {samples}" if is_judged else "–"]
        cells += [f"{tally.pass_at(k):.0%}" if is_judged else "–" for k in ks]
        if tally.majority is None:
            cells += ["none", "–"]
        else:
            text, count, right = tally.majority
            verdict = (" (right)" if right else " (wrong)") if is_judged else ""
            cells += [text + verdict, f"{count} of {samples}"]
        rows.append(cells)
    return table_html(head, rows)


def _measured(answer: Answer) -> dict[str, str]:
    if not answer.seconds:  # of a stored answer they are not known
        return {}
    return {"seconds": f"{answer.seconds:.1f}", "tokens/s": f"{answer.tokens_per_second:.0f}"}


def _scored(shown: Shown, side: str) -> dict[str, str]:
    scores = shown.comparison.scores.get(shown.sample, {}).get(side)
    if scores is None:
        return {}
    figures = {"mean log-prob": nats(scores.mean_logprob[side])}
    if side != BASE_SIDE:
        figures["KL to base"] = f"{scores.kl_to_base:.4f} nats/token"
    return figures
