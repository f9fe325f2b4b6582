"""Pushing: what would go up, what must not, and no word of the token."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError

from kit.adapters import push as module
from kit.adapters.push import Upload, plan_push, push
from kit.errors import AdapterError
from tests.adapters.test_card import ADAPTER, REVISION, add_result, make_run

TOKEN = "hf_secretsecretsecretsecretsecret"


class Hub:
    """Answers as HfApi does, and remembers what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.repos: list[tuple] = []
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo, *, private, exist_ok):
        self.repos.append((repo, private, exist_ok))

    def create_commit(self, repo, operations, *, commit_message):
        if self.error:
            raise self.error
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo}/commit/1")


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setattr(module, "get_token", lambda: TOKEN)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def change(run, **settings) -> None:
    text = json.dumps(ADAPTER | settings)
    (run.adapter / "adapter_config.json").write_text(text)


def test_the_plan_lists_files_and_sizes_and_writes_nothing(run):
    add_result(run)
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    plan = plan_push(str(run.path), "me/mine")
    lines = str(plan).splitlines()
    assert lines[0] == "to https://huggingface.co/me/mine:"
    size = len(before[run.adapter / "adapter_model.safetensors"])
    assert f"{size:>14,}  adapter_model.safetensors" in lines
    assert lines[-1].startswith("note: there is no tokenizer")
    assert set(plan.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_a_runs_card_goes_up_with_the_results_of_now(run, token):
    (run.adapter / "README.md").write_text("old")
    add_result(run)
    hub = Hub()
    address = push(plan_push(str(run.path), "me/mine"), api=hub)
    assert address == "https://huggingface.co/me/mine/commit/1"
    assert hub.repos == [("me/mine", True, True)]  # private unless asked otherwise
    card = hub.files["README.md"].decode()
    assert "value: 12.5" in card and "# me/mine" in card
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    assert (run.adapter / "README.md").read_text() == "old"


def test_a_folders_card_goes_up_as_it_is(run, token):
    with pytest.raises(AdapterError, match=r"has no README.md; write one, or push the run"):
        plan_push(str(run.adapter), "me/mine")
    (run.adapter / "README.md").write_text("# by hand")
    hub = Hub()
    push(plan_push(str(run.adapter), "me/mine"), private=False, api=hub)
    assert hub.files["README.md"] == b"# by hand" and hub.repos == [("me/mine", False, True)]


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "adapter_model.bin", ".env", "train.jsonl", "readme.md", "notes/x.txt"]
)
def test_what_is_not_adapter_card_or_tokenizer_is_refused(run, name):
    path = run.adapter / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("secret")
    top = Path(name).parts[0]
    with pytest.raises(AdapterError, match=rf"not adapter, card or tokenizer: {top}; move it"):
        plan_push(str(run.path), "me/mine")


def test_links_are_refused_whatever_their_name(run, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (run.adapter / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError, match=r"not adapter, card or tokenizer: tokenizer.json"):
        plan_push(str(run.path), "me/mine")


def test_bases_others_cannot_load(run, tmp_path):
    change(run, base_model_name_or_path=str(tmp_path))
    with pytest.raises(AdapterError, match="a folder of this machine; write the hub id"):
        plan_push(str(run.path), "me/mine")
    change(run, revision=None)
    with pytest.raises(AdapterError, match=r"no revision of its base owner/base; write the commit"):
        plan_push(str(run.path), "me/mine")
    change(run, revision="main")
    assert "note: revision main of its base may move on" in str(plan_push(str(run.path), "me/m"))
    change(run, base_model_name_or_path="embedded")
    assert "note: its base ships with the kit" in str(plan_push(str(run.path), "me/mine"))
    change(run, revision=REVISION)
    assert "may move on" not in str(plan_push(str(run.path), "me/mine"))


@pytest.mark.parametrize("repo", ["a/b/c", "", "me/über", "--x", "me/.."])
def test_names_that_are_no_hub_ids(run, repo):
    with pytest.raises(AdapterError, match="is no hub id"):
        plan_push(str(run.path), repo)


def test_a_repository_without_an_owner_is_never_created(run):
    with pytest.raises(AdapterError, match="'mine' does not say whose it is; write OWNER/mine"):
        plan_push(str(run.path), "mine")


def test_things_that_are_not_here(run, tmp_path):
    with pytest.raises(AdapterError, match="is not a run folder or adapter folder here"):
        plan_push("owner/theirs", "me/mine")
    with pytest.raises(AdapterError, match="no adapter at"):
        plan_push(str(tmp_path), "me/mine")
    (run.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="pickled weights are refused"):
        plan_push(str(run.path), "me/mine")


def test_without_a_token_nothing_is_tried(run, monkeypatch):
    monkeypatch.setattr(module, "get_token", lambda: None)
    hub = Hub()
    with pytest.raises(AdapterError, match=r"no hub token: log in with `hf auth login`"):
        push(plan_push(str(run.path), "me/mine"), api=hub)
    assert hub.repos == []


def refused(status: int) -> HfHubHTTPError:
    request = httpx.Request("POST", "https://huggingface.co", headers={"authorization": TOKEN})
    return HfHubHTTPError(f"no: {TOKEN}", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refused(403), r"the hub refused me/mine \(403\): the token may not write there"),
        (refused(500), r"the hub refused me/mine \(500\): try again later"),
        (httpx.ConnectError(f"down {TOKEN}"), r"cannot reach the hub \(ConnectError\)"),
        (ConnectionError(f"offline {TOKEN}"), r"cannot reach the hub \(ConnectionError\)"),
        (ValueError("Invalid:\n- license"), "the hub refused README.md: Invalid: - license"),
    ],
)
def test_a_hub_that_fails_is_told_apart_without_the_token(token, error, message):
    with pytest.raises(AdapterError, match=message) as raised:
        push(Upload("me/mine", {"README.md": b"x"}, []), api=Hub(error))
    assert TOKEN not in str(raised.value)
