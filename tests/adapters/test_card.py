"""The card: metadata the hub reads, results of this adapter only, and an example that runs."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from kit.adapters import card as module
from kit.adapters.card import run_card, write_card
from kit.adapters.save import save_adapter
from kit.evaluation.results import FIELDS
from kit.model.adapter_files import adapter_sha256
from kit.recipe import build_config
from kit.runs import RunFolder

REVISION = "a" * 40
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "owner/base",
    "revision": REVISION,
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}


def make_run(folder: Path, adapter: dict | None = None, **sections) -> RunFolder:
    """A finished run without any model."""
    run = RunFolder(folder)
    run.adapter.mkdir(parents=True)
    values = {"model": {"id": "owner/base"}, "data": {"name": "gsm8k"}, "output": str(folder)}
    config = build_config(values | sections)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run.describe(
        status="finished",
        steps=16,
        seed=3,
        hardware="CPU: why",
        versions={"torch": "2.13.0"},
        git={"commit": "c0ffee", "dirty": False},
    )
    (run.adapter / "adapter_config.json").write_text(json.dumps(ADAPTER | (adapter or {})))
    save_file({"q.lora_A.weight": torch.ones(2, 3)}, run.adapter / "adapter_model.safetensors")
    return run


def add_result(run: RunFolder, data: str = "gsm8k", **changes) -> Path:
    """Results at temperatures 0 and 0.8: 7 and 12.5 % strict, 9 and 25 % lenient."""

    def figures(temperature, samples, strict, lenient):
        return {
            "temperature": temperature,
            "samples": samples,
            "strict": {"value": strict, "ci95": [0.05, 0.1]},
            "lenient": {"value": lenient, "ci95": [0.08, 0.11]},
        }

    record = dict.fromkeys(FIELDS) | {
        "schema": 2,
        "status": "finished",
        "data": data,
        "n": 200,
        "seen_in_training": 0,
        "target": {"name": "run", "base": "x", "adapter_sha256": adapter_sha256(str(run.adapter))},
        "settings": {"split": "test"},
        "results": [figures(0.0, 1, 0.07, 0.09), figures(0.8, 4, 0.125, 0.25)],
    }
    path = run.path / "eval" / f"{Path(data).stem}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record | changes))
    return path


def front_matter(card: ModelCard) -> dict:
    return yaml.safe_load(card.content.split("---\n")[1])


def test_metadata_is_what_the_hub_reads(tmp_path):
    run = make_run(tmp_path / "run")
    add_result(run)
    path = write_card(run)
    assert path == run.adapter / "README.md"
    card = ModelCard.load(path)
    data = card.data
    assert (data.base_model, data.base_model_relation) == ("owner/base", "adapter")
    assert data.datasets == ["openai/gsm8k"] and data.library_name == "peft"
    assert {"lora", "grpo", "pspo"} <= set(data.tags)
    assert data.model_name == "run" and data.pipeline_tag == "text-generation"
    found = {r.metric_name: r.metric_value for r in data.eval_results}
    assert found == {
        "strict accuracy, %, greedy, 200 problems": 7.0,
        "lenient accuracy, %, greedy, 200 problems": 9.0,
        "strict accuracy, %, temperature 0.8, 200 problems, 4 samples each": 12.5,
        "lenient accuracy, %, temperature 0.8, 200 problems, 4 samples each": 25.0,
    }
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
        *("openai/gsm8k", "main"),
        "test",
    )


def test_the_text_says_how_it_was_made(tmp_path):
    run = make_run(tmp_path / "run", data={"name": "gsm8k", "system_prompt": "Be brief."})
    add_result(run, seen_in_training=7)
    text = run_card(run).text
    assert "\n```\nBe brief.\n```\n" in text
    assert "16 steps, seed 3" in text and REVISION in text and "c0ffee" in text
    assert "trust region `pspo` (ratios per token, from the frozen base)" in text
    assert "| gsm8k (7 of them trained on) | greedy, 200 problems | 7.0 [5.0, 10.0] | 9.0" in text
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", text, re.S)[1])
    assert settings["optim"]["learning_rate"] == 2e-5 and settings["lora"]["rank"] == 16


def test_a_supervised_run_and_no_system_prompt(tmp_path):
    data = {"name": "gsm8k", "system_prompt": ""}
    card = run_card(make_run(tmp_path / "run", method="sft", data=data))
    assert "no system message is sent" in card.text and "supervised fine-tuning" in card.text
    assert "'role': 'system'" not in card.text and "None yet" in card.text
    assert "sft" in card.data.tags and "pspo" not in card.data.tags
    assert "model-index" not in front_matter(card)


@pytest.mark.parametrize(
    ("method", "source", "said", "datasets"),
    [
        ("dpo", "/home/me/votes.jsonl", "optimization (DPO) on votes.jsonl", None),
        ("kto", "owner/feedback", "optimization (KTO) on owner/feedback", ["owner/feedback"]),
    ],
)
def test_a_run_on_preferences(tmp_path, method, source, said, datasets):
    preferences = {"source": source}
    card = run_card(make_run(tmp_path / "run", method=method, preferences=preferences))
    assert said in card.text and "trust region `" not in card.text
    assert "/home/me" not in str(card)
    assert method in card.data.tags and card.data.datasets == datasets


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": {"adapter_sha256": "0" * 64}}, "another state of the adapter"),
        ({"status": "running"}, "is not finished"),
        ({"schema": 1}, "has schema 1"),
    ],
)
def test_results_that_are_not_this_adapters(tmp_path, caplog, changes, reason):
    run = make_run(tmp_path / "run")
    add_result(run, "svamp", **changes)
    add_result(run)
    with caplog.at_level(logging.WARNING):
        card = run_card(run)
    assert {r.dataset_name for r in card.data.eval_results} == {"gsm8k"}
    assert "left out of the card" in caplog.text and reason in caplog.text


def test_no_text_ends_a_code_block_early(tmp_path):
    prompt = "Use\n```\ncode\n```\nand ````four````.\n---\nlicense: stolen"
    run = make_run(tmp_path / "run", data={"name": "gsm8k", "system_prompt": prompt})
    card = run_card(run)
    assert f"`````\n{prompt}\n`````" in card.text
    assert ModelCard(card.content).data.license is None


def test_folders_of_this_machine_stay_here(tmp_path):
    secret = tmp_path / "home" / "me"
    secret.mkdir(parents=True)
    (secret / "mine.jsonl").write_text("")
    run = make_run(
        tmp_path / "run",
        {"base_model_name_or_path": str(secret)},
        model={"id": str(secret), "adapter": str(secret / "warm"), "path": str(secret)},
        data={"name": str(secret / "mine.jsonl"), "data_dir": str(secret)},
        reward={"functions": [{"path": f"{secret}/rewards.py:vowels"}]},
        guidelines={
            "mine": {
                "prompt": "",
                "checks": [
                    {"name": "equations", "weight": 0.1},
                    {"name": "function", "path": f"{secret}/checks.py:brief", "weight": 0.1},
                ],
            }
        },
    )
    add_result(run, str(secret / "mine.jsonl"))
    content = run_card(run).content
    assert str(tmp_path) not in content
    assert "mine.jsonl" in content and "rewards.py:vowels" in content
    assert "path: checks.py:brief" in content
    assert front_matter(run_card(run)).keys().isdisjoint({"base_model", "datasets"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gsm8k", ("openai/gsm8k", "main")),
        ("asdiv", ("EleutherAI/asdiv", None)),
        ("owner/name:part", ("owner/name", "part")),
        ("owner/name", ("owner/name", None)),
        ("data/mine.jsonl", (None, None)),
        ("gsm_symbolic", (None, None)),
        ("reasoning_gym:leg_counting", (None, None)),
    ],
)
def test_data_sets_by_their_hub_ids(name, expected):
    assert module._hub_data(name) == expected


def test_the_bases_licence_is_passed_on(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(
        "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n"
    )
    asked = []

    def download(repo, name, revision):
        asked.append((repo, name, revision))
        return str(readme)

    monkeypatch.setattr("kit.model.base_files.hf_hub_download", download)
    card = run_card(make_run(tmp_path / "run"))
    assert asked == [("owner/base", "README.md", REVISION)]
    matter = front_matter(card)
    assert (matter["license"], matter["license_name"]) == ("other", "qwen-research")
    assert "That of the base, qwen-research, holds" in card.text


def test_a_hub_that_refuses_the_licence_does_not_stop_the_card(tmp_path, monkeypatch, caplog):
    def refused(*args, **kwargs):
        raise OSError("gated")

    monkeypatch.setattr("kit.model.base_files.hf_hub_download", refused)
    card = run_card(make_run(tmp_path / "run"))
    assert card.data.license is None and "does not name the base's licence" in caplog.text


# --- the example ---------------------------------------------------------------------------------


def example(card: ModelCard) -> str:
    return re.search(r"```python\n(.*?)\n```", card.text, re.S)[1]


def loading(code: str) -> list[str]:
    """What follows the function that makes the prompt."""
    return code.split("\n\nimport torch\n")[1].splitlines()


def test_the_example_names_base_revision_and_repository(tmp_path):
    run = make_run(tmp_path / "run")
    here, there = example(run_card(run)), example(run_card(run, "me/mine"))
    assert f"from_pretrained('owner/base', revision='{REVISION}'" in there
    assert "load_in_4bit=True" in there and "bnb_4bit_quant_type='nf4'" in there
    assert there.count("'me/mine'") == 2 and here == there.replace("'me/mine'", "'.'")
    assert len(loading(there)) <= 10


@pytest.mark.smoke
def test_the_example_runs(policy, tmp_path, monkeypatch, capsys):
    """Executed as it stands, in the adapter's folder, it says what the adapter says."""
    run = make_run(tmp_path / "run", model={"id": "embedded"}, data={"name": "gsm_symbolic"})
    save_adapter(policy, run.adapter)
    # transformers alone must not repack 4-bit layers for bfloat16, as the kit's are not
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    code = example(run_card(run))
    assert len(loading(code)) == 10
    monkeypatch.chdir(run.adapter)
    exec(compile(code.replace("256", "4"), "example", "exec"), scope := {})
    said = capsys.readouterr().out
    assert f"eos_token_id={sorted(policy.base.stop_ids)}" in code
    assert run.load_config().data.system_prompt in said and "What is 17 + 25?" in said
    ids = scope["prompt"]
    assert ids.tolist() == [policy.base.prompt_ids(scope["messages"])]
    with torch.no_grad():
        assert scope["model"](ids).logits.equal(policy.causal(ids).logits)
