"""Damaged run folders: whatever is wrong with one is said in a line, and nothing wrong is used.

One small run is trained and evaluated; each test damages a copy of it and gives it to every command
that reads runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.adapters.merge import merge
from kit.app.library.folders import find_runs
from kit.app.library.runs import read_run
from kit.commands import read_config
from kit.errors import KitError
from kit.evaluation.benchmark import benchmark
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import resolve_data, resolve_targets
from kit.model.adapter_files import CONFIG, PROBE, WEIGHTS
from kit.recipe import build_config
from kit.reports.collect import collect
from kit.runs import RunFolder
from kit.training.trainer import train

pytestmark = pytest.mark.smoke

LAST = "checkpoints/step-000002"


@pytest.fixture(scope="module")
def sound(base, tmp_path_factory) -> Path:
    """Two steps, a checkpoint after each, held-out accuracy after the second, one evaluation."""
    path = tmp_path_factory.mktemp("sound") / "run"
    values = {
        "model": {"id": "embedded"},
        "lora": {"rank": 4, "alpha": 8},
        "data": {"name": "gsm_symbolic", "options": {"size": 12}, "validation_size": 2},
        "rollout": {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 8},
        "reward": {"functions": [{"path": "tests.reward_functions:share_of_vowels"}]},
        "optim": {"learning_rate": 1e-3, "warmup_fraction": 0.0},
        "train": {
            **{"steps": 2, "validate_every": 2, "checkpoint_every": 1, "preflight_problems": 0},
        },
        "output": str(path),
    }
    train(build_config(values), base=base)
    evaluated(path, base)
    return path


@pytest.fixture
def run(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def evaluated(path: Path, base) -> None:
    targets = resolve_targets([str(path)])
    settings = EvalSettings(max_new_tokens=4, limit=2)
    benchmark(targets, resolve_data(["gsm_symbolic"], targets), settings, base=base)


def resumed(path: Path, base) -> None:
    train(read_config("train", [str(path)])[1], resume=True, base=base)


# --- damages -------------------------------------------------------------------------------------


def cut_before(name: str, text: str) -> Callable[[Path], None]:
    """What comes before a text in a file."""

    def damage(run: Path) -> None:
        (run / name).write_text((run / name).read_text().partition(text)[0])

    return damage


def cut(name: str, keep: float = 0.5) -> Callable[[Path], None]:
    """The first part of a file; 0: an empty one."""

    def damage(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def flip(name: str, place: float = 0.5) -> Callable[[Path], None]:
    """One bit of the byte at this part of the file."""

    def damage(run: Path) -> None:
        content = bytearray((run / name).read_bytes())
        content[int(len(content) * place)] ^= 4
        (run / name).write_bytes(content)

    return damage


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return damage


def drop(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return damage


def folder(name: str) -> Callable[[Path], None]:
    """A folder in a file's place."""

    def damage(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return damage


def circle(name: str) -> Callable[[Path], None]:
    """A link to itself in a file's place."""

    def damage(run: Path) -> None:
        drop(name)(run)
        (run / name).symlink_to(name.rpartition("/")[2])

    return damage


def unreadable(name: str) -> Callable[[Path], None]:
    """A file that cannot be read, not even by root: its first bytes are no memory of anybody's."""

    def damage(run: Path) -> None:
        drop(name)(run)
        (run / name).symlink_to("/proc/self/mem")

    return damage


def forbidden(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).chmod(0)
        if os.access(run / name, os.R_OK):
            pytest.skip("this user may read everything")

    return damage


def weights(name: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    """Well-formed safetensors with other weights."""

    def damage(run: Path) -> None:
        save_file(change(load_file(run / name)), run / name, metadata={"format": "pt"})

    return damage


def without_manifest(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """As an older version left it: nothing to compare with."""

    def damage_all(run: Path) -> None:
        damage(run)
        for manifest in run.glob("checkpoints/*/manifest.json"):
            manifest.unlink()

    return damage_all


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage_all(run: Path) -> None:
        for damage in damages:
            damage(run)

    return damage_all


def nan(tensors: dict) -> dict:
    first = next(iter(tensors))
    return tensors | {first: torch.full_like(tensors[first], float("nan"))}


def half(tensors: dict) -> dict:
    return dict(list(tensors.items())[::2])


DEEP_JSON, DEEP_YAML = "[" * 100_000, "a: " + "[" * 1_500
STATE, MANIFEST = f"{LAST}/state.pt", f"{LAST}/manifest.json"
ADAPTER, SETTINGS = f"{LAST}/adapter/{WEIGHTS}", f"{LAST}/adapter/{CONFIG}"
RESULTS = "eval/gsm_symbolic.json"
NOT_USED = "damaged and not used"


@dataclass(frozen=True)
class Case:
    """A damage; what is said about it, and whether training goes on nevertheless."""

    damage: Callable[[Path], None]
    said: str  # a part of a warning, a remark, a fault or an error
    goes_on: bool


# near relatives of others, each of which trains for a second or two
SLOW = {
    *("state-empty", "state-is-a-folder", "state-is-a-circle", "state-forbidden", "weights-cut"),
    *("weights-empty", "weights-nan", "weights-half", "settings-cut", "manifest-empty"),
    *("manifest-other", "manifest-nothing", "checkpoint-is-a-file", "old-settings-cut"),
    *("old-settings-deep", "old-state-cut", "metrics-empty", "metrics-deep", "metrics-types"),
    *("samples-cut", "adapter-half", "adapter-nan", "adapter-settings-list", "rows-gone"),
    *("config-deep", "description-utf8", "description-list", "adapter-cut", "rows-cut"),
}


def case(name: str, damage: Callable[[Path], None], said: str, goes_on: bool = False):
    marks = [pytest.mark.slow] if name in SLOW else []
    return pytest.param(Case(damage, said, goes_on), id=name, marks=marks)


CASES = [
    # the newest checkpoint: the one before is used
    case("state-cut", cut(STATE), "state.pt has another size", True),
    case("state-empty", cut(STATE, 0), "state.pt has another size", True),
    case("state-flipped", flip(STATE), "state.pt has other bytes", True),
    case("state-is-a-folder", folder(STATE), "lacks state.pt", True),
    case("state-is-a-circle", circle(STATE), "lacks state.pt", True),
    case("state-unreadable", unreadable(STATE), "state.pt has another size", True),
    case("state-forbidden", forbidden(STATE), "cannot be read", True),
    case("weights-cut", cut(ADAPTER), "has another size", True),
    case("weights-empty", cut(ADAPTER, 0), "has another size", True),
    case("weights-flipped", flip(ADAPTER, 0.9), "has other bytes", True),
    case("weights-nan", weights(ADAPTER, nan), "damaged and not used", True),
    case("weights-half", weights(ADAPTER, half), "damaged and not used", True),
    case("settings-cut", cut(SETTINGS), "adapter_config.json has another size", True),
    case("manifest-cut", cut(MANIFEST), "manifest.json is not usable", True),
    case("manifest-empty", cut(MANIFEST, 0), "manifest.json is not usable", True),
    case("manifest-other", write(MANIFEST, '{"schema": 1}'), "no manifest of a checkpoint", True),
    case("manifest-nothing", replace(MANIFEST, "state.pt", "x"), "it names", True),
    case("checkpoint-empty", both(drop(LAST), write(f"{LAST}/x", "")), "it lacks state.pt", True),
    case("checkpoint-is-a-file", both(drop(LAST), write(LAST, "")), "it lacks state.pt", True),
    case(
        "all-checkpoints",
        both(cut(STATE), cut("checkpoints/step-000001/state.pt")),
        "no checkpoint can be used",
    ),
    # as older versions wrote them: used, and said so, but not when something is wrong
    case("no-manifest", without_manifest(lambda run: None), "has no manifest.json", True),
    case("old-state-cut", without_manifest(cut(STATE)), "state.pt cannot be read", True),
    case("old-state-flipped", without_manifest(flip(STATE)), "state.pt is damaged in", True),
    case("old-weights-nan", without_manifest(weights(ADAPTER, nan)), "is not finite", True),
    case("old-weights-half", without_manifest(weights(ADAPTER, half)), "lacks weights", True),
    case("old-settings-cut", without_manifest(cut(SETTINGS)), "is not valid JSON", True),
    case("old-settings-deep", without_manifest(write(SETTINGS, DEEP_JSON)), "too deeply", True),
    # the run's own files
    case("config-cut", cut_before("config.yaml", "  options:"), "was begun with other problems"),
    case(
        "config-edited",
        replace("config.yaml", "learning_rate: 0.001", "learning_rate: 0.002"),
        "optim.learning_rate: 0.001 -> 0.002",
    ),
    case("config-empty", cut("config.yaml", 0), "must hold a mapping of settings"),
    case("config-deep", write("config.yaml", DEEP_YAML), "nested too deeply"),
    case("config-utf8", write("config.yaml", b"model: \xff\n"), "is not valid YAML"),
    case("config-newer", replace("config.yaml", "lora:", "newer: 1\nlora:"), "unknown key 'newer'"),
    case("config-twice", replace("config.yaml", "lora:", "seed: 1\nseed: 2\nlora:"), "'seed' is"),
    case("config-bomb", write("config.yaml", "a: &a [1,1]\nb: &b " + "[*a]\n" * 1), "YAML"),
    case("config-is-a-folder", folder("config.yaml"), "cannot read the configuration"),
    case("description-cut", cut("run.json"), "run.json is damaged"),
    case("description-empty", cut("run.json", 0), "run.json is damaged"),
    case("description-utf8", write("run.json", b"\xff\xfe"), "run.json is damaged"),
    case("description-deep", write("run.json", DEEP_JSON), "nested too deeply"),
    case("description-list", write("run.json", "[]"), "must hold a JSON object"),
    case("description-types", replace("run.json", '"steps": 2', '"steps": "x"'), "steps is 'x'"),
    case("description-huge", replace("run.json", '"steps": 2', f'"steps": {"9" * 500}'), "large"),
    case("description-twice", replace("run.json", '"steps"', '"seed": 1, "steps"'), "there twice"),
    case("description-is-a-folder", folder("run.json"), "cannot read"),
    case("description-is-a-circle", circle("run.json"), "cannot read"),
    case("description-gone", drop("run.json"), "run.json is missing", True),
    case("metrics-cut", cut("metrics.jsonl"), "metrics.jsonl", True),
    case("metrics-empty", cut("metrics.jsonl", 0), "metrics.jsonl", True),
    case("metrics-utf8", write("metrics.jsonl", b"\xff\n"), "metrics.jsonl", True),
    case("metrics-deep", write("metrics.jsonl", DEEP_JSON + "\n"), "metrics.jsonl", True),
    case("metrics-edited", replace("metrics.jsonl", '"step": 1,', '"step": 1, "x": 1,'), "", True),
    case("metrics-types", replace("metrics.jsonl", '"step": 2', '"step": "x"'), "metrics", True),
    case("samples-cut", cut("samples.jsonl"), "samples.jsonl", True),
    case("samples-gone", drop("samples.jsonl"), "samples.jsonl: changed or lost", True),
    case("samples-is-a-folder", folder("samples.jsonl"), "samples.jsonl"),
    # what it leaves for others
    case("adapter-cut", cut(f"adapter/{WEIGHTS}"), "cannot read the adapter", True),
    case("adapter-flipped", flip(f"adapter/{WEIGHTS}", 0.9), "not those that were saved", True),
    case("adapter-nan", weights(f"adapter/{WEIGHTS}", nan), "not those that were saved", True),
    case("adapter-half", weights(f"adapter/{WEIGHTS}", half), "not those that were saved", True),
    case("adapter-settings-cut", cut(f"adapter/{CONFIG}"), "is not valid JSON", True),
    case("adapter-settings-list", write(f"adapter/{CONFIG}", "[]"), "only LORA works", True),
    case("adapter-settings-unreadable", unreadable(f"adapter/{CONFIG}"), "cannot read", True),
    case("adapter-gone", drop("adapter"), "no adapter", True),
    case("probe-cut", cut(f"adapter/{PROBE}"), "cannot be read", True),
    case("results-cut", cut(RESULTS), "is not valid JSON", True),
    case("results-edited", replace(RESULTS, '"count": 0', '"count": 1'), "were changed", True),
    case(
        "rows-edited",
        replace(f"{RESULTS}l", '"strict": false', '"strict": true'),
        "was changed",
        True,
    ),
    case("rows-cut", cut(f"{RESULTS}l"), "was changed after its figures", True),
    case("rows-gone", drop(f"{RESULTS}l"), "cannot read the completions", True),
]


def weights_of(path: Path) -> dict:
    return load_file(path / f"adapter/{WEIGHTS}")


@pytest.mark.parametrize("case", CASES)
def test_damage_is_said_in_a_line_and_not_used(case, run, sound, base, tmp_path, caplog):
    case.damage(run)
    errors: dict[str, str] = {}

    def attempt(command: str, function: Callable[..., object], *given: object) -> None:
        try:
            function(*given)
        except KitError as error:  # everything else is a traceback, and fails here
            errors[command] = str(error)

    attempt("app", lambda: [*map(read_run, (f.path for f in find_runs([tmp_path.resolve()])))])
    said = [fault for found in find_runs([run]) for fault in read_run(found.path).faults]
    said += [f"{name} is missing" for f in find_runs([run]) for name in read_run(f.path).missing]
    attempt("report", lambda: said.extend(collect([run]).remarks))
    attempt("evaluate", evaluated, run, base)
    if case.damage.__name__ != "damage_all" and not weights_are_sound(run, sound):
        attempt("merge", merge, str(run), tmp_path / "merged")
        assert "merge" in errors and not (tmp_path / "merged").exists()
    with caplog.at_level("WARNING"):
        attempt("train", resumed, run, base)
    assert all("\n" not in error for error in errors.values()), errors
    said += [*errors.values(), *(record.getMessage() for record in caplog.records)]
    assert any(case.said in sentence for sentence in said), said
    assert ("train" not in errors) == case.goes_on, errors
    if case.goes_on:
        trained, expected = weights_of(run), weights_of(sound)
        assert trained.keys() == expected.keys()
        assert all(trained[name].equal(expected[name]) for name in expected)
        assert RunFolder(run).status == "finished"
        assert read_run(run).faults == ()


def weights_are_sound(run: Path, sound: Path) -> bool:
    path = f"adapter/{WEIGHTS}"
    there = (run / path).is_file()
    return there and (run / path).read_bytes() == (sound / path).read_bytes()
