"""Where an adapter is: a folder, a run or the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from kit.errors import AdapterError
from kit.model.adapter_files import ADAPTER_FILES, checked_files, is_folder, suggesting
from kit.runs import RunFolder, check_has_adapter


def adapter_folder(source: str) -> Path:
    """Where the files of an adapter are: a run's best one, a folder's own, or a hub id's download.

    Raises AdapterError as `read_adapter_config` does, or when a run has none yet.
    """
    run = RunFolder(source)
    if run.exists:
        check_has_adapter(run)
        source = str(run.adapter)
    with suggesting(source):
        _, weights = checked_files(source)
    if is_folder(source):
        return weights.parent
    try:
        return Path(snapshot_download(source, allow_patterns=list(ADAPTER_FILES)))
    except OSError as error:
        raise AdapterError(f"cannot download the adapter {source}: {error}") from error
