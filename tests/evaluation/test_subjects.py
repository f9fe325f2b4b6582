"""What an evaluation is asked about: runs, adapters, bases, and which of them go together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kit.config import SYSTEM_PROMPT, DataConfig
from kit.errors import AdapterError, ConfigError
from kit.evaluation.compared import questions_of
from kit.evaluation.subjects import (
    Subject,
    check_targets,
    data_config,
    resolve_data,
    resolve_targets,
    seen_in_training,
    shared_model,
)
from kit.model.adapter_files import adapter_sha256, read_adapter_config
from kit.recipe import build_config
from kit.runs import RunFolder, lineage
from kit.tasks.problems import load_problems, split_validation

SETTINGS = {
    "peft_type": "LORA",
    "base_model_name_or_path": "owner/base",
    "revision": "abc",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {},
}


def save_adapter(folder, weight=1.0, **changes):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | changes))
    weights = {"q_proj.lora_A.weight": torch.full((2, 3), weight)}
    save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)


def save_run(folder, model=None, data=None, adapter=True):
    folder.mkdir(parents=True)
    config = {
        "model": {"id": "owner/base"} | (model or {}),
        "data": {"name": "gsm8k"} | (data or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text('{"status": "interrupted"}')
    if adapter:
        save_adapter(folder / "adapter")
    return str(folder)


# --- adapters ------------------------------------------------------------------------------------


def test_a_hash_is_that_of_what_an_adapter_computes(tmp_path):
    same = adapter_sha256(save_adapter(tmp_path / "a"))
    for number, changes in enumerate(
        (
            {"target_modules": ["v_proj", "q_proj"]},  # a set, saved in any order
            {"base_model_name_or_path": "/a/folder", "revision": None, "peft_version": "9"},
            {"use_rslora": False, "rank_pattern": None, "inference_mode": True},
        )
    ):
        assert adapter_sha256(save_adapter(tmp_path / f"same{number}", **changes)) == same
    different = {
        adapter_sha256(save_adapter(tmp_path / f"other{number}", **changes))
        for number, changes in enumerate(
            (
                {"lora_alpha": 8},
                {"use_rslora": True},
                {"alpha_pattern": {"q_proj": 8}},
                {"target_modules": ["q_proj"]},
                {"weight": 1.5},
            )
        )
    }
    assert len(different | {same}) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is a None adapter; only LORA works"),
        ('{"peft_type": "IA3"}', "is a IA3 adapter; only LORA works"),
        ('{"peft_type": "LORA"}', "has r=None, which must be a whole number from 1"),
    ],
)
def test_broken_adapter_settings(tmp_path, content, message):
    source = save_adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(content)
    for read in (read_adapter_config, adapter_sha256):
        with pytest.raises(AdapterError, match=message):
            read(source)


# --- targets -------------------------------------------------------------------------------------


def test_a_run_brings_its_model_prompt_and_place(tmp_path):
    run = save_run(tmp_path / "mine", {"quantization": "int8"}, {"system_prompt": "Think."})
    (target,) = resolve_targets([run])
    assert (target.name, target.run) == ("mine", run)
    assert target.adapter == f"{run}/adapter" and str(target.results) == f"{run}/eval"
    assert target.system_prompt == "Think."
    # the base as it was when the adapter was trained
    assert (target.model.id, target.model.quantization) == ("owner/base", "int8")
    assert target.model.revision == "abc"


def test_an_adapter_outside_runs_brings_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_adapter(tmp_path / "theirs" / "best")
    (target,) = resolve_targets(["theirs/best"])
    assert (target.name, target.adapter, target.run) == ("theirs/best", "theirs/best", None)
    assert (target.model.id, target.model.revision) == ("owner/base", "abc")
    assert str(target.results) == "runs/eval/theirs_best"
    assert target.system_prompt == SYSTEM_PROMPT
    (target,) = resolve_targets(["theirs/best"], system_prompt="")
    assert target.system_prompt == ""


def test_the_base_joins_as_the_runs_have_it(tmp_path):
    run = save_run(tmp_path / "mine", {"quantization": "int8"}, {"system_prompt": "Think."})
    base, target = resolve_targets([run], base_id="owner/base")
    assert (base.name, base.adapter, base.run) == ("owner/base", None, None)
    assert base.model == target.model and base.system_prompt == "Think."
    assert str(base.results) == "runs/eval/owner_base"
    (alone,) = resolve_targets([], base_id="owner/base", system_prompt="Be brief.")
    assert (alone.model.quantization, alone.system_prompt) == ("nf4", "Be brief.")


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [save_run(tmp_path / arm / "seed-0") for arm in ("clip", "pspo")]
    assert [target.name for target in resolve_targets(runs)] == runs


def test_one_revision_is_enough(tmp_path):
    runs = [save_run(tmp_path / name) for name in ("a", "b")]
    first, second = resolve_targets(runs)
    vague = replace(first, model=first.model.model_copy(update={"revision": None}))
    check_targets([vague, second])
    assert shared_model([vague, second]).revision == "abc"


def refused(error, message, names, **options):
    with pytest.raises(error, match=message):
        resolve_targets(names, **options)


def test_targets_that_do_not_go_together(tmp_path):
    one = save_run(tmp_path / "one")
    refused(ConfigError, "nothing to evaluate", [])
    refused(ConfigError, "the same name", [one, one])
    refused(ConfigError, "the same folder of results", [one, f"{tmp_path}/./one/../one"])
    refused(
        ConfigError,
        r"different bases \(owner/base \(nf4\), owner/base \(none\)\)",
        [one, save_run(tmp_path / "two", {"quantization": "none"})],
    )
    refused(ConfigError, r"different bases \(other", [one], base_id="other")
    refused(
        ConfigError,
        r"different bases \(owner/base \(nf4\) at abc, owner/base \(nf4\) at v2\)",
        [one, save_run(tmp_path / "three", {"revision": "v2"})],
    )
    brief = save_run(tmp_path / "four", data={"system_prompt": "Be brief."})
    refused(ConfigError, "different system prompts .*four: 'Be brief.'", [one, brief])
    refused(ConfigError, "trained with the system prompt .*not 'x'", [one], system_prompt="x")


def test_targets_that_cannot_be_evaluated(tmp_path):
    refused(AdapterError, "no adapter at .*nowhere", [str(tmp_path / "nowhere")])
    unfinished = save_run(tmp_path / "run", adapter=False)
    refused(
        AdapterError,
        rf"no adapter yet \(status: interrupted\); go on with: kit train {unfinished} --resume",
        [unfinished],
    )
    nameless = save_adapter(tmp_path / "nameless", base_model_name_or_path=None)
    refused(AdapterError, "names no base model; write its hub id", [nameless])


# --- problems ------------------------------------------------------------------------------------


def test_problems_are_those_the_run_was_trained_on(tmp_path):
    options = {"size": 40}
    run = save_run(tmp_path / "a", data={"name": "gsm_symbolic", "options": options, "limit": 9})
    own, other = resolve_data(["gsm_symbolic", "svamp"], resolve_targets([run]))
    assert own.options == options
    assert (other.name, other.options, other.data_dir) == ("svamp", {}, None)


def test_local_copies_are_found_where_the_run_had_them(tmp_path):
    folder = tmp_path / "data"
    (folder / "svamp").mkdir(parents=True)
    run = save_run(tmp_path / "a", data={"data_dir": str(folder)})
    targets = resolve_targets([run])
    names = ["gsm8k", "svamp", "asdiv", "svamp"]
    assert [c.data_dir for c in resolve_data(names, targets)] == [None, str(folder), None]
    assert [c.data_dir for c in resolve_data(names, targets, "here")] == ["here"] * 3


def test_runs_must_agree_on_the_problems(tmp_path):
    runs = [
        save_run(tmp_path / name, data={"name": "gsm_symbolic", "options": {"size": size}})
        for name, size in (("a", 40), ("b", 41))
    ]
    targets = resolve_targets(runs)
    with pytest.raises(
        ConfigError, match=r"data\.options is \{'size': 41\} in b but .*40.*another"
    ):
        resolve_data(["gsm_symbolic"], targets)
    assert resolve_data(["svamp"], targets)[0].name == "svamp"  # it is no concern there
    shutil.rmtree(runs[1])
    assert resolve_data(["gsm_symbolic"], targets[:1])[0].options == {"size": 40}


def test_a_data_set_nobody_was_trained_on_has_the_defaults():
    trained_on = DataConfig(name="gsm8k", categories=["2 steps"])
    assert data_config("gsm8k", trained_on).categories == ["2 steps"]
    assert data_config("asdiv", trained_on) == DataConfig(name="asdiv")


@pytest.mark.parametrize("name", ["", "\udcff"])
def test_what_can_be_no_name_is_refused_in_a_sentence(name):
    with pytest.raises(ConfigError, match=r"^data\.name = '.*' is not allowed: must"):
        data_config(name)
    with pytest.raises(ConfigError, match=r"^model\.id = '.*' is not allowed: must"):
        resolve_targets([], base_id=name)


def test_problems_a_run_was_trained_on_are_counted(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_config(
        {
            "model": {"id": "embedded"},
            "data": {"name": str(path), "validation_size": 3, "limit": 7},
            "train": {"seed": 4},
        }
    )
    RunFolder(tmp_path / "run").open(config, resume=False).release()
    results, adapter = tmp_path / "eval", str(tmp_path / "run" / "adapter")
    trained = Subject("run", config.model, adapter, "", results, str(tmp_path / "run"))
    whole = load_problems(DataConfig(name=str(path)), "test")
    assert seen_in_training(trained, whole).problems == 7 - 3  # without those held out
    _, held_out = split_validation(load_problems(config.data, seed=4), 3, seed=4)
    assert seen_in_training(trained, held_out).problems == 0
    other = load_problems(DataConfig(name="gsm_symbolic", options={"size": 3}), "test")
    assert seen_in_training(trained, other).problems == 0
    assert seen_in_training(Subject("b", config.model, None, "", results), whole).problems == 0
    assert (
        seen_in_training(Subject("a", config.model, adapter, "", results), whole).problems is None
    )


def test_problems_whose_answers_were_compared_are_counted(tmp_path):
    config = build_config(
        {
            "method": "dpo",
            "model": {"id": "embedded"},
            "data": {"name": "gsm8k"},
            "preferences": {"source": "votes.jsonl"},
        }
    )
    run = RunFolder(tmp_path / "run")
    run.open(config, resume=False).release()
    trained = Subject("run", config.model, str(run.adapter), "", tmp_path, str(run.path))
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = load_problems(DataConfig(name=str(path)), "test")
    assert seen_in_training(trained, problems).problems is None  # its preferences are not there
    asked = ["What is 3 + 1?", "What is 5 + 1?", "What is 5 + 1?", "What is 99 + 1?"]
    prompts = [[{"role": "user", "content": question}] for question in asked]
    run.keep_preferences([{"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts])
    assert seen_in_training(trained, problems).problems == 2
    run.preferences.write_text('{"prompt": 3}\n')
    assert seen_in_training(trained, problems).problems is None


def test_what_a_parent_was_trained_on_counts_too(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": str(path), "validation_size": 5}

    def begun(name, parent=None, asked=(), **settings):
        adapter = str(tmp_path / parent / "adapter") if parent else None
        model = {"id": "embedded", "adapter": adapter}
        config = build_config({"model": model, "data": data} | settings)
        run = RunFolder(tmp_path / name)
        run.open(config, resume=False).release()
        prompts = [[{"role": "user", "content": f"What is {i} + 1?"}] for i in asked]
        if prompts:
            run.keep_preferences([{"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts])
        return Subject(name, config.model, str(run.adapter), "", tmp_path, str(run.path))

    dpo = {"method": "dpo", "preferences": {"source": "votes.jsonl"}}
    problems = load_problems(DataConfig(name=str(path)), "test")
    first = seen_in_training(begun("sampled"), problems)
    assert (first.problems, first.compared) == (3, None)
    begun("voted", "sampled", [0, 1, 2, 3, 4, 5, 6], **dpo)
    second = seen_in_training(begun("again", "voted", [7], **dpo), problems)
    assert second.problems == 8 and second.compared == problems.problems["id"][:]
    assert len(questions_of(str(tmp_path / "again"))) == 8
    third = seen_in_training(begun("later", "again"), problems)  # by samples again
    assert third == second
    for name in ("sampled", "later"):  # a ring, which moved folders could make
        config = (tmp_path / "later" / "config.yaml").read_text()
        (tmp_path / name / "config.yaml").write_text(config)
    runs = lineage(tmp_path / "sampled")
    assert [run.path.name for run in runs] == ["sampled", "again", "voted"]
