"""EleutherAI's lm-evaluation-harness as an independent judge, run by what docs/lm-eval.md says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import datasets
import pytest
import torch

from kit.cli import main
from kit.config import EMBEDDED, EMBEDDED_PATH, EMBEDDED_RECIPES, DataConfig
from kit.recipe import load_config
from kit.tasks.problems import load_problems
from kit.tasks.verifiers import NumberVerifier
from kit.training.trainer import train

lm_eval = pytest.importorskip(
    "lm_eval",
    reason="needs lm-evaluation-harness: pip install --constraint constraints.txt lm_eval",
)

from lm_eval.__main__ import cli_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "lm-eval.md").read_text(encoding="utf-8")
PROBLEMS = 32

# completion, gold answer, verdict of both judges; what they dispute is in the document's table
AGREED = [
    ("#### 72", "72", True),
    ("16 + 56 = 72\n#### 72.", "72", True),
    ("# Step 1\n#### 72\n", "72", True),
    ("#### 1,200", "1200", True),
    ("#### 1200", "1,200", True),
    ("#### -5", "-5", True),
    ("#### 2.5", "2.5", True),
    ("#### 72 apples", "72", True),
    ("The total is #### 72 dollars.", "72", True),
    ("#### 25%", "25", True),
    ("#### 72\n#### 72", "72", True),
    ("#### <number>\n#### 72", "72", True),
    ("#### 71", "72", False),
    ("#### 71\n#### 72", "72", False),
    ("#### 0.33", "1/3", False),
    ("#### x = 72", "72", False),
    ("#### seventy-two", "72", False),
    ("####\n72", "72", False),
    ("### 72", "72", False),
    ("The answer is 72.", "72", False),
    (r"\boxed{72}", "72", False),
    ("72", "72", False),
    ("", "72", False),
]
DISPUTE = re.compile(r"^\| `(.+)` \| (\S+) \| (right|wrong) \| (right|wrong) \|", re.MULTILINE)


def block(start: str) -> str:
    """The fenced block of the document that begins like this."""
    return re.search(rf"^```\w+\n({start}.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)[1]


def only_needed_tasks(include_path: str, metadata: dict | None = None) -> TaskManager:
    """lm-eval's index of its gsm8k folder and ours; all 13,000 files take 20 seconds more."""
    gsm8k = Path(lm_eval.__file__).parent / "tasks" / "gsm8k"
    return TaskManager(
        include_path=[str(gsm8k), include_path], include_defaults=False, metadata=metadata
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory that keeps the caches of `datasets` too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    return tmp_path


def strict_match(task, completion: str, gold: str) -> bool:
    """lm-eval's verdict, by the filter and metric of its gsm8k."""
    row = {"question": "?", "answer": gold}
    instance = Instance("generate_until", row, ("", {}), 0, resps=[completion])
    next(f for f in task._filters if f.name == "strict-match").apply([instance])
    scores = task.process_results(row, [instance.filtered_resps["strict-match"]])
    return bool(scores["exact_match"])


def test_both_judges_on_hand_written_completions(folder):
    (folder / "problems.jsonl").write_text('{"question": "?", "answer": "0"}\n')
    task = only_needed_tasks("benchmarks/lm_eval").load(["kit_gsm8k"])["tasks"]["gsm8k"]
    disputes = DISPUTE.findall(DOCUMENT)
    assert len(disputes) == DOCUMENT.count("\n| `")  # no row is passed over
    assert all(theirs != ours for _, _, theirs, ours in disputes)
    cases = [(text, gold, right, right) for text, gold, right in AGREED]
    cases += [
        (text.replace("⏎", "\n"), gold, theirs == "right", ours == "right")
        for text, gold, theirs, ours in disputes
    ]
    for text, gold, theirs, ours in cases:
        verdict = NumberVerifier().verify(text, {"answer": gold})
        judged = (strict_match(task, text, gold), verdict.strict)
        assert (text, gold, *judged) == (text, gold, theirs, ours)


@pytest.mark.smoke
@pytest.mark.slow
def test_lm_eval_generates_the_same_texts_and_counts_the_same_answers(
    folder, monkeypatch, base, make_config
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # float32 on both sides
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # here too
    categories = load_config(EMBEDDED_RECIPES[EMBEDDED]).data.categories
    options = {"size": 600}  # of 100 templates the embedded model knows these
    data = {"name": "gsm_symbolic", "options": options, "categories": categories}
    train(
        make_config(
            method="sft",
            lora={"rank": 8, "alpha": 16},
            data={**data, "validation_size": 0},
            rollout={"max_new_tokens": 128},
            optim={"learning_rate": 6e-3},
            train={"steps": 6, "sft_batch": 8, "checkpoint_every": 6},
            output="runs/mine",
        ),
        base=base,
    )
    held_out = load_problems(DataConfig(**data, limit=PROBLEMS), "test").problems
    write_rows("held-out.jsonl", [{k: row[k] for k in ("question", "answer")} for row in held_out])
    assert main(["evaluate", "runs/mine", "--base", "embedded", "--data", "held-out.jsonl"]) == 0
    ours, of_base = read_rows("runs/mine/eval/*.jsonl"), read_rows("runs/eval/*/*.jsonl")
    write_rows("problems.jsonl", ours)

    saving = block("import torch")
    for written, here in (
        ("Qwen/Qwen2.5-0.5B-Instruct", str(EMBEDDED_PATH)),
        ("bfloat16", "float32"),
        ('"auto"', '"cpu"'),
    ):
        assert written in saving
        saving = saving.replace(written, here)
    exec(saving, {})
    monkeypatch.setattr("lm_eval.tasks.TaskManager", only_needed_tasks)
    command = shlex.split(block("lm_eval").replace("\\\n", ""))
    monkeypatch.setattr(sys, "argv", [*command, "--device", "cpu"])
    cli_evaluate()
    samples = [s for s in read_rows("lm-eval/*/samples_*") if s["filter"] == "strict-match"]
    theirs = sorted(samples, key=lambda sample: sample["doc_id"])

    assert len(theirs) == len(ours) == len(of_base) == PROBLEMS
    chats = dict(zip(held_out["question"], held_out["prompt"], strict=True))
    verifier = NumberVerifier()
    for sample, row in zip(theirs, ours, strict=True):
        (text,) = sample["resps"][0]
        prompt = base.tokenizer(sample["arguments"]["gen_args_0"]["arg_0"])["input_ids"]
        assert prompt == base.prompt_ids(chats[row["question"]])
        assert text == row["completion"]
        assert verifier.verify(text, row).strict == (sample["exact_match"] == 1)

    (results,) = Path("lm-eval").glob("*/results_*.json")
    accuracy = json.loads(results.read_text())["results"]["gsm8k"]["exact_match,strict-match"]
    assert accuracy == sum(row["strict"] for row in ours) / PROBLEMS
    # if all were right, or the adapter did nothing, agreement would mean little
    assert 0.5 < accuracy < 1
    assert sum(row["strict"] for row in of_base) / PROBLEMS < 0.5


def read_rows(pattern: str) -> list[dict]:
    (path,) = Path().glob(pattern)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
