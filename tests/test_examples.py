"""Every example, run as a user runs it: in its own process, without the kit where it says so.

Those that train with TRL are forked from a process that has imported it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kit.config import EMBEDDED, EMBEDDED_PATH, EMBEDDED_RECIPES, SYSTEM_PROMPT, ModelConfig
from kit.model.base import Base, load_base
from kit.model.lora import load_adapters
from kit.reading import read_metrics
from kit.recipe import load_config
from kit.tasks.problems import load_problems
from kit.training.trainer import train
from tests.forks import Forks

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
DOCUMENT = (ROOT / "docs" / "elsewhere.md").read_text(encoding="utf-8")
CLIENT = re.search(r"```python\n(from openai.*?)```", DOCUMENT, re.DOTALL)[1]
IMPORTED = ("torch", "datasets", "peft", "trl.trainer.grpo_trainer", "trl.trainer.sft_trainer")
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason='needs TRL: pip install "trl>=1.14,<1.17"'
)
needs_server = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")),
    reason='needs a server: pip install "transformers[serving]"',
)


@pytest.fixture(scope="module")
def float_base() -> Base:
    return load_base(ModelConfig(id="embedded", quantization="none"), torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(float_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, an adapter that answers with `####` mostly, and problems in GSM8K's form.

    Mostly, and not always: GRPO needs groups whose rewards differ.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = load_config(
        EMBEDDED_RECIPES[EMBEDDED],
        [
            *("method=sft", "model.quantization=none", "lora.rank=4", "lora.alpha=8"),
            *("data.options={size: 600, seed: 0}", "data.validation_size=0"),
            *("optim.learning_rate=1e-2", "train.sft_batch=8", "train.steps=6"),
            *("train.validate_every=0", "train.checkpoint_every=6", "train.preflight_problems=0"),
            f"output={folder / 'run'}",
        ],
    )
    train(config, base=float_base)
    problems = sorted(load_problems(config.data).problems, key=lambda row: len(row["solution"]))
    rows = [{"question": row["question"], "answer": row["solution"]} for row in problems[:16]]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # whatever starts with this folder on the path cannot import the kit, nor can its children
    (folder / "without").mkdir()
    (folder / "without" / "sitecustomize.py").write_text("import sys\nsys.modules['kit'] = None\n")
    return folder


@pytest.fixture(scope="module")
def forks(folder: Path) -> Iterator[Forks]:
    """Processes without the kit, as far as they do not ask for it."""
    forks = Forks(IMPORTED, surroundings(folder, kit=False)["env"])
    yield forks
    forks.close()


def command(script: str, *arguments: str) -> list[str]:
    paths = ("--base", str(EMBEDDED_PATH), "--adapter", "run/adapter")
    return [script, *paths, *arguments]


def surroundings(folder: Path, kit: bool) -> dict[str, object]:
    path = "" if kit else str(folder / "without")
    return {"cwd": folder, "env": {**os.environ, "PYTHONPATH": path}}


def run(folder: Path, *line: str, kit: bool = False) -> str:
    """What a process prints; it must end well."""
    done = subprocess.run(
        (sys.executable, *line),
        **surroundings(folder, kit),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def question(folder: Path) -> str:
    return json.loads((folder / "mine.jsonl").read_text().splitlines()[0])["question"]


@pytest.fixture(scope="module")
def reply(folder: Path) -> str:
    """What load.py prints for the first problem."""
    return run(folder, *command("load.py", "--question", question(folder))).strip()


@pytest.mark.slow
def test_the_kit_cannot_be_imported_where_it_must_not_be_needed(folder):
    probe = ("-c", "import kit")
    without = subprocess.run(
        (sys.executable, *probe), **surroundings(folder, kit=False), capture_output=True
    )
    assert without.returncode == 1 and b"import of kit halted" in without.stderr
    assert run(folder, *probe, kit=True) == ""


def test_the_examples_ask_as_the_kit_trained():
    for name in ("load.py", "shared.py"):
        assert json.dumps(SYSTEM_PROMPT) in (EXAMPLES / name).read_text(encoding="utf-8")
    assert json.dumps(SYSTEM_PROMPT) in CLIENT


@pytest.mark.slow
def test_load_answers_with_the_adapter(folder, reply, float_base):
    assert re.search(r"^#### -?\d+$", reply.splitlines()[-1])
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": question(folder)},
    ]
    ids = torch.tensor([float_base.prompt_ids(messages)])
    output = float_base.model.generate(ids, max_new_tokens=100, do_sample=False)
    bare = float_base.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert bare.strip() and "####" not in bare  # it is the adapter that learned the format


@needs_server
@pytest.mark.slow
def test_the_served_model_says_what_the_loaded_one_says(folder, reply, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    client = CLIENT.replace("localhost:8000", f"localhost:{port}")
    asked = re.search(r'(?<="user", "content": )"[^"]*"', client)[0]
    client = client.replace(asked, json.dumps(question(folder)))
    with serving(folder, port):
        exec(compile(client, "docs/elsewhere.md", "exec"), {})
    assert capsys.readouterr().out.strip() == reply


@contextmanager
def serving(folder: Path, port: str) -> Iterator[None]:
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command("serve.py", "--out", "merged", "--port", port)],
            **surroundings(folder, kit=False),
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 240
        while not healthy(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def healthy(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, TimeoutError):
        return False


def continued(forks: Forks, folder: Path, script: str, *arguments: str, kit: bool = False) -> str:
    """Run two steps of an example that trains, and look at the adapter it leaves."""
    out = script.removesuffix(".py")
    options = ("--data", "mine.jsonl", "--out", out, "--steps", "2", *arguments)
    printed = forks.run(command(script, *options), folder, path=str(ROOT) if kit else "")
    before = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    after = load_file(folder / out / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    return printed


def is_taken_back(folder: Path, base: Base) -> None:
    """The kit loads the continued adapter as one of this base's."""
    model = load_adapters(base, {"continued": str(folder)})
    assert "continued" in model.peft_config
    model.unload()


@needs_trl
@pytest.mark.slow
def test_the_fork_cannot_import_the_kit_either(folder, forks):
    (folder / "probe.py").write_text("import kit")
    with pytest.raises(AssertionError, match="import of kit halted"):
        forks.run(["probe.py"], folder)
    assert forks.run(["probe.py"], folder, path=str(ROOT)) == ""


@needs_trl
@pytest.mark.slow
def test_sft_continues(forks, folder, float_base):
    continued(forks, folder, "continue_sft.py")
    is_taken_back(folder / "continue_sft", float_base)


@needs_trl
@pytest.mark.slow
def test_grpo_continues_and_pspo_differs_by_the_smoothing(forks, folder, float_base):
    """Same seed, same samples: at ratio 1 PSPO's gradient is 1 - alpha = 0.9 times that of clip."""
    sizes = ("--batch", "16", "--max-tokens", "64")
    clip = continued(forks, folder, "continue_grpo.py", *sizes)
    pspo = continued(forks, folder, "pspo_in_trl.py", *sizes, kit=True)
    is_taken_back(folder / "continue_grpo", float_base)
    is_taken_back(folder / "pspo_in_trl", float_base)
    assert figure(clip, "rewards/correct/mean") == figure(pspo, "rewards/correct/mean")
    ratio = figure(pspo, "grad_norm") / figure(clip, "grad_norm")
    assert ratio == pytest.approx(0.9, rel=2e-3)  # printed with four digits


def figure(printed: str, name: str) -> float:
    """A metric of the first step that TRL printed."""
    return float(re.search(rf"'{name}': '([^']+)'", printed)[1])


@pytest.mark.slow
def test_the_loop_on_one_page_equals_kit_train(base, tmp_path, monkeypatch, capsys):
    """Reward and loss of every step, and the adapter bit for bit."""
    recipe = str(ROOT / "configs" / "smoke.yaml")
    settings = [
        *("train.steps=2", "train.updates_per_rollout=2", "train.micro_batch_tokens=512"),
        *("train.validate_every=0", "train.preflight_problems=0", "rollout.prompts_per_step=3"),
    ]
    loop, own = tmp_path / "loop", tmp_path / "own"
    monkeypatch.setattr("sys.argv", ["grpo_loop.py", recipe, *settings, f"output={loop}"])
    runpy.run_path(str(EXAMPLES / "grpo_loop.py"))
    said = capsys.readouterr().out.splitlines()
    trained = train(load_config(recipe, [*settings, f"output={own}"]), base=base)
    steps = [record for record in read_metrics(trained.metrics) if "update/loss" in record]
    assert len(steps) == 2
    assert said[1::2] == [  # metrics are of a step's last update
        f"step {r['step']}: reward {r['reward/mean']:.3f}, loss {r['update/loss']:+.5f} in update 2"
        for r in steps
    ]
    ours = load_file(loop / "adapter" / "adapter_model.safetensors")
    theirs = load_file(trained.adapter / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_loop_overwrites_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["grpo_loop.py", str(ROOT / "configs/smoke.yaml"), f"output={tmp_path}"]
    )
    (tmp_path / "adapter").mkdir()
    with pytest.raises(SystemExit, match=r"there is a run in .*; choose another output="):
        runpy.run_path(str(EXAMPLES / "grpo_loop.py"))


def test_load_says_what_it_misses(tmp_path, monkeypatch):
    """Nothing is asked of the hub: neither is there an adapter, nor a base of the kit's own."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)

    def load(*arguments):
        monkeypatch.setattr("sys.argv", ["load.py", *arguments])
        runpy.run_path(str(EXAMPLES / "load.py"))

    with pytest.raises(SystemExit, match=r"error: there is no adapter in none; name one"):
        load("--adapter", "none")
    (tmp_path / "own").mkdir()
    settings = {"base_model_name_or_path": "embedded-sums"}
    (tmp_path / "own" / "adapter_config.json").write_text(json.dumps(settings))
    for base in ([], ["--base", "embedded-sums"]):
        with pytest.raises(SystemExit, match=r"print\(EMBEDDED_PATHS\['embedded-sums'\]\)"):
            load("--adapter", "own", *base)
