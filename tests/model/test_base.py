"""Loading: really 4 bits, every stop token, safe adapters, clear refusals."""

from __future__ import annotations

import json
import logging
import shutil

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel, import_utils
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from kit.adapters.save import save_adapter
from kit.config import EMBEDDED_PATH, LoraConfig, ModelConfig
from kit.errors import AdapterError, ModelError
from kit.model.base import load_base
from kit.model.dequantized import dequantized
from kit.model.hardware import choose_hardware, peak_memory_mb, reset_peak_memory
from kit.model.lora import add_lora, load_adapters
from kit.model.policy import BASE, Policy

CPU = torch.device("cpu")
IDS = torch.arange(5, 25)[None]


def load(**settings):
    return load_base(ModelConfig(**{"id": "embedded", **settings}), CPU)


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


# --- the base ------------------------------------------------------------------------------------


def test_the_base_is_really_in_four_bits(base):
    layers = [m for m in base.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 7 * base.model.config.num_hidden_layers
    for layer in layers:
        state = layer.weight.quant_state
        assert state.quant_type == "nf4" and state.nested
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() * 2 == state.shape.numel()  # two weights a byte
    quantized = sum(layer.weight.numel() for layer in layers)
    dense = load(quantization="none", dtype="float32").model.get_memory_footprint()
    # quantized layers shrink from 4 bytes a weight to half a byte plus a little
    assert base.model.get_memory_footprint() < dense - 0.85 * quantized * 2 * 4 + 1


def test_four_bit_layers_stay_near_the_weights_they_were_made_from(base):
    dense = load(quantization="none")
    name = "model.layers.0.mlp.up_proj"
    layer, exact = base.model.get_submodule(name), dense.model.get_submodule(name).weight
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    error = (weight - exact).norm() / exact.norm()
    assert 0.02 < error < 0.15  # NF4 loses something, but not much


def test_four_bit_layers_are_never_repacked_for_bfloat16(monkeypatch):
    """On a processor with AVX512-BF16, bitsandbytes repacks at the first evaluation, for good."""

    def repack(*_):
        raise AssertionError("the weights were repacked")

    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    monkeypatch.setattr("bitsandbytes.nn.modules._convert_weight_packed_for_cpu", repack)
    layer = bnb.nn.Linear4bit(64, 64, quant_type="nf4").to("cpu").eval()
    with pytest.raises(AssertionError, match="repacked"):  # else the test could not fail
        layer(torch.ones(1, 64))
    logits_of(load().model)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_other_precisions_load_and_compute_nearly_the_same(base, quantization):
    other = load(quantization=quantization)
    same = logits_of(other.model).argmax(-1) == logits_of(base.model).argmax(-1)
    assert same.float().mean() > 0.5
    kinds = {type(m) for m in other.model.modules()}
    assert (bnb.nn.Linear8bitLt in kinds) == (quantization == "int8")
    assert bnb.nn.Linear4bit not in kinds


def test_nothing_of_the_base_is_trainable(base):
    assert not any(p.requires_grad for p in base.model.parameters())


def test_every_stop_token_is_honoured(base):
    tokenizer = base.tokenizer
    ends = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert base.stop_ids == ends
    assert base.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_stop_tokens_of_a_model_with_one_id_and_no_chat_template(tmp_path, caplog):
    """Qwen2.5 base names one end token; other bases have no chat template at all."""
    folder = tmp_path / "plain"
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_PATH)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
    tokenizer.chat_template = None
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.pad_token = None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        plain = load(id=str(folder), quantization="none")
    assert "no chat template" in caplog.text
    assert plain.stop_ids == {tokenizer.eos_token_id} == {plain.end_id}
    assert plain.tokenizer.pad_token_id is not None
    prompt = plain.tokenizer.decode(plain.prompt_ids([{"role": "user", "content": "2 + 2?"}]))
    assert prompt == "Question: 2 + 2?\nAnswer: "


def test_prompts_follow_the_chat_template(base):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert base.tokenizer.decode(base.prompt_ids(messages)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_model_that_cannot_be_reached():
    with pytest.raises(ModelError, match=r"cannot load the base model 'nobody/nothing'.*network"):
        load(id="nobody/nothing")


def test_a_model_that_does_not_fit(monkeypatch):
    def full(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match=r"not enough GPU memory to load 'embedded'; .* estimate"):
        load_base(ModelConfig(id="embedded"), torch.device("cpu"))


def test_a_package_that_peft_refuses_is_named_at_once(monkeypatch):
    def old():
        raise ImportError("only versions above 0.16.0 are supported")

    monkeypatch.setattr(import_utils, "is_torchao_available", old)
    with pytest.raises(ModelError, match=r"supported; update it \(pip install -U torchao\)"):
        load_base(ModelConfig(id="embedded", quantization="none"), torch.device("cpu"))
    load_base(ModelConfig(id="embedded"), torch.device("cpu"))  # 4-bit layers do not ask


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="cannot load the base model"):
        load(id=str(tmp_path))


def test_a_branch_is_noted_as_the_commit_it_stood_for(monkeypatch):
    read = AutoConfig.from_pretrained

    def from_hub(source, **options):
        found = read(source, **options)
        settings = found[0] if isinstance(found, tuple) else found
        settings._commit_hash = "a" * 40
        return found

    assert load(revision="main").revision == "main"  # a folder has no commit
    monkeypatch.setattr(AutoConfig, "from_pretrained", from_hub)
    assert load(revision="main").revision == load().revision == "a" * 40


def test_a_copy_in_a_folder_is_loaded_under_the_name_of_the_model(tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED_PATH, copy)
    named = "owner/tiny"
    base = load(id=named, path=str(copy))
    assert base.id == named and "no folder" not in caplog.text
    model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=0)
    save_adapter(Policy(base, model), tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == named
    shutil.rmtree(copy)
    with pytest.raises(ModelError, match="cannot load the base model 'owner/tiny'"):
        load(id=named, path=str(copy))
    assert f"no folder {copy} here: loading owner/tiny" in caplog.text


def test_an_already_quantized_checkpoint_is_refused(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        EMBEDDED_PATH, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu"
    )
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(EMBEDDED_PATH).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="already quantized"):
        load(id=str(tmp_path))


def test_a_model_that_transforms_its_logits_is_refused(monkeypatch):
    """Log-probs come from the head's weight; a cap after it would make them wrong."""
    from transformers import Qwen2ForCausalLM

    forward = Qwen2ForCausalLM.forward

    def capped(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = torch.tanh(output.logits / 2) * 2
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", capped)
    with pytest.raises(ModelError, match="scales or caps its logits"):
        load()


# --- hardware ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "dtype", "scales"),
    [((7, 5), torch.float16, True), ((8, 6), torch.bfloat16, False)],
)
def test_gpus_with_and_without_bfloat16(monkeypatch, capability, dtype, scales):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    hardware = choose_hardware(ModelConfig(id="x"), torch.device("cuda"))
    assert (hardware.dtype, hardware.scales_loss) == (dtype, scales)
    assert "Some GPU" in hardware.reason and "bfloat16" in hardware.reason


def test_the_cpu_computes_in_float32_and_refuses_what_it_cannot_do():
    assert choose_hardware(ModelConfig(id="x"), CPU).dtype == torch.float32
    with pytest.raises(ModelError, match="float16 needs a GPU"):
        choose_hardware(ModelConfig(id="x", dtype="float16"), CPU)
    with pytest.raises(ModelError, match="flash_attention_2 needs a CUDA GPU"):
        choose_hardware(ModelConfig(id="x", attention="flash_attention_2"), CPU)


def test_peak_memory_sees_an_allocation():
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    block = torch.ones(512 * 2**20 // 4)  # large, since the process may hold freed memory
    del block
    assert peak_memory_mb(CPU) - before > 200


# --- adapters ------------------------------------------------------------------------------------


def test_lora_is_float32_on_every_linear_layer_and_starts_as_the_base(base):
    before = logits_of(base.model)
    model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=0)
    try:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 2 * 7 * base.model.config.num_hidden_layers
        assert {p.dtype for p in trained.values()} == {torch.float32}
        assert all("lora_" in name for name in trained)
        assert torch.equal(logits_of(base.model), before)  # B starts at 0
    finally:
        model.unload()


def test_the_seed_decides_where_lora_starts(base):
    def start(seed):
        model = add_lora(base, LoraConfig(rank=4, alpha=8), seed=seed)
        weights = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
        model.unload()
        return weights

    first, again, other = start(3), start(3), start(4)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


def test_adapter_off_is_the_base_exactly(policy):
    untouched = load()
    with policy.view(BASE):
        assert torch.equal(logits_of(policy.causal), logits_of(untouched.model))
    assert not torch.equal(logits_of(policy.causal), logits_of(untouched.model))


def test_a_view_leaves_the_trained_adapter_trainable(policy, tmp_path):
    before = list(policy.trainable)
    save_adapter(policy, tmp_path / "other")
    policy.model.load_adapter(str(tmp_path / "other"), adapter_name="other")
    for adapter in (BASE, "other"):
        with policy.view(adapter):
            pass
        assert policy.model.active_adapter == "default"
        assert [id(p) for p in policy.trainable] == [id(p) for p in before]
    with pytest.raises(AdapterError, match="no adapter 'nobody' is loaded"), policy.view("nobody"):
        pass


def test_dequantized_is_exact_and_undone(base):
    before = logits_of(base.model)
    with dequantized(base.model, "always", base.hardware) as done:
        assert done
        torch.testing.assert_close(logits_of(base.model), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits_of(base.model), before)
    with dequantized(base.model, "never", base.hardware) as done:
        assert not done


def test_dequantized_needs_room(base, monkeypatch):
    monkeypatch.setattr("kit.model.dequantized.free_memory", lambda device: 1000)
    with dequantized(base.model, "auto", base.hardware) as done:
        assert not done


def test_a_saved_adapter_is_plain_peft(policy, tmp_path, monkeypatch):
    """transformers and peft alone give the same logits, in 4 bits."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # as in the kit
    save_adapter(policy, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "embedded"
    assert set(settings["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    plain = AutoModelForCausalLM.from_pretrained(
        EMBEDDED_PATH,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
        device_map="cpu",
    )
    plain = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits_of(plain), logits_of(policy.causal), atol=1e-4, rtol=1e-4)


def test_an_adapter_can_be_continued_and_its_snapshot_is_the_reference(policy, base, tmp_path):
    save_adapter(policy, tmp_path / "start")
    start = logits_of(policy.causal)
    policy.model.unload()
    model = add_lora(base, LoraConfig(rank=4, alpha=8), 0, str(tmp_path / "start"))
    continued = Policy(base, model)
    assert continued.reference == "reference"
    assert len(continued.trainable) == 2 * 7 * base.model.config.num_hidden_layers
    assert torch.equal(logits_of(continued.causal), start)
    for parameter in continued.trainable:
        parameter.data += 0.01
    assert not torch.equal(logits_of(continued.causal), start)
    with continued.view(continued.reference):
        assert torch.equal(logits_of(continued.causal), start)
    model.unload()


def test_a_continued_adapter_must_have_the_configured_shape(policy, base, tmp_path):
    save_adapter(policy, tmp_path / "start")
    policy.model.unload()
    with pytest.raises(AdapterError, match=r"has rank 4 but lora\.rank is 8; set lora\.rank=4"):
        add_lora(base, LoraConfig(rank=8, alpha=8), 0, str(tmp_path / "start"))
    assert not [n for n, _ in base.model.named_parameters() if "lora" in n]


def test_adapters_that_cannot_be_used(policy, base, tmp_path):
    save_adapter(policy, tmp_path / "good")
    policy.model.unload()

    def refused(path, message):
        with pytest.raises(AdapterError, match=message):
            load_adapters(base, {"x": str(path)})

    refused(tmp_path / "nowhere", "no adapter at .*nowhere")
    refused("nobody/nothing", "nobody/nothing is in no folder and not in the hub's cache")
    refused("nobody", "no adapter at nobody: adapter_config.json was not found")

    settings = json.loads((tmp_path / "good" / "adapter_config.json").read_text())

    def variant(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
        return folder

    pickled = variant("pickled")
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    refused(pickled, "adapter_model.safetensors was not found.*pickled weights are refused")

    weights = load_file(tmp_path / "good" / "adapter_model.safetensors")
    for name, changes, message in (
        ("pissa", {"init_lora_weights": "pissa"}, "changes the base model itself"),
        (
            "foreign",
            {"base_model_name_or_path": "Qwen/Qwen2.5-1.5B"},
            "trained on Qwen/Qwen2.5-1.5B but the loaded base is embedded",
        ),
        ("ia3", {"peft_type": "IA3"}, "only LORA"),
        ("other_rank", {"r": 8}, "cannot load the adapter"),
    ):
        save_file(weights, variant(name, **changes) / "adapter_model.safetensors")
        refused(tmp_path / name, message)

    broken = variant("broken")
    (broken / "adapter_model.safetensors").write_bytes(b"not a tensor")
    refused(broken, "cannot read the adapter")
    assert not [n for n, _ in base.model.named_parameters() if "lora" in n]
