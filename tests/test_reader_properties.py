"""What the kit reads back, cut off, with flipped bits or full of anything: a value or one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kit.app.library import adapters
from kit.app.options import AppOptions
from kit.config import Config
from kit.errors import KitError, ResultsError
from kit.evaluation.results import (
    FIELDS,
    ROW_FIELDS,
    SCHEMA,
    Result,
    find_result,
    find_results,
    read_result,
)
from kit.evaluation.results import read_rows as read_completions
from kit.preferences.gather import gather_labelled, gather_pairs
from kit.preferences.judge_models import Reply
from kit.preferences.judgements import Question, collect
from kit.preferences.records import PreferencePair, Provenance, Writer
from kit.preferences.tallies import tally
from kit.preferences.votes import Message, Side, Vote, VoteSettings, append_vote, read_votes
from kit.reading import read_metrics
from kit.recipe import build_config
from kit.run_json import status_of
from kit.runs import RunFolder, append_json

# --- files as the kit writes them ----------------------------------------------------------------


def written(write: Callable[[Path], Any], folder: Path) -> bytes:
    path = folder / "file"
    write(path)
    return path.read_bytes()


def a_vote() -> Vote:
    sides = [Side(name, f"runs/{name}", "0" * 64, f"{name} says 7", True) for name in ("a", "b")]
    settings = VoteSettings(temperature=1.0, max_new_tokens=64, seed=0)
    prompt = [Message("user", "3 + 4?")]
    return Vote(
        **{"question": "3 + 4?", "prompt": prompt, "answer": "7", "left": sides[0]},
        **{"right": sides[1], "settings": settings, "vote": "left", "blind": True},
    )


CONFIG = build_config({"model": {"id": "embedded"}, "data": {"name": "gsm_symbolic"}})
RECIPE = yaml.safe_dump(CONFIG.model_dump(mode="json")).encode()
RUN = json.dumps({"status": "running", "process": {"host": "here", "pid": 1}}).encode()
METRICS = b"".join(json.dumps({"step": i, "loss": 0.5}).encode() + b"\n" for i in range(3))
ADAPTER = json.dumps({"base_model_name_or_path": "embedded", "r": 4, "lora_alpha": 8}).encode()
RESULT = json.dumps(
    {
        **dict.fromkeys(FIELDS),
        **{"status": "running", "seconds": 0.0, "n": 1},
        **{"schema": SCHEMA, "data": "gsm8k", "target": {"name": "a", "base": "embedded"}},
        **{"settings": {"temperatures": [0.0]}, "results": [{"temperature": 0.0}]},
    }
).encode()
ROW = {
    **dict.fromkeys(ROW_FIELDS, "x"),
    **{"temperature": 0.0, "sample": 0, "tokens": 3, "truncated": False},
    **{"strict": True, "lenient": True},
}
ROWS = b"".join(json.dumps({**ROW, "sample": i}).encode() + b"\n" for i in range(3))


# --- what may have become of them ----------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
anything = st.one_of(
    st.binary(max_size=100),
    plain.map(lambda value: json.dumps(value).encode()),
    st.lists(plain).map(lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows)),
    st.sampled_from([b"", b"\0", b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"\xff\n", b"NaN\n"]),
)


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """Cut off, with a few bits flipped, with one value replaced, or not the file at all."""
    how = draw(st.sampled_from(["cut", "flip", "replace", "insert", "anything"]))
    if how == "anything":
        return draw(anything)
    at = draw(st.integers(0, len(original) - 1))
    if how == "cut":
        return original[:at]
    if how == "insert":
        return original[:at] + draw(anything) + original[at:]
    if how == "replace":
        return draw(_one_value_replaced(original))
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


@st.composite
def _one_value_replaced(draw: st.DrawFn, original: bytes) -> bytes:
    """A mapping, or lines of them, with another value at one place."""
    lines = original.split(b"\n") if original.startswith(b"{") else [original]
    number = draw(st.integers(0, len(lines) - 1))
    record = yaml.safe_load(lines[number])
    inner = record
    while isinstance(inner, dict) and inner:
        key = draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or draw(st.booleans()):
            inner[key] = draw(plain)
            break
        inner = inner[key]
    lines[number] = json.dumps(record).encode()
    return b"\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def value_or_sentence(read: Callable[[], Any]) -> Any:
    """What it returns; None where it refuses in one line."""
    try:
        return read()
    except KitError as error:
        assert str(error) and "\n" not in str(error)
        return None


# --- run folders ---------------------------------------------------------------------------------


@given(damaged(METRICS), st.booleans())
def test_metrics(folder, content, lenient):
    path = folder / "metrics.jsonl"
    path.write_bytes(content)
    faults: list[str] | None = [] if lenient else None
    records = value_or_sentence(lambda: read_metrics(path, faults))
    if records is not None:
        assert all(isinstance(record, dict) for record in records)
        complete = content.count(b"\n")
        assert len(records) + len(faults or []) == complete
    assert not lenient or records is not None


@given(damaged(RUN))
def test_the_description_and_status_of_a_run(folder, content):
    (folder / "run.json").write_bytes(content)
    run = RunFolder(folder)
    assert isinstance(value_or_sentence(run.read_description) or {}, dict)
    assert isinstance(value_or_sentence(lambda: run.status) or "", str)


@given(st.dictionaries(st.sampled_from(["status", "process"]), plain))
def test_a_status_is_a_word(record):
    assert isinstance(status_of(record), str)


@given(damaged(RECIPE))
@pytest.mark.slow
def test_the_configuration_of_a_run(folder, content):
    (folder / "config.yaml").write_bytes(content)
    config = value_or_sentence(RunFolder(folder).load_config)
    assert config is None or isinstance(config, Config)


@given(damaged(METRICS), st.integers(0, 3))
def test_forgetting_later_steps(folder, content, steps):
    run = RunFolder(folder / "forgets")
    run.path.mkdir(exist_ok=True)
    run.metrics.write_bytes(content)
    value_or_sentence(lambda: run.truncate(steps))


# --- results -------------------------------------------------------------------------------------


@given(damaged(RESULT))
def test_results(folder, content):
    path = folder / "eval" / "gsm8k.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert isinstance(value_or_sentence(lambda: find_result(path)), Result | None)
    assert isinstance(value_or_sentence(lambda: find_results(path.parent)) or [], list)
    result = value_or_sentence(lambda: read_result(path))
    if result is not None:
        assert isinstance(result, Result)
        value_or_sentence(lambda: (result.name, result.base, result.data, result.settings))
        for temperature in value_or_sentence(lambda: result.temperatures) or []:
            value_or_sentence(lambda t=temperature: result.at(t))


@given(damaged(ROWS), st.booleans())
def test_completions(folder, content, lenient):
    path = folder / "gsm8k.jsonl"
    path.write_bytes(content)
    faults: list[str] | None = [] if lenient else None
    rows = value_or_sentence(lambda: read_completions(path, faults))
    assert not lenient or rows is not None
    for row in rows or []:
        assert set(ROW_FIELDS) <= set(row)


# --- votes and judgements ------------------------------------------------------------------------


@given(st.data())
def test_votes(folder, data):
    original = written(lambda path: append_vote(path, a_vote()), folder)
    (folder / "file").unlink()
    path = folder / "votes.jsonl"
    path.write_bytes(data.draw(damaged(original)))
    votes, corrupt = read_votes(path)
    assert len(votes) + corrupt == len(list(filter(None, path.read_bytes().split(b"\n"))))
    assert sum(t.first_wins + t.second_wins for t in tally(votes)) <= len(votes)
    assert_gathers(path)


@given(st.data())
def test_preferences(folder, data):
    prompt = (Message("system", "Be brief."), Message("user", "3 + 4?"))
    origin = Provenance(kind="vote", by="anna", writers=(Writer("a", None), Writer("b", "0" * 64)))
    line = json.dumps(PreferencePair(prompt, "7", "8", origin).line()).encode() + b"\n"
    path = folder / "preferences.jsonl"
    path.write_bytes(data.draw(damaged(line * 2)))
    assert_gathers(path)


def assert_gathers(path):
    """Either form of the preferences in a file can be written again, or an error says why not."""
    for gather in (gather_pairs, gather_labelled):
        try:
            found = gather(str(path))
        except KitError as error:
            assert "\n" not in str(error)
        else:
            text = "".join(json.dumps(e.line(), ensure_ascii=False) for e in found.examples)
            assert text.encode() is not None and "\n" not in "".join(found.words)


class Scripted:
    """A judge that always says yes."""

    signature = "scripted"

    def ask(self, messages):
        yield from ((i, Reply("yes", None, 1, 1)) for i in range(len(messages)))


@given(st.data())
def test_judgements(folder, data):
    questions = [Question(("a", 0.0, i), None, [{"role": "user", "content": "?"}]) for i in (0, 1)]
    path = folder / "judge.jsonl"
    path.unlink(missing_ok=True)
    collect(Scripted(), questions, path, lambda text: 1)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        found = collect(Scripted(), questions, path, lambda text: 1)
    except ResultsError as error:  # of another judge
        assert "\n" not in str(error)
    else:
        assert [judgement.status for judgement in found] == ["judged", "judged"]


# --- the app's list ------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(["config.yaml", "run.json", "adapter_config.json"]))
def test_the_apps_list_of_adapters(folder, data, spoilt):
    run = folder / "listed" / "run"
    adapter = run / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    files = {
        run / "config.yaml": RECIPE,
        run / "run.json": RUN,
        adapter / "adapter_config.json": ADAPTER,
        adapter / "adapter_model.safetensors": b"",
    }
    for path, content in files.items():
        path.write_bytes(data.draw(damaged(content)) if path.name == spoilt else content)
    options = AppOptions(runs=run.parent)
    found = value_or_sentence(lambda: adapters.find(options))
    assert found is not None and len(found.choices) + len(found.unusable) >= 2


def test_the_files_are_read_as_they_were_written(folder):
    """Else the tests above would damage what is refused anyway."""
    path = folder / "whole.jsonl"
    path.write_bytes(METRICS)
    assert len(read_metrics(path)) == 3
    append_json(path, [{"step": 3}])
    assert len(read_metrics(path)) == 4
    path.write_bytes(ROWS)
    assert len(read_completions(path)) == 3
    path.with_suffix(".json").write_bytes(RESULT)
    assert read_result(path.with_suffix(".json")).temperatures == [0.0]
    run = folder / "whole"
    run.mkdir()
    (run / "config.yaml").write_bytes(RECIPE)
    assert RunFolder(run).load_config() == CONFIG
