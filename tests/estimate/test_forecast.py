"""kit estimate: exact where torch can be asked, by hand where it cannot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks

from kit.cli import main
from kit.config import EMBEDDED, EMBEDDED_PATH, PREFLIGHT_SAMPLES, LoraConfig, ModelConfig
from kit.errors import ConfigError, ModelError
from kit.estimate.forecast import estimate
from kit.estimate.gpus import find_gpu, known_as
from kit.estimate.memory import (
    GIB,
    Memory,
    kept_per_token,
    lora_size,
    optimizer_bytes,
    weight_bytes,
    with_value,
)
from kit.model import rollout
from kit.model.batching import make_batch
from kit.model.rollout import Request, Sampling
from kit.model.shape import find_shape, read_shape, rows_that_fit
from kit.recipe import build_config, load_config
from kit.training import preflight

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "qwen2.5-0.5b-pspo.yaml"
SMALL = find_shape("Qwen/Qwen2.5-0.5B")[0]


def config(**sections):
    values = {"model": {"id": "Qwen/Qwen2.5-0.5B"}, "data": {"name": "gsm8k"}}
    return build_config({**values, **sections})


# --- the model's shape ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parameters"),  # as the hub shows them
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ],
)
def test_the_table_has_the_real_shapes(model, parameters):
    shape, source = find_shape(model)
    assert shape.linear_size + shape.other_size == parameters
    assert source == "from the kit's own table"


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 24, "attention_bias": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": 8}),
    ],
)
def test_a_config_json_gives_the_weights_of_the_model(family, options, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(
        family,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=500,
        **options,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    settings.save_pretrained(tmp_path)
    shape, source = find_shape(str(tmp_path))
    assert shape.linear_size + shape.other_size == model.num_parameters()
    assert source == f"from {tmp_path / 'config.json'}"


def test_the_embedded_model_is_where_the_trainer_finds_it():
    assert find_shape(EMBEDDED)[0] == find_shape(str(EMBEDDED_PATH))[0]


VALID = json.loads((EMBEDDED_PATH / "config.json").read_text())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "is of None"),
        ({**VALID, "model_type": "mamba"}, "is of 'mamba'"),
        ({**VALID, "hidden_size": "192"}, "hidden_size must be a whole number, got '192'"),
        ({**VALID, "num_hidden_layers": 0}, "num_hidden_layers must be a whole number, got 0"),
        ({**VALID, "vocab_size": True}, "vocab_size must be a whole number, got True"),
        ({k: v for k, v in VALID.items() if k != "hidden_size"}, "hidden_size must be"),
        ({**VALID, "quantization_config": {"bits": 4}}, "already quantized"),
    ],
)
def test_a_config_json_that_says_something_else_is_refused(values, message):
    with pytest.raises(ModelError, match=message):
        read_shape(values, "mine")


def test_a_model_that_cannot_be_read_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"model\.id=folder.*Qwen2\.5-\{0\.5B,1\.5B,3B,7B\}"):
        find_shape("nobody/nothing")
    with pytest.raises(ModelError, match="no folder and no hub id"):
        find_shape("a/b/c")
    with pytest.raises(ModelError, match=r"config\.json is missing or no JSON"):
        find_shape(str(tmp_path))
    for text in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match="no JSON"):
            find_shape(str(tmp_path))
    # another revision may have another shape: the table must not answer for it
    with pytest.raises(ModelError, match="cannot read"):
        find_shape("Qwen/Qwen2.5-0.5B", "experimental")


# --- bytes by hand -------------------------------------------------------------------------------


def test_weights_of_the_smallest_qwen():
    # linear layers of one layer: q, o 896 x 896; k, v 128 x 896; gate, up, down 4864 x 896
    #   = 2 x 802,816 + 2 x 114,688 + 3 x 4,358,144 = 14,909,440 weights, half a byte each
    # scales, one byte per 64: 232,960; their scales, 4 bytes per 256: 4 x 910 = 3,640
    # 7 times two tables and an offset: 7 x 4 x 273 = 7,644
    assert weight_bytes(SMALL, "nf4", 2) == {
        "weights, linear layers (nf4)": 24 * (7_454_720 + 232_960 + 3_640 + 7_644),
        # embeddings 151,936 x 896, 49 norms of 896, biases 896 + 128 + 128 in 24 layers
        "weights, the rest (embeddings, …)": 2 * (136_134_656 + 43_904 + 27_648),
    }
    assert weight_bytes(SMALL, "none", 4)["weights, linear layers"] == 4 * 24 * 14_909_440
    # outputs with a scale of 4 bytes: 2 x 896 + 2 x 128 + 2 x 4864 + 896 = 12,672
    assert weight_bytes(SMALL, "int8", 2)["weights, linear layers (int8)"] == 24 * (
        14_909_440 + 4 * 12_672
    )


def test_lora_and_its_optimizer():
    # in + out of the seven: 1792 + 1024 + 1024 + 1792 + 3 x 5760 = 22,912
    everything = config(lora={"rank": 32})
    assert lora_size(SMALL, everything) == 24 * 32 * 22_912
    assert optimizer_bytes(SMALL, everything) == 8 * 24 * 32 * 22_912
    some = config(lora={"rank": 4, "targets": ["q_proj", "v_proj"]}, optim={"name": "adamw_8bit"})
    assert lora_size(SMALL, some) == 24 * 4 * (1792 + 1024)
    # A 3584, 3584; B 3584, 512: all below 4096, so the state stays in float32
    assert optimizer_bytes(SMALL, some) == 8 * lora_size(SMALL, some)
    eight = config(lora={"rank": 8, "targets": ["v_proj"]}, optim={"name": "adamw_8bit"})
    # A 7168 numbers: two bytes each and two scales per 256, 28 blocks; B 1024 in float32
    assert optimizer_bytes(SMALL, eight) == 24 * (2 * (7168 + 4 * 28) + 8 * 1024)
    with pytest.raises(ConfigError, match="matches no module; there are q_proj"):
        lora_size(SMALL, config(lora={"targets": ["query"]}))


def test_cache_and_rows():
    # 2 (keys, values) x 24 layers x 2 heads x 64 x 2 bytes: the 12 KB that are published
    assert SMALL.cache_per_token(2) == 12_288
    # a row of 1024: 1.5 x 12,288 x 1024 + 32 x 151,936 = 23,736,320 bytes of half the free memory
    assert rows_that_fit(12_288, 151_936, 1024, 20 * 23_736_320) == 10
    assert rows_that_fit(12_288, 151_936, 1024, 20 * 23_736_320 - 1) == 9
    assert rows_that_fit(12_288, 151_936, 1024, 0) == 1


def test_what_a_layer_keeps_of_a_token():
    padded = {"id": "Qwen/Qwen2.5-0.5B", "attention": "sdpa"}
    every = config(model=padded, lora={"rank": 32})
    # 16 bits, a row of 128: two norms 4 x 896 + 4; float32 inputs of LoRA 4 x (3 x 896 + 896 +
    # 2 x 896 + 4864); their products with A 7 x 4 x 32; query, keys, values, result 4 x 2 x 896,
    # mask 2 x 128, normalizers 4 x 14; gate, its silu, up 3 x 2 x 4864
    assert kept_per_token(SMALL, every, 2, 128) == 7176 + 40_960 + 896 + 7168 + 256 + 56 + 29_184
    # 32 bits: q, k and v share their input, gate and up theirs; down's is one more of 4864
    assert kept_per_token(SMALL, every, 4, 128) == (
        7176 + 2 * 3584 + 19_456 + 896 + 4 * 3584 + 512 + 56 + 3 * 19_456
    )
    # attention alone: the MLP keeps no inputs for LoRA
    query = config(model=padded, lora={"rank": 1, "targets": ["q_proj"]})
    assert kept_per_token(SMALL, query, 2, 0) == 7176 + 3584 + 4 + 7168 + 56 + 29_184
    # prompts shared: query and result 2 x 2 x 896; 1.5 keys and values of 2 heads a token, in
    # 2 bytes; no mask, which all layers share
    shared = config(lora={"rank": 1, "targets": ["q_proj"]})
    attention = 3584 + int(1.5 * 2 * 2 * 128) + 56
    assert kept_per_token(SMALL, shared, 2, 999, 1.5) == 7176 + 3584 + 4 + attention + 29_184
    # 32 bits: what goes into o_proj is a copy, gathered from the groups
    output = config(lora={"rank": 1, "targets": ["o_proj"]})
    attention = 4 * 3 * 896 + 4 * 2 * 128 + 56
    assert kept_per_token(SMALL, output, 4, 999) == 7176 + 4 + attention + 58_368


def test_phases_of_a_recipe():
    found = estimate(load_config(RECIPE), "T4")
    by_name = {phase.name: phase for phase in found.phases}
    assert list(by_name) == ["prompts (validation)", "decoding (pre-flight)", "update"]
    assert found.rows == {"steps": (64, 64), "pre-flight": (128, 128), "validation": (128, 128)}
    assert found.micro_batch == (8192, 1024)
    prompts, decoding, update = found.phases
    assert prompts.parts["dequantized copy"] == 2 * 357_826_560
    assert prompts.parts["key-value cache"] == 128 * 512 * 12_288
    # 8192 tokens at once; one token of one layer: 12 x (4864 + 896), and 3 bytes of mask for
    # 512 positions
    assert prompts.parts["activations"] == 8192 * (12 * 5760 + 3 * 512)
    # the cache, and half a layer of it twice
    assert decoding.parts["key-value cache"] == 128 * 1024 * (12_288 + 256)
    # with the keys and values of one layer for 14 heads
    repeating = estimate(load_config(RECIPE, ["model.attention=sdpa"]), "T4").phases[1]
    repeated = repeating.parts["key-value cache"] - decoding.parts["key-value cache"]
    assert repeated == 128 * 1024 * 2 * 896 * 2
    assert decoding.parts["logits"] == 128 * 24 * 151_936
    assert update.parts["gradients"] == 4 * 17_596_416
    # checkpointing keeps the input of every layer, 2 x 896 x 24; the last hidden states in
    # float32, cosine and sine 2 x 2 x 64, the states of completions: 8 of 9 tokens, 512 after a
    # prompt of 512; masks of the prompt 512 x 512 and completions 512 x 1024, for 7 heads a key
    masks = 2 * 7 * (512 * 512 + 512 * 1024)
    assert update.parts["activations"] == 8192 * (43_008 + 3840) + 7281 * 1792 + masks
    # 8 completions have the prompt's keys besides their own: 8 x 512 more than 4608 tokens
    kept = kept_per_token(SMALL, load_config(RECIPE), 2, 1024, 1 + 8 / 9)
    backward = 8192 * (6 * 4864 + 8 * 896) + 2 * 4864 * 896
    assert update.parts["log-probs or backward"] == 8192 * kept + backward
    passing = sum(update.parts[name] for name in ("gradients", "activations"))
    passing += update.parts["log-probs or backward"]
    assert update.parts["fragmentation"] == passing // 10
    # the copy stays in one piece
    # rank 32 of q, k, v: 3 x (896 + 1152); o: 1792; gate, up: 2 x (896 + 9728); down: 5760
    assert prompts.parts["LoRA, side by side"] == 4 * 24 * 32 * (6144 + 1792 + 21_248 + 5760)
    passing = prompts.parts["key-value cache"] + prompts.parts["activations"]
    passing += prompts.parts["LoRA, side by side"]
    assert prompts.parts["fragmentation"] == passing // 10
    assert found.peak == max(phase.total for phase in found.phases)


def test_checkpointing_dtype_and_chunk_change_the_update():
    on, padded = "model.gradient_checkpointing=true", "model.attention=sdpa"

    def update(*overrides):
        return estimate(load_config(RECIPE, [padded, *overrides]), "H100").phases[-1].parts

    kept = kept_per_token(SMALL, load_config(RECIPE, [padded]), 2, 1024)
    plain = update("model.gradient_checkpointing=false")
    assert plain["activations"] == 8192 * (24 * kept + 3840) + 4096 * 1792
    assert update() == plain  # there is room for it
    # 4096 positions x 151,936 x two float32 tensors outweigh one backward
    large = update("model.gradient_checkpointing=false", "train.logprob_chunk=4096")
    assert large["log-probs or backward"] == 4096 * 151_936 * 8
    wide = update(on, "model.dtype=float32", "train.logprob_chunk=8192")
    assert wide["log-probs or backward"] == 4096 * 151_936 * 8
    # one row at least, even where the budget is smaller
    single = update(on, "train.micro_batch_tokens=16")
    assert single["activations"] == 1024 * (43_008 + 3840 + 896)


def test_the_copy_is_made_where_it_takes_less_than_a_third_of_the_free_memory():
    recipe = load_config(RECIPE)
    resident = sum(Memory(SMALL, recipe, 0).resident.values())
    size = 2 * 357_826_560
    assert Memory(SMALL, recipe, resident + 3 * size + 3).copy == size
    assert Memory(SMALL, recipe, resident + 3 * size).copy == 0
    always = load_config(RECIPE, ["rollout.dequantize=always"])
    assert Memory(SMALL, always, 0).copy == size
    plain = load_config(RECIPE, ["rollout.dequantize=always", "model.quantization=none"])
    assert Memory(SMALL, plain, 0).copy == 0  # there is nothing to unpack


def test_settings_that_change_what_is_sampled():
    def phases(*overrides):
        found = estimate(load_config(RECIPE, list(overrides)), "T4")
        return {phase.name.partition(" ")[0]: phase.parts for phase in found.phases}, found

    nucleus, _ = phases("rollout.top_p=0.9")
    assert nucleus["decoding"]["logits"] == 128 * 42 * 151_936
    few, found = phases("rollout.max_rows=6", "rollout.dequantize=never")
    assert found.rows["steps"] == (6, 64)
    assert few["decoding"]["dequantized copy"] == 0
    # 6 rows of groups of 4 have two prompts, validation's six; the largest layer is unpacked
    assert few["prompts"]["activations"] == 6 * 512 * 70_656 + 2 * 4864 * 896
    quiet = ("train.preflight_problems=0", "train.validate_every=0")
    assert list(phases(*quiet)[1].rows) == ["steps"]
    supervised, found = phases("method=sft", *quiet)
    assert list(supervised) == ["update"] and found.micro_batch[0] == 8192
    assert phases("method=sft", "train.sft_batch=2", *quiet)[1].micro_batch[0] == 2048
    source = ("preferences.source=pairs.jsonl", "train.updates_per_rollout=1", *quiet)
    pairs, found = phases("method=dpo", "preferences.batch=2", *source)
    assert list(pairs) == ["update"]
    assert found.micro_batch[0] == 2 * (512 + 2 * 512)  # a pair reads its prompt once
    apart = phases("method=dpo", "preferences.batch=2", "model.attention=sdpa", *source)[1]
    assert apart.micro_batch[0] == 2 * 2 * 1024
    labelled = phases("method=kto", "preferences.batch=3", *source)[1]
    assert labelled.micro_batch[0] == 3 * 1024
    # a pair is not cut, however little there is asked for
    assert phases("method=dpo", "train.micro_batch_tokens=16", *source)[1].micro_batch[0] == 1536
    continued, _ = phases("model.adapter=somewhere")
    assert continued["update"]["LoRA weights"] == 2 * 4 * 17_596_416


# --- against what torch allocates ----------------------------------------------------------------


def _saved_bytes(function, ignored) -> int:
    """Bytes that autograd keeps for the backward pass."""
    skip = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip:
            kept[storage.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _quantized(model) -> list[torch.Tensor]:
    import bitsandbytes as bnb

    found = []
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            found += [module.weight.data, state.absmax, state.code, state.offset]
            found += [state.state2.absmax, state.state2.code]
    return found


@pytest.mark.smoke
@pytest.mark.parametrize("tied", [True, False])
def test_weights_lora_and_optimizer_are_exact(tied, tmp_path):
    from accelerate import Accelerator
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from kit.model.base import load_base
    from kit.model.lora import add_lora
    from kit.model.policy import Policy
    from kit.training.optimizer import Optimizer

    settings = Qwen2Config(**{**VALID, "tie_word_embeddings": tied})
    Qwen2ForCausalLM(settings).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_PATH / name, tmp_path)
    shape = find_shape(str(tmp_path))[0]
    base = load_base(ModelConfig(id=str(tmp_path)), torch.device("cpu"))
    packed, rest = weight_bytes(shape, "nf4", 4).values()
    assert sum(t.nbytes for t in _quantized(base.model)) == packed
    dense = {p.data_ptr(): p.nbytes for p in base.model.parameters() if p.dtype != torch.uint8}
    assert sum(dense.values()) == rest
    settings = config(lora={"rank": 4, "targets": ["q_proj", "down_proj"]})
    policy = Policy(base, add_lora(base, settings.lora, seed=0))
    assert sum(p.nbytes for p in policy.trainable) == 4 * lora_size(shape, settings)
    optimizer = Optimizer(
        policy.trainable, settings.optim, settings.train, Accelerator(cpu=True), scales_loss=False
    )
    optimizer.step([1], lambda rows: (sum(p.sum() for p in policy.trainable), None))
    moments = [state[key] for state in optimizer._adam.state.values() for key in state]
    assert sum(t.nbytes for t in moments if t.ndim) == optimizer_bytes(shape, settings)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("dtype", "attention", "targets", "checkpointed"),
    [
        ("float32", "sdpa", "all-linear", False),
        ("float32", "sdpa", ["v_proj", "up_proj"], False),
        ("bfloat16", "sdpa", "all-linear", False),
        ("bfloat16", "sdpa", ["q_proj", "down_proj"], False),
        ("bfloat16", "sdpa", "all-linear", True),
        ("bfloat16", "eager", "all-linear", False),
    ],
)
def test_activations_are_within_a_tenth(dtype, attention, targets, checkpointed):
    from kit.model.base import load_base
    from kit.model.lora import add_lora
    from kit.model.policy import Policy

    model = ModelConfig(
        id="embedded", dtype=dtype, attention=attention, gradient_checkpointing=checkpointed
    )
    base = load_base(model, torch.device("cpu"))
    lora = LoraConfig(rank=8, targets=targets)
    policy = Policy(base, add_lora(base, lora, seed=0))
    if checkpointed:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
        base.model.train()
    # three rows of 48 tokens, one of them padded
    batch = make_batch([[5] * 40] * 3, [[7] * 8, [7] * 8, [7] * 5], pad_id=0)
    measured = _saved_bytes(
        lambda: policy.logprobs(batch), [*base.model.parameters(), *_quantized(base.model)]
    )
    settings = config(
        model=model.model_dump(),
        lora=lora.model_dump(),
        method="sft",
        data={"name": "x", "max_prompt_tokens": 40},
        rollout={"max_new_tokens": 8},
        train={"sft_batch": 3},
    )
    memory = Memory(find_shape("embedded")[0], settings, GIB)
    estimated = memory.phases()[-1].parts["activations"]
    assert 0.99 <= estimated / measured <= 1.1


@pytest.mark.smoke
def test_rows_at_once_are_those_of_the_sampler(policy, monkeypatch):
    assert preflight.SAMPLES == PREFLIGHT_SAMPLES
    monkeypatch.setattr(rollout, "free_memory", lambda device: 123_456_789)
    requests = [Request((5,) * 17, (0,), "default")]
    rows = rollout._rows_that_fit(policy, requests, Sampling(max_new_tokens=31))
    shape = find_shape("embedded")[0]
    assert rows == rows_that_fit(shape.cache_per_token(4), shape.vocab, 48, 123_456_789) > 1


# --- advice --------------------------------------------------------------------------------------


CHECKPOINTING = "model.gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("gpu", "overrides", "advised"),
    [
        (
            "4",
            ["model.gradient_checkpointing=false", "model.quantization=none"],
            [CHECKPOINTING],
        ),
        # 4096 is not enough, 1024 not needed; then decoding is the peak, by the adapter's copy
        ("2", [], ["train.micro_batch_tokens=2048", "rollout.max_rows=8"]),
        # once the update fits, decoding is the peak: smaller micro-batches would not help
        (
            "T4",
            [
                *("model.id=Qwen/Qwen2.5-7B", "model.gradient_checkpointing=false"),
                "rollout.max_rows=128",
            ],
            [CHECKPOINTING, "rollout.max_rows=64"],
        ),
        (
            "8",
            ["model.id=Qwen/Qwen2.5-3B", "model.dtype=float32"],
            ["train.micro_batch_tokens=4096"],
        ),
    ],
)
def test_advice_gives_the_peaks_it_promises_and_then_fits(gpu, overrides, advised):
    before = estimate(load_config(RECIPE, overrides), gpu)
    assert not before.fits
    assert [advice.override for advice in before.advice] == advised
    taken = list(overrides)
    for advice in before.advice:
        taken.append(advice.override)
        after = estimate(load_config(RECIPE, taken), gpu)
        assert after.peak == advice.peak
    assert after.fits and after.advice == ()
    assert "To make it fit, add" in str(before)


def test_what_nothing_helps_says_so():
    found = estimate(load_config(RECIPE, ["model.id=Qwen/Qwen2.5-7B"]), "5")
    assert not found.fits and found.advice[-1].peak > found.gpu.memory
    shown = str(found)
    assert "These help, but are not enough" in shown and "Take a smaller model" in shown
    assert "A100-80" in shown.splitlines()[-3]


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "new", "seconds"),  # published on a T4, 8 completions per step
    [("Qwen/Qwen2.5-7B-Instruct", 256, 94.5), ("Qwen/Qwen2.5-3B-Instruct", 200, 24.1)],
)
def test_published_steps_lie_in_the_range(model, new, seconds):
    overrides = [f"model.id={model}", "rollout.prompts_per_step=1", f"rollout.max_new_tokens={new}"]
    overrides += ["data.max_prompt_tokens=256", "train.updates_per_rollout=1"]
    overrides += ["model.attention=sdpa"]  # each completion with a prompt of its own, as there
    least, most = estimate(load_config(RECIPE, overrides), "T4").seconds["one step"]
    assert least < seconds < most


def test_a_step_by_hand():
    overrides = ["lora.targets=[q_proj]", "train.updates_per_rollout=1", "rollout.dequantize=never"]
    overrides += ["model.gradient_checkpointing=true"]
    overrides += ["train.validate_every=0", "train.preflight_problems=0", "train.steps=10"]
    seconds = estimate(load_config(RECIPE, overrides), "T4").seconds
    # 512 tokens, one after the other, 46 + 24 x 36 launches of 25 microseconds each
    prompts = 2 * 357_826_560 * 8 * 512
    slow = 512 * 910 * 25e-6 + prompts / 6.5e12
    assert seconds["sampling"][1] == pytest.approx(slow, rel=1e-12)
    # reference, forward, forward again, backward of 8 prompts and 64 completions, 36,864 tokens;
    # the head 1 + 2 times; at 10 %
    forward = 2 * 36_864 * (357_826_560 + 24 * 896 * 1024)
    head = 2 * 64 * 512 * 151_936 * 896
    assert seconds["update"][1] == pytest.approx((4 * forward + 3 * head) / 6.5e12, rel=1e-12)
    # half the length and half the groups; launches of 8 microseconds, 256 times
    fast = 256 * 910 * 8e-6 + prompts / 2 / 26e12
    assert seconds["sampling"][0] == pytest.approx(fast, rel=1e-12)
    # half of 36,864 tokens, half of the length
    forward = 2 * 9_216 * (357_826_560 + 24 * 896 * 512)
    head = 2 * 32 * 256 * 151_936 * 896
    assert seconds["update"][0] == pytest.approx((4 * forward + 3 * head) / 26e12, rel=1e-12)
    assert seconds["one step"][0] == seconds["sampling"][0] + seconds["update"][0]
    assert seconds["whole run"][1] == pytest.approx(10 * seconds["one step"][1], rel=1e-12)
    assert "validation" not in seconds


def test_a_step_on_preferences_by_hand():
    overrides = ["lora.targets=[q_proj]", "train.updates_per_rollout=1", "model.attention=sdpa"]
    overrides += ["model.gradient_checkpointing=true", "train.validate_every=0"]

    def update(*method):
        return estimate(load_config(RECIPE, [*overrides, *method]), "T4").seconds["update"][1]

    # 64 rows of 1024 tokens, at 10 % of 65 Tflop/s
    forward = 2 * 64 * 1024 * (357_826_560 + 24 * 896 * 1024)
    head = 2 * 64 * 512 * 151_936 * 896
    source = "preferences.source=pairs.jsonl"
    # reference, forward, forward again, backward; the head 1 + 2 times
    found = update("method=dpo", source, "preferences.batch=32")
    assert found == pytest.approx((4 * forward + 3 * head) / 6.5e12, rel=1e-12)
    # and mismatched completions under policy and reference
    found = update("method=kto", source, "preferences.batch=64")
    assert found == pytest.approx((6 * forward + 5 * head) / 6.5e12, rel=1e-12)
    found = update("method=sft", "train.sft_batch=64")
    assert found == pytest.approx((3 * forward + 2 * head) / 6.5e12, rel=1e-12)


@pytest.mark.parametrize(("attention", "read"), [("auto", 1), ("sdpa", 3 + 2 * 7)])
def test_many_rows_are_bound_by_bytes(attention, read):
    """4.5 for a weight, A and B of rank 32 in float32, head, cache with half a bucket, logits; at
    40 % of 320 GB/s. The library's attention copies its cache and repeats it for 14 heads of 2."""
    overrides = ["lora.targets=[q_proj]", "rollout.dequantize=never", "rollout.max_rows=256"]
    overrides += ["rollout.prompts_per_step=32", f"model.attention={attention}"]
    lora = 24 * 4 * 32 * (896 + 896)
    cache = 256 * (512 + 256 + 64) * 12_288
    moved = 4.5 * 357_826_560 + lora + 2 * 136_134_656 + read * cache + 256 * 24 * 151_936
    prompts = 2 * 357_826_560 * 32 * 512
    slow = 512 * moved / 128e9 + prompts / 6.5e12
    found = estimate(load_config(RECIPE, overrides), "T4").seconds["sampling"][1]
    assert found == pytest.approx(slow, rel=1e-12)


# --- the GPU, the answer -------------------------------------------------------------------------


def test_validations_and_preflight_count_for_the_run():
    overrides = ["train.steps=50", "train.validate_every=20", "train.preflight_problems=0"]
    seconds = estimate(load_config(RECIPE, overrides), "T4").seconds
    for end in (0, 1):  # validations before step 0 and after steps 20, 40 and 50
        expected = 50 * seconds["one step"][end] + 4 * seconds["validation"][end]
        assert seconds["whole run"][end] == pytest.approx(expected, rel=1e-12)
    with_look = estimate(load_config(RECIPE, overrides[:2]), "T4").seconds
    assert with_look["whole run"][1] > seconds["whole run"][1]


def test_small_models_are_bound_by_launches():
    overrides = [
        "model.id=embedded",
        "train.updates_per_rollout=1",
        "train.micro_batch_tokens=1024",
    ]
    seconds = estimate(load_config(RECIPE, overrides), "H100").seconds
    # 36 micro-batches of 4 layers: reference 50, forward with LoRA 99, backward 139
    launches = 36 * 4 * (50 + 99 + 139)
    assert seconds["update"][1] == pytest.approx(launches * 25e-6, rel=1e-12)


def test_gpus_by_name_and_by_size():
    assert find_gpu("T4") == find_gpu("nvidia tesla t4")
    assert find_gpu("T4").memory == int(14.56 * GIB) and not find_gpu("T4").bfloat16
    assert find_gpu("RTX 3060").name == find_gpu("3060").name == "3060"
    assert find_gpu("a100-80gb").name == "A100-80"
    assert find_gpu("24") == find_gpu("24GiB") == replace(find_gpu("24GB"), name="24 GiB")
    assert find_gpu("7.5").memory == int(7.5 * GIB)


def test_a_gpu_that_is_spelled_like_a_known_one_is_suggested():
    near = {"3060Ti": "3060", "RTX 4090 Ti": "4090", "H1000": "H100", "A100": "A100-"}
    for name, meant in near.items():
        with pytest.raises(ConfigError, match=f"unknown GPU '{name}', did you mean '{meant}"):
            find_gpu(name)


@pytest.mark.parametrize("name", ["", "T5", "0", "-4", "nan", "inf", "1e9", "3061", "A100", "٤٠"])
def test_an_unknown_gpu_is_refused_with_the_list(name):
    with pytest.raises(ConfigError, match=r"[Kk]nown are T4, V100, L4.*--gpu 16"):
        find_gpu(name)


@pytest.mark.parametrize(
    ("name", "memory", "known"),
    [
        ("Tesla T4", 14.56, "T4"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "A100-80"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
        ("Tesla V100-SXM2-16GB", 15.8, "V100"),
        ("NVIDIA GeForce RTX 3060", 11.7, "3060"),
        ("NVIDIA GeForce RTX 3060", 7.8, "7.8"),
        ("NVIDIA GeForce RTX 4060 Ti", 7.6, "7.6"),
        ("NVIDIA A10G", 22.1, "A10G"),
        ("NVIDIA RTX A4000", 15.7, "15.7"),
    ],
)
def test_cards_are_known_by_what_their_driver_calls_them(name, memory, known):
    assert known_as(name, memory) == known


def test_the_answer_in_words_and_as_json():
    found = estimate(load_config(RECIPE))  # T4 where nothing is said
    shown = str(found)
    assert shown.startswith("Qwen/Qwen2.5-0.5B fits on T4: ")
    assert "computed in float16" in shown and "not measured" in shown
    table = [line.split() for line in shown.splitlines() if line.startswith("together")]
    assert table == [["together", *(f"{phase.total / GIB:.2f}" for phase in found.phases)]]
    record = json.loads(json.dumps(found.record()))
    assert record["fits"] is True and record["peak"] == found.peak
    assert [phase["total"] for phase in record["phases"]] == [p.total for p in found.phases]
    assert record["gpu"]["name"] == "T4" and record["advice"] == []
    assert len(record["seconds"]["one step"]) == 2
    unknown = estimate(load_config(RECIPE), "16")
    assert unknown.seconds == {} and "the speed of 16 GiB is not known" in str(unknown)
    assert unknown.dtype == "bfloat16"


def test_arms_that_train_together():
    """Each brings LoRA weights, optimizer state, rows and updates; the base is there once."""
    one = config(train={"steps": 10, "validate_every": 5, "preflight_problems": 0})
    more = one.model_copy(update={"train": one.train.model_copy(update={"updates_per_rollout": 8})})
    alone, both = estimate(one, "T4"), estimate(one, "T4", [more])
    part = {name: size for phase in alone.phases for name, size in phase.parts.items()}
    parts = {name: size for phase in both.phases for name, size in phase.parts.items()}
    for name in ("LoRA weights", "optimizer state"):
        assert parts[name] == 2 * part[name]
    linear = "weights, linear layers (nf4)"
    assert parts[linear] == part[linear]
    assert both.rows["steps"][1] == 2 * alone.rows["steps"][1]
    assert both.rows["validation"] == alone.rows["validation"]  # one arm after the other
    updates = one.train.updates_per_rollout
    fixed, each = 1, 2 + 1  # the reference; forward, again with checkpointing, and backward
    ratio = (2 * fixed + (updates + 8) * each) / (fixed + updates * each)
    head = (2 * fixed + (updates + 8) * 2) / (fixed + updates * 2)
    assert (
        sorted([ratio, head])[0] * 0.999
        <= (both.likely["update"] / alone.likely["update"])
        <= sorted([ratio, head])[1] * 1.001
    )
    assert both.likely["validation"] == 2 * alone.likely["validation"]
    assert "2 arms that train together" in str(both) and "arms" not in str(alone)
    assert both.record()["arms"] == 2
    budget = one.model_copy(update={"memory_budget": "1GB"})
    with pytest.raises(ConfigError, match="are not enough for 2 arms that train together"):
        estimate(budget, "T4", [budget])


def test_what_more_memory_would_buy_is_said():
    recipe = load_config(RECIPE)
    found = estimate(recipe, "T4")  # 14.56 GiB, nine tenths of which are 13.1
    assert found.faster is not None and found.faster.override == "memory_budget=13GiB"
    within = estimate(load_config(RECIPE, [found.faster.override]), "T4")
    assert within.chosen["model.gradient_checkpointing"] is False
    assert found.faster.step == within.likely["one step"] < 0.95 * found.likely["one step"]
    assert found.faster.peak == within.peak < 13 * 2**30
    said = str(found).splitlines()[-1]
    assert said.startswith("Faster, with the same results: memory_budget=13GiB takes ")
    assert found.record()["faster"]["override"] == "memory_budget=13GiB"
    # who has said what to spend is told nothing, nor who has nothing to spend or nothing to gain
    assert within.faster is None and "Faster" not in str(within)
    assert estimate(recipe, "4").faster is None
    assert estimate(recipe, "4090").faster is None  # which has room for all activations


def test_the_command_takes_the_arms_of_a_comparison(capsys):
    recipes = [str(RECIPE.with_name(f"qwen2.5-0.5b-{arm}.yaml")) for arm in ("clip", "pspo")]
    assert main(["estimate", *recipes, "--gpu", "3060", "train.steps=10"]) == 0
    assert "2 arms that train together" in capsys.readouterr().out
    other = str(RECIPE.with_name("qwen2.5-1.5b-clip.yaml"))
    assert main(["estimate", recipes[0], other]) == 1
    error = capsys.readouterr().err
    assert error.count("objective") == 1 and "--vary" not in error  # which it does not take
    assert "the arms differ in more than objective, preferences, " in error
    assert main(["estimate", *recipes, "--gpu", "1"]) == 1
    assert "clip.yaml with " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("clip", "lora.targets=[q_proj]", "lora.targets=all-linear"),
        ("clip", "lora.rank=8", "lora.rank=64"),
        ("instruct-dpo", "preferences.batch=2", "preferences.batch=64"),
    ],
)
def test_arms_may_be_named_in_any_order(name, one, other):
    recipe = RECIPE.with_name(f"qwen2.5-0.5b-{name}.yaml")
    arms = [load_config(recipe, [override]) for override in (one, other)]
    for gpu in ("L4", "2"):
        found = [estimate(a, gpu, [b]).record() for a, b in (arms, arms[::-1])]
        assert found[0] == found[1]


def test_what_is_advised_holds_for_all_arms():
    large = config(model={"id": "Qwen/Qwen2.5-7B"}, rollout={"max_new_tokens": 2048})
    found = estimate(large, "4", [large, large])
    assert not found.fits and len(found.advice) > 2
    memory = Memory(find_shape(large.model.id)[0], large, 4 * GIB, [large, large])
    for advice in found.advice:
        key, _, value = advice.override.partition("=")
        arms = [with_value(arm, key, yaml.safe_load(value)) for arm in memory.arms]
        memory = Memory(memory.shape, arms[0], memory.gpu, arms[1:])
        assert memory.peak == advice.peak


def test_estimating_loads_no_torch():
    code = (
        "import sys\n"
        "from kit.estimate.forecast import estimate\nfrom kit.recipe import load_config\n"
        f"str(estimate(load_config({str(RECIPE)!r})))\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_says_what_the_estimate_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## What to expect")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.-]+)` \| (\d.*) \|$", section, re.MULTILINE)
    assert len(rows) == 6
    for recipe, written in rows:
        figures = []
        for gpu in ("T4", "3060"):
            found = estimate(load_config(ROOT / "configs" / f"{recipe}.yaml"), gpu)
            record = found.record()
            least, most = (seconds / 3600 for seconds in record["seconds"]["whole run"])
            likely = record["likely"]["whole run"] / 3600
            figures += [f"{found.peak / 2**30:.1f}", f"{likely:.1f} ({least:.1f} to {most:.1f})"]
        assert written == " | ".join(figures), recipe
