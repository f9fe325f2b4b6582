"""Read a file, or one split of a data set in a folder or on the hub, by the library `datasets`."""

from __future__ import annotations

import contextlib
import glob
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from kit.config import READERS, DataConfig
from kit.errors import DataError, first_line

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Role = Literal["train", "test"]
TEST_SPLIT: Final = "test"  # what problems to measure on are taken from


def read_split(
    name: str,
    hub_id: str,
    hub_config: str | None,
    config: DataConfig,
    split: Role | None,
    advice: str = "set data.split",
) -> tuple[datasets.Dataset, str]:
    """One split of a data set, from `data_dir` or the hub, and the split's name.

    `advice` is how another split is chosen.
    """
    import datasets

    if config.data_dir is not None:
        folder = Path(config.data_dir).expanduser() / name
        files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
        if not files:
            raise DataError(f"{folder} holds no <split>.jsonl; correct data.data_dir")
        chosen = _choose_split(name, list(files), config.split, split, advice)
        return read_file(files[chosen]), chosen
    try:
        with _quiet():
            splits = datasets.load_dataset(hub_id, hub_config)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"cannot load {hub_id} from the Hugging Face hub: {_cause(error)}; without a "
            f"connection, put <split>.jsonl files into a folder {name} and set data.data_dir to "
            "the folder above it"
        ) from error
    chosen = _choose_split(name, list(splits), config.split, split, advice)
    return splits[chosen], chosen


def _choose_split(
    name: str, there: list[str], exact: str | None, role: Role | None, advice: str
) -> str:
    wanted = role or exact or "train"
    if wanted in there:
        return wanted
    if len(there) == 1 and (role or not exact):
        if role == "train":
            logger.warning("%s has only the split %r: it is trained on", name, there[0])
        return there[0]
    raise DataError(f"{name} has no split {wanted!r}; it has {', '.join(there)}: {advice}")


def read_file(path: Path) -> datasets.Dataset:
    """A file as a data set in memory; the loader's cache goes where it disturbs nobody."""
    import datasets

    if not path.is_file():
        raise DataError(f"{path} does not exist")
    reader = READERS[path.suffix.lower()]
    try:
        with _quiet(), tempfile.TemporaryDirectory() as cache:
            return datasets.load_dataset(
                reader,
                data_files=glob.escape(str(path)),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
            )
    except StopIteration:
        raise DataError(f"{path} is empty") from None
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as {path.suffix}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The first line of the innermost reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor log lines of `datasets`: errors are reported by us."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
