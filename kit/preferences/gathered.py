"""Preferences of one source: the examples, what was left out and why, and what to know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Generic

from kit.preferences.records import Example, LabelledCompletion, PreferencePair
from kit.tasks.splits import TEST_SPLIT
from kit.terminal import one_line

THERE_ALREADY = "that are there already"
UNREADABLE = "unreadable lines"
EQUAL_TEXTS = "pairs of equal texts"
_NAMED = 5  # voters, judges or bases that are told by name


@dataclass(frozen=True, slots=True)
class PreferenceData(Generic[Example]):
    """What can be learned from, in the order of the source."""

    source: str
    examples: tuple[Example, ...]
    dropped: Counter[str] = field(default_factory=Counter)  # how many, by what they are; no zeros
    contradictory: int = 0  # pairs of texts preferred either way, or texts labelled either way
    first_fault: str = ""  # why the first unreadable line is none; "": not known

    @property
    def chosen_length(self) -> float:
        """Mean length of what is chosen, or labelled true, in characters; nan without any."""
        return _mean(len(text) for text, label in self._texts if label)

    @property
    def rejected_length(self) -> float:
        """Mean length of what is rejected, or labelled false, in characters; nan without any."""
        return _mean(len(text) for text, label in self._texts if not label)

    @property
    def left_out(self) -> str:
        """What was dropped, in words; "" where nothing was."""
        why = {UNREADABLE: f" (the first: {self.first_fault})" if self.first_fault else ""}
        return ", ".join(f"{n} {what}{why.get(what, '')}" for what, n in self.dropped.items())

    @property
    def words(self) -> list[str]:
        """What to know before training on them: a sentence a line."""
        lines = [f"{self.source}: {self._counted}{_origins(self.examples)}"]
        if self.dropped:
            lines.append(f"left out: {self.left_out}")
        if self.contradictory:
            what = "pairs" if self._has_pairs else "texts"
            lines.append(f"{self.contradictory} {what} are judged both ways")
        if on_test := sum(is_of_test_split(example) for example in self.examples):
            lines.append(f"{on_test} are on test problems, which training refuses unless asked")
        if self.examples:
            from kit.evaluation.power import revote_words  # which scipy comes with

            asked = len({example.prompt for example in self.examples})
            lines += [self._length_words, f"with one vote a problem {revote_words(asked)}"]
        return lines

    @property
    def _has_pairs(self) -> bool:
        return bool(self.examples) and isinstance(self.examples[0], PreferencePair)

    @property
    def _counted(self) -> str:
        if not self.examples or self._has_pairs:
            return f"{len(self.examples)} pairs"
        good = sum(label for _, label in self._texts)
        bad = len(self.examples) - good
        return f"{len(self.examples)} completions, {good} labelled true and {bad} false"

    @property
    def _length_words(self) -> str:
        good, bad = ("chosen", "rejected") if self._has_pairs else ("true", "false")
        said = (
            f"mean length: {good} {self.chosen_length:.0f} characters, "
            f"{bad} {self.rejected_length:.0f}"
        )
        lengths = [(len(e.chosen), len(e.rejected)) for e in self._pairs]
        longer, unequal = sum(a > b for a, b in lengths), sum(a != b for a, b in lengths)
        if not unequal:
            return said
        from kit.evaluation.stats import Proportion  # which scipy and statsmodels come with

        share = Proportion(longer, unequal)
        low, high = share.interval
        learned = "longer" if low > 0.5 else "shorter" if high < 0.5 else ""
        return (
            f"{said}; the longer one is chosen in {share} of {unequal} pairs (no bias: 50 %)"
            + f": before anything else training learns to be {learned}" * bool(learned)
        )

    @property
    def _pairs(self) -> list[PreferencePair]:
        examples: tuple[PreferencePair | LabelledCompletion, ...] = self.examples
        return [example for example in examples if isinstance(example, PreferencePair)]

    @property
    def _texts(self) -> list[tuple[str, bool]]:
        """Every completion, and whether it is the better one."""
        found: list[tuple[str, bool]] = []
        for example in self.examples:
            if isinstance(example, PreferencePair):
                found += [(example.chosen, True), (example.rejected, False)]
            else:
                found.append((example.completion, example.label))
        return found


def is_of_test_split(example: PreferencePair | LabelledCompletion) -> bool:
    """Whether it says that its problem is a test problem."""
    return example.provenance is not None and example.provenance.split == TEST_SPLIT


def distinct(examples: Iterable[Example]) -> list[Example]:
    """Each preference once: of equal ones that which tells most of what it comes from, and before
    all that it is on a test problem."""
    kept: dict[object, Example] = {}
    for example in examples:
        key = replace(example, provenance=None)
        kept[key] = max(kept.get(key, example), example, key=_telling)
    return list(kept.values())


def _telling(example: PreferencePair | LabelledCompletion) -> tuple[bool, int]:
    origin = example.provenance
    known = origin and sum(value not in (None, ()) for value in asdict(origin).values())
    return is_of_test_split(example), known or 0


def count_contradictions(examples: Sequence[PreferencePair | LabelledCompletion]) -> int:
    """Pairs of texts that are preferred either way, or texts that are labelled either way."""
    sides: dict[object, set[object]] = {}
    for example in examples:
        if isinstance(example, PreferencePair):
            texts = frozenset((example.chosen, example.rejected))
            sides.setdefault((example.prompt, texts), set()).add(example.chosen)
        else:
            sides.setdefault((example.prompt, example.completion), set()).add(example.label)
    return sum(len(found) > 1 for found in sides.values())


def _origins(examples: Sequence[PreferencePair | LabelledCompletion]) -> str:
    """By whom or what, as far as that is known; how many votes saw the names."""
    known = [example.provenance for example in examples if example.provenance]
    listed = tell(Counter(f"{o.kind} {o.by}" if o.by else o.kind for o in known), "by")
    seen = sum(origin.blind is False for origin in known)
    names = f"; {seen} saw the names" if seen else ""
    return f" ({listed}{names})" if listed else ""


def tell(counts: Counter[str], word: str) -> str:
    """How many there are of each, the most frequent by name: 3 by anna, 2 by bob, 9 by 7 others."""
    ranked = counts.most_common()
    named = [f"{count} {word} {one_line(name)}" for name, count in ranked[:_NAMED]]
    if others := ranked[_NAMED:]:
        named.append(f"{sum(count for _, count in others)} {word} {len(others)} others")
    return ", ".join(named)


def _mean(lengths: Iterable[int]) -> float:
    found = list(lengths)
    return sum(found) / len(found) if found else float("nan")
