"""What the page shows of one side: verdict, figures, reasoning and final answer, all inert."""

from __future__ import annotations

from html import escape

from kit.app.compare.comparison import Answer, Shown
from kit.app.compare.setup import BASE_SIDE
from kit.app.parts import badge_html, table_html

STYLE = """
.kit-figures { display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin: .4em 0 0; font-size: .9em; }
.kit-figures > div { display: flex; gap: .4em; }
.kit-figures dt { color: var(--body-text-color-subdued); }
.kit-figures dd { margin: 0; font-variant-numeric: tabular-nums; }
.kit-side { min-width: min(260px, 100%) !important; }
"""


def status_html(shown: Shown, side: str) -> str:
    """Badge and figures of one answer; what would give a hidden name away waits for the vote."""
    answer = shown.answer(side)
    if answer.badge is None:
        badge = '<span class="kit-badge">writing …</span>'
    else:
        badge = badge_html(answer.badge)
    return badge + _figures(_measured(answer) | ({} if shown.hides_names else _scored(shown, side)))


def reasoning(answer: Answer) -> str:
    """The completion without its final line, where that is the answer in the strict format."""
    return _split(answer.completion.text)[0]


def final_answer(answer: Answer) -> str:
    """The final answer: the one in the strict format, else the one found anywhere; '' if none."""
    strict = _split(answer.completion.text)[1]
    if strict or answer.verdict is None:
        return strict
    return answer.verdict.lenient_answer or ""


def samples_html(shown: Shown) -> str:
    """A table of what several samples of each side say together; '' for one sample."""
    comparison = shown.comparison
    samples = comparison.setup.samples
    if samples == 1 or not comparison.is_over:
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
    return table_html(head, rows, "kit-table", named=True)


def _measured(answer: Answer) -> dict[str, str]:
    return {
        "tokens": str(len(answer.completion.tokens)),
        "seconds": f"{answer.seconds:.1f}",
        "tokens/s": f"{answer.tokens_per_second:.0f}",
    }


def _scored(shown: Shown, side: str) -> dict[str, str]:
    scores = shown.comparison.scores.get(shown.sample, {}).get(side)
    if scores is None:
        return {}
    figures = {"mean log-prob": f"{scores.mean_logprob[side]:.3f}"}
    if side != BASE_SIDE:
        figures["KL to base"] = f"{scores.kl_to_base:.4f} nats/token"
    return figures


def _figures(figures: dict[str, str]) -> str:
    items = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in figures.items())
    return f'<dl class="kit-figures">{items}</dl>'


def _split(text: str) -> tuple[str, str]:
    """Before the last `####`, and what stands on its line."""
    before, mark, after = text.rpartition("####")
    if not mark:
        return text, ""
    line, _, rest = after.partition("\n")
    return before.rstrip() + (f"\n{rest}" if rest.strip() else ""), line.strip()
