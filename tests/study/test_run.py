"""Studies that are run, small: in parts, beside others, with runs that fail or were unfair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from kit.cli import main
from kit.errors import ResultsError, TrainingError
from kit.files import lock_of
from kit.reading import read_metrics
from kit.study.cells import Cell
from kit.study.declared import Declaration, load_study
from kit.study.evidence import gather
from kit.study.folder import StudyFolder
from kit.study.records import NAME, measure, read_record
from kit.study.run import Worker, run_study
from kit.training import trainer
from tests.study.synthetic import write_records


@pytest.fixture
def declaration(make_config, tmp_path) -> Declaration:
    """Two arms, one staleness, two rates, a tuning seed and two fresh ones: eight runs."""
    recipe = make_config(output=None).model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "recipe": "recipe.yaml",
                "arms": {"clip": None, "noclip": None},
                "staleness": [2],
                "learning_rates": [1e-3, 1e-2],
                "tuning": {"seeds": [100]},
                "seeds": [0, 1],
                "rollouts": 1,
                "evaluation": {"limit": 4, "max_new_tokens": 12},
                "questions": [{"name": "a", "asks": "Which?", "pairs": [["clip", "noclip"]]}],
                "together": 2,
            }
        )
    )
    return load_study(path)


@pytest.fixture
def folder(declaration, tmp_path) -> StudyFolder:
    """All as if done, with made-up verdicts: the smaller rate is the better one."""
    return write_records(declaration, tmp_path / "made-up", lambda arm, staleness: 0.5)


@pytest.fixture
def loaded(base, monkeypatch):
    """The base that all tests share stands for the one a study loads."""
    monkeypatch.setattr("kit.model.base.load_base", lambda config: base)


@pytest.mark.usefixtures("loaded")
@pytest.mark.slow
def test_a_study_is_done_in_parts_and_leaves_what_its_report_reads(declaration, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_study(declaration, out, budget=0.0) is False
    assert "0 runs are done, 8 are left" in capsys.readouterr().out
    assert run_study(declaration, out)
    study = StudyFolder(out, declaration)
    records = study.records()
    assert len(records) == 8 and not study.pending()
    for cell, record in records.items():
        run = study.run(cell)
        assert record.status == "finished" and record.rollouts == 1 and record.updates <= 2
        assert not run.checkpoints.exists()
        assert run.adapter.exists() == cell.is_fresh  # of tuning runs nothing else is needed
        assert set(record.verdicts) == ({"0"} if cell.is_fresh else set())
        steps = [m["step"] for m in read_metrics(run.metrics) if "validation/strict" in m]
        assert steps == [0, 1]  # so that the adapter is the last, not the best
        if cell.is_fresh:
            assert record.rate == study.tuned(cell.arm, 2)
            assert len(record.verdicts["0"]["strict"]) == 4
    assert run_study(declaration, out)  # nothing is left to do
    path, report = str(declaration.path), tmp_path / "report"
    assert main(["study", path, "--output", str(out), "--report", str(report)]) == 0
    made = json.loads((report / "report.json").read_text())
    assert made["verdicts"][0]["contrasts"][0]["finding"] == "too few seeds"
    assert len(made["runs"]["rows"]) == 8


@pytest.mark.usefixtures("loaded")
def test_a_run_that_fails_is_a_result(declaration, tmp_path, monkeypatch, base):
    out = tmp_path / "out"

    def fail(self, step, sampled):
        raise TrainingError("NaN everywhere")

    monkeypatch.setattr(trainer.Learner, "check_weights", lambda self, step: fail(self, step, None))
    worker = Worker(StudyFolder(out, declaration), base, None)
    assert worker.next_runs(None)
    first = next(iter(worker.folder.records().values()))
    assert first.has_failed and "NaN everywhere" in (first.error or "")
    assert worker.folder.tuning_scores("clip", 2) == {1e-3: 0.0}


def test_the_rate_of_a_record_is_that_of_the_run(declaration, tmp_path):
    study = StudyFolder(tmp_path / "out", declaration)
    cell = study.cells[0]
    run, config = study.run(cell), study.config(cell)
    run.open(config, False).release()
    rate = config.optim.learning_rate
    assert measure(cell, rate, run, None, level=0.5, seconds=1.0).rate == rate
    said = rf"trained with optim\.learning_rate={rate:g}, where the study has 0\.5; delete"
    with pytest.raises(ResultsError, match=said):
        measure(cell, 0.5, run, None, level=0.5, seconds=1.0)


def test_a_budget_that_ends_while_others_work_is_said(declaration, tmp_path, monkeypatch, capsys):
    study = StudyFolder(tmp_path / "out", declaration)
    monkeypatch.setattr(study, "_claim", lambda held: [])
    assert not Worker(study, None, None).next_runs(-1.0)
    assert f"the budget is used up; the same command continues {study.path}" in (
        capsys.readouterr().out
    )


def test_processes_claim_different_runs(declaration, tmp_path):
    one, other = (StudyFolder(tmp_path / "out", declaration) for _ in range(2))
    with one.claimed() as mine:
        assert [str(cell) for cell in mine] == [
            "clip, 2 updates, rate 0.001, seed 100",
            "noclip, 2 updates, rate 0.001, seed 100",
        ]
        with other.claimed() as theirs:
            assert {cell.rate for cell in theirs} == {1e-2}
            with StudyFolder(tmp_path / "out", declaration).claimed() as third:
                assert third == []  # fresh seeds wait for the tuning
    with other.claimed() as again:
        assert again == mine  # what was not finished is free again


def test_what_has_just_ended_is_not_claimed_again(declaration, folder, tmp_path, monkeypatch):
    study = StudyFolder(tmp_path / "out", declaration)
    ended = study.cells[0]
    pending = study.pending()
    record = read_record(folder.path / ended.place / NAME)
    (study.path / ended.place).mkdir(parents=True)
    record.write(study.path / ended.place)
    monkeypatch.setattr(study, "pending", lambda: pending)  # as it was before that
    with study.claimed() as cells:
        assert ended not in cells and cells
        FileLock(lock_of(study.path / ended.place)).acquire(timeout=0).lock.release()


def test_the_rate_is_chosen_by_the_rule(declaration, folder, tmp_path):
    cells = [c for c in folder.cells if c.rate is not None and c.arm == "clip"]
    assert folder.tuned("clip", 2) == 1e-2  # 0.7 against 0.5
    for cell in cells:  # equal now: the smaller rate
        path = folder.path / cell.place
        replace(read_record(path / NAME), validation={"lenient": 0.5}).write(path)
    assert StudyFolder(folder.path, declaration).tuned("clip", 2) == 1e-3
    (folder.path / cells[0].place / NAME).unlink()
    assert StudyFolder(folder.path, declaration).tuned("clip", 2) is None


def test_runs_that_were_not_treated_alike_are_refused(declaration, folder):
    cell = Cell("clip", 2, 0, None)
    path = folder.path / cell.place
    good = read_record(path / NAME)
    for wrong, message in (
        (replace(good, problems="others"), "problems of seed 0 are not the same"),
        (replace(good, rollouts=2), "clip, staleness 2, seed 0: 2 rollouts instead of 1"),
        (replace(good, rate=0.5), "seed 0: trained with 0.5, which is not the tuned rate"),
        (replace(good, asked="others"), "the evaluation's problems are not the same"),
    ):
        wrong.write(path)
        with pytest.raises(ResultsError, match=message):
            gather(StudyFolder(folder.path, declaration))
    (path / NAME).write_text("{}")
    with pytest.raises(ResultsError, match="is damaged"):
        gather(StudyFolder(folder.path, declaration))


def test_locks_lie_beside_the_runs(declaration, tmp_path):
    study = StudyFolder(tmp_path / "out", declaration)
    with study.claimed() as cells:
        places = [study.path / cell.place for cell in cells]
        assert all(lock_of(place).exists() and not place.exists() for place in places)
    assert all(isinstance(place, Path) for place in places)
