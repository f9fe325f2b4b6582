"""Browsing stored results: what is found, paired, filtered, refused and exported, by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from markdown_it import MarkdownIt

from kit.app.browse import view as browse_view
from kit.app.browse.layout import Parts, bullets, counts_table
from kit.app.browse.matching import comparable, differences, explain, first_choice, nearest
from kit.app.browse.pairs import Case, Filter, Pairing, compared, pair_up, select
from kit.app.compare.comparison import Shown
from kit.app.compare.export_view import ExportView
from kit.app.compare.stored import open_reading, stored_pairs
from kit.app.exports import (
    ComparedPair,
    ComparedSide,
    comparator_json,
    pair_json,
    pair_markdown,
)
from kit.app.inert import short
from kit.app.library.adapters import Choice, find
from kit.app.library.results import Attempt, FoundResults, Stored, find_stored
from kit.app.options import AppOptions
from kit.app.pair_view import PairView
from kit.app.session import Session
from kit.app.verdicts import badge_of
from kit.errors import ResultsError
from kit.evaluation.results import FIELDS, read_rows
from kit.notebook.show import _side_head

HOSTILE = "<img src=x onerror=alert(1)>\n```\n# [a](http://x.example) `````\n${1+1} {{2}} | @b"
ROW: dict[str, Any] = {
    "id": "gsm8k/1",
    "temperature": 0.0,
    "sample": 0,
    "question": "2 + 2?",
    "answer": "4",
    "category": "1 step",
    "difficulty": "",
    "completion": "#### 4",
    "tokens": 3,
    "truncated": False,
    "strict_answer": "4",
    "lenient_answer": "4",
    "strict": True,
    "lenient": True,
}
WRONG = {"completion": "#### 5", "strict": False, "lenient": False} | dict.fromkeys(
    ("strict_answer", "lenient_answer"), "5"
)


def row(number: int, **changed: Any) -> dict[str, Any]:
    return ROW | {"id": f"gsm8k/{number}"} | changed


def write(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    *,
    name: str = "gsm8k",
    adapter: str | None = "gone/adapter",
    sha256: str = "ab" * 32,
    settings: Mapping[str, Any] | None = None,
    **record: Any,
) -> Path:
    """A result file as `kit evaluate` leaves it; keyword arguments replace its fields."""
    target = {"name": "x", "run": None, "adapter": adapter, "adapter_sha256": sha256}
    target |= {"base": "Qwen", "base_revision": None, "quantization": "nf4"}
    sampled: dict[str, Any] = {"system_prompt": "Be brief.", "max_new_tokens": 64, "top_p": 1.0}
    sampled |= {"seed": 0, "split": "test", "problems": {"verifier": "number"}}
    sampled |= {"temperatures": [0.0], "samples": 1, "limit": None}
    fields = dict.fromkeys(FIELDS) | {"schema": 2, "status": "finished", "data": "gsm8k", "n": 2}
    fields |= {"target": target, "settings": sampled | dict(settings or {}), "results": []}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(fields | record))
    lines = [json.dumps(r) for r in ([row(1), row(2)] if rows is None else rows)]
    path.with_suffix(".jsonl").write_text("".join(line + "\n" for line in lines))
    return path


def found(root: Path) -> tuple[Stored, ...]:
    result = find_stored([root.resolve()])
    assert result.faults == ()
    return result.stored


@pytest.fixture
def pairing(tmp_path: Path) -> Pairing:
    """Six problems: both, left, right (lenient: both), neither twice; the last in other words."""
    late = {"strict": False, "strict_answer": None}
    half = {"category": "2 steps", "answer": "0.5"}
    halves = {"strict": False, "lenient": False, "completion": "SPOON"}
    left = [
        row(10, category="11 steps", **WRONG),
        row(1),
        row(2),
        row(3, **late),
        row(4, **half, **halves, strict_answer="1/2", lenient_answer="1/2"),
        row(5, **late, lenient=False, lenient_answer=None, truncated=True),
    ]
    right = [
        row(1),
        row(2, **WRONG),
        row(3),
        row(4, **half, **halves, strict_answer="0.50", lenient_answer="0.50"),
        row(5, **late, lenient=False, lenient_answer=None),
        row(10, category="11 steps", **WRONG | {"strict_answer": "6", "lenient_answer": "6"}),
    ]
    write(tmp_path / "base" / "eval", left, adapter=None)
    write(tmp_path / "run" / "eval", right)
    return pair_up(*found(tmp_path))


def ids(pairing: Pairing, **wanted: Any) -> list[int]:
    cases = select(pairing, Filter(**wanted)).cases
    return [int(case.left.id.removeprefix("gsm8k/")) for case in cases]


# --- finding results


def test_finds_results_anywhere_and_labels_them(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a" / "eval", settings={"temperatures": [0.0, 0.75]})
    write(tmp_path / "runs" / "eval" / "hub_name", tag="long", name="gsm8k.long")
    write(tmp_path / "runs" / "moved")  # no folder `eval`, but its completions are beside it
    labels = [stored.label for stored in found(tmp_path)]
    assert labels == [
        "runs/a · gsm8k · temperature 0",
        "runs/a · gsm8k · temperature 0.75",
        "runs/eval/hub_name (tag long) · gsm8k · temperature 0",
        "runs/moved · gsm8k · temperature 0",
    ]


def test_labels_are_unique(tmp_path: Path) -> None:
    for root in ("one", "two"):
        write(tmp_path / root / "runs" / "a" / "eval")
        write(tmp_path / root / "runs" / "a")
    roots = [(tmp_path / root / "runs").resolve() for root in ("one", "two")]
    stored = find_stored([*roots, roots[0]]).stored
    assert [one.name for one in stored] == ["runs/a", "runs/a (2)", "runs/a (3)", "runs/a (4)"]


def test_a_root_that_is_a_run_folder_gives_its_name(tmp_path: Path) -> None:
    write(tmp_path / "my-run" / "eval")
    assert [stored.name for stored in found(tmp_path / "my-run")] == ["my-run"]


def test_checkpoints_hidden_folders_and_what_lies_too_deep_are_not_searched(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"12345678")
    for folder in ("checkpoints/step-1/eval", ".cache/eval", "adapter/eval"):
        write(tmp_path / folder)
    write(deep)
    write(deep / "9")
    assert [stored.name for stored in found(tmp_path)] == ["1/2/3/4/5/6/7/8"]


def test_links_out_of_the_roots_are_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside" / "eval")
    root = tmp_path / "runs"
    (root / "eval").mkdir(parents=True)
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "eval" / "a.json").symlink_to(outside)
    (root / "eval" / "a.jsonl").symlink_to(outside.with_suffix(".jsonl"))
    inside = write(root / "b" / "eval")
    inside.with_suffix(".jsonl").unlink()
    inside.with_suffix(".jsonl").symlink_to(outside.with_suffix(".jsonl"))
    assert find_stored([root.resolve()]) == FoundResults((), ())


def test_a_root_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert find_stored([tmp_path / "nowhere"]) == FoundResults((), ())


def test_other_json_of_the_kit_is_passed_over(tmp_path: Path) -> None:
    for name in ("judge.json", "eval/judge.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"schema": 1, "kind": "pairs"}))
        path.with_suffix(".jsonl").write_text("{}\n")
    (tmp_path / "tokenizer.json").write_text("no JSON")  # neither in eval nor with completions
    assert find_stored([tmp_path.resolve()]) == FoundResults((), ())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"schema": 1, "data": "gsm8k"}', "has schema 1, this kit reads 2"),
        ('{"schema": 2, "data": "gsm8k"}', "lacks status"),
    ],
)
def test_broken_files_are_told_in_a_line_and_the_rest_is_found(
    tmp_path: Path, content: str, fault: str
) -> None:
    write(tmp_path / "good" / "eval")
    (tmp_path / "bad" / "eval").mkdir(parents=True)
    (tmp_path / "bad" / "eval" / "gsm8k.json").write_text(content)
    result = find_stored([tmp_path.resolve()])
    assert [stored.name for stored in result.stored] == ["good"]
    (message,) = result.faults
    assert fault in message and str(tmp_path / "bad") in message and "\n" not in message


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"target": "x"}, "target"),
        ({"settings": {"seed": "0"}}, "settings.seed"),
        ({"settings": {"temperatures": [float("nan")]}}, "settings.temperatures.0"),
        ({"tag": ["<script>"]}, "tag"),
    ],
)
def test_fields_of_the_wrong_type_are_told(tmp_path: Path, changed: Any, where: str) -> None:
    write(tmp_path / "eval", **changed)
    result = find_stored([tmp_path.resolve()])
    assert result.stored == ()
    (message,) = result.faults
    assert f"{where} is not usable" in message and "<script>" not in message


def test_results_without_completions_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "eval").with_suffix(".jsonl")
    path.unlink()
    result = find_stored([tmp_path.resolve()])
    assert result == FoundResults((), (f"cannot read {path}: No such file or directory",))


# --- what can be compared


def test_results_of_equal_settings_can_be_compared_whatever_else_differs(tmp_path: Path) -> None:
    write(tmp_path / "a", settings={"samples": 1, "limit": None})
    write(tmp_path / "b", settings={"samples": 4, "limit": 9, "temperatures": [0.0, 1.0]})
    left, right, warm = found(tmp_path)
    assert differences(left, right) == []
    assert comparable(left, [left, right, warm]) == [right]
    assert differences(left, warm) == ["temperature 0.0 and 1.0"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"max_new_tokens": 65}, "max_new_tokens 64 and 65"),
        ({"seed": 1}, "seed 0 and 1"),
        ({"top_p": 0.9}, "top_p 1.0 and 0.9"),
        ({"split": "train"}, "split test and train"),
        ({"system_prompt": "Be long."}, "system_prompt"),
        ({"problems": {"verifier": "latex"}}, "problems"),
    ],
)
def test_every_setting_that_matters_must_be_equal(tmp_path: Path, changed: Any, why: str) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", settings=changed)
    left, right = found(tmp_path)
    assert differences(left, right) == [why]
    said = explain(left, [left, right])
    assert f"b cannot: it differs in {why}." in said
    assert "kit evaluate OTHER_RUN --data gsm8k temperature=0 max_new_tokens=64" in said


def test_prompts_may_differ_by_what_guidelines_add(tmp_path: Path) -> None:
    target = {"name": "x", "adapter": "a", "adapter_sha256": None, "base": "Qwen"}
    longer = {"system_prompt": "Be brief.\nName units.\nNo words."}
    write(tmp_path / "a")
    guidelines = {"units": "Name units.\n", "bare": "No words."}
    write(tmp_path / "b", settings=longer, target=target | {"guidelines": guidelines})
    write(tmp_path / "c", settings=longer, target=target | {"guidelines": {"bare": "No words."}})
    plain, guided, other = found(tmp_path)
    assert differences(plain, guided) == [] and differences(plain, other) == ["system_prompt"]


def test_explains_how_many_can_be_compared_and_names_three_that_cannot(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name)
    for seed in range(1, 6):
        write(tmp_path / f"seed-{seed}", settings={"seed": seed})
    stored = found(tmp_path)
    said = explain(stored[0], stored)
    assert said.startswith("1 result can be compared with the left one. seed-1 cannot")
    assert said.endswith("seed-3 cannot: it differs in seed 0 and 3. 2 more cannot.")


def test_offers_a_base_and_what_lies_near_it(tmp_path: Path) -> None:
    write(tmp_path / "x" / "base", adapter=None)
    for name in ("w/arm", "x/arm", "xy/arm"):
        write(tmp_path / name)
    stored = found(tmp_path)
    base = first_choice(stored)
    assert base.name == "x/base"
    assert nearest(base, comparable(base, stored)).name == "x/arm"
    assert first_choice(stored[:1]).name == "w/arm"  # no base among them


# --- pairs


def test_pairs_are_joined_by_key_and_ordered_by_number(pairing: Pairing) -> None:
    assert ids(pairing) == [1, 2, 3, 4, 5, 10]
    assert all(case.left.id == case.right.id for case in pairing.cases)
    assert pairing.categories == ("1 step", "2 steps", "11 steps")
    assert pairing.difficulties == ()
    assert pairing.remarks == ()


def test_samples_and_temperatures_are_kept_apart(tmp_path: Path) -> None:
    warm = [row(1, temperature=1.0, sample=s, completion=f"{s}") for s in (1, 0)]
    for name in "ab":
        settings = {"temperatures": [0.0, 1.0], "samples": 2}
        write(tmp_path / name, [row(1), *warm], settings=settings)
    cold, hot, *others = found(tmp_path)
    assert [case.key for case in pair_up(cold, others[0]).cases] == [("gsm8k/1", 0)]
    cases = pair_up(hot, others[1]).cases
    assert [(case.left.completion, case.right.completion) for case in cases] == [
        ("0", "0"),
        ("1", "1"),
    ]


def test_what_has_no_partner_or_another_problem_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path / "a", [row(1), row(2), row(3), row(4)], status="running")
    changed = [row(1), row(2, question="3 + 3?"), row(3, answer="5"), row(6), row(7)]
    write(tmp_path / "b", changed, seen_in_training=1)
    pairing = pair_up(*found(tmp_path))
    assert ids(pairing) == [1]
    assert pairing.remarks == (
        "the evaluation of a is not finished",
        "b was trained on 1 of the 2 problems",
        "1 completions are on the left only",
        "2 completions are on the right only",
        "2 completions are of a problem that is another one on the right",
    )


def test_broken_lines_are_told_and_the_rest_is_paired(tmp_path: Path) -> None:
    write(tmp_path / "a")
    path = write(tmp_path / "b").with_suffix(".jsonl")
    bad = [
        b'{"id": "gsm8k/9"}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        json.dumps(row(1)).encode() + b"\n",  # a second time
        json.dumps(row(3, id=["x"])).encode() + b"\n",
        json.dumps(row(4, completion=None)).encode() + b"\n",
        json.dumps(row(5, strict="yes")).encode() + b"\n",
        json.dumps(row(6))[:-9].encode(),  # cut off by a crash: no fault
    ]
    path.write_bytes(path.read_bytes() + b"".join(bad))
    pairing = pair_up(*found(tmp_path))
    assert ids(pairing) == [1, 2]
    told = [remark.removeprefix(f"{path}") for remark in pairing.remarks]
    starts = [f", line {number} " for number in range(3, 10)]
    assert [t.startswith(s) for t, s in zip(told, starts, strict=True)] == [True] * 7
    assert "nested too deeply" in told[2] and "plain values" in told[4]
    assert "its completion is not usable" in told[5] and "its strict is not usable" in told[6]


def test_by_default_a_broken_line_is_still_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [row(1), row(2, id=["x"])]).with_suffix(".jsonl")
    with pytest.raises(ResultsError, match=r"line 2 is not usable: its id.*--overwrite"):
        read_rows(path)
    faults: list[str] = []
    assert read_rows(path, faults) == [row(1)]
    assert len(faults) == 1


def test_a_file_that_grew_is_read_anew_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a", [row(1), row(2), row(3)])
    path = write(tmp_path / "b").with_suffix(".jsonl")
    assert ids(pair_up(*found(tmp_path))) == [1, 2]
    with path.open("a") as file:
        file.write(json.dumps(row(3)) + "\n")
    left, right = found(tmp_path)
    assert ids(pair_up(left, right)) == [1, 2, 3]
    path.write_text("")
    right = found(tmp_path)[1]
    path.unlink()
    with pytest.raises(ResultsError, match="cannot read the completions"):
        pair_up(left, right)


# --- filters


def test_outcomes_and_their_counts_by_either_verdict(pairing: Pairing) -> None:
    outcomes = ("both", "left", "right", "neither")
    assert [ids(pairing, outcome=name) for name in outcomes] == [[1], [2], [3], [4, 5, 10]]
    lenient = [ids(pairing, measure="lenient", outcome=name) for name in outcomes]
    assert lenient == [[1, 3], [2], [], [4, 5, 10]]
    counts = select(pairing, Filter()).counts
    assert (counts.both, counts.left, counts.right, counts.neither) == (1, 1, 1, 3)
    assert select(pairing, Filter(outcome="left")).counts == counts


def test_answers_differ_by_value_and_by_being_there(pairing: Pairing) -> None:
    # 2: 4 and 5; 3: none and 4, both 4 leniently; 4: 1/2 is 0.50; 5: none; 10: 5 and 6
    assert ids(pairing, outcome="differ") == [2, 3, 10]
    assert ids(pairing, outcome="differ", measure="lenient") == [2, 10]


def test_category_difficulty_and_text_narrow_pairs_and_counts(pairing: Pairing) -> None:
    assert ids(pairing, category="11 steps") == [10]
    assert select(pairing, Filter(category="11 steps")).counts.total == 1
    assert ids(pairing, text="  spoon ") == [4]
    assert ids(pairing, text="#### 5") == [2, 10]
    assert ids(pairing, text="2 + 2", category="2 steps") == [4]
    assert ids(pairing, text="fork") == []
    # those there are none of, as after a change of the data set
    assert ids(pairing, category="level 5", difficulty="hard") == [1, 2, 3, 4, 5, 10]


def test_difficulties_are_filtered(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, [row(1, difficulty="level 10"), row(2, difficulty="level 9")])
    pairing = pair_up(*found(tmp_path))
    assert pairing.difficulties == ("level 9", "level 10")
    assert ids(pairing, difficulty="level 9") == [2]


# --- HTML


def test_badges_in_words(pairing: Pairing) -> None:
    said = [(badge_of(c.left).text, badge_of(c.right).text) for c in pairing.cases]
    assert said == [
        ("right", "right"),
        ("right", "wrong"),
        ("right, not as #### answer", "right"),
        ("wrong", "wrong"),
        ("cut off", "no answer"),
        ("wrong", "wrong"),
    ]


def test_counts_stand_in_two_rows(pairing: Pairing) -> None:
    table = counts_table(select(pairing, Filter(measure="lenient")))
    assert "6 pairs by the lenient verdict" in table
    cells = [part.split("</td>")[0] for part in table.split("<td>")]
    assert [cell for cell in cells if cell.isdigit()] == ["2", "1", "0", "3"]
    assert "No pair matches" in counts_table(select(pairing, Filter(text="fork")))


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    texts = dict.fromkeys(("answer", "category", "completion", "lenient_answer"), HOSTILE)
    write(tmp_path / "a", [row(1, **texts)])
    write(tmp_path / "b", [row(1, **texts)])
    pairing = pair_up(*found(tmp_path))
    (case,) = pairing.cases
    for page in (_side_head(HOSTILE, case.left), bullets([HOSTILE])):
        assert "&lt;img src=x" in page
        assert "<img" not in page
    assert short("a\u202eb\n c" + "d" * 99, 6) == "ab cdd…"


def test_only_the_first_messages_are_shown() -> None:
    page = bullets([f"file {i}" for i in range(10)])
    assert page.count("<li>") == 9 and "file 7<" in page and "and 2 more" in page


# --- exports


@pytest.fixture
def pair() -> ComparedPair:
    side = ComparedSide("left", None, None, "#### 4", "4", "4", True, True, 3, False)
    wrong = replace(
        side,
        name="right",
        adapter="runs/a/adapter",
        adapter_sha256="ab" * 32,
        strict=False,
        lenient=False,
        strict_answer=None,
        truncated=True,
        mean_logprob=-0.25,
    )
    settings = {"temperature": 0.5, "sample": 2}
    return ComparedPair(
        "2 + 2?", "Be brief.", None, "4", settings, side, wrong, "2026-01-02T03:04:05+00:00"
    )


def test_a_stored_pair_keeps_what_was_stored(pairing: Pairing) -> None:
    exported = compared(pairing, pairing.cases[1])
    assert (exported.id, exported.question, exported.answer) == ("gsm8k/2", "2 + 2?", "4")
    assert (exported.system_prompt, exported.prompt) == ("Be brief.", None)
    assert exported.settings["max_new_tokens"] == 64 and exported.settings["base"] == "Qwen"
    left, right = exported.left, exported.right
    assert (left.name, left.adapter, left.completion, left.strict) == ("base", None, "#### 4", True)
    assert (right.adapter, right.completion, right.strict) == ("gone/adapter", "#### 5", False)


def test_pair_json_holds_every_field(pair: ComparedPair) -> None:
    record = json.loads(json.dumps(pair_json(pair)))
    assert record["schema"] == 1
    assert record["left"]["strict"] is True and record["right"]["mean_logprob"] == -0.25
    assert record["settings"] == {"temperature": 0.5, "sample": 2}


def test_pair_markdown_says_what_came_out(pair: ComparedPair) -> None:
    text = pair_markdown(pair)
    for line in (
        "- temperature: ` 0.5 `",
        "Gold answer: ` 4 `",
        "- strict verdict: right, answer ` 4 `",
        "- strict verdict: no answer",
        "- lenient verdict: wrong, answer ` 4 `",
        "- tokens: 3, truncated",
        "- mean_logprob: -0.2500",
        "### Right: ` right `",
    ):
        assert line in text.split("\n")
    assert "Prompt as sent" not in text and "kl_to_base" not in text
    assert "Gold answer: not known" in pair_markdown(replace(pair, answer=None))


def tokens(text: str) -> Iterator[Any]:
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        yield token
        yield from token.children or ()


def test_pair_markdown_is_inert(pair: ComparedPair) -> None:
    of_side: Any = dict.fromkeys(("name", "adapter", "completion", "strict_answer"), HOSTILE)
    of_pair: Any = dict.fromkeys(("question", "system_prompt", "prompt", "answer", "id"), HOSTILE)
    of_pair["left"] = of_pair["right"] = replace(pair.left, **of_side)
    text = pair_markdown(replace(pair, settings={"data": HOSTILE}, **of_pair))
    found = list(tokens(text))
    allowed = {"heading", "paragraph", "bullet_list", "list_item"}
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in found}
    assert kinds == allowed | {"inline", "fence", "code_inline", "text"}
    # question, system prompt, prompt and two completions stand as they are
    assert [token.content for token in found if token.type == "fence"] == [f"{HOSTILE}\n"] * 5
    assert all("img" not in token.content for token in found if token.type == "text")
    assert sum("img" in token.content for token in found if token.type == "code_inline") == 9


def test_comparator_file_follows_the_documented_schema(pair: ComparedPair) -> None:
    """README of PAIR-code/llm-comparator, "JSON Data Format": names, types and nesting."""
    record = comparator_json([pair, pair], "A", "B", source="gsm8k")
    assert json.loads(json.dumps(record)) == record
    assert record.keys() == {"metadata", "models", "examples"}
    assert record["models"] == [{"name": "A"}, {"name": "B"}]
    assert record["metadata"].keys() == {"source_path", "custom_fields_schema"}
    assert "1: A is right and B is wrong by the strict" in record["metadata"]["source_path"]
    types = {field["name"]: field["type"] for field in record["metadata"]["custom_fields_schema"]}
    assert types == {
        "gold_answer": "string",
        "temperature": "number",
        "sample": "number",
        "strict": "per_model_boolean",
        "lenient": "per_model_boolean",
        "truncated": "per_model_boolean",
        "tokens": "per_model_number",
        "mean_logprob": "per_model_number",
    }
    assert len(record["examples"]) == 2
    example = record["examples"][0]
    assert example.pop("custom_fields") == {
        "gold_answer": "4",
        "temperature": 0.5,
        "sample": 2,
        "strict": [True, False],
        "lenient": [True, False],
        "truncated": [False, True],
        "tokens": [3, 3],
        "mean_logprob": [None, -0.25],
    }
    ratings = example.pop("individual_rater_scores")
    assert [rating["rationale"] for rating in ratings] == [
        "strict verdict: A right (4); B no answer, truncated",
        "lenient verdict: A right (4); B wrong (4), truncated",
    ]
    assert [(rating["score"], rating["is_flipped"]) for rating in ratings] == [(1.0, False)] * 2
    assert example == {
        "input_text": "2 + 2?",
        "tags": [],
        "output_text_a": "#### 4",
        "output_text_b": "#### 4",
        "score": 1.0,
    }


@pytest.mark.parametrize(
    ("left", "right", "score"),
    [(True, False, 1), (False, True, -1), (True, True, 0), (False, False, 0), (None, True, None)],
)
def test_scores_by_the_chosen_verdict(
    pair: ComparedPair, left: bool | None, right: bool | None, score: float | None
) -> None:
    left_side, right_side = replace(pair.left, lenient=left), replace(pair.right, lenient=right)
    judged = replace(pair, left=left_side, right=right_side)
    record = comparator_json([judged], "A", "B", measure="lenient")
    assert record["examples"][0]["score"] == score


def test_answers_of_other_kinds_are_compared_as_text() -> None:
    def case(left: str, right: str) -> Case:
        return Case(
            Attempt(**ROW | {"strict_answer": left}), Attempt(**ROW | {"strict_answer": right})
        )

    assert case("x^2", "x^3").answers_differ("strict")
    assert not case("x^2", " x^2 ").answers_differ("strict")
    assert case("4", "x").answers_differ("strict")


# --- the tab


def page(runs: Path) -> tuple[gr.Blocks, Parts, PairView]:
    options = AppOptions(runs=runs)
    with gr.Blocks() as blocks:
        pair = PairView(Session(options, find(options)))
        view = browse_view.build(options, pair, gr.State(None))
        view.refresh_on(blocks.load)
    return blocks, view.parts, pair


def refreshed(runs: Path, parts: Parts, pair: PairView, *sides: str) -> dict[Any, Any]:
    return browse_view._refresh(parts, AppOptions(runs=runs), pair, None, *sides)


def test_no_event_is_an_endpoint_for_others(tmp_path: Path) -> None:
    blocks, _, _ = page(tmp_path)
    assert blocks.fns and {fn.api_visibility for fn in blocks.fns.values()} == {"private"}


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    _, parts, pair = page(tmp_path)
    updates = refreshed(tmp_path, parts, pair, "base", "base")
    assert f"no results in {tmp_path}" in updates[parts.note]
    assert "kit evaluate RUN --data gsm8k" in updates[parts.note]
    shown = browse_view._show(parts, updates[parts.found], *[None] * 7)
    assert shown[parts.pairs].visible is False


def three(runs: Path) -> tuple[Parts, PairView, Any]:
    """A page on a base and two runs that can be compared, of which it knows the base alone."""
    write(runs / "base", adapter=None)
    for name in ("one", "two"):
        write(runs / name, [row(1), row(2, **WRONG)], adapter=str(runs / name / "adapter"))
    _, parts, pair = page(runs)
    pair.desk._choices["base"] = replace(pair.desk._choices["base"], base="Qwen")
    return parts, pair, refreshed(runs, parts, pair, "base", "base")


def test_two_sides_that_become_the_same_change_places(tmp_path: Path) -> None:
    parts, pair, updates = three(tmp_path)
    left, right = updates[parts.left].value, updates[parts.right].value
    assert left.startswith("base ·") and right.startswith("one ·")
    found, group = updates[parts.found], left.partition(" · ")[2]
    before = ("base", "base")  # of the bar, which does not know the runs
    both = browse_view._choose(parts, pair, parts.left, found, group, right, right, *before)
    assert (both[parts.left].value, both[parts.right].value) == (right, left)
    both = browse_view._choose(parts, pair, parts.right, found, group, right, right, *before)
    assert (both[parts.left].value, both[parts.right].value) == (left, right)
    assert both[pair.left]["value"] == "base"
    # what the browser still has in the list is no error of Gradio's
    assert parts.right.allow_custom_value and parts.left.allow_custom_value


def test_what_matches_is_read_in_compare(tmp_path: Path) -> None:
    parts, pair, updates = three(tmp_path)
    asked = [updates[parts.found], updates[parts.left].value, updates[parts.right].value]
    asked += ["strict", "all", "any", "any", ""]
    shown = browse_view._show(parts, *asked)
    assert len(shown[parts.table].value["data"]) == 2 and not shown[parts.page].visible
    reading = browse_view._reading(pair, 1, *asked)
    assert reading.case.key == ("gsm8k/2", 0) and reading.moved(1).case.key == ("gsm8k/1", 0)
    comparison = reading.comparison()
    assert (comparison.setup.question, comparison.setup.gold) == ("2 + 2?", "4")
    assert [comparison.answers[side][0].badge.text for side in ("left", "right")] == [
        "right",
        "wrong",
    ]
    assert "alone right on 1 against 0" in reading.words
    asked[-1] = "nowhere"
    assert browse_view._reading(pair, 0, *asked) == gr.skip()


def test_the_page_opens_on_the_newest_results_that_differ(tmp_path: Path) -> None:
    one, two = (
        Choice(name, str(tmp_path / name / "adapter"), "Qwen", "", None, str(tmp_path / name), None)
        for name in ("one", "two")
    )
    assert open_reading([tmp_path], one, two) is None
    same, other = row(1), row(2, completion="4\n#### 4")
    write(tmp_path / "one", [same, row(2), row(3)], started="2026-01-01")
    write(tmp_path / "two", [same, other, row(3, **WRONG)], started="2026-01-01")
    reading = open_reading([tmp_path], one, two)
    assert reading is not None
    assert [case.key[0] for case in reading.cases] == ["gsm8k/3", "gsm8k/2"]
    assert [choice.label for choice in reading.sides] == ["one", "two"]
    for name in ("one", "two"):
        write(tmp_path / name, [same], name="gsm8k.new", tag="new", started="2026-01-02")
    (newest, *_) = stored_pairs(find_stored([tmp_path]).stored, one, two)
    assert newest[0].about.tag == "new"
    again = open_reading([tmp_path], one, two)
    assert again is not None and again.cases == reading.cases  # on the newest they agree
    queue = open_reading([tmp_path], one, two, "new")
    assert queue is not None and [case.key for case in queue.cases] == [("gsm8k/1", 0)]
    assert open_reading([tmp_path], one, two, "other") is None
    assert "problems of gsm8k (test):" in reading.words  # what it is that is read
    assert "problems of gsm8k (test), new:" in queue.words
    write(tmp_path / "one", [row(1)], name="gsm8k.later", tag="later", started="2026-01-03")
    (first, *_, last) = stored_pairs(find_stored([tmp_path]).stored, one, two)
    assert [a.about.tag for a in first] == ["new", "new"]  # of one evaluation before others
    assert len({a.about.tag for a in last}) == 2


def test_the_page_opens_on_the_larger_of_two_evaluations_of_the_same_adapters(
    tmp_path: Path,
) -> None:
    one, two = (
        Choice(name, str(tmp_path / name / "adapter"), "Qwen", "", None, str(tmp_path / name), None)
        for name in ("one", "two")
    )

    def opened() -> str | None:
        reading = open_reading([tmp_path], one, two)
        return reading and reading.pairing.left.about.tag

    def evaluated(tag: str, n: int, started: str, **changes: Any) -> None:
        for name, rows in (("one", [row(1)]), ("two", [row(1, **WRONG)])):
            about = {"tag": tag, "n": n, "started": started} | changes
            write(tmp_path / name, rows, name=f"gsm8k.{tag}", **about)

    evaluated("large", 500, "2026-01-02")
    evaluated("small", 20, "2026-01-03")
    assert opened() == "large"
    evaluated("again", 500, "2026-01-03")
    assert opened() == "again"  # of equals the newest
    evaluated("killed", 1000, "2026-01-04", status="running")
    assert opened() == "again"
    evaluated("trained on", 20, "2026-01-05", sha256="cd" * 32)
    assert opened() == "trained on"  # what was said before, other adapters have said


def test_all_pairs_that_are_read_are_exported(tmp_path: Path) -> None:
    parts, pair, updates = three(tmp_path)
    asked = [updates[parts.found], updates[parts.left].value, updates[parts.right].value]
    reading = browse_view._reading(pair, 1, *asked, "strict", "all", "any", "any", "")
    with gr.Blocks():
        export = ExportView()
    written = export.show(Shown(reading.comparison()), reading)
    examples = json.loads(Path(written[export.comparator]["value"]).read_text())["examples"]
    assert [one["custom_fields"]["id"] for one in examples] == ["gsm8k/1", "gsm8k/2"]
    assert json.loads(Path(written[export.json]["value"]).read_text())["id"] == "gsm8k/2"
