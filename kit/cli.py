"""The command line: read arguments, call the kit, print errors as one line."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer import Option, rich_utils

from kit import __version__
from kit.commands import program
from kit.errors import KitError, OutputError, first_line, is_out_of_memory
from kit.terminal import make_inert
from kit.threads import share_processor

rich_utils.COLOR_SYSTEM = None  # the sequences would be spelled out, as those of strangers are
_log = logging.getLogger("kit")
MAY_BE_EMPTY = "--system-prompt"  # which then sends none
_SEVERAL = ("--weights", "--adapters")  # options with as many values as there are


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for wrong arguments, 3 for a
    machine that is not as expected, 130 after Ctrl-C, 141 for a pipe that nobody reads.

    From here on this process writes what it says inert (`kit.terminal`), its tracebacks too.
    """
    make_inert()
    share_processor()
    try:
        status = _status(sys.argv[1:] if arguments is None else arguments)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OutputError as error:
        return _unwritten(error)
    return status


def _status(arguments: Sequence[str]) -> int:
    """Run one command; its exit status. Raises OutputError for what cannot be printed."""
    # the kit's own warnings say what matters; the libraries' are about their internals
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels of a hub it does not need
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    _log.setLevel(logging.INFO)
    try:
        _check(arguments)
        _run(arguments or ["--help"])
    except typer.Exit as end:  # of --help and --version, and of what was stopped
        return end.exit_code if arguments else 2
    except typer.TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        command = context.command_path if context else "kit"
        return _fail(f"{' '.join(error.format_message().split())} (see {command} --help)", 2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OutputError:
        raise
    except Exception as error:
        if _log.isEnabledFor(logging.DEBUG):
            raise
        if isinstance(error, KitError):
            return _fail(str(error))
        if not is_out_of_memory(error):
            raise
        return _fail(
            f"out of memory: {first_line(error)}; end what else uses the memory or take a "
            "smaller model (`kit estimate` says what training needs)"
        )
    return 0


def _run(arguments: Sequence[str]) -> None:
    """Run the command that is named, without what typer does about errors and terminals."""
    kit: Any = typer.main.get_command(program)
    verbose = next(option for option in kit.params if option.name == "verbose")
    for command in kit.commands.values():
        command.params.append(verbose)
    names = {"help_option_names": ["--help", "-h"]}
    line = shlex.join(["kit", *arguments])
    with kit.make_context("kit", list(_one_by_one(arguments)), obj=line, **names) as context:
        kit.invoke(context)


def _one_by_one(arguments: Iterable[str]) -> Iterator[str]:
    """`--weights 1 2` as `--weights 1 --weights 2`."""
    name = None
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            yield from (argument, *remaining)
        elif re.match("--?[a-z]", argument):
            name = argument if argument in _SEVERAL else None
            if name is None:
                yield argument
        else:
            yield from (name, argument) if name else (argument,)


def _check(arguments: Sequence[str]) -> None:
    """Refuse an empty argument, as an unset variable leaves it: it would stand for nothing; and one
    of bytes that no record of the kit's could hold."""
    for before, argument in pairwise(["kit", *arguments]):
        if re.search("[\ud800-\udfff]", argument):
            raise typer.TyperException(
                f"{argument!r} is not valid UTF-8, and what the kit writes is; rename it"
            )
        option = re.fullmatch("(--[a-z-]+)=", argument)
        name = option[1] if option else before
        if (option or not argument) and name != MAY_BE_EMPTY:
            raise typer.TyperException(
                f"what follows {name} is empty; give it a value, or leave it out"
            )


def _unwritten(error: OutputError) -> int:
    """Say that what was printed is lost; nobody is there to be told when a pipe was closed."""
    with suppress(OSError, ValueError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, error.stream.fileno())  # for what is held back until the process ends
        os.close(nowhere)
    return 141 if error.is_unread else _fail(str(error))


def _fail(error: str, status: int = 1) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


def _show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def _be_verbose(asked: bool) -> None:
    if asked:
        _log.setLevel(logging.DEBUG)


_flag = partial(Option, metavar="", expose_value=False, is_eager=True)


@program.callback()
def _options(
    version: Annotated[
        bool, _flag("--version", callback=_show_version, help="print it and exit")
    ] = False,
    verbose: Annotated[
        bool, _flag("--verbose", "-v", callback=_be_verbose, help="say more, show tracebacks")
    ] = False,
) -> None:
    """Low-memory LoRA reinforcement learning, with trust regions compared fairly."""
