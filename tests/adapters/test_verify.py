"""Verification: what must pass does, and every fault turns its own line red."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.adapters import verify as module
from kit.adapters.locate import adapter_folder
from kit.adapters.probe import PROBE, Probe, read_probe
from kit.adapters.save import save_adapter
from kit.adapters.verify import Computed, verify
from kit.errors import AdapterError, ModelError
from kit.model.base_files import BaseSource, base_of
from tests.adapters import in_place

SETTINGS = {
    "dtype": "bfloat16",
    "device": "cpu",
    "processor": "one",
    "threads": 1,
    "versions": {"torch": "2"},
}
SAME = {key: SETTINGS[key] for key in ("device", "processor", "threads", "versions")}


def verdicts(checks) -> dict[str, bool]:
    return {check.name: check.passed for check in checks}


@pytest.fixture
def saved(policy, tmp_path) -> Path:
    """An adapter as training leaves it, with a card."""
    save_adapter(policy, tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text("# card\n")
    return tmp_path / "adapter"


@pytest.fixture
def here(monkeypatch):
    """What is verified is computed in this process."""
    monkeypatch.setattr(module, "subprocess", in_place)


# --- what is computed ----------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.slow
def test_a_saved_adapter_passes_exactly_in_a_fresh_process_without_the_kit(
    saved, tmp_path, monkeypatch
):
    decoy = tmp_path / "decoy" / "kit"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise SystemExit('the kit was imported')")
    monkeypatch.setenv("PYTHONPATH", str(decoy.parent))
    reports = []
    compute = module._compute

    def keeping(*args):
        reports.append(compute(*args))
        return reports[-1]

    monkeypatch.setattr(module, "_compute", keeping)
    checks = verify(str(saved))
    assert all(check.passed for check in checks), module.table(checks)
    assert len(checks) == 8
    (computed,) = reports
    assert computed.report["kit_modules"] == []
    stored = read_probe(saved)
    assert computed.adapter.gather(-1, stored.top).equal(stored.adapter)  # to the last bit
    assert computed.base.gather(-1, stored.top).equal(stored.base)
    assert "allowed: 0 " in next(c.detail for c in checks if c.name == "logits of the adapter")


@pytest.mark.smoke
def test_without_its_gpu_an_adapter_is_computed_in_float32_throughout(here, saved):
    """The 4-bit layers too: what was stored here, in float32, comes out to the last bit."""
    stored = read_probe(saved)
    quantization = stored.settings["quantization"] | {"bnb_4bit_compute_dtype": "float16"}
    settings = {"device": "cuda", "dtype": "float16", "quantization": quantization}
    computed = module._compute(
        saved, base_of(str(saved)), replace(stored, settings=stored.settings | settings)
    )
    assert computed.adapter.gather(-1, stored.top).equal(stored.adapter)


@pytest.mark.smoke
def test_weights_that_were_changed_after_saving(here, saved):
    path = saved / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    weights[name] += 0.01
    save_file(weights, path)
    assert verdicts(verify(str(saved))) == {
        "files": True,
        "hash": False,
        "revision of the base embedded": True,
        "loads with transformers and peft alone": True,
        "tokenizer and chat template": True,
        "logits of the base": True,
        "logits of the adapter": False,
        "differs from the base": True,
    }


@pytest.mark.smoke
def test_an_adapter_of_elsewhere_that_changes_nothing(here, saved):
    """No probe, no tokenizer of its own changes: it loads, but nothing can be compared."""
    (saved / PROBE).unlink()
    path = saved / "adapter_model.safetensors"
    save_file({k: v * ("lora_A" in k) for k, v in load_file(path).items()}, path)
    checks = verdicts(verify(str(saved)))
    assert checks["loads with transformers and peft alone"]
    failed = {name for name, passed in checks.items() if not passed}
    assert failed == {"hash", "logits", "differs from the base"}


@pytest.mark.smoke
def test_a_base_that_is_gone(here, saved, tmp_path):
    path = saved / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}
    path.write_text(json.dumps(settings))
    last = verify(str(saved))[-1]
    assert last.name == "loads with transformers and peft alone" and not last.passed
    assert "gone" in last.detail and "Error" in last.detail


@pytest.mark.smoke
def test_a_program_that_imports_the_kit_is_found_out(here, saved, tmp_path, monkeypatch):
    program = Path(module.fresh_process.__file__).read_text(encoding="utf-8")
    (tmp_path / "program.py").write_text(program.replace("import torch", "import kit, torch"))
    monkeypatch.setattr(module.fresh_process, "__file__", str(tmp_path / "program.py"))
    failed = [check for check in verify(str(saved)) if not check.passed]
    assert [check.detail for check in failed] == ["but imported kit"]


# --- what each line says -------------------------------------------------------------------------


def probe(adapter: float = 1.0, **settings) -> Probe:
    """One prompt, one position, the tokens 2 and 0 of three."""
    top = torch.tensor([[[2, 0]]])
    return Probe(
        SETTINGS | settings, [[5, 6]], top, torch.tensor([[[8.0, adapter]]]), torch.zeros(1, 1, 2)
    )


def compared(stored: Probe, adapter, base=(0.0, 9.0, 0.0), **report) -> dict[str, bool]:
    found = Computed(
        torch.tensor([[adapter]]), torch.tensor([[base]]), SAME | {"token_ids": [[5, 6]]} | report
    )
    return verdicts(module._comparisons(stored, found))


def test_the_same_machine_must_give_the_same_bits():
    assert all(compared(probe(), [1.0, 5.0, 8.0]).values())
    assert not compared(probe(), [1.0, 5.0, 8.0000005])["logits of the adapter"]
    assert not compared(probe(), [1.0, 5.0, 8.0], [1e-7, 9.0, 0.0])["logits of the base"]


@pytest.mark.parametrize("change", [{"threads": 2}, {"processor": "other"}, {"device": "cuda"}])
def test_elsewhere_the_precision_decides_what_is_allowed(change):
    """5 % of the largest stored logit, 8, in bfloat16: 0.4. In float32 0.1 %: 0.008."""
    assert compared(probe(), [1.39, 5.0, 8.0], **change)["logits of the adapter"]
    assert not compared(probe(), [1.41, 5.0, 8.0], **change)["logits of the adapter"]
    stored = probe(dtype="float32")
    assert compared(stored, [1.007, 5.0, 8.0], **change)["logits of the adapter"]
    assert not compared(stored, [1.009, 5.0, 8.0], **change)["logits of the adapter"]


def test_a_gpu_is_never_asked_for_the_same_bits():
    stored = probe(device="cuda")
    assert compared(stored, [1.3, 5.0, 8.0], device="cuda")["logits of the adapter"]


def test_numbers_that_are_not_finite_pass_nothing():
    checks = compared(probe(), [float("nan"), 5.0, 8.0], threads=2)
    assert not checks["logits of the adapter"] and not checks["differs from the base"]


def test_what_was_stored_of_another_vocabulary_passes_nothing():
    """The base may be another one, or the probe somebody's."""
    failed = {"logits of the base", "logits of the adapter"}
    for top in ([[[2, 3]]], [[[2, 0], [1, 0]]]):
        tokens = torch.tensor(top)
        stored = replace(probe(), top=tokens, adapter=tokens.float(), base=tokens.float())
        checks = compared(stored, [1.0, 5.0, 8.0])
        assert {name for name, passed in checks.items() if not passed} == failed


def test_another_template_makes_other_tokens():
    checks = compared(probe(), [1.0, 5.0, 8.0], token_ids=[[5, 7]])
    assert [name for name, passed in checks.items() if not passed] == [
        "tokenizer and chat template"
    ]


@pytest.mark.parametrize(
    ("base", "passed", "detail"),
    [
        (BaseSource("owner/base", "a" * 40), True, "a" * 40),
        (BaseSource("owner/base", "main"), False, "main can move on"),
        (BaseSource("owner/base"), False, "none is named"),
        (BaseSource("embedded"), True, "a folder"),
        (BaseSource("/nowhere/base"), True, "a folder"),
    ],
)
def test_a_base_is_pinned_by_a_commit(base, passed, detail):
    check = module._revision(base)
    assert check.passed == passed and detail in check.detail


@pytest.fixture
def plain(tmp_path) -> Path:
    """An adapter whose files look right; it fits no model."""
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": "owner/base",
        "r": 2,
        "target_modules": ["q_proj"],
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"q.lora_A.weight": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "README.md").write_text("# card\n")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


def test_files_that_are_missing_or_do_not_belong(plain):
    assert module._files(plain).passed
    for name in ("adapter_model.bin", "optimizer.pt"):
        (plain / name).write_bytes(b"\x80\x04.")
        assert f"{name} is pickled or foreign" in module._files(plain).detail
        (plain / name).unlink()
    for name in ("README.md", "tokenizer_config.json", "chat_template.jinja"):
        text = (plain / name).read_text()
        (plain / name).unlink()
        check = module._files(plain)
        assert not check.passed and "no " in check.detail
        (plain / name).write_text(text)
    (plain / "chat_template.jinja").unlink()
    (plain / "tokenizer_config.json").write_text('{"chat_template"')
    assert module._files(plain).detail == "tokenizer_config.json is not valid JSON"
    (plain / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert module._files(plain).passed  # an older way to store it
    settings = json.loads((plain / "adapter_config.json").read_text())
    settings["target_modules"] = "all-linear"
    (plain / "adapter_config.json").write_text(json.dumps(settings))
    assert "target_modules is 'all-linear'" in module._files(plain).detail


def test_pickled_weights_are_refused(plain):
    (plain / "adapter_model.safetensors").rename(plain / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled weights are refused"):
        verify(str(plain))


@pytest.mark.parametrize("content", [b"", b"not a tensor"])
def test_a_broken_probe(plain, content):
    (plain / PROBE).write_bytes(content)
    with pytest.raises(AdapterError, match=r"cannot read .*probe.safetensors.*save the adapter"):
        verify(str(plain))


def test_a_probe_of_another_kind(plain):
    save_file({"x": torch.ones(1)}, plain / PROBE, metadata={"settings": '{"questions": ["?"]}'})
    with pytest.raises(AdapterError, match=r"cannot read .*probe.safetensors"):
        read_probe(plain)


@pytest.mark.parametrize(
    "change",
    [
        {"top": torch.tensor([[[2, -1]]])},
        {"top": torch.tensor([[[2.0, 0.0]]])},
        {name: torch.zeros(1, 1, 0, dtype=torch.int64) for name in ("top", "adapter", "base")},
        {name: torch.zeros(1, dtype=torch.int64) for name in ("top", "adapter", "base")},
        {"settings": SETTINGS | {"dtype": "float64"}},
    ],
)
def test_a_probe_of_nothing_that_can_be_compared(plain, change):
    there = probe()
    given = {"settings": SETTINGS, "top": there.top, "adapter": there.adapter, "base": there.base}
    more = {"adapter_sha256": "0", "attention": "sdpa", "positions": 1, "quantization": None}

    def save(settings, **tensors) -> None:
        said = json.dumps(settings | more | {"questions": ["?"]})
        tensors["ids.0"] = torch.tensor([5, 6])
        save_file(tensors, plain / PROBE, metadata={"settings": said})

    save(**given)
    assert read_probe(plain).top.equal(there.top)
    save(**given | change)
    with pytest.raises(AdapterError, match=r"cannot read .*probe.safetensors"):
        read_probe(plain)


def test_the_reason_is_the_line_that_names_the_error():
    trace = "Traceback …\n  File x\nOSError: no such model\n\nhint: log in\n"
    assert module._reason(trace) == "OSError: no such model"
    assert module._reason("killed\n") == "killed" and module._reason("") == ""


# --- where adapters and bases are ----------------------------------------------------------------


def test_a_run_stands_for_its_adapter(plain, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    with pytest.raises(AdapterError, match=r"has no adapter yet \(status: not started\)"):
        adapter_folder(str(run))
    shutil.copytree(plain, run / "adapter", ignore=lambda *_: ["run"])
    assert adapter_folder(str(run)) == run / "adapter"
    assert adapter_folder(str(plain)) == plain
    with pytest.raises(AdapterError, match="nobody/nothing is in no folder"):
        adapter_folder("nobody/nothing")


def test_an_adapter_without_a_base(plain):
    settings = json.loads((plain / "adapter_config.json").read_text())
    assert base_of(str(plain)) == BaseSource("owner/base")
    del settings["base_model_name_or_path"]
    (plain / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match="names no base model"):
        base_of(str(plain))


def test_files_of_a_base(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    here = BaseSource(str(tmp_path))
    assert here.file("config.json") == tmp_path / "config.json"
    assert here.file("other.json") is None and not here.is_on_hub
    assert BaseSource("nobody/nothing").file("config.json") is None  # offline
    assert BaseSource("embedded").file("config.json").is_file()

    def refused(*args, **kwargs):
        raise OSError("gated: ask for access")

    monkeypatch.setattr("kit.model.base_files.hf_hub_download", refused)
    with pytest.raises(ModelError, match=r"cannot get config.json .*gated: ask for access"):
        BaseSource("nobody/nothing").file("config.json")


def test_the_licence_is_the_bases_own(tmp_path):
    here = BaseSource(str(tmp_path))
    assert here.license() == {}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: theirs\n---\n# x\n")
    assert here.license() == {"license": "other", "license_name": "theirs"}
