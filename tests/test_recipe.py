"""Configuration: closed, typed, layered; every shipped file loads and every field has a reader."""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pydantic
import pytest

import kit.config
from kit.config import TRUST_REGION_SETTINGS, Config, ObjectiveConfig, SettingsSection
from kit.errors import ConfigError, KitError
from kit.recipe import build_config, differences, flatten, load_config
from kit.spelling import did_you_mean

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p for p in (ROOT / "configs").glob("*.yaml") if not p.name.startswith("_"))
SECTIONS = [
    value
    for value in vars(kit.config).values()
    if isinstance(value, type)
    and issubclass(value, SettingsSection)
    and value is not SettingsSection
]
FIELDS = [(section, name) for section in SECTIONS for name in section.model_fields]

BASE = "model: {id: embedded}\ndata: {name: gsm8k}\n"


def build(**sections) -> Config:
    return build_config({"model": {"id": "embedded"}, "data": {"name": "gsm8k"}} | sections)


def error_of(**sections) -> str:
    with pytest.raises(ConfigError) as caught:
        build(**sections)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


# --- closed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"trian": {"steps": 3}}, "unknown key 'trian', did you mean 'train'?"),
        ({"lora": {"rnak": 8}}, "unknown key 'rnak' under lora, did you mean 'rank'?"),
        (
            {"objective": {"agregation": "token"}},
            "unknown key 'agregation' under objective, did you mean 'aggregation'?",
        ),
        (
            {"objective": {"trust_region": {"name": "clip", "epsilon_hi": 0.3}}},
            "unknown key 'epsilon_hi' under objective.trust_region, did you mean 'epsilon_high'?",
        ),
        (
            {"objective": {"trust_region": {"name": "pspo", "aplha": 0.3}}},
            "unknown key 'aplha' under objective.trust_region, did you mean 'alpha'?",
        ),
        (
            {"reward": {"functions": [{"path": "a:b"}, {"path": "a:b", "wieght": 2}]}},
            "unknown key 'wieght' under reward.functions.1, did you mean 'weight'?",
        ),
        # names of trust regions are not keys, at any depth
        (
            {"objective": {"clip": 0.2}},
            "unknown key 'clip' under objective, known keys: trust_region, level,",
        ),
        ({"pspo": {"alpha": 0.1}}, "unknown key 'pspo', known keys: method, model, lora,"),
        (
            {"objective": {"trust_region": {"name": "clip", "clip": 0.2}}},
            "unknown key 'clip' under objective.trust_region, known keys: name, epsilon_low,",
        ),
        ({"lora": {"dropout": 0.1}}, "unknown key 'dropout' under lora, known keys: rank, alpha,"),
    ],
)
def test_unknown_keys_name_the_nearest(sections, message):
    assert message in error_of(**sections)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objective.trust_region.alpha", -0.1, "must be at least 0"),
        ("objective.trust_region.alpha", 1.1, "must be at most 1"),
        ("objective.trust_region.alpha", math.nan, "is not allowed"),
        ("objective.beta", -0.01, "must be at least 0"),
        ("objective.beta", math.inf, "finite"),
        ("objective.max_weight", 0, "must be above 0"),
        ("objective.level", "row", "'token' or 'sequence'"),
        ("rollout.group_size", 1, "must be at least 2"),
        ("rollout.group_size", 4.5, "must be a whole number"),
        ("rollout.temperature", 0, "must be above 0"),
        ("rollout.top_p", 0, "must be above 0"),
        ("rollout.top_p", 1.01, "must be at most 1"),
        ("rollout.top_k", -1, "must be at least 0"),
        ("reward.clamp", [1, 1], "low < high, got [1.0, 1.0]"),
        ("reward.clamp", [1, 0], "low < high, got [1.0, 0.0]"),
        ("reward.no_answer", 0.2, "must be at most 0"),
        ("lora.rank", 0, "must be at least 1"),
        ("lora.alpha", 0, "must be above 0"),
        ("optim.learning_rate", 0, "must be above 0"),
        ("optim.warmup_fraction", 1, "must be below 1"),
        ("optim.max_grad_norm", 0, "must be above 0"),
        ("train.micro_batch_tokens", 15, "must be at least 16"),
        ("train.steps", "many", "must be a whole number"),
        ("model.quantization", "int4", "'nf4', 'int8' or 'none'"),
    ],
)
def test_values_out_of_range(key, value, message):
    section, name = key.split(".", 1)
    values = {name: value}
    if "." in name:
        values = {"trust_region": {"name": "pspo", name.split(".")[1]: value}}
    text = error_of(**{section: values})
    assert message in text
    assert section in text and name.split(".")[-1] in text


def test_values_at_the_edge_of_their_range():
    for alpha in (0.0, 1.0):
        region = build(objective={"trust_region": {"name": "pspo", "alpha": alpha}})
        assert region.objective.trust_region.alpha == alpha
    assert build(rollout={"group_size": 2}).rollout.group_size == 2
    assert build(optim={"max_grad_norm": math.inf}).optim.max_grad_norm == math.inf
    assert build(reward={"clamp": [0, 1]}).reward.clamp == (0.0, 1.0)


def test_all_problems_are_reported_at_once():
    text = error_of(lora={"rnak": 8}, rollout={"group_size": 1}, optim={"learning_rate": -1})
    assert text.count(";") == 2
    for part in ("did you mean 'rank'", "rollout.group_size = 1", "optim.learning_rate = -1"):
        assert part in text


def test_required_keys():
    with pytest.raises(ConfigError, match=r"^model is required; data is required$"):
        build_config({})
    with pytest.raises(ConfigError, match=r"^data\.name is required$"):
        build_config({"model": {"id": "x"}, "data": {}})


def test_trust_region_needs_a_known_name():
    text = error_of(objective={"trust_region": {"alpha": 0.2}})
    assert text.startswith("objective.trust_region.name is required: pspo, clip, noclip, sapo,")
    assert text.endswith(", dgpo or dro")
    text = error_of(objective={"trust_region": {"name": "clipp"}})
    assert "'clipp'" in text
    assert ", ".join(map(repr, TRUST_REGION_SETTINGS)) in text


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl", "ipo", "vespo", "dro", "gmpo"])
def test_what_makes_no_sense_with_a_region_is_refused_in_words(name):
    region = {"name": name}
    text = error_of(objective={"trust_region": region, "old_policy": "base"})
    assert text.startswith(f"objective.old_policy=base does not go with {name}: it")
    assert text.endswith("; take old_policy=auto")
    text = error_of(objective={"trust_region": region, "level": "sequence"})
    assert text.startswith(f"objective.level=sequence does not go with {name}: it")
    assert text.endswith("; take level=token")
    allowed = build(objective={"trust_region": region, "old_policy": "sampler"}).objective
    assert allowed.resolved_old_policy == "sampler"


@pytest.mark.parametrize("name", ["pspo", "clip", "noclip", "sapo", "cispo", "cfpo", "dgpo"])
def test_the_others_go_with_every_old_policy_and_level(name):
    settings = {"trust_region": {"name": name}, "old_policy": "base", "level": "sequence"}
    assert build(objective=settings).objective.resolved_old_policy == "base"


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"name": "cfpo", "epsilon_low": 0.1}, "'epsilon_low' under objective.trust_region, did"),
        ({"name": "vespo", "lambda_positiv": 1}, "did you mean 'lambda_positive'?"),
        (
            {"name": "dro", "alpha": 0.1},
            "name, beta; it is a setting of pspo, and objective.trust_region.name is dro",
        ),
        (
            {"name": "pspo", "epsilon_low": 0.1},
            "it is a setting of clip, gmpo, dgpo, and objective",
        ),
        ({"name": "clip", "dual": 1.0}, "trust_region.dual = 1.0 is not allowed: must be above 1"),
    ],
)
def test_settings_of_another_region_are_refused(region, message):
    assert message in error_of(objective={"trust_region": region})


@pytest.mark.parametrize(
    ("method", "preferences", "message"),
    [
        ("grpo", {"source": "votes.jsonl"}, "preferences.source is for method=dpo or kto, and"),
        ("sft", {"beta": 0.2}, "and this is method=sft: leave it out, or change the method"),
        ("dpo", {"desirable_weight": 2}, "desirable_weight is for method=kto, and this is"),
        ("kto", {"label_smoothing": 0.1}, "label_smoothing is for method=dpo, and this is"),
        ("dpo", {"batch": 4}, "method=dpo needs preferences.source: votes.jsonl, a file or a"),
        ("kto", {"source": "a.jsonl", "batch": 1}, "batch must be at least 2 with method=kto"),
        ("dpo", {"source": "a.jsonl", "label_smoothing": 0.5}, "must be below 0.5"),
        ("kto", {"source": "a.jsonl", "undesirable_weight": 0}, "must be above 0"),
        ("dpo", {"source": "a.jsonl", "beta": 0}, "must be above 0"),
    ],
)
def test_preferences_go_with_their_method_or_are_refused_in_words(method, preferences, message):
    assert message in error_of(method=method, preferences=preferences)


def test_preferences_that_go_with_their_method():
    for method in ("dpo", "kto"):
        config = build(method=method, preferences={"source": "a.jsonl"})
        assert config.preferences.beta == 0.1 and config.learns_from_preferences
    text = error_of(method="dpo", preferences={"source": "a"}, train={"updates_per_rollout": 2})
    assert text.startswith("train.updates_per_rollout=2 is for method=grpo: set it to 1")


def test_no_value_is_refused_in_the_words_of_pydantic():
    """Every setting, with values of every kind that it may not have."""
    fields = [key for key in flatten(build().model_dump()) if key != "reward.functions"]
    odd = (None, "x y", -7, 1.5, [None], [[0]] * 9, {"a": 1}, {1: 1}, "\ud800", math.nan)
    for key in fields:
        section, _, name = key.rpartition(".")
        for value in odd:
            values: Any = {name: value}
            if section == "objective.trust_region":
                values["name"] = "pspo"
            for part in reversed(section.split(".") if section else []):
                values = {part: values}
            try:
                build(**values)
            except ConfigError as error:
                assert not re.search(
                    r"nput |\b(strings?|integer|dictionary|tuple|instance|parse|None)\b(?! is not)"
                    r"|pydantic|literal\[",
                    re.sub(r"= .*? is not allowed", "", str(error)),
                ), error


def test_a_word_that_is_not_near_is_not_suggested():
    assert did_you_mean("learn_rate", ["learning_rate"]) == ", did you mean 'learning_rate'?"
    assert did_you_mean("rnak", ["rank"]) == ", did you mean 'rank'?"
    assert did_you_mean("tyni", ["tiny"]) == ", did you mean 'tiny'?"
    for given, known in (("rate", "rank"), ("tokens", "targets"), ("half", "alpha")):
        assert did_you_mean(given, [known]) == "", given


def test_config_error_is_a_kit_error_and_a_value_error():
    assert issubclass(ConfigError, KitError) and issubclass(ConfigError, ValueError)


def test_values_are_fixed_once_built():
    config = build()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.lora.rank = 4
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.objective.trust_region.alpha = 0.5
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.method = "sft"


def test_defaults_compare_like_the_recommended_recipe():
    config = build()
    assert config.objective == ObjectiveConfig()
    assert config.objective.trust_region.name == "pspo"
    assert config.objective.trust_region.alpha == 0.1
    assert config.objective.resolved_old_policy == "base"
    assert (config.rollout.top_p, config.rollout.top_k, config.objective.beta) == (1.0, 0, 0.0)


# --- files, extends, overrides -------------------------------------------------------------------


def test_load_config(write):
    config = load_config(write("mine.yaml", BASE + "rollout:\n  group_size: 4\n"))
    assert config.model.id == "embedded"
    assert config.rollout.group_size == 4
    assert config.rollout.prompts_per_step == 8
    assert Path(config.output) == Path("runs/mine")
    assert load_config(write("own.yaml", BASE + "output: elsewhere\n")).output == "elsewhere"


def test_overrides_are_typed_and_nested(write):
    path = write("a.yaml", BASE + "optim: {learning_rate: 3.0e-5}\n")
    overrides = [
        "rollout.group_size=4",
        "optim.learning_rate=1e-5",  # YAML 1.1 reads this as text
        "model.gradient_checkpointing=true",
        "data.categories=[algebra, geometry]",
        "data.system_prompt=''",
        "objective.trust_region.name=sapo",
        "objective.trust_region.tau_negative=2",
        "reward.clamp=[0, 1]",
        "data.split=a=b",
        "output=null",
    ]
    config = load_config(path, overrides)
    assert config.rollout.group_size == 4
    assert config.optim.learning_rate == 1e-5
    assert config.model.gradient_checkpointing is True
    assert config.data.categories == ["algebra", "geometry"]
    assert config.objective.trust_region.name == "sapo"
    assert config.objective.trust_region.tau_negative == 2.0
    assert config.reward.clamp == (0.0, 1.0)
    assert config.data.split == "a=b"
    assert config.output is None
    assert config.data.system_prompt == ""
    assert load_config(path, ["rollout.top_k=1", "rollout.top_k=2"]).rollout.top_k == 2


@pytest.mark.parametrize(
    "text", ["runs/a #1", "#1", "a # b", "'a' #1", '"a" # b', "--- a", "[a] #1", "null #1", "4 #5"]
)
def test_what_yaml_would_cut_off_an_override_is_kept(write, text):
    """A comment is for files."""
    path = write("a.yaml", BASE)
    assert load_config(path, [f"output={text}"]).output == text
    with pytest.raises(ConfigError) as refused:
        load_config(path, [f"lora.rank={text}"])
    assert f"lora.rank = {text!r} is not allowed: must be a whole number" in str(refused.value)


def test_overrides_with_a_number_sign_of_their_own(write):
    path = write("a.yaml", BASE)
    for text, value in (("a#1", "a#1"), ("' a #1'", " a #1"), (" a ", "a"), ("[a, 'b #1']", None)):
        key = "data.categories" if value is None else "data.split"
        found = load_config(path, [f"{key}={text}"]).data
        assert (found.split, found.categories) == (value, None if value else ["a", "b #1"])


@pytest.mark.parametrize(
    "key", ["lora.rank", "lora.alpha", "data.limit", "objective.trust_region.alpha", "train.seed"]
)
def test_true_is_no_number(write, key):
    path = write("a.yaml", BASE + "objective: {trust_region: {name: pspo}}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(path, [f"{key}=true"])
    assert str(refused.value) == f"{key} = True is not allowed: must be a number, not true or false"
    kept = ["model.gradient_checkpointing=true", "rollout.cuda_graph=false", "train.seed=1"]
    config = load_config(path, kept)
    assert (config.model.gradient_checkpointing, config.rollout.cuda_graph) == (True, False)


def test_an_override_of_the_region_drops_the_settings_of_the_other(write):
    path = write("a.yaml", BASE + "objective: {beta: 0.1, trust_region: {name: pspo, alpha: 0.3}}")
    same = load_config(path, ["objective.trust_region.alpha=0.5"]).objective
    assert (same.trust_region.name, same.trust_region.alpha, same.beta) == ("pspo", 0.5, 0.1)
    name, setting = "objective.trust_region.name=clip", "objective.trust_region.epsilon_high=0.4"
    for overrides in ([name, setting], [setting, name]):  # in either order
        other = load_config(path, overrides).objective
        assert other.trust_region.model_dump() == {
            "name": "clip",
            "epsilon_low": 0.2,
            "epsilon_high": 0.4,
            "dual": None,
        }
        assert other.beta == 0.1


def test_a_region_is_named_for_short(write):
    """`trust_region: cispo` is `trust_region: {name: cispo}`, wherever it stands."""
    path = write("a.yaml", BASE + "objective: {trust_region: {name: pspo, alpha: 0.3}}")
    region = "objective.trust_region"
    cispo = {"name": "cispo", "epsilon_max": 5.0}
    assert load_config(path, [f"{region}=cispo"]).objective.trust_region.model_dump() == cispo
    both = [f"{region}=cispo", f"{region}.epsilon_max=3"]
    for overrides in (both, both[::-1]):  # in either order
        found = load_config(path, overrides).objective.trust_region
        assert found.model_dump() == {"name": "cispo", "epsilon_max": 3.0}
    same = load_config(path, [f"{region}=pspo"]).objective.trust_region  # as {name: pspo} does
    assert same.model_dump() == {"name": "pspo", "alpha": 0.3}
    short = write("short.yaml", BASE + "objective: {trust_region: cispo}")
    assert load_config(short).objective.trust_region.model_dump() == cispo
    child = write("b.yaml", "extends: short.yaml\nobjective: {trust_region: {epsilon_max: 3}}")
    assert load_config(child).objective.trust_region.model_dump()["epsilon_max"] == 3
    assert build(objective={"trust_region": "cispo"}).objective.trust_region.model_dump() == cispo


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.group_size"], "'rollout.group_size' must have the form key=value"),
        (["=4"], "'=4' must have the form key=value"),
        (
            ["model.id="],
            "'model.id=' has no value; write model.id=null for none, model.id=[] for an empty list",
        ),
        (["data.limit= "], "'data.limit= ' has no value"),
        (["model.id=''"], "model.id = '' is not allowed: must not be empty"),
        (["data.name=''"], "data.name = '' is not allowed: must not be empty"),
        (
            ["lora.targets=3"],
            "lora.targets = 3 is not allowed: must be 'all-linear' or must be a list",
        ),
        (["objective.trust_region=3"], "= 3 is not allowed: must be a section with a name"),
        (
            ["objective.trust_region=cispoo"],
            "objective.trust_region.name = 'cispoo' is not known, did you mean 'cispo'? There are",
        ),
        (["lora.rank=4", "lora.rank.x=1"], "'rank' is a value, not a section"),
        (["model.id.x=1"], "model.id = {'x': 1} is not allowed: must be a text"),
        (["lora=3"], "lora = 3 is not allowed"),
        (["lora.rnak=3"], "did you mean 'rank'?"),
        (["rollout.group_size=[4"], "rollout.group_size = '[4' is not allowed"),
    ],
)
def test_bad_overrides(write, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write("a.yaml", BASE), overrides)
    assert message in str(caught.value)


def test_extends_merges_and_chains(write):
    write("sub/grandparent.yaml", BASE + "lora: {rank: 4, alpha: 8}\ntrain: {steps: 7}\n")
    write("parent.yaml", "extends: sub/grandparent.yaml\nlora: {rank: 5}\ndata: {limit: 3}\n")
    config = load_config(write("child.yaml", "extends: parent.yaml\nlora: {alpha: 9}\n"))
    assert (config.lora.rank, config.lora.alpha) == (5, 9.0)
    assert (config.train.steps, config.data.limit, config.data.name) == (7, 3, "gsm8k")
    assert Path(config.output) == Path("runs/child")


def test_extends_keeps_the_other_settings_of_a_renamed_section(write):
    # data and optim have a `name` too; only a trust region is replaced with its name
    write("parent.yaml", BASE + "optim: {learning_rate: 1.0e-4}\nlora: {rank: 4}\n")
    child = write(
        "child.yaml",
        """
        extends: parent.yaml
        optim: {name: adamw_8bit}
        data: {name: svamp, limit: 5}
        """,
    )
    config = load_config(child)
    assert (config.optim.name, config.optim.learning_rate) == ("adamw_8bit", 1e-4)
    grandchild = write("grandchild.yaml", "extends: child.yaml\ndata: {name: asdiv}\n")
    assert load_config(grandchild).data.limit == 5


def test_extends_replaces_a_trust_region_of_another_name(write):
    write("parent.yaml", BASE + "objective: {beta: 0.1, trust_region: {name: pspo, alpha: 0.3}}\n")
    clip = write("clip.yaml", "extends: parent.yaml\nobjective: {trust_region: {name: clip}}\n")
    config = load_config(clip)
    assert config.objective.trust_region.name == "clip"
    assert config.objective.beta == 0.1
    same = write("same.yaml", "extends: parent.yaml\nobjective: {trust_region: {name: pspo}}\n")
    assert load_config(same).objective.trust_region.alpha == 0.3


def test_extends_replaces_lists(write):
    write("parent.yaml", BASE + "reward: {functions: [{path: 'a:b'}, {path: 'c:d'}]}\n")
    child = write("child.yaml", "extends: parent.yaml\nreward: {functions: [{path: 'e:f'}]}\n")
    assert [f.path for f in load_config(child).reward.functions] == ["e:f"]


def test_bad_files(write, tmp_path):
    with pytest.raises(
        ConfigError, match=r"cannot read the configuration .*nowhere\.yaml: No such"
    ):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*gone\.yaml: No such"):
        load_config(write("orphan.yaml", "extends: gone.yaml\n"))
    with pytest.raises(ConfigError, match=r"bad\.yaml is not valid YAML: .*line 3, column 1"):
        load_config(write("bad.yaml", "model: {id: x}\ndata: {name: [\n"))
    for text, kind in (("- 1\n", "list"), ("", "NoneType"), ("gsm8k\n", "str")):
        with pytest.raises(ConfigError, match=f"must hold a mapping of settings, got {kind}"):
            load_config(write("odd.yaml", text))
    with pytest.raises(ConfigError, match=r"extends must name one file, got \['a', 'b'\]"):
        load_config(write("two.yaml", "extends: [a, b]\n"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not valid YAML"):
        load_config(binary)


def test_extends_refuses_a_cycle(write):
    first = write("first.yaml", BASE + "extends: second.yaml\n")
    write("second.yaml", "extends: first.yaml\n")
    with pytest.raises(ConfigError, match=r"first\.yaml extends itself, through .*second\.yaml"):
        load_config(first)
    with pytest.raises(ConfigError, match=r"self\.yaml extends itself"):
        load_config(write("self.yaml", "extends: self.yaml\n"))


def test_differences():
    pspo = build(objective={"trust_region": {"name": "pspo", "alpha": 0.1}}, lora={"rank": 8})
    clip = build(
        objective={"trust_region": {"name": "clip"}},
        lora={"rank": 8},
        train={"steps": 3},
        reward={"clamp": [0, 1]},
    )
    assert differences(pspo, clip) == {
        "objective.trust_region.name": ("pspo", "clip"),
        "objective.trust_region.alpha": (0.1, None),
        "objective.trust_region.epsilon_low": (None, 0.2),
        "objective.trust_region.epsilon_high": (None, 0.28),
        "reward.clamp": (None, (0.0, 1.0)),
        "train.steps": (250, 3),
    }
    assert differences(pspo, pspo) == {}


# --- the whole repository ------------------------------------------------------------------------


def test_there_are_recipes():
    assert RECIPES, "configs/ holds no recipe: the test of all recipes would test nothing"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_load(path):
    config = load_config(path)
    assert Path(config.output).name == path.stem


def test_config_imports_nothing_heavy():
    code = "import kit.config, sys; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "datasets", "peft", "accelerate"}


@pytest.mark.parametrize(
    ("section", "name"), FIELDS, ids=[f"{section.__name__}.{name}" for section, name in FIELDS]
)
def test_every_field_is_documented(section, name):
    field = section.model_fields[name]
    assert section.__doc__, f"{section.__name__} has no docstring"
    is_section = isinstance(field.annotation, type) and issubclass(
        field.annotation, SettingsSection
    )
    is_tag = name == "name" and section.__name__.lower() in str(field.annotation).replace("_", "")
    assert field.description or is_section or is_tag


def attributes_read(tree: ast.AST) -> set[str]:
    """Names read as `something.name`; not methods called, which are no settings."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and id(node) not in called
    }


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_field_has_a_reader():
    source = ROOT / "kit" / "config.py"
    read: set[str] = set()
    for path in (ROOT / "kit").rglob("*.py"):
        if path != source:
            read |= attributes_read(parse(path))
    for node in ast.walk(parse(source)):  # a property that is read reads its fields
        if isinstance(node, ast.FunctionDef) and node.name in read:
            read |= attributes_read(node)
    unread = [f"{section.__name__}.{name}" for section, name in FIELDS if name not in read]
    assert not unread, f"no module reads {', '.join(unread)}"
