"""What may be loaded from the page: adapters within the app's folders and, on request, the hub's.

Whoever can open the page chooses these names, and who wrote the files is not known either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from kit.app.options import AppOptions
from kit.config import Config
from kit.errors import AdapterError, ConfigError, KitError, first_line
from kit.model.adapter_files import CONFIG, WEIGHTS, check_leaves_base, read_adapter_config
from kit.recipe import build_config
from kit.yaml_text import read_yaml

MAX_PATH = 1024  # bytes of a path typed into the page
MAX_NAME = 255  # bytes of one of its parts, as file systems have it
MAX_BYTES = 1 << 20  # of an adapter's or a run's configuration; usual are 1-3 KB
DEEPEST = 10  # sections and lists in each other; the kit writes five at most

# forms that a shell, a browser or another system takes for a place of its own
_FOREIGN = re.compile(r"~|\\|[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://")


class OutsideRoots(KitError, PermissionError):
    """A path from the page leads out of the folders the app may read."""


def confine(path_text: str, roots: Sequence[Path]) -> Path:
    """The absolute path, without links, of one typed into the page; it need not exist.

    Relative ones start at the current folder. Raises OutsideRoots for a path that leads, by `..`
    or a link or as it stands, out of all `roots`, with words that do not depend on whether there
    is anything.
    """
    path = _within(Path(path_text), roots) if _is_path(path_text) else None
    if path is None:
        raise _refusal(path_text, roots)
    return path


def adapter_source(text: str, options: AppOptions) -> str:
    """Folder of the adapter that a text in the page names: a run folder, an adapter's or a hub id.

    What the command line names with --adapters may be anywhere; other folders must be in
    `options.roots`, and hub ids need `options.allow_hub`. Raises OutsideRoots for what may not be
    loaded, AdapterError where there is no safetensors LoRA adapter.
    """
    text = text.strip()
    source = given_source(text) if text in options.adapters else _allowed_source(text, options)
    read_settings(source)
    return source


def given_source(name: str) -> str:
    """The adapter's folder, or hub id, of one that the user who started the app has named."""
    folder = _adapter_of(Path(name))
    return str(folder.resolve()) if os.path.isdir(folder) else name


def confined_source(folder: Path, roots: Sequence[Path]) -> str:
    """The real folder of an adapter; OutsideRoots when it or one of its files is in no root."""
    check_within((folder, folder / CONFIG, folder / WEIGHTS), roots)
    return os.path.realpath(folder)


def check_within(paths: Sequence[Path], roots: Sequence[Path]) -> None:
    """Raise OutsideRoots for a path that was found in a root and is a link out of all."""
    for path in paths:
        if _within(path, roots) is None:
            raise _refusal(str(path), roots)


def read_run_config(path: Path) -> Config:
    """A run's configuration, whatever is in the file; ConfigError when it is not usable.

    Nesting and aliases, by which a few lines take hours or all memory, are looked for first.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"it is larger than {MAX_BYTES} bytes")
    with suppress(yaml.YAMLError, UnicodeDecodeError):  # read_yaml says what is wrong
        depth = 0
        for event in yaml.parse(path.read_text(encoding="utf-8"), yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError("it holds YAML aliases, which the kit never writes")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ConfigError(f"it is nested more than {DEEPEST} deep: too nested")
    return build_config(read_yaml(path))


def read_settings(source: str) -> dict[str, Any]:
    """An adapter's configuration, whatever is in its files; AdapterError when it is not usable."""
    config = Path(source) / CONFIG
    try:
        if config.is_file() and config.stat().st_size > MAX_BYTES:
            raise AdapterError(f"{config} is larger than {MAX_BYTES} bytes: no configuration")
        settings = read_adapter_config(source)
    except (OSError, RecursionError, TypeError, IndexError) as error:
        # unreadable, nested without end, a rank that is no number, a weight without dimensions
        raise AdapterError(f"cannot read the adapter {source}: {error}") from error
    base_id = settings.get("base_model_name_or_path")
    if not isinstance(base_id, str) or not base_id:
        raise AdapterError(
            f"the adapter {source} names no base model; write its hub id or folder into "
            f"base_model_name_or_path of {CONFIG}"
        )
    if not isinstance(settings.get("revision"), str | None):
        raise AdapterError(f"the adapter {source} names no revision by {settings['revision']!r}")
    check_leaves_base(source, settings)
    return settings


def _allowed_source(text: str, options: AppOptions) -> str:
    """Where the adapter is that someone in the page has asked for."""
    try:
        path = confine(text, options.roots)
    except OutsideRoots as error:
        if not _is_hub_id(text):
            raise
        if not options.allow_hub:
            raise OutsideRoots(f"{error}; adapters of the hub need --allow-hub") from None
        return _download(text)
    return confined_source(_adapter_of(path), options.roots)


def _is_path(text: str) -> bool:
    """Whether a text can be a path on this system and is not of a form with other meanings."""
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    longest = max(len(part) for part in encoded.split(os.fsencode(os.sep)))
    fits = len(encoded) <= MAX_PATH and longest <= MAX_NAME
    return bool(text.strip()) and fits and "\0" not in text and not _FOREIGN.match(text)


def _within(path: Path, roots: Sequence[Path]) -> Path | None:
    """The path without links and `..`; None where that is in none of the roots."""
    # `..` is taken out first, so that no folder outside is looked into on the way
    real = Path(os.path.realpath(os.path.abspath(path)))
    return real if any(real.is_relative_to(root.resolve()) for root in roots) else None


def _refusal(text: str, roots: Sequence[Path]) -> OutsideRoots:
    shown = text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"
    return OutsideRoots(
        f"{shown!r} is not in a folder this app reads; give a path in "
        f"{' or '.join(str(root) for root in roots)}, or start the app with "
        "--adapters-root FOLDER to add a folder"
    )


def _adapter_of(folder: Path) -> Path:
    """Where the adapter of a run folder is; any other folder is the adapter's own."""
    return folder / "adapter" if os.path.isfile(folder / "config.yaml") else folder


def _is_hub_id(text: str) -> bool:
    """Whether a text has the form owner/name."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def _download(hub_id: str) -> str:
    """Folder with the two files of a hub adapter.

    A folder of this name next to the app is not looked at, as it would be for an id.
    """
    try:
        return snapshot_download(hub_id, allow_patterns=[CONFIG, WEIGHTS])
    except (OSError, HfHubHTTPError) as error:
        reason = first_line(error)
        raise AdapterError(f"cannot load the adapter {hub_id} from the hub: {reason}") from error
