"""Models, data sets and wheels attached to a Kaggle notebook, found below its input folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.errors import DataError
from kit.place import Place

INPUT = Path("/kaggle/input")
DEPTH = 7  # folders below it that are searched
# parts of a name that make another model of it
VARIANTS = ("instruct", "chat", "coder", "math", "vl", "gptq", "awq", "gguf", "int4", "int8")
SPLITS = ("train.jsonl", "test.jsonl")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where model and data set are taken from."""

    model_dir: Path | None  # a copy of the model; None: it comes from where its id says
    data_dir: Path | None  # with <name>/<split>.jsonl; None: where the configuration says


def locate(place: Place, model: str, data: str, links: Path, root: Path = INPUT) -> Sources:
    """What is attached on Kaggle, and for the rest the hub.

    A link to the data set's folder goes into `links`. Raises DataError, naming everything that
    neither is attached nor can be downloaded.
    """
    if place.name != "kaggle":
        return Sources(None, None)
    from kit.config import EMBEDDED
    from kit.sources import KNOWN

    needs_model = model != EMBEDDED and not Path(model).is_dir()
    folder = find_model(model, root) if needs_model else None
    needs_data = data in KNOWN or re.fullmatch(r"[\w.-]+/[\w.-]+", data) is not None
    found = find_data(data, root) if needs_data else None
    lacking = [_how_to_attach_model(model)] if needs_model and folder is None else []
    lacking += [_how_to_attach_data(data)] if needs_data and found is None else []
    if lacking and not place.online:
        raise DataError(
            "there is no internet here. Turn it on (Session options > Internet), or attach (Add "
            f"Input): {'; '.join(lacking)}. Looked below {root}"
        )
    if found is not None:
        _link(links / data, found)
    return Sources(folder, links if found else None)


def find_model(model: str, root: Path = INPUT) -> Path | None:
    """The folder with the weights of a hub id, by the names of the folders it is in.

    Kaggle writes Qwen/Qwen2.5-0.5B-Instruct as qwen2.5/transformers/0.5b-instruct/1.
    """
    parts = [_plain(part) for part in re.split(r"[-_]", model.rpartition("/")[2])]
    others = [variant for variant in VARIANTS if variant not in parts]
    for folder, files in _walk(root):
        name = _plain(str(folder.relative_to(root)))
        if "config.json" not in files or not any(f.endswith(".safetensors") for f in files):
            continue
        if all(part in name for part in parts) and not any(other in name for other in others):
            return folder
    return None


def find_data(name: str, root: Path = INPUT) -> Path | None:
    """The folder with train.jsonl and test.jsonl of a data set, or with the one that it has."""
    wanted = _plain(name.rpartition("/")[2])
    for folder, files in _walk(root):
        if files.intersection(SPLITS) and wanted in _plain(str(folder.relative_to(root))):
            return folder
    return None


def find_wheels(root: Path = INPUT) -> Path | None:
    """A folder with wheels."""
    for folder, files in _walk(root):
        if any(name.endswith(".whl") for name in files):
            return folder
    return None


def _walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    for path, folders, files in os.walk(root):
        folder = Path(path)
        folders[:] = sorted(folders) if len(folder.relative_to(root).parts) < DEPTH else []
        yield folder, set(files)


def _link(link: Path, target: Path) -> None:
    """The same link again is left as it is; one to another place is replaced."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target, target_is_directory=True)


def _plain(name: str) -> str:
    """Names of Kaggle's data sets have neither dots nor capitals."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _how_to_attach_model(model: str) -> str:
    return (
        f"the model {model} (Models, framework Transformers, or a data set of your own with its "
        "config.json, *.safetensors and tokenizer files, in a folder of that name)"
    )


def _how_to_attach_data(name: str) -> str:
    return (
        f"the data set {name} (a data set of your own with {' and '.join(SPLITS)} in a folder "
        f"{name}; datasets.load_dataset(…)['train'].to_json('train.jsonl') writes them)"
    )
