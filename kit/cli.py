"""The command line: parse arguments, call the kit, print errors as one line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from kit import __version__
from kit.config import Config, load_config
from kit.errors import KitError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
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
    return 0


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
        help="accuracy of adapters and base on a data set",
        description="Accuracy, strict and lenient, with Wilson's 95 %% interval. Results go to "
        "<run>/eval/, or to runs/eval/ for adapters outside a run.",
    )
    evaluate.add_argument("targets", nargs="*", metavar="RUN_OR_ADAPTER")
    evaluate.add_argument("--base", metavar="MODEL", help="evaluate this base model alone too")
    evaluate.add_argument("--data", required=True, help="gsm8k, svamp, asdiv, math500, …")
    evaluate.add_argument("--data-dir", help="folder with local copies (<name>/<split>.jsonl)")
    evaluate.add_argument("--limit", type=int, help="only this many problems")
    evaluate.add_argument("--temperature", type=float, default=0.0, help="0 (default): greedy")
    evaluate.add_argument("--max-new-tokens", type=int, default=512)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.set_defaults(command=_evaluate)

    demo = commands.add_parser(
        "demo", help="train and compare clip, noclip and pspo on the embedded model"
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"))
    demo.set_defaults(command=_demo)

    for command in (train, evaluate, demo):
        command.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    return parser


def _train(options: argparse.Namespace) -> None:
    config = _read_config(options.config, options.overrides)
    from kit.trainer import train

    run = train(config, resume=options.resume)
    if run.read_description().get("status") == "finished":
        print(f"The adapter is in {run.adapter}; measure it with: kit evaluate {run.path} --data …")


def _read_config(path: Path, overrides: list[str]) -> Config:
    if path.is_dir():
        config = load_config(path / "config.yaml", overrides)
        return config.model_copy(update={"output": str(path)})
    return load_config(path, overrides)


def _evaluate(options: argparse.Namespace) -> None:
    from kit.benchmark import benchmark

    benchmark(
        options.targets,
        base_id=options.base,
        data=options.data,
        data_dir=options.data_dir,
        limit=options.limit,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )


def _demo(options: argparse.Namespace) -> None:
    from kit.demo import demo

    demo(options.output)
