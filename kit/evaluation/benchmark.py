"""`kit evaluate`: several adapters and their bare base, decoded together, into result files.

Every row draws from a seed of its own, made of (seed, problem, sample), so it is the same whatever
else is evaluated with it, and all targets face the same random numbers. Rows are written as they
are finished; an interrupted evaluation goes on, and a larger one only adds rows.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from tqdm.auto import tqdm

from kit.config import DataConfig
from kit.errors import ConfigError, NotFiniteError, OutOfMemoryError, room_for
from kit.evaluation.figures import judge, summarize
from kit.evaluation.result_writer import ResultWriter, open_ledger
from kit.evaluation.results import Key, Result, Row, read_result, result_path
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject, check_targets, seen_in_training, shared_model
from kit.model.adapter_files import adapter_sha256
from kit.model.base import Base, load_base
from kit.model.batching import micro_batches
from kit.model.lora import load_adapters
from kit.model.policy import BASE, Policy
from kit.model.rollout import Completion, Request, Sampling, count_tokens, sample
from kit.model.tokenizer import warn_of_forged
from kit.runs import environment
from kit.stopping import stop_as_ctrl_c
from kit.tasks.problems import ProblemSet, load_problems
from kit.tasks.verifiers import NumberVerifier

log = logging.getLogger(__name__)

# tokens, rows x longest row, sampled before any row is written; a GPU decodes many for the price
# of a few, and a few very long prompts must not pad a hundred others
CHUNK_TOKENS = {"cpu": 32_768, "cuda": 524_288}
TRUNCATED_WARNING = 0.1

Group = dict[str, ResultWriter]  # all targets, by name, on one data set


def benchmark(
    targets: Sequence[Subject],
    data: Sequence[DataConfig],
    settings: EvalSettings,
    *,
    base: Base | None = None,
    tag: str | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> list[Result]:
    """Evaluate every target on every data set, as far as that is not done yet.

    `base` may be passed when it is loaded already; adapters are taken off it again at the end.
    `tag` keeps results of other settings beside those there; `command` is recorded.
    Ctrl-C, SIGTERM and a closed terminal end it with KeyboardInterrupt; what is written is kept.
    Returns results by data set, then target. Raises KitError subclasses for everything a user can
    mend: before the base is loaded where possible, and before anything is written.
    """
    check_targets(targets)
    about = {target.name: _describe(target) for target in targets}
    groups = [_open_group(config, targets, about, settings, tag, overwrite) for config in data]
    ledgers = [ledger for group in groups for ledger in group.values()]
    shared = [path for path, count in Counter(led.path for led in ledgers).items() if count > 1]
    if shared:
        raise ConfigError(f"two data sets would share {shared[0]}; evaluate them one by one")
    model = shared_model(targets)
    if base is not None and base.id != model.id:
        raise ConfigError(f"the targets' base is {model.id}, but the loaded one is {base.id}")
    with ExitStack() as held:
        for ledger in ledgers:
            if ledger.record["status"] != "finished":
                held.enter_context(ledger.claimed())
        if any(ledger.missing for ledger in ledgers):
            with _loaded(targets, base) as (policy, adapters):
                _sample_missing(groups, policy, adapters, environment() | {"command": command})
        for ledger in ledgers:
            if ledger.record["status"] != "finished":  # stopped after the last row was written
                _finish(ledger)
    return [read_result(ledger.path) for ledger in ledgers]


def row_seed(seed: int, problem: str, number: int) -> tuple[int, int, int]:
    """Of one sample of a problem: the same for every target and temperature, in any batch."""
    digest = hashlib.sha256(problem.encode()).digest()
    return seed, int.from_bytes(digest[:8], "big"), number


def table(results: Sequence[Result]) -> str:
    """A line for each target, data set and temperature, and where to look."""
    width = max(len(result.name) for result in results)
    across = max(len(result.data) for result in results)
    lines = [
        "95 % intervals. Strict: the answer stands as '#### <number>'; lenient: anywhere. pass@k: "
        "one of k\nsamples is strictly right; majority@k: the most frequent answer of k is.",
        f"{'':{width}}  {'':{across}}  {'T':>4} {'n':>5}  {'strict':^22}  {'lenient':^22}  "
        f"{'tokens':>6}  {'cut off':>7}",
    ]
    for result in results:
        for entry in result.record["results"]:
            k = str(entry["samples"])
            several = (
                f"  pass@{k} {_share(entry['pass_at']['strict'][k])}"
                f"  majority@{k} {_share(entry['majority_at']['strict'][k])}"
            )
            lines.append(
                f"{result.name:{width}}  {result.data:{across}}  {entry['temperature']:>4g} "
                f"{result.record['n']:>5}  {_share(entry['strict']):^22}  "
                f"{_share(entry['lenient']):^22}  {entry['tokens']['mean']:>6.0f}  "
                f"{entry['truncated']['value']:>7.1%}{several if entry['samples'] > 1 else ''}"
            )
    return "\n".join([*lines, *(f"-> {result.path}" for result in results)])


def _share(estimate: dict[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"{estimate['value']:.1%} [{low:.1%}, {high:.1%}]"


def _describe(target: Subject) -> dict[str, Any]:
    """The field `target` of its result files, as far as it is known before the base is loaded."""
    return {
        "name": target.name,
        "run": target.run,
        "adapter": target.adapter,
        "adapter_sha256": adapter_sha256(target.adapter) if target.adapter else None,
        "base": target.model.id,
        "base_revision": target.model.revision,
        "quantization": target.model.quantization,
    }


def _open_group(
    config: DataConfig,
    targets: Sequence[Subject],
    about: dict[str, dict[str, Any]],
    settings: EvalSettings,
    tag: str | None,
    overwrite: bool,
) -> Group:
    """The ledgers of all targets on one data set."""
    config = config.model_copy(update={"system_prompt": targets[0].system_prompt})

    @cache
    def load(limit: int | None) -> ProblemSet:
        limited = config.model_copy(update={"limit": limit})
        return load_problems(limited, settings.split, seed=settings.seed)

    group = {
        target.name: open_ledger(
            result_path(target.results, config.name, tag),
            *(about[target.name], config, settings, load),
            tag=tag,
            overwrite=overwrite,
        )
        for target in targets
    }
    for target in targets:
        ledger = group[target.name]
        seen = seen_in_training(target, ledger.problem_set)
        ledger.record["seen_in_training"] = seen
        if seen:
            log.warning(
                "%s was trained on %d of the %d problems of %s: its figures there are not those "
                "of held-out problems",
                *(target.name, seen, len(ledger.problems), config.name),
            )
    return group


@contextmanager
def _loaded(
    targets: Sequence[Subject], base: Base | None
) -> Iterator[tuple[Policy, dict[str, str]]]:
    """The base with all adapters on it, and the adapter's name of each target."""
    model = shared_model(targets)
    base = base or load_base(model)
    names = {t.name: f"target{i}" if t.adapter else BASE for i, t in enumerate(targets)}
    sources = {names[t.name]: t.adapter for t in targets if t.adapter}
    with room_for("loading the adapters", "evaluate fewer of them at once"):
        policy = Policy(base, load_adapters(base, sources) if sources else None)
    try:
        yield policy, names
    finally:
        if sources:
            policy.peft.unload()


def _sample_missing(
    groups: Sequence[Group], policy: Policy, adapters: dict[str, str], facts: dict[str, Any]
) -> None:
    """Sample every missing row, data set by data set, and write the figures of each.

    What ends it early says what is written and how to go on.
    """
    base = policy.base
    ledgers = [ledger for group in groups for ledger in group.values()]
    for ledger in ledgers:
        ledger.check_revision(base.revision)
    total = sum(len(ledger.missing) for ledger in ledgers)

    def written() -> str:
        return (
            f"{total - sum(len(ledger.missing) for ledger in ledgers)} of {total} answers are "
            "written, and the same command (without --overwrite) goes on from there"
        )

    with stop_as_ctrl_c(), tqdm(total=total, unit="answer") as bar:
        try:
            for group in groups:
                active = {name: ledger for name, ledger in group.items() if ledger.missing}
                for ledger in active.values():
                    ledger.start(base.revision, base.hardware.reason, facts)
                for ledger in list(active.values())[:1]:  # all have the same problems
                    chats = (row["prompt"] for row in ledger.problems.values())
                    warn_of_forged(base.tokenizer, chats, ledger.record["data"])
                for temperature in sorted(
                    {t for led in active.values() for _, t, _ in led.missing}
                ):
                    _sample_at(temperature, active, policy, adapters, bar)
                for ledger in active.values():
                    _finish(ledger)
        except KeyboardInterrupt:
            log.warning("stopped; %s", written())
            raise
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{error}; {written()}. End what else uses the memory, evaluate fewer targets at "
                "once, or lower max_new_tokens (with --tag NAME, to keep these results apart)"
            ) from error


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
    problems = {id_: group[name].problems[id_] for name, (id_, _, _) in wanted}
    prompts = {id_: tuple(policy.base.prompt_ids(row["prompt"])) for id_, row in problems.items()}
    wanted.sort(key=lambda pair: (pair[1], pair[0]))
    lengths = [len(prompts[id_]) + settings.max_new_tokens for _, (id_, _, _) in wanted]
    # the longest first: what does not fit into memory is found out at once
    for rows in micro_batches(lengths, CHUNK_TOKENS[policy.base.hardware.device.type]):
        chunk = [wanted[i] for i in rows]
        began = time.perf_counter()
        requests = [
            Request(prompts[id_], row_seed(settings.seed, id_, number), adapters[name])
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
    ledger: ResultWriter,
    chunk: Sequence[tuple[str, Key]],
    completions: Sequence[Completion],
) -> list[Row]:
    """One target's rows of a chunk."""
    mine = [
        (key, completion)
        for (target, key), completion in zip(chunk, completions, strict=True)
        if target == name
    ]
    problems = [ledger.problems[id_] for (id_, _, _), _ in mine]
    rows = judge(ledger.problem_set, problems, [completion for _, completion in mine])
    return [
        {"id": id_, "temperature": temperature, "sample": number} | row
        for ((id_, temperature, number), _), row in zip(mine, rows, strict=True)
    ]


def _finish(ledger: ResultWriter) -> None:
    """Count the rows of each temperature, write the figures, warn of truncation."""
    numbers = isinstance(ledger.problem_set.verifier, NumberVerifier)
    rows: dict[float, list[Row]] = {t: [] for t in ledger.settings.temperature}
    for row in ledger.rows.values():
        rows[row["temperature"]].append(row)
    ledger.finish([summarize(rows[t], numbers=numbers) for t in rows])
    for entry in ledger.record["results"]:
        cut_off = entry["truncated"]["value"]
        if cut_off > TRUNCATED_WARNING:
            log.warning(
                "%s on %s at temperature %g: %.0f %% of the answers are cut off at "
                "max_new_tokens=%d and mostly count as wrong; raise it",
                *(ledger.record["target"]["name"], ledger.record["data"], entry["temperature"]),
                *(100 * cut_off, ledger.settings.max_new_tokens),
            )
