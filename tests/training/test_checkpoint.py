"""Folders appear whole or not at all, and an older one survives what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kit.adapters import save
from kit.adapters.probe import read_probe
from kit.adapters.save import save_adapter
from kit.errors import RunError
from kit.training.checkpoint import latest_checkpoint, new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "a" / "b") as partial:
        (partial / "file").write_text("new")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"
    assert names(tmp_path / "a") == ["b"]


def test_an_existing_folder_is_not_touched_unless_it_is_to_be_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("old")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "out"):
        raise AssertionError("not reached")
    assert names(tmp_path / "out") == ["mine"]
    with new_folder(tmp_path / "out", replace=True) as partial:
        (partial / "other").write_text("new")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["other"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_nothing_and_the_old_one(tmp_path, error):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("old")
    with pytest.raises(type(error)), new_folder(tmp_path / "out", replace=True) as partial:
        (partial / "half").write_text("…")
        raise error
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "mine").read_text() == "old"


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("old")
    rename = Path.rename

    def failing(self, target):
        if self.suffix == ".part":
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="busy"), new_folder(tmp_path / "out", replace=True):
        pass
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "mine").read_text() == "old"


def test_rests_of_a_killed_attempt_are_removed(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "half").write_text("…")
    with new_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("new")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["file"]


def test_an_unfinished_checkpoint_is_not_the_latest(tmp_path):
    for name in ("step-000002", "step-000003.part", "step-000003.old"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000002"


@pytest.mark.smoke
def test_a_saved_adapter_has_all_that_others_need(policy, base, tmp_path):
    save_adapter(policy, tmp_path / "adapter")
    assert names(tmp_path) == ["adapter"]
    assert names(tmp_path / "adapter") == [
        *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"),
        *("probe.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    template = (tmp_path / "adapter" / "chat_template.jinja").read_text()
    assert template == base.tokenizer.chat_template
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert isinstance(settings["target_modules"], list) and len(settings["target_modules"]) == 7


@pytest.mark.smoke
def test_an_arm_of_another_name_is_saved_the_same(policy, tmp_path):
    save_adapter(policy, tmp_path / "first")
    policy.model.load_adapter(str(tmp_path / "first"), adapter_name="arm1")
    policy.trained = "arm1"
    save_adapter(policy, tmp_path / "second")
    assert names(tmp_path / "first") == names(tmp_path / "second")
    first, second = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("first", "second")
    )
    assert first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)
    a, b = (read_probe(tmp_path / name) for name in ("first", "second"))
    assert a.adapter.equal(b.adapter) and a.settings == b.settings


@pytest.mark.smoke
def test_a_full_disk_leaves_the_previous_adapter(policy, tmp_path, monkeypatch):
    save_adapter(policy, tmp_path / "adapter")
    before = names(tmp_path / "adapter")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_probe", full)
    with pytest.raises(RunError, match=r"could not save .*adapter: .*No space left"):
        save_adapter(policy, tmp_path / "adapter")
    assert names(tmp_path) == ["adapter"] and names(tmp_path / "adapter") == before
