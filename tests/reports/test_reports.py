"""Reports: numbers by hand, claims word by word, refusals, hostile text, pages that stand alone."""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from scipy.stats import binom

from kit.cli import main
from kit.errors import ResultsError
from kit.evaluation.figures import summarize
from kit.recipe import build_config, load_config
from kit.reports import report
from kit.reports.arms import describe_arms
from kit.reports.collect import collect
from kit.reports.costs import measure_costs
from kit.reports.curves import measure_curves
from kit.reports.document import Origin, Table, number
from kit.reports.excerpts import to_latex
from kit.reports.figures import (
    Dot,
    Line,
    Scale,
    draw_dots,
    draw_lines,
    short_names,
    styles,
)
from kit.reports.opinions import measure_opinions
from kit.reports.paired import Contrast, compare_arms
from kit.reports.paper import measure_paper
from kit.reports.scores import Score, measure_scores

Verdicts = Sequence[Sequence[int]]  # (P, K)
ROOT = Path(__file__).parents[2]
HOSTILE = "<img src=x onerror=alert(1)>"
HOSTILE_CATEGORY = "<script>alert(1)</script> | [a](http://x.example)"


def write_run(
    folder: Path,
    *,
    region: str = "pspo",
    seed: int = 0,
    metrics: Sequence[Mapping[str, Any]] = (),
    status: str = "finished",
    **sections: Any,
) -> Path:
    """A run folder; keyword arguments replace fields of the configuration's sections."""
    values: dict[str, Any] = {
        "model": {"id": "embedded"},
        "data": {"name": "gsm_symbolic"},
        "objective": {"trust_region": {"name": region}},
        "train": {"seed": seed, "steps": 4},
        "output": str(folder),
    }
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields} if isinstance(fields, dict) else fields
    config = build_config(values)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    description = {
        "status": status,
        "base": {"id": config.model.id, "revision": None},
        "hardware": "CPU: float32",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "started": "2026-01-02T03:04:05+0000",
        "seed": seed,
        "process": {"host": platform.node(), "pid": 2**30},  # no process of this machine
    }
    (folder / "run.json").write_text(json.dumps(description))
    if metrics:
        lines = "".join(json.dumps(line) + "\n" for line in metrics)
        (folder / "metrics.jsonl").write_text(lines)
    return folder


def write_result(
    folder: Path,
    strict: Mapping[float, Verdicts],
    *,
    lenient: Mapping[float, Verdicts] | None = None,
    data: str = "gsm_symbolic",
    adapter: str | None = "adapter",
    categories: Sequence[str] | None = None,
    status: str = "finished",
    seen: int | None = None,
    model: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Result files as `kit evaluate` leaves them; verdicts are (P, K) by temperature."""
    rows = [
        {
            "id": f"problem {p}",
            "temperature": temperature,
            "sample": k,
            "question": "What is 1 + 1?",
            "answer": "2",
            "category": categories[p] if categories else None,
            "difficulty": None,
            "completion": "1 + 1 = 2\n#### 2" if right else "1 + 1 = 3\n#### 3",
            "tokens": 10 + p,
            "truncated": False,
            "strict_answer": "2" if right else "3",
            "lenient_answer": "2" if right else "3",
            "strict": bool(right),
            "lenient": bool((lenient or strict)[temperature][p][k]),
        }
        for temperature, table in strict.items()
        for p, samples in enumerate(table)
        for k, right in enumerate(samples)
    ]
    record = {
        "schema": 2,
        "status": status,
        "data": data,
        "tag": None,
        "n": len(next(iter(strict.values()))),
        "seen_in_training": seen,
        "target": {
            "name": folder.parent.name,
            "run": str(folder.parent),
            "adapter": adapter,
            "adapter_sha256": None,
            "base": "embedded",
            "base_revision": None,
            "quantization": "nf4",
            **(model or {}),
        },
        "settings": {
            "system_prompt": "Solve it.",
            "max_new_tokens": 64,
            "top_p": 1.0,
            "seed": 0,
            "split": "test",
            "temperatures": list(strict),
            "samples": 1,
            "limit": None,
            **settings,
        },
        "hardware": "CPU: float32",
        "versions": {},
        "git": None,
        "command": f"kit evaluate {folder.parent.name} --data {data}",
        "started": "2026-01-02T03:04:05+0000",
        "seconds": 1.0,
        "tokens_per_second": 100.0,
        "results": [
            summarize([r for r in rows if r["temperature"] == t], numbers=True)
            for t in sorted(strict)
        ]
        if status == "finished"
        else [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{data}.json"
    path.write_text(json.dumps(record))
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first(right: int, problems: int = 40) -> Verdicts:
    """One sample each; the first `right` problems are right."""
    return [[int(p < right)] for p in range(problems)]


def write_arms(
    root: Path, arms: Mapping[str, Sequence[int]], base: int | None = None, data: str = "d"
) -> list[Path]:
    """Runs `<region>-seed<s>` whose first so many of 40 problems are right, greedily."""
    paths = []
    for region, by_seed in arms.items():
        for seed, right in enumerate(by_seed):
            folder = root / f"{region}-seed{seed}"
            if not folder.exists():
                write_run(folder, region=region, seed=seed)
            write_result(folder / "eval", {0.0: first(right)}, data=data)
            paths.append(folder)
    if base is not None:
        write_result(root / "base" / "eval", {0.0: first(base)}, data=data, adapter=None)
        paths.append(root / "base")
    return list(dict.fromkeys(paths))


def scores_of(paths: Sequence[Path]) -> list[Score]:
    return measure_scores(collect(paths))


def compared(paths: Sequence[Path], measure: str = "strict") -> dict[tuple[str, str], Contrast]:
    """By arm and data set: the comparisons with the reference arm."""
    evidence = collect(paths)
    found = compare_arms(evidence, measure_scores(evidence))
    return {(c.a.arm, c.a.data): c for c in found if c.measure == measure and c.b.arm != "base"}


# --- arms -----------------------------------------------------------------------------------------


def test_runs_of_one_configuration_form_an_arm(tmp_path):
    paths = [
        write_run(tmp_path / "pspo-seed1", seed=1),
        write_run(tmp_path / "pspo-seed0", seed=0),
        write_run(tmp_path / "hot" / "seed-0", seed=0, rollout={"temperature": 1.5}),
    ]
    arms = collect(paths).arms
    assert [(arm.name, list(arm.runs)) for arm in arms] == [("pspo", [0, 1]), ("hot", [0])]


def test_arms_of_one_name_are_told_apart_and_none_is_called_base(tmp_path):
    paths = [
        write_run(tmp_path / "a" / "mine", seed=0),
        write_run(tmp_path / "b" / "mine", seed=0, region="clip"),
        write_run(tmp_path / "base", seed=0, region="noclip"),
    ]
    assert [arm.name for arm in collect(paths).arms] == ["mine", "mine (2)", "base (2)"]


def test_an_auto_that_stands_for_different_things_differs(tmp_path):
    """All three configurations have old_policy: auto; that of pspo stands for another one."""
    arms = [write_run(tmp_path / region, region=region) for region in ("clip", "pspo", "noclip")]
    differing, shared, _ = describe_arms(collect(arms)).blocks
    assert isinstance(differing, Table) and isinstance(shared, Table)
    rows = {name: values for name, *values in differing.rows}
    assert rows["objective.old_policy"] == ["auto: sampler", "auto: base", "auto: sampler"]
    assert "objective.old_policy" not in dict(shared.rows)
    _, shared, _ = describe_arms(collect([arms[0], arms[2]])).blocks
    assert isinstance(shared, Table)
    assert dict(shared.rows)["objective.old_policy"] == "auto: sampler"


def write_comparison(root: Path, **changes: Any) -> Path:
    write_run(root / "clip" / "seed-0", region="clip")
    write_run(root / "pspo" / "seed-0", region="pspo")
    write_result(root / "clip" / "seed-0" / "eval", {0.0: first(20)})
    write_result(root / "pspo" / "seed-0" / "eval", {0.0: first(30)})
    write_result(root / "base" / "eval", {0.0: first(10)}, adapter=None)
    record = {
        "schema": 1,
        "status": "running",
        "command": "kit compare clip.yaml pspo.yaml",
        "arms": {"clip": {"differs": {}}, "pspo": {"differs": {}}},
        "seeds": [0, 1],
        "runs": {arm: {s: f"{arm}/seed-{s}" for s in ("0", "1")} for arm in ("pspo", "clip")},
        "base": {"id": "embedded", "results": "base"},
        "seconds": {"0": 12.3},
        **changes,
    }
    (root / "compare.json").write_text(json.dumps(record))
    return root


def test_a_comparison_brings_its_arms_its_base_and_what_is_missing(tmp_path):
    evidence = collect([write_comparison(tmp_path)])
    assert [arm.name for arm in evidence.arms] == ["pspo", "clip"]
    assert {run.command for run in evidence.runs} == {"kit compare clip.yaml pspo.yaml"}
    assert list(evidence.subjects("gsm_symbolic")) == ["base", "pspo", "clip"]
    assert "pspo, seed 1: not started" in evidence.remarks
    assert "clip, seed 1: not started" in evidence.remarks
    assert any("comparison is not finished" in remark for remark in evidence.remarks)


def test_a_run_named_twice_counts_once(tmp_path):
    write_comparison(tmp_path)
    evidence = collect([tmp_path / "clip" / "seed-0", tmp_path, tmp_path / "pspo" / "seed-0"])
    assert [(arm.name, len(arm.runs)) for arm in evidence.arms] == [("clip", 1), ("pspo", 1)]
    assert {run.command for run in evidence.runs} == {"kit compare clip.yaml pspo.yaml"}


# --- figures by hand ------------------------------------------------------------------------------


def test_accuracy_of_one_seed_has_wilsons_interval(tmp_path):
    [score] = scores_of(write_arms(tmp_path, {"clip": [20]}))
    # z = 1.96: 0.5 -+ 1.96 sqrt(0.25 / 40 + 1.96^2 / 6400) / (1 + 1.96^2 / 40) = 0.5 -+ 0.148
    assert score.figures["strict"]["value"] == 0.5
    assert score.figures["strict"]["ci95"] == pytest.approx([0.352, 0.648], abs=5e-4)
    assert score.figures["strict"]["sd"] is None


def test_accuracy_over_seeds_has_a_deviation_and_an_interval_over_seeds_and_problems(tmp_path):
    [score] = scores_of(write_arms(tmp_path, {"pspo": [28, 30, 32]}))
    strict = score.figures["strict"]
    assert strict["value"] == pytest.approx(0.75)
    assert strict["sd"] == pytest.approx(0.05)  # of 0.70, 0.75, 0.80
    assert strict["per_seed"] == pytest.approx([0.7, 0.75, 0.8])
    # wider than problems alone, for which the share right is Binomial(40, 0.75) / 40
    low, high = binom.ppf([0.025, 0.975], 40, 0.75) / 40
    assert 0.5 < strict["ci95"][0] <= low + 0.01 and high - 0.01 <= strict["ci95"][1] < 0.95


def test_seeds_that_differ_widely_bound_little(tmp_path):
    """The seeds' accuracies of a committed study: three of them leave nearly the whole scale."""
    [score] = scores_of(write_arms(tmp_path, {"clip": [6, 36, 37]}))
    # mean 0.658, sd 0.44, so 0.25 x 4.3 (t of two degrees of freedom) to either side, cut at 1
    assert score.figures["strict"]["ci95"] == [0, 1]


def test_seeds_that_are_all_right_do_not_pretend_to_certainty(tmp_path):
    [score] = scores_of(write_arms(tmp_path, {"pspo": [40, 40]}))
    # Wilson's lower bound of 40 of 40: 40 / (40 + 1.96^2)
    assert score.figures["strict"]["ci95"] == pytest.approx([40 / (40 + 1.959964**2), 1.0])


def test_samples_give_pass_at_k_and_slices_their_sizes(tmp_path):
    run = write_run(tmp_path / "pspo")
    verdicts = [[1, 0, 0, 0]] * 10 + [[0, 0, 0, 0]] * 30
    categories = ["easy"] * 30 + ["hard"] * 10
    write_result(run / "eval", {0.0: first(10), 0.8: verdicts}, categories=categories)
    greedy, sampled = scores_of([run])
    assert (greedy.figures["samples"], sampled.figures["samples"]) == (1, 4)
    passed = {k: e["value"] for k, e in sampled.figures["pass_at"]["strict"].items()}
    assert passed == pytest.approx({"1": 1 / 16, "2": 1 / 8, "4": 1 / 4})  # 10 of 40 have one of 4
    slices = greedy.figures["slices"]["category"]
    assert {name: part["n"] for name, part in slices.items()} == {"easy": 30, "hard": 10}
    assert slices["easy"]["strict"]["value"] == pytest.approx(1 / 3)
    assert slices["hard"]["strict"]["value"] == 0


def curve_run(folder: Path, seed: int, values: Sequence[float | None]) -> Path:
    lines = [
        {"step": i + 1} | ({} if value is None else {"reward/mean": value})
        for i, value in enumerate(values)
    ]
    return write_run(folder, seed=seed, metrics=lines)


def test_curves_are_means_with_the_range_of_seeds(tmp_path):
    runs = [
        curve_run(tmp_path / "a-seed0", 0, [0.0, 0.2, float("nan"), 0.4]),
        curve_run(tmp_path / "a-seed1", 1, [0.4, None, 0.6]),
    ]
    curve = measure_curves(collect(runs))["reward/mean"]["a"]
    assert curve["steps"] == [1, 2, 3, 4] and curve["window"] == 1 and curve["seeds"] == [0, 1]
    assert curve["mean"] == pytest.approx([0.2, 0.2, 0.6, 0.4])
    assert curve["low"] == pytest.approx([0.0, 0.2, 0.6, 0.4])
    assert curve["high"] == pytest.approx([0.4, 0.2, 0.6, 0.4])


def test_long_curves_are_smoothed_and_one_seed_has_no_band(tmp_path):
    run = curve_run(tmp_path / "a", 0, [float(i % 2) for i in range(50)])
    curve = measure_curves(collect([run]))["reward/mean"]["a"]
    assert curve["window"] == 2 and (curve["low"], curve["high"]) == (None, None)
    assert curve["mean"][0] == 0 and set(curve["mean"][1:]) == {0.5}


def test_costs_are_the_highest_memory_and_medians(tmp_path):
    def run(seed: int, seconds: Sequence[float], memory: float) -> Path:
        lines = [
            {"step": i + 1, "time/step_seconds": s, "memory/peak_mb": memory - i}
            for i, s in enumerate(seconds)
        ]
        return write_run(tmp_path / f"a-seed{seed}", seed=seed, metrics=lines)

    costs = measure_costs(collect([run(0, [1, 2, 9], 500), run(1, [3, 4, 5], 700)]))["a"]
    assert costs["memory/peak_mb"] == 700
    assert costs["time/step_seconds"] == 3.5  # of 1 2 3 4 5 9
    assert costs["seconds"] == 12
    assert costs["time/rollout_tokens_per_second"] is None


# --- differences, in figures and words ------------------------------------------------------------


def test_one_seed_compares_adapters_and_says_so(tmp_path):
    paths = write_arms(tmp_path, {"pspo": [30], "clip": [20]})
    c = compared(paths)["pspo", "d"]  # clip is the reference though it comes second
    assert c.difference.value == 0.25 and (c.difference.only_a, c.difference.only_b) == (10, 0)
    assert c.difference.p == c.corrected_p == 2 / 2**10  # ten heads of ten, two-sided
    # 10 of 40 differences are 1: resampled, their sum is Binomial(40, 1/4)
    low, high = binom.ppf([0.025, 0.975], 40, 0.25) / 40
    assert (c.difference.low, c.difference.high) == pytest.approx((low, high))
    assert str(c) == (
        "the pspo adapter is higher than the clip adapter on d (strict, greedy) by 25.0 points "
        f"[{100 * low:.1f}, {100 * high:.1f}], p = 0.002; one seed: this compares two adapters, "
        "not two methods"
    )


def test_a_difference_over_seeds_is_claimed_in_words(tmp_path):
    arms = {"clip": [20] * 5, "pspo": [28, 30, 32, 31, 29]}
    c = compared(write_arms(tmp_path, arms))["pspo", "d"]
    assert c.difference.value == pytest.approx(0.25) and c.seeds == (0, 1, 2, 3, 4)
    assert c.per_seed_p == {s: 2 / 2**n for s, n in enumerate((8, 10, 12, 11, 9))}
    words = re.fullmatch(
        r"pspo is higher than clip on d \(strict, greedy\) by 25\.0 points "
        r"\[(\d+\.\d), (\d+\.\d)\], p = 0\.00\d",
        str(c),
    )
    # about as wide as for one seed that gains 10 of 40: [12.5, 40.0]
    assert words and 9 < float(words[1]) < 16 and 36 < float(words[2]) < 42


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_few_seeds_claim_nothing_about_methods(tmp_path, seeds):
    paths = write_arms(tmp_path, {"clip": [0] * seeds, "pspo": [40] * seeds}, base=0)
    c = compared(paths)["pspo", "d"]
    assert c.corrected_p < 0.2 and c.difference.low == 1  # as sure as so few seeds can be
    assert c.finding == "too few seeds" and not c.is_shown
    assert str(c) == (
        f"too few seeds ({seeds} of 5) to claim a difference between pspo and clip on d (strict, "
        "greedy): 100.0 points [100.0, 100.0]"
    )
    evidence = collect(paths)
    against_base = [
        c for c in compare_arms(evidence, measure_scores(evidence)) if c.b.arm == "base"
    ]
    assert {c.finding for c in against_base} == {"too few seeds"}


def test_lower_is_said_with_positive_points(tmp_path):
    c = compared(write_arms(tmp_path, {"clip": [30] * 5, "pspo": [20] * 5}))["pspo", "d"]
    low, high = -c.difference.high, -c.difference.low
    assert 0 < low < 0.25 < high and c.finding == "lower"
    expected = f"pspo is lower than clip on d (strict, greedy) by 25.0 points [{100 * low:.1f}, "
    assert expected in str(c)


def test_no_difference_is_shown_where_there_is_none(tmp_path):
    arms = {"clip": [20, 21, 20, 20, 20], "pspo": [21, 20, 20, 20, 20]}
    c = compared(write_arms(tmp_path, arms))["pspo", "d"]
    low, high = number(100 * c.difference.low, 1), number(100 * c.difference.high, 1)
    assert str(c) == (
        f"no difference shown between pspo and clip on d (strict, greedy): 0.0 points [{low}, "
        f"{high}]"
    )
    assert c.finding == "no difference shown"


def test_equal_verdicts_are_told(tmp_path):
    c = compared(write_arms(tmp_path, {"clip": [20] * 5, "pspo": [20] * 5}))["pspo", "d"]
    assert str(c).endswith("0.0 points [0.0, 0.0], as both were right on the same problems")


def test_seeds_that_disagree_show_no_difference(tmp_path):
    """One seed gains 12 problems of 40, one loses one and the others none."""
    arms = {"clip": [20] * 5, "pspo": [32, 19, 20, 20, 20]}
    c = compared(write_arms(tmp_path, arms))["pspo", "d"]
    assert c.per_seed_p[0] == 2 / 2**12  # alone this seed would show a difference
    assert c.difference.low < 0 < c.difference.high
    assert str(c).startswith("no difference shown between pspo and clip on d (strict, greedy): 5.")


def test_samples_that_differ_on_one_problem_are_compared(tmp_path):
    """One seed and two samples: the sign-flip test has one sign to flip."""
    for region, right in (("clip", [[0, 1]]), ("pspo", [[1, 1]])):
        folder = write_run(tmp_path / region, region=region)
        write_result(folder / "eval", {0.8: [*right, [1, 1], [0, 0]]}, data="d")
    c = compared([tmp_path / "clip", tmp_path / "pspo"])["pspo", "d"]
    assert c.difference.tests == {"sign flips over problems": 1}
    assert c.difference.only_a == 1 and c.finding == "no difference shown"


def test_a_claim_needs_both_a_small_p_and_an_interval_without_0(tmp_path):
    c = compared(write_arms(tmp_path, {"clip": [20], "pspo": [30]}))["pspo", "d"]
    assert c.is_shown
    assert not replace(c, corrected_p=0.05).is_shown
    assert not replace(c, difference=replace(c.difference, low=-0.001)).is_shown


def test_p_values_are_corrected_over_data_sets(tmp_path):
    for data, right in (("a", 30), ("b", 26), ("c", 20)):  # 10, 6 and 0 problems gained
        paths = write_arms(tmp_path, {"clip": [20], "pspo": [right]}, data=data)
    found = compared(paths)
    p = {data: found["pspo", data].difference.p for data in "abc"}
    assert p == {"a": 2 / 2**10, "b": 2 / 2**6, "c": 1.0}
    corrected = {data: found["pspo", data].corrected_p for data in "abc"}
    assert corrected == pytest.approx({"a": 3 * p["a"], "b": 2 * p["b"], "c": 1.0})
    assert ", p = 0.006 (Holm over 3 data sets); one seed" in str(found["pspo", "a"])
    # on b the interval excludes 0 and p alone is 0.03, but 0.06 when corrected
    assert found["pspo", "b"].difference.low > 0
    assert found["pspo", "b"].finding == "no difference shown"


def test_every_arm_is_compared_with_the_base(tmp_path):
    evidence = collect(write_arms(tmp_path, {"pspo": [30, 31], "noclip": [30]}, base=20))
    found = compare_arms(evidence, measure_scores(evidence))
    pairs = {(c.a.arm, c.b.arm): c for c in found if c.measure == "strict"}
    # without an arm called clip the first one is the reference
    assert set(pairs) == {("noclip", "pspo"), ("pspo", "base"), ("noclip", "base")}
    assert pairs["pspo", "base"].difference.value == pytest.approx(0.2625)  # of 0.25 and 0.275
    assert pairs["noclip", "pspo"].seeds == (0,)
    assert str(pairs["noclip", "base"]).startswith("the noclip adapter is higher than the base on")
    assert str(pairs["noclip", "base"]).endswith("one adapter, not about a method")


# --- the paper ------------------------------------------------------------------------------------


def test_told_is_a_temperature_that_all_arms_have_and_the_others_are_named(tmp_path):
    verdicts = {"clip": {0.4: first(20)}, "pspo": {0.0: first(10), 0.4: first(30)}}
    for region, by_temperature in verdicts.items():
        folder = write_run(tmp_path / region, region=region)
        write_result(folder / "eval", by_temperature, data="d", categories=["sums"] * 40)
    write_result(tmp_path / "pspo" / "eval", {0.0: first(10)}, data="other")
    write_result(tmp_path / "base" / "eval", {0.0: first(5), 0.4: first(5)}, data="d", adapter=None)
    paths = [tmp_path / name for name in ("clip", "pspo", "base")]
    text = (report(paths, tmp_path / "report") / "report.md").read_text()
    answers = text.partition("## Answers")[2].partition("\n## ")[0]
    assert "pspo adapter is higher than the clip adapter on d (strict, temperature 0.4)" in answers
    assert "pspo adapter is higher than the base on d (strict, temperature 0.4)" in answers
    assert "greedy)" not in answers
    assert "Strict accuracy on d by category, temperature 0.4, %" in text
    assert "other: not evaluated of clip" in answers
    assert "d, greedy: not measured of clip, so temperature 0.4 is told" in answers


def test_what_can_be_compared_is_told_though_it_be_at_another_temperature(tmp_path):
    verdicts = {"clip": {0.0: first(30), 0.4: first(20)}, "pspo": {0.4: first(30)}}
    for seed, (region, by_temperature) in enumerate(verdicts.items()):
        folder = write_run(tmp_path / region, region=region, seed=seed)
        write_result(folder / "eval", by_temperature, data="d")
    write_result(tmp_path / "base" / "eval", {0.0: first(5)}, data="d", adapter=None)
    paths = [tmp_path / name for name in ("clip", "pspo", "base")]
    text = (report(paths, tmp_path / "report") / "report.md").read_text()
    answers = text.partition("## Answers")[2].partition("\n## ")[0]
    assert "clip adapter is higher than the base on d (strict, greedy)" in answers
    assert "d, temperature 0.4: not measured of the base" in answers


def test_what_all_arms_have_needs_no_words(tmp_path):
    paths = write_arms(tmp_path, {"clip": [20], "pspo": [30]}, base=10)
    assert collect(paths).remarks == []


def paper_run(root: Path, recipe: str, overrides: Sequence[str] = (), cap: int = 128) -> Path:
    values = load_config(ROOT / "configs" / recipe, list(overrides)).model_dump(mode="json")
    values.pop("output")
    run = write_run(root / recipe.removesuffix(".yaml"), **values)
    model = {"base": values["model"]["id"]}
    write_result(run / "eval", {0.0: first(14)}, data="gsm8k", max_new_tokens=cap, model=model)
    return run


def paper_of(path: Path) -> dict[str, Any]:
    evidence = collect([path])
    return measure_paper(evidence, measure_scores(evidence))


def test_the_papers_recipe_stands_beside_the_paper(tmp_path):
    [record] = paper_of(paper_run(tmp_path, "paper-0.5b-pspo.yaml")).values()
    assert record["differs"] == {}
    assert record["entailed"] == {
        "weights trained": ["all", "LoRA of rank 32"],
        "model.quantization": ["none", "nf4"],
        "optim.learning_rate": ["5e-07 to 1e-06", "1e-05"],
    }
    assert (record["published"], record["strict"]["value"]) == (0.397, 0.35)


def test_other_settings_are_listed_and_not_set_beside_the_paper(tmp_path):
    overrides = ["rollout.group_size=8", "objective.trust_region.epsilon_high=0.3"]
    [record] = paper_of(paper_run(tmp_path, "paper-1.5b-clip.yaml", overrides, cap=512)).values()
    assert record["published"] == 0.378 and "strict" not in record
    assert record["differs"] == {
        "rollout.group_size": ["4", "8"],
        "objective.trust_region.epsilon_high": ["0.2", "0.3"],
        "evaluation: max_new_tokens": ["128", "512"],
    }


def test_arms_without_a_published_figure_are_left_out(tmp_path):
    assert paper_of(paper_run(tmp_path, "paper-0.5b-noclip.yaml")) == {}


# --- refusals -------------------------------------------------------------------------------------


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="neither a run folder"):
        collect([tmp_path])
    with pytest.raises(ResultsError, match="no run folder among"):
        collect(write_arms(tmp_path, {}, base=3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"base": "other/model"}, "its id is embedded in .* and other/model in"),
        ({"base_revision": "abc"}, "its revision is None in .* and abc in"),
        ({"quantization": "none"}, "its quantization is nf4 in .* and none in"),
    ],
)
def test_other_bases_are_refused(tmp_path, model, message):
    paths = write_arms(tmp_path, {"clip": [20], "pspo": [20]})
    write_result(paths[1] / "eval", {0.0: first(20)}, data="d", model=model)
    with pytest.raises(ResultsError, match=message):
        collect(paths)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("system_prompt", "Guess."),
        ("max_new_tokens", 128),
        ("top_p", 0.9),
        ("seed", 1),
        ("split", "train"),
        ("limit", 40),
    ],
)
def test_other_settings_are_refused(tmp_path, setting, value):
    paths = write_arms(tmp_path, {"clip": [20], "pspo": [20]})
    write_result(paths[1] / "eval", {0.0: first(20)}, data="d", **{setting: value})
    with pytest.raises(ResultsError, match=f"d was evaluated with {setting} .* but {value!r} in"):
        collect(paths)


def test_prompts_may_differ_by_guidelines_and_adherence_stands_beside_accuracy(tmp_path):
    paths = write_arms(tmp_path, {"clip": [20, 24], "pspo": [20, 30]}, base=10)
    values = {"base": (0.25, None), "clip": (0.5, None), "pspo": (0.75, 0.5)}
    for path in paths:
        arm, _, seed = path.name.partition("-seed")
        file = path / "eval" / "d.json"
        record = json.loads(file.read_text())
        share, brief = values[arm]
        record["results"][0]["adherence"] = {
            "units-named": {"value": share + (0.1 if seed == "1" else 0.0), "n": 40},
            "concise": {"value": brief, "n": 40 if brief else 0},
        }
        if arm == "pspo":
            record["target"]["guidelines"] = {"units-named": "Name units."}
            record["settings"]["system_prompt"] += "\nName units."
        file.write_text(json.dumps(record))
    found = {score.arm: score.figures["adherence"] for score in scores_of(paths)}
    assert found["pspo"]["units-named"]["per_seed"] == [0.75, 0.85]
    metrics = paths[0] / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 1, "adherence/units-named": 0.5}) + "\n")
    page = (report(paths, tmp_path / "out") / "report.md").read_text()
    assert "![Follows units-named](" in page
    (title,) = re.findall(r"Adherence to guidelines on d, beside accuracy", page)
    table = page.partition(title)[2]
    # sd of two values is their distance over the root of 2: 10 / 1.414 = 7.1; tokens 10 .. 49
    for row in (
        ["base", "greedy", "25.0", "29.5", "25.0", "-"],
        ["clip", "greedy", "55.0", "29.5", "55.0 ± 7.1", "-"],
        ["pspo", "greedy", "62.5", "29.5", "80.0 ± 7.1", "50.0 ± 0.0"],
    ):
        assert re.search(r" *\| *".join(map(re.escape, row)), table), row


def test_other_problems_are_refused(tmp_path):
    paths = write_arms(tmp_path, {"clip": [20], "pspo": [20]})
    write_result(paths[1] / "eval", {0.0: first(20, problems=39)}, data="d")
    with pytest.raises(ResultsError, match=r"different problems \(1 are in .* 'problem 39'"):
        collect(paths)


def test_results_of_another_schema_are_refused(tmp_path):
    [run] = write_arms(tmp_path, {"clip": [20]})
    path = run / "eval" / "d.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(ResultsError, match="has schema 1"):
        collect([run])


def test_figures_that_do_not_fit_their_rows_are_refused(tmp_path):
    [run] = write_arms(tmp_path, {"clip": [20]})
    rows = run / "eval" / "d.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ResultsError, match="counts 20 of 40 strict at temperature 0, its rows 19"):
        collect([run])


def test_two_runs_of_one_seed_are_refused(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    with pytest.raises(ResultsError, match="the same configuration and seed 0"):
        collect(paths)


def test_adapters_outside_runs_are_refused(tmp_path):
    [run] = write_arms(tmp_path, {"clip": [20]})
    write_result(tmp_path / "hub", {0.0: first(3)})
    with pytest.raises(ResultsError, match="of an adapter outside a run"):
        collect([run, tmp_path / "hub"])


def test_a_comparison_of_another_schema_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="has schema 7, this kit reads 1"):
        collect([write_comparison(tmp_path, schema=7)])


@pytest.mark.parametrize("text", ["{", "[" * 200_000])
def test_a_judge_summary_that_is_none_is_an_error(tmp_path, text):
    (tmp_path / "judge.json").write_text(text)
    with pytest.raises(ResultsError, match=r"judge\.json is not valid JSON"):
        measure_opinions([], [tmp_path / "judge.json"])


def test_a_file_of_another_kind_has_no_votes(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(ResultsError, match=r"pairs\.jsonl holds no votes: none of its 2 lines is"):
        measure_opinions([tmp_path / "pairs.jsonl"], [])


@pytest.mark.parametrize("kind", ['"pairs"', '"scores"', '"other"', "[1]", "null"])
def test_a_judge_summary_without_its_fields_is_none(tmp_path, kind):
    (tmp_path / "judge.json").write_text(f'{{"schema": 1, "kind": {kind}}}')
    with pytest.raises(ResultsError, match=r"judge\.json is no summary of kit judge of schema 1"):
        measure_opinions([], [tmp_path / "judge.json"])


def test_a_file_of_another_kind_is_no_judge_summary(tmp_path):
    comparison = write_comparison(tmp_path) / "compare.json"
    assert json.loads(comparison.read_text())["schema"] == 1  # as that of a summary
    with pytest.raises(ResultsError, match=r"compare\.json is no summary of kit judge of schema 1"):
        measure_opinions([], [comparison])


# --- the report itself ----------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a page would load, run or link."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[int] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append(0)
        elif tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A report on a hostile and a half-written arm, samples, votes and judgements."""
    root = tmp_path_factory.mktemp("report")
    metrics = [
        {"step": i + 1, "reward/mean": i / 4, "accuracy/strict": 0.1 * i, "update/grad_norm": 0.5}
        for i in range(4)
    ]
    clip = write_run(root / "clip", region="clip", metrics=metrics)
    pspo = write_run(root / HOSTILE, metrics=metrics[:2], status="running")
    with (pspo / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    late = write_run(root / "late", region="noclip", status="running")
    (late / "run.json").unlink()
    categories = ["plain"] * 30 + [HOSTILE_CATEGORY] * 10
    for run, right in ((clip, 20), (pspo, 30)):
        verdicts = {0.0: first(right), 0.7: [[1, 0]] * 40}
        write_result(run / "eval", verdicts, categories=categories, seen=7 if right == 20 else 0)
    write_result(clip / "eval", {0.0: first(5)}, data="unfinished", status="running")
    sides = [
        {
            "name": name,
            "adapter": None,
            "adapter_sha256": None,
            "completion": "",
            "strict": None,
        }
        for name in (HOSTILE, "clip")
    ]
    vote = {
        "question": "q",
        "prompt": [],
        "answer": None,
        "left": sides[0],
        "right": sides[1],
        "settings": {"temperature": 0, "max_new_tokens": 1, "seed": 0},
        "blind": True,
        "id": "1",
        "time": "2026-01-02T03:04:05Z",
        "schema": 1,
    }
    votes = root / "votes.jsonl"
    given = ("left", "left", "left", "right", "tie")
    lines = [
        json.dumps(vote | {"vote": v, "question": f"{i}?", "id": str(i)})
        for i, v in enumerate(given)
    ]
    votes.write_text("\n".join([*lines, "not a vote", ""]))
    outcome = {"left": 6, "right": 2, "ties": 1, "inconsistent": 1, "p": 0.2890625}
    share = {"value": 0.75, "ci95": [0.409, 0.929], "count": 6, "n": 8}
    judge = root / "judge.json"
    judge.write_text(
        json.dumps(
            {
                "schema": 1,
                "kind": "pairs",
                "judge": "judge-1",
                "left": "a.jsonl",
                "right": "b.jsonl",
                "pairs": 10,
                "malformed": 0,
                "failed": 0,
                "outcomes": {"overall": outcome | {"win_rate": share}},
                "first_shown": {"value": None, "ci95": None, "count": 0, "n": 0},
            }
        )
    )
    return report([clip, pspo, late], root / "out", votes=[votes], judgements=[judge])


def test_the_page_stands_alone(made):
    page = Page((made / "report.html").read_text())
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    loaded = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert loaded and all(value.startswith(("data:image/svg+xml;base64,", "#")) for value in loaded)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    style = (made / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert ("name", "viewport") in page.attributes and "overflow-x: auto" in style
    assert "prefers-color-scheme: dark" in style


def test_hostile_names_are_shown_and_do_nothing(made):
    html, markdown = ((made / f"report.{kind}").read_text() for kind in ("html", "md"))
    page = Page(html)
    assert HOSTILE in page.text and HOSTILE_CATEGORY in page.text
    assert "<script" not in markdown and "<img" not in markdown
    assert "](http" not in markdown
    # a bar in a name makes no new cell
    row = next(line for line in markdown.splitlines() if "alert(1)&lt;/script>" in line)
    header = next(line for line in markdown.splitlines() if line.startswith("| category"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", header))


def test_half_written_runs_are_reported_as_far_as_they_go(made):
    record = json.loads((made / "report.json").read_text())
    remarks = "\n".join(record["remarks"])
    assert "training is not finished (status: killed, step 2 of 4)" in remarks
    assert "metrics.jsonl: the last line is cut off and left out" in remarks
    assert "training is not finished (status: not started, step 0 of 4)" in remarks
    assert "late: no finished evaluation" in remarks
    assert "unfinished.json: the evaluation is not finished and is left out" in remarks
    assert record["curves"]["reward/mean"][HOSTILE]["steps"] == [1, 2]
    assert {score["data"] for score in record["scores"]} == {"gsm_symbolic"}


def test_every_figure_and_table_is_traced_to_files(made):
    record = json.loads((made / "report.json").read_text())
    html = Page((made / "report.html").read_text()).text
    origins = {**record["figures"], **record["tables"]}
    assert len(record["figures"]) >= 8
    for name, origin in origins.items():
        assert origin["files"] or name == "published"
        for file in origin["files"]:
            assert (made / file).exists()
            assert file in html
    assert record["figures"]["figures/reward-mean.svg"]["commands"] == [
        shlex.join(["kit", "train", str(made.parent / name / "config.yaml")])
        for name in ("clip", HOSTILE)
    ]


def test_figures_are_pictures_and_small(made):
    linked = re.findall(r"\((figures/[^)]+)\)", (made / "report.md").read_text())
    drawn = sorted(path.name for path in (made / "figures").iterdir())
    assert sorted(Path(link).name for link in linked) == drawn
    for path in (made / "figures").iterdir():
        assert path.stat().st_size < 80_000
        picture = ElementTree.fromstring(path.read_bytes())
        assert picture.get("width") == "244.8pt"  # 3.4 inches, a column of a paper
        tags = {element.tag.rpartition("}")[2] for element in picture.iter()}
        assert {"path", "text"} <= tags  # something is drawn, and text stays text
        assert tags.isdisjoint({"script", "image", "a", "foreignObject", "img"})


def test_the_report_opens_with_its_answers_and_ends_with_the_settings(made):
    titles = re.findall("^## (.*)$", (made / "report.md").read_text(), flags=re.MULTILINE)
    assert titles[:2] == ["Answers", "Accuracy"] and titles[-1] == "What was compared"


def test_temperatures_have_panels_of_their_own_and_no_line_joins_them(tmp_path):
    run = write_run(tmp_path / "clip")
    verdicts = {0.0: first(20), 0.5: first(22), 1.0: first(18)}
    write_result(run / "eval", verdicts, data="d")
    folder = report([run])
    picture = (folder / "figures" / "accuracy-d.svg").read_text()
    for title in ("greedy", "temperature 0.5", "temperature 1"):
        assert f">{title}</text>" in picture


def test_numbers_in_a_figures_text_are_left_as_they_are():
    line = Line([1, 2], [0.00031, 0.00042])
    looks = styles(["a"], "base")
    drawn = draw_lines({"a": line}, looks, x=Scale("0.00037"), y=Scale("y")).svg.decode()
    assert ">0.00037</text>" in drawn and not re.search(r'd="[^"]*\d\.\d\d', drawn)


def test_legends_are_as_wide_as_the_figure_at_most():
    arms = [f"a rather long name of an arm {i}" for i in range(9)]
    rows = {"row": [Dot(arm, 0.5) for arm in arms]}
    drawing = draw_dots({"": rows}, styles(arms, "base"), unit="%", legend=True)
    assert drawing.svg
    figure = drawing.figure
    (legend,) = figure.legends
    box = legend.get_window_extent()
    width, height = figure.canvas.get_width_height()
    assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["embedded-clip", "embedded-pspo"], ["clip", "pspo"]),
        (["pspo", "pspo-sequence"], ["pspo", "pspo-sequence"]),
        (["m-pspo", "m-pspo-sequence"], ["pspo", "pspo-sequence"]),
        (["embedded-clip"], ["embedded-clip"]),
        (["a-", "a-b"], ["a-", "b"]),
    ],
)
def test_names_lose_what_all_begin_with(names, short):
    assert list(short_names(names).values()) == short


def test_arms_are_called_by_what_tells_them_apart(tmp_path):
    runs = [
        write_run(tmp_path / f"small-{region}-seed0", region=region) for region in ("clip", "sapo")
    ]
    assert [arm.name for arm in collect(runs).arms] == ["clip", "sapo"]


def test_a_paper_gets_figures_and_tables_alone(tmp_path, capsys):
    paths = write_arms(tmp_path, {"clip": [20], "sapo": [30]}, base=10)
    folder = tmp_path / "paper"
    assert main(["report", *map(str, paths), "--paper", str(folder)]) == 0
    assert f"figures and tables -> {folder}" in capsys.readouterr().out
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".svg", ".pdf", ".tex", ".md"}
    assert (folder / "accuracy-d.pdf").read_bytes().startswith(b"%PDF")
    latex = (folder / "accuracy_d.tex").read_text()
    assert r"clip & 0 & 0 & 1 & 50.0 [35.2, 64.8]" in latex and latex.count(r"\toprule") == 1
    assert r"strict, \%" in latex


def test_latex_prints_names_as_they_are():
    table = Table("t", "50 % of {a}", ("a_b", "x"), [(r"\input{x}", "~^<|>")], Origin(), "n#1")
    latex = to_latex(table)
    assert r"a\_b & x \\" in latex
    assert r"\textbackslash{}input\{x\} & " in latex
    assert r"\textasciitilde{}\textasciicircum{}\textless{}\textbar{}\textgreater{}" in latex
    assert r"\caption{50 \% of \{a\}. n\#1}" in latex


def test_the_report_has_the_words_and_the_tables(made):
    text = re.sub(" +", " ", (made / "report.md").read_text())
    assert (
        "| clip | 0 | 0 | 1 | 50.0 [35.2, 64.8] | 50.0 [35.2, 64.8] | 100.0 | 0.0 | 30 / " in text
    )
    assert (
        "adapter is higher than the clip adapter on gsm_symbolic (strict, greedy) by 25.0" in text
    )
    assert text.count("NOT HELD OUT, trained on these problems: clip on 7.") == 1
    assert "| 10 (few) |" in text and "| 0123456789 with uncommitted changes |" in text
    # three of four votes: a sign test gives 2 (1 + 4) / 16
    assert "and clip | 3 | 1 | 1 | 0 | 75.0 [30.1, 95.4] | 0.6250 |" in text
    assert "5 votes; 0 that were not blind and 1 unreadable lines are left out" in text
    assert "| overall | 6 | 2 | 1 | 1 | 75.0 [40.9, 92.9] | 0.2891 |" in text


def test_a_second_report_replaces_the_first(tmp_path, capsys):
    [run] = write_arms(tmp_path, {"clip": [20]})
    folder = report([run])
    before = (folder / "report.json").read_text()
    shown = capsys.readouterr().out
    assert folder == run / "report" and "ACCURACY" in shown and "50.0 [35.2, 64.8]" in shown
    assert report([run]) == folder
    assert (folder / "report.json").read_text() == before
    assert not list(folder.rglob("*.part"))


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    [run] = write_arms(tmp_path, {"clip": [20]})
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write the report to"):
        report([run], tmp_path / "file")
