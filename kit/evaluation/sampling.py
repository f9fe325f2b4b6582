"""Sample the rows that result files lack, of all targets together, and write each chunk at once.

Every row draws from a seed of its own, made of (seed, problem, sample), so it is the same whatever
else is evaluated with it, and all targets face the same random numbers.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from kit.errors import NotFiniteError, OutOfMemoryError, room_for
from kit.evaluation.figures import OF_VERDICT, judge, summarize
from kit.evaluation.result_writer import ResultWriter
from kit.evaluation.results import Key, Row, fields_of
from kit.model.batching import micro_batches
from kit.model.policy import Policy
from kit.model.rollout import Completion, Request, Sampling, count_tokens, sample
from kit.model.tokenizer import warn_of_forged
from kit.stopping import stop_as_ctrl_c
from kit.tasks.guidelines import Attempt, mean_adherence
from kit.tasks.verifiers import NumberVerifier, Verdict

log = logging.getLogger(__name__)

# tokens, rows x longest row, sampled before any row is written; a GPU decodes many for the price
# of a few, and a few very long prompts must not pad a hundred others
CHUNK_TOKENS = {"cpu": 32_768, "cuda": 524_288}
TRUNCATED_WARNING = 0.1

Group = dict[str, ResultWriter]  # all targets, by name, on one data set


def sample_missing(
    groups: Sequence[Group], policy: Policy, adapters: dict[str, str], facts: dict[str, Any]
) -> None:
    """Sample every missing row, data set by data set, and write the figures of each.

    What ends it early says what is written and how to go on.
    """
    writers = [writer for group in groups for writer in group.values()]
    for writer in writers:
        writer.check_revision(policy.base.revision)
    total = sum(len(writer.missing) for writer in writers)
    with stop_as_ctrl_c(), tqdm(total=total, unit="answer") as bar, _explained(writers, total):
        for group in groups:
            active = {name: writer for name, writer in group.items() if writer.missing}
            if active:
                _sample_group(active, policy, adapters, facts, bar)


def finish(writer: ResultWriter) -> None:
    """Count the rows of each temperature, write the figures, warn of truncation."""
    numbers = isinstance(writer.problem_set.verifier, NumberVerifier)
    rows: dict[float, list[Row]] = {t: [] for t in writer.settings.temperature}
    for row in writer.rows.values():
        rows[row["temperature"]].append(row)
    writer.finish([summarize(rows[t], numbers=numbers) | _adherence(writer, rows[t]) for t in rows])
    for entry in writer.record["results"]:
        cut_off = entry["truncated"]["value"]
        if cut_off > TRUNCATED_WARNING:
            log.warning(
                "%s on %s at temperature %g: %.0f %% of the answers are cut off at "
                "max_new_tokens=%d and mostly count as wrong; raise it",
                *(writer.record["target"]["name"], writer.record["data"], entry["temperature"]),
                *(100 * cut_off, writer.settings.max_new_tokens),
            )


def _adherence(writer: ResultWriter, rows: Sequence[Row]) -> dict[str, Any]:
    """How far the answers at one temperature follow the guidelines, where there are any."""
    if not writer.followers:
        return {}
    attempts = [
        Attempt(
            row["completion"],
            problem := writer.problems[row["id"]],
            problem["prompt"],
            Verdict(**{field: row[field] for field in OF_VERDICT}),
        )
        for row in rows
    ]
    return {
        "adherence": {
            each.name: mean_adherence(each(attempts).adherence) for each in writer.followers
        }
    }


def row_seed(seed: int, problem: str, number: int) -> tuple[int, int, int]:
    """Of one sample of a problem: the same for every target and temperature, in any batch."""
    digest = hashlib.sha256(problem.encode()).digest()
    return seed, int.from_bytes(digest[:8], "big"), number


@contextmanager
def _explained(writers: Sequence[ResultWriter], total: int) -> Iterator[None]:
    """What ends sampling inside, with how many of `total` answers are written and how to go on."""

    def written() -> str:
        return (
            f"{total - sum(len(writer.missing) for writer in writers)} of {total} answers are "
            "written, and the same command (without --overwrite) goes on from there"
        )

    try:
        yield
    except KeyboardInterrupt:
        log.warning("stopped; %s", written())
        raise
    except OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{error}; {written()}. End what else uses the memory, evaluate fewer targets at "
            "once, or lower max_new_tokens (with --tag NAME, to keep these results apart)"
        ) from error


def _sample_group(
    group: Group, policy: Policy, adapters: dict[str, str], facts: dict[str, Any], bar: tqdm
) -> None:
    """What is missing on one data set, temperature by temperature, and then the figures."""
    base = policy.base
    for writer in group.values():
        writer.start(base.revision, base.hardware.reason, facts)
    first = next(iter(group.values()))  # all have the same problems
    chats = (row["prompt"] for writer in group.values() for row in writer.problems.values())
    warn_of_forged(base.tokenizer, chats, first.record["data"])
    for temperature in sorted({t for writer in group.values() for _, t, _ in writer.missing}):
        _sample_at(temperature, group, policy, adapters, bar)
    for writer in group.values():
        finish(writer)


def _sample_at(
    temperature: float, group: Group, policy: Policy, adapters: dict[str, str], bar: tqdm
) -> None:
    """Sample what is missing at one temperature, rows of all targets together, in chunks."""
    first = next(iter(group.values()))
    bar.set_description(f"{first.record['data']} at temperature {temperature:g}")
    settings = first.settings
    sampling = Sampling(settings.max_new_tokens, temperature, settings.top_p)
    wanted = [
        (name, key) for name, led in group.items() for key in led.missing if key[1] == temperature
    ]
    # targets with other guidelines are asked otherwise
    asked = {(name, id_) for name, (id_, _, _) in wanted}
    prompts = {
        (name, id_): tuple(policy.base.prompt_ids(group[name].problems[id_]["prompt"]))
        for name, id_ in asked
    }
    wanted.sort(key=lambda pair: (pair[1], pair[0]))
    lengths = [len(prompts[name, id_]) + settings.max_new_tokens for name, (id_, _, _) in wanted]
    # the longest first: what does not fit into memory is found out at once
    for rows in micro_batches(lengths, CHUNK_TOKENS[policy.base.hardware.device.type]):
        chunk = [wanted[i] for i in rows]
        began = time.perf_counter()
        requests = [
            Request(prompts[name, id_], row_seed(settings.seed, id_, number), adapters[name])
            for name, (id_, _, number) in chunk
        ]
        try:
            with room_for("sampling answers"):
                completions = sample(policy, requests, sampling, bar.update)
        except NotFiniteError as error:
            name, (id_, _, number) = chunk[requests.index(error.request)]
            raise error.at(
                f"{name} on {first.record['data']}, problem {id_}, temperature {temperature:g}, "
                f"sample {number}"
            ) from error
        judged = {name: _judged(name, group[name], chunk, completions) for name in group}
        seconds = time.perf_counter() - began
        tokens = count_tokens(completions)
        for name, finished in judged.items():
            group[name].add(finished, seconds, tokens)


def _judged(
    name: str,
    writer: ResultWriter,
    chunk: Sequence[tuple[str, Key]],
    completions: Sequence[Completion],
) -> list[Row]:
    """One target's rows of a chunk."""
    mine = {key: c for (target, key), c in zip(chunk, completions, strict=True) if target == name}
    problems = [writer.problems[id_] for id_, _, _ in mine]
    rows = judge(writer.problem_set, problems, list(mine.values()))
    return [fields_of(key) | row for key, row in zip(mine, rows, strict=True)]
