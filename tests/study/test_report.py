"""Reports on studies: verdicts word by word, stability counted by hand, figures and their size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from kit.evaluation.stats import Difference, family_p
from kit.study.cells import Cell
from kit.study.declared import Declaration, load_study
from kit.study.evidence import fairness, gather
from kit.study.folder import StudyFolder
from kit.study.records import NAME, read_record
from kit.study.report import report_study
from kit.study.verdicts import judge
from tests.study.synthetic import write_records

ARMS = {"clip": 0.6, "noclip": 0.6, "pspo": 0.2}


@pytest.fixture
def declaration(tmp_path) -> Declaration:
    recipe = {"model": {"id": "embedded"}, "data": {"name": "gsm_symbolic"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = tmp_path / "study.yaml"
    study = {
        "recipe": "recipe.yaml",
        "arms": dict.fromkeys(ARMS),
        "staleness": [16, 1],
        "learning_rates": [1e-4, 1e-3, 1e-2],
        "tuning": {"seeds": [100]},
        "seeds": [0, 1, 2, 3, 4],
        "rollouts": 3,
        "evaluation": {"temperature": [0, 1]},
        "questions": [
            {"name": "a", "asks": "Is pspo better?", "pairs": [["pspo", "clip"]]},
            {"name": "d", "asks": "Who stays?", "pairs": [["all", "base"]], "staleness": [16]},
        ],
    }
    path.write_text(yaml.safe_dump(study))
    return load_study(path)


def accuracy(arm: str, staleness: int) -> float:
    return ARMS[arm] if staleness == 16 else 0.6


@pytest.fixture
def study(declaration, tmp_path) -> StudyFolder:
    return write_records(declaration, tmp_path / "out", accuracy, problems=200)


def test_verdicts_say_what_is_shown_and_what_is_not(study):
    smoothing, stays = judge(gather(study))
    at_16, at_1 = smoothing.contrasts
    assert at_16.finding == "lower" and at_16.difference.value == pytest.approx(-0.4, abs=0.06)
    assert at_1.finding == "no difference shown"
    said = str(smoothing)
    assert said.startswith("(a) Is pspo better? 1 of 2 differences shown. At staleness 16, lower: ")
    assert f"lower: pspo - clip {at_16.points}. At staleness 1, no difference shown" in said
    assert said.endswith(
        "Points of lenient accuracy, greedy, with 95 % intervals for other seeds "
        "and problems; 5 seeds, Holm over 2 tests."
    )
    assert {c.left: c.finding for c in stays.contrasts} == {
        **{"clip": "higher", "noclip": "higher", "pspo": "lower"},
    }


def test_fewer_than_five_seeds_claim_nothing(declaration, tmp_path):
    settings = declaration.settings.model_copy(update={"seeds": [0, 1, 2, 3]})
    few = write_records(replace(declaration, settings=settings), tmp_path / "few", accuracy)
    smoothing, _ = judge(gather(few))
    assert {c.finding for c in smoothing.contrasts} == {"too few seeds"}
    assert "Too few seeds to claim anything." in str(smoothing)


def test_nothing_is_claimed_before_all_declared_seeds_have_ended(declaration, tmp_path):
    settings = declaration.settings.model_copy(update={"seeds": [0, 1, 2, 3, 4, 5]})
    part = write_records(
        replace(declaration, settings=settings),
        tmp_path / "part",
        accuracy,
        only=lambda c: c.rate is not None or c.seed < 5 or c.arm == "clip",
    )
    smoothing, stays = judge(gather(part))
    assert {c.finding for c in smoothing.contrasts} == {"nothing claimed yet"}
    assert "Nothing is claimed yet." in str(smoothing)
    points = smoothing.contrasts[0].points
    assert f"nothing claimed yet: pspo - clip {points} (5 of 6 seeds)" in str(smoothing)
    found = {c.left: c for c in stays.contrasts}
    assert found["clip"].finding == "higher" and found["pspo"].finding == "nothing claimed yet"
    assert found["pspo"].corrected_p == 1.0  # until its seeds are there


def test_the_correction_is_over_what_was_asked(declaration, study, tmp_path):
    whole, _ = judge(gather(study))
    part = write_records(
        declaration, tmp_path / "part", accuracy, problems=200, only=lambda c: c.staleness == 16
    )
    smoothing, _ = judge(gather(part))
    (alone,) = smoothing.contrasts
    assert alone.corrected_p == whole.contrasts[0].corrected_p
    assert "1 of 2 differences shown" in str(smoothing) and "Holm over 2 tests" in str(smoothing)
    first = {"over seeds and problems": 0.03, "over seeds": 0.01}
    difference = Difference(0.1, 0.05, 0.15, first, 9, 1, 100, 10, 5)
    assert family_p([difference], missing=2) == pytest.approx([0.09])


def test_what_is_not_measured_is_said(declaration, tmp_path):
    part = write_records(declaration, tmp_path / "part", accuracy, only=lambda c: c.staleness == 16)
    evidence = gather(part)
    smoothing, _ = judge(evidence)
    assert "Not measured yet: pspo - clip at 1." in str(smoothing)
    assert "24 of 48 runs are not done yet." in fairness(evidence)
    nothing = write_records(declaration, tmp_path / "none", accuracy, only=lambda c: False)
    assert str(judge(gather(nothing))[0]) == "(a) Is pspo better? Nothing is measured yet."


def test_a_failed_run_counts_as_nothing_right_and_as_fallen(study, declaration):
    path = study.path / Cell("clip", 16, 0, None).place
    failed = replace(read_record(path / NAME), status="failed", verdicts={}, asked=None)
    failed.write(path)
    evidence = gather(StudyFolder(study.path, declaration))
    assert evidence.verdicts("clip", 16, "lenient", 0.0)[0].sum() == 0
    assert [evidence.has_fallen(r) for r in evidence.fresh("clip", 16)] == [True, *[False] * 4]
    assert [evidence.has_fallen(r) for r in evidence.fresh("pspo", 16)] == [True] * 5
    assert any("1 runs failed" in sentence for sentence in fairness(evidence))


def test_a_tuned_rate_at_the_edge_is_said(declaration, tmp_path):
    study = write_records(
        declaration, tmp_path / "out", accuracy, only=lambda cell: cell.rate is not None
    )
    assert not any("edge" in sentence for sentence in fairness(gather(study)))
    path = study.path / Cell("clip", 16, 100, 1e-2).place
    replace(read_record(path / NAME), validation={"lenient": 0.9}).write(path)
    evidence = gather(StudyFolder(study.path, declaration))
    assert evidence.is_at_edge("clip", 16) == "largest"
    assert any("clip at 16 (largest)" in sentence for sentence in fairness(evidence))


def test_the_report_opens_with_the_answers_and_is_small(study, declaration, tmp_path, capsys):
    into = tmp_path / "report"
    report_study(declaration, study.path, into, command="kit study study.yaml")
    page = (into / "report.md").read_text()
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles[0] == "## Answers" and titles[-1] == "## What was declared"
    assert page.index("Is pspo better?") < page.index("Accuracy against staleness")
    record = json.loads((into / "report.json").read_text())
    assert record["verdicts"][0]["contrasts"][0]["finding"] == "lower"
    assert len(record["runs"]["rows"]) == 48
    drawn = {path.name for path in (into / "figures").iterdir()}
    assert {"answer-a.svg", "accuracy-lenient-0.svg", "fallen.svg", "drift.svg"} <= drawn
    rates = {f"rates-{staleness}.svg" for staleness in declaration.settings.staleness}
    assert rates <= drawn and "what a rate is chosen by, and no claim" in page
    assert sum(p.stat().st_size for p in into.rglob("*") if p.suffix != ".html") < 1 << 20
    report_study(declaration, study.path, tmp_path / "again", command="kit study study.yaml")
    for name in drawn:  # the same picture has the same bytes
        again = tmp_path / "again" / "figures" / name
        assert again.read_bytes() == (into / "figures" / name).read_bytes()


def test_the_correction_is_of_the_first_test_and_the_second_holds_by_itself():
    def difference(first: float, second: float) -> Difference:
        tests = {"over seeds and problems": first, "over seeds": second}
        return Difference(0.1, 0.05, 0.15, tests, 9, 1, 100, 10, 5)

    # Holm: 0.01 x 2 = 0.02 and 0.03 x 1; the second tests stay 0.04 and 0.01
    found = family_p([difference(0.01, 0.04), difference(0.03, 0.01)])
    assert found == pytest.approx([0.04, 0.03])
    assert family_p([]) == []
    assert np.isfinite(found).all()
