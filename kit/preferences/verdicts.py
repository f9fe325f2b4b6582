"""Verdicts as preferences: what is strictly right is better than what is not, on one problem.

The rule, which draws nothing: completions of one problem that were sampled together (in one step
of a run, at one temperature of an evaluation) are a group. In it equal texts count once, and those
that were cut off do not count: they have no end to learn. The first right one is paired with the
first wrong one, the second with the second, until either runs out or a problem has its most. What
several groups of a problem have counts once. One by one, the first right and the first wrong ones
count, as many of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kit.preferences.gathered import THERE_ALREADY, UNREADABLE, PreferenceData
from kit.preferences.records import LabelledCompletion, PreferencePair
from kit.preferences.sampled import Row, Sampled

PER_PROBLEM = 4  # pairs, or completions of each label
_BY = "strict"
_AGAIN = f"completions {THERE_ALREADY}"
ONE_SIDED = "groups that are all right or all wrong"


@dataclass(frozen=True, slots=True)
class _Group:
    right: list[Row]
    wrong: list[Row]


def pairs_of_verdicts(
    sampled: Sampled, per_problem: int = PER_PROBLEM
) -> PreferenceData[PreferencePair]:
    """Right against wrong completions of each problem, at most `per_problem` pairs of it."""
    groups, dropped = _groups(sampled)
    left = Counter[str]()  # pairs that a problem has, in all its groups
    seen: set[tuple[str, str, str]] = set()
    pairs = []
    for group in groups:
        if not (group.right and group.wrong):
            dropped[ONE_SIDED] += 1
        for right, wrong in zip(group.right, group.wrong, strict=False):
            pair = (right["id"], right["completion"], wrong["completion"])
            if pair in seen:
                dropped[f"pairs {THERE_ALREADY}"] += 1
            elif left[right["id"]] < per_problem:
                seen.add(pair)
                left[right["id"]] += 1
                origin = sampled.provenance(right, "verdict", _BY, *[sampled.writer] * 2)
                texts = right["completion"], wrong["completion"]
                pairs.append(PreferencePair(sampled.prompt(right), *texts, origin))
    return PreferenceData(str(sampled.path), tuple(pairs), dropped)


def labelled_of_verdicts(
    sampled: Sampled, per_problem: int = PER_PROBLEM
) -> PreferenceData[LabelledCompletion]:
    """Each completion with its verdict, at most `per_problem` right and as many wrong ones."""
    groups, dropped = _groups(sampled)
    counts = Counter[tuple[str, bool]]()
    seen: set[tuple[str, str]] = set()
    examples = []
    for group in groups:
        for row in (*group.right, *group.wrong):
            if (row["id"], row["completion"]) in seen:
                dropped[_AGAIN] += 1
                continue
            seen.add((row["id"], row["completion"]))
            counts[row["id"], row["strict"]] += 1
            if counts[row["id"], row["strict"]] <= per_problem:
                origin = sampled.provenance(row, "verdict", _BY, sampled.writer)
                prompt = sampled.prompt(row)
                examples.append(
                    LabelledCompletion(prompt, row["completion"], row["strict"], origin)
                )
    return PreferenceData(str(sampled.path), tuple(examples), dropped)


def _groups(sampled: Sampled) -> tuple[list[_Group], Counter[str]]:
    """By step or temperature and sample; and what is left out."""
    dropped = +Counter({UNREADABLE: sampled.unreadable})
    groups: dict[tuple[object, ...], _Group] = {}
    seen: set[tuple[object, ...]] = set()
    for key, row in _keyed(sampled):
        if row["truncated"]:
            dropped["completions that were cut off"] += 1
            continue
        if (*key, row["completion"]) in seen:
            dropped[_AGAIN] += 1
            continue
        seen.add((*key, row["completion"]))
        group = groups.setdefault(key, _Group([], []))
        (group.right if row["strict"] else group.wrong).append(row)
    return list(groups.values()), dropped


def _keyed(sampled: Sampled) -> Iterator[tuple[tuple[object, ...], Row]]:
    """Rows with what tells their group, in their order."""
    if sampled.rows and "step" in sampled.rows[0]:
        yield from (((row["id"], row["step"]), row) for row in sampled.rows)
        return
    for row in sorted(sampled.rows, key=lambda row: (row["temperature"], row["sample"])):
        yield (row["id"], row["temperature"]), row
