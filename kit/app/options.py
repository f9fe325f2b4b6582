"""What the app is started with: which folders it reads, which base it loads, who may open it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from kit.errors import ConfigError

PASSWORD = "KIT_APP_PASSWORD"  # environment variable; the command line is seen by `ps`
USER = "kit"  # where --auth names none


@dataclass(frozen=True, slots=True)
class AppOptions:
    """Options of `kit app`. Raises ConfigError for a value that is not allowed.

    Whoever opens the page can run the model and write votes, so an app that others can reach
    has a password.
    """

    runs: Path = Path("runs")  # folder of runs and comparisons; need not exist yet
    adapters: tuple[str, ...] = ()  # run folders, adapter folders or hub ids to offer at once
    base: str | None = None  # hub id or folder; None: that of the adapters
    adapters_root: Path | None = None  # a second folder that adapters may be loaded from
    data_dir: str | None = None  # local copies of data sets, <name>/<split>.jsonl; None: the hub
    allow_hub: bool = False  # whether the page may load adapters from the hub
    host: str = "127.0.0.1"  # address to listen on
    port: int = 7860  # 1 to 65535
    share: bool = False  # a public link through Gradio's tunnel
    auth: tuple[str, str] | None = field(default=None, repr=False)  # user and password
    cpu: bool = False  # leave the GPU alone

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"--port must be from 1 to 65535, got {self.port}")
        if ":" in self.host:
            raise ConfigError(
                f"--host must be a name or an IPv4 address such as 127.0.0.1, got {self.host}: "
                "Gradio does not serve IPv6"
            )
        if self.runs.exists() and not self.runs.is_dir():
            raise ConfigError(f"--runs must be a folder, but {self.runs} is a file")
        if self.adapters_root is not None and not self.adapters_root.is_dir():
            raise ConfigError(f"--adapters-root must be a folder, {self.adapters_root} is none")
        if self.auth is not None and not all(self.auth):
            raise ConfigError("--auth needs a user and a password, and one of them is empty")
        if self.auth is None and (self.share or not _is_loopback(self.host)):
            what = "--share" if self.share else f"--host {self.host}"
            raise ConfigError(
                f"{what} lets others open the app, run its model and read its runs: add "
                f"--auth USER and a password in {PASSWORD} or --password-file FILE, or leave "
                f"{what} out to serve this computer alone"
            )

    @property
    def votes(self) -> Path:
        """Where blind votes are written."""
        return self.runs / "votes.jsonl"

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that paths typed into the page must be in, absolute and without links."""
        folders = (self.runs, self.adapters_root)
        return tuple(folder.resolve() for folder in folders if folder is not None)


def read_auth(
    given: str | None, file: Path | None, environment: Mapping[str, str]
) -> tuple[str, str] | None:
    """User and password of --auth, --password-file and the environment; None where none is asked.

    --auth is "user" or "user:password", where the password may hold colons; without one it is in
    the file, or else in the variable PASSWORD. Raises ConfigError, without showing any of them,
    when a part lacks.
    """
    user, colon, password = (USER if given is None else given).partition(":")
    if not user or (colon and not password):
        raise ConfigError("--auth must be USER or USER:PASSWORD, neither of them empty")
    if colon:
        if file is not None:
            raise ConfigError("--auth has a password already: leave it or --password-file out")
        return user, password
    if file is not None:
        return user, _read_password(file)
    if environment.get(PASSWORD):
        return user, environment[PASSWORD]
    if PASSWORD in environment:
        raise ConfigError(f"{PASSWORD} is empty; put a password into it, or unset it")
    if given is not None:
        raise ConfigError(
            f"--auth {user} needs a password: put one into the environment variable {PASSWORD} or "
            "into a file for --password-file"
        )
    return None


def _read_password(file: Path) -> str:
    """The one line of a file; ConfigError when it cannot be read or is not one line."""
    try:
        password = file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read --password-file {file}: {reason}") from error
    if not password or "\n" in password:
        raise ConfigError(f"--password-file {file} must have one line with the password")
    return password


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the app's options to a parser; `from_arguments` reads them."""
    defaults = AppOptions()
    models = parser.add_argument_group("what is compared")
    models.add_argument(
        "--runs",
        type=Path,
        default=defaults.runs,
        help="folder searched for runs, comparisons and adapters; votes are written into it "
        "(default: %(default)s)",
    )
    models.add_argument(
        "--adapters",
        nargs="+",
        action="extend",
        default=[],
        metavar="ADAPTER",
        help="run folders, adapter folders or hub ids to offer as well, wherever they are",
    )
    models.add_argument(
        "--base",
        metavar="MODEL",
        help="hub id or folder of the base model, or `embedded` (default: the one the adapters "
        "were trained on)",
    )
    models.add_argument(
        "--adapters-root",
        type=Path,
        metavar="FOLDER",
        help="a second folder that adapters may be chosen from in the page",
    )
    models.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="folder with local copies of data sets (<name>/<split>.jsonl)",
    )
    models.add_argument(
        "--allow-hub",
        action="store_true",
        help="let the page load adapters from the Hugging Face hub, by owner/name",
    )
    models.add_argument("--cpu", action="store_true", help="do not use the GPU")
    access = parser.add_argument_group("who can open it")
    access.add_argument("--port", type=int, default=defaults.port, help="default: %(default)s")
    access.add_argument(
        "--host",
        default=defaults.host,
        help="address to listen on; 0.0.0.0 is all of this computer's, and needs --auth "
        "(default: %(default)s, this computer alone)",
    )
    access.add_argument(
        "--share",
        action="store_true",
        help="also open a public link through Gradio's servers; needs --auth",
    )
    access.add_argument(
        "--auth",
        metavar="USER[:PASSWORD]",
        help=f"ask for this before anything; the password is better given in {PASSWORD} or "
        "--password-file, for the command line shows in the list of processes and in the shell's "
        f"history (the user is {USER} where a password is given and --auth is not)",
    )
    access.add_argument(
        "--password-file", type=Path, metavar="FILE", help="a file with the password alone"
    )


def from_arguments(namespace: argparse.Namespace) -> AppOptions:
    """The options a parser has read; ConfigError as AppOptions raises it."""
    return AppOptions(
        runs=namespace.runs,
        adapters=tuple(namespace.adapters),
        base=namespace.base,
        adapters_root=namespace.adapters_root,
        data_dir=namespace.data_dir,
        allow_hub=namespace.allow_hub,
        host=namespace.host,
        port=namespace.port,
        share=namespace.share,
        auth=read_auth(namespace.auth, namespace.password_file, os.environ),
        cpu=namespace.cpu,
    )


def _is_loopback(host: str) -> bool:
    """Whether only programs on this computer can connect; other names may lead anywhere."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
