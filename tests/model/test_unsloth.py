"""The Unsloth backend: chosen with a reason, called as it is written, the same numbers.

Unsloth's kernels need a GPU. `Fast` below stands in for it: transformers and PEFT underneath, but
with the ways of Unsloth's that the kit has to bridge. What the kit asks of it is compared with the
real source where that is at hand.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModelForCausalLM, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    set_seed,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM, Qwen2RotaryEmbedding

from kit.adapters.save import save_adapter
from kit.config import EMBEDDED_PATH, LoraConfig, ModelConfig
from kit.errors import ModelError
from kit.model import unsloth
from kit.model.base import load_base
from kit.model.batching import make_batch
from kit.model.hardware import choose_hardware
from kit.model.lora import add_lora
from kit.model.policy import BASE, Policy
from kit.model.rollout import Request, Sampling, sample, stream
from kit.model.unsloth import DECODE_BUFFERS, FAMILIES, load_unsloth
from kit.reading import read_metrics
from kit.runs import RunFolder
from kit.training.trainer import train
from tests.noise import add_noise

CPU = torch.device("cpu")
PROMPTS = ((5, 9, 200, 31, 7, 40), (8, 33, 21), (90, 4, 4, 17, 60))
SOURCE_HINT = (
    "the source of unsloth is not at hand: pip download --no-deps unsloth, unzip the wheel and set "
    "KIT_UNSLOTH_SOURCE to where it was unpacked"
)


class Fast:
    """FastLanguageModel as the kit meets it; `calls` holds what it was asked for."""

    calls: list[tuple[str, dict]]
    ignores_padding = False

    @classmethod
    def from_pretrained(cls, model_name, **settings):
        cls.calls.append(("from_pretrained", {"model_name": model_name, **settings}))
        model = AutoModelForCausalLM.from_pretrained(
            model_name,
            dtype=settings["dtype"],
            quantization_config=settings["quantization_config"],
            device_map=settings["device_map"],
        )
        model.forward = types.MethodType(cls._forward, model)
        tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
        tokenizer.pad_token = "<|im_start|>"
        return model, tokenizer

    @staticmethod
    def _forward(model, *args, past_key_values=None, return_dict=None, **inputs):
        """The cache given is read and not written; decoding goes on from buffers of its own, and
        returns a tuple unless told otherwise."""
        stock = type(model).forward
        if past_key_values is None:
            return stock(model, *args, return_dict=True, **inputs)
        state = vars(model.model.layers[0].self_attn)
        decoding = past_key_values.get_seq_length() > 0
        if not decoding:
            state.pop("paged_attention", None)
        elif Fast.ignores_padding:
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        cache = state.get("paged_attention", DynamicCache())
        if decoding and "paged_attention" not in state:
            for i, layer in enumerate(past_key_values.layers):
                cache.update(layer.keys, layer.values, i)
            state["paged_attention"] = cache
        logits = stock(model, *args, past_key_values=cache, return_dict=True, **inputs).logits
        tensors = [(layer.keys, layer.values) for layer in cache.layers]
        if decoding and not return_dict:
            return logits, tensors
        return CausalLMOutputWithPast(logits=logits, past_key_values=tensors)

    @classmethod
    def get_peft_model(cls, model, *, r, random_state, use_gradient_checkpointing, **settings):
        asked = {"r": r, "random_state": random_state, **settings}
        asked["use_gradient_checkpointing"] = use_gradient_checkpointing
        cls.calls.append(("get_peft_model", asked))
        set_seed(random_state)
        return get_peft_model(model, PeftLoraConfig(r=r, task_type="CAUSAL_LM", **settings))

    @classmethod
    def patch_peft_model(cls, model, use_gradient_checkpointing):
        asked = {"use_gradient_checkpointing": use_gradient_checkpointing}
        cls.calls.append(("patch_peft_model", asked))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)  # of every adapter
        return model

    @classmethod
    def for_inference(cls, model):
        cls.calls.append(("for_inference", {}))
        return model.eval()

    @classmethod
    def for_training(cls, model, use_gradient_checkpointing=None):
        asked = {"use_gradient_checkpointing": use_gradient_checkpointing}
        cls.calls.append(("for_training", asked))
        return model.train()


@pytest.fixture
def fast(monkeypatch):
    """Unsloth installed, and a machine that is good enough for it."""
    module = types.ModuleType("unsloth")
    module.__spec__ = ModuleSpec("unsloth", None)
    module.FastLanguageModel, module.__version__ = Fast, "2026.10.9"
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr("kit.model.hardware._obstacle_to_unsloth", lambda config, device: None)
    monkeypatch.setattr(Fast, "calls", [], raising=False)
    monkeypatch.setenv("UNSLOTH_DISABLE_STATISTICS", "1")
    # it computes on a GPU, where there is nothing to repack
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    return Fast


def load(backend, **settings):
    settings = {"id": "embedded", "quantization": "none", **settings}
    return load_base(ModelConfig(backend=backend, **settings), CPU)


def names_of(calls):
    return [name for name, _ in calls]


# --- which backend -------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch):
    """A GPU with bfloat16 and Unsloth beside it, as far as is looked at before loading."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr("kit.model.hardware.find_spec", lambda name: name == "unsloth" or None)
    return torch.device("cuda")


def test_auto_takes_unsloth_on_a_gpu_where_it_is_installed(cuda):
    hardware = choose_hardware(ModelConfig(id="x"), cuda)
    assert hardware.backend == "unsloth"
    assert hardware.reason.endswith("backend unsloth: it is installed")
    asked = choose_hardware(ModelConfig(id="x", backend="transformers"), cuda)
    assert asked.backend == "transformers"
    assert asked.reason.endswith("backend transformers: it was asked for")


@pytest.mark.parametrize(
    ("settings", "device", "why"),
    [
        ({}, CPU, "a CUDA GPU is needed and there is none here"),
        ({"quantization": "int8"}, None, "model.quantization must be nf4 or none, not int8"),
        ({"attention": "eager"}, None, "model.attention must be auto .*, not eager"),
    ],
)
def test_without_what_unsloth_needs(cuda, settings, device, why):
    """auto says why and takes transformers; who asked for unsloth is told what to do."""
    hardware = choose_hardware(ModelConfig(id="x", **settings), device or cuda)
    assert hardware.backend == "transformers"
    assert "backend transformers: for unsloth, " + why.split(".*")[0] in hardware.reason
    with pytest.raises(ModelError, match=f"{why}; or set model.backend=transformers"):
        choose_hardware(ModelConfig(id="x", backend="unsloth", **settings), device or cuda)


def test_unsloth_that_is_not_installed(cuda, monkeypatch):
    monkeypatch.setattr("kit.model.hardware.find_spec", lambda name: None)
    install = r"pip install -r requirements-gpu\.txt"
    assert "requirements-gpu.txt" in choose_hardware(ModelConfig(id="x"), cuda).reason
    with pytest.raises(ModelError, match=install):
        choose_hardware(ModelConfig(id="x", backend="unsloth"), cuda)
    assert (Path(__file__).parents[2] / "requirements-gpu.txt").is_file()


def test_a_package_that_cannot_be_imported(fast, monkeypatch, caplog):
    """The base is loaded all the same, and what went wrong is in the log and in the reason."""
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(ModelError, match=r"unsloth cannot run 'embedded'.*backend=transformers"):
        load("unsloth")
    with caplog.at_level(logging.WARNING):
        base = load("auto")
    assert base.unsloth is None and base.hardware.backend == "transformers"
    for text in (caplog.text, base.hardware.reason):
        assert "unsloth cannot run 'embedded'" in text
    assert "backend transformers instead" in base.hardware.reason


def test_families_whose_kernels_were_not_read_are_refused(fast):
    gemma = SimpleNamespace(model_type="gemma2")
    hardware = choose_hardware(ModelConfig(id="x"), CPU)
    with pytest.raises(ModelError, match="llama, qwen2, qwen3 models, x is a gemma2 model"):
        load_unsloth(ModelConfig(id="x"), "x", gemma, None, hardware)
    assert fast.calls == []


def test_a_run_from_before_the_field_goes_on(make_config):
    config = make_config()
    run = RunFolder(config.output)
    run.open(config, resume=False).release()
    settings = yaml.safe_load((run.path / "config.yaml").read_text())
    assert settings["model"].pop("backend") == "auto"
    (run.path / "config.yaml").write_text(yaml.safe_dump(settings))
    run.metrics.write_text('{"step": 1}\n')
    run.open(config, resume=True).release()
    assert run.load_config() == config


def test_memory_that_runs_out_while_it_loads_is_said(fast, monkeypatch):
    def full(**settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(fast, "from_pretrained", full)
    with pytest.raises(ModelError, match=r"^not enough GPU memory to load 'embedded'; .*nf4"):
        load("unsloth")


# --- what Unsloth is asked for -------------------------------------------------------------------


def test_the_very_weights_of_the_transformers_backend(fast):
    """No copy quantized by others, no stretched positions, and the kit's own tokenizer."""
    base = load("unsloth", quantization="nf4", gradient_checkpointing=True)
    ((name, asked),) = fast.calls
    assert name == "from_pretrained"
    assert asked["model_name"] == str(EMBEDDED_PATH) and asked["use_exact_model_name"] is True
    assert asked["max_seq_length"] == base.model.config.max_position_embeddings == 1024
    assert asked["load_in_4bit"] is True and asked["fast_inference"] is False
    assert asked["use_gradient_checkpointing"] == "unsloth"
    quantization = asked["quantization_config"]
    assert quantization.bnb_4bit_quant_type == "nf4" and quantization.bnb_4bit_use_double_quant
    other = load("transformers", quantization="nf4")
    assert base.tokenizer.pad_token == other.tokenizer.pad_token != "<|im_start|>"
    assert base.stop_ids == other.stop_ids
    left, right = base.model.state_dict(), other.model.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    assert base.hardware.backend == "unsloth" and base.unsloth.version == "2026.10.9"


def test_fresh_and_continued_adapters_get_its_kernels_once(fast, tmp_path):
    base = load("unsloth")
    fast.calls.clear()
    model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=3)
    ((name, asked),) = fast.calls
    assert name == "get_peft_model"
    assert (asked["r"], asked["lora_alpha"], asked["random_state"]) == (4, 8, 3)
    assert asked["lora_dropout"] == 0 and asked["use_gradient_checkpointing"] is False
    assert model.peft_config["default"].base_model_name_or_path == "embedded"
    save_adapter(Policy(base, model), tmp_path / "start")
    model.unload()
    fast.calls.clear()
    model = add_lora(base, LoraConfig(rank=4, alpha=8), 0, str(tmp_path / "start"))
    model = add_lora(
        base, LoraConfig(rank=4, alpha=8), 0, str(tmp_path / "start"), name="arm1", model=model
    )
    assert names_of(fast.calls) == ["patch_peft_model"]
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"arm1"}  # the reference is frozen again
    model.unload()


def test_the_switch_is_set_for_sampling_and_set_back(fast):
    base = load("unsloth")
    fast.calls.clear()
    sample(Policy(base), [Request(PROMPTS[0], (0,), BASE)], Sampling(max_new_tokens=3))
    assert names_of(fast.calls) == ["for_inference", "for_training"]
    assert fast.calls[1][1] == {"use_gradient_checkpointing": False}
    assert not base.model.training
    assert not any("paged_attention" in vars(m) for m in base.model.modules())


# --- the same numbers ----------------------------------------------------------------------------


def noisy_policy(base):
    """Two adapters that differ from the base and from each other."""
    model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=0)
    model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=1, name="arm1", model=model)
    add_noise(model, 1)
    policy = Policy(base, model)
    policy.activate()
    return policy


@pytest.mark.slow
@pytest.mark.smoke
def test_rows_of_several_adapters_say_the_same_on_both(fast):
    """Padded prompts, rows that end early and leave the batch, adapters in turn."""
    requests = [
        Request(prompt, (0, i, j), adapter)
        for i, prompt in enumerate(PROMPTS)
        for j in range(4)
        for adapter in ("default", BASE, "arm1")
    ]
    told: list[int] = []
    spoken = []
    for backend in ("transformers", "unsloth"):
        policy = noisy_policy(load(backend))
        policy.causal.double()  # batches of another size round otherwise
        spoken.append(sample(policy, requests, Sampling(max_new_tokens=40), told.append))
    assert [c.tokens for c in spoken[0]] == [c.tokens for c in spoken[1]]
    for left, right in zip(*spoken, strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=2e-5)
    assert len({len(c.tokens) for c in spoken[1]}) > 3  # some ended early
    assert told == [36, 12, 12, 12]  # one batch, then one for each adapter
    with pytest.raises(ModelError, match=r"cannot be decoded together.*backend=transformers"):
        next(stream(policy, requests, Sampling(max_new_tokens=2)))
    one = [request for request in requests if request.adapter == "arm1"]
    *_, last = stream(policy, one, Sampling(max_new_tokens=40))
    assert [c.tokens for c in last] == [c.tokens for c in spoken[0][2::3]]


def test_log_probs_are_the_same_on_both(fast):
    batch = make_batch(PROMPTS, [[10, 11, 12, 50], [30, 31], [7]], pad_id=0)
    left, right = (noisy_policy(load(backend)) for backend in ("transformers", "unsloth"))
    for adapter in ("default", "arm1", BASE):
        for a, b in zip(left.logprobs(batch, adapter), right.logprobs(batch, adapter), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_wrong_numbers_are_found_at_the_start(fast, monkeypatch, caplog):
    """A release that forgets the padding is not trained with."""
    monkeypatch.setattr(fast, "ignores_padding", True)
    with pytest.raises(ModelError, match=r"other probabilities than it trains .*allowed 0\.001"):
        load("unsloth")
    base = load("auto")
    assert base.unsloth is None and "other probabilities" in base.hardware.reason


def test_a_failed_load_leaves_the_classes_of_transformers_and_peft(fast, monkeypatch):
    """Unsloth's from_pretrained replaces methods of classes, which a later load would inherit."""
    stock = Qwen2ForCausalLM.forward, PeftModelForCausalLM.forward, Qwen2RotaryEmbedding
    whole = fast.from_pretrained

    def patching(**settings):
        for owner in (Qwen2ForCausalLM, PeftModelForCausalLM):
            monkeypatch.setattr(owner, "forward", unsloth_forward)
        monkeypatch.setattr(modeling_qwen2, "Qwen2RotaryEmbedding", torch.nn.Identity)
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(fast, "from_pretrained", patching)
    base = load("auto")
    assert base.unsloth is None and "no kernel image" in base.hardware.reason
    now = Qwen2ForCausalLM.forward, PeftModelForCausalLM.forward
    assert (*now, modeling_qwen2.Qwen2RotaryEmbedding) == stock

    monkeypatch.setattr(fast, "from_pretrained", whole)
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", unsloth_forward)
    with pytest.raises(ModelError, match="in a process of its own"):
        load("transformers")


def unsloth_forward(*args, **kwargs):
    raise AssertionError("Unsloth's kernels in a model of transformers")


unsloth_forward.__module__ = "unsloth.models.llama"


@pytest.mark.parametrize(
    ("missing", "found"),
    [
        ("keep_cache", "samples embedded from other probabilities"),
        ("free_decode_buffers", "unsloth cannot run 'embedded'"),
    ],
)
def test_what_the_bridge_does_is_needed(fast, monkeypatch, missing, found):
    """Without it decoding goes wrong, and that is found at the start too."""
    monkeypatch.setattr(unsloth, missing, lambda model: None)
    with pytest.raises(ModelError, match=found):
        load("unsloth")


@pytest.mark.smoke
@pytest.mark.slow
def test_two_steps_and_then_on_with_the_other_backend(fast, make_config, tmp_path, monkeypatch):
    """The same adapter, metrics and files from both; each goes on where the other stopped."""

    def run(name, backend, **model):
        # the stand-in computes with the library's attention, and sums round alike on both sides
        attention = "sdpa" if backend == "transformers" else "auto"
        model |= {"quantization": "none", "backend": backend, "attention": attention}
        schedule = {"checkpoint_every": 2}
        output = str(tmp_path / name)
        return train(make_config(model=model, train=schedule, output=output))

    one, other = run("one", "transformers"), run("other", "unsloth")
    assert_same_run(one, other)
    assert {p.name for p in one.adapter.iterdir()} == {p.name for p in other.adapter.iterdir()}
    settings = json.loads((other.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "embedded"
    assert "backend unsloth: it was asked for" in other.read_description()["hardware"]
    called = names_of(fast.calls)
    assert called.count("get_peft_model") == 1 and called.count("for_inference") == 2  # two steps

    enable, enabled = PreTrainedModel.gradient_checkpointing_enable, []

    def enabling(model, *arguments):
        enabled.append(model)
        enable(model, *arguments)

    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", enabling)
    on = run("on", "unsloth", adapter=str(one.adapter), gradient_checkpointing=True)
    assert enabled == []  # Unsloth has its own
    back = run("back", "transformers", adapter=str(other.adapter), gradient_checkpointing=True)
    assert len(enabled) == 1
    assert_same_run(on, back)
    assert all(not torch.equal(weights(on)[key], old) for key, old in weights(one).items())


def weights(run):
    return load_file(run.adapter / "adapter_model.safetensors")


def assert_same_run(left, right):
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    for key in a:
        # prompts are shared on one side and padded on the other, which Adam makes more of
        torch.testing.assert_close(a[key], b[key], atol=1e-4, rtol=0)
    for mine, its in zip(read_metrics(left.metrics), read_metrics(right.metrics), strict=True):
        assert mine.keys() == its.keys()
        for key in mine:
            if not key.startswith(("time/", "memory/")):
                assert mine[key] == pytest.approx(its[key], rel=1e-4, abs=1e-5), key


@pytest.mark.smoke
def test_without_a_gpu_the_reason_is_in_run_json(base, make_config, caplog):
    with caplog.at_level(logging.INFO):
        run = train(make_config(train={"steps": 1}), base=base)
    said = "backend transformers: for unsloth, a CUDA GPU is needed and there is none here"
    assert said in run.read_description()["hardware"] and said in caplog.text


# --- the real source -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source():
    """The package's folder: unpacked where KIT_UNSLOTH_SOURCE says, or installed."""
    named = os.environ.get("KIT_UNSLOTH_SOURCE")
    spec = None if named else importlib.util.find_spec("unsloth")
    if not named and spec is None:
        pytest.skip(SOURCE_HINT)
    root = Path(named) / "unsloth" if named else Path(spec.submodule_search_locations[0])
    assert (root / "models" / "loader.py").is_file(), f"no unsloth package at {root}"
    return root


def function(source, file, name, within=None):
    """A function's syntax tree, of the class `within` if one is named."""
    tree = ast.parse((source / file).read_text(encoding="utf-8"))
    if within is not None:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == within)
    return next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)


def accepted(tree):
    """Named parameters, and the keys read from **kwargs."""
    names = {a.arg for a in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            holder = node.func.value
            if node.func.attr in ("get", "pop") and getattr(holder, "id", "") == "kwargs":
                names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


@pytest.mark.smoke
def test_every_keyword_the_kit_passes_exists(fast, source, tmp_path):
    base = load("unsloth")
    model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=0)
    save_adapter(Policy(base, model), tmp_path / "start")
    sample(Policy(base, model), [Request(PROMPTS[0], (0,), BASE)], Sampling(max_new_tokens=2))
    model.unload()
    add_lora(base, LoraConfig(rank=4, alpha=8), 0, str(tmp_path / "start")).unload()
    where = {
        "from_pretrained": ("models/loader.py", "FastLanguageModel"),
        "get_peft_model": ("models/llama.py", "FastLlamaModel"),
        "patch_peft_model": ("models/llama.py", "FastLlamaModel"),
        "for_inference": ("models/loader.py", "FastLanguageModel"),
        "for_training": ("models/loader.py", "FastLanguageModel"),
    }
    assert set(names_of(fast.calls)) == set(where)
    for name, asked in fast.calls:
        file, owner = where[name]
        unknown = set(asked) - accepted(function(source, file, name, owner))
        assert not unknown, f"{owner}.{name} does not take {sorted(unknown)}"


def test_the_forward_passes_take_what_the_kit_feeds_them(source):
    decoder = accepted(function(source, "models/llama.py", "_CausalLM_fast_forward"))
    assert {
        *("input_ids", "attention_mask", "position_ids", "past_key_values"),
        *("use_cache", "return_dict", "logits_to_keep"),
    } <= decoder
    backbone = accepted(function(source, "models/llama.py", "LlamaModel_fast_forward"))
    assert {"input_ids", "attention_mask", "use_cache"} <= backbone


def test_the_decoding_buffers_have_these_names(source):
    tree = function(source, "models/_decode_graphs.py", "alloc_decode_buffers")
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert set(DECODE_BUFFERS) <= assigned


def test_the_families_are_dispatched_to_the_kernels_that_were_read(source):
    tree = function(source, "models/loader.py", "from_pretrained", "FastLanguageModel")
    compared = {
        node.comparators[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and getattr(node.left, "id", "") == "model_type"
        and isinstance(node.comparators[0], ast.Constant)
    }
    assert set(FAMILIES) <= compared
    for family in FAMILIES[1:]:
        text = (source / f"models/{family}.py").read_text(encoding="utf-8")
        assert f"{family.capitalize()}Model.forward = LlamaModel_fast_forward" in text
