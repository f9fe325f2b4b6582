"""Every family through load, prompt, sampling, LoRA, a training step, saving and loading again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit.adapters import fresh_process
from kit.adapters.probe import read_probe
from kit.adapters.save import save_adapter
from kit.adapters.verify import verify
from kit.config import LoraConfig, ModelConfig
from kit.errors import ModelError
from kit.model.base import Base, load_base
from kit.model.batching import make_batch
from kit.model.lora import TRAINED, add_lora
from kit.model.policy import Policy
from kit.model.prompts import Prompts
from kit.model.rollout import Request, Sampling, sample
from tests.adapters import in_place
from tests.model.families import FAMILIES
from tests.noise import add_noise

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 17 + 25? <|im_end|></s><eos><|eot_id|><|endoftext|>"},
]


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path) -> Base:
    FAMILIES[request.param].save(tmp_path / request.param)
    config = ModelConfig(id=str(tmp_path / request.param), quantization="none")
    return load_base(config, torch.device("cpu"))


def lora(base: Base) -> Policy:
    targets = list(FAMILIES[Path(base.id).name].targets)
    return Policy(base, add_lora(base, LoraConfig(rank=2, alpha=4, targets=targets), seed=0))


@pytest.mark.smoke
def test_a_family_from_load_to_reload(base, tmp_path):
    family, made = FAMILIES[Path(base.id).name], base.tokenizer
    names = made.convert_ids_to_tokens(sorted(base.stop_ids))
    assert set(names) == family.ends | set(family.eos)

    # control tokens are the template's, whatever the question spells
    special = set(made.all_special_ids) | set(made.added_tokens_decoder) - {made.unk_token_id}
    calm = [CHAT[0], {"role": "user", "content": "What is 17 + 25?"}]
    found, expected = ([i for i in base.prompt_ids(chat) if i in special] for chat in (CHAT, calm))
    assert found == expected
    if family.begins is not None:
        assert expected.count(made.convert_tokens_to_ids(family.begins)) == 1
        assert base.prompt_ids(CHAT)[0] == expected[0]

    # rows end at any of the ends, and nowhere else
    prompts = [tuple(base.prompt_ids(CHAT)), tuple(base.prompt_ids(CHAT[1:]))]
    policy = lora(base)
    add_noise(policy.peft, 0)
    asked = [Request(p, (0, i, j), TRAINED) for i, p in enumerate(prompts) for j in range(8)]
    answers = sample(policy, asked, Sampling(40, temperature=1.5))
    for answer in answers:
        assert not base.stop_ids & set(answer.tokens[:-1])
        assert answer.truncated == (answer.tokens[-1] not in base.stop_ids)

    # the sampler's log-probs are the trainer's, and one step changes the adapter alone. The end
    # is padding's token where there is no other, and counts all the same
    rows = [[*answer.tokens[:5], base.end_id] for answer in answers[:2]]
    batch = make_batch(prompts, [[*rows[0][:3], base.end_id], rows[1]], pad_id=made.pad_token_id)
    assert batch.mask.sum(1).tolist() == [4, 6]
    scored = [r.prompt for r in asked], [answer.tokens for answer in answers]
    policy.peft.train()  # as the trainer does
    logprobs, _ = policy.logprobs(make_batch(*scored, pad_id=made.pad_token_id), temperature=1.5)
    for row, answer in zip(logprobs, answers, strict=True):
        sampled = torch.tensor(answer.logprobs)
        torch.testing.assert_close(row[: len(sampled)], sampled, atol=1e-4, rtol=0)
    before = [p.detach().clone() for p in policy.trainable]
    logprobs, _ = policy.logprobs(batch)
    optimizer = torch.optim.AdamW(policy.trainable, lr=1e-2)
    torch.where(batch.mask, -logprobs, 0.0).sum().backward()
    optimizer.step()
    assert all(not p.equal(old) for p, old in zip(policy.trainable, before, strict=True))

    # what is saved says the same to transformers and peft, asked in the same way
    save_adapter(policy, tmp_path / "adapter")
    probe = read_probe(tmp_path / "adapter")
    again = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert Prompts(again).chat_ids(CHAT) == list(prompts[0])
    assert Prompts(again).ends() == Prompts(made).ends()
    model = AutoModelForCausalLM.from_pretrained(base.id, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    for i, ids in enumerate(probe.ids):
        logits = fresh_process.last_logits(model, ids, probe.settings["positions"])
        assert logits.gather(-1, probe.top[i]).equal(probe.adapter[i])


def test_kit_verify_of_a_family(base, tmp_path, monkeypatch):
    monkeypatch.setattr("kit.adapters.verify.subprocess", in_place)
    is_verified(base, tmp_path / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("base", ["qwen3", "llama2-legacy"], indirect=True)
def test_kit_verify_of_a_family_in_a_fresh_process(base, tmp_path):
    is_verified(base, tmp_path / "adapter")


def is_verified(base: Base, folder: Path) -> None:
    policy = lora(base)
    add_noise(policy.peft, 0)
    save_adapter(policy, folder)
    (folder / "README.md").write_text("")
    checks = verify(str(folder))
    assert len(checks) == 8 and [check.name for check in checks if not check.passed] == []


def test_a_base_that_caps_its_logits_is_refused_in_words(tmp_path):
    """Gemma 2 as it is published."""
    FAMILIES["gemma2"].save(tmp_path / "it")
    config = (tmp_path / "it" / "config.json").read_text()
    assert '"final_logit_softcapping": null' in config
    capped = config.replace('"final_logit_softcapping": null', '"final_logit_softcapping": 0.01')
    (tmp_path / "it" / "config.json").write_text(capped)
    with pytest.raises(ModelError, match="caps its logits after the output head"):
        load_base(ModelConfig(id=str(tmp_path / "it"), quantization="none"), torch.device("cpu"))
