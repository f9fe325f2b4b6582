"""Merging: the arithmetic against PEFT's, by shards, and nothing left where it cannot be done."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from kit.adapters import merge as module
from kit.adapters.merge import Merged, Update, base_shards, commands, merge, read_updates
from kit.adapters.merge_drift import Agreement, compare
from kit.config import EMBEDDED_PATH, ModelConfig
from kit.errors import AdapterError
from kit.model.adapter_files import HARMLESS_STARTS
from kit.model.base import load_base
from kit.model.base_files import BaseSource

IDS = torch.arange(3, 19)[None]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_base(folder: Path, *, tied: bool = True, shards: str = "5GB") -> Path:
    """A random model of the Qwen2.5 architecture with the embedded tokenizer."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size=shards)
    for name in TOKENIZER:
        shutil.copyfile(EMBEDDED_PATH / name, folder / name)
    return folder


def make_adapter(folder: Path, base: Path, **settings) -> Path:
    """A PEFT adapter of that model whose B matrices are not zero."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**(defaults | settings)))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + 0.1 * noise
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory, tiny) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), tiny)


@pytest.fixture
def no_comparison(monkeypatch):
    """The comparison loads three models; where it is not what is tested, it is left out."""
    monkeypatch.setattr(module, "agreements", lambda *_: [])


def merged_by_peft(adapter: Path, base: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def logits_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(IDS).logits


# --- the arithmetic ------------------------------------------------------------------------------


def test_an_update_by_hand():
    """B A = [[1], [2]] [[3, 4]] = [[3, 4], [6, 8]]; half of it on [[1, 1], [1, 1]]."""
    update = Update(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]]), 0.5)
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    assert update.added_to(weight).tolist() == [[2.5, 3.0], [4.0, 5.0]]
    assert weight.eq(1).all()  # not written into


@pytest.mark.parametrize(
    ("settings", "module_name", "scaling"),
    [
        ({"r": 4, "lora_alpha": 8}, "model.layers.0.mlp.up_proj", 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, "x.up_proj", 4.0),  # 8 / sqrt(4)
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"up_proj": 16}}, "x.up_proj", 0.5),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"up_proj": 16}}, "x.down_proj", 2.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"layers.1.*": 2}}, "x.layers.1.q", 0.5),
    ],
)
def test_the_scaling_of_a_module(settings, module_name, scaling):
    assert module._scaling(settings, module_name) == scaling


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"v_proj": 1}},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ],
)
def test_merged_weights_are_those_of_peft_rounded_once(tmp_path, tiny, no_comparison, settings):
    adapter = make_adapter(tmp_path / "adapter", tiny, **settings)
    merge(str(adapter), tmp_path / "merged")
    expected, found = merged_by_peft(adapter, tiny), stored(tmp_path / "merged")
    before = stored(tiny)
    assert found.keys() == before.keys() and "lm_head.weight" not in found  # tied
    changed = {name for name in found if not found[name].equal(before[name])}
    assert changed == read_updates(adapter).keys() and changed
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        # the sum may end on the other side of a rounding step: one in 2^8 at most, and rarely
        torch.testing.assert_close(tensor.float(), expected[name], atol=1e-6, rtol=2**-8)
        assert tensor.eq(expected[name].bfloat16()).float().mean() > 0.999


def test_the_base_and_the_adapter_stay_as_they_were(tmp_path, tiny, lora, no_comparison):
    before = {p: p.read_bytes() for folder in (tiny, lora) for p in folder.iterdir()}
    merge(str(lora), tmp_path / "merged")
    assert {p: p.read_bytes() for folder in (tiny, lora) for p in folder.iterdir()} == before


@pytest.mark.parametrize("tied", [True, False])
def test_shards_of_any_size_hold_the_same_model(tmp_path, no_comparison, tied):
    base = make_base(tmp_path / "base", tied=tied, shards="100KB")
    assert (base / "model.safetensors.index.json").is_file()
    adapter = make_adapter(tmp_path / "adapter", base)
    merge(str(adapter), tmp_path / "one")
    merge(str(adapter), tmp_path / "many", shard_bytes=50_000)
    assert (tmp_path / "one" / "model.safetensors").is_file()
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    # only the embeddings, 2048 x 64 in 2 bytes, are larger than a shard
    sizes = [sum(t.nbytes for t in load_file(f).values()) for f in files]
    assert len(files) > 3 and sum(size > 50_000 for size in sizes) == (1 if tied else 2)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"].values()) == {f.name for f in files}
    one, many = logits_of(tmp_path / "one"), logits_of(tmp_path / "many")
    assert one.equal(many) and not one.equal(logits_of(base))


def test_settings_are_the_bases_own_with_the_adapters_template(tmp_path, tiny, no_comparison):
    adapter = make_adapter(tmp_path / "adapter", tiny)
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    (adapter / "chat_template.jinja").write_text(template)
    merge(str(adapter), tmp_path / "merged", "float16")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config == json.loads((tiny / "config.json").read_text()) | {"dtype": "float16"}
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == template
    for name in TOKENIZER[:2]:
        assert (tmp_path / "merged" / name).read_bytes() == (tiny / name).read_bytes()
    assert {t.dtype for t in stored(tmp_path / "merged").values()} == {torch.float16}
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["dtype"] == "float16" and record["base"] == {"id": str(tiny), "revision": None}


@pytest.mark.parametrize("own", [{"eos_token_id": 5, "repetition_penalty": 1.1, "top_k": 20}, None])
def test_a_merged_model_ends_where_the_kit_does(tmp_path, tiny, lora, no_comparison, own):
    """Also where the base names its end of text alone; 0 is <|endoftext|>, 2 is <|im_end|>."""
    base = shutil.copytree(tiny, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    tokens = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(tokens | {"eos_token": "<|endoftext|>"}))
    (base / "generation_config.json").unlink()
    if own is not None:
        (base / "generation_config.json").write_text(json.dumps(own))
    adapter = shutil.copytree(lora, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    merge(str(adapter), tmp_path / "merged")
    found = GenerationConfig.from_pretrained(str(tmp_path / "merged"))
    assert found.eos_token_id == [0, 2, 5] and found.repetition_penalty == 1.0
    assert found.top_k == (20 if own else None)
    stops = load_base(ModelConfig(id=str(base), quantization="none"), torch.device("cpu")).stop_ids
    assert stops == {0, 2, 5}


# --- how near the result is ----------------------------------------------------------------------


def test_kl_and_greedy_agreement_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln 2/3 = 0.1438; twice the same p: 0."""
    other = torch.tensor([[0.6, 0.4], [0.5, 0.5]]).log()
    merged = torch.tensor([[0.6, 0.4], [0.25, 0.75]]).log()
    found = compare("x", other, merged)
    assert found.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
    assert (found.same_greedy, found.tokens) == (0.5, 2)
    assert str(Agreement("x", 0.25, 0.5, 2)) == (
        "against x: mean KL 0.25 nats, the same greedy token at 50.0 % of 2 positions"
    )


@pytest.mark.smoke
def test_the_report_compares_with_both_precisions_of_the_base(tmp_path, tiny, lora, monkeypatch):
    monkeypatch.setattr("kit.adapters.merge_drift.NEW_TOKENS", 10)
    result = merge(str(lora), tmp_path / "merged", "float16")
    four, sixteen = result.agreements
    assert "4-bit" in four.against and "float16" in sixteen.against
    # rounding to 16 bits is a hundredth of rounding to 4
    assert 0 < sixteen.kl < 1e-3 < four.kl and sixteen.same_greedy > 0.97
    assert four.tokens == sixteen.tokens == 60
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["agreement"][1]["kl"] == sixteen.kl


# --- what is refused, without a trace ------------------------------------------------------------


def refused(adapter: Path, output: Path, message: str, **options) -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises(AdapterError, match=message):
        merge(str(adapter), output, **options)
    assert sorted(output.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, r"is not valid JSON \(it is nested too deeply\)"), ("[1]", "no JSON object")],
)
def test_a_base_with_a_damaged_file(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(AdapterError, match=message):
        base_shards(BaseSource(str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias=True"),
    ],
)
def test_adapters_that_are_more_than_b_a(tmp_path, tiny, settings, reason):
    adapter = make_adapter(tmp_path / "adapter", tiny, **settings)
    refused(adapter, tmp_path / "merged", rf"does more than add B A.*{reason}.*merge_and_unload")


@pytest.mark.parametrize("changes", [{"init_lora_weights": "pissa"}, {"from_the_future": 3}])
def test_settings_whose_meaning_is_not_known(tmp_path, tiny, lora, changes):
    shutil.copytree(lora, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(tmp_path / "adapter", tmp_path / "merged", next(iter(changes)))


@pytest.mark.parametrize("start", HARMLESS_STARTS)
def test_starts_that_leave_the_base_as_it_is_are_merged(tmp_path, lora, start):
    shutil.copytree(lora, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": start}))
    assert read_updates(tmp_path / "adapter").keys() == read_updates(lora).keys()


def test_an_adapter_of_the_embeddings(tmp_path, tiny):
    adapter = make_adapter(tmp_path / "adapter", tiny, target_modules=["q_proj", "embed_tokens"])
    refused(adapter, tmp_path / "merged", "lora_embedding_A")


def test_an_adapter_of_a_head_that_is_tied(tmp_path, tiny):
    adapter = make_adapter(tmp_path / "adapter", tiny, target_modules=["lm_head"])
    refused(adapter, tmp_path / "merged", r"changes lm_head.weight.*tied to the embeddings")


def test_an_adapter_of_another_base(tmp_path, lora):
    wide = make_base(tmp_path / "wide")
    weights = load_file(wide / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = torch.zeros(100, 64)
    save_file(weights, wide / "model.safetensors")
    shutil.copytree(lora, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": str(wide)}
    path.write_text(json.dumps(settings))
    message = rf"another base than .*its {name} is 96 x 64, the base's 100 x 64"
    refused(tmp_path / "adapter", tmp_path / "merged", message)


def change_config(base: Path, **changes) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bases_that_cannot_be_merged_into(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    output = tmp_path / "merged"
    change_config(base, quantization_config={"load_in_4bit": True})
    refused(adapter, output, "is quantized; merging needs its 16-bit weights")
    change_config(base, quantization_config=None)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    refused(adapter, output, "no model.safetensors here.*pickled weights are refused")
    shutil.rmtree(base)
    refused(adapter, output, "has no config.json here")


def test_values_beyond_float16(tmp_path, no_comparison):
    base = make_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = 1e5  # float16 ends at 65,504
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(tmp_path / "adapter", base)
    message = r"model.norm.weight has values beyond the range.*use --dtype bfloat16"
    refused(adapter, tmp_path / "merged", message, dtype="float16")
    merge(str(adapter), tmp_path / "merged")
    assert stored(tmp_path / "merged")["model.norm.weight"][3] == torch.tensor(1e5).bfloat16()


def test_four_bits_are_never_merged_into(tmp_path, lora):
    refused(lora, tmp_path / "merged", "must be bfloat16 or float16, got 'nf4'", dtype="nf4")


def test_a_folder_that_exists(tmp_path, lora):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("old")
    refused(lora, tmp_path / "merged", "exists; choose another folder")
    assert (tmp_path / "merged" / "mine").read_text() == "old"


def test_a_disk_that_is_too_small(tmp_path, lora, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    refused(lora, tmp_path / "merged", "has less than the 0.0 GB this needs")


@pytest.mark.parametrize("error", [OSError("No space left"), RuntimeError("out of memory")])
def test_what_fails_late_leaves_nothing(tmp_path, lora, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(module, "agreements", failing)
    refused(lora, tmp_path / "merged", rf"could not merge into .*merged: {error}")


# --- elsewhere -----------------------------------------------------------------------------------


def test_commands_survive_spaces_and_name_revision_and_rank(tmp_path, lora):
    shown = commands(
        Merged(Path("my models/a"), BaseSource("owner/base", "abc"), lora, agreements=[])
    )
    assert "vllm serve 'my models/a'\n" in shown
    assert "vllm serve owner/base --revision abc --enable-lora --max-lora-rank 8" in shown
    assert "convert_hf_to_gguf.py 'my models/a' --outfile 'my models/a.gguf'" in shown
    assert f"-v '{Path.cwd()}/my models/a':/model" in shown or "my models/a:/model" in shown


@pytest.mark.parametrize(("largest", "allowed"), [(48, 64), (200, 256), (600, 600)])
def test_vllm_is_given_a_rank_that_it_takes(tmp_path, lora, largest, allowed):
    adapter = shutil.copytree(lora, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["rank_pattern"] = {"q_proj": largest}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    shown = commands(Merged(Path("merged"), BaseSource("owner/base"), adapter, agreements=[]))
    assert f"--max-lora-rank {allowed} " in shown


def test_a_gguf_of_the_merged_weights_computes_the_same(tmp_path, tiny, lora, no_comparison):
    """What llama.cpp's converter does: rename by the table, write, and read back."""
    import gguf

    merge(str(lora), tmp_path / "merged", "float16")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    writer = gguf.GGUFWriter(tmp_path / "merged" / "model.gguf", "qwen2")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    for name, tensor in stored(tmp_path / "merged").items():
        short = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert short is not None, name
        writer.add_tensor(short, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", gguf_file="model.gguf", dtype=torch.float32
    )
    with torch.no_grad():
        assert model(IDS).logits.equal(logits_of(tmp_path / "merged"))
