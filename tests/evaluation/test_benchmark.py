"""Evaluation: figures by hand; rows that do not depend on company, interruption or growth."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kit.config import DataConfig, ModelConfig
from kit.errors import ConfigError, DataError, ResultsError
from kit.evaluation import sampling
from kit.evaluation.benchmark import benchmark, table
from kit.evaluation.figures import summarize
from kit.evaluation.results import FIELDS, ROW_FIELDS, read_result, read_rows
from kit.evaluation.sampling import row_seed
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import Subject
from kit.model.adapter_files import adapter_sha256
from kit.recipe import build_config, read_guidelines
from kit.runs import RunFolder
from kit.tasks.problems import load_problems
from kit.tasks.verifiers import LatexVerifier, NumberVerifier

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("KIT_DATA_DIR", ROOT.parent / "shared" / "data"))
MODEL = ModelConfig(id="embedded")
PROMPT = DataConfig(name="x").system_prompt


# --- figures -------------------------------------------------------------------------------------


def answer(problem, number, right, said, tokens=10, **changes):
    """A row whose completion says `said` (None: nothing) in the strict format."""
    return {
        "id": problem,
        "temperature": 0.5,
        "sample": number,
        "question": "How much?",
        "answer": "7",
        "category": "sums",
        "difficulty": "",
        "completion": "" if said is None else f"#### {said}",
        "tokens": tokens,
        "truncated": said is None,
        "strict_answer": said,
        "lenient_answer": said,
        "strict": right,
        "lenient": right,
        **changes,
    }


ROWS = [
    answer("a", 0, True, "0.5", tokens=4),
    answer("a", 1, True, "1/2", tokens=6),
    answer("a", 2, False, "3", tokens=8),
    answer("a", 3, False, "4", tokens=10),
    answer("b", 0, False, "9", tokens=12, category="11 steps"),
    answer("b", 1, False, "9.0", tokens=14, category="11 steps"),
    answer("b", 2, True, "7", tokens=16, category="11 steps"),
    answer("b", 3, False, None, tokens=90, category="11 steps"),
    *(answer("c", i, True, "7", tokens=20, category="2 steps") for i in range(3)),
    answer("c", 3, False, None, tokens=20, category="2 steps", lenient=True, lenient_answer="7"),
]


def test_figures_by_hand():
    figures = summarize(ROWS, numbers=True)
    assert (figures["temperature"], figures["samples"]) == (0.5, 4)

    def counted(name):
        return figures[name]["count"], figures[name]["n"], figures[name]["value"]

    assert counted("strict") == (6, 12, 0.5)
    assert counted("lenient") == (7, 12, 7 / 12)
    assert counted("format") == (10, 12, 10 / 12)
    assert counted("truncated") == (2, 12, 2 / 12)
    # sum 240; sorted 4 6 8 10 12 14 16 20 20 20 20 90: the median between 14 and 16, 95 % at
    # position 0.95 * 11 = 10.45, so 20 + 0.45 * 70; squared deviations from 20 sum to
    # 256 + 196 + 144 + 100 + 64 + 36 + 16 + 4900 = 5712, over 11
    tokens = figures["tokens"]
    assert tokens["mean"] == 20 and tokens["median"] == 15 and tokens["max"] == 90
    assert tokens["p95"] == pytest.approx(51.5, abs=1e-9)
    assert tokens["sd"] == pytest.approx((5712 / 11) ** 0.5, abs=1e-9)


def test_pass_and_majority_by_hand():
    figures = summarize(ROWS, numbers=True)
    strict = {k: e["value"] for k, e in figures["pass_at"]["strict"].items()}
    # right: a 2, b 1, c 3 of 4. k=2: 1 - 1/6, 1 - 3/6, 1 - 0/6
    assert strict == pytest.approx({"1": 0.5, "2": (5 / 6 + 3 / 6 + 1) / 3, "4": 1}, abs=1e-12)
    assert figures["pass_at"]["lenient"]["1"]["value"] == pytest.approx(7 / 12, abs=1e-12)
    votes = {k: e["value"] for k, e in figures["majority_at"]["strict"].items()}
    # a: 0.5 and 1/2 are one answer and win; b: 9 and 9.0 win and are wrong; c: 7 wins
    assert votes == pytest.approx({"1": 2 / 3, "2": 2 / 3, "4": 2 / 3}, abs=1e-12)
    # as texts a's first two tie and are both right; of all four two are right
    texts = summarize(ROWS, numbers=False)["majority_at"]["strict"]
    assert texts["2"]["value"] == pytest.approx((1 + 0 + 1) / 3, abs=1e-12)
    # b: 9, 9.0 and 7 tie, and one of three is right
    assert texts["4"]["value"] == pytest.approx((2 / 4 + 1 / 3 + 1) / 3, abs=1e-12)


def test_slices_count_problems_and_sort_numbers():
    slices = summarize(ROWS, numbers=True)["slices"]
    assert list(slices["category"]) == ["2 steps", "11 steps", "sums"]
    part = slices["category"]["11 steps"]
    assert part["n"] == 1
    assert (part["strict"]["count"], part["strict"]["n"]) == (1, 4)
    assert slices["category"]["2 steps"]["lenient"]["value"] == 1
    assert slices["difficulty"] == {}  # no problem has one


def test_the_order_of_rows_decides_nothing():
    assert summarize(ROWS[::-1], numbers=True) == summarize(ROWS, numbers=True)


def test_one_greedy_sample_is_its_own_majority():
    rows = [row | {"temperature": 0.0} for row in ROWS if row["sample"] == 0]
    figures = summarize(rows, numbers=True)
    assert figures["samples"] == 1
    for kind in ("pass_at", "majority_at"):
        assert list(figures[kind]["strict"]) == ["1"]
        assert figures[kind]["strict"]["1"]["value"] == figures["strict"]["value"] == 2 / 3
    assert list(summarize(ROWS[:4] * 1, numbers=True)["pass_at"]["strict"]) == ["1", "2", "4"]


def test_seeds_differ_by_problem_and_sample_alone():
    seeds = {row_seed(s, p, n) for s in (0, 1) for p in ("test/1", "test/2") for n in (0, 1)}
    assert len(seeds) == 8
    # pinned: existing results could not be continued if it changed
    assert row_seed(3, "test/1", 2) == (3, 0xCAD4A5BE62BA01BF, 2)


# --- on the embedded model -----------------------------------------------------------------------


@pytest.fixture
def targets(adapters, tmp_path):
    """The base and both adapters, with results in a folder each."""

    def make(*names):
        return [
            Subject(
                name,
                MODEL,
                None if name == "base" else str(adapters / name),
                PROMPT,
                tmp_path / name / "eval",
            )
            for name in names
        ]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six problems of the embedded model's own kind, three of them with a difficulty."""
    config = DataConfig(name="gsm_symbolic", options={"size": 40})
    problems = list(load_problems(config, "test").problems)[:6]
    path = tmp_path_factory.mktemp("data") / "six.jsonl"
    columns = ("id", "question", "answer", "category")
    lines = [
        {key: problem[key] for key in columns} | {"difficulty": "hard" if i % 2 else ""}
        for i, problem in enumerate(problems)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [DataConfig(name=str(path))]


def settings(**changes):
    return EvalSettings(**{"max_new_tokens": 12, **changes})


def by_key(result):
    return {(row["id"], row["temperature"], row["sample"]): row for row in result.rows()}


def figures(result):
    return result.record["results"]


@pytest.mark.smoke
def test_all_targets_together_give_what_each_gives_alone(base, targets, data, tmp_path):
    grid = settings(temperature=[0, 0.8], samples=2)
    three = targets("base", "first", "second")
    copy = replace(three[1], name="copy", results=tmp_path / "copy" / "eval")
    *together, copied = benchmark([*three, copy], data, grid, base=base)
    assert by_key(copied) == by_key(together[1])  # equal adapters face the same random numbers
    assert not [name for name, _ in base.model.named_parameters() if "lora" in name]
    assert [result.name for result in together] == ["base", "first", "second"]
    alone = [
        benchmark(targets(name), data, grid, base=base, tag="alone")[0]
        for name in ("base", "first", "second")
    ]
    for one, other in zip(together, alone, strict=True):
        assert len(by_key(one)) == 6 * (1 + 2)
        assert by_key(one) == by_key(other)
        assert figures(one) == figures(other)
    texts = [[row["completion"] for row in by_key(result).values()] for result in together]
    assert texts[0] != texts[1] != texts[2] != texts[0]  # the adapters do make a difference

    record = together[1].record
    assert record["status"] == "finished" and record["n"] == 6
    assert record["target"]["adapter_sha256"] == adapter_sha256(record["target"]["adapter"])
    assert record["tokens_per_second"] > 0
    shown = table(together)
    assert len(re.findall(r"^(?:base|first|second) .*%", shown, re.M)) == 3 * 2
    assert shown.count("pass@2") == 3 and str(together[0].path) in shown
    assert "(test)" not in shown and "followed" not in shown
    record["settings"]["split"] = "train"
    record["results"][0]["adherence"] = {"concise": {"value": 0.5, "n": 6}}
    shown = table(together)
    assert shown.count("(train)") == 2 and shown.count("concise 50.0% followed") == 1


@pytest.mark.smoke
def test_samples_are_counted_as_the_rows_say(base, targets, data):
    (result,) = benchmark(
        targets("base"), data, settings(temperature=[1], samples=4, max_new_tokens=80), base=base
    )
    rows, figures = result.rows(1.0), result.at(1.0)
    by_problem = {}
    for row in rows:
        by_problem.setdefault(row["id"], []).append(row["lenient"])
    right = [sum(verdicts) for verdicts in by_problem.values()]
    assert len(right) == 6 and 0 < sum(right) < 24 and len(set(right)) > 1  # worth counting
    assert figures["lenient"]["count"] == sum(right)
    # of 4 samples 6 pairs can be drawn; with c right ones (4 - c)(3 - c) / 2 of them are all wrong
    pairs = [1 - (4 - c) * (3 - c) / 2 / 6 for c in right]
    assert figures["pass_at"]["lenient"]["2"]["value"] == pytest.approx(sum(pairs) / 6, abs=1e-12)
    assert figures["pass_at"]["lenient"]["4"]["value"] == pytest.approx(
        sum(c > 0 for c in right) / 6, abs=1e-12
    )
    assert figures["tokens"]["max"] == max(row["tokens"] for row in rows)
    assert figures["slices"]["difficulty"]["hard"]["n"] == 3
    assert len({row["completion"] for row in rows}) > 6  # the samples of a problem differ


@pytest.mark.smoke
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, pytest.param(RuntimeError, marks=pytest.mark.slow)]
)
def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(
    base, targets, data, monkeypatch, caplog, error
):
    grid = settings(temperature=[0, 0.8])
    pair = targets("base", "first")
    whole = benchmark(pair, data, grid, base=base, tag="whole")
    problems = load_problems(data[0], "test").problems
    longest = max(len(base.prompt_ids(problem["prompt"])) for problem in problems)
    budget = 4 * (longest + grid.max_new_tokens)  # four rows of the longest problem
    monkeypatch.setattr(sampling, "CHUNK_TOKENS", {"cpu": budget})
    judge, calls = sampling.judge, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # in the second chunk, which holds rows of both
            raise error
        return judge(*arguments)

    monkeypatch.setattr(sampling, "judge", failing)
    with pytest.raises(error):
        benchmark(pair, data, grid, base=base)
    assert ("stopped; 4 of 24 answers are written" in caplog.text) == (error is KeyboardInterrupt)
    assert not [name for name, _ in base.model.named_parameters() if "lora" in name]
    monkeypatch.setattr(sampling, "judge", judge)
    for target in pair:
        path = target.results / "six.json"
        assert read_result(path).record["status"] == "running"
        kept = path.with_suffix(".jsonl")
        assert 0 < len(read_rows(kept)) < 12
        with kept.open("a") as file:
            file.write('{"id": "cut o')
    written = [(target.results / "six.jsonl").read_bytes() for target in pair]
    resumed = benchmark(pair, data, grid, base=base)
    for one, other, before in zip(whole, resumed, written, strict=True):
        assert by_key(one) == by_key(other)
        assert figures(one) == figures(other)
        after = other.path.with_suffix(".jsonl").read_bytes()
        assert after.startswith(before.removesuffix(b'{"id": "cut o')) and b"cut o" not in after
        assert other.record["status"] == "finished"


@pytest.mark.smoke
def test_growing_keeps_every_row(base, targets, data, monkeypatch):
    (result,) = benchmark(targets("first"), data, settings(limit=3), base=base)
    completions = result.path.with_suffix(".jsonl")
    before, files = completions.read_bytes(), result.path.read_bytes()
    sampled = []
    sample = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *a: sampled.extend(a[1]) or sample(*a))
    for grown, total in (
        (settings(limit=3), 3),
        (settings(limit=5), 5),
        (settings(temperature=[0, 0.9], samples=2), 6 + 12),
        (settings(temperature=[0.9], samples=3), 6 + 18),
        (settings(), 6 + 18),
    ):
        there = len(read_rows(completions))
        (result,) = benchmark(targets("first"), data, grown, base=base)
        assert completions.read_bytes().startswith(before)
        before = completions.read_bytes()
        assert len(read_rows(completions)) == total
        assert len(sampled) == total - there
        sampled.clear()
        if total == 3:
            assert result.path.read_bytes() == files  # nothing was done, nothing is rewritten
    assert result.temperatures == [0, 0.9]
    assert result.at(0.9)["samples"] == 3 and result.at(0)["samples"] == 1
    (anew,) = benchmark(
        targets("first"), data, settings(temperature=[0, 0.9], samples=3), base=base, tag="anew"
    )
    assert by_key(anew) == by_key(result)  # however it came about
    assert figures(anew) == figures(result)


@pytest.mark.smoke
def test_targets_may_be_at_different_points(base, targets, data):
    (before,) = benchmark(targets("base"), data, settings(temperature=[0, 0.9]), base=base)
    files = before.path.read_bytes()
    results = benchmark(targets("base", "first"), data, settings(), base=base)
    assert [len(result.rows()) for result in results] == [12, 6]
    assert before.path.read_bytes() == files


@pytest.mark.smoke
def test_rows_that_were_never_counted_are_counted_without_the_model(
    base, targets, data, monkeypatch
):
    """Killed after the last row was written and before the figures were."""
    (result,) = benchmark(targets("base"), data, settings(limit=2), base=base)
    running = result.record | {"status": "running", "results": [], "digests": None}
    result.path.write_text(json.dumps(running))
    monkeypatch.setattr("kit.evaluation.benchmark.load_base", None)
    (again,) = benchmark(targets("base"), data, settings(limit=2))
    assert again.record == result.record


@pytest.mark.smoke
def test_another_adapter_in_the_same_place_is_refused(base, targets, adapters, data):
    (target,) = targets("first")
    (result,) = benchmark([target], data, settings(limit=2), base=base)
    before = result.path.with_suffix(".jsonl").read_bytes()
    other = Subject("first", MODEL, str(adapters / "second"), PROMPT, target.results)
    with pytest.raises(ResultsError, match=r"target\.adapter_sha256: .* -> .*--tag NAME"):
        benchmark([other], data, settings(limit=2), base=base)
    assert result.path.with_suffix(".jsonl").read_bytes() == before
    (beside,) = benchmark([other], data, settings(limit=2), base=base, tag="second")
    assert beside.path.name == "six.second.json"
    (replaced,) = benchmark([other], data, settings(limit=2), base=base, overwrite=True)
    assert by_key(replaced) == by_key(beside)
    assert replaced.path == result.path


@pytest.mark.smoke
def test_much_truncation_is_said(base, targets, data, caplog):
    benchmark(targets("base"), data, settings(max_new_tokens=2), base=base)
    assert "100 % of the answers are cut off at max_new_tokens=2" in caplog.text
    caplog.clear()
    benchmark(targets("base"), data, settings(max_new_tokens=200), base=base, tag="long")
    assert "cut off" not in caplog.text


@pytest.mark.smoke
def test_what_is_wrong_is_said_before_anything_is_written(base, targets, data):
    with pytest.raises(
        DataError, match=r"unknown data set 'gsm9k', did you mean 'gsm8k'\?.*math500"
    ):
        benchmark(targets("base"), [*data, DataConfig(name="gsm9k")], settings(), base=base)
    with pytest.raises(ConfigError, match=r"two data sets would share .*six\.json"):
        benchmark(targets("base"), [*data, *data], settings(), base=base)
    (target,) = targets("base")
    other = Subject("x", ModelConfig(id="other"), None, PROMPT, target.results)
    with pytest.raises(ConfigError, match="base is other, but the loaded one is embedded"):
        benchmark([other], data, settings(), base=base)
    assert not target.results.exists()


@pytest.mark.smoke
def test_the_documentation_names_every_field_and_no_other(base, targets, data):
    guided = [replace(one, guidelines=read_guidelines("concise")) for one in targets("first")]
    (result,) = benchmark(guided, data, settings(temperature=[1], samples=3, limit=2), base=base)
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    whole, figures, rows = (documented(table) for table in re.findall(r"(?:^\|.*\n)+", text, re.M))
    record = result.record
    nested = {f"{key}.{name}" for key in ("target", "settings") for name in record[key]}
    now_and_then = {"compared_in_training", "settings.leave_out"}
    assert whole - now_and_then == (record.keys() - {"target", "settings"}) | nested
    assert figures == result.at(1.0).keys()
    assert all(row.keys() == rows for row in result.rows())
    # and what the code takes for granted is what it writes
    assert {*FIELDS, "digests", "guidelines"} == record.keys() and set(ROW_FIELDS) == rows

    entry = result.at(1.0)
    lengths = re.search(r"^\| `tokens` \|(.*)$", text, re.M).group(1)
    assert set(re.findall(r"`(\w+)`", lengths)) == entry["tokens"].keys()
    share = re.search(r"Shares are `(.*?)`", text).group(1)
    assert set(re.findall(r'"(\w+)"', share)) == entry["strict"].keys()
    assert list(entry["pass_at"]["strict"]) == list(entry["majority_at"]["lenient"])
    assert list(entry["pass_at"]["lenient"]) == ["1", "2", "3"]


def documented(table):
    """Names in a table's first column; '.name' belongs to the group named before it."""
    names, group = set(), ""
    for line in table.splitlines()[2:]:
        for name in re.findall(r"`([\w.]+)`", line.split("|")[1]):
            group = name.partition(".")[0] or group
            names.add(group + name if name.startswith(".") else name)
    return names


# --- real data -----------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "gsm8k").is_dir(), reason=f"no local copies of data in {REAL}")
@pytest.mark.parametrize(
    ("name", "n", "verifier", "categories", "difficulties"),
    [
        ("gsm8k", 1319, NumberVerifier, ["2 steps", "3 steps", "4 steps"], []),
        ("svamp", 1000, NumberVerifier, ["Addition", "Common-Division", "Multiplication"], []),
        ("asdiv", 2092, NumberVerifier, ["Addition", "Algebra-1"], ["grade 1", "grade 2"]),
        ("math500", 500, LatexVerifier, ["Algebra", "Counting & Probability"], ["level 1"]),
    ],
)
def test_real_data_have_slices(name, n, verifier, categories, difficulties):
    problem_set = load_problems(DataConfig(name=name, data_dir=str(REAL)), "test")
    problems = problem_set.problems
    assert len(set(problems["id"])) == len(problems) == n
    assert isinstance(problem_set.verifier, verifier)
    rows = [
        answer(p["id"], 0, True, p["answer"], category=p["category"], difficulty=p["difficulty"])
        for p in problems
    ]
    slices = summarize(rows, numbers=False)["slices"]
    assert list(slices["category"])[: len(categories)] == categories
    assert list(slices["difficulty"])[: len(difficulties)] == difficulties
    for kind in ("category", "difficulty"):
        counted = sum(part["n"] for part in slices[kind].values())
        assert counted == (n if slices[kind] else 0)


# --- problems whose answers were compared --------------------------------------------------------


@pytest.mark.smoke
def test_problems_of_preferences_are_said_and_can_be_left_out(
    base, adapters, data, tmp_path, caplog
):
    """Of an adapter that was trained on preferences about two of the six problems."""
    problems = load_problems(data[0], "test").problems
    config = build_config(
        {
            "method": "dpo",
            "model": {"id": "embedded"},
            "data": {"name": "gsm_symbolic"},
            "preferences": {"source": "votes.jsonl"},
        }
    )
    run = RunFolder(tmp_path / "run")
    run.open(config, resume=False).release()
    shutil.copytree(adapters / "first", run.adapter)
    chats = [[{"role": "user", "content": question}] for question in problems["question"][2:4]]
    run.keep_preferences([{"prompt": chat, "chosen": "a", "rejected": "b"} for chat in chats])
    trained = Subject.of_run("voted", run, MODEL, config)
    bare = Subject("base", MODEL, None, PROMPT, tmp_path / "base" / "eval")

    whole, plain = benchmark([trained, bare], data, settings(), base=base)
    assert whole.record["compared_in_training"] == problems["id"][2:4]
    assert whole.record["seen_in_training"] == 2
    assert "compared_in_training" not in plain.record and "leave_out" not in plain.settings
    said = r"2 of these 6 problems of .* were in the preferences that voted was trained on"
    assert re.search(said, caplog.text) and f"leave_out={run.path} leaves" in caplog.text

    others = settings(leave_out=str(run.path))
    with pytest.raises(ResultsError, match=r"other settings.*leave_out.*--tag"):
        benchmark([trained, bare], data, others, base=base)
    rest, also = benchmark([trained, bare], data, others, base=base, tag="held-out")
    left = [*problems["id"][:2], *problems["id"][4:]]
    assert sorted(row["id"] for row in rest.rows()) == sorted(left) and rest.record["n"] == 4
    assert sorted(row["id"] for row in also.rows()) == sorted(left)
    assert rest.record["seen_in_training"] == 0 and rest.record["compared_in_training"] == []
    assert rest.settings["leave_out"] == [str(run.path)]
    shared = {key: row for key, row in by_key(whole).items() if key[0] in left}
    assert by_key(rest) == shared  # what is left out changes no other answer

    votes = tmp_path / "votes.jsonl"
    votes.write_text(json.dumps({"prompt": chats[0]}) + "\n")
    grows = settings(leave_out=str(votes))
    benchmark([bare], data, grows, base=base, tag="votes")
    with votes.open("a") as file:
        file.write(json.dumps({"prompt": chats[1]}) + "\n")
    with pytest.raises(ResultsError, match="or is left out now; the data, or what leave_out"):
        benchmark([bare], data, grows, base=base, tag="votes")
