"""The app's options, the folders it keeps to, and the adapters it offers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kit.app.library import roots as roots_module
from kit.app.library.adapters import advice, default_pair, find, read_choice
from kit.app.library.roots import OutsideRoots, adapter_source, confine
from kit.app.options import AppOptions
from kit.cli import main
from kit.config import SYSTEM_PROMPT, ModelConfig
from kit.errors import AdapterError, ConfigError

SETTINGS = {
    "peft_type": "LORA",
    "base_model_name_or_path": "owner/base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}


def save_adapter(folder, changed=None, **changes):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | changes))
    weights = folder / "adapter_model.safetensors"
    save_file({"q_proj.lora_A.weight": torch.ones(2, 3)}, weights)
    if changed is not None:
        os.utime(weights, (changed, changed))
    return str(folder)


def save_run(folder, region="pspo", base="owner/base", changed=None, **sections):
    """A finished run; `sections` are merged into its configuration."""
    config = {
        "model": {"id": base},
        "data": {"name": "gsm8k"},
        "objective": {"trust_region": {"name": region}},
    }
    save_adapter(folder / "adapter", changed, base_model_name_or_path=base)
    (folder / "config.yaml").write_text(yaml.safe_dump(config | sections))
    (folder / "run.json").write_text('{"status": "finished"}')
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with runs/ and, beside it, a secret adapter."""
    inside = tmp_path / "inside"
    (inside / "runs").mkdir(parents=True)
    save_adapter(tmp_path / "secret" / "adapter")
    monkeypatch.chdir(inside)
    return inside


def labels(catalogue):
    return [choice.label for choice in catalogue.choices]


# --- options --------------------------------------------------------------------------------------


def parse(*arguments):
    """What `kit app` starts the page with."""
    started = []
    with pytest.MonkeyPatch.context() as patch:
        page = SimpleNamespace(launch=started.append)
        patch.setitem(sys.modules, "kit.app.page", page)
        assert main(["app", "--verbose", *arguments]) == 0
    return started[0]


def test_without_arguments_the_options_are_the_defaults():
    assert parse() == AppOptions()


def test_a_folder_of_runs_that_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-runs").mkdir()
    assert parse("--runs", "demo-run").runs == Path("demo-run")
    said = "There is no folder demo-run (--runs) yet, did you mean 'demo-runs'?"
    assert said in capsys.readouterr().out
    parse("--runs", "elsewhere")
    assert "--runs) yet: nothing of yours is shown until there is" in capsys.readouterr().out
    parse("--runs", "demo-runs")
    assert "There is no folder" not in capsys.readouterr().out


def test_every_option_is_read_from_the_command_line(tmp_path):
    assert parse(
        *("--base", "owner/base", "--adapters", "a", "b", "--runs", str(tmp_path / "r")),
        *("--adapters-root", str(tmp_path), "--data-dir", "data", "--allow-hub", "--cpu"),
        *("--port", "80", "--host", "0.0.0.0", "--share", "--auth", "me:pa:ss", "--adapters", "c"),
    ) == AppOptions(
        runs=tmp_path / "r",
        adapters=("a", "b", "c"),
        base="owner/base",
        adapters_root=tmp_path,
        data_dir="data",
        allow_hub=True,
        host="0.0.0.0",
        port=80,
        share=True,
        auth=("me", "pa:ss"),
        cpu=True,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"share": True},
        {"host": "0.0.0.0"},
        {"host": ""},  # all addresses
        {"host": "localhost.example.org"},
        {"host": "127.0.0.1.example.org"},
    ],
)
def test_what_others_can_reach_needs_a_password(given):
    with pytest.raises(ConfigError, match="add --auth USER and a password in KIT_APP"):
        AppOptions(**given)
    assert AppOptions(**given, auth=("me", "secret"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9"])
def test_this_computer_alone_needs_none(host):
    assert AppOptions(host=host).auth is None


@pytest.mark.parametrize("host", ["::", "::1"])
def test_ipv6_is_refused_before_gradio_fails_with_it(host):
    with pytest.raises(ConfigError, match=rf"such as 127\.0\.0\.1, got {host}: Gradio"):
        AppOptions(host=host, auth=("me", "secret"))


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(ConfigError, match=f"from 1 to 65535, got {port}"):
        AppOptions(port=port)


@pytest.mark.parametrize("text", [":", "me:", ":secret"])
def test_a_password_without_user_or_the_reverse_is_refused_unseen(text):
    with pytest.raises(ConfigError, match="--auth must be USER or USER:PASSWORD") as caught:
        parse("--auth", text)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="is empty"):
        AppOptions(auth=("me", ""))


def test_the_password_need_not_stand_on_the_command_line(tmp_path, monkeypatch):
    file = tmp_path / "password"
    for content in (b"hun:ter2", b"hun:ter2\n", b"hun:ter2\r\n"):
        file.write_bytes(content)
        assert parse("--auth", "me", "--password-file", str(file)).auth == ("me", "hun:ter2")
    assert parse("--password-file", str(file)).auth == ("kit", "hun:ter2")
    with pytest.raises(ConfigError, match=r"--auth me needs a password.* KIT_APP_PASSWORD or"):
        parse("--auth", "me")
    monkeypatch.setenv("KIT_APP_PASSWORD", "from:there")
    assert parse().auth == ("kit", "from:there")
    assert parse("--auth", "me", "--host", "0.0.0.0").auth == ("me", "from:there")
    assert parse("--auth", "me:here").auth == ("me", "here")
    assert parse("--password-file", str(file)).auth == ("kit", "hun:ter2")
    monkeypatch.setenv("KIT_APP_PASSWORD", "")  # a secret that was not there opens nothing
    with pytest.raises(ConfigError, match="KIT_APP_PASSWORD is empty"):
        parse()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have one line with the password"),
        (b"\n", "must have one line with the password"),
        (b"secret\nsecret\n", "must have one line with the password"),
        (b"secret\xff", "it is not UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_a_file_without_one_password_is_refused_unseen(tmp_path, content, message):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        parse("--password-file", str(file))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="has a password already"):
        parse("--auth", "me:secret", "--password-file", str(file))


def test_the_password_is_not_printed_with_the_options():
    assert "hunter2" not in repr(AppOptions(auth=("me", "hunter2")))


def test_folders_that_are_none_are_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="--runs must be a folder"):
        AppOptions(runs=file)
    for wrong in (file, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="--adapters-root must be a folder"):
            AppOptions(adapters_root=wrong)


def test_roots_are_the_real_folders(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    options = AppOptions(runs=tmp_path / "link", adapters_root=tmp_path)
    assert options.roots == (tmp_path / "real", tmp_path)
    assert options.votes == tmp_path / "link" / "votes.jsonl"


def test_options_folders_and_catalogue_import_no_torch():
    modules = "kit.app.options, kit.app.library.adapters"  # which imports the folders' module
    code = f"import sys, {modules}; print({{'torch', 'gradio'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# --- confinement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "below"),
    [
        ("runs/a", "a"),
        ("runs", ""),
        ("./runs/a/../b", "b"),
        ("../inside/runs/a", "a"),  # out and in again
        ("runs/．．/a", "．．/a"),  # noqa: RUF001 (fullwidth dots are letters of a name)
        ("runs/%2e%2e/a", "%2e%2e/a"),
        ("runs/..\\a", "..\\a"),
        ("runs/..／..", "..／.."),  # noqa: RUF001 (a fullwidth slash)
        ("runs/... /a", "... /a"),
    ],
)
def test_a_path_within_the_roots_is_taken_literally(here, text, below):
    assert confine(text, [here / "runs"]) == here / "runs" / below
    absolute = str(here / text)
    assert confine(absolute, [here / "runs"]) == here / "runs" / below


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "runs/..",
        "runs/../../secret",
        "runs/a/b/../../../../secret/adapter",
        "../secret/adapter",
        "runs/link/adapter",
        "runs/link/../runs/a/../../../secret",
        "runs/loop/../../secret",
        "runsbeside/a",
        "runs/a\0",
        "runs/\ud800",
        "~",
        "~/runs",
        "~root/runs",
        "file:///etc/passwd",
        "https://example.org/runs/a",
        "C:\\runs\\a",
        "c:runs",
        "\\\\server\\share",
        "runs/" + "a" * 256,  # longer than a name can be
        "runs/" + "a/" * 600,
        "．．/secret",  # noqa: RUF001
        "%2e%2e/secret",
    ],
)
def test_a_path_out_of_the_roots_is_refused(here, text):
    (here / "runs" / "link").symlink_to(here.parent / "secret")
    (here / "runs" / "loop").symlink_to(here / "runs" / "loop")
    with pytest.raises(OutsideRoots, match="--adapters-root FOLDER") as caught:
        confine(text, [here / "runs"])
    assert str(here / "runs") in str(caught.value)


@pytest.mark.parametrize(
    "text", ["~", "~/runs", "~root/a", "file:///a", "https://b/a", "C:\\a", "c:a", "\\\\server\\a"]
)
def test_forms_with_other_meanings_are_refused_though_they_could_be_names(here, text):
    with pytest.raises(OutsideRoots):
        confine(text, [here])


def test_a_refusal_does_not_tell_whether_anything_is_there(here):
    def refusal(name):
        with pytest.raises(OutsideRoots) as caught:
            confine(f"../{name}", [here / "runs"])
        return str(caught.value).replace(name, "NAME")

    assert refusal("secret") == refusal("absent")


def test_a_folder_outside_is_not_even_passed_through(here, monkeypatch):
    # `door` leads elsewhere: were it followed, the path would end outside, and its kind be known
    (here.parent / "door").symlink_to("/")
    assert confine("../door/../inside/runs/a", [here / "runs"]) == here / "runs" / "a"


def test_any_of_several_roots_will_do(here):
    other = here.parent / "secret"
    assert confine(str(other / "adapter"), [here / "runs", other]) == other / "adapter"


# --- what a name in the page loads ----------------------------------------------------------------


def test_runs_and_adapter_folders_are_loaded_from_the_roots(here):
    save_run(here / "runs" / "a")
    folder = str(here / "runs" / "a" / "adapter")
    assert adapter_source(" runs/a ", AppOptions()) == folder
    assert adapter_source("runs/a/adapter", AppOptions()) == folder
    assert adapter_source(str(here / "runs" / "a"), AppOptions()) == folder
    with pytest.raises(AdapterError, match="no adapter at"):
        adapter_source("runs/b", AppOptions())


def test_a_second_root_and_what_the_command_line_names_are_allowed(here):
    secret = "../secret/adapter"
    with pytest.raises(OutsideRoots):
        adapter_source(secret, AppOptions())
    found = str(here.parent / "secret" / "adapter")
    assert adapter_source(secret, AppOptions(adapters_root=here.parent / "secret")) == found
    assert adapter_source(secret, AppOptions(adapters=(secret,))) == found


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_are_links_out_are_refused_but_not_on_the_command_line(here, name):
    folder = Path(save_adapter(here / "runs" / "a"))
    (folder / name).unlink()
    (folder / name).symlink_to(here.parent / "secret" / "adapter" / name)
    with pytest.raises(OutsideRoots, match=name):
        adapter_source("runs/a", AppOptions())
    assert adapter_source("runs/a", AppOptions(adapters=("runs/a",))) == str(folder)


def test_a_runs_adapter_that_is_a_link_out_is_refused(here):
    (here / "runs" / "a").mkdir()
    (here / "runs" / "a" / "config.yaml").touch()
    (here / "runs" / "a" / "adapter").symlink_to(here.parent / "secret" / "adapter")
    with pytest.raises(OutsideRoots):
        adapter_source("runs/a", AppOptions())


def test_a_runs_configuration_that_is_a_link_out_is_not_read(here):
    run = Path(save_run(here / "runs" / "a"))
    (run / "config.yaml").rename(here.parent / "secret" / "config.yaml")
    (run / "config.yaml").symlink_to(here.parent / "secret" / "config.yaml")
    ((label, reason),) = find(AppOptions()).unusable
    assert label == "a" and "is not in a folder this app reads" in reason


def test_pickled_weights_are_refused(here):
    folder = Path(save_adapter(here / "runs" / "a"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled weights are refused"):
        adapter_source("runs/a", AppOptions())
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    torch.save({"q_proj.lora_A.weight": torch.ones(2, 3)}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="cannot read the adapter"):
        adapter_source("runs/a", AppOptions())


def test_hub_ids_need_permission(here, monkeypatch):
    asked = []

    def snapshot(hub_id, allow_patterns):
        asked.append((hub_id, sorted(allow_patterns)))
        return str(here.parent / "secret" / "adapter")

    monkeypatch.setattr(roots_module, "snapshot_download", snapshot)
    with pytest.raises(OutsideRoots, match="need --allow-hub"):
        adapter_source("owner/name", AppOptions())
    assert asked == []
    found = adapter_source("owner/name", AppOptions(allow_hub=True))
    assert found == str(here.parent / "secret" / "adapter")
    assert asked == [("owner/name", ["adapter_config.json", "adapter_model.safetensors"])]


def test_a_hub_id_never_means_a_folder_outside_the_roots(here, monkeypatch):
    save_adapter(here / "owner" / "name")

    def snapshot(hub_id, allow_patterns):
        raise OSError(f"no {hub_id} there\nand more")

    monkeypatch.setattr(roots_module, "snapshot_download", snapshot)
    with pytest.raises(AdapterError, match=r"owner/name from the hub: no owner/name there$"):
        adapter_source("owner/name", AppOptions(allow_hub=True))


@pytest.mark.parametrize(
    "text", ["../secret", "a/b/c", "name", "owner/..", "a--b/c", "owner/name@v"]
)
def test_what_has_not_the_form_of_a_hub_id_is_a_path(here, text):
    with pytest.raises(OutsideRoots) as caught:
        adapter_source(text, AppOptions(allow_hub=True))
    assert "--allow-hub" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bias": "all"}, "bias='all'"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": ["olora"]}, "init_lora_weights"),
    ],
)
def test_an_adapter_that_changes_the_shared_base_is_refused(here, changes, reason):
    save_adapter(here / "runs" / "a", **changes)
    with pytest.raises(AdapterError, match="changes the base model itself") as caught:
        adapter_source("runs/a", AppOptions())
    assert reason in str(caught.value)


# --- the catalogue --------------------------------------------------------------------------------


def test_without_adapters_there_is_the_embedded_base_and_advice(here):
    catalogue = find(AppOptions(runs=here / "missing"))
    assert (catalogue.model.id, labels(catalogue), catalogue.unusable) == ("embedded", ["base"], ())
    assert [choice.adapter for choice in default_pair(catalogue)] == [None, None]
    assert "kit demo" in advice(catalogue)


def test_a_run_says_what_it_is(here):
    prompt = "Think."
    save_run(
        here / "runs" / "study" / "clip" / "seed-0",
        "clip",
        model={"id": "owner/base", "quantization": "int8", "adapter": "x", "revision": "abc"},
        data={"name": "svamp", "system_prompt": prompt},
    )
    save_adapter(here / "runs" / "plain")
    catalogue = find(AppOptions())
    base, plain, run = catalogue.choices
    assert (run.label, run.base, run.system_prompt, run.data, run.run, run.region) == (
        *("study/clip/seed-0", "owner/base", prompt, "svamp"),
        *("runs/study/clip/seed-0", "clip"),
    )
    assert run.adapter == str(here / "runs" / "study" / "clip" / "seed-0" / "adapter")
    assert (plain.label, plain.system_prompt, plain.data, plain.run, plain.region) == (
        *("plain", SYSTEM_PROMPT),
        *(None, None, None),
    )
    assert (base.label, base.adapter, base.system_prompt) == ("base", None, prompt)
    # the base as the run had it, but without the adapter the run began with
    model = catalogue.model
    assert (model.quantization, model.revision, model.adapter) == ("int8", "abc", None)
    assert advice(catalogue) is None


def test_supervised_runs_have_no_trust_region(here):
    save_run(here / "runs" / "a", method="sft")
    assert find(AppOptions()).choices[1].region is None


def test_checkpoints_hidden_folders_and_links_are_not_searched(here):
    save_run(here / "runs" / "a")
    for skipped in ("checkpoints/step-1/adapter", ".cache/b", "eval/c"):
        save_adapter(here / "runs" / "group" / skipped)
    save_adapter(here / "runs" / "a" / "checkpoints" / "step-1" / "adapter")
    (here / "runs" / "out").symlink_to(here.parent / "secret")
    (here / "runs" / "again").symlink_to(here / "runs")
    catalogue = find(AppOptions())
    assert labels(catalogue) == ["base", "a"]
    ((label, reason),) = catalogue.unusable
    assert label == "out" and "--adapters-root" in reason


def test_the_search_has_an_end_in_depth(here):
    save_adapter(here / "runs" / "/".join("123456"))
    save_adapter(here / "runs" / "/".join("abcdefg"))
    assert labels(find(AppOptions())) == ["base", "1/2/3/4/5/6"]


def test_a_run_folder_can_itself_be_the_root(here):
    save_run(here / "runs" / "a")
    run = find(AppOptions(runs=Path("runs/a"))).choices[1]
    assert (run.label, run.run) == ("a", "runs/a")


def test_labels_are_unique(here):
    save_run(here / "runs" / "a")
    save_run(here / "runs" / "base")
    save_adapter(here / "other" / "a")
    save_adapter(here / "other" / "b")
    catalogue = find(AppOptions(adapters_root=here / "other"))
    assert sorted(labels(catalogue)) == sorted(
        [
            "base",
            str(here / "runs" / "base" / "adapter"),
            str(here / "runs" / "a" / "adapter"),
            str(here / "other" / "a"),
            "b",
        ]
    )


def test_an_adapter_that_is_reached_twice_is_offered_once(here):
    save_run(here / "runs" / "a")
    catalogue = find(
        AppOptions(
            adapters=("runs/a", "runs/a/", str(here / "runs" / "a")), adapters_root=here / "runs"
        )
    )
    assert len(catalogue.choices) == 2


def test_names_that_are_not_text_can_still_be_sent_to_the_page(here):
    save_adapter(here / "runs" / "a\udcff\nb")
    ((label, reason),) = find(AppOptions()).unusable
    assert label == "a? b" and "not valid UTF-8" in reason
    assert reason.encode("utf-8")


# --- which base -----------------------------------------------------------------------------------


def test_the_base_is_of_the_newest_run_that_is_not_alone_on_it(here):
    save_run(here / "runs" / "old-1", base="owner/old", changed=100)
    save_run(here / "runs" / "old-2", base="owner/old", changed=200)
    save_run(here / "runs" / "new-1", base="owner/new", changed=300)
    catalogue = find(AppOptions())
    assert (catalogue.model.id, labels(catalogue)) == ("owner/old", ["base", "old-1", "old-2"])
    ((label, reason),) = catalogue.unusable
    assert label == "new-1"
    assert "trained on owner/new" in reason and "--base owner/new" in reason
    save_run(here / "runs" / "new-2", base="owner/new", changed=50)
    assert find(AppOptions()).model.id == "owner/new"


def test_a_base_that_is_named_decides(here):
    save_run(here / "runs" / "a", model={"id": "owner/base", "quantization": "none"})
    save_run(here / "runs" / "b", base="owner/other", changed=9e9)
    catalogue = find(AppOptions(base="owner/base"))
    assert (catalogue.model.quantization, labels(catalogue)) == ("none", ["base", "a"])
    alone = find(AppOptions(base="owner/third"))
    assert (alone.model.id, labels(alone), len(alone.unusable)) == ("owner/third", ["base"], 2)


def test_adapters_that_are_named_decide_and_must_fit(here):
    for name, base in (("a", "owner/base"), ("b", "owner/other"), ("c", "owner/other")):
        save_run(here / "runs" / name, base=base)
    catalogue = find(AppOptions(adapters=("runs/a", "../secret/adapter")))
    assert labels(catalogue) == ["base", "runs/a", "../secret/adapter"]
    with pytest.raises(ConfigError, match="--adapters runs/a does not fit: trained on owner/base"):
        find(AppOptions(adapters=("runs/a",), base="owner/other"))
    with pytest.raises(AdapterError, match=r"no adapter at \./runs/typo"):
        find(AppOptions(adapters=("./runs/typo",)))


def test_a_named_run_without_adapter_is_an_error(here):
    (here / "runs" / "a").mkdir()
    (here / "runs" / "a" / "config.yaml").touch()
    with pytest.raises(AdapterError, match="no adapter yet"):
        find(AppOptions(adapters=("runs/a",)))


def test_another_precision_or_revision_of_the_base_is_another_base(here):
    save_run(here / "runs" / "a", model={"id": "owner/base", "revision": "v1"}, changed=300)
    save_run(here / "runs" / "b", model={"id": "owner/base", "revision": "v2"}, changed=200)
    save_run(here / "runs" / "c", model={"id": "owner/base", "quantization": "int8"}, changed=100)
    save_adapter(here / "runs" / "plain")  # says nothing of either
    catalogue = find(AppOptions())
    assert labels(catalogue) == ["base", "a", "plain"]
    assert catalogue.unusable == (
        ("b", "trained on revision v2 of the base, not v1"),
        ("c", "trained on the base in int8, it is in nf4 here"),
    )


def test_the_revision_is_that_of_any_adapter_on_the_base(here):
    save_run(here / "runs" / "a", changed=300)
    save_adapter(here / "runs" / "b", changed=200, revision="v1")
    assert find(AppOptions()).model.revision == "v1"


def test_a_base_folder_that_is_gone_is_not_chosen(here):
    save_run(here / "runs" / "a")
    save_run(here / "runs" / "b", base=str(here / "gone"), changed=9e9)
    catalogue = find(AppOptions())
    assert labels(catalogue) == ["base", "a"]
    assert "which is not there" in dict(catalogue.unusable)["b"]


# --- what is typed -------------------------------------------------------------------------------


def test_a_run_that_is_typed_is_the_run_that_a_new_search_would_list(here):
    save_run(here / "runs" / "first")
    options = AppOptions(runs=here / "runs")
    model = find(options).model
    data = {"name": "svamp", "system_prompt": "Think."}
    typed = save_run(here / "runs" / "late", "clip", data=data)
    listed = find(options).choices[2]
    assert (listed.label, listed.system_prompt, listed.region) == ("late", "Think.", "clip")
    assert read_choice(f" {typed} ", options, model) == replace(listed, label=f" {typed} ")
    # outside its run an adapter has no settings of training, as when it is named or listed so
    adapter = read_choice("runs/late/adapter", options, model)
    assert (adapter.adapter, adapter.system_prompt, adapter.run) == (
        *(listed.adapter, SYSTEM_PROMPT),
        None,
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"id": "owner/other"}, "trained on owner/other, the base in memory is owner/base"),
        ({"id": "owner/base", "quantization": "int8"}, "trained on the base in int8, it is in nf4"),
        ({"id": "owner/base", "revision": "v2"}, "trained on revision v2 of the base, not v1"),
    ],
)
def test_a_run_of_another_base_cannot_be_typed(here, model, reason):
    save_run(here / "runs" / "first", model={"id": "owner/base", "revision": "v1"})
    base = find(AppOptions()).model
    typed = save_run(here / "runs" / "late", base=model["id"], model=model)
    with pytest.raises(AdapterError, match=f"late does not fit: {reason}"):
        read_choice(typed, AppOptions(), base)


def test_a_run_that_is_typed_before_it_has_ended_says_how_to_go_on(here):
    (here / "runs" / "late").mkdir()
    (here / "runs" / "late" / "config.yaml").touch()
    with pytest.raises(AdapterError, match="no adapter yet"):
        read_choice("runs/late", AppOptions(), ModelConfig(id="owner/base"))
    with pytest.raises(OutsideRoots):
        read_choice("../secret/adapter", AppOptions(), ModelConfig(id="owner/base"))


# --- the two sides to begin with ------------------------------------------------------------------


def pair(options):
    return [choice.label for choice in default_pair(find(options))]


def test_the_demos_clipped_and_smoothed_arms_come_first(here):
    for region in ("noclip", "clip", "pspo"):
        save_run(here / "runs" / "demo" / region, region)
    assert pair(AppOptions()) == ["demo/clip", "demo/pspo"]


def test_arms_are_of_one_comparison_and_seed(here):
    save_run(here / "runs" / "first" / "x-clip" / "seed-1", "clip")
    for arm, region in (("x-clip", "clip"), ("x-pspo-long", "pspo"), ("x-pspo", "pspo")):
        for seed in ("seed-0", "seed-1"):
            save_run(here / "runs" / "second" / arm / seed, region)
    assert pair(AppOptions()) == ["second/x-clip/seed-0", "second/x-pspo/seed-0"]


def test_arms_of_other_problems_are_no_pair(here):
    save_run(here / "runs" / "b-clip", "clip")
    save_run(here / "runs" / "b-pspo", "pspo", data={"name": "svamp"})
    assert pair(AppOptions()) == ["base", "b-clip"]


def test_adapters_that_are_named_are_the_pair(here):
    for region in ("clip", "pspo", "sapo"):
        save_run(here / "runs" / region, region)
    assert pair(AppOptions(adapters=("runs/sapo",))) == ["base", "runs/sapo"]
    assert pair(AppOptions(adapters=("runs/sapo", "runs/clip"))) == ["runs/sapo", "runs/clip"]


# --- folders that cannot be used ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter/adapter_config.json", b"\xff\x00garbage", "is not valid JSON"),
        ("adapter/adapter_config.json", b'{"peft_type": "LO', "is not valid JSON"),
        ("adapter/adapter_config.json", b"[" * 100_000, "nested too deeply"),
        ("adapter/adapter_config.json", b"[1, 2]", "only LORA works"),
        ("adapter/adapter_config.json", b"{}", "only LORA works"),
        ("adapter/adapter_config.json", b'{"peft_type": "LORA"}', "has r=None, which must be"),
        ("adapter/adapter_config.json", b'{"peft_type": "LORA", "r": [2]}', "has r=[2], which"),
        ("adapter/adapter_config.json", b'{"peft_type": "LORA", "r": 2}', "names no base model"),
        ("adapter/adapter_config.json", b" " * (1 << 20) + b" ", "is larger than 1048576 bytes"),
        ("adapter/adapter_model.safetensors", b"", "cannot read the adapter"),
        ("adapter/adapter_model.safetensors", b"\x10" + b"\0" * 7 + b"{", "cannot read"),
        ("adapter/adapter_model.safetensors", b"\xff" * 64, "cannot read the adapter"),
        ("config.yaml", b"\xff\xfe\x00\x01", "is not valid YAML"),
        ("config.yaml", b"", "cannot use"),
        ("config.yaml", b"- 1", "cannot use"),
        ("config.yaml", b"model: {id: a}", "data"),
        ("config.yaml", b"a: 2024-99-99", "is not valid YAML"),
        ("config.yaml", b"!!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("config.yaml", b"a: " + b"[" * 400_000 + b"]" * 400_000, "too nested"),
        ("config.yaml", b"a: &a {x: 1}\nb: {<<: [*a, *a]}", "aliases"),
        ("config.yaml", b"#" * (1 << 20) + b"#", "is larger than 1048576 bytes"),
    ],
)
def test_a_damaged_folder_is_listed_with_its_reason_and_the_rest_is_offered(
    here, name, content, reason
):
    save_run(here / "runs" / "bad")
    save_run(here / "runs" / "good")
    (here / "runs" / "bad" / name).write_bytes(content)
    catalogue = find(AppOptions())
    assert labels(catalogue) == ["base", "good"]
    ((label, text),) = catalogue.unusable
    assert label == "bad" and reason in text
    assert "\n" not in text and len(text) <= 400


@pytest.mark.parametrize("changes", [{"base_model_name_or_path": ["x"]}, {"revision": {"a": 1}}])
def test_names_of_a_base_that_are_no_text_are_unusable(here, changes):
    save_adapter(here / "runs" / "a", **changes)
    assert [label for label, _ in find(AppOptions()).unusable] == ["a"]


def test_a_weight_without_dimensions_is_unusable(here):
    folder = Path(save_adapter(here / "runs" / "a"))
    save_file({"x.lora_A.weight": torch.tensor(1.0)}, folder / "adapter_model.safetensors")
    assert "has the shape [], not two" in dict(find(AppOptions()).unusable)["a"]


@pytest.mark.parametrize(
    ("record", "status"),
    [('{"status": "running"}', "running"), ("{}", "unknown"), ('{"st', "unreadable")],
)
def test_a_run_without_adapter_says_how_to_go_on(here, record, status):
    run = here / "runs" / "a"
    run.mkdir()
    (run / "config.yaml").touch()
    (run / "run.json").write_text(record)
    assert find(AppOptions()).unusable == (
        ("a", f"no adapter yet (status: {status}); go on with: kit train runs/a --resume"),
    )


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_is_unusable(here, missing):
    (Path(save_adapter(here / "runs" / "a")) / missing).unlink()
    assert f"{missing} was not found" in dict(find(AppOptions()).unusable)["a"]


def test_a_folder_that_cannot_be_listed_is_named(here, monkeypatch):
    save_adapter(here / "runs" / "good")
    (here / "runs" / "locked").mkdir()
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    catalogue = find(AppOptions())
    assert labels(catalogue) == ["base", "good"]
    assert catalogue.unusable == (("locked", "cannot be searched: Permission denied"),)


def test_nothing_is_named_twice_when_roots_are_within_each_other(here):
    save_run(here / "runs" / "group" / "a")
    options = AppOptions()
    nested = replace(options, adapters_root=here / "runs" / "group")
    assert find(nested).choices == find(options).choices
