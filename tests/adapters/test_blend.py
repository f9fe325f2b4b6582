"""Blends: what PEFT's arithmetic makes of two adapters, and what does not go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.adapters import blend as module
from kit.adapters.blend import blend
from kit.adapters.merge import read_updates
from kit.adapters.probe import read_probe
from kit.adapters.save import save_adapter
from kit.config import LoraConfig, ModelConfig
from kit.errors import AdapterError
from kit.model.adapter_files import adapter_sha256
from kit.model.base import load_base
from kit.model.lora import add_lora
from kit.model.policy import Policy
from tests.noise import add_noise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    """Adapters a and b of rank 4, c of rank 2, on the embedded model."""
    base = load_base(ModelConfig(id="embedded"), CPU)
    folder = tmp_path_factory.mktemp("parts")
    for seed, (name, rank) in enumerate({"a": 4, "b": 4, "c": 2}.items()):
        model = add_lora(base, LoraConfig(rank=rank, alpha=8, targets=["q_proj", "up_proj"]), seed)
        add_noise(model, seed)
        save_adapter(Policy(base, model), folder / name)
        model.unload()
    return {name: folder / name for name in "abc"}


@pytest.fixture(autouse=True)
def shared_base(base, monkeypatch):
    """Loading a base of its own each time would take most of the time."""
    monkeypatch.setattr(module, "load_base", lambda config: base)
    yield
    assert not [name for name, _ in base.model.named_parameters() if "lora" in name]


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """s B A by the names of the weights."""
    return {name: u.scaling * u.b @ u.a for name, u in read_updates(folder).items()}


def mixed(parts, names: str, weights, output: Path, *settings, **options) -> Path:
    return blend([str(parts[name]) for name in names], weights, output, *settings, **options)


@pytest.mark.smoke
def test_cat_is_exactly_the_weighted_sum(parts, tmp_path):
    result = mixed(parts, "ab", [0.75, -0.5], tmp_path / "mix")
    a, b, found = deltas(parts["a"]), deltas(parts["b"]), deltas(result)
    assert found.keys() == a.keys() and len(found) == 2 * 4
    for name in found:
        torch.testing.assert_close(
            found[name], 0.75 * a[name] - 0.5 * b[name], atol=1e-7, rtol=1e-5
        )
    settings = json.loads((result / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (8, "embedded")


@pytest.mark.smoke
def test_parts_scaled_by_the_root_of_their_rank(parts, tmp_path):
    """rsLoRA: alpha / sqrt(r) = 8 / 2, twice what alpha / r is; the mixture's own scaling is 1."""
    for name in "ab":
        shutil.copytree(parts[name], tmp_path / "in" / name)
        path = tmp_path / "in" / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
        path.with_name("probe.safetensors").unlink()  # of what was saved, which this is no longer
    roots = {name: tmp_path / "in" / name for name in "ab"}
    found = deltas(mixed(roots, "ab", [0.75, -0.5], tmp_path / "mix"))
    a, b = deltas(parts["a"]), deltas(parts["b"])
    for name in found:
        wanted = 2 * (0.75 * a[name] - 0.5 * b[name])
        torch.testing.assert_close(found[name], wanted, atol=1e-7, rtol=1e-5)


@pytest.mark.smoke
def test_cat_takes_different_ranks(parts, tmp_path):
    result = mixed(parts, "ac", [1.0, 1.0], tmp_path / "mix")
    a, c, found = deltas(parts["a"]), deltas(parts["c"]), deltas(result)
    for name in found:
        torch.testing.assert_close(found[name], a[name] + c[name], atol=1e-7, rtol=1e-5)


@pytest.mark.smoke
def test_linear_sums_the_matrices_apart(parts, tmp_path):
    """With weights w and scaling s = 2: B' A' = (Σ √(w s) B) (Σ √(w s) A), cross terms included."""
    result = mixed(parts, "ab", [0.5, 0.5], tmp_path / "mix", "linear")
    a, b, found = (read_updates(f) for f in (parts["a"], parts["b"], result))
    for name in found:
        expected = (a[name].b + b[name].b) @ (a[name].a + b[name].a)  # √(0.5 · 2) = 1
        update = found[name]
        assert update.a.shape[0] == 4
        torch.testing.assert_close(
            update.scaling * update.b @ update.a, expected, atol=1e-6, rtol=1e-5
        )


@pytest.mark.smoke
def test_dare_drops_by_its_seed_and_says_so(parts, tmp_path):
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        options = {"density": 0.3, "seed": seed}
        folder = mixed(parts, "ab", [0.5, 0.5], tmp_path / name, "dare_linear", **options)
        return load_file(folder / "adapter_model.safetensors")

    first, again, other = weights("first", 1), weights("again", 1), weights("other", 2)
    assert all(first[k].equal(again[k]) for k in first)
    assert not all(first[k].equal(other[k]) for k in first)
    # each of two is kept with 0.3, so 0.7² of the values are 0; 16,000 values and more
    zeros = torch.cat([t.flatten() for t in first.values()]).eq(0).float().mean()
    assert abs(zeros - 0.49) < 0.02
    assert "`dare_linear`, density 0.3, seed 1" in (tmp_path / "first" / "README.md").read_text()


@pytest.mark.smoke
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_ties_take_the_mean_of_values_whose_signs_agree(parts, tmp_path, method):
    """An adapter mixed with itself at full density: nothing is dropped, no signs disagree."""
    result = mixed(parts, "aa", [1.0, 1.0], tmp_path / "mix", method, density=1.0)
    a, found = deltas(parts["a"]), deltas(result)
    for name in found:  # √s A and √s B each
        torch.testing.assert_close(found[name], a[name], atol=1e-6, rtol=1e-4)


@pytest.mark.smoke
def test_ties_drop_the_smaller_values(tmp_path, parts):
    """One adapter with itself, weighed 3 to -1; PEFT elects the signs before it weighs."""
    result = mixed(parts, "aa", [3.0, -1.0], tmp_path / "mix", "ties", density=0.5)
    found, a = (load_file(f / "adapter_model.safetensors") for f in (result, parts["a"]))
    for name, values in found.items():
        kept = values != 0
        assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
        assert values.sign()[kept].equal(a[name].sign()[kept])
        assert a[name].abs()[kept].min() >= a[name].abs()[~kept].max()


@pytest.mark.smoke
def test_a_blend_is_a_plain_adapter_with_probe_and_card(parts, tmp_path):
    result = mixed(parts, "ab", [0.5, 0.5], tmp_path / "mix")
    names = {path.name for path in result.iterdir()}
    assert names == {path.name for path in parts["a"].iterdir()} | {"README.md"}
    stored = read_probe(result)
    assert stored.settings["adapter_sha256"] == adapter_sha256(str(result))
    assert not stored.adapter.equal(stored.base)
    card = (result / "README.md").read_text()
    for name in "ab":
        assert f"| {name} | 0.5 | `{adapter_sha256(str(parts[name]))[:16]}` |" in card
    assert str(tmp_path) not in card and str(parts["a"].parent) not in card


# --- what does not go together -------------------------------------------------------------------


def refused(parts, names, weights, output: Path, message: str, *settings, **options) -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises(AdapterError, match=message):
        mixed(parts, names, weights, output, *settings, **options)
    assert sorted(output.parent.iterdir()) == before


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("names", "weights", "settings", "options", "message"),
    [
        ("a", [1.0], (), {}, "needs two adapters or more, got 1"),
        ("ab", [1.0], (), {}, "2 adapters need as many --weights, got 1"),
        ("ab", [1.0, float("nan")], (), {}, "must be finite and not all 0"),
        ("ab", [0.0, 0.0], (), {}, "must be finite and not all 0"),
        ("ab", [1.0, 1.0], ("tie",), {}, "unknown --method 'tie'; there are cat, linear, ties"),
        ("ab", [1.0, 1.0], ("ties",), {"density": 0.0}, "--density must be above 0"),
        ("ac", [1.0, 1.0], ("linear",), {}, r"needs one rank, got \[4, 2\]; use --method cat"),
    ],
)
def test_arguments_that_make_no_blend(parts, tmp_path, names, weights, settings, options, message):
    refused(parts, names, weights, tmp_path / "mix", message, *settings, **options)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "owner/other"}, "different bases .*owner/other at None"),
        ({"revision": "abc"}, "different bases .*embedded at abc"),
        ({"use_dora": True}, "does more than add B A"),
        ({"peft_type": "IA3"}, "only LORA works"),
    ],
)
def test_adapters_that_do_not_go_together(parts, tmp_path, changes, message):
    other = tmp_path / "in" / "other"
    shutil.copytree(parts["b"], other)
    path = other / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(parts | {"x": other}, "ax", [1.0, 1.0], tmp_path / "mix", message)


@pytest.mark.smoke
def test_an_adapter_of_several_ranks(parts, tmp_path):
    other = tmp_path / "in" / "other"
    shutil.copytree(parts["b"], other)
    weights = load_file(other / "adapter_model.safetensors")
    for key in [key for key in weights if "layers.0" in key and "q_proj" in key]:
        weights[key] = weights[key][:2] if "lora_A" in key else weights[key][:, :2].contiguous()
    save_file(weights, other / "adapter_model.safetensors")
    path = other / "adapter_config.json"
    pattern = {"rank_pattern": {"layers.0.self_attn.q_proj": 2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | pattern))
    message = r"has several ranks, \[2, 4\]"
    refused(parts | {"x": other}, "ax", [1.0, 1.0], tmp_path / "mix", message)


@pytest.mark.smoke
def test_pickled_weights_are_refused(parts, tmp_path):
    other = tmp_path / "in" / "other"
    shutil.copytree(parts["b"], other)
    (other / "adapter_model.safetensors").rename(other / "adapter_model.bin")
    message = "pickled weights are refused"
    refused(parts | {"x": other}, "ax", [1.0, 1.0], tmp_path / "mix", message)


@pytest.mark.smoke
def test_a_folder_that_exists_and_a_disk_that_is_full(parts, tmp_path, monkeypatch):
    (tmp_path / "mix").mkdir()
    refused(parts, "ab", [1.0, 1.0], tmp_path / "mix", "exists; choose another folder")
    (tmp_path / "mix").rmdir()

    def full(*_):
        raise OSError("No space left")

    monkeypatch.setattr(module, "write_adapter", full)
    refused(parts, "ab", [1.0, 1.0], tmp_path / "mix", "could not write .*mix: No space left")
