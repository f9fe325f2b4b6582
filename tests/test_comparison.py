"""Comparisons: arms that train together end as they would alone, and unfair ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kit.cli import main
from kit.comparison import Study, check_arms, compare, differing_fields, load_arms
from kit.config import SYSTEM_PROMPT, DataConfig, ModelConfig
from kit.errors import ConfigError, ResultsError, RunError, TrainingError
from kit.evaluation.benchmark import benchmark
from kit.evaluation.results import read_result
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.reading import read_metrics
from kit.recipe import read_guidelines
from kit.reports import report
from kit.reports.collect import collect
from kit.runs import RunFolder
from kit.training.grpo import GRPO
from kit.training.trainer import train, train_together

REGIONS = {
    "clip": {"trust_region": {"name": "clip"}},
    "pspo": {"trust_region": {"name": "pspo"}, "level": "sequence"},
    "sapo": {"trust_region": {"name": "sapo"}},
}
CLOCKWORK = ("time/", "memory/")


@pytest.fixture
def arms(make_config, tmp_path):
    """A configuration per trust region, each with its own folder under `group`."""

    def make(group, **sections):
        sections["train"] = {"validate_every": 2, **sections.get("train", {})}
        return [
            make_config(objective=objective, output=str(tmp_path / group / name), **sections)
            for name, objective in REGIONS.items()
        ]

    return make


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """Arms that were trained together, undisturbed, as whoever asks first would have them."""
    found: list[RunFolder] = []

    def together(arms) -> list[RunFolder]:
        if not found:
            found.extend(train_together(arms(tmp_path_factory.mktemp("whole")), base=base))
        return found

    return together


@pytest.fixture
def recipes(make_config, tmp_path):
    """A recipe file per trust region."""
    paths = []
    for name, objective in REGIONS.items():
        validating = make_config(objective=objective, train={"validate_every": 2})
        values = validating.model_dump(mode="json")
        del values["output"]
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(values))
    return paths


def figures(run):
    return [
        {key: value for key, value in record.items() if not key.startswith(CLOCKWORK)}
        for record in read_metrics(run.metrics)
    ]


def assert_same_run(a, b, tolerance=2e-4):
    """The same completions, figures and weights, but for the rounding of other batch shapes."""
    assert a.samples.read_text() == b.samples.read_text()
    for x, y in zip(figures(a), figures(b), strict=True):
        assert x == pytest.approx(y, abs=tolerance, rel=1e-2)
    left = load_file(a.adapter / "adapter_model.safetensors")
    right = load_file(b.adapter / "adapter_model.safetensors")
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=tolerance, rtol=0)
    settings = [(run.adapter / "adapter_config.json").read_text() for run in (a, b)]
    assert settings[0] == settings[1]


# --- training together ---------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.slow
def test_each_arm_ends_as_it_does_alone(base, arms, whole):
    together = whole(arms)
    weights = []
    for config, run in zip(arms("alone"), together, strict=True):
        alone = train(config, base=base)
        assert_same_run(run, alone)
        weights.append(load_file(run.adapter / "adapter_model.safetensors"))
    name = next(key for key in weights[0] if "lora_B" in key)
    for i, j in ((0, 1), (0, 2), (1, 2)):  # they are different arms, not one three times
        assert (weights[i][name] - weights[j][name]).abs().max() > 1e-5
    assert not any("lora" in name for name, _ in base.model.named_parameters())


@pytest.mark.slow
@pytest.mark.smoke
def test_arms_that_continue_one_adapter_share_its_snapshot(base, arms, whole):
    start = str(whole(arms)[0].adapter)
    short = {"model": {"adapter": start}, "train": {"steps": 1}}
    together = train_together(arms("together", **short)[:2], base=base)
    for config, run in zip(arms("alone", **short)[:2], together, strict=True):
        assert_same_run(run, train(config, base=base))
        assert run.read_description()["parent"] == start


@pytest.mark.smoke
@pytest.mark.slow
def test_an_interrupted_group_goes_on_where_each_arm_stopped(base, arms, whole, monkeypatch):
    learn = GRPO.learn

    def broken(self, step, *args):
        if step == 1 and self.policy.trained == "arm1":  # the second arm's second step
            raise KeyboardInterrupt
        return learn(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(GRPO, "learn", broken)
        with pytest.raises(KeyboardInterrupt):
            train_together(arms("broken"), base=base)
    configs = arms("broken")
    # one arm goes on alone first: the group then has arms at different steps
    train(configs[0], resume=True, base=base)
    resumed = train_together(configs, resume=True, base=base)
    for a, b in zip(whole(arms), resumed, strict=True):
        assert_same_run(a, b)


@pytest.mark.smoke
@pytest.mark.slow
def test_an_arm_that_fails_is_left_out_and_the_others_end_as_before(base, arms, whole, monkeypatch):
    learn = GRPO.learn

    def failing(self, step, *args):
        if step == 1 and self.policy.trained == "arm1":
            raise TrainingError("the gradient is not finite")
        return learn(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(GRPO, "learn", failing)
        runs = train_together(arms("failing"), base=base)
    assert runs[1].read_description()["status"] == "failed"
    assert runs[1].read_description()["error"] == "the gradient is not finite"
    for i in (0, 2):
        assert_same_run(runs[i], whole(arms)[i])


def test_arms_must_share_what_they_sample(make_config, tmp_path):
    one = make_config(output=str(tmp_path / "a"))
    other = make_config(
        output=str(tmp_path / "b"), rollout={"temperature": 0.5}, train={"seed": 1, "steps": 2}
    )
    with pytest.raises(ConfigError, match=r"differ in rollout, train\.seed, which"):
        train_together([one, other])
    with pytest.raises(ConfigError, match="output folder of its own"):
        train_together([one, one])


# --- what may be compared ------------------------------------------------------------------------


def test_differing_fields_are_those_of_the_arms(recipes):
    found = differing_fields(load_arms(recipes, []))
    assert found["clip"] == {
        "objective.level": "token",
        "objective.trust_region.epsilon_high": 0.28,
        "objective.trust_region.epsilon_low": 0.2,
        "objective.trust_region.name": "clip",
    }
    assert found["pspo"] == {
        "objective.level": "sequence",
        "objective.trust_region.alpha": 0.1,
        "objective.trust_region.name": "pspo",
    }


def edited(path: Path, section: str, key: str, value) -> Path:
    values = yaml.safe_load(path.read_text())
    values[section][key] = value
    path.write_text(yaml.safe_dump(values))
    return path


def test_undeclared_differences_are_refused_with_their_values(recipes):
    edited(recipes[1], "optim", "learning_rate", 3e-3)
    edited(recipes[2], "train", "steps", 5)
    with pytest.raises(ConfigError) as refusal:
        check_arms(load_arms(recipes, []))
    assert "optim.learning_rate: clip 0.001, pspo 0.003, sapo 0.001" in str(refusal.value)
    assert "train.steps: clip 2, pspo 2, sapo 5" in str(refusal.value)
    # an override holds for all arms, so it makes them equal again
    check_arms(load_arms(recipes, ["optim.learning_rate=0.002", "train.steps=3"]))


def test_declared_differences_are_accepted(recipes):
    edited(recipes[1], "optim", "learning_rate", 3e-3)
    check_arms(load_arms(recipes, []), vary=["optim.learning_rate"])
    check_arms(load_arms(recipes, []), vary=["optim"])
    with pytest.raises(ConfigError, match=r"differ in more than objective, optim\.schedule"):
        check_arms(load_arms(recipes, []), vary=["optim.schedule"])
    with pytest.raises(ConfigError, match=r"can not vary in model\.id"):
        check_arms(load_arms(recipes, []), vary=["model.id"])


def test_bad_groups_of_arms(recipes, tmp_path):
    with pytest.raises(ConfigError, match="at least two configurations, got 1"):
        load_arms(recipes[:1], [])
    twin = tmp_path / "elsewhere" / "clip.yaml"
    twin.parent.mkdir()
    twin.write_text(recipes[0].read_text())
    with pytest.raises(ConfigError, match="got clip twice"):
        load_arms([recipes[0], twin], [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipes[0].read_text())
    with pytest.raises(ConfigError, match="clip and copy are the same configuration"):
        check_arms(load_arms([recipes[0], copy], []))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "--seeds must be numbers with commas between, got '0,x'"),
        (["--seeds", "1,1"], "seeds must be different numbers"),
        (["--vary", "data"], "can not vary in data"),
        (["evaluate.limti=3"], "unknown key 'limti' under evaluate, did you mean 'limit'?"),
        (["lora.rnak=3"], "did you mean 'rank'?"),
        (["--data", "swamp"], "did you mean 'svamp'?"),
    ],
)
def test_bad_arguments(recipes, tmp_path, capsys, arguments, message):
    paths = [str(path) for path in recipes]
    assert main(["compare", *paths, *arguments, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_too_small_for_all_arms_is_refused_at_once(recipes, tmp_path, capsys):
    command = ["compare", *map(str, recipes), "--output", str(tmp_path / "out")]
    assert main([*command, "memory_budget=650MB", "model.id=Qwen/Qwen2.5-0.5B"]) == 1
    assert "not enough for 3 arms that train together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "budget"), [(EvalSettings(), "6GB"), (EvalSettings(memory_budget="2GB"), "2GB")]
)
def test_the_evaluation_keeps_to_the_budget_too(
    recipes, base, tmp_path, monkeypatch, settings, budget
):
    given = []
    monkeypatch.setattr(
        "kit.evaluation.benchmark.benchmark", lambda *_, **__: given.append(_[2]) or []
    )
    study = Study(tmp_path, load_arms(recipes, ["memory_budget=6GB"]), [0])
    study.evaluate(base, [], settings)
    assert [settings.memory_budget for settings in given] == [budget]


def test_several_processes_are_refused(recipes, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one process"):
        compare(recipes, output=tmp_path / "out")


# --- the whole command ---------------------------------------------------------------------------


@pytest.mark.smoke
def test_a_comparison_trains_evaluates_and_is_not_done_twice(recipes, tmp_path, capsys):
    output = tmp_path / "study"
    paths = [str(path) for path in recipes[:2]]
    command = ["compare", *paths, "train.steps=1", "evaluate.limit=4", "evaluate.max_new_tokens=16"]
    command += ["--seeds", "0,3", "--output", str(output)]
    assert main(command) == 0
    record = json.loads((output / "compare.json").read_text())
    assert record["status"] == "finished" and record["schema"] == 1
    assert record["seeds"] == [0, 3] and record["data"] == ["gsm_symbolic"]
    assert record["runs"]["pspo"] == {"0": "pspo/seed-0", "3": "pspo/seed-3"}
    assert record["command"].startswith("kit compare ") and set(record["seconds"]) == {"0", "3"}
    ids = []
    for folder in ("base", "clip/seed-0", "clip/seed-3", "pspo/seed-0", "pspo/seed-3"):
        result = read_result(output / folder / "eval" / "gsm_symbolic.json")
        ids.append([row["id"] for row in result.rows()])
        assert len(ids[-1]) == 4
    assert all(sorted(own) == sorted(ids[0]) for own in ids)  # the same problems for everybody
    seeds = [
        json.loads((output / "clip" / f"seed-{seed}" / "run.json").read_text())["seed"]
        for seed in (0, 3)
    ]
    assert seeds == [0, 3]
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    assert (
        "pspo/seed-3, after 1 steps: held-out accuracy, greedy on 4 problems, "
        in capsys.readouterr().out
    )
    assert main(command) == 0
    assert "seed 0: finished already" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}


@pytest.mark.smoke
@pytest.mark.slow
def test_guidelines_are_arms(recipes, base, tmp_path, capsys):
    guided = tmp_path / "guided.yaml"
    guided.write_text("extends: clip.yaml\nguidelines: [one-equation-per-line]\n")
    with pytest.raises(
        ConfigError, match=r"guidelines\.one-equation-per-line\.prompt: clip None, guided"
    ):
        check_arms(load_arms([recipes[0], guided], []))
    settings = EvalSettings(limit=3, max_new_tokens=16)
    out = compare(
        [recipes[0], guided],
        ["train.steps=1"],
        vary="guidelines",
        output=tmp_path / "out",
        settings=settings,
    )
    results = {
        arm: read_result(out / folder / "eval" / "gsm_symbolic.json")
        for arm, folder in {
            "base": "base",
            "clip": "clip/seed-0",
            "guided": "guided/seed-0",
        }.items()
    }
    prompts = {arm: result.settings["system_prompt"] for arm, result in results.items()}
    assert prompts["base"] == prompts["clip"] == SYSTEM_PROMPT
    assert prompts["guided"] == f"{SYSTEM_PROMPT}\nWrite one equation per line."
    assert {result.shared_prompt for result in results.values()} == {SYSTEM_PROMPT}
    for result in results.values():  # every arm is looked at for the guidelines of all
        assert result.record["guidelines"].keys() == {"one-equation-per-line"}
        assert result.at(0.0)["adherence"]["one-equation-per-line"]["n"] == 3
    asked = [json.loads(line) for line in (out / "guided/seed-0/samples.jsonl").open()]
    assert all("one-equation-per-line.equations" in row["parts"] for row in asked)
    report(out)
    assert "Adherence to guidelines on gsm_symbolic, beside accuracy" in capsys.readouterr().out


@pytest.mark.smoke
def test_guidelines_that_come_later_are_counted_on_the_rows_there(base, adapters, tmp_path):
    model, data = ModelConfig(id="embedded"), DataConfig(name="gsm_symbolic", options={"size": 4})
    plain = Subject("first", model, str(adapters / "first"), SYSTEM_PROMPT, tmp_path)
    settings = EvalSettings(limit=2, max_new_tokens=8)
    (before,) = benchmark([plain], [data], settings, base=base)
    assert "adherence" not in before.at(0.0)
    rows = before.path.with_suffix(".jsonl").read_bytes()
    concise = replace(
        plain,
        name="second",
        results=tmp_path / "second",
        guidelines=read_guidelines("concise"),
    )
    after, other = benchmark([plain, concise], [data], settings, base=base)
    assert after.path == before.path and after.path.with_suffix(".jsonl").read_bytes() == rows
    assert after.at(0.0)["adherence"] == {"concise": {"value": None, "n": 0}}
    assert other.record["target"]["guidelines"] == {"concise": "Be brief."}
    different = {
        "concise": read_guidelines("concise")["concise"].model_copy(update={"prompt": "!"})
    }
    other = replace(concise, name="x", guidelines=different, results=tmp_path / "third")
    with pytest.raises(ConfigError, match="different guidelines called 'concise'"):
        benchmark([other, concise], [data], settings)


@pytest.mark.smoke
@pytest.mark.slow
def test_a_stopped_comparison_goes_on(recipes, base, tmp_path, monkeypatch):
    def stop(self):
        self.stopping = True
        return True

    settings = EvalSettings(limit=2, max_new_tokens=8)
    with monkeypatch.context() as patch:
        patch.setattr("kit.training.trainer.Trainer._must_stop", stop)
        compare(recipes[:2], output=tmp_path / "out", settings=settings)
    assert json.loads((tmp_path / "out/compare.json").read_text())["status"] == "interrupted"
    assert not list((tmp_path / "out").rglob("eval"))
    compare(recipes[:2], output=tmp_path / "out", settings=settings)
    assert json.loads((tmp_path / "out/compare.json").read_text())["status"] == "finished"
    steps = [m["step"] for m in read_metrics(tmp_path / "out/clip/seed-0/metrics.jsonl")]
    assert steps == [0, 1, 2, 2]


# --- the comparison's own file -------------------------------------------------------------------


def study(folder, recipes):
    return Study(folder, load_arms(recipes, []), [0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"[1]", "must hold a JSON object"),
        (b'{"schema": 1, "seconds": 3}', "arms is 'None'"),
        (b'{"schema": 9}', "has schema 9, this kit reads 1"),
    ],
)
def test_a_damaged_comparison_is_refused_in_a_line(recipes, tmp_path, content, message):
    (tmp_path / "compare.json").write_bytes(content)
    for read in (study(tmp_path, recipes).describe, lambda **_: collect([tmp_path])):
        with pytest.raises(ResultsError, match=message) as refusal:
            read(status="running")
        assert "\n" not in str(refusal.value)


def test_a_comparison_names_no_folder_outside(recipes, tmp_path):
    one = study(tmp_path, recipes)
    one.describe(status="running", command=None)
    record = json.loads(one.path.read_text())
    record["runs"]["clip"]["0"] = "../elsewhere"
    one.path.write_text(json.dumps(record))
    with pytest.raises(ResultsError, match="its runs are no folders in it"):
        one.read()


def test_one_comparison_at_a_time_works_in_a_folder(recipes, tmp_path):
    with (
        study(tmp_path / "out", recipes).alone(),
        pytest.raises(RunError, match="another kit compare works in"),
        study(tmp_path / "out", recipes).alone(),
    ):
        raise AssertionError("not reached")


def test_what_was_stopped_from_outside_is_tried_again(recipes, tmp_path):
    one = study(tmp_path, recipes)
    for arm, error in (("clip", RunError("full")), ("pspo", TrainingError("NaN"))):
        one.run(arm, 0).path.mkdir(parents=True)
        one.run(arm, 0).note_end(error)
    assert [one.run(arm, 0).has_ended for arm in REGIONS] == [False, True, False]
