"""The Training and Report tabs: finding and reading runs, curves, differences, reports."""

from __future__ import annotations

import html
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml

from kit.app.library import runs as library_runs
from kit.app.library.folders import (
    display_names,
    find_runs,
    fingerprint,
    preselect,
    short_names,
)
from kit.app.library.roots import OutsideRoots
from kit.app.library.runs import (
    differing_rows,
    number,
    read_run,
    sample_steps,
    samples_at,
    step_of,
)
from kit.app.options import AppOptions
from kit.app.report import view as report_view
from kit.app.report.pages import (
    DARK,
    find_reports,
    find_sources,
    frame,
    locate,
    make_report,
)
from kit.app.training import health
from kit.app.training import view as training_view
from kit.app.training.curves import COLOURS, colours, draw
from kit.app.training.plots import plot
from kit.errors import ResultsError, RunError
from kit.metrics import GROUPS, NOTES, SHOWN
from kit.reading import read_metrics
from kit.recipe import build_config

CURVE = {curve.metric: curve for curve in SHOWN}
HOSTILE = "<img src=x onerror=alert(1)>"


def write_run(
    folder: Path,
    metrics: str | None = "",
    samples: list[dict[str, Any]] | None = None,
    status: str | None = "running",
    **sections: Any,
) -> Path:
    """A run folder by hand; None leaves a file out."""
    values: dict[str, Any] = {
        "model": {"id": "embedded"},
        "data": {"name": "gsm_symbolic"},
        "train": {"steps": 9},
        "output": str(folder),
    }
    config = build_config(values | sections)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    if status is not None:
        (folder / "run.json").write_text(json.dumps({"status": status}))
    if metrics is not None:
        (folder / "metrics.jsonl").write_text(metrics)
    if samples is not None:
        (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    return folder.resolve()


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


# --- finding runs --------------------------------------------------------------------------------


def test_runs_are_found_by_their_configuration_at_any_depth_up_to_five(tmp_path):
    write_run(tmp_path / "alone")
    write_run(tmp_path / "study" / "clip" / "seed-0")
    write_run(tmp_path / "1/2/3/4/5")
    write_run(tmp_path / "1/2/3/4/5b/6")
    write_run(tmp_path / "alone" / "checkpoints" / "step-1")
    write_run(tmp_path / ".hidden")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "no-run" / "metrics.jsonl").write_text("")
    found = [run.name for run in find_runs([tmp_path])]
    assert found == [
        "1/2/3/4/5",
        "alone",
        "study/clip/seed-0",
    ]


def test_a_root_may_be_missing_be_a_run_itself_or_lie_in_another(tmp_path):
    run = write_run(tmp_path / "runs" / "one")
    roots = [tmp_path / "nowhere", run, tmp_path / "runs"]
    assert [(found.name, found.path) for found in find_runs(roots)] == [("one", run)]


def test_runs_of_two_roots_never_share_a_name(tmp_path):
    first, second = write_run(tmp_path / "a" / "x"), write_run(tmp_path / "b" / "x")
    found = find_runs([tmp_path / "a", tmp_path / "b"])
    assert {run.name: run.path for run in found} == {"x": first, str(second): second}


def test_links_are_not_followed(tmp_path):
    outside = write_run(tmp_path / "outside" / "run", lines({"step": 1, "reward/mean": 1.0}))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(outside)
    assert find_runs([tmp_path / "runs"]) == []
    inside = write_run(tmp_path / "runs" / "inside", None)
    (inside / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    run = read_run(inside)
    assert run.metrics == ()
    assert run.faults == ("metrics.jsonl is not a file in this folder and is not read",)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = write_run(tmp_path / "run", None)
    os.mkfifo(folder / "metrics.jsonl")
    assert "is not a file" in read_run(folder).faults[0]


def test_names_that_are_no_text_are_left_out(tmp_path):
    try:
        write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")))
    except OSError:
        pytest.skip("this file system takes only names that are text")
    assert find_runs([tmp_path]) == []


def test_the_newest_run_is_preselected_with_the_arms_of_its_seed(tmp_path):
    for arm in ("clip", "noclip", "pspo"):
        for seed in (0, 1):
            write_run(tmp_path / "study" / arm / f"seed-{seed}")
    (tmp_path / "study" / "compare.json").write_text("{}")
    write_run(tmp_path / "alone")
    later = tmp_path / "study" / "noclip" / "seed-1" / "metrics.jsonl"
    os.utime(later, (2e9, 2e9))
    names = [run.name for run in preselect(find_runs([tmp_path]))]
    assert names == ["study/clip/seed-1", "study/noclip/seed-1", "study/pspo/seed-1"]


def test_without_a_comparison_the_newest_eight_beside_it_are_preselected(tmp_path):
    for i in range(10):
        run = write_run(tmp_path / f"run-{i}")
        for file in run.iterdir():
            os.utime(file, (1e9 + i, 1e9 + i))
    write_run(tmp_path / "older" / "run")
    for file in (tmp_path / "older" / "run").iterdir():
        os.utime(file, (1, 1))
    assert [r.name for r in preselect(find_runs([tmp_path]))] == [f"run-{i}" for i in range(2, 10)]
    assert preselect([]) == []


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["study/a/seed-0", "study/b/seed-0"], ["a/seed-0", "b/seed-0"]),
        (["study/a/seed-0", "study/a/seed-1"], ["seed-0", "seed-1"]),
        (["study/a/seed-0"], ["seed-0"]),
        (["study/a", "alone"], ["study/a", "alone"]),
        (["x/a", "/elsewhere/x/a"], ["x/a", "/elsewhere/x/a"]),
        ([], []),
    ],
)
def test_names_lose_what_all_have_in_common(names, short):
    assert short_names(names) == short


# --- reading runs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["base", "demo/clip", "demo/pspo"], ["base", "clip", "pspo"]),
        (["a/clip", "b/clip"], ["a/clip", "b/clip"]),
        (
            [f"gsm8k-{'long' * 9}-clip-seed-1", f"gsm8k-{'long' * 9}-pspo-seed-1"],
            ["gsm8k-longlong…g-clip-seed-1", "gsm8k-longlong…g-pspo-seed-1"],
        ),
        (
            [f"gsm8k-qwen2.5-0.5b-{arm}-lr-1e-5-seed-0" for arm in ("clip", "pspo")],
            ["…0.5b-clip-lr-1e-5-seed-0", "…0.5b-pspo-lr-1e-5-seed-0"],
        ),
        (
            ["x" * 20 + name + "y" * 40 for name in "ab"],
            [f"…xxxxx{name}{'y' * 20}…" for name in "ab"],
        ),
        (["x" * 20 + name + "y" * 40 for name in "aa"], ["x" * 20 + "a" + "y" * 40] * 2),
    ],
)
def test_long_names_keep_what_tells_them_apart(names, shown):
    assert display_names(names) == shown


def test_names_are_in_natural_order(tmp_path):
    for seed in (1, 2, 10):
        write_run(tmp_path / f"seed-{seed}")
    assert [run.name for run in find_runs([tmp_path])] == ["seed-1", "seed-2", "seed-10"]


def test_a_run_that_has_only_begun_says_what_is_missing(tmp_path):
    run = read_run(write_run(tmp_path / "run", metrics=None, status=None))
    assert run.missing == ("run.json", "metrics.jsonl")
    assert (run.status, run.step, run.faults) == ("not started", 0, ())
    assert run.config is not None and run.config.train.steps == 9


def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    write_run(tmp_path / "run")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = {"host": platform.node(), "pid": os.getpid()}
    for process, status in (
        (here, "running"),
        (here | {"pid": ended.pid}, "killed"),
        ({"host": "elsewhere", "pid": ended.pid}, "running"),  # cannot be known from here
        ({"host": platform.node(), "pid": 2**70}, "killed"),
        ("?", "running"),
    ):
        record = {"status": "running", "process": process}
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        assert read_run(tmp_path / "run").status == status


def test_a_line_cut_off_at_the_end_is_normal(tmp_path):
    text = lines({"step": 1, "reward/mean": 0.5}) + '{"step": 2, "rew'
    run = read_run(write_run(tmp_path / "run", text))
    assert (run.step, run.faults) == (1, ())


def test_damaged_lines_are_said_and_left_out(tmp_path):
    good = (
        lines({"step": 1}) + "{bad\n" + "5\n" + "\udcff\n" + "[" * 100_000 + "\n" + '{"step": 7}\n'
    )
    folder = write_run(tmp_path / "run", "")
    (folder / "metrics.jsonl").write_bytes(good.encode("utf-8", "surrogateescape"))
    run = read_run(folder)
    assert [record["step"] for record in run.metrics] == [1, 7]
    assert run.faults == (
        "metrics.jsonl, line 2 is not a JSON object",
        "metrics.jsonl, line 3 is not a JSON object",
        "metrics.jsonl, line 4 is not a JSON object",
        "metrics.jsonl: 1 more lines like this",
    )


def test_without_a_list_of_faults_a_damaged_line_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{bad\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2 is not a JSON object"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("run.json", '{"status": ', "run.json is not usable: "),
        ("run.json", "[1]", "run.json is not usable: it must hold a JSON object"),
        ("config.yaml", "model: {id: [", "config.yaml is not usable: "),
        ("config.yaml", "lora: {rnak: 8}", "unknown key 'rnak' under lora, did you mean 'rank'?"),
        ("config.yaml", "just text", "config.yaml is not usable: "),
        ("config.yaml", "a: &a [1]\nb: *a\n", "config.yaml is not usable: it holds YAML aliases"),
        ("config.yaml", "[" * 100_000, "config.yaml is not usable: it is nested more than 10 deep"),
        ("run.json", "[" * 100_000, "run.json is not usable: it is nested too deeply"),
    ],
)
def test_what_cannot_be_used_is_said_and_the_rest_is_shown(tmp_path, name, content, fault):
    folder = write_run(tmp_path / "run", lines({"step": 3, "reward/mean": 0.5}))
    (folder / name).write_text(content)
    run = read_run(folder)
    assert run.step == 3
    assert len(run.faults) == 1 and fault in run.faults[0]
    assert len(run.faults[0]) < 400


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", lines({"step": 1}))
    (folder / "run.json").write_text(" " * 300_000)
    monkeypatch.setattr(library_runs, "LARGEST_LOG", 5)
    assert read_run(folder).faults == (
        "run.json has more than 256 KiB and is not read",
        "metrics.jsonl has more than 0 KiB and is not read",
    )


def test_only_files_that_have_changed_are_read_again(tmp_path, monkeypatch):
    read: list[str] = []

    def count(path: Path, faults: list[str]) -> list[dict[str, Any]]:
        read.append(path.parent.name)
        return read_metrics(path, faults)

    monkeypatch.setattr(library_runs, "read_metrics", count)
    one = write_run(tmp_path / "one", lines({"step": 1}))
    two = write_run(tmp_path / "two", lines({"step": 1}))
    before = fingerprint([one, two])
    assert (read_run(one).step, read_run(two).step) == (1, 1)
    assert fingerprint([one, two]) == before
    assert (read_run(one).step, read_run(two).step) == (1, 1)
    assert read == ["one", "two"]
    with (one / "metrics.jsonl").open("a") as file:
        file.write(lines({"step": 2}))
    assert fingerprint([one, two]) != before
    assert (read_run(one).step, read_run(two).step) == (2, 1)
    assert read == ["one", "two", "one"]


def test_a_file_that_appears_changes_the_fingerprint(tmp_path):
    folder = write_run(tmp_path / "run")
    before = fingerprint([folder])
    (folder / "samples.jsonl").write_text("")
    assert fingerprint([folder]) != before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2.0),
        (0.5, 0.5),
        (True, None),
        ("3", None),
        (None, None),
        ([1], None),
        (math.nan, None),
        (-math.inf, None),
        (10**400, None),
    ],
)
def test_only_finite_numbers_are_numbers(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize("step", [-1, 1.0, True, "1", None, 2**53, 10**400])
def test_only_counts_are_steps(step):
    assert step_of({"step": step}) is None
    assert step_of({"step": 3}) == 3 and step_of({}) is None


# --- samples and differences ---------------------------------------------------------------------


def test_samples_are_those_of_the_step(tmp_path):
    right = {"step": 2, "question": "2+3?", "answer": "5", "completion": "#### 5", "strict": True}
    parts = {"correct": 0.0, "format": 0.05, "bad": "?"}  # those that gave nothing are left out
    form = {"step": 2, "completion": "5", "lenient": True, "reward": 0.05, "parts": parts}
    cut = {"step": 4, "truncated": True, "advantage": -1.25, "reward": math.nan}
    run = read_run(write_run(tmp_path / "run", samples=[right, form, cut, {"step": "x"}]))
    assert sample_steps(run) == [2, 4]
    first, second = samples_at(run, 2)
    assert (first.question, first.answer, first.completion) == ("2+3?", "5", "#### 5")
    assert (first.verdict, first.facts) == ("right", "")
    assert (second.question, second.facts) == ("not recorded", "reward 0.05, format 0.05")
    assert second.verdict == "right, not as #### answer"
    (third,) = samples_at(run, 4)
    assert (third.verdict, third.facts) == ("cut off", "advantage -1.25")
    assert samples_at(run, 3) == []


def test_differences_are_named_but_not_those_of_the_folder(tmp_path):
    a = read_run(write_run(tmp_path / "a"))
    b = read_run(write_run(tmp_path / "b"))
    clip = {"trust_region": {"name": "clip", "epsilon_low": 0.1}}
    c = read_run(write_run(tmp_path / "c", objective=clip, data={"name": HOSTILE}))
    assert differing_rows(a, b) == []
    assert differing_rows(a, c) == [
        ["data.name", "gsm_symbolic", HOSTILE],
        ["objective.trust_region.alpha", "0.1", "none"],
        ["objective.trust_region.epsilon_high", "none", "0.28"],
        ["objective.trust_region.epsilon_low", "none", "0.1"],
        ["objective.trust_region.name", "pspo", "clip"],
    ]


def test_differences_need_both_configurations(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (b / "config.yaml").write_text("{")
    with pytest.raises(RunError, match="of the second run cannot be read"):
        differing_rows(read_run(a), read_run(b))


# --- curves --------------------------------------------------------------------------------------


def read_all(folder: Path, **metrics: str) -> dict[str, library_runs.Run]:
    return {name: read_run(write_run(folder / name, text)) for name, text in metrics.items()}


def test_shares_are_percent_and_a_later_line_counts(tmp_path):
    text = lines(
        {"step": 2, "accuracy/strict": 0.25},
        {"step": 1, "accuracy/strict": 0.125},
        {"step": 2, "accuracy/strict": 0.5},
        {"step": 3, "accuracy/strict": "0.9"},
        {"accuracy/strict": 0.9},
    )
    lines_ = draw(read_all(tmp_path, run=text), CURVE["accuracy/strict"], 1)
    assert lines_ == {"run": [(1, 12.5, "12.5"), (2, 50.0, "50")]}


def test_smoothing_stays_within_a_run_and_keeps_what_was_recorded(tmp_path):
    a = lines(*({"step": n, "reward/mean": v} for n, v in enumerate([0.0, 3.0, 6.0, 0.0])))
    b = lines({"step": 0, "reward/mean": 100.0}, {"step": 3, "reward/mean": 200.0})
    drawn = draw(read_all(tmp_path, a=a, b=b), CURVE["reward/mean"], 3)
    # (0 + 3) / 2, (0 + 3 + 6) / 3, (3 + 6 + 0) / 3, (6 + 0) / 2; (100 + 200) / 2 twice
    assert [value for _, value, _ in drawn["a"]] == [1.5, 3.0, 3.0, 3.0]
    assert drawn["b"] == [(0, 150.0, "100"), (3, 150.0, "200")]
    assert [said for _, _, said in drawn["a"]] == ["0", "3", "6", "0"]


def test_lines_are_drawn_as_differences_from_a_run_where_it_has_the_step(tmp_path):
    a = lines({"step": 1, "reward/mean": 1.0}, {"step": 2, "reward/mean": 2.0})
    b = lines({"step": 2, "reward/mean": 5.0}, {"step": 3, "reward/mean": 7.0})
    drawn = draw(read_all(tmp_path, a=a, b=b), CURVE["reward/mean"], 1, "a")
    assert drawn == {"b": [(2, 3.0, "5")]}  # 5 - 2


def test_a_part_of_the_steps_is_drawn_with_its_own_scale(tmp_path):
    """Smoothed with what stands before and after it."""
    text = lines(*({"step": n, "reward/mean": v} for n, v in enumerate([9.0, 3.0, 6.0, 0.0])))
    runs = read_all(tmp_path, a=text, b=lines({"step": 0, "reward/mean": 1.0}))
    drawn = draw(runs, CURVE["reward/mean"], 3, steps=(1, 2))
    # (9 + 3 + 6) / 3 and (3 + 6 + 0) / 3; b has none of these steps
    assert drawn == {"a": [(1, 6.0, "3"), (2, 3.0, "6")]}
    figure = plot(CURVE["reward/mean"], drawn, colours(["a"]))
    assert ">1</text>" in figure and ">step 2</text>" in figure
    assert ">3</text>" in figure and ">6</text>" in figure and ">9</text>" not in figure


def test_a_line_of_one_step_is_seen() -> None:
    drawn = {"a": [(7, 0.5, "0.5")], "b": [(7, 0.1, "0.1"), (8, 0.2, "0.2")]}
    figure = plot(CURVE["reward/mean"], drawn, colours(["a", "b"]))
    assert figure.count("kit-alone") == 1
    assert re.search(r'<circle class="kit-alone"[^>]*><title>a, step 7: 0.5', figure)


def test_plots_tell_equal_lines_apart(tmp_path):
    text = lines({"step": 1, "reward/mean": 1.0}, {"step": 2, "reward/mean": 2.0})
    runs = read_all(tmp_path, a=text, b=text, **{"<img>": text})
    drawn = plot(CURVE["reward/mean"], draw(runs, CURVE["reward/mean"], 1), colours(list(runs)))
    assert len(set(re.findall(r'stroke-dasharray="([^"]*)"', drawn))) == 3
    ends = [float(y) for y in re.findall(r'y="([\d.]+)" style="fill', drawn)]
    assert len(ends) == 3 and min(b - a for a, b in pairwise(sorted(ends))) >= 12
    assert "<img>" not in drawn and "a, step 2: 2" in drawn


def test_a_run_is_healthy_by_rules_that_are_told(tmp_path):
    good = lines(
        *(
            {
                "step": n,
                "reward/mean": n / 8,
                "policy/entropy": 0.5 - n / 20,
                "completion/truncated_share": 0.0,
            }
            for n in range(8)
        )
    )
    bad = lines(
        *(
            {
                "step": n,
                "reward/mean": 1 - n / 8,
                "completion/truncated_share": 0.3,
                "policy/entropy": 0.5**n,
            }
            for n in range(8)
        )
    )
    runs = read_all(tmp_path, good=good, bad=bad, short=lines({"step": 1, "reward/mean": 1.0}))
    assert [word.text for word in health.words(runs["good"])] == [
        "reward rises",
        "entropy fine",
        "nothing cut off",
    ]
    shown = health.in_html(runs["good"])
    assert shown.startswith("healthy: ") and "least-squares slope" in shown
    assert [word.text for word in health.words(runs["bad"])] == [
        "reward does not rise beyond noise",
        "entropy collapsed",
        "answers cut off",
    ]
    assert "look at it" in health.in_html(runs["bad"]) and health.in_html(runs["short"]) == ""


def test_noise_silence_and_runaway_ratios_are_not_healthy(tmp_path):
    rewards = [0.41, 0.61, 0.5, 0.55, 0.45, 0.62, 0.42, 0.55]
    fields = {"ratio/zero_gradient_share": 0.6, "ratio/max": 400.0}
    run = lines(*({"step": n, "reward/mean": r} | fields for n, r in enumerate(rewards)))
    words = health.words(read_all(tmp_path, run=run)["run"])
    assert [(word.text, word.is_good) for word in words] == [
        ("reward does not rise beyond noise", False),
        ("most tokens silenced", False),
        ("a ratio ran away", False),
    ]
    calm = {"ratio/zero_gradient_share": 0.1, "ratio/max": 2.0}
    run = lines(*({"step": n, "reward/mean": n / 8} | calm for n in range(8)))
    assert health.in_html(read_all(tmp_path, calm=run)["calm"]).startswith("healthy: ")


def learning(
    rewards: list[float], accuracies: Sequence[float] = (), problems: int = 64
) -> health.Word:
    """What is said of how a run learns."""
    metrics = [{"step": n, "reward/mean": reward} for n, reward in enumerate(rewards)]
    metrics += [{"validation/strict": accuracy} for accuracy in accuracies]
    data = {"name": "gsm_symbolic", "validation_size": problems}
    config = build_config({"model": {"id": "embedded"}, "data": data})
    (word,) = health.words(library_runs.Run(config, "finished", metrics, (), 0.0, (), ()))
    return word


def test_learning_is_seen_in_the_reward_or_in_the_held_out_accuracy() -> None:
    # of an embedded run: the slope is 1.16 standard errors, and 34 of 64 became 49 of 64
    noisy = [0.612, 0.548, 0.706, 0.565, 0.72, 0.55, 0.596, 0.425, 0.628, 0.518, 0.862, 0.846]
    word = learning(noisy)
    assert (word.text, word.is_good) == ("reward does not rise beyond noise", False)
    word = learning(noisy, [34 / 64, 40 / 64, 49 / 64])
    assert (word.text, word.is_good) == ("held-out accuracy rises", True)
    assert "2.5 standard errors" in word.rule
    # (48 - 35) / 66 over sqrt(35 * 31 / 66^3 + 48 * 18 / 66^3) = 0.1970 / 0.0823 = 2.39
    word = learning(noisy, [34 / 64, 47 / 64])
    assert word.text == "neither reward nor held-out accuracy rises beyond noise"
    assert "least-squares slope" in word.rule and "2.5 standard errors" in word.rule
    assert not learning(noisy, [49 / 64, 34 / 64]).is_good
    assert not learning(noisy, [34 / 64]).is_good and not learning(noisy, [0.0, 1.0], 0).is_good
    # slope 11 / 17.5, its error sqrt((10 - 11^2 / 17.5) / 4 / 17.5) = 0.2100: 2.99 of its errors,
    # which is less than 2 + 5 / 4; then 12.5 / 17.5 and sqrt((65 / 6 - 12.5^2 / 17.5) / 4 / 17.5)
    assert not learning([0, 2, 1, 3, 2, 4]).is_good
    assert learning([0, 1, 1, 3, 2, 4]).is_good  # 4.33 of them
    assert learning([0.1, 0.2, 0.3, 0.4]).is_good and not learning([0.5] * 4).is_good


@pytest.mark.parametrize("steps", [4, 6, 12, 40])
@pytest.mark.parametrize(("problems", "accuracy"), [(4, 0.5), (16, 0.1), (64, 0.5), (128, 0.9)])
def test_few_flat_runs_are_said_to_learn(steps: int, problems: int, accuracy: float) -> None:
    """Under 3 in 100; of 2,000 runs two standard deviations are 0.8 in 100."""
    chance, runs = random.Random(0), 2_000
    data = {"name": "gsm_symbolic", "validation_size": problems}
    config = build_config({"model": {"id": "embedded"}, "data": data})
    rising = 0
    for _ in range(runs):
        metrics = [{"reward/mean": chance.gauss(0.5, 0.1)} for _ in range(steps)]
        for _ in range(2):
            right = sum(chance.random() < accuracy for _ in range(problems))
            metrics.append({"validation/strict": right / problems})
        (word,) = health.words(library_runs.Run(config, "", metrics, (), 0.0, (), ()))
        rising += word.is_good
    assert rising <= 0.038 * runs


def test_held_out_accuracy_is_not_smoothed(tmp_path):
    text = lines({"step": 0, "validation/strict": 0.1}, {"step": 25, "validation/strict": 0.3})
    drawn = draw(read_all(tmp_path, run=text), CURVE["validation/strict"], 5)
    assert [value for _, value, _ in drawn["run"]] == [10.0, 30.0]


@pytest.mark.parametrize("metric", ["ratio/max", "ratio/min", "policy/k3_to_base"])
def test_orders_of_magnitude_are_drawn_as_logarithms(tmp_path, metric):
    values = [1000.0, 0.01, 0.0, -1.0]
    text = lines(*({"step": n, metric: value} for n, value in enumerate(values)))
    drawn = draw(read_all(tmp_path, run=text), CURVE[metric], 1)["run"]
    assert [value for _, value, _ in drawn] == pytest.approx([3.0, -2.0], abs=1e-12)
    assert [said for _, _, said in drawn] == ["1000", "0.01"]
    assert ">1e+03<" in plot(CURVE[metric], {"run": drawn}, {"run": "#000000"})


def test_a_run_without_the_metric_has_no_line(tmp_path):
    runs = read_all(tmp_path, a=lines({"step": 4, "sft/loss": 2.0}), b="")
    assert draw(runs, CURVE["sft/loss"], 1) == {"a": [(4, 2.0, "2")]}
    assert draw(runs, CURVE["reward/mean"], 1) == draw({}, CURVE["reward/mean"], 1) == {}


def test_every_curve_is_explained_and_in_the_glossary():
    glossary = Path(__file__).parents[2] / "docs" / "metrics.md"
    known = set(re.findall(r"`(\w+/\w+)`", glossary.read_text(encoding="utf-8")))
    assert set(NOTES) == set(CURVE) and len(CURVE) == len(SHOWN)
    groups = [[m for m in CURVE if m.startswith(first)] for first in GROUPS.values()]
    assert sorted(metric for group in groups for metric in group) == sorted(CURVE)
    assert set(CURVE) <= known


def test_how_far_guidelines_are_followed_is_a_curve(tmp_path):
    name = "adherence/<b>mine</b>"
    records = [{"step": step, "reward/mean": 0.1, name: step / 4} for step in (1, 2)]
    path = write_run(tmp_path / "a", lines(*records))
    write_run(tmp_path / "b", lines(*({f"adherence/{i}": 1.0, "step": 1} for i in range(99))))
    tab = training_view._TrainingTab(AppOptions(runs=tmp_path))
    _, _, plots = tab.show([str(path)], 1)
    assert "Follows &lt;b&gt;mine" in plots and "% of completions" in plots
    assert "step 2: 50" in plots and "<b>mine" not in plots
    *_, plots = tab.show([str(tmp_path / "b")], 1)
    assert plots.count("<figure>") == training_view.MOST  # whatever a file has


def test_colours_can_be_seen_on_the_light_and_the_dark_page():
    def luminance(colour: str) -> float:  # WCAG 2
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 3, colour  # white
        assert (luminance(colour) + 0.05) / (luminance("#27272a") + 0.05) >= 3, colour
    assert len(set(COLOURS)) == 12
    names = [str(i) for i in range(14)]
    assert colours(names)["0"] == colours(names)["12"] != colours(names)["1"]


# --- the Training tab ----------------------------------------------------------------------------


@pytest.fixture
def tab(tmp_path) -> training_view._TrainingTab:
    return training_view._TrainingTab(AppOptions(runs=tmp_path))


def test_the_tab_says_what_to_do_without_runs(tab, tmp_path):
    _, words = tab.look()
    assert "no runs" in words and "kit train CONFIG" in words
    write_run(tmp_path / "run")
    assert "Choose one run" in tab.show([], 1)[0]


def test_paths_that_are_no_runs_below_the_roots_are_not_read(tmp_path):
    outside = write_run(tmp_path / "outside" / "run", lines({"step": 1, "reward/mean": 1.0}))
    write_run(tmp_path / "runs" / "run")
    tab = training_view._TrainingTab(AppOptions(runs=tmp_path / "runs"))
    chosen = [str(outside), str(tmp_path / "runs" / ".." / "outside" / "run")]
    assert "Choose one run" in tab.show(chosen, 1)[0]
    assert "No completions" in tab.samples(str(outside), 1)
    assert tab.compare(str(outside), str(outside))[0] == "Choose two runs."


def test_a_tick_shows_nothing_new_until_a_file_changes(tab, tmp_path):
    run = write_run(tmp_path / "run", lines({"step": 1, "reward/mean": 0.5}))
    legend, seen, _ = tab.show([str(run)], 1)
    assert "1 of 9" in legend
    assert tab.follow([str(run)], 1, "values", seen) == gr.skip()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(lines({"step": 2, "reward/mean": 0.75}))
    legend, _, drawn = tab.follow([str(run)], 1, "values", seen)
    assert "2 of 9" in legend
    assert "step 1: 0.5" in drawn and "step 2: 0.75" in drawn


def test_the_charts_stay_narrowed_while_a_run_is_written(tab, tmp_path):
    recorded = [{"step": n, "reward/mean": n / 8, "policy/entropy": 1.0} for n in range(1, 5)]
    run = write_run(tmp_path / "run", lines(*recorded))
    *_, drawn = tab.show([str(run)], 1, "values", 2, 3)
    assert drawn.count("<svg") == 2 and drawn.count(">step 3</text>") == 2
    assert "step 2: 0.25" in drawn and "step 1:" not in drawn and "step 4:" not in drawn
    *_, drawn = tab.show([str(run)], 1, "values", 3, None)
    assert "step 4: 0.5" in drawn and "step 2:" not in drawn
    *_, drawn = tab.follow([str(run)], 1, "values", None, None, 2)
    assert "step 1: 0.125" in drawn and "step 3:" not in drawn
    for first, last in ((9, None), (3, 2)):
        *_, drawn = tab.show([str(run)], 1, "values", first, last)
        assert "<svg" not in drawn and "No step of these runs" in drawn
    assert "No step" not in tab.show([str(write_run(tmp_path / "empty"))], 1)[2]


def test_attempts_that_failed_at_once_are_not_in_the_way(tab, tmp_path):
    write_run(tmp_path / "good", lines({"step": 1, "reward/mean": 0.5}))
    write_run(tmp_path / "bad", "", status="failed")
    assert [name for name, _ in tab.look()[0]["choices"]] == ["good"]
    assert [name for name, _ in tab.look(None, True)[0]["choices"]] == ["bad", "good"]


def test_a_choice_outlives_a_new_look(tab, tmp_path):
    old, new = write_run(tmp_path / "a" / "old"), write_run(tmp_path / "b" / "new")
    for path in new.iterdir():
        os.utime(path, (2e9, 2e9))
    assert tab.look()[0]["value"] == [str(new)]
    assert tab.look([str(old)])[0]["value"] == [str(old)]
    assert tab.look(["/gone"])[0]["value"] == [str(new)]


def test_names_and_settings_are_shown_as_text(tab, tmp_path):
    run = write_run(tmp_path / HOSTILE, None, status=f"{HOSTILE}\u202e")
    (run / "metrics.jsonl").mkdir()
    legend = tab.show([str(run)], 1)[0]
    assert "<img" not in legend and legend.count(html.escape(HOSTILE)) == 2
    assert "\u202e" not in legend and legend.encode("utf-8")
    assert "metrics.jsonl is not a file in this folder" in legend


def test_samples_are_shown_as_text_and_questions_once(tab, tmp_path):
    record = {"step": 1, "question": f"Q {HOSTILE}", "answer": "**5**", "completion": "[a](b)"}
    record["parts"] = {f"[a](b) {HOSTILE}": 1.0}
    run = write_run(tmp_path / "run", samples=[record] * 20)
    shown = tab.samples(str(run), 1)
    assert "<" not in shown and "](" not in shown and "**5**" not in shown
    assert shown.count("**Question**") == 1 and shown.count("**wrong**") == 16
    assert "4 more are in samples.jsonl" in shown
    assert tab.steps(str(run), None)["value"] == 1


def test_equal_settings_are_said_in_words(tab, tmp_path):
    a, b = str(write_run(tmp_path / "a")), str(write_run(tmp_path / "b"))
    assert tab.compare(a, b)[0].startswith("No difference")
    assert tab.compare(a, a)[0] == "Choose two runs."


# --- reports -------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The names of a text's elements in order, and their attributes by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes[tag] = dict(attrs)


def write_report(folder: Path, text: str = "<h1>Report</h1>") -> Path:
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(text, encoding="utf-8")
    return folder.resolve()


def test_reports_are_found_newest_first(tmp_path):
    write_report(tmp_path / "study" / "report")
    newer = write_report(tmp_path / "reports" / "x")
    os.utime(newer / "report.html", (2e9, 2e9))
    assert [report.name for report in find_reports([tmp_path])] == ["reports/x", "study/report"]


def test_a_page_is_framed_without_its_powers(tmp_path):
    page = write_report(tmp_path / "r", f'"></iframe><script>alert(1)</script>{HOSTILE} é')
    shown = frame(page / "report.html", 'a "title"')
    outside = Elements(shown)
    assert outside.names == ["iframe"]
    attributes = outside.attributes["iframe"]
    assert attributes["sandbox"] == "" and attributes["title"] == 'a "title"'
    page_text = attributes["srcdoc"]
    assert page_text is not None and page_text.endswith(f"{HOSTILE} é")
    inside = Elements(page_text)
    assert inside.names[:3] == ["meta", "base", "style"]  # before anything of the page's own
    policy = inside.attributes["meta"]["content"]
    assert policy is not None and policy.startswith("default-src 'none';")
    assert inside.attributes["base"]["href"] == "about:srcdoc"


def test_a_page_is_framed_light_for_the_app_darkens_it(tmp_path):
    template = Path(report_view.__file__).parents[2] / "reports" / "page.html.jinja"
    assert DARK in template.read_text(encoding="utf-8")
    page = write_report(tmp_path / "r", f"<style>@media {DARK} {{ p {{ color: red }} }}</style>")
    assert DARK not in html.unescape(frame(page / "report.html", "t"))


def test_a_report_outside_the_roots_is_refused(tmp_path):
    runs = write_report(tmp_path / "runs" / "r").parent
    outside = write_report(tmp_path / "outside")
    assert locate(str(runs / "r"), [runs]) == runs / "r" / "report.html"
    (runs / "link").mkdir()
    (runs / "link" / "report.html").symlink_to(outside / "report.html")
    for folder in (outside, runs / ".." / "outside", runs / "link", Path("/")):
        with pytest.raises(OutsideRoots, match="is not in a folder this app reads"):
            locate(str(folder), [runs])
    tab = report_view._ReportTab(AppOptions(runs=runs))
    words, download = tab.show(str(outside))
    assert "is not in a folder this app reads" in words and "<iframe" not in words
    assert not download["interactive"]


def test_a_report_that_is_gone_or_too_large_is_said(tmp_path, monkeypatch):
    page = write_report(tmp_path / "r") / "report.html"
    monkeypatch.setattr("kit.app.report.pages.LARGEST", 3)
    with pytest.raises(ResultsError, match="more than 0 MiB"):
        frame(page, "t")
    page.unlink()
    with pytest.raises(ResultsError, match="there is no report"):
        frame(page, "t")


def test_the_report_tab_offers_a_copy_to_download(tmp_path):
    tab = report_view._ReportTab(AppOptions(runs=tmp_path))
    assert "no report yet" in tab.look()[2]
    folder = write_report(tmp_path / "r", "<p>é</p>")
    shown, download = tab.show(str(folder))
    assert shown.startswith("<iframe") and download["interactive"]
    copy = Path(download["value"])
    assert copy.name == "report.html" and copy.read_text(encoding="utf-8") == "<p>é</p>"
    assert not copy.is_relative_to(tmp_path)


def test_reports_are_made_of_comparisons_and_of_runs_outside_them(tmp_path):
    write_run(tmp_path / "study" / "clip" / "seed-0")
    (tmp_path / "study" / "compare.json").write_text("{}")
    write_run(tmp_path / "alone")
    assert [source.name for source in find_sources([tmp_path])] == ["study", "alone"]


def test_a_report_never_replaces_another(tmp_path):
    run = write_run(tmp_path / "run", lines({"step": 1, "reward/mean": 0.5}), status="finished")
    into = tmp_path / "reports"
    first = make_report([str(run)], [tmp_path], into)
    second = make_report([str(run)], [tmp_path], into)
    assert (first, second) == (into / "run", into / "run-2")
    for folder in (first, second):
        assert "Report on run" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("config.yaml", "a: &a [1]\nb: *a\n", "YAML aliases"),
        ("run.json", "{", "run.json is not usable"),
        ("metrics.jsonl", "{bad\n{}\n", "line 1 is not a JSON object"),
    ],
)
def test_a_report_of_damaged_runs_is_refused_and_leaves_nothing(tmp_path, file, content, fault):
    run = write_run(tmp_path / "run")
    (run / file).write_text(content)
    with pytest.raises(ResultsError, match=fault):
        make_report([str(run)], [tmp_path], tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_a_report_that_fails_leaves_no_folder(tmp_path):
    a = write_run(tmp_path / "a" / "seed-0", status="finished")
    b = write_run(tmp_path / "b" / "seed-0", status="finished", model={"id": "other"})
    with pytest.raises(ResultsError):
        make_report([str(a), str(b)], [tmp_path], tmp_path / "reports")
    assert list((tmp_path / "reports").iterdir()) == []


def test_a_report_needs_something_below_the_roots(tmp_path):
    outside = write_run(tmp_path / "outside")
    (tmp_path / "runs").mkdir()
    with pytest.raises(ResultsError, match="at least one"):
        make_report([], [tmp_path / "runs"], tmp_path / "runs" / "reports")
    with pytest.raises(OutsideRoots):
        make_report([str(outside)], [tmp_path / "runs"], tmp_path / "runs" / "reports")
    assert list((tmp_path / "runs").iterdir()) == []


def test_no_event_of_the_tabs_is_offered_to_programs(tmp_path):
    with gr.Blocks() as page:
        training_view.build(AppOptions(runs=tmp_path))
        report_view.build(AppOptions(runs=tmp_path))
    visibilities = {event["api_visibility"] for event in page.config["dependencies"]}
    assert visibilities == {"private"}
