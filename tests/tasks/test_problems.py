"""Loading problems: rows of our own in the published layouts; the real data where they are."""

import json
import logging
import os
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from kit.config import EMBEDDED_PATH, SYSTEM_PROMPT, DataConfig
from kit.errors import ConfigError, DataError
from kit.recipe import build_config, read_guidelines
from kit.tasks.problems import (
    ProblemSet,
    check_gold,
    guided,
    load_problems,
    split_validation,
)
from kit.tasks.sources import KNOWN
from kit.tasks.verifiers import LatexVerifier, NumberVerifier, TaskVerifier
from kit.training.data import drop_long_prompts, load_data_of_arms, load_training_data

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("KIT_DATA_DIR", ROOT.parent / "shared" / "data"))
COLUMNS = {"id", "prompt", "question", "answer", "solution", "category", "difficulty"}

GSM8K = [
    {
        "question": "Ann has 3 bags of 400 nuts. How many nuts has she?",
        "answer": "A bag has <<400=400>>400 nuts.\nShe has 3*400=<<3*400=1200>>1200.\n#### 1,200",
    },
    {"question": "Bo has 2 pens. How many?", "answer": "He has 2.\n#### 2"},
]
SVAMP = [
    {
        "ID": "own-1",
        "Body": "Cy has 9 cards",
        "Question": "How many are left when 4 are lost?",
        "Equation": "( 9.0 - 4.0 )",
        "Answer": "5.0",
        "Type": "Common-Divison",
        "question_concat": "Cy has 9 cards. How many are left when 4 are lost?",
    }
]
ASDIV = [
    {
        "body": f"Di has {i} eggs.",
        "question": "How many?",
        "solution_type": kind,
        "answer": answer,
        "formula": "1+1=2",
        "grade": "2",
    }
    for i, (answer, kind) in enumerate(
        [
            ("8 (eggs)", "Sum"),
            ("14  (seats)", "Sum"),
            ("5/2", "Substraction"),
            ("3.5 (sq. ft)", "Sum"),
            ("1000 (m)", "Sum"),
            ("10:30", "Sum"),
            ("6th", "Sum"),
            ("Ed", "Sum"),
            ("3 (ft); 4 (ft)", "Sum"),
            ("8; 40", "Sum"),
            ("They are equal", "Sum"),
            ("11:45 p.m.", "Sum"),
        ]
    )
]
MATH500 = [
    {
        "problem": "Halve $x$.",
        "solution": "It is $\\boxed{\\frac{x}{2}}$.",
        "answer": "\\frac{x}{2}",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "own/1.json",
    },
    {
        "problem": "Square $3R$ and keep nine.",
        "solution": "So \\boxed{9R^2}.",
        "answer": "9R^2",
        "subject": "Geometry",
        "level": 1,
        "unique_id": "own/2.json",
    },
]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def local(tmp_path) -> Path:
    write(tmp_path / "gsm8k/train.jsonl", GSM8K)
    write(tmp_path / "gsm8k/test.jsonl", GSM8K[1:])
    write(tmp_path / "svamp/test.jsonl", SVAMP)
    write(tmp_path / "asdiv/validation.jsonl", ASDIV)
    write(tmp_path / "math500/test.jsonl", MATH500)
    return tmp_path


def load(name: str, split=None, seed: int = 0, **fields) -> ProblemSet:
    data_dir = fields.pop("data_dir", None)
    config = DataConfig(name=name, data_dir=str(data_dir) if data_dir else None, **fields)
    return load_problems(config, split, seed=seed)


def problem_set(questions: list[str], answer: str = "1") -> ProblemSet:
    rows = [
        {
            "id": str(i),
            "prompt": [{"role": "user", "content": q}],
            "question": q,
            "answer": answer,
        }
        for i, q in enumerate(questions)
    ]
    return ProblemSet("own", datasets.Dataset.from_list(rows), NumberVerifier())


def test_gsm8k(local) -> None:
    found = load("gsm8k", data_dir=local)
    assert set(found.problems.column_names) == COLUMNS
    assert found.problems[0] == {
        "id": "train/0",
        "prompt": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": GSM8K[0]["question"]},
        ],
        "question": GSM8K[0]["question"],
        "answer": "1200",
        "solution": "A bag has 400 nuts.\nShe has 3*400=1200.\n#### 1200",
        "category": "2 steps",
        "difficulty": "",
    }
    assert found.problems[1]["category"] == "1 step"
    assert isinstance(found.verifier, NumberVerifier)
    check_gold(found)


def test_splits(local, caplog) -> None:
    assert load("gsm8k", data_dir=local).problems["id"][0] == "train/0"
    assert load("gsm8k", data_dir=local, split="test").problems["id"][0] == "test/0"
    assert load_problems(
        DataConfig(name="gsm8k", data_dir=str(local), split="train"), "test"
    ).problems["id"][:] == ["test/0"]
    assert len(load("svamp", data_dir=local).problems) == 1
    assert not caplog.records
    assert len(load("svamp", "train", data_dir=local).problems) == 1
    assert "only the split 'test'" in caplog.text
    with pytest.raises(DataError, match=r"gsm8k has no split 'validation'; it has test, train"):
        load_problems(DataConfig(name="gsm8k", data_dir=str(local), split="validation"))
    with pytest.raises(DataError, match=r"svamp has no split 'train'; it has test"):
        load_problems(DataConfig(name="svamp", data_dir=str(local), split="train"))


def test_svamp(local) -> None:
    row = load("svamp", data_dir=local).problems[0]
    assert row["id"] == "own-1"
    assert row["question"] == SVAMP[0]["question_concat"]
    assert row["answer"] == "5"
    assert row["solution"] == "( 9 - 4 ) = 5\n#### 5"
    assert row["category"] == "Common-Division"  # the published type is misspelt once


def test_asdiv_drops_what_is_no_single_number(local, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        found = load("asdiv", data_dir=local)
    assert found.problems["answer"][:] == ["8", "14", "5/2", "3.5", "1000"]
    assert "asdiv: 7 of 12 problems dropped" in caplog.text
    row = found.problems[2]
    assert row["question"] == "Di has 2 eggs. How many?"
    assert row["solution"] == "1+1=2\n#### 5/2"
    assert (row["category"], row["difficulty"]) == ("Subtraction", "grade 2")
    check_gold(found)


def test_math500(local) -> None:
    found = load("math500", data_dir=local)
    row = found.problems[0]
    assert (row["id"], row["answer"]) == ("own/1.json", "\\frac{x}{2}")
    assert row["solution"].endswith("$.\n#### \\frac{x}{2}")
    assert (row["category"], row["difficulty"]) == ("Algebra", "level 2")
    assert found.problems[1]["answer"] == "9R^2"
    assert isinstance(found.verifier, LatexVerifier)
    check_gold(found)
    found.verifier.worker.close()


def test_rows_that_are_not_as_published(tmp_path) -> None:
    write(tmp_path / "gsm8k/train.jsonl", [{"question": "q", "solution": "#### 1"}])
    with pytest.raises(DataError, match=r"gsm8k: row 0 is not in its published form: .*answer"):
        load("gsm8k", data_dir=tmp_path)


def test_system_prompt_limit_and_categories(local) -> None:
    bare = load("gsm8k", data_dir=local, system_prompt="")
    assert bare.problems[1]["prompt"] == [{"role": "user", "content": GSM8K[1]["question"]}]
    one = load("gsm8k", data_dir=local, categories=["1 step"])
    assert one.problems["id"][:] == ["train/1"]
    with pytest.raises(DataError, match=r"no category '9 steps'; it has '1 step', '2 steps'"):
        load("gsm8k", data_dir=local, categories=["1 step", "9 steps"])

    def first(limit: int, seed: int) -> list[str]:
        return load("asdiv", data_dir=local, limit=limit, seed=seed).problems["id"][:]

    assert len(first(3, 0)) == 3
    assert first(3, 0) == first(4, 0)[:3]  # the first after shuffling
    assert len({tuple(first(3, seed)) for seed in range(5)}) > 1
    assert len(first(100, 0)) == 5


def test_gsm_symbolic() -> None:
    import reasoning_gym

    found = load("gsm_symbolic", options={"size": 60, "seed": 5})
    task = reasoning_gym.create_dataset("gsm_symbolic", size=60, seed=5)
    assert found.problems["question"][:] == [entry["question"] for entry in task]
    assert found.problems["category"][:] == [f"template {i}" for i in task.task_indices]
    assert len(set(found.problems["id"])) == 60
    for row in found.problems:
        assert row["solution"].endswith(f"\n#### {row['answer']}")
        assert row["solution"].count("####") == 1
    check_gold(found)
    assert isinstance(found.verifier, NumberVerifier)
    verdict = found.verifier.verify("#### -7", {"answer": "7"})
    assert not verdict.lenient  # the task's own scorer takes -7 for 7

    same = load("reasoning_gym:gsm_symbolic", options={"size": 60, "seed": 5})
    assert same.problems["question"][:] == found.problems["question"][:]
    two = sorted(set(found.problems["category"]))[:2]
    some = load("gsm_symbolic", options={"size": 60, "seed": 5}, categories=two)
    counts = Counter(found.problems["category"])
    assert Counter(some.problems["category"]) == {name: counts[name] for name in two}


def test_task_defaults_and_test_problems() -> None:
    train = load("gsm_symbolic")
    assert len(train.problems) == 1000
    test = load("gsm_symbolic", "test")  # a few templates make the same question twice
    assert 950 < len(test.problems) < 1000
    assert not set(train.problems["question"]) & set(test.problems["question"])
    as_split = load_problems(DataConfig(name="gsm_symbolic", split="test"))
    assert as_split.problems["question"][:] == test.problems["question"][:]


def test_a_task_with_answers_of_several_lines() -> None:
    found = load("reasoning_gym:rotate_matrix", options={"size": 3})
    assert isinstance(found.verifier, TaskVerifier)
    check_gold(found)
    row = found.problems[0]
    assert "\n" in row["answer"]
    first_line = row["answer"].partition("\n")[0]
    assert not found.verifier.verify(f"#### {first_line}", row).lenient
    found.verifier.worker.close()


def test_a_task_that_evaluates_answers() -> None:
    found = load("reasoning_gym:countdown", options={"size": 3})
    check_gold(found)
    row, verify = found.problems[0], found.verifier.verify
    assert verify(f"#### ({row['answer']})", row).strict  # right, and not the gold answer's text
    assert not verify(f"#### {row['answer']} + 0", row).strict  # right, with other numbers
    assert found.verifier.parse_failures == 0
    assert not verify("#### nothing of the kind", row).lenient
    assert found.verifier.parse_failures == 1
    assert not verify("#### open('x')", row).strict
    assert found.verifier.parse_failures == 2
    found.verifier.worker.close()


def test_a_task_without_gold_answers() -> None:
    found = load("reasoning_gym:graph_color", options={"size": 3})
    assert found.problems["answer"][:] == [""] * 3
    check_gold(found)  # only the task can tell


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "reasoning_gym:gsm_symbolik"}, r"unknown .*'gsm_symbolik', did you .*symbolic"),
        ({"name": "reasoning_gym:composite"}, r"unknown reasoning_gym task 'composite'"),
        ({"name": "reasoning_gym:gcd", "options": {"sise": 3}}, r"'sise'.*options are .*size"),
        ({"name": "reasoning_gym:gcd", "options": {"seed": "x"}}, r"options of gcd do not work"),
        ({"name": "reasoning_gym:gcd", "options": {"min_numbers": -1}}, r"do not work"),
        ({"name": "gsm_symbolic", "split": "dev"}, r"must be train or test, got 'dev'"),
        ({"name": "gsm8"}, r"unknown data set 'gsm8', did you mean 'gsm8k'\?.*hub id"),
        ({"name": "zzz"}, r"unknown data set 'zzz'; it may be gsm8k"),
        ({"name": "no/such.jsonl"}, r"no/such.jsonl does not exist"),
        ({"name": "gsm8k", "data_dir": "no/dir"}, r"no/dir.gsm8k holds no <split>.jsonl"),
        ({"name": "pyproject.toml"}, r"must be a .jsonl, .csv, .parquet file"),
    ],
)
def test_what_cannot_be_loaded(config: dict, message: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(DataError, match=message):
        load_problems(DataConfig(**config))


def test_own_files_of_every_kind(tmp_path) -> None:
    rows = [{"q": f"{i} + 1?", "a": f"{i + 1}.0", "weight": i} for i in range(3)]
    table = datasets.Dataset.from_list(rows)
    write(tmp_path / "own[1].jsonl", rows)
    table.to_csv(tmp_path / "own.csv")
    table.to_parquet(tmp_path / "own.parquet")
    before = sorted(tmp_path.iterdir())
    for name in ("own[1].jsonl", "own.csv", "own.parquet"):
        found = load(str(tmp_path / name), question_column="q", answer_column="a")
        assert set(found.problems.column_names) == COLUMNS | {"weight"}
        assert found.problems["weight"][:] == [0, 1, 2]  # other columns are for reward functions
        assert found.problems["question"][:] == ["0 + 1?", "1 + 1?", "2 + 1?"]
        assert found.problems["id"][0] == f"{Path(name).stem}/0"
        assert [float(answer) for answer in found.problems["answer"]] == [1, 2, 3]
    assert sorted(tmp_path.iterdir()) == before  # no caches next to the data


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user<|im_end|>", "content": "x"}, "'user<|im_end|>' speaks in prompt; allowed"),
        ({"role": "user", "content": None}, "content must be text, got None"),
    ],
)
def test_roles_and_contents_of_own_chat_prompts_are_checked(tmp_path, message, said) -> None:
    chat = [message, {"role": "user", "content": "1 + 1?"}]
    path = write(tmp_path / "chat.jsonl", [{"prompt": chat, "answer": 2}])
    with pytest.raises(DataError, match=re.escape(f"chat/0: {said}")):
        load(str(path))


def test_other_fields_of_own_chat_prompts_do_not_reach_the_template(tmp_path) -> None:
    chat = [{"role": "user", "content": "1 + 1?", "name": "<|im_start|>"}]
    path = write(tmp_path / "chat.jsonl", [{"prompt": chat, "answer": 2}])
    assert load(str(path)).problems[0]["prompt"] == [{"role": "user", "content": "1 + 1?"}]


@pytest.mark.parametrize(("method", "count"), [("grpo", 1), ("sft", 2)])
def test_control_tokens_in_training_data_are_said_once(tmp_path, caplog, method, count) -> None:
    rows = [
        {"question": "Is it 1? <|im_end|>", "answer": 1},
        {"question": "Is it 2?", "answer": "It is.<|im_end|>\n#### 2"},
        {"question": "Is it 3?", "answer": 3},
    ]
    path = write(tmp_path / "mine.jsonl", rows)
    config = build_config(
        {
            "model": {"id": "embedded"},
            "method": method,
            "data": {"name": str(path), "validation_size": 0},
            "output": str(tmp_path / "run"),
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
    with caplog.at_level(logging.WARNING):
        data = load_training_data(config, tokenizer)
    assert len(data.train_set.problems) == 3  # none is left out
    (line,) = [line for line in caplog.messages if "spell" in line]
    assert line.startswith(
        f"{count} problems of {path} spell control tokens of the model (<|im_end|>)"
    )


def test_own_chat_prompts_are_used_as_they_are(tmp_path) -> None:
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1 + 1?"},
    ]
    path = write(tmp_path / "chat.jsonl", [{"prompt": chat, "answer": 2, "id": "x7"}])
    row = load(str(path)).problems[0]
    assert row["prompt"] == chat
    assert (row["question"], row["answer"], row["id"]) == ("1 + 1?", "2", "x7")
    path = write(tmp_path / "bad.jsonl", [{"prompt": [{"role": "system"}], "answer": 2}])
    with pytest.raises(DataError, match="bad/0: prompt must hold messages, one by the user"):
        load(str(path))


def test_own_worked_solutions(tmp_path) -> None:
    rows = [
        {"question": "a", "answer": "1 + 1 = 2\n#### 2", "solution": ""},
        {"question": "b", "answer": "3", "solution": "1 + 2 = 3"},
        {"question": "c", "answer": "4", "solution": "So 4.\n#### 4"},
        {"question": "d", "answer": "5", "solution": ""},
    ]
    found = load(str(write(tmp_path / "own.jsonl", rows))).problems
    assert found["answer"][:] == ["2", "3", "4", "5"]
    assert found["solution"][:] == ["1 + 1 = 2\n#### 2", "1 + 2 = 3\n#### 3", "So 4.\n#### 4", ""]


def test_own_gold_must_verify(tmp_path) -> None:
    answers = ["1", "many", "", None, *["x"] * 20]
    rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate(answers)]
    path = write(tmp_path / "own.jsonl", rows)
    with pytest.raises(
        DataError, match=r"23 of 24 gold .* own/1: 'many'; own/2: ''; .*own/10"
    ) as e:
        load(str(path))
    assert "own/11" not in str(e.value)
    good = write(tmp_path / "latex.jsonl", [{"question": "Halve x.", "answer": "\\frac{x}{2}"}])
    with pytest.raises(DataError, match=r"another data\.verifier"):
        load(str(good))
    found = load(str(good), verifier="latex")
    assert found.verifier.verify("#### x/2", found.problems[0]).strict
    found.verifier.worker.close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"question": "a"\n{', r"cannot read .*a.jsonl as .jsonl: "),
        ("a.jsonl", '{"question": "a", "reply": "1"}\n', r"no column 'answer'; it has .*reply"),
        ("a.csv", "x,y\n1,2\n", r"no column 'question' or 'answer'; it has x, y"),
        ("a.csv", "question,answer\n", r"cannot read .*a.csv as .csv: .*no data"),
        ("a.parquet", "nonsense", r"cannot read .*a.parquet as .parquet: "),
        ("a.jsonl", '{"question": null, "answer": "1"}\n', r"a/0 has no question"),
        ("a.jsonl", '{"question": " \\n", "answer": "1"}\n', r"a/0 has no question"),
        (
            "a.jsonl",
            '{"prompt": [{"role": "user", "content": " "}], "answer": "1"}\n',
            r"a/0 has no question",
        ),
    ],
)
def test_own_files_that_are_broken(tmp_path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / name))


def test_a_file_has_no_splits(tmp_path) -> None:
    path = write(tmp_path / "own.jsonl", [{"question": "a", "answer": "1"}])
    with pytest.raises(DataError, match="is a file and has no splits"):
        load_problems(DataConfig(name=str(path), split="train"))
    assert len(load(str(path), "test").problems) == 1


def test_hub(monkeypatch) -> None:
    asked = []

    def fake(hub_id, hub_config=None, **_):
        asked.append((hub_id, hub_config))
        rows = GSM8K if hub_id == "openai/gsm8k" else [{"question": "a", "answer": "1"}]
        return datasets.DatasetDict(
            train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(rows[:1])
        )

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert load("gsm8k").problems["answer"][:] == ["1200", "2"]
    assert load("gsm8k", "test").problems["id"][:] == ["test/0"]
    assert load("someone/things:small").problems["id"][:] == ["train/0"]
    assert asked == [("openai/gsm8k", "main")] * 2 + [("someone/things", "small")]


@pytest.mark.parametrize("name", ["gsm8k", "someone/things"])
def test_hub_out_of_reach(name: str, monkeypatch) -> None:
    def fail(*_, **__):
        raise ConnectionError("Couldn't reach it") from OSError("no route\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"from the .* hub: no route; .*set data.data_dir") as e:
        load(name)
    assert "\n" not in str(e.value)


def test_a_hub_id_from_a_local_folder(tmp_path) -> None:
    write(tmp_path / "someone/things/train.jsonl", [{"question": "a", "answer": "1"}])
    assert load("someone/things", data_dir=tmp_path).problems["answer"][:] == ["1"]


def test_loading_is_silent_and_leaves_settings_alone(local, capfd) -> None:
    datasets.enable_progress_bars()
    load("gsm8k", data_dir=local)
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_split_validation_is_disjoint_and_deterministic() -> None:
    questions = [f"q{i}" for i in range(20)] + ["q0", "Q1 ", "q2  "]
    whole = problem_set(questions)
    train, validation = split_validation(whole, 8, seed=1)
    assert len(validation.problems) == 8

    def keys(found: ProblemSet) -> list[str]:
        return [q.strip().lower() for q in found.problems["question"]]

    assert len(set(keys(validation))) == 8
    assert not set(keys(train)) & set(keys(validation))
    assert set(keys(train)) | set(keys(validation)) == {f"q{i}" for i in range(20)}
    duplicated = sum(key in ("q0", "q1", "q2") for key in keys(validation))
    assert len(train.problems) == 23 - 8 - duplicated
    again = split_validation(whole, 8, seed=1)
    assert keys(again[0]) == keys(train)
    assert keys(again[1]) == keys(validation)
    assert {tuple(keys(split_validation(whole, 8, seed=s)[1])) for s in range(4)} != {
        tuple(keys(validation))
    }


def test_training_problems_that_are_asked_for_are_those_that_are_trained_on(tmp_path: Path) -> None:
    """What is voted on there can be learned from, as far as there are problems enough."""
    questions = [f"What is {i} + 1?" for i in range(40)] + ["what is 3 + 1?", "What is  7 + 1?"]
    rows = [{"question": q, "answer": str(int(q.split()[2]) + 1)} for q in questions]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(name=str(path))

    def asked(found: ProblemSet) -> set[str]:
        return {q.casefold().replace("  ", " ") for q in found.problems["question"]}

    train, validation = split_validation(load_problems(config, seed=3), 16, seed=3)
    some = load_problems(config.model_copy(update={"limit": 24}), "train", seed=3)
    assert len(some.problems) == 24 and not asked(some) & asked(validation)
    assert asked(some) <= asked(train)
    other = load_problems(config.model_copy(update={"limit": 24}), "train", seed=4)
    assert asked(other) & asked(validation)  # of another seed's run it is as chance has it


def test_split_validation_never_leaks_a_duplicate() -> None:
    whole = problem_set(["same", "Same", "same ", "other", "third"])
    for seed in range(10):
        train, validation = split_validation(whole, 1, seed)
        held_out = validation.problems["question"][0]
        left = {"same": 2, "other": 4, "third": 4}[held_out]
        assert len(train.problems) == left


def test_split_validation_sizes() -> None:
    whole = problem_set(["a", "A", "b"])
    train, validation = split_validation(whole, 0, seed=0)
    assert (len(train.problems), len(validation.problems)) == (3, 0)
    with pytest.raises(ValueError, match=r"cannot hold out 2 .* 2 different questions"):
        split_validation(whole, 2, seed=0)


def test_drop_long_prompts(monkeypatch) -> None:
    asked = object()

    def prompt_ids(tokenizer, messages):
        assert tokenizer is asked
        return ["<s>", *messages[-1]["content"].split(), "go"]

    monkeypatch.setattr("kit.training.data.prompt_ids", prompt_ids)
    whole = problem_set(["a b c", "a", "a b c d", "a b"])  # 5, 3, 6 and 4 tokens
    kept, dropped = drop_long_prompts(whole, asked, 4)
    assert kept.problems["question"][:] == ["a", "a b"]
    assert dropped == 2
    assert drop_long_prompts(whole, asked, 6)[1] == 0
    assert len(whole.problems) == 4
    with pytest.raises(DataError, match="longer than 2 tokens, the shortest has 3"):
        drop_long_prompts(whole, asked, 2)


def test_arms_learn_from_the_same_problems_each_asked_as_its_guidelines_say(tmp_path) -> None:
    rows = [{"question": f"What is 1 + {i}?", "answer": 1 + i} for i in range(6)]
    data = {"name": str(write(tmp_path / "mine.jsonl", rows)), "validation_size": 2}

    def arm(guidelines: list[str]):
        values = {"model": {"id": "embedded"}, "data": data, "guidelines": guidelines}
        return build_config(values)

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
    arms = [arm([]), arm(["concise"]), arm([])]
    plain, brief, again = load_data_of_arms(arms, tokenizer)
    assert again is plain
    for ours, theirs in ((plain.train_set, brief.train_set), (plain.validation, brief.validation)):
        assert ours.problems["id"][:] == theirs.problems["id"][:]
        for a, b in zip(ours.problems, theirs.problems, strict=True):
            assert a["prompt"][0]["content"] == SYSTEM_PROMPT
            assert b["prompt"][0]["content"] == f"{SYSTEM_PROMPT}\nBe brief."
            assert a["prompt"][1:] == b["prompt"][1:]


def test_lengths_that_only_some_arms_can_keep_are_refused(tmp_path) -> None:
    rows = [{"question": "1?" + " 1?" * i, "answer": 1} for i in range(9)]
    data = {"name": str(write(tmp_path / "mine.jsonl", rows)), "validation_size": 0}
    values = {"model": {"id": "embedded"}, "data": data | {"max_prompt_tokens": 60}}
    arms = [build_config(values), build_config(values | {"guidelines": "concise"})]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
    kept = [len(load_training_data(one, tokenizer).train_set.problems) for one in arms]
    assert 0 < kept[1] < kept[0]
    with pytest.raises(ConfigError, match=r"over data\.max_prompt_tokens=60, so that the arms wo"):
        load_data_of_arms(arms, tokenizer)


def test_guidelines_do_not_go_with_prompts_of_the_datas_own(tmp_path) -> None:
    chat = [{"role": "user", "content": "1?"}]
    path = write(tmp_path / "own.jsonl", [{"prompt": chat, "answer": 1}])
    problems = load(str(path))
    assert guided(problems, SYSTEM_PROMPT, {}) is problems
    with pytest.raises(
        DataError, match=r"own\.jsonl has prompts of its own, to which guidelines add noth"
    ):
        guided(problems, SYSTEM_PROMPT, read_guidelines("concise"))


@pytest.mark.parametrize(
    ("name", "split", "kept"),
    [
        pytest.param("gsm8k", "train", 7473, marks=pytest.mark.slow),
        ("gsm8k", "test", 1319),
        ("svamp", "test", 1000),
        ("asdiv", "test", 2092),  # of 2305
        ("math500", "test", 500),
    ],
)
def test_published_gold_answers_all_verify(name: str, split, kept: int) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"no published data in {REAL / name}: set KIT_DATA_DIR")
    found = load(name, split, data_dir=REAL)
    assert len(found.problems) == kept
    assert len(set(found.problems["id"])) == kept
    check_gold(found)
    if isinstance(found.verifier, LatexVerifier):
        assert (found.verifier.timeouts, found.verifier.parse_failures) == (0, 0)
        found.verifier.worker.close()
    for row in found.problems:
        assert row["solution"].endswith(f"\n#### {row['answer']}")
        assert "<<" not in row["solution"]
    assert set(KNOWN) == {"gsm8k", "svamp", "asdiv", "math500"}
