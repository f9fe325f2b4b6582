"""A study's file: what it says, and what is refused in words before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock, Timeout

from kit.cli import main
from kit.errors import ConfigError, RunError
from kit.files import write_atomically
from kit.runs import LOCK
from kit.study.cells import Cell, cells, middle_first
from kit.study.declared import begin, load_study
from kit.study.plan import parse_duration, stages

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write_study(tmp_path):
    """Write a small study's file; keyword arguments replace its fields, None leaves one out."""
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"model": {"id": "embedded"}, "data": {"name": "gsm_symbolic"}})
    )

    def write(name: str = "study.yaml", **fields) -> Path:
        values = {
            "recipe": "recipe.yaml",
            "arms": {"clip": None, "smooth": {"trust_region": {"name": "pspo", "alpha": 0.2}}},
            "staleness": [4, 1],
            "learning_rates": [1e-4, 1e-3, 1e-2],
            "tuning": {"seeds": [100]},
            "seeds": [0, 1, 2, 3, 4],
            "rollouts": 3,
            "evaluation": {"limit": 10},
            "questions": [{"name": "a", "asks": "Which?", "pairs": [["all", "clip"]]}],
            **fields,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
        return path

    return write


def test_arms_are_regions_settings_and_recipes(write_study, tmp_path):
    (tmp_path / "soft.yaml").write_text("extends: recipe.yaml\nobjective:\n  level: sequence\n")
    arms = {
        "clip": None,
        "smooth": "noclip",
        "soft": "soft.yaml",
        "tight": {"trust_region": {"name": "clip", "epsilon_low": 0.1}},
    }
    found = {a: c.objective for a, c in load_study(write_study(arms=arms)).configs.items()}
    assert [o.trust_region.name for o in found.values()] == ["clip", "noclip", "pspo", "clip"]
    assert found["soft"].level == "sequence"
    assert found["tight"].trust_region.epsilon_low == 0.1


def test_arms_may_have_guidelines_of_their_own(write_study):
    arms = {"clip": None, "brief": {"trust_region": {"name": "clip"}, "guidelines": ["concise"]}}
    declaration = load_study(write_study(arms=arms))
    plain, brief = (declaration.configs[arm] for arm in arms)
    assert plain.objective == brief.objective
    assert (list(plain.guidelines), list(brief.guidelines)) == ([], ["concise"])
    record = declaration.record()
    assert "guidelines" not in record["arms"]["clip"] and "guidelines" not in record["recipe"]
    assert record["arms"]["brief"]["guidelines"]["concise"]["prompt"] == "Be brief."
    with pytest.raises(ConfigError, match=r"arm 'brief': there is no guideline 'brevity'"):
        load_study(write_study(arms={**arms, "brief": {"guidelines": ["brevity"]}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": {"clip": None, "klip": None}}, "arm 'klip': there is no trust region 'klip'"),
        ({"arms": {"clip": None, "x": {"trust_region": {"name": "klip"}}}}, "there are pspo, clip"),
        (
            {"arms": {"clip": None, "x": {"trust_region": {"name": "noclip", "alpha": 0.1}}}},
            "arm 'x': unknown key 'alpha' under objective.trust_region",
        ),
        ({"arms": {"clip": None, "base": "noclip"}}, "no arm can be called 'base'"),
        ({"arms": {"clip": None}}, "arms = "),
        ({"arms": {"clip": None, "a/b": "noclip"}}, "no arm can be called 'a/b'"),
        ({"arms": {"clip": None, ".hidden": "noclip"}}, "no arm can be called '.hidden'"),
        ({"arms": {"clip": None, "..": "noclip"}}, "letters, digits, _, - and ., not . first"),
        ({"learning_rates": [1e-3, 1.0000001e-3]}, "learning_rates must differ in six digits"),
        ({"seeds": [0, 0]}, "seeds must be different"),
        ({"seeds": [0, 100]}, "seeds must be fresh: \\[100\\] are in tuning.seeds too"),
        ({"rollouts": {4: 3}}, "given for each staleness \\[4, 1\\]"),
        ({"learning_rates": [0.0]}, "learning_rates.*0 = 0.0 is not allowed"),
        ({"overrides": {"train": {"steps": 9}}}, "overrides sets train.steps"),
        ({"overrides": {"train": {"stepz": 9}}}, "unknown key 'stepz' under train"),
        ({"overrides": {"data": {"validation_size": 0}}}, "data.validation_size above 0"),
        ({"evaluation": {"samples": 10, "temperature": 1}}, "samples must be at most 9"),
        ({"budget": 3}, "unknown key 'budget'"),
        ({"recipe": "recip.yaml"}, "did you mean .*recipe.yaml"),
    ],
)
def test_what_cannot_be_run_is_refused(write_study, fields, message):
    with pytest.raises(ConfigError, match=message):
        load_study(write_study(**fields))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"pairs": [["smooth", "klip"]]}, "names 'klip'; there are clip, smooth and 'base'"),
        ({"pairs": [["base", "clip"]]}, "names 'base'; there are clip, smooth and 'all'"),
        ({"pairs": [["clip", "clip"]]}, "compares clip with itself"),
        ({"pairs": []}, "pairs"),
        ({"staleness": [2]}, "asks at 2; staleness is \\[4, 1\\]"),
        ({"temperature": 1.0}, "asks at temperature 1 of \\[0.0\\]"),
        ({"measure": "loose"}, "measure = 'loose' is not allowed"),
        ({"aks": "?"}, "unknown key 'aks' under questions.0, did you mean 'asks'"),
    ],
)
def test_malformed_questions_are_refused(write_study, question, message):
    asked = {"name": "a", "asks": "Which?", "pairs": [["smooth", "clip"]], **question}
    with pytest.raises(ConfigError, match=message):
        load_study(write_study(questions=[asked]))


def test_refusals_and_plans_import_no_torch(write_study):
    good, bad = write_study(), write_study("bad.yaml", arms={"clip": None, "klip": None})
    code = (
        "import sys; from kit.cli import main; "
        "print(main(['study', sys.argv[1], '--dry-run']), main(['study', sys.argv[2]]), "
        "'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(good), str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 1 False"
    assert "there is no trust region 'klip'" in done.stderr


def test_everything_at_a_staleness_comes_before_the_next(write_study):
    order = list(cells(load_study(write_study())))
    # 2 arms x (3 rates + 5 fresh seeds) at 4, then at 1
    assert [cell.staleness for cell in order] == [4] * 16 + [1] * 16
    assert [cell.rate for cell in order[:6:2]] == [1e-3, 1e-4, 1e-2]
    assert [cell.arm for cell in order[:4]] == ["clip", "smooth", "clip", "smooth"]
    assert order[6:8] == [Cell("clip", 4, 0, None), Cell("smooth", 4, 0, None)]


def test_rates_are_done_from_the_middle():
    assert middle_first([1, 2, 3, 4]) == [2, 3, 1, 4]
    assert middle_first([3, 1, 2]) == [2, 1, 3]


def test_another_file_in_the_same_folder_is_refused_with_the_difference(write_study, tmp_path):
    folder = tmp_path / "out"
    begin(folder, load_study(write_study()))
    begin(folder, load_study(write_study()))  # the same again
    begin(folder, load_study(write_study(together=1, seconds={1: 3.0})))  # changes no result
    with pytest.raises(RunError, match=r"declared otherwise \(rollouts: 3 -> 4\); put the file"):
        begin(folder, load_study(write_study(rollouts=4)))
    with pytest.raises(RunError, match=r"recipe.data.validation_size: 128 -> 9"):
        begin(folder, load_study(write_study(overrides={"data": {"validation_size": 9}})))
    asked = [{"name": "a", "asks": "Which?", "pairs": [["clip", "smooth"]]}]
    with pytest.raises(RunError, match=r"questions.a.pairs: 'all - clip' -> 'clip - smooth'"):
        begin(folder, load_study(write_study(questions=asked)))


def test_what_is_declared_is_written_by_one_process(write_study, tmp_path, monkeypatch):
    def write(path, content):
        with pytest.raises(Timeout):
            FileLock(path.parent / LOCK).acquire(timeout=0)
        write_atomically(path, content)

    monkeypatch.setattr("kit.study.declared.write_atomically", write)
    begin(tmp_path / "out", load_study(write_study()))
    assert (tmp_path / "out" / "study.json").exists()


def test_places_of_rates_keep_their_names():
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    places = [Cell("clip", 16, 100, rate).place.as_posix() for rate in rates]
    named = ("0.0001", "0.0003", "0.001", "0.003", "0.01")
    assert places == [f"updates-16/rate-{name}/seed-100/clip" for name in named]


def test_a_study_goes_on_with_a_kit_that_has_new_settings(write_study, tmp_path):
    begin(tmp_path, load_study(write_study()))
    kept = tmp_path / "study.json"
    record = json.loads(kept.read_text())
    del record["recipe"]["preferences"], record["evaluation"]["leave_out"]
    kept.write_text(json.dumps(record))
    begin(tmp_path, load_study(write_study()))
    changed = {"evaluation": {"leave_out": ["votes.jsonl"], "limit": 4}}
    with pytest.raises(RunError, match=r"declared otherwise \(evaluation"):
        begin(tmp_path, load_study(write_study(**changed)))


def test_a_report_needs_the_file_as_it_was_declared(write_study, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report"

    def refusal(path: Path) -> str:
        command = ["study", str(path), "--output", str(out), "--report", str(report)]
        assert main(command) == 1
        assert not report.exists()
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    assert "holds no study" in refusal(write_study())
    assert not out.exists()
    begin(out, load_study(write_study()))
    assert "nothing is measured yet" in refusal(write_study())
    asked = [{"name": "a", "asks": "Which?", "pairs": [["clip", "smooth"]]}]
    assert "declared otherwise" in refusal(write_study("b.yaml", questions=asked))
    (out / "study.json").unlink()
    (out / "study.json").mkdir()
    assert "cannot read" in refusal(write_study())


def test_a_launcher_is_refused(write_study, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["study", str(write_study()), "--output", str(tmp_path / "out")]) == 1
    assert "kit study runs in one process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_memory_budget_is_checked_for_the_arms_that_train_together(write_study, tmp_path, capsys):
    path = write_study(overrides={"memory_budget": "0.001GB"})
    assert main(["study", str(path), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "arms that train together" in said and "a smaller `together` needs less" in said
    assert "the smallest that is: memory_budget=" in said
    assert not (tmp_path / "out").exists()


def test_a_damaged_study_is_refused(write_study, tmp_path):
    declaration = load_study(write_study())
    begin(tmp_path / "out", declaration)
    (tmp_path / "out" / "study.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        begin(tmp_path / "out", declaration)


def test_few_seeds_are_said(write_study, capsys):
    assert main(["study", str(write_study(seeds=[0])), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "nothing can be claimed of a method from fewer than 5" in said
    assert "1 tuning seed + 1 fresh seed)" in said


def test_samples_are_said_where_answers_are_drawn(write_study, capsys):
    assert main(["study", str(write_study()), "--dry-run"]) == 0
    assert "evaluated: fresh seeds alone, 10 test problems at temperature 0\n" in (
        capsys.readouterr().out
    )
    drawn = {"limit": 10, "temperature": [0, 1], "samples": 2}
    assert main(["study", str(write_study(evaluation=drawn)), "--dry-run"]) == 0
    assert "at temperature 0, 1, 2 samples above 0\n" in capsys.readouterr().out


def test_one_run_is_one_run():
    assert stages([Cell("clip", 4, 0, None)]) == ["1 fresh run at staleness 4"]


@pytest.mark.parametrize("text", ["0h", "0m", "0h0m", "0.0s"])
def test_no_time_is_no_budget(text):
    with pytest.raises(ConfigError, match="above 0"):
        parse_duration(text)


def test_a_budget_says_what_comes_first(write_study, capsys):
    # 2 arms x 8 runs x 60 s + 2 x 8 x 30 s = 24 min; in 5 min the 5 first
    path = write_study(seconds={4: 60.0, 1: 30.0})
    assert main(["study", str(path), "--dry-run", "--budget", "5m"]) == 0
    said = capsys.readouterr().out
    assert "about 24 min for one process; in 5 min these come first: 5 tuning runs at" in said
    assert main(["study", str(path), "--dry-run", "--budget", "soon"]) == 1
    assert "a budget is a time such as 3h" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=str)
def test_shipped_studies_can_be_read(path):
    declaration = load_study(path)
    assert len(declaration.settings.seeds) >= 5
    assert json.loads(json.dumps(declaration.record()))
