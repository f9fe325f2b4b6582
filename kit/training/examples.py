"""What DPO and KTO learn from, as token ids: what of a source fits, and why the rest does not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kit.config import Config
from kit.errors import DataError
from kit.model.base import Base
from kit.model.tokenizer import text_ids, warn_of_forged
from kit.preferences.data import read_labelled, read_pairs
from kit.preferences.records import LabelledCompletion, PreferencePair, Prompt, asked_in
from kit.tasks.problems import ProblemSet
from kit.tasks.questions import Questions
from kit.training.whole_logprobs import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of a prompt, of which one is preferred, and what was read of them."""

    chosen: Row
    rejected: Row
    read: PreferencePair

    @property
    def rows(self) -> tuple[Row, Row]:
        return self.chosen, self.rejected

    def tokens(self, *, shared: bool) -> int:
        """What a forward pass of both computes, padding counted; the prompt once where shared."""
        longest = max(len(row) for row in self.rows)
        return 2 * longest - (len(self.chosen.prompt) if shared else 0)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A completion of a prompt, desirable or not, and what was read of it."""

    row: Row
    label: bool
    read: LabelledCompletion


def load_pairs(
    config: Config, base: Base, validation: ProblemSet | None, kept: Path | None = None
) -> list[Pair]:
    """The pairs of `preferences.source`, or of a run's own copy of it, that fit.

    Raises DataError, with what was left out, for fewer than a batch of them.
    """
    found = read_pairs(**_asked(config, kept))
    log.info("%s", "; ".join(found.words))
    fitting = _Fitting(config, base, validation)
    tokenized = [(fitting.rows(e.prompt, e.chosen, e.rejected), e) for e in found.examples]
    fitting.say()
    return [Pair(rows[0], rows[1], example) for rows, example in tokenized if rows]


def load_labelled(
    config: Config, base: Base, validation: ProblemSet | None, kept: Path | None = None
) -> list[Labelled]:
    """The same of labelled completions; DataError too where all that fit have one label."""
    found = read_labelled(**_asked(config, kept))
    log.info("%s", "; ".join(found.words))
    fitting = _Fitting(config, base, validation)
    tokenized = [(fitting.rows(e.prompt, e.completion), e) for e in found.examples]
    fitting.say()
    examples = [Labelled(rows[0], read.label, read) for rows, read in tokenized if rows]
    labels = {example.label for example in examples}
    if len(labels) == 1:
        raise DataError(
            f"all {len(examples)} completions of {config.preferences.source} that fit are labelled "
            f"{str(labels.pop()).lower()}, and kto learns from good against bad ones: add some of "
            "the other label, train on pairs with method=dpo, or on good ones alone with method=sft"
        )
    _advise_weights(config, sum(example.label for example in examples), len(examples))
    return examples


def _asked(config: Config, kept: Path | None) -> dict[str, Any]:
    """What may be read, and from where; what a run has kept was checked when it began."""
    preferences = config.preferences
    return {
        "source": kept or str(preferences.source),
        "problems": config.data,
        "test_problems": preferences.test_problems or kept is not None,
        "base": config.model.id,
        "other_bases": preferences.other_bases or kept is not None,
    }


def _advise_weights(config: Config, good: int, count: int) -> None:
    """Say so where one label outweighs the other: arXiv 2402.01306, eq. 8."""
    weights = config.preferences
    share = weights.desirable_weight * good / (weights.undesirable_weight * (count - good))
    if not 1 <= share <= 4 / 3:
        least = weights.undesirable_weight * (count - good) / good
        log.warning(
            "%d completions are labelled true and %d false, and weighted they stand %.2g : 1; "
            "KTO's authors advise 1 to 1.33: preferences.desirable_weight=%.2g to %.2g",
            *(good, count - good, share, least, 4 / 3 * least),
        )


class _Fitting:
    """Makes rows of examples, and keeps count of those that are left out."""

    def __init__(self, config: Config, base: Base, validation: ProblemSet | None) -> None:
        self.config = config
        self.base = base
        questions = validation.problems["question"] if validation else []
        self.held_out = Questions(questions)
        self.kept = 0
        self.left_out = Counter[str]()
        self.chats: list[list[dict[str, str]]] = []

    def rows(self, prompt: Prompt, *texts: str) -> tuple[Row, ...]:
        """A row for each of the texts; none where anything does not fit."""
        chat = [asdict(message) for message in prompt]
        self.chats += [[*chat, {"content": text}] for text in texts]
        tokenizer, end = self.base.tokenizer, self.base.end_id
        prompt_ids = tuple(self.base.prompt_ids(chat))
        rows = tuple(Row(prompt_ids, (*text_ids(tokenizer, text), end)) for text in texts)
        held_out = asked_in(prompt, self.held_out)
        reason = "on validation problems" if held_out else self._too_long(rows)
        if reason:
            self.left_out[reason] += 1
            return ()
        self.kept += 1
        return rows

    def say(self) -> None:
        """How many were left out; DataError where fewer than a batch are not."""
        source, batch = str(self.config.preferences.source), self.config.preferences.batch
        warn_of_forged(self.base.tokenizer, self.chats, source)
        listed = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        if listed:
            log.warning("%s: preferences left out: %s", source, listed)
        if self.kept < batch:
            what = "pairs" if self.config.method == "dpo" else "labelled completions"
            lower = f"set preferences.batch={self.kept} or lower, or " if self.kept > 1 else ""
            raise DataError(
                f"{source} has {self.kept} {what} to train on"
                f"{f' ({listed} left out)' if listed else ''}, fewer than "
                f"preferences.batch={batch}: {lower}collect more"
            )

    def _too_long(self, rows: Sequence[Row]) -> str:
        """What about it is too long, "" where nothing is."""
        prompt, new = self.config.data.max_prompt_tokens, self.config.rollout.max_new_tokens
        if len(rows[0].prompt) > prompt:
            return f"with prompts over data.max_prompt_tokens={prompt}"
        if max(len(row.completion) for row in rows) > new:
            return f"with completions over rollout.max_new_tokens={new}"
        return ""
