"""The command line: parse arguments, call the kit, print errors as one line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from kit import __version__
from kit.app.options import add_arguments, from_arguments
from kit.config import Config
from kit.errors import AdapterError, ConfigError, KitError, first_line, is_out_of_memory
from kit.recipe import load_config
from kit.terminal import make_inert

_SETTING = re.compile(r"[A-Za-z_]+=")
_OVERRIDE = re.compile(r"[A-Za-z_.]+=")
_SETTING_OPTIONS = ("limit", "temperature", "samples", "max_new_tokens", "seed")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 130 after Ctrl-C.

    From here on this process writes what it says inert (`kit.terminal`), its tracebacks too.
    """
    make_inert()
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    # the kit's own warnings say what matters; the libraries' are about their internals
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("kit").setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        options.command(options)
    except KitError as error:
        if options.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if options.verbose or not is_out_of_memory(error):
            raise
        print(
            f"error: out of memory: {first_line(error)}; end what else uses the memory or take a "
            "smaller model (`kit estimate` says what training needs)",
            file=sys.stderr,
        )
        return 1
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Options of the command; lists of targets and key=value may stand between options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    listed = next((name for name in ("targets", "overrides") if hasattr(options, name)), None)
    if rest and (listed is None or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and listed:
        setattr(options, listed, getattr(options, listed) + rest)
    options.command_line = shlex.join(["kit", *arguments])
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kit", description=__doc__.partition(":")[0])
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train an adapter as a configuration says",
        description="Train an adapter. Any field of the configuration can be overridden by "
        "key=value, e.g. optim.learning_rate=3e-5 output=runs/second.",
    )
    train.add_argument("config", type=Path, help="YAML recipe, or a run folder to resume")
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="accuracy of adapters and base on data sets",
        description="Accuracy, strict and lenient, with intervals; with several samples pass@k and "
        "majority votes too. All adapters and the base are sampled together. Results go to "
        "<run>/eval/, or to runs/eval/ outside a run; what is there already is kept, so that an "
        "interrupted evaluation goes on. Settings may be given as key=value: "
        "temperature=0,0.2,0.4 samples=16 max_new_tokens=512 seed=0 limit=300 top_p=1 split=test.",
    )
    evaluate.add_argument("targets", nargs="*", metavar="RUN_OR_ADAPTER | key=value")
    evaluate.add_argument("--base", metavar="MODEL", help="evaluate this base model alone too")
    evaluate.add_argument("--data", required=True, help="one or several: gsm8k,svamp,asdiv,math500")
    evaluate.add_argument("--data-dir", help="folder with local copies (<name>/<split>.jsonl)")
    evaluate.add_argument("--system-prompt", help="of adapters outside runs, and of the base")
    evaluate.add_argument("--tag", help="keep these results beside those of other settings")
    evaluate.add_argument("--overwrite", action="store_true", help="replace results that are there")
    evaluate.add_argument("--limit", help="only this many problems")
    evaluate.add_argument("--temperature", help="one or several, with commas; 0 (default): greedy")
    evaluate.add_argument("--samples", help="per problem at temperatures above 0 (default 1)")
    evaluate.add_argument("--max-new-tokens", help="longest answer (default 512)")
    evaluate.add_argument("--seed", help="of the samples and of --limit (default 0)")
    evaluate.set_defaults(command=_evaluate)

    demo = commands.add_parser(
        "demo", help="train and compare clip, noclip and pspo on the embedded model"
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"))
    demo.set_defaults(command=_demo)

    compare = commands.add_parser(
        "compare",
        help="train arms that differ in one thing, on several seeds, and evaluate them",
        description="Train every configuration with every seed, all of a seed together on one "
        "base and the same problems, then evaluate base and adapters. Arms may differ in "
        "objective.* alone unless --vary declares more. key=value overrides hold for all arms; "
        "with the prefix evaluate. they set the evaluation: evaluate.limit=300 "
        "evaluate.temperature=0,0.4. What is finished is not done again.",
    )
    compare.add_argument("targets", nargs="+", metavar="CONFIG | key=value")
    compare.add_argument(
        "--seeds", default="0", help="with commas; five or more tell methods apart"
    )
    compare.add_argument(
        "--vary", default="", metavar="FIELDS", help="further fields that may differ, with commas"
    )
    compare.add_argument("--data", default="", help="to evaluate on; default: the trained one")
    compare.add_argument("--data-dir", help="folder with local copies (<name>/<split>.jsonl)")
    compare.add_argument("--output", type=Path, default=Path("runs/compare"))
    compare.set_defaults(command=_compare)

    report = commands.add_parser(
        "report",
        help="tables, plots and paired statistics of runs and comparisons",
        description="Set runs side by side from the files in their folders: a table here, "
        "report.md, a self-contained report.html and figures in --output.",
    )
    report.add_argument("paths", nargs="+", metavar="RUN_OR_COMPARISON")
    report.add_argument("--output", type=Path, help="default: <first path>/report")
    report.add_argument("--votes", type=Path, action="append", default=[], metavar="FILE")
    report.add_argument("--judge", type=Path, action="append", default=[], metavar="FILE")
    report.set_defaults(command=_report)

    judge = commands.add_parser(
        "judge",
        help="let a model judge the reasoning in two results, or score it in one",
        description="Judge completions that kit evaluate wrote, by a model behind an "
        "OpenAI-compatible endpoint (judge.base_url=… judge.model=…; the key comes from the "
        "environment) or one loaded here (judge.model=…). An interrupted judgement goes on.",
    )
    judge.add_argument("targets", nargs="+", metavar="RUN | key=value", help="one run, or two")
    judge.add_argument("--data", required=True, help="the data set whose results are judged")
    judge.add_argument("--tag", help="of the results")
    judge.add_argument("--limit", type=int, help="only this many problems")
    judge.add_argument("--output", type=Path, help="default: runs/judge/<data>.<left>[.<right>]")
    judge.set_defaults(command=_judge)

    votes = commands.add_parser(
        "votes", help="count blind votes, or export them as a preference data set"
    )
    votes.add_argument("votes", type=Path, metavar="VOTES.jsonl")
    votes.add_argument("--export", type=Path, metavar="FILE", help="prompt, chosen, rejected")
    votes.set_defaults(command=_votes)

    estimate = commands.add_parser(
        "estimate",
        help="GPU memory and time a configuration needs, before anything is downloaded",
        description="Say part by part what kit train would need on a GPU, and which overrides "
        "make it fit. The exit status is 1 when it does not fit.",
    )
    estimate.add_argument("targets", nargs="+", metavar="CONFIG | key=value")
    estimate.add_argument("--gpu", help="T4 (default), L4, A10, 3060, … or its memory in GiB")
    estimate.add_argument("--json", action="store_true", help="print JSON, in bytes and seconds")
    estimate.set_defaults(command=_estimate)

    _add_adapter_commands(commands)
    app = commands.add_parser(
        "app",
        help="look at answers side by side in the browser",
        description="Let two adapters answer side by side, vote blind, browse stored results, "
        "watch training and read reports, at http://127.0.0.1:7860.",
    )
    add_arguments(app)
    app.set_defaults(command=_app)

    for command in commands.choices.values():
        command.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    return parser


def _add_adapter_commands(commands: Any) -> None:
    """What is done with a finished adapter."""
    verify = commands.add_parser(
        "verify", help="check that an adapter loads elsewhere and computes what it did"
    )
    verify.add_argument("adapter", metavar="RUN_OR_ADAPTER")
    verify.set_defaults(command=_verify)

    merge = commands.add_parser("merge", help="merge an adapter into 16-bit weights of its base")
    merge.add_argument("adapter", metavar="RUN_OR_ADAPTER")
    merge.add_argument("-o", "--output", type=Path, required=True)
    merge.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    merge.set_defaults(command=_merge)

    blend = commands.add_parser("blend", help="mix adapters of one base into a new one")
    blend.add_argument("adapters", nargs="+", metavar="RUN_OR_ADAPTER")
    blend.add_argument("--weights", type=float, nargs="+", required=True)
    blend.add_argument("-o", "--output", type=Path, required=True)
    blend.add_argument(
        "--method", default="cat", help="cat (exact), linear, ties, dare_linear, dare_ties"
    )
    blend.add_argument("--density", type=float, default=0.5, help="share that ties and dare keep")
    blend.add_argument("--seed", type=int, default=0, help="of dare")
    blend.set_defaults(command=_blend)

    push = commands.add_parser("push", help="show what would go to the hub, or put it there")
    push.add_argument("adapter", metavar="RUN_OR_ADAPTER")
    push.add_argument("repo", metavar="OWNER/NAME")
    push.add_argument("--upload", action="store_true", help="do it; without, nothing goes up")
    push.add_argument("--public", action="store_true", help="a new repository is private without")
    push.set_defaults(command=_push)


def _train(options: argparse.Namespace) -> None:
    config = _read_config(options.config, options.overrides)
    from kit.training.trainer import train

    run = train(config, resume=options.resume)
    if run.status == "finished":
        print(f"The adapter is in {run.adapter}; measure it with: kit evaluate {run.path} --data …")


def _read_config(path: Path, overrides: list[str]) -> Config:
    if path.is_dir():
        config = load_config(path / "config.yaml", overrides)
        return config.model_copy(update={"output": str(path)})
    return load_config(path, overrides)


def _evaluate(options: argparse.Namespace) -> None:
    from kit.evaluation.settings import EvalSettings, read_pairs

    names, pairs = _split(options.targets, _SETTING)
    given = ((name, getattr(options, name)) for name in _SETTING_OPTIONS)
    pairs_given = [*pairs, *(f"{name}={value}" for name, value in given if value)]
    settings = read_pairs(EvalSettings, pairs_given)
    from kit.evaluation.benchmark import benchmark, table
    from kit.evaluation.subjects import resolve_data, resolve_targets

    targets = resolve_targets(names, options.base, options.system_prompt)
    data = resolve_data(_listed(options.data), targets, options.data_dir)
    results = benchmark(
        targets,
        data,
        settings,
        tag=options.tag,
        overwrite=options.overwrite,
        command=options.command_line,
    )
    print(table(results))


def _compare(options: argparse.Namespace) -> None:
    recipes, pairs = _split(options.targets, _OVERRIDE)
    prefix = "evaluate."
    evaluation = [pair for pair in pairs if pair.startswith(prefix)]
    seeds = _listed(options.seeds)
    if not all(seed.isdigit() for seed in seeds):
        raise ConfigError(f"--seeds must be numbers with commas between, got {options.seeds!r}")
    from kit.evaluation.settings import EvalSettings, read_pairs

    settings = read_pairs(EvalSettings, evaluation, prefix) if evaluation else None
    from kit.comparison import compare

    compare(
        recipes,
        [pair for pair in pairs if not pair.startswith(prefix)],
        seeds=[int(seed) for seed in seeds],
        vary=_listed(options.vary),
        output=options.output,
        data=_listed(options.data),
        data_dir=options.data_dir,
        settings=settings,
        command=options.command_line,
    )


def _report(options: argparse.Namespace) -> None:
    from kit.reports import report

    report(options.paths, options.output, options.votes, options.judge)


def _judge(options: argparse.Namespace) -> None:
    names, pairs = _split(options.targets, _OVERRIDE)
    if len(names) not in (1, 2):
        raise ConfigError(f"kit judge takes one run or two, got {len(names)}")
    from kit.evaluation.results import result_path
    from kit.evaluation.settings import read_pairs
    from kit.evaluation.subjects import results_folder
    from kit.preferences.judge import run_judge
    from kit.preferences.judge_models import JudgeConfig

    config = read_pairs(JudgeConfig, pairs, "judge.")
    files = [result_path(results_folder(name), options.data, options.tag) for name in names]
    labels = [name.strip("/").replace("/", "_") for name in names]
    output = options.output or Path("runs/judge") / ".".join([options.data, *labels])
    left, *right = [path.with_suffix(".jsonl") for path in files]
    run_judge(left, right[0] if right else None, output, config, options.limit)


def _votes(options: argparse.Namespace) -> None:
    from kit.preferences.votes import export_preferences, read_votes, tally

    if options.export:
        pairs, corrupt = export_preferences(options.votes, options.export)
        print(f"{pairs} preferences -> {options.export}")
    else:
        counted, corrupt = read_votes(options.votes)
        print("\n".join(map(str, tally(counted))) or "no blind votes between different adapters")
    if corrupt:
        print(f"{corrupt} lines of {options.votes} could not be read and are left out")


def _estimate(options: argparse.Namespace) -> None:
    names, pairs = _split(options.targets, _OVERRIDE)
    if len(names) != 1:
        raise ConfigError(f"kit estimate takes one configuration, got {len(names)}")
    config = _read_config(Path(names[0]), pairs)
    from kit.estimate.forecast import estimate

    found = estimate(config, options.gpu)
    print(json.dumps(found.record(), indent=2) if options.json else found)
    if not found.fits:
        raise ConfigError(f"{names[0]} does not fit on {found.gpu.name}")


def _verify(options: argparse.Namespace) -> None:
    from kit.adapters.verify import table, verify

    checks = verify(options.adapter)
    print(table(checks))
    if not all(check.passed for check in checks):
        raise AdapterError(f"{options.adapter} did not pass")


def _merge(options: argparse.Namespace) -> None:
    from kit.adapters.merge import commands, merge

    merged = merge(options.adapter, options.output, options.dtype)
    print(*merged.agreements, commands(merged), sep="\n")


def _blend(options: argparse.Namespace) -> None:
    from kit.adapters.blend import blend

    mixed = blend(
        options.adapters,
        options.weights,
        options.output,
        options.method,
        density=options.density,
        seed=options.seed,
    )
    print(mixed)


def _push(options: argparse.Namespace) -> None:
    from kit.adapters.push import plan_push, push

    plan = plan_push(options.adapter, options.repo)
    print(plan)
    if options.upload:
        print(push(plan, private=not options.public))
    else:
        print("nothing was uploaded; add --upload")


def _app(options: argparse.Namespace) -> None:
    settings = from_arguments(options)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is told to anybody
    print("Loading the app …", flush=True)
    from kit.app.page import launch

    launch(settings)


def _split(arguments: list[str], pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Plain arguments, and the key=value among them."""
    pairs = [argument for argument in arguments if pattern.match(argument)]
    return [argument for argument in arguments if argument not in pairs], pairs


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _demo(options: argparse.Namespace) -> None:
    from kit.demo import demo

    demo(options.output)
