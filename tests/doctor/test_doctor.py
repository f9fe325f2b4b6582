"""`kit doctor` without a card: verdicts, what survives what, and a report that names nobody."""

from __future__ import annotations

import getpass
import json
import math
import platform
import re
from pathlib import Path

import pytest
import torch

import kit.doctor
from kit import packages
from kit.cards import Card
from kit.cli import main
from kit.config import EMBEDDED, ModelConfig
from kit.doctor import doctor, is_well, machine, private, summary
from kit.doctor.findings import Finding, judged, measured, not_measured
from kit.doctor.patient import Patient
from kit.doctor.stand_in import write_stand_in
from kit.doctor.step import one_step, step, tell_apart
from kit.doctor.versions import versions
from kit.errors import ConfigError, ModelError
from kit.model.base import load_base
from kit.model.shape import Shape
from kit.recipe import load_config

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
T4 = Card("Tesla T4", 15.0, 7.5, "470.82.01")


def verdicts(findings) -> dict[str, str]:
    return {finding.what: finding.verdict for finding in findings}


@pytest.fixture
def looks(monkeypatch):
    """What is looked at, to be filled by a test."""
    found: dict = {}
    monkeypatch.setattr(kit.doctor, "LOOKS", found)
    return found


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.slow
def test_without_a_card_the_rest_is_looked_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "read_cards", list)
    recipe = str(ROOT / "configs" / "qwen2.5-0.5b-instruct-pspo.yaml")
    assert main(["doctor", "--quick", "--config", recipe, "-o", str(tmp_path / "d")]) == 0
    record = json.loads((tmp_path / "d" / "doctor.json").read_text())
    found = {finding["what"]: finding for finding in record["findings"]}
    assert found["card"]["found"].startswith("there is no GPU here, so the versions and a step")
    assert found["one step of the embedded model"]["verdict"] == "as expected"
    assert found["one step of the embedded model"]["figures"]["update/grad_norm"] > 0
    assert found["sampler against trainer in it"]["verdict"] == "as expected"
    assert {finding["verdict"] for finding in record["findings"]} == {
        *("as expected", "measured", "not measured"),
    }
    page = (tmp_path / "d" / "doctor.md").read_text()
    assert page.count("\n## ") == 4  # summary, machine, versions, one step
    assert "ready to be attached to an issue" in capsys.readouterr().out
    for text in (page, json.dumps(record)):
        assert str(tmp_path) not in text and str(ROOT) not in text


@pytest.mark.parametrize(("verdict", "status"), [(True, 0), (False, 3)])
def test_the_exit_status_says_whether_all_is_as_expected(looks, tmp_path, verdict, status):
    looks["Part"] = (lambda patient: [judged("a", verdict, "1", "2"), not_measured("b", "why")],)
    assert main(["doctor", "-o", str(tmp_path)]) == status


def test_overrides_are_those_of_a_recipe(capsys, tmp_path, monkeypatch):
    assert main(["doctor", "lora.rank=4"]) == 1
    assert "lora.rank=4 changes a recipe: name it with --config" in capsys.readouterr().err
    assert main(["doctor", "--config", str(ROOT / "configs/smoke.yaml"), "lora.rnak=4"]) == 1
    assert "did you mean 'rank'?" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without a launcher"):
        doctor(None, tmp_path)


# --- what survives what --------------------------------------------------------------------------


def test_what_fails_is_a_line_and_the_rest_goes_on(looks, tmp_path):
    seen = []

    def half(patient):
        yield measured("first", "1", speed=math.nan)
        raise RuntimeError(f"no kernel in {tmp_path}/lib\nand more")

    def full(patient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        yield

    def last(patient):
        seen.append(json.loads((tmp_path / "doctor.json").read_text())["findings"])
        yield judged("third", True, "3", "3")

    looks.update({"Speed": (half, full), "Numbers": (last,)})
    found = doctor(None, tmp_path, quick=True)
    assert verdicts(found["Speed"]) == {"first": "measured", "speed": "not measured"}
    assert [finding.found for finding in found["Speed"][1:]] == [
        "RuntimeError: no kernel in <path>",
        "out of memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    ]
    assert [finding.verdict for finding in found["Speed"]][1] == "not as expected"
    assert verdicts(found["Numbers"]) == {"third": "as expected"}
    # what had been found was written before the last look
    assert [finding["what"] for finding in seen[0]] == ["first", "speed", "speed"]
    assert seen[0][0]["figures"] == {"speed": None}  # JSON has no NaN
    assert not is_well(found)
    assert summary(found) == "1 as expected, 1 measured, 1 not as expected, 1 not measured"


def test_when_the_time_is_over_the_rest_is_not_measured(looks, tmp_path, monkeypatch):
    monkeypatch.setattr(Patient, "seconds_left", -1.0)
    looks["Speed"] = (lambda patient: pytest.fail("it looked"),)
    found = doctor(None, tmp_path)
    assert found["Speed"] == [not_measured("speed", "the time was over")]


def test_a_folder_that_cannot_be_written_is_an_error(looks, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["doctor", "-o", str(tmp_path / "file" / "x")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot write ")


# --- what is private -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/ann/x y.json: no", "cannot read <path> y.json: no"),
        ("in '/tmp/a b/c', then", "in '<path> b/c', then"),
        ("~/models and C:\\Users\\ann\\x", "<path> and <path>"),
        ("token hf_abcdefghijkl!", "token <token>!"),
        ("key sk-abcdefghij0123", "key <token>"),
        ("Qwen/Qwen2.5-0.5B at 12 tokens/s, 1 / 2", "Qwen/Qwen2.5-0.5B at 12 tokens/s, 1 / 2"),
        ("no kernel image (sm_75)", "no kernel image (sm_75)"),
    ],
)
def test_paths_and_tokens_are_taken_out(text, shown):
    assert private.shown(text) == shown


def test_names_of_people_and_machines_are_taken_out(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ann-lee")
    monkeypatch.setattr(platform, "node", lambda: "anns-laptop")
    assert private.shown("ann-lee on anns-laptop, planned") == "<name> on <name>, planned"

    def nobody():
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert private.shown("anns-laptop") == "<name>"


def test_a_folder_is_named_as_no_more(tmp_path):
    assert private.model_name(str(tmp_path)) == "a folder"
    assert private.model_name("/nowhere/at/all") == "a folder"
    assert private.model_name("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


# --- versions and driver -------------------------------------------------------------------------


def test_versions_are_judged_by_what_is_accepted(monkeypatch):
    there = packages.installed()
    assert set(verdicts(versions(None)).values()) == {"as expected", "measured"}
    odd = {"torch": "99.0+cu126", "peft": "0.20.0", "pandas": "1.0"}
    there = {name: version for name, version in there.items() if name != "datasets"} | odd
    monkeypatch.setattr(packages, "installed", lambda: there)
    found = {finding.what: finding for finding in versions(None)}
    assert found["torch"].verdict == found["datasets"].verdict == "not as expected"
    assert found["torch"].why.startswith("pip install 'torch==")
    assert found["datasets"].found.startswith("missing")
    assert found["peft"].verdict == "as expected"  # accepted, and that it is another is said
    assert found["peft"].found == "0.20.0, not the tested one"
    assert found["all other packages"].found.startswith("pandas 1.0 (accepted: >=2.0)")


@pytest.mark.parametrize(
    ("built", "speaks", "said"),
    [
        (None, (12, 4), r"was built without CUDA; install one that was"),
        (
            "12.8",
            (11, 4),
            r"^driver 470\.82\.01 is older than torch's CUDA: it speaks CUDA 11\.4, ",
        ),
        ("12.8", (12, 4), r"restart the machine or the container"),
        ("12.8", None, r"speaks none: restart"),
    ],
)
def test_a_card_that_torch_cannot_use_is_explained(monkeypatch, built, speaks, said):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(machine, "driver_cuda", lambda: speaks)
    monkeypatch.setattr(machine, "read_cards", lambda: [T4, T4])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (finding,) = machine.card(Patient(CPU, None, quick=True))
    assert (finding.verdict, finding.found) == ("not as expected", "torch cannot use Tesla T4")
    assert re.search(said, finding.why), finding.why
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = machine.card(Patient(CPU, None, quick=True))
    assert finding == not_measured("card", "CUDA_VISIBLE_DEVICES hides Tesla T4")


# --- models that are out of reach, and the step --------------------------------------------------


def test_random_weights_stand_in_for_what_is_out_of_reach(tmp_path):
    """The real architecture, loaded like any checkpoint; other numbers."""
    write_stand_in(ModelConfig(id=EMBEDDED), tmp_path, CPU)
    base = load_base(ModelConfig(id="some/model", path=str(tmp_path), quantization="none"), CPU)
    own = load_base(ModelConfig(id=EMBEDDED, quantization="none"), CPU)
    assert base.id == "some/model"
    assert base.model.config.num_hidden_layers == own.model.config.num_hidden_layers
    for (name, drawn), (_, weight) in zip(
        base.model.named_parameters(), own.model.named_parameters(), strict=True
    ):
        assert drawn.shape == weight.shape
        if drawn.ndim > 1:
            assert drawn.float().std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert (drawn == (0 if name.endswith("bias") else 1)).all(), name


def test_a_base_that_the_hub_does_not_give_is_made_up(monkeypatch):
    small = Shape(64, 2, 4, 2, 16, 96, 2048, True, qkv_bias=True)
    monkeypatch.setattr("kit.doctor.stand_in.find_shape", lambda model: (small, ""))
    patient = Patient(CPU, None, quick=False)
    patient.config = patient.recipe
    assert not patient.is_reachable  # tests are offline
    assert patient.base.model.config.hidden_size == 64
    assert patient.base_in_words == "Qwen/Qwen2.5-0.5B-Instruct with random weights"
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ModelError, match=r"take 0\.0 GiB of the disk, which has 0\.0 GiB left"):
        _ = Patient.base.func(patient)


@pytest.mark.parametrize(("name", "longest"), [("pspo", 48), ("sft", 512), ("instruct-dpo", 48)])
def test_the_small_form_samples_little_and_leaves_solutions_whole(name, longest):
    recipe = load_config(ROOT / "configs" / f"qwen2.5-0.5b-{name}.yaml")
    config = Patient(CPU, recipe, quick=True).config
    assert (config.model.id, config.rollout.max_new_tokens) == (EMBEDDED, longest)


def test_the_step_is_the_recipes_but_for_problems_and_reward():
    recipe = load_config(ROOT / "configs" / "qwen2.5-0.5b-pspo.yaml")
    once = one_step(recipe, "/somewhere")
    for name in ("method", "lora", "rollout", "objective", "optim"):
        assert getattr(once, name) == getattr(recipe, name)
    assert once.model.adapter is None
    assert (once.train.steps, once.train.preflight_problems) == (1, 0)
    assert once.data.name == "gsm_symbolic" and once.data.validation_size == 0
    completions = [[{"content": text}] for text in ("a", "b", "a")]
    first, second, third = tell_apart([""] * 3, completions)
    assert first == third != second and 0 <= min(first, second) <= max(first, second) <= 1


@pytest.mark.smoke
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_step_on_preferences_needs_none_of_the_users(base, method):
    overrides = [
        f"method={method}",
        "preferences.source=votes.jsonl",
        "train.updates_per_rollout=1",
    ]
    recipe = load_config(ROOT / "configs" / "qwen2.5-0.5b-pspo.yaml", overrides)
    patient = Patient(CPU, recipe, quick=True)
    patient.base = base
    (worked,) = step(patient)
    assert worked.verdict == "as expected" and "gradient norm" in worked.found


def test_a_finding_is_a_line():
    line = Finding("x", "as expected", "1", "2", "because")
    assert str(line) == "as expected     x: 1 (expected: 2)"
