"""Where problems come from: known data sets, reasoning-gym tasks, files, and the hub.

Each kind is read into rows with the columns that `kit.tasks.problems` describes, but the prompt.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.config import READERS, AnswerKind, DataConfig
from kit.errors import DataError
from kit.spelling import did_you_mean, did_you_mean_path
from kit.tasks.answers import parse_number
from kit.tasks.splits import Role, read_file, read_split
from kit.tasks.verifiers import NumberVerifier, TaskVerifier, Verifier

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
TASK_PREFIX = "reasoning_gym:"
SYMBOLIC = "gsm_symbolic"  # a task that is named without the prefix too
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
TASK_SIZE = 1000
TEST_SEED_OFFSET = 500_000
"""Added to the seed for a task's test problems: problem i of a task is made from seed + i."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Source:
    """A data set the kit knows: where it is on the hub, and how a row of it becomes a problem."""

    hub_id: str
    hub_config: str | None
    problem: Callable[[Row], dict[str, str]]
    verifier: AnswerKind


def is_task(name: str) -> bool:
    """Whether a data set is made by a task of reasoning_gym."""
    return name == SYMBOLIC or name.startswith(TASK_PREFIX)


def check_named(name: str) -> None:
    """DataError, before anything is read, for what names no data set, task or file."""
    path = Path(name).expanduser()
    if name.startswith(TASK_PREFIX):
        _check_task(name.removeprefix(TASK_PREFIX))
    elif path.suffix.lower() in READERS:
        if not path.is_file():
            raise DataError(f"{path} does not exist{did_you_mean_path(path)}")
    elif path.is_file():
        raise DataError(f"{name} must be a {', '.join(READERS)} file")
    elif name not in (*KNOWN, SYMBOLIC) and not HUB_ID.fullmatch(name):
        known = [*KNOWN, SYMBOLIC, TASK_PREFIX + "<task>"]
        raise DataError(
            f"unknown data set {name!r}{did_you_mean(name, known)}; it may be "
            f"{', '.join(known)}, a hub id (owner/name), or a {', '.join(READERS)} file"
        )


def _check_task(task: str) -> None:
    from reasoning_gym.factory import DATASETS

    known = sorted(set(DATASETS) - {"composite"})  # its parts are tasks themselves
    if task not in known:
        hint = did_you_mean(task, known) or f", known: {', '.join(known)}"
        raise DataError(f"unknown reasoning_gym task {task!r}{hint}")


# --- the data sets the kit knows --------------------------------------------------------------


def known_rows(name: str, config: DataConfig, split: Role | None) -> list[dict[str, Any]]:
    """Rows of a known data set; those whose gold answer is no single number are dropped."""
    source = KNOWN[name]
    raw, chosen = read_split(name, source.hub_id, source.hub_config, config, split)
    rows = []
    try:
        for index, row in enumerate(raw):
            rows.append({"id": f"{chosen}/{index}"} | source.problem(row))
    except (KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{name}: row {index} is not in its published form: {error!r}") from None
    if source.verifier == "latex":
        return rows
    kept = [row for row in rows if parse_number(row["answer"]) is not None]
    if len(kept) < len(rows):
        logger.warning(
            "%s: %d of %d problems dropped, whose answer is not a single number (times, ratios, "
            "words, several answers)",
            *(name, len(rows) - len(kept), len(rows)),
        )
    return kept


def _gsm8k(row: Row) -> dict[str, str]:
    """The worked solution holds the answer, and calculator marks such as <<16-3=13>>."""
    worked, _, answer = re.sub(r"<<[^<>\n]*>>", "", row["answer"]).rpartition("####")
    answer, steps = _plain(answer), len(worked.strip().splitlines())
    category = f"{steps} step{'' if steps == 1 else 's'}"
    return _problem(row["question"], answer, solution=_solved(worked, answer), category=category)


def _svamp(row: Row) -> dict[str, str]:
    category = row["Type"].replace("Divison", "Division")
    answer = _plain(row["Answer"])
    equation = re.sub(r"\.0(?!\d)", "", row["Equation"])  # ( 8.0 - 3.0 )
    solution = _solved(f"{equation} = {answer}", answer)
    problem = _problem(row["question_concat"], answer, solution=solution, category=category)
    return problem | {"id": row["ID"]}


def _asdiv(row: Row) -> dict[str, str]:
    answer = _plain(re.sub(r"\s*\([^()]*\)$", "", row["answer"]))  # without the unit
    category = row["solution_type"].replace("Substraction", "Subtraction")
    question = f"{row['body']} {row['question']}"
    return _problem(
        question,
        answer,
        solution=_solved(row["formula"], answer),
        category=category,
        difficulty=f"grade {row['grade']}",
    )


def _math500(row: Row) -> dict[str, str]:
    solution, difficulty = _solved(row["solution"], row["answer"]), f"level {row['level']}"
    kinds = {"category": row["subject"], "difficulty": difficulty}
    return _problem(row["problem"], row["answer"], solution=solution, **kinds) | {
        "id": row["unique_id"]
    }


KNOWN = {
    "gsm8k": Source("openai/gsm8k", "main", _gsm8k, "number"),
    "svamp": Source("ChilleD/SVAMP", None, _svamp, "number"),
    "asdiv": Source("EleutherAI/asdiv", None, _asdiv, "number"),
    "math500": Source("HuggingFaceH4/MATH-500", None, _math500, "latex"),
}


def _problem(
    question: str, answer: str, *, solution: str = "", category: str = "", difficulty: str = ""
) -> dict[str, str]:
    return {
        "question": question.strip(),
        "answer": answer.strip(),
        "solution": solution,
        "category": category,
        "difficulty": difficulty,
    }


def _plain(answer: str) -> str:
    """An integer without separators and decimals ('51.0' is '51'); anything else unchanged."""
    value = parse_number(answer)
    return str(value) if value is not None and value.denominator == 1 else answer.strip()


def _solved(worked: str, answer: str) -> str:
    """A worked solution that ends in the strict format."""
    return f"{worked.strip()}\n#### {answer}"


# --- reasoning-gym tasks ----------------------------------------------------------------------


def task_rows(
    task: str, config: DataConfig, split: Role | None
) -> tuple[list[dict[str, Any]], Verifier]:
    """Problems of a task and its verifier.

    Test problems are made from another seed, and those whose question is a training question all
    the same are left out. gsm_symbolic is verified as numbers: its own scorer reads '-5' as 5 and
    '1,234' as 1.
    """
    from reasoning_gym.factory import DATASETS

    role = split or config.split or "train"
    if role not in ("train", "test"):
        raise DataError(f"data.split of a reasoning_gym task must be train or test, got {role!r}")
    options = {"size": TASK_SIZE, "seed": 0} | config.options
    try:
        rows, entries = _make(task, options)
        if role == "test":
            trained_on = {row["question"] for row in rows}
            options["seed"] += TEST_SEED_OFFSET
            rows, entries = _make(task, options)
            rows = [row for row in rows if row["question"] not in trained_on]
        arguments = json.dumps(options)
    except (TypeError, ValueError, AssertionError) as error:
        allowed = ", ".join(field.name for field in dataclasses.fields(DATASETS[task][1]))
        raise DataError(
            f"data.options of {task} do not work: {error}; its options are {allowed}"
        ) from error
    if task == SYMBOLIC:
        return rows, NumberVerifier()
    return rows, TaskVerifier(task, arguments, entries)


def _make(task: str, options: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The problems of a task, and what the task itself knows of each, by id."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, **options)
    templates = getattr(dataset, "task_indices", None)  # where the task chooses among templates
    rows, entries = [], {}
    for index in range(len(dataset)):
        entry = entries[f"{task}/{index}"] = dataset[index]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        if "Integral(" in answer:  # the task could not integrate it: no answer to its question
            answer = ""
        worked = entry["metadata"].get("answer_cot") or ""
        solution = _solved(worked.rpartition("####")[0] or worked, answer) if worked else ""
        category = f"template {templates[index]}" if templates else ""
        problem = _problem(entry["question"], answer, solution=solution, category=category)
        rows.append({"id": f"{task}/{index}"} | problem)
    return rows, entries


# --- files and hub data sets of the user's ----------------------------------------------------


def own_rows(name: str, config: DataConfig, split: Role | None) -> list[dict[str, Any]]:
    """Rows of a file or of a hub data set the kit does not know (`owner/name[:config]`)."""
    path = Path(name).expanduser()
    if path.suffix.lower() in READERS:
        if config.split is not None:
            raise DataError(f"{name} is a file and has no splits; leave data.split empty")
        raw, origin = read_file(path), path.stem
    else:
        hub_id, _, hub_config = name.partition(":")
        raw, origin = read_split(hub_id, hub_id, hub_config or None, config, split)
    chat = "prompt" in raw.column_names and len(raw) > 0 and isinstance(raw[0]["prompt"], list)
    needed = [config.answer_column] if chat else [config.question_column, config.answer_column]
    missing = [column for column in needed if column not in raw.column_names]
    if missing:
        raise DataError(
            f"{name} has no column {' or '.join(map(repr, missing))}; it has "
            f"{', '.join(raw.column_names)}: set data.question_column and data.answer_column"
        )
    return [_own_problem(row, f"{origin}/{index}", config, chat) for index, row in enumerate(raw)]


def _own_problem(row: Row, default_id: str, config: DataConfig, chat: bool) -> dict[str, Any]:
    """One row; an answer column in GSM8K's form (worked, then '#### <answer>') is taken apart."""
    question, own = _text(row.get(config.question_column)), dict[str, Any]()
    if chat:
        messages = _messages(row["prompt"], default_id)
        own["prompt"] = messages
        question = [m["content"].strip() for m in messages if m["role"] == "user"][-1]
    if not question:
        raise DataError(f"{default_id} has no question")
    answer, solution = _text(row[config.answer_column]), _text(row.get("solution"))
    if "####" in answer:
        solution, _, answer = answer.rpartition("####")
        answer = answer.strip()
    solution = solution.strip().removesuffix(f"#### {answer}")
    own |= _problem(
        question,
        answer,
        solution=_solved(solution, answer) if solution else "",
        category=_text(row.get("category")),
        difficulty=_text(row.get("difficulty")),
    )
    own["id"] = _text(row.get("id")) or default_id
    taken = (config.question_column, config.answer_column)
    return {column: value for column, value in row.items() if column not in taken} | own


def _messages(prompt: Any, name: str) -> list[dict[str, str]]:
    """A prompt's roles and contents, and nothing else: templates act on other fields too."""
    try:
        messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    except (KeyError, TypeError):
        messages = []
    if "user" not in [m["role"] for m in messages]:
        raise DataError(f"{name}: prompt must hold messages, one by the user")
    for message in messages:
        if message["role"] not in ROLES:  # a template writes it outside of the message
            raise DataError(
                f"{name}: {message['role']!r:.40} speaks in prompt; allowed are {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str):
            raise DataError(f"{name}: content must be text, got {message['content']!r:.40}")
    return messages


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
