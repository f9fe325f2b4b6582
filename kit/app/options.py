"""What the app is started with: which folders it reads, which base it loads, who may open it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from typer import Option

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


def _is_loopback(host: str) -> bool:
    """Whether only programs on this computer can connect; other names may lead anywhere."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


_DEFAULT = AppOptions()
_Models = partial(Option, rich_help_panel="What is compared")
_Access = partial(Option, rich_help_panel="Who can open it")
_RUNS = "folder searched for runs, comparisons and adapters; votes are written into it"
_ADAPTERS = "run folders, adapter folders or hub ids to offer as well, wherever they are"
_BASE = (
    "hub id or folder of the base model, or `embedded` (default: the one the adapters were "
    "trained on)"
)
_ADAPTERS_ROOT = "a second folder that adapters may be chosen from in the page"
_DATA_DIR = "folder with local copies of data sets (<name>/<split>.jsonl)"
_ALLOW_HUB = "let the page load adapters from the Hugging Face hub, by owner/name"
_HOST = (
    "address to listen on: 127.0.0.1 is this computer alone, 0.0.0.0 is all of its addresses and "
    "needs --auth"
)
_SHARE = "also open a public link through Gradio's servers; needs --auth"
_AUTH = (
    f"ask for this before anything; the password is better given in {PASSWORD} or "
    "--password-file, for the command line shows in the list of processes and in the shell's "
    f"history (the user is {USER} where a password is given and --auth is not)"
)


def from_arguments(
    runs: Annotated[Path, _Models(help=_RUNS)] = _DEFAULT.runs,
    adapters: Annotated[list[str] | None, _Models(metavar="ADAPTER …", help=_ADAPTERS)] = None,
    base: Annotated[str | None, _Models(metavar="MODEL", help=_BASE)] = None,
    adapters_root: Annotated[Path | None, _Models(metavar="FOLDER", help=_ADAPTERS_ROOT)] = None,
    data_dir: Annotated[str | None, _Models(metavar="FOLDER", help=_DATA_DIR)] = None,
    allow_hub: Annotated[bool, _Models("--allow-hub", metavar="", help=_ALLOW_HUB)] = False,
    cpu: Annotated[bool, _Models("--cpu", metavar="", help="do not use the GPU")] = False,
    port: Annotated[int, _Access(metavar="PORT", help="port to listen on")] = _DEFAULT.port,
    host: Annotated[str, _Access(metavar="ADDRESS", help=_HOST)] = _DEFAULT.host,
    share: Annotated[bool, _Access("--share", metavar="", help=_SHARE)] = False,
    auth: Annotated[str | None, _Access(metavar="USER[:PASSWORD]", help=_AUTH)] = None,
    password_file: Annotated[
        Path | None, _Access(metavar="FILE", help="a file with the password alone")
    ] = None,
) -> AppOptions:
    """What the command line says, which is declared here; ConfigError as AppOptions raises it."""
    return AppOptions(
        runs=runs,
        adapters=tuple(adapters or ()),
        base=base,
        adapters_root=adapters_root,
        data_dir=data_dir,
        allow_hub=allow_hub,
        host=host,
        port=port,
        share=share,
        auth=read_auth(auth, password_file, os.environ),
        cpu=cpu,
    )
