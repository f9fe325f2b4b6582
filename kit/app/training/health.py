"""Whether a run looks healthy: a few words, each by a rule that can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean

from kit.app.library.runs import Run, number
from kit.app.parts import escaped

LEAST = 4  # recorded steps, below which nothing is said
LARGE = 100  # importance ratio
SURE = 2.5  # standard errors of a difference of two shares
SLOPE = (
    "least-squares slope of mean reward over all its steps, n of them, above 0 by more than "
    "2 + 5 / (n - 2) standard errors, as that of one flat run in fifty is by chance"
)
ACCURACY = (
    f"held-out accuracy at the last validation above that at the first by more than {SURE} "
    "standard errors of the difference, as that of one run in a hundred at most is by chance"
)


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


RULES = (
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
    """One for how it learns, and for each rule whose metric it has recorded often enough."""
    found = _learning(run)
    for rule in RULES:
        values = _values(run, rule.metric)
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


def _learning(run: Run) -> list[Word]:
    """Whether the reward rises, or what it is for: the accuracy on problems never trained on."""
    rewards = _values(run, "reward/mean")
    if len(rewards) < LEAST:
        return []
    if _slopes_up(rewards):
        return [Word("reward rises", True, SLOPE)]
    problems = run.config.data.validation_size if run.config else 0
    is_strict = run.config is None or run.config.reward.strict
    held_out = _values(run, f"validation/{'strict' if is_strict else 'lenient'}")
    if len(held_out) < 2 or not problems:
        return [Word("reward does not rise beyond noise", False, SLOPE)]
    if _is_more(held_out[0], held_out[-1], problems):
        return [Word("held-out accuracy rises", True, ACCURACY)]
    neither = "neither reward nor held-out accuracy rises beyond noise"
    return [Word(neither, False, f"reward: {SLOPE}; accuracy: {ACCURACY}")]


def _slopes_up(values: Sequence[float]) -> bool:
    """Whether a straight line through all of them rises by more than noise would have it.

    2 + 5 / (n - 2) standard errors are, of Student's t with n - 2 degrees of freedom, the 97.7th
    percentile for n = 4, the 98.4th for n = 12 and the 97.8th for n = 200.
    """
    n = len(values)
    middle, level = (n - 1) / 2, mean(values)
    spread = sum((i - middle) ** 2 for i in range(n))
    slope = sum((i - middle) * (value - level) for i, value in enumerate(values)) / spread
    rest = sum((v - level - slope * (i - middle)) ** 2 for i, v in enumerate(values))
    return slope > (2 + 5 / (n - 2)) * sqrt(rest / (n - 2) / spread)


def _is_more(first: float, last: float, n: int) -> bool:
    """Whether a share of n is more than another, each taken with one more right and one more wrong,
    or a few problems would be sure of too much (Agresti and Caffo 2000)."""
    before, after = ((share * n + 1) / (n + 2) for share in (first, last))
    error = sqrt(sum(share * (1 - share) / (n + 2) for share in (before, after)))
    return after - before > SURE * error


def _values(run: Run, metric: str) -> list[float]:
    return [v for record in run.metrics if (v := number(record.get(metric))) is not None]


def _quarters(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Two values at least."""
    quarter = max(2, len(values) // 4)
    return values[:quarter], values[-quarter:]
