"""The base an adapter names: a hub id, a folder or the embedded one; finds files, loads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from kit.config import ModelConfig
from kit.errors import AdapterError, ModelError, first_line
from kit.model.adapter_files import CONFIG, read_adapter_config

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base model by its name."""

    id: str
    revision: str | None = None  # of the hub repository; None: its default branch

    @property
    def source(self) -> str:
        """What `from_pretrained` takes."""
        return ModelConfig(id=self.id).source

    @property
    def is_on_hub(self) -> bool:
        """Whether others can load it by its name; folders are looked at first, as they do."""
        return not (self.source.startswith((".", "/", "~")) or Path(self.source).is_dir())

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which cannot move on as a branch does."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def file(self, name: str) -> Path | None:
        """A file of the base, downloaded if need be; None where there is none of that name.

        Raises ModelError when the hub refuses it.
        """
        if not self.is_on_hub:
            path = Path(self.source).expanduser() / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.id, name, revision=self.revision))
        except EntryNotFoundError:  # offline: not among the files downloaded before
            return None
        except (OSError, HFValidationError) as error:
            reason = first_line(error)
            raise ModelError(
                f"cannot get {name} of the base model {self.id}: {reason} Check the id and (for "
                "gated models) your hub login"
            ) from error

    def license(self) -> dict[str, str]:
        """license, license_name and license_link as the base's own card has them; {}: unknown."""
        readme = self.file("README.md")
        if readme is None:
            return {}
        data = ModelCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        fields = ("license", "license_name", "license_link")
        return {field: data[field] for field in fields if data.get(field)}


def base_of(adapter: str) -> BaseSource:
    """The base that an adapter (folder or hub id) names; AdapterError when it names none."""
    settings = read_adapter_config(adapter)
    base_id = settings.get("base_model_name_or_path")
    if not base_id:
        raise AdapterError(
            f"the adapter {adapter} names no base model; write its hub id or folder into "
            f"base_model_name_or_path of {CONFIG}"
        )
    return BaseSource(base_id, settings.get("revision"))
