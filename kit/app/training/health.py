"""Whether a run looks healthy: a few words, each by a rule that can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, variance

from kit.app.library.runs import Run, number
from kit.app.parts import escaped

LEAST = 4  # recorded steps, below which nothing is said
LARGE = 100  # importance ratio


@dataclass(frozen=True, slots=True)
class Word:
    """What is said of a run, whether it is good news, and why it is said."""

    text: str
    is_good: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Says one word of the values of a metric in the first and the last quarter of its steps."""

    metric: str
    good: str
    bad: str
    is_good: Callable[[Sequence[float], Sequence[float]], bool]
    rule: str


def _rises(first: Sequence[float], last: Sequence[float]) -> bool:
    """Beyond noise."""
    error = sqrt(sum(variance(values) / len(values) for values in (first, last)))
    return mean(last) - mean(first) > 2 * error


RULES = (
    Rule(
        *("reward/mean", "reward rises", "reward does not rise beyond noise", _rises),
        rule="mean reward of the last quarter of the steps above that of the first by more than "
        "twice the standard error of the difference",
    ),
    Rule(
        *("policy/entropy", "entropy fine", "entropy collapsed"),
        lambda first, last: mean(last) > 0.1 * mean(first),
        rule="entropy of the last quarter above a tenth of the first's",
    ),
    Rule(
        *("completion/truncated_share", "nothing cut off", "answers cut off"),
        lambda _, last: mean(last) < 0.05,
        rule="under 5 % of the last quarter's answers cut off at rollout.max_new_tokens",
    ),
    Rule(
        *("reward/zero_std_fraction", "groups teach", "most groups teach nothing"),
        lambda _, last: mean(last) < 0.9,
        rule="under 90 % of the last quarter's groups with equal rewards",
    ),
    Rule(
        *("completion/mean_tokens", "length kept", "answers shrank"),
        lambda first, last: mean(last) > 0.25 * mean(first),
        rule="length of the last quarter above a quarter of the first's",
    ),
    Rule(
        *("ratio/zero_gradient_share", "most tokens teach", "most tokens silenced"),
        lambda _, last: mean(last) <= 0.5,
        rule="at most half of the last quarter's tokens left without gradient by the trust region",
    ),
    Rule(
        *("ratio/max", "ratios bounded", "a ratio ran away"),
        lambda _, last: max(last) < LARGE,
        rule=f"no token of the last quarter's steps made {LARGE} times as likely, or more",
    ),
)


def words(run: Run) -> list[Word]:
    """One for each rule whose metric the run has recorded often enough."""
    found = []
    for rule in RULES:
        values = [v for record in run.metrics if (v := number(record.get(rule.metric))) is not None]
        if len(values) >= LEAST:
            is_good = rule.is_good(*_quarters(values))
            found.append(Word(rule.good if is_good else rule.bad, is_good, rule.rule))
    return found


def in_html(run: Run) -> str:
    """'healthy: …' or 'look at it: …', each word with its rule to be read."""
    said = words(run)
    if not said:
        return ""
    # what is wrong comes first
    spelled = ", ".join(
        f'<abbr title="{escaped(word.rule)}" tabindex="0">{word.text}</abbr>'
        for word in sorted(said, key=lambda word: word.is_good)
    )
    return f"{'healthy' if all(word.is_good for word in said) else '<b>look at it</b>'}: {spelled}"


def _quarters(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Two values at least, of which one can tell how much they vary."""
    quarter = max(2, len(values) // 4)
    return values[:quarter], values[-quarter:]
