"""Models, data sets and wheels attached to a Kaggle notebook, found below its input folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kit.app.library.folders import walk
from kit.errors import DataError
from kit.notebook.place import Place

INPUT = Path("/kaggle/input")
DEPTH = 7  # folders below it that are searched
SPLITS = ("train.jsonl", "test.jsonl")
HAVE_BOTH = ("gsm8k", "svamp")  # of other data sets, one split may be all there is
NAMED = 5  # folders in an error, at most


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
    from kit.config import EMBEDDED_PATHS
    from kit.tasks.sources import KNOWN

    needs_model = model not in EMBEDDED_PATHS and not Path(model).is_dir()
    folder = find_model(model, root) if needs_model else None
    needs_data = data in KNOWN or re.fullmatch(r"[\w.-]+/[\w.-]+", data) is not None
    found = find_data(data, root) if needs_data else None
    lacks_model, lacks_data = needs_model and folder is None, needs_data and found is None
    if not place.online and (lacks_model or lacks_data):
        lacking = [_how_to_attach_model(model, root)] if lacks_model else []
        lacking += [_how_to_attach_data(data)] if lacks_data else []
        raise DataError(
            "there is no internet here. Turn it on (Session options > Internet), or attach (Add "
            f"Input): {'; '.join(lacking)}. Looked below {root}"
        )
    if found is not None:
        _link(links / data, found)
    return Sources(folder, links if found else None)


def find_model(model: str, root: Path = INPUT) -> Path | None:
    """The folder with the weights of a hub id, if one is named like it and has no word more.

    Kaggle writes Qwen/Qwen2.5-0.5B-Instruct as qwen2.5/transformers/0.5b-instruct/1.
    """
    wanted = _pattern(model)
    for folder in _models(root):
        path = folder.relative_to(root).parts
        # the model's name without its framework and version
        parts = [_words(part) for part in path if part != "transformers" and not part.isdigit()]
        if any(re.fullmatch(wanted, "-".join(parts[-count:])) for count in (1, 2)):
            return folder
    return None


def find_data(name: str, root: Path = INPUT) -> Path | None:
    """The folder with train.jsonl and test.jsonl of a data set, or with the one that it has."""
    wanted = re.compile(rf"(^|-){_pattern(name)}(-|$)")
    needed = len(SPLITS) if name in HAVE_BOTH else 1
    for folder, files in _walk(root):
        is_complete = len(files.intersection(SPLITS)) >= needed
        if is_complete and wanted.search(_words(str(folder.relative_to(root)))):
            return folder
    return None


def find_wheels(root: Path = INPUT) -> Path | None:
    """A folder with wheels."""
    for folder, files in _walk(root):
        if any(name.endswith(".whl") for name in files):
            return folder
    return None


def _models(root: Path) -> Iterator[Path]:
    """Folders with weights."""
    for folder, files in _walk(root):
        if "config.json" in files and any(name.endswith(".safetensors") for name in files):
            yield folder


def _walk(root: Path) -> Iterator[tuple[Path, set[str]]]:
    for folder, _, files in walk(root, DEPTH, (), lambda error: None):
        yield folder, files


def _link(link: Path, target: Path) -> None:
    """A link that is there already is replaced. Raises DataError when something else is."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise DataError(f"{link} is in the way of a link to {target}; move it elsewhere")
    link.symlink_to(target, target_is_directory=True)


def _pattern(name: str) -> str:
    """Of the words of a hub id without its owner; Kaggle leaves out dots or makes hyphens of them.

    Qwen2.5-0.5B is qwen25-05b or qwen2-5-0-5b, but neither qwen2-505b nor qwen2-0-5b.
    """
    words = re.split(r"[-_]", name.rpartition("/")[2].lower())
    return "-".join("-?".join(re.sub(r"\W", "", word)) for word in words)


def _words(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")


def _how_to_attach_model(model: str, root: Path) -> str:
    others = [str(folder) for folder in islice(_models(root), NAMED)]
    refused = f"; by their names these are others: {', '.join(others)}" if others else ""
    return (
        f"the model {model} (Models, framework Transformers, or a data set of your own with its "
        f"config.json, *.safetensors and tokenizer files, in a folder of that name{refused})"
    )


def _how_to_attach_data(name: str) -> str:
    return (
        f"the data set {name} (a data set of your own with {' and '.join(SPLITS)} in a folder "
        f"{name}; datasets.load_dataset(…)['train'].to_json('train.jsonl') writes them)"
    )
