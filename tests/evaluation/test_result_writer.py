"""Result files without a model: what is kept, what is missing, what is refused."""

from __future__ import annotations

import itertools
import json

import pytest

from kit.config import DataConfig
from kit.errors import ConfigError, DataError, ResultsError
from kit.evaluation.result_writer import open_writer
from kit.evaluation.results import find_results, read_result, read_rows, result_path
from kit.evaluation.settings import EvalSettings
from kit.recipe import read_pairs
from kit.tasks.problems import load_problems

FACTS = {"versions": {}, "git": None, "command": "kit evaluate …", "started": "2030-01-01"}
TARGET = {
    "name": "mine",
    "run": "runs/mine",
    "adapter": "runs/mine/adapter",
    "adapter_sha256": "abc",
    "base": "embedded",
    "base_revision": None,
    "quantization": "nf4",
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "sums.jsonl"
    problems = [{"id": f"p{i}", "question": f"{i} + 1?", "answer": str(i + 1)} for i in range(6)]
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return DataConfig(name=str(path))


@pytest.fixture
def opened(tmp_path, data):
    """Opens the writer of `data`, with settings and other changes."""

    def open_(config=data, target=TARGET, overwrite=False, tag=None, **settings):
        asked = EvalSettings(**settings)
        return open_writer(
            result_path(tmp_path / "eval", "sums", tag),
            *(target, config, asked),
            lambda limit: load_problems(
                config.model_copy(update={"limit": limit}), seed=asked.seed
            ),
            tag=tag,
            overwrite=overwrite,
        )

    return open_


def row(key, **changes):
    """A finished row, right where the problem's number is even."""
    number = int(key[0][1:])
    return {
        "id": key[0],
        "temperature": key[1],
        "sample": key[2],
        "question": f"{number} + 1?",
        "answer": str(number + 1),
        "category": "",
        "difficulty": "",
        "completion": f"#### {number + 1 + number % 2}\u2028",  # a separator of lines, but no end
        "tokens": 3,
        "truncated": False,
        "strict_answer": str(number + 1 + number % 2),
        "lenient_answer": str(number + 1 + number % 2),
        "strict": number % 2 == 0,
        "lenient": number % 2 == 0,
        **changes,
    }


def fill(writer, count=None, finish=True):
    """Write the first `count` missing rows, or all."""
    writer.start("rev", "CPU", FACTS)
    writer.add([row(key) for key in sorted(writer.missing)[:count]], seconds=2.0, tokens=10)
    if finish and not writer.missing:
        writer.finish([{"temperature": t} for t in writer.settings.temperature])
    return writer


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "field", "value"),
    [
        (["temperature=0.4,0,0.2,0"], "temperature", [0, 0.2, 0.4]),
        (["temperature=[0, 0.2]"], "temperature", [0, 0.2]),
        (["temperature=1"], "temperature", [1]),
        (["samples=16", "temperature=1"], "samples", 16),
        (["limit=300"], "limit", 300),
        (["limit=null"], "limit", None),
        ([], "max_new_tokens", 512),
        (["seed=1", "seed=2"], "seed", 2),
    ],
)
def test_settings_are_read_from_the_command_line(pairs, field, value):
    assert getattr(read_pairs(EvalSettings, pairs), field) == value


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["temprature=1"], "unknown key 'temprature', did you mean 'temperature'?"),
        (["zzz=1"], "unknown key 'zzz', known keys: temperature, samples, max_new_tokens"),
        (["limit"], "'limit' must have the form key=value"),
        (["temperature=-0.1"], "temperature.0 = -0.1 is not allowed"),
        (["temperature=11"], "must be at most 10"),
        (["temperature=warm"], "temperature.0 = 'warm' is not allowed"),
        (["temperature=.nan"], "temperature.0 = nan is not allowed"),
        (["temperature=[]"], "temperature = [] is not allowed"),
        (["samples=4"], "samples = 4 needs a temperature above 0"),
        (["samples=0", "temperature=1"], "samples = 0 is not allowed"),
        (["limit=0", "max_new_tokens=0"], "max_new_tokens = 0 is not allowed"),
        (["top_p=0"], "top_p = 0 is not allowed"),
        (["split=validation"], "split = 'validation' is not allowed"),
    ],
)
def test_settings_are_closed_and_in_range(pairs, message):
    with pytest.raises(ConfigError) as refusal:
        read_pairs(EvalSettings, pairs)
    assert message in str(refusal.value)


# --- reading -------------------------------------------------------------------------------------


def test_names_of_result_files(tmp_path):
    assert result_path(tmp_path, "gsm8k") == tmp_path / "gsm8k.json"
    assert result_path(tmp_path, "own/set:easy", "v-2") == tmp_path / "own_set_easy.v-2.json"
    assert result_path(tmp_path, "../my data/hard.sums.jsonl") == tmp_path / "hard.sums.json"
    for tag in ("", "a.b", "../up"):
        with pytest.raises(ConfigError, match="a tag may have letters"):
            result_path(tmp_path, "gsm8k", tag)


def test_a_result_is_read_back(opened):
    writer = fill(opened(temperature=[0, 1], samples=2))
    result = read_result(writer.path)
    assert (result.name, result.base, result.temperatures) == ("mine", "embedded", [0, 1])
    assert result.settings["samples"] == 2
    assert result.at(1) == {"temperature": 1}
    with pytest.raises(ResultsError, match=r"no figures at temperature 0\.5; there are 0, 1"):
        result.at(0.5)
    assert len(result.rows()) == 6 * 3 and len(result.rows(0)) == 6
    assert [r["sample"] for r in result.rows(1)] == [0, 1] * 6
    assert result.rows(0)[0]["completion"] == "#### 1\u2028"
    assert [r.path for r in find_results(writer.path.parent)] == [writer.path]


def test_folders_without_results(tmp_path, opened):
    assert find_results(tmp_path / "nowhere") == []
    writer = fill(opened(tag="b"))
    fill(opened(tag="a"))
    for name, other in (("notes", [1]), ("judge", {"schema": 1}), ("x", {"schema": 1, "data": []})):
        (writer.path.parent / f"{name}.json").write_text(json.dumps(other))
    names = [result.path.name for result in find_results(writer.path.parent)]
    assert names == ["sums.a.json", "sums.b.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there are no results at"),
        ("{", "is not valid JSON"),
        ("[1]", "holds no results"),
        ('{"schema": 1, "strict": {}}', "holds no results"),
        ('{"schema": 1, "data": "gsm8k"}', "has schema 1, this kit reads 2"),
        ('{"schema": 2, "data": "gsm8k"}', "lacks status, tag, n, seen_in_training, target"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, message):
    run = tmp_path / "runs" / "mine"
    path = run / "eval" / "gsm8k.v2.json"
    path.parent.mkdir(parents=True)
    (run / "config.yaml").touch()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ResultsError, match=message) as refusal:
        read_result(path)
    replacing = "" if content is None else " --overwrite"  # of these, not of those without a tag
    assert str(refusal.value).endswith(f"kit evaluate {run} --data gsm8k --tag v2{replacing}")


def test_a_line_that_was_cut_off_is_no_row(opened):
    writer = fill(opened(), finish=False)
    completions = writer.path.with_suffix(".jsonl")
    whole = completions.read_bytes()
    rows = read_rows(completions)
    assert len(rows) == 6
    for cut in (1, 2, 40):  # the line break, the brace, within a character
        completions.write_bytes(whole[:-cut])
        assert read_rows(completions) == rows[:-1]
    completions.write_bytes(b"")
    assert read_rows(completions) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 3 is not usable"),
        (b"", "line 3 is not usable"),
        (b"\xff\xfe", "line 3 is not usable"),
        (b"[1]", "a row must be a JSON object"),
        (b'{"id": "p1", "temperature": 0.0}', "it lacks sample, question, answer"),
        (json.dumps(row(("p0", 0.0, 0))).encode(), r"\('p0', 0\.0, 0\) a second time"),
    ],
)
def test_any_other_line_must_be_a_row(opened, line, message):
    writer = fill(opened())
    completions = writer.path.with_suffix(".jsonl")
    lines = completions.read_bytes().split(b"\n")
    completions.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(ResultsError, match=message):
        read_rows(completions)
    with pytest.raises(ResultsError, match=message):
        opened()


# --- going on ------------------------------------------------------------------------------------


def test_a_new_evaluation_lacks_every_row(opened):
    writer = opened(temperature=[0, 0.5], samples=3, limit=2)
    assert len(writer.missing) == 2 * (1 + 3)
    assert {key[1:] for key in writer.missing} == {(0, 0), (0.5, 0), (0.5, 1), (0.5, 2)}
    assert writer.record["n"] == 2 and writer.record["status"] == "running"
    assert not writer.path.exists()  # nothing is written before the base is loaded
    writer.start("rev", "CPU", FACTS)
    started = read_result(writer.path)
    assert started.record["status"] == "running" and started.temperatures == []
    assert started.record["target"]["base_revision"] == "rev"


def test_an_interrupted_evaluation_lacks_the_rest(opened):
    before = fill(opened(limit=5), count=2)
    completions = before.path.with_suffix(".jsonl")
    whole = completions.read_bytes()
    completions.write_bytes(whole + b'{"id": "p4", "temp')  # killed while writing
    writer = opened(limit=5)
    assert len(writer.rows) == 2 and len(writer.missing) == 3
    fill(writer)
    assert completions.read_bytes().startswith(whole)
    assert len(read_rows(completions)) == 5
    # 2 + 2 seconds, 10 + 10 tokens
    assert writer.record["seconds"] == 4 and writer.record["tokens_per_second"] == 5
    assert writer.record["status"] == "finished"


@pytest.mark.parametrize(
    ("first", "then", "missing"),
    [
        ({}, {}, 0),
        ({"limit": 2}, {"limit": 5}, 3),
        ({"limit": 2}, {}, 4),
        ({}, {"limit": 2}, 0),  # more is there than was asked for
        ({}, {"temperature": [1.0]}, 6),
        ({"temperature": [0, 1], "samples": 2}, {}, 0),
        ({"temperature": [0, 1], "samples": 2}, {"temperature": [1], "samples": 4}, 12),
        ({"limit": 1}, {"limit": 2, "temperature": [0, 1], "samples": 2}, 1 + 4),
    ],
)
def test_an_evaluation_may_grow(opened, first, then, missing):
    fill(opened(**first))
    writer = opened(**then)
    assert len(writer.missing) == missing
    assert writer.record["status"] == ("running" if missing else "finished")
    fill(writer)
    for settings in (first, then):  # both are answered now
        assert not opened(**settings).missing


def test_problems_within_a_limit_are_among_those_within_a_larger_one(opened):
    chosen = [set(opened(limit=n).problems) for n in (1, 3, 5, 6)]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    assert chosen[1] != set(opened(limit=3, seed=1).problems)


@pytest.mark.parametrize(
    ("first", "then", "wanted"),
    [
        # 4 samples at 0.2 are there; 1 at 0.4 alone would leave a grid with a hole
        (
            {"temperature": [0.2], "samples": 4},
            {"temperature": [0.4]},
            "holds temperature=0.2 samples=4 no limit, which may only grow: ask for "
            "temperature=0.2,0.4 samples=4 no limit",
        ),
        ({}, {"temperature": [1], "limit": 2}, "ask for temperature=0.0,1.0 samples=1 no limit"),
        (
            {"limit": 2, "temperature": [1]},
            {"limit": 3, "temperature": [0]},
            "ask for temperature=0.0,1.0 samples=1 limit=3",
        ),
    ],
)
def test_rows_nobody_asked_for_are_not_sampled(opened, first, then, wanted):
    writer = fill(opened(**first))
    before = writer.path.read_bytes()
    with pytest.raises(ResultsError) as refusal:
        opened(**then)
    assert wanted in str(refusal.value) and "--tag NAME" in str(refusal.value)
    assert writer.path.read_bytes() == before
    assert len(opened(**then, tag="other").missing) == len(opened(**then, overwrite=True).missing)


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({"max_new_tokens": 64}, "settings.max_new_tokens: 512 -> 64"),
        ({"seed": 1}, "settings.seed: 0 -> 1"),
        ({"top_p": 0.9}, "settings.top_p: 1.0 -> 0.9"),
        ({"split": "train"}, "settings.split: 'test' -> 'train'"),
        ({"target": TARGET | {"adapter_sha256": "def"}}, "target.adapter_sha256: 'abc' -> 'def'"),
        ({"target": TARGET | {"base": "other"}}, "target.base: 'embedded' -> 'other'"),
        ({"target": TARGET | {"quantization": "int8"}}, "target.quantization: 'nf4' -> 'int8'"),
        ({"target": TARGET | {"base_revision": "r2"}}, "target.base_revision: 'rev' -> 'r2'"),
    ],
)
def test_results_of_other_settings_are_refused(opened, changes, listed):
    fill(opened())
    with pytest.raises(ResultsError) as refusal:
        opened(**changes)
    assert f"of other settings ({listed})" in str(refusal.value)
    assert "--tag" in str(refusal.value) and "--overwrite" in str(refusal.value)
    assert len(opened(**changes, overwrite=True).missing) == 6


def test_every_difference_is_listed(opened, data):
    fill(opened())
    other = data.model_copy(update={"system_prompt": "Answer.", "options": {"size": 3}})
    with pytest.raises(ResultsError) as refusal:
        opened(config=other, seed=4)
    for name in ("settings.system_prompt", "settings.problems.options.size", "settings.seed"):
        assert name in str(refusal.value)


def test_another_revision_is_refused_once_the_base_is_loaded(opened):
    fill(opened())
    writer = opened(temperature=[1])
    writer.check_revision("rev")
    writer.check_revision(None)  # a folder has none
    with pytest.raises(ResultsError, match=r"target\.base_revision: 'rev' -> 'other'"):
        writer.check_revision("other")


def test_a_run_may_be_moved_and_renamed(opened):
    fill(opened())
    moved = TARGET | {"name": "new", "run": "old/new", "adapter": "old/new/adapter"}
    writer = opened(target=moved)
    assert not writer.missing and writer.record["target"]["name"] == "new"


def test_overwriting_forgets_the_rows_when_it_starts(opened):
    before = fill(opened())
    completions = before.path.with_suffix(".jsonl")
    writer = opened(overwrite=True, seed=1)
    assert len(read_rows(completions)) == 6
    writer.start(None, "CPU", FACTS)
    assert not completions.exists()
    assert read_result(writer.path).settings["seed"] == 1


def test_the_hardware_of_every_part_is_named(opened):
    fill(opened(limit=4), count=2)
    writer = opened(limit=4)
    writer.start("rev", "GPU", FACTS | {"started": "2031-01-01"})
    assert writer.record["hardware"] == "CPU; then GPU"
    assert writer.record["started"] == "2030-01-01"


def test_problems_that_changed_are_noticed(opened, data, tmp_path):
    fill(opened())
    path = tmp_path / "sums.jsonl"
    path.write_text(path.read_text().replace("3 + 1?", "3 + 1 = ?"))
    with pytest.raises(ResultsError, match=r"an answer to 'p3', which is not the problem it was"):
        opened()
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(ResultsError, match="the data, or what leave_out names, have changed"):
        opened()


def test_problems_need_ids_of_their_own(opened, tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(path.read_text().replace("p5", "p4"))
    with pytest.raises(DataError, match="several problems with one id"):
        opened()


def test_completions_without_their_settings_are_refused(opened):
    writer = fill(opened())
    writer.path.unlink()
    with pytest.raises(ResultsError, match=r"is there without sums\.json"):
        opened()
    assert len(opened(overwrite=True).missing) == 6


def test_a_full_disk_is_an_error_of_one_line(opened, monkeypatch):
    writer = opened()
    writer.start(None, "CPU", FACTS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kit.evaluation.result_writer.append_json", full)
    with pytest.raises(ResultsError, match="No space left on device; once that is mended"):
        writer.add([row(("p0", 0.0, 0))], 1.0, 1)
    assert len(writer.missing) == 6


# --- two evaluations at once ---------------------------------------------------------------------


def test_a_second_evaluation_waits_its_turn(opened):
    first, second = opened(), opened()
    with first.claimed():
        with pytest.raises(ResultsError, match="another evaluation is writing"), second.claimed():
            raise AssertionError("not reached")
        fill(first)
    with (
        pytest.raises(ResultsError, match=r"has written .* since this one began"),
        second.claimed(),
    ):
        raise AssertionError("not reached")
    third = opened()
    assert not third.missing and third.record["status"] == "finished"
    with opened(tag="other").claimed():  # which are other files
        pass


def test_a_claim_that_fails_writes_nothing(opened, tmp_path):
    with opened().claimed(), pytest.raises(ResultsError), opened().claimed():
        raise AssertionError("not reached")
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["sums.json.lock"]


# --- results that were changed -------------------------------------------------------------------


def test_changed_figures_and_rows_are_refused(opened):
    writer = fill(opened())
    figures, completions = writer.path.read_text(), writer.path.with_suffix(".jsonl")
    rows = completions.read_text()
    writer.path.write_text(figures.replace('"temperature": 0.0', '"temperature": 0.5'))
    with pytest.raises(ResultsError, match="its figures were changed after they were counted"):
        read_result(writer.path)
    writer.path.write_text(figures)
    completions.write_text(rows.replace('"strict": false', '"strict": true', 1))
    with pytest.raises(ResultsError, match="was changed after its figures were counted"):
        read_result(writer.path).rows()
    with pytest.raises(ResultsError, match="was changed after its figures were counted"):
        opened(temperature=[0, 1])
    faults: list[str] = []
    assert len(read_rows(completions, faults)) == 6 and len(faults) == 1
    completions.write_text(rows)
    assert not opened().missing


def test_results_of_older_versions_are_read_without_digests(opened):
    writer = fill(opened())
    record = json.loads(writer.path.read_text())
    del record["digests"]
    writer.path.write_text(json.dumps(record))
    assert len(read_result(writer.path).rows()) == 6 and not opened().missing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 5}, "target is not usable"),
        ({"settings": []}, "settings is not"),
        ({"n": "x"}, "n is not usable"),
        ({"n": True}, "n is not usable"),
        ({"results": {}}, "results is not"),
        ({"results": [1]}, "its figures have no temperature"),
        ({"status": None}, "status is not usable"),
    ],
)
def test_results_of_wrong_types_are_refused(opened, changes, message):
    writer = fill(opened())
    writer.path.write_text(json.dumps(json.loads(writer.path.read_text()) | changes))
    with pytest.raises(ResultsError, match=message) as refusal:
        read_result(writer.path)
    assert "--overwrite" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [{"strict": None}, {"tokens": "x"}, {"sample": 0.5}, {"completion": 3}, {"truncated": 1}],
)
def test_a_row_of_wrong_types_is_refused(opened, changes):
    writer = fill(opened(), finish=False)
    completions = writer.path.with_suffix(".jsonl")
    lines = completions.read_text().split("\n")
    lines[2] = json.dumps(json.loads(lines[2]) | changes)
    completions.write_text("\n".join(lines))
    with pytest.raises(ResultsError, match=f"line 3 is not usable: its {next(iter(changes))}"):
        read_rows(completions)
