"""`kit push`: put an adapter on the Hugging Face hub; says first what would go there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from kit.adapters.card import run_card
from kit.adapters.locate import adapter_folder
from kit.config import EMBEDDED_PATHS
from kit.errors import AdapterError
from kit.model.adapter_files import ADAPTER_FILES, CARD
from kit.model.base_files import BaseSource, base_of
from kit.runs import RunFolder
from kit.spelling import did_you_mean_path


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes where."""

    repo: str
    files: dict[str, Path | bytes]  # by their names in the repository
    notes: list[str]

    def __str__(self) -> str:
        sizes = {
            name: len(source) if isinstance(source, bytes) else source.stat().st_size
            for name, source in self.files.items()
        }
        lines = [f"to https://huggingface.co/{self.repo}:"]
        lines += [f"{size:>14,}  {name}" for name, size in sizes.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def plan_push(adapter: str, repo: str) -> Upload:
    """Check the files of a run's adapter or of an adapter folder, and the repository's name.

    A run's card is written anew, with the results there are now; a folder's goes up as it is.
    Raises AdapterError for anything that is not adapter, card or tokenizer, and for an adapter
    whose base others could not load.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise AdapterError(f"{repo!r} is no hub id: {error}") from None
    if "/" not in repo:
        raise AdapterError(f"{repo!r} does not say whose it is; write OWNER/{repo}")
    if not Path(adapter).is_dir():
        near = did_you_mean_path(adapter)
        raise AdapterError(f"{adapter} is not a run folder or adapter folder here{near}")
    folder = adapter_folder(adapter)
    foreign = [
        path.name
        for path in sorted(folder.iterdir())
        if path.name not in ADAPTER_FILES or path.is_symlink() or not path.is_file()
    ]
    if foreign:
        raise AdapterError(
            f"{folder} holds what is not adapter, card or tokenizer: {', '.join(foreign)}; move it "
            "elsewhere, nothing was uploaded"
        )
    notes = _check_base(base_of(str(folder)))
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(folder.iterdir())}
    run = RunFolder(adapter)
    if run.exists:
        files[CARD] = run_card(run, repo).content.encode()
    elif CARD not in files:
        raise AdapterError(f"{folder} has no {CARD}; write one, or push the run folder")
    if "tokenizer_config.json" not in files:
        notes.append("there is no tokenizer, so others have to take the base's")
    return Upload(repo, files, notes)


def push(upload: Upload, *, private: bool = True, api: HfApi | None = None) -> str:
    """Create the repository if need be and upload in one commit; returns the commit's address.

    Raises AdapterError without a token, without a network, and when the hub refuses.
    """
    token = get_token()
    if token is None:
        raise AdapterError("no hub token: log in with `hf auth login`, or set HF_TOKEN")
    api = api or HfApi(token=token)
    operations = [
        CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
        for name, source in upload.files.items()
    ]
    try:
        api.create_repo(upload.repo, private=private, exist_ok=True)
        commit = api.create_commit(
            upload.repo, operations, commit_message="Upload a LoRA adapter with its card"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise AdapterError(
            f"the hub refused {upload.repo} ({status}): "
            + ("the token may not write there" if status in (401, 403) else "try again later")
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise AdapterError(
            f"cannot reach the hub ({type(error).__name__}); check the network. Nothing, or an "
            f"empty repository, is at {upload.repo}"
        ) from error
    except ValueError as error:  # what the hub says of the card's metadata
        raise AdapterError(
            f"the hub refused {CARD}: {' '.join(str(error).split())}. Mend it and push again; an "
            f"empty repository is at {upload.repo}"
        ) from error
    return str(commit.commit_url)


def _check_base(base: BaseSource) -> list[str]:
    """Notes on a base that others can load; AdapterError for one they cannot."""
    if base.id in EMBEDDED_PATHS:
        return ["its base ships with the kit, so others need the kit to load it"]
    if not base.is_on_hub:
        raise AdapterError(
            f"the adapter's base is {base.id}, a folder of this machine; write the hub id of the "
            "same model into base_model_name_or_path of adapter_config.json"
        )
    if base.revision is None:
        raise AdapterError(
            f"the adapter names no revision of its base {base.id}; write the commit it was trained "
            "on into revision of adapter_config.json"
        )
    return [] if base.is_pinned else [f"revision {base.revision} of its base may move on"]
