"""From votes to an adapter trained on them, and to votes on that: the commands, and what they left.

The page does not train: it holds the base for all who have it open, an optimizer beside it may not
fit, and a training of hours must outlive a page that is closed. A command has a run folder, shows
what it does, and goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kit.app.compare.stored import Reading
from kit.app.library.adapters import Choice
from kit.app.options import AppOptions
from kit.errors import ConfigError, ResultsError
from kit.evaluation.compared import questions_of
from kit.guideline import prompted
from kit.preferences.tallies import between
from kit.preferences.votes import Vote
from kit.runs import RunFolder
from kit.tasks.problems import same_question
from kit.tasks.splits import TEST_SPLIT

EPOCHS = 10  # times each pair is learned from: votes are few
BATCH = 16  # pairs of a step at most
# of the learning rate that samples were learned from: what is given once is soon learned by heart
RATE = 0.3


def commands(reading: Reading, votes: Sequence[Vote], pairs: int, options: AppOptions) -> str:
    """What trains on the votes, and what measures the new adapter as the two were; for a shell.

    Training goes on from the side that won more votes, with the settings of its run, or from the
    base with those of the other side; but at a lower rate, which falls (docs/feedback.md).
    `pairs`: how many the votes come to.
    """
    start, other = _by_wins(reading, votes)
    trained = start if start.run else other
    recipe = str(Path(trained.run) / "config.yaml") if trained.run else "RECIPE.yaml"
    adapter = str(RunFolder(start.run).adapter) if start.run else start.adapter
    new = _free(options.runs, f"{Path(start.run).name if start.run else start.label}-voted")
    batch = max(1, min(BATCH, pairs // 2))  # a run leaves out those on its validation problems
    splits = {vote.problem.split for vote in votes if vote.problem}
    training = [
        *("kit", "train", recipe, "method=dpo", f"preferences.source={options.votes}"),
        *(f"preferences.batch={batch}", f"train.steps={math.ceil(EPOCHS * pairs / batch)}"),
        *("train.updates_per_rollout=1", *_rate(trained), *_instead(reading, trained)),
        f"model.adapter={adapter or 'null'}",
        *(["preferences.test_problems=true"] if TEST_SPLIT in splits else []),
        f"output={new}",
    ]
    return f"{shlex.join(training)}\n{shlex.join(_evaluating(reading, start, new, options))}"


def trained_on(choices: Iterable[Choice], options: AppOptions) -> list[tuple[Choice, Choice]]:
    """The adapters that were trained on the app's votes, each with what it went on from, the newest
    first."""
    choices = [*choices]
    by_source = {_place(choice.adapter): choice for choice in choices}
    found = [
        (choice, by_source[_place(choice.parent)])
        for choice in choices
        if _is_of_the_votes(choice, options) and _place(choice.parent) in by_source
    ]
    return sorted(found, key=lambda both: _changed(both[0]), reverse=True)


def learned_questions(
    reading: Reading, known: Iterable[Choice], votes: Sequence[Vote], options: AppOptions
) -> set[str]:
    """The questions, as `same_question` has them, whose answers were compared in what the two sides
    learned from, or those of `known` that they went on from: how they answer there says nothing
    about other problems. Of the app's votes all that came before count, ties and both bad too.

    ResultsError where they cannot be read."""
    questions: set[str] = set()
    by_source = {_place(choice.adapter): choice for choice in known if choice.adapter}
    here = {vote.id for vote in between(votes, reading.hashes)}
    for choice in _with_parents(reading.sides, by_source):
        if _is_of_the_votes(choice, options):
            made = _changed(choice)
            before = (v for v in votes if v.time.timestamp() < made and v.id not in here)
            questions |= {same_question(vote.question) for vote in before}
        if choice.run and choice.preferences:
            try:
                questions |= questions_of(str(RunFolder(choice.run).preferences))
            except ConfigError as error:
                raise ResultsError(
                    f"{choice.label} was trained on preferences, and the copy of them in "
                    f"{choice.run} cannot be read, so what it has learned from is not known"
                ) from error
    return questions


def _with_parents(
    choices: Iterable[Choice], by_source: Mapping[str | None, Choice]
) -> list[Choice]:
    found = [*choices]
    for choice in found:  # which grows
        parent = by_source.get(_place(choice.parent))
        if parent is not None and parent not in found:
            found.append(parent)
    return found


def _by_wins(reading: Reading, votes: Iterable[Vote]) -> tuple[Choice, Choice]:
    """The two sides, first the one that more of the votes between them are for, repeats aside; of
    equals the one that the other went on from."""
    first, second = reading.sides
    lead = 0
    for vote in between(votes, reading.hashes):
        if vote.vote in ("left", "right") and vote.repeat_of is None:
            side = vote.left if vote.vote == "left" else vote.right
            lead += 1 if side.adapter_sha256 == reading.hashes[0] else -1
    went_on = _place(first.parent) == _place(second.adapter)
    return (second, first) if lead < 0 or (lead == 0 and went_on) else (first, second)


def _evaluating(reading: Reading, start: Choice, new: Path, options: AppOptions) -> list[str]:
    """Of the new adapter and what it went on from, as the stored answers were sampled, under their
    tag: results of other problems stay."""
    about = reading.pairing.left.about
    settings = about.settings
    old = ["--base", start.base] if start.adapter is None else [start.run or start.adapter]
    return [
        *("kit", "evaluate", str(new), *old, "--data", about.data),
        *(["--data-dir", options.data_dir] if options.data_dir else []),
        *(["--tag", about.tag] if about.tag else []),
        f"temperature={reading.pairing.left.temperature:g}",
        *(f"max_new_tokens={settings.max_new_tokens}", f"top_p={settings.top_p:g}"),
        *(f"seed={settings.seed}", f"split={settings.split}", f"limit={2 * about.n}"),
    ]


def _rate(trained: Choice) -> list[str]:
    if trained.learning_rate is None:
        return []
    rate = trained.learning_rate * (1 if trained.preferences else RATE)
    return [f"optim.learning_rate={rate:.3g}", "optim.schedule=linear"]


def _instead(reading: Reading, trained: Choice) -> Iterator[str]:
    """What the settings of a run have that learning from pairs has not."""
    if trained.guidelines:
        yield "guidelines=[]"
        plain = reading.pairing.left.about.shared_prompt
        asked = {prompted(plain, side.guidelines) for side in reading.sides}
        if len(asked) == 1:  # as the votes say
            yield f"data.system_prompt={json.dumps(*asked, ensure_ascii=False)}"
    if trained.preferences:  # perhaps by kto
        yield from ("preferences.desirable_weight=1", "preferences.undesirable_weight=1")


def _free(runs: Path, name: str) -> Path:
    """A folder that is not there yet."""
    number, folder = 2, runs / name
    while folder.exists():
        number, folder = number + 1, runs / f"{name}-{number}"
    return folder


def _is_of_the_votes(choice: Choice, options: AppOptions) -> bool:
    """Whether it was trained on the app's votes."""
    return choice.preferences is not None and _place(choice.preferences) == _place(
        str(options.votes)
    )


def _place(source: str | None) -> str | None:
    """Of a folder the real one; a hub id as it is."""
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def _changed(choice: Choice) -> float:
    return Path(choice.adapter or "").stat().st_mtime
