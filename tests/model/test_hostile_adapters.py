"""Adapters of strangers: each is loaded as it is or refused, and the base and others stay equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file

from kit.adapters.save import save_adapter
from kit.app.library.roots import read_settings
from kit.config import LoraConfig, ModelConfig
from kit.errors import AdapterError
from kit.model.adapter_files import CONFIG, PROBE, WEIGHTS, adapter_sha256
from kit.model.base import load_base
from kit.model.lora import add_lora, load_adapters
from kit.model.policy import BASE, Policy
from tests.noise import add_noise

IDS = torch.arange(5, 25)[None]
LAYER = "base_model.model.model.layers.0"
QUERY = f"{LAYER}.self_attn.q_proj"
EVIL_REGEX = r"(([a-z_.0-9]+)+)+!"  # takes longer than anybody lives on a name of 30 letters


@pytest.fixture(scope="module")
def own_base():
    """A base for this file alone: what harms it must not reach other tests."""
    return load_base(ModelConfig(id="embedded"), torch.device("cpu"))


@pytest.fixture(scope="module")
def good(own_base, tmp_path_factory) -> Path:
    """An adapter as the kit saves it."""
    folder = tmp_path_factory.mktemp("good") / "adapter"
    model = add_lora(own_base, LoraConfig(rank=4, alpha=8), seed=0)
    add_noise(model, 1)
    save_adapter(Policy(own_base, model), folder)
    model.unload()
    return folder


@pytest.fixture(scope="module")
def expected(own_base, good):
    """(logits of the bare base, logits of the good adapter) before anything hostile came."""
    return answers(own_base, good)


@pytest.fixture
def hostile(good, tmp_path):
    """A copy of the good adapter with other settings or weights."""

    def make(settings=None, weights=None) -> str:
        folder = tmp_path / "hostile"
        shutil.copytree(good, folder)
        (folder / PROBE).unlink()  # a stranger's has none, or one that fits it
        path = folder / CONFIG
        changed = json.loads(path.read_text()) | (settings or {})
        path.write_text(json.dumps({k: v for k, v in changed.items() if v is not ...}))
        if weights is not None:
            tensors = load_file(folder / WEIGHTS)
            save_file(weights(tensors), folder / WEIGHTS)
        return str(folder)

    return make


def logits(base):
    with torch.no_grad():
        return base.model(IDS).logits


def answers(base, good):
    """Logits (bare base, good adapter) of a base with nothing on it, which is so again after."""
    model = load_adapters(base, {"good": str(good)})
    with model.disable_adapter():
        bare = logits(base)
    adapted = logits(base)
    take_off(base, model)
    return bare, adapted


def take_off(base, model):
    """All adapters; PEFT leaves their settings behind."""
    model.unload()
    vars(base.model).pop("peft_config", None)


def check_untouched(base, good, expected):
    """The base has nothing on it, and both it and the good adapter compute the same bits."""
    assert not any("lora" in name or "base_layer" in name for name, _ in base.model.named_modules())
    assert not hasattr(base.model, "peft_config")
    assert torch.equal(logits(base), expected[0])
    again = answers(base, good)
    assert torch.equal(again[0], expected[0]) and torch.equal(again[1], expected[1])


def refused(base, source, message, onto=None):
    with pytest.raises(AdapterError, match=message) as refusal:
        load_adapters(base, {"hostile": source}, onto)
    text = str(refusal.value)
    assert "\n" not in text and len(text) < 700 and source in text


CHANGES = "changes the base model itself"
SETTINGS = {
    "head saved": ({"modules_to_save": ["lm_head"]}, rf"{CHANGES} \(modules_to_save=\['lm_head'\]"),
    "embeddings saved": ({"modules_to_save": ["embed_tokens"]}, CHANGES),
    "norms saved": ({"modules_to_save": ["norm", "input_layernorm"]}, CHANGES),
    "nothing saved": ({"modules_to_save": ["nowhere"]}, CHANGES),
    "text saved": ({"modules_to_save": "lm_head"}, CHANGES),
    "tokens": ({"trainable_token_indices": [1, 2]}, CHANGES),
    "tokens of head": ({"trainable_token_indices": {"lm_head": [1]}}, CHANGES),
    "all biases": ({"bias": "all"}, CHANGES),
    "biases of LoRA": ({"bias": "lora_only"}, CHANGES),
    "no bias": ({"bias": None}, "bias=None"),
    "layers twice": ({"layer_replication": [[0, 2], [0, 2]]}, CHANGES),
    "PiSSA": ({"init_lora_weights": "pissa"}, CHANGES),
    "OLoRA": ({"init_lora_weights": "olora"}, CHANGES),
    "start of another kind": ({"init_lora_weights": ["pissa"]}, CHANGES),
    "parameters": ({"target_parameters": ["q_proj.weight"]}, "target_parameters"),
    "Megatron": ({"megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "megatron_config"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "QA-LoRA": ({"use_qalora": True}, "use_qalora"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "Arrow": ({"arrow_config": {"arrow_top_k": 2}}, "arrow_config"),
    "KaSA": ({"kasa_config": {"x": 1}}, "kasa_config"),
    "tied weights": ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    "another method": ({"peft_type": "IA3"}, "only LORA works"),
    "list of methods": ({"peft_type": ["LORA"]}, "only LORA works"),
    "base of another kind": ({"base_model_name_or_path": ["embedded"]}, "was trained on"),
    "no rank": ({"r": None}, "r=None"),
    "rank of text": ({"r": "4"}, "r='4'"),
    "rank true": ({"r": True}, "r=True"),
    "rank in a list": ({"r": [4]}, r"r=\[4\]"),
    "rank 0": ({"r": 0}, "r=0"),
    "rank without end": ({"r": 10**12}, "rank 1000000000000"),
    "rank of one layer without end": ({"rank_pattern": {"q_proj": 10**9}}, "1000000000"),
    "all ranks by pattern": (
        {"r": 10**9, "rank_pattern": {".": 4}},
        "says rank 4, 1000000000, its weights have",
    ),
    "another rank of one layer": ({"rank_pattern": {"q_proj": 2}}, "size mismatch"),
    "ranks of text": ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern"),
    "ranks in a list": ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    "slow ranks": ({"rank_pattern": {EVIL_REGEX: 4}}, "rank_pattern"),
    "slow alphas": ({"alpha_pattern": {EVIL_REGEX: 4}}, "alpha_pattern"),
    "alphas of text": ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern"),
    "alpha of text": ({"lora_alpha": "8"}, "lora_alpha='8'"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
    "alpha infinite": ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
    "alpha beyond floats": ({"lora_alpha": 10**400}, "the number 1000.* is too large"),
    "dropout of 2": ({"lora_dropout": 2}, "lora_dropout=2"),
    "dropout of text": ({"lora_dropout": "x"}, "lora_dropout='x'"),
    "no targets": ({"target_modules": []}, "cannot load"),
    "targets nowhere": ({"target_modules": ["nowhere"]}, "nowhere"),
    "targets of PEFT's choice": ({"target_modules": None}, "weights are not in its configuration"),
    "fewer targets": ({"target_modules": ["q_proj"]}, "weights are not in its configuration"),
    "more targets": ({"target_modules": ["q_proj", "norm"]}, "cannot load"),
    "head": ({"target_modules": ["lm_head"]}, "lacks 2 of its weights"),
    "embeddings": ({"target_modules": ["embed_tokens"]}, "lacks 2 of its weights"),
    "targets a number": ({"target_modules": 7}, "target_modules=7"),
    "targets numbers": ({"target_modules": [1, 2]}, "target_modules"),
    "layers nowhere": ({"layers_to_transform": [99]}, "cannot load"),
    "layers of text": ({"layers_to_transform": ["0"]}, "layers_to_transform"),
    "one layer": ({"layers_to_transform": [0]}, "weights are not in its configuration"),
    "slow layers": (
        {"layers_to_transform": [0], "layers_pattern": EVIL_REGEX},
        "layers_pattern",
    ),
    "all excluded": ({"exclude_modules": ["self_attn", "mlp"] + ["q_proj"] * 3}, "cannot load"),
    "excluded a number": ({"exclude_modules": 7}, "exclude_modules"),
    "DoRA without magnitudes": ({"use_dora": True}, "lacks"),
    "bias of B without biases": ({"lora_bias": True}, "lacks"),
    "DoRA of text": ({"use_dora": "yes"}, "use_dora"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_hostile_settings(own_base, good, expected, hostile, name):
    settings, message = SETTINGS[name]
    refused(own_base, hostile(settings), message)
    check_untouched(own_base, good, expected)


def test_slow_patterns_are_not_run(own_base, good, expected, hostile):
    """What a regular expression of a stranger would choose is what the file has weights for."""
    source = hostile({"target_modules": EVIL_REGEX, "exclude_modules": EVIL_REGEX})
    model = load_adapters(own_base, {"hostile": source})
    assert torch.equal(logits(own_base), expected[1])
    take_off(own_base, model)
    check_untouched(own_base, good, expected)


def _without(tensors, *parts):
    return {k: v for k, v in tensors.items() if not any(part in k for part in parts)}


def _with(key, value):
    return lambda tensors: tensors | {key: value}


def _as(dtype):
    return lambda tensors: {k: (v * 100).to(dtype) for k, v in tensors.items()}


WEIGHT_FAULTS = {
    "embeddings": (
        lambda base: _with(
            "base_model.model.model.embed_tokens.weight", torch.zeros(_embedding(base))
        ),
        "embed_tokens",
    ),
    "head": (
        lambda base: _with("base_model.model.lm_head.weight", torch.zeros(_embedding(base))),
        "lm_head",
    ),
    "norm": (
        lambda base: _with(
            f"{LAYER}.input_layernorm.weight", torch.zeros(base.model.config.hidden_size)
        ),
        "input_layernorm",
    ),
    "bias of the base": (
        lambda base: _with(f"{QUERY}.base_layer.bias", torch.zeros(base.model.config.hidden_size)),
        "base_layer",
    ),
    "unknown": (lambda base: _with("x", torch.zeros(1)), "'x'|x "),
    "lora nowhere": (
        lambda base: _with("base_model.model.nowhere.lora_A.weight", torch.zeros(4, 8)),
        "nowhere",
    ),
    "lora on the head": (
        lambda base: _with(
            "base_model.model.lm_head.lora_A.weight",
            torch.zeros(4, base.model.config.hidden_size),
        ),
        "lm_head",
    ),
    "key of another adapter": (
        lambda base: _with(
            f"{QUERY}.lora_A.good.weight", torch.zeros(4, base.model.config.hidden_size)
        ),
        "good",
    ),
    "no B": (lambda base: lambda t: _without(t, "lora_B"), "lacks"),
    "half": (lambda base: lambda t: _without(t, "layers.0"), "lacks"),
    "nothing": (lambda base: lambda t: {}, "rank"),
    "bytes": (lambda base: _as(torch.int8), "int8|I8"),
    "whole numbers": (lambda base: _as(torch.int64), "int64|I64"),
    "yes and no": (lambda base: _as(torch.bool), "bool|BOOL"),
    "8-bit floats": (lambda base: _as(torch.float8_e4m3fn), "F8"),
    "transposed": (
        lambda base: (
            lambda t: {k: v.t().contiguous() if "lora_B" in k else v for k, v in t.items()}
        ),
        "cannot load",
    ),
    "wider": (
        lambda base: (
            lambda t: {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in t.items()}
        ),
        "cannot load",
    ),
    "one number": (lambda base: lambda t: {k: torch.tensor(1.0) for k in t}, "shape|dimension"),
    "NaN": (
        lambda base: lambda t: {k: v * float("nan") for k, v in t.items()},
        "is not finite",
    ),
    "beyond what activations bear": (
        lambda base: lambda t: {k: v * 1e38 if "lora_A" in k else v for k, v in t.items()},
        "is not finite, or has weights of 1e\\+06 and more",
    ),
    "infinite": (
        lambda base: (
            lambda t: (
                t
                | {
                    f"{QUERY}.lora_A.weight": torch.full_like(
                        t[f"{QUERY}.lora_A.weight"], float("inf")
                    )
                }
            )
        ),
        "is not finite",
    ),
}


def _embedding(base):
    return base.model.get_input_embeddings().weight.shape


@pytest.mark.parametrize("name", WEIGHT_FAULTS)
def test_hostile_weights(own_base, good, expected, hostile, name):
    make, message = WEIGHT_FAULTS[name]
    refused(own_base, hostile(weights=make(own_base)), message)
    check_untouched(own_base, good, expected)


@pytest.mark.parametrize("part", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b"{}" * 9])
def test_files_that_are_none(own_base, good, expected, hostile, part, data):
    source = hostile()
    (Path(source) / part).write_bytes(data)
    for read in (adapter_sha256, read_settings, lambda s: load_adapters(own_base, {"x": s})):
        with pytest.raises(AdapterError):
            read(source)
    check_untouched(own_base, good, expected)


def test_dora_beside_8_bit_weights_is_refused_on_a_cpu(hostile):
    """To unpack them there PEFT makes a copy of the weights, which lacks their scales."""
    int8 = load_base(ModelConfig(id="embedded", quantization="int8"), torch.device("cpu"))
    message = r"int8 on a CPU.*set model.quantization to nf4 or none"
    refused(int8, hostile({"use_dora": True}), message)


# --- while others are loaded ----------------------------------------------------------------------


def test_one_hostile_adapter_leaves_those_that_are_there(own_base, good, expected, hostile):
    """As in the app, where adapters stay: any number of failures, then a good one loads."""
    model = load_adapters(own_base, {"good": str(good)})
    policy = Policy(own_base, model)
    try:
        sources = [
            hostile({"target_modules": ["q_proj", "norm"]}),
            hostile_copy(good, {"modules_to_save": ["lm_head"]}),
            hostile_copy(good, {"use_dora": True}),
            hostile_copy(good, weights=_with("base_model.model.lm_head.weight", torch.zeros(2, 2))),
        ]
        for source in sources:
            refused(own_base, source, ".", model)
            assert set(model.peft_config) == {"good"} and model.active_adapter == "good"
            assert torch.equal(logits(own_base), expected[1])
            with policy.view(BASE):
                assert torch.equal(logits(own_base), expected[0])
        load_adapters(own_base, {"again": str(good)}, model)
        with policy.view("again"):
            assert torch.equal(logits(own_base), expected[1])
        assert torch.equal(logits(own_base), expected[1])
    finally:
        take_off(own_base, model)
    check_untouched(own_base, good, expected)


def hostile_copy(good, settings=None, weights=None):
    """Beside the good one, by a name of its own."""
    folder = good.parent / f"copy{len(list(good.parent.iterdir()))}"
    shutil.copytree(good, folder)
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | (settings or {})))
    if weights is not None:
        save_file(weights(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return str(folder)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyError("lm_head"), AdapterError),
        (AttributeError("no attribute"), AdapterError),
        (TypeError("not callable"), AdapterError),
        (RecursionError("too deep"), AdapterError),
        (MemoryError(), AdapterError),
        (torch.OutOfMemoryError("CUDA out of memory"), AdapterError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
)
@pytest.mark.parametrize("others", [False, True])
def test_an_error_halfway_leaves_everything_as_it_was(
    own_base, good, expected, monkeypatch, error, raised, others
):
    model = load_adapters(own_base, {"good": str(good)}) if others else None
    create, calls = LoraModel._create_and_replace, []

    def failing(self, *args, **settings):
        calls.append(args)
        if len(calls) == 5:
            raise error
        return create(self, *args, **settings)

    monkeypatch.setattr(LoraModel, "_create_and_replace", failing)
    modules = {name: id(module) for name, module in own_base.model.named_modules()}
    with pytest.raises(raised):
        load_adapters(own_base, {"first": str(good), "second": str(good)}, model)
    assert len(calls) == 5
    monkeypatch.undo()
    assert {name: id(module) for name, module in own_base.model.named_modules()} == modules
    if model is not None:
        assert set(model.peft_config) == {"good"}
        assert torch.equal(logits(own_base), expected[1])
        load_adapters(own_base, {"first": str(good)}, model)
        model.set_adapter("first")
        assert torch.equal(logits(own_base), expected[1])
        take_off(own_base, model)
    check_untouched(own_base, good, expected)


# --- what is unusual and harmless -----------------------------------------------------------------

UNSLOTH = (  # how another trainer writes its targets
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|v_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))"
)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True, "target_modules": ["q_proj"]},
        {"rank_pattern": {"q_proj": 2, r"layers\.0\.mlp\.up_proj": 6}},
        {"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 3.5}},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"layers_to_transform": 1},
        {"exclude_modules": ["mlp.up_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": UNSLOTH},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_special_adapters_load_as_peft_loads_them(own_base, good, expected, tmp_path, options):
    """And beside them another adapter computes the same bits."""
    targets = ["q_proj", "up_proj", "down_proj"]
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    made = get_peft_model(own_base.model, PeftLoraConfig(**(wanted | options)))
    add_noise(made, 3)
    made.peft_config["default"].base_model_name_or_path = "embedded"
    made.save_pretrained(str(tmp_path), save_embedding_layers=False)
    took = logits(own_base)
    assert not torch.equal(took, expected[0])
    take_off(own_base, made)
    model = load_adapters(own_base, {"good": str(good), "special": str(tmp_path)})
    policy = Policy(own_base, model)
    assert torch.equal(logits(own_base), expected[1])
    with policy.view("special"):
        assert torch.equal(logits(own_base), took)
    take_off(own_base, model)
    check_untouched(own_base, good, expected)


def test_an_adapter_on_the_head_is_refused(own_base, good, expected, tmp_path):
    wanted = PeftLoraConfig(r=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    made = get_peft_model(own_base.model, wanted)
    made.peft_config["default"].base_model_name_or_path = "embedded"
    made.save_pretrained(str(tmp_path), save_embedding_layers=False)
    take_off(own_base, made)
    refused(own_base, str(tmp_path), r"changes the output head \(lm_head\)")
    check_untouched(own_base, good, expected)
