"""The notebook and what its cells call: faked places, a killed session, drift, a full execution."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import kit.adapters.push
import kit.packages
import kit.reports
from kit import cli
from kit.app.library.results import Attempt
from kit.cards import Card, read_cards
from kit.comparison import check_arms, load_arms
from kit.config import DataConfig, ModelConfig
from kit.errors import AdapterError, ConfigError, DataError, InstallError, ResultsError, RunError
from kit.estimate.forecast import estimate
from kit.evaluation.settings import EvalSettings
from kit.model.hardware import DTYPES, choose_hardware
from kit.notebook import cells, install, kaggle_inputs, place, process
from kit.notebook import show as notebook_show
from kit.notebook.kaggle_inputs import find_data, find_model, find_wheels, locate
from kit.notebook.place import Place, keep_folder, where_am_i
from kit.reading import read_metrics
from kit.recipe import load_config
from kit.tasks.problems import load_problems

ROOT = Path(__file__).parents[2]
FILE = ROOT / "notebooks" / "gr_pspo_colab_kaggle.ipynb"
NOTEBOOK = nbformat.read(FILE, as_version=4)
CELLS = {cell.id: cell for cell in NOTEBOOK.cells}
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")

HERE = Place("local", None, online=True)
T4 = Card("Tesla T4", 15.0, 7.5, "550.54.15")
KAGGLE = Place("kaggle", T4, online=True)
OFFLINE = Place("kaggle", T4, online=False)


def settings() -> dict[str, object]:
    """The constants of the settings block, as a user would see them without KIT_SMOKE."""
    block = CELLS["settings"].source.partition("if os.environ")[0]
    assigned = [s for s in ast.parse(block).body if isinstance(s, ast.Assign)]
    return {ast.unparse(s.targets[0]): ast.literal_eval(s.value) for s in assigned}


def make_plan(tmp_path: Path, where: Place = HERE, **changed: object) -> cells.Plan:
    """The notebook's own plan, kept in tmp_path."""
    s = settings()
    values: dict = {
        "arms": s["ARMS"],
        "model": s["MODEL"],
        "data": s["DATA"],
        "steps": s["STEPS"],
        "max_new_tokens": s["MAX_NEW_TOKENS"],
        "problems": s["TEST_PROBLEMS"],
        "overrides": s["OVERRIDES"],
        "keep": str(tmp_path),
    }
    return cells.make_plan(where, **values | changed)


# --- the file ------------------------------------------------------------------------------------


def test_the_notebook_is_valid_and_stripped():
    nbformat.validate(NOTEBOOK)
    assert (NOTEBOOK.nbformat, NOTEBOOK.nbformat_minor) == (4, 5)
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert all(not cell.metadata for cell in NOTEBOOK.cells)
    assert NOTEBOOK.metadata.kernelspec.name == "python3"
    assert NOTEBOOK.metadata.accelerator == "GPU"
    assert NOTEBOOK.metadata.colab.gpuType == "T4"


def test_the_notebook_holds_no_logic():
    """After the first cell, which has to find the kit, every cell is an import or one call."""
    for cell in NOTEBOOK.cells:
        if cell.cell_type == "code" and cell.id != "settings":
            body = ast.parse(cell.source).body
            calls = [s for s in body if not isinstance(s, ast.Import | ast.ImportFrom)]
            assert all(isinstance(s, ast.Expr | ast.Assign) for s in calls), cell.id
            assert len(calls) <= 2, cell.id


def test_settings_are_those_of_the_recipes(tmp_path):
    plan = make_plan(tmp_path)
    s = settings()
    assert [path.stem for path in plan.recipes] == s["ARMS"]
    for path, config in zip(plan.recipes, plan.configs.values(), strict=True):
        assert config == load_config(path)
    check_arms(load_arms(plan.recipes, plan.overrides))
    regions = [config.objective.trust_region.name for config in plan.configs.values()]
    assert regions == ["clip", "pspo"]


def test_prose_says_what_the_estimate_says(tmp_path):
    plan, s = make_plan(tmp_path), settings()
    assert s["GPU"] == "T4"
    least, most = cells.hours(plan, "T4")
    assert most <= 3.0  # one session
    assert f"{least:.2f} to {most:.2f} hours" in CELLS["estimate-text"].source
    arm = estimate(plan.configs["t4-pspo"], "T4")
    gib = f"{arm.peak / 2**30:.2f} of {arm.gpu.memory / 2**30:.2f} GiB for one arm"
    assert gib in CELLS["estimate-text"].source
    assert f"{s['STEPS']} steps and {3 * s['TEST_PROBLEMS']} answers" in " ".join(PROSE.split())
    assert f"three validations of {s['TEST_PROBLEMS']} problems" in " ".join(PROSE.split())
    assert f"{least:.1f} to {most:.1f} hours" in (ROOT / "README.md").read_text("utf-8")


def test_prose_names_what_there_is(tmp_path, monkeypatch):
    config = make_plan(tmp_path).configs["t4-clip"]
    assert f"(every {config.train.checkpoint_every} steps)" in PROSE
    for link in re.findall(r"\]\((\.\./[^)]+)\)", PROSE):
        assert (FILE.parent / link).is_file(), link
    monkeypatch.chdir(ROOT)
    for command in re.findall(r"`kit (estimate [^`]+)`", PROSE):
        assert cli.main(command.split()) == 0
    names = set(re.findall(r"`([A-Z]{3,})\b", PROSE))
    assert names == {"SOURCE", "OVERRIDES", "KEEP", "SHARE", "HUB"}
    assert names <= settings().keys()


# --- where am I ----------------------------------------------------------------------------------


def test_kaggle_is_known_although_its_image_is_colabs(monkeypatch):
    monkeypatch.setattr(place, "read_cards", lambda: [T4, T4])
    monkeypatch.setattr(place, "_reaches_hub", lambda: False)
    environ = {"COLAB_RELEASE_TAG": "release", "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}
    assert where_am_i(environ) == Place("kaggle", T4, online=False, cards=2)
    assert str(where_am_i(environ)).endswith(
        "2 × Tesla T4 with 15.0 GiB, computing in float16; no internet"
    )


def test_colab_is_known_by_its_release_or_its_module(monkeypatch):
    monkeypatch.setattr(place, "read_cards", lambda: [])
    assert where_am_i({"COLAB_RELEASE_TAG": "release"}).name == "colab"
    assert where_am_i({}).name == "local"
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    colab = where_am_i({})
    assert colab.name == "colab"
    assert "Change runtime type" in str(colab)


@pytest.mark.parametrize(
    ("prints", "status", "found"),
    [
        ("Tesla T4, 15360, 550.54.15, 7.5\nTesla T4, 15360, 550.54.15, 7.5", 0, [T4, T4]),
        ("NVIDIA-SMI has failed because it could not communicate", 9, []),
        ("", 0, []),
    ],
)
def test_the_driver_names_the_gpus(tmp_path, monkeypatch, prints, status, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'X'\n{prints}\nX\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_cards() == found


def test_a_driver_that_is_too_old_for_the_capability_names_its_gpus(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\ncase $1 in *compute_cap*) exit 2; esac\necho K80, 11441, 470.1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_cards() == [Card("K80", 11441 / 1024, 0.0, "470.1")]


def test_no_driver_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_cards() == []


@pytest.mark.parametrize("capability", [(6, 0), (7, 5), (8, 0), (9, 0)])
def test_a_card_computes_in_what_the_kit_chooses(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    config = ModelConfig(id="embedded", backend="transformers")
    chosen = choose_hardware(config, torch.device("cuda")).dtype
    major, minor = capability
    assert DTYPES[Card("card", 16, float(f"{major}.{minor}")).dtype] == chosen


def test_runs_are_kept_where_they_outlive_the_session(tmp_path, monkeypatch):
    assert keep_folder(HERE) == ROOT / "runs"
    assert keep_folder(KAGGLE) == Path("/kaggle/working/runs")
    assert keep_folder(KAGGLE, str(tmp_path)) == tmp_path
    mounted = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    there = Place("colab", T4, online=True)
    assert keep_folder(there) == Path("/content/drive/MyDrive/gr-pspo")
    assert mounted == ["/content/drive"]
    keep_folder(there, str(tmp_path))
    assert mounted == ["/content/drive"]  # a folder was named: Drive is left alone


# --- the kit's zip -------------------------------------------------------------------------------

COLAB = """
import os, sys, time, types, zipfile
cell, drive, folder, *kits = sys.argv[1:]
colab = types.ModuleType("google.colab")
colab.drive = types.SimpleNamespace(mount=lambda path: os.symlink(drive, path))
sys.modules |= {"google": types.ModuleType("google"), "google.colab": colab}
for number, kit in enumerate(kits):
    if kit:
        with zipfile.ZipFile("gr-pspo-kit.zip", "w") as packed:
            packed.writestr("main/kit/__init__.py", "")
            packed.writestr("main/kit/notebook/place.py", f"def where_am_i(): return {kit!r}")
            packed.writestr(f"main/{kit}", "")
        written = time.time() + 100 * number
        os.utime("gr-pspo-kit.zip", (written, written))
        os.rename("gr-pspo-kit.zip", f"{folder}/gr-pspo-kit.zip")
    exec(cell, {})
"""


def run_first_cell(
    machine: Path, drive: Path, folder: Path, *kits: str
) -> subprocess.CompletedProcess[str]:
    """In one session on Colab, once for each of the zips that are put into `folder` before."""
    (drive / "MyDrive").mkdir(parents=True, exist_ok=True)
    (machine / "content").mkdir(parents=True)
    cell = CELLS["settings"].source.replace("/content/drive", str(machine / "mounted"))
    return subprocess.run(
        [sys.executable, "-S", "-c", COLAB, cell, str(drive), str(folder), *kits],
        cwd=machine / "content",
        env={"TMPDIR": str(machine)},
        capture_output=True,
        text=True,
    )


def test_a_zip_in_drive_outlives_the_machine(tmp_path):
    drive = tmp_path / "drive"
    assert run_first_cell(tmp_path / "1", drive, drive / "MyDrive", "mine").stdout == "mine\n"
    assert run_first_cell(tmp_path / "2", drive, drive / "MyDrive", "").stdout == "mine\n"


def test_an_uploaded_zip_has_to_be_uploaded_again(tmp_path):
    ended = run_first_cell(tmp_path / "1", tmp_path / "drive", tmp_path / "1" / "content", "mine")
    assert ended.stdout == "mine\n"
    assert not (tmp_path / "1" / "mounted").exists()  # nobody was asked for access
    ended = run_first_cell(tmp_path / "2", tmp_path / "drive", tmp_path, "")
    assert re.search(r"no gr-pspo-kit\.zip: upload .* again\), put it into My Drive", ended.stderr)


def test_a_corrected_zip_takes_the_place_of_the_one_before(tmp_path):
    ended = run_first_cell(tmp_path / "1", tmp_path, tmp_path / "1" / "content", "bad", "", "good")
    assert ended.stdout == "bad\nbad\ngood\n"
    unpacked = {path.name for path in (tmp_path / "1" / "gr-pspo-kit" / "main").iterdir()}
    assert unpacked == {"kit", "good"}


# --- installing ----------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A world with two requirements; `there` is what is installed, `ran` what install ran."""
    requirements, constraints = tmp_path / "requirements.txt", tmp_path / "constraints.txt"
    requirements.write_text("torch>=2.6,<2.15\npeft>=0.19  # a comment\n\n")
    constraints.write_text("torch==2.13.0\npeft==0.21.2\n")
    world = types.SimpleNamespace(
        there={"torch": "2.9.0+cu126"}, after={"peft": "0.21.2"}, ran=[], pinned=None
    )

    def run(program, *arguments):
        world.ran.append((program, *arguments))
        if "--constraint" in arguments:
            world.pinned = Path(arguments[arguments.index("--constraint") + 1]).read_text()
            world.there |= world.after
        return "T4: this GPU has no bfloat16\n"

    monkeypatch.setattr(kit.packages, "REQUIREMENTS", requirements)
    monkeypatch.setattr(kit.packages, "CONSTRAINTS", constraints)
    monkeypatch.setattr(install, "SHOWN", ("torch", "peft"))
    monkeypatch.setattr(install, "installed", lambda: dict(world.there))
    monkeypatch.setattr(install, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return world


def test_the_torch_that_is_there_is_pinned(packages, capsys):
    install.install(HERE)
    assert packages.pinned == "torch==2.9.0+cu126\n"
    said = capsys.readouterr().out
    assert "Installing peft>=0.19" in said
    assert "torch was left as it was, 1 packages were installed, no restart is needed" in said
    assert said.rstrip().endswith("T4: this GPU has no bfloat16")
    assert re.search(r"peft +0\.21\.2 +0\.21\.2 +>=0\.19", said)


def test_uv_is_used_where_it_is(packages, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/uv" if name == "uv" else None)
    install.install(HERE)
    assert packages.ran[0][:5] == ("uv", "pip", "install", "--python", sys.executable)


def test_nothing_is_installed_where_nothing_is_missing(packages, capsys):
    packages.there["peft"] = "0.20.0"
    install.install(OFFLINE)
    assert [program for program, *_ in packages.ran] == ["python"]
    assert "nothing had to be installed" in capsys.readouterr().out


def test_a_version_out_of_range_is_replaced(packages):
    packages.there["peft"] = "0.18.1"
    assert install.unmet() == ["peft>=0.19"]
    packages.there["torch"] = "2.15.0"
    assert [text.partition("<")[0] for text in install.unmet()] == ["torch", "peft>=0.19"]


def test_an_old_torchao_is_replaced_and_none_is_installed(packages):
    assert install.unmet() == ["peft>=0.19"]
    packages.there["torchao"] = "0.16.0"
    install.install(HERE)
    assert packages.ran[0][-1] == str(kit.packages.REQUIREMENTS)
    packages.there["torchao"] = "0.10.0"
    packages.after["torchao"] = "0.18.0"
    assert install.unmet() == ["torchao>=0.16"]
    packages.ran.clear()
    install.install(HERE)
    assert packages.ran[0][-2:] == (str(kit.packages.REQUIREMENTS), "torchao>=0.16")


@pytest.mark.slow
@pytest.mark.smoke
def test_what_peft_refuses_is_not_called_ready(tmp_path, monkeypatch):
    """The trial meets the torchao that Colab has shipped."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n"
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InstallError, match=r"ImportError.*torchao.*0\.10\.0"):
        install._try_out()


def test_the_rest_of_an_interrupted_installation_is_passed_over(tmp_path, monkeypatch):
    for name, metadata in (
        ("peft-0.19.0", None),
        ("half-1.0", "Name: half\n"),
        ("whole-1.0", "Name: whole\nVersion: 1.0\n"),
    ):
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "top_level.txt").write_text("shared\n")
        if metadata:
            (folder / "METADATA").write_text(metadata)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert kit.packages.installed() == {"whole": "1.0"}
    before, after = {"whole": "0.9"}, {"whole": "1.0"}
    assert install.imported_before(before, after, {"shared"}) == ["whole 0.9 -> 1.0"]


def test_a_replaced_torch_is_an_error(packages):
    packages.after["torch"] = "2.13.0"
    with pytest.raises(InstallError, match=r"torch was 2\.9\.0\+cu126 and is now 2\.13\.0"):
        install.install(HERE)


def test_what_is_still_missing_is_an_error(packages):
    packages.after.clear()
    with pytest.raises(InstallError, match=r"not as required after installing: peft>=0.19"):
        install.install(HERE)


def test_a_restart_is_asked_for_only_when_memory_holds_another_version(packages, monkeypatch):
    monkeypatch.setattr(
        install.metadata,
        "packages_distributions",
        lambda: {"peft": ["peft"], "_hook": ["peft"], "np": ["NumPy"]},
    )
    before, after = {"peft": "0.18", "numpy": "1.26"}, {"peft": "0.21", "numpy": "1.26"}
    assert install.imported_before(before, after, {"os", "np", "_hook"}) == []
    assert install.imported_before(before, after, {"peft"}) == ["peft 0.18 -> 0.21"]
    assert install.imported_before({}, after, {"peft"}) == []  # it was not installed
    packages.there["peft"] = "0.18.1"
    with pytest.raises(
        InstallError, match=r"restart once \(Run > Restart.*peft 0\.18\.1 -> 0\.21\.2"
    ):
        install.install(KAGGLE)


def test_without_internet_wheels_are_taken_from_what_is_attached(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(install, "find_wheels", lambda: None)
    with pytest.raises(InstallError, match=r"missing are peft>=0\.19.*no internet.*wheels"):
        install.install(OFFLINE)
    assert packages.ran == []
    monkeypatch.setattr(install, "find_wheels", lambda: tmp_path)
    install.install(OFFLINE)
    assert packages.ran[0][-3:] == ("--no-index", "--find-links", str(tmp_path))


def test_wheels_are_made_of_what_would_be_installed(packages, monkeypatch, capsys):
    plan = {"install": [{"metadata": {"name": "peft", "version": "0.21.2"}}]}
    ran = []

    def run(*arguments):
        ran.append(arguments)
        return json.dumps(plan)

    monkeypatch.setattr(install, "_run", run)
    install.save_wheels("wheels")
    assert ran[0][:3] == ("pip", "install", "--dry-run")
    assert ran[1] == ("pip", "wheel", "--no-deps", "--wheel-dir", "wheels", "peft==0.21.2")
    assert capsys.readouterr().out == "1 wheels -> wheels\n"
    packages.there["torchao"] = "0.10.0"
    install.save_wheels("wheels")
    assert ran[2][-1] == "torchao>=0.16"


def test_a_failing_program_is_quoted():
    with pytest.raises(InstallError, match=r"python -c failed:\n.*no such thing"):
        install._run("python", "-c", "raise SystemExit('no such thing')")


def test_this_environment_meets_the_requirements():
    assert install.unmet() == []
    assert "missing" not in install.table(kit.packages.installed())


def test_what_runs_before_installing_needs_only_the_standard_library():
    """Kaggle's and Colab's images may lack any of the kit's requirements."""
    code = (
        "import sys; before = set(sys.modules); import kit.notebook.install;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    command = [sys.executable, "-S", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout.split() == ["kit"]


# --- what is attached ----------------------------------------------------------------------------


def attach_model(root: Path, folder: str) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (path / name).write_text("{}")
    return path


def attach_data(root: Path, folder: str) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    for split in ("train", "test"):
        row = {"question": f"What is 3 + 4, {split}?", "answer": "3 + 4 = 7\n#### 7"}
        (path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(
    "folder",
    [
        "qwen2.5/transformers/0.5b-instruct/1",
        "models/qwen-lm/qwen2.5/transformers/0.5b-instruct/1",
        "datasets/me/qwen2-5-0-5b-instruct",
        "qwen25-05b-instruct",
        "my-models/Qwen2.5-0.5B-Instruct",
    ],
)
def test_a_model_is_found_as_kaggle_writes_it(tmp_path, folder):
    attach_model(tmp_path, "qwen2.5/transformers/1.5b-instruct/1")
    attach_model(tmp_path, "qwen2.5-math/transformers/0.5b-instruct/1")
    attach_model(tmp_path, "qwen2.5/transformers/0.5b/1")
    path = attach_model(tmp_path, folder)
    assert find_model("Qwen/Qwen2.5-0.5B-Instruct", tmp_path) == path


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("Qwen/Qwen3-4B", "qwen-3/transformers/4b/1"),
        ("Qwen/Qwen3-4B-Thinking-2507", "qwen-3/transformers/4b-thinking-2507/1"),
        ("meta-llama/Llama-3.2-1B", "metaresearch/llama-3.2/transformers/1b/1"),
        ("google/gemma-3-1b-it", "google/gemma-3/transformers/gemma-3-1b-it/1"),
    ],
)
def test_models_of_other_families_are_found(tmp_path, model, folder):
    path = attach_model(tmp_path, folder)
    assert find_model(model, tmp_path) == path


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("Qwen/Qwen3-4B", "qwen-3/transformers/14b/1"),
        ("Qwen/Qwen3-4B", "qwen-3/transformers/4b-base/1"),
        ("Qwen/Qwen3-4B", "qwen-3/transformers/4b-thinking-2507/1"),
        ("Qwen/Qwen3-4B", "qwen-3-coder/transformers/4b/1"),
        ("Qwen/Qwen3-4B", "me/merged-qwen3-4b"),
        ("Qwen/Qwen3-4B", "qwen-3/pytorch/4b/1"),
        ("Qwen/Qwen3-4B-Base", "qwen-3/transformers/4b/1"),
        ("Qwen/Qwen2-0.5B-Instruct", "qwen2.5/transformers/0.5b-instruct/1"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2/transformers/0.5b-instruct/1"),
        ("meta-llama/Llama-3.2-1B", "llama-3.2/transformers/11b-vision/1"),
        ("meta-llama/Llama-3.2-1B", "llama-3/transformers/21b/1"),
    ],
)
def test_what_is_named_otherwise_is_no_copy_but_named(tmp_path, model, folder):
    path = attach_model(tmp_path, folder)
    assert find_model(model, tmp_path) is None
    with pytest.raises(DataError, match=f"by their names these are others: {path}"):
        locate(OFFLINE, model, "gsm_symbolic", tmp_path / "data", tmp_path)


def test_another_variant_is_not_the_model(tmp_path):
    attach_model(tmp_path, "qwen2.5/transformers/0.5b-instruct/1")
    attach_model(tmp_path, "qwen2.5-coder/transformers/0.5b/1")
    assert find_model("Qwen/Qwen2.5-0.5B", tmp_path) is None
    incomplete = attach_model(tmp_path, "qwen2.5/transformers/0.5b/1")
    (incomplete / "model.safetensors").unlink()
    assert find_model("Qwen/Qwen2.5-0.5B", tmp_path) is None


def test_without_internet_everything_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        locate(OFFLINE, "Qwen/Qwen2.5-0.5B-Instruct", "gsm8k", tmp_path / "data", tmp_path)
    assert "the model Qwen/Qwen2.5-0.5B-Instruct" in str(caught.value)
    assert "the data set gsm8k" in str(caught.value)
    attach_model(tmp_path, "qwen2.5/transformers/0.5b-instruct/1")
    with pytest.raises(DataError) as caught:
        locate(OFFLINE, "Qwen/Qwen2.5-0.5B-Instruct", "gsm8k", tmp_path / "data", tmp_path)
    assert "the model" not in str(caught.value)


def test_what_is_attached_is_trained_on(tmp_path):
    root, links = tmp_path / "input", tmp_path / "data"
    model = attach_model(root, "qwen2.5/transformers/0.5b-instruct/1")
    (root / "unrelated").mkdir()
    attach_data(root, "someone/grade-school-gsm8k/main")
    for _ in range(2):  # run all again
        found = locate(OFFLINE, "Qwen/Qwen2.5-0.5B-Instruct", "gsm8k", links, root)
        assert found == kaggle_inputs.Sources(model, links)
    problems = load_problems(DataConfig(name="gsm8k", data_dir=str(links)), "test")
    assert problems.problems["question"] == ["What is 3 + 4, test?"]
    assert find_data("svamp", root) is None
    assert find_data("me/gsm8", root) is None  # words are whole


def test_training_problems_are_no_test_problems(tmp_path):
    alone = attach_data(tmp_path, "gsm8k")
    (alone / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"the data set gsm8k .*train\.jsonl and test\.jsonl"):
        locate(OFFLINE, "embedded", "gsm8k", tmp_path / "data", tmp_path)
    only = attach_data(tmp_path, "math-500")
    (only / "train.jsonl").unlink()
    assert find_data("math500", tmp_path) == only  # which has no other split


def test_a_folder_where_the_link_has_to_be_is_left_alone(tmp_path):
    attach_data(tmp_path / "input", "gsm8k")
    mine = attach_data(tmp_path, "data/gsm8k")
    with pytest.raises(DataError, match=f"{mine} is in the way .*move it elsewhere"):
        locate(KAGGLE, "embedded", "gsm8k", tmp_path / "data", tmp_path / "input")
    assert (mine / "train.jsonl").is_file()


@pytest.mark.parametrize("data", ["gsm_symbolic", "reasoning_gym:chain_sum", "mine.jsonl"])
def test_what_comes_from_no_hub_has_not_to_be_attached(tmp_path, data):
    found = locate(OFFLINE, "embedded", data, tmp_path / "data", tmp_path)
    assert found == kaggle_inputs.Sources(None, None)


def test_elsewhere_nothing_is_searched(tmp_path):
    attach_model(tmp_path, "qwen2.5/transformers/0.5b-instruct/1")
    found = locate(HERE, "Qwen/Qwen2.5-0.5B-Instruct", "gsm8k", tmp_path / "data", tmp_path)
    assert found == kaggle_inputs.Sources(None, None)


def test_wheels_are_found(tmp_path):
    assert find_wheels(tmp_path / "nothing") is None
    (tmp_path / "a" / "wheels").mkdir(parents=True)
    (tmp_path / "a" / "wheels" / "peft-0.21.2-py3-none-any.whl").touch()
    assert find_wheels(tmp_path) == tmp_path / "a" / "wheels"


# --- plan and estimate ---------------------------------------------------------------------------


def comparison_of(plan: cells.Plan) -> dict:
    """What the plan's command hands to `kit.comparison.compare`."""
    given: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit.comparison.compare", lambda recipes, pairs, **rest: given.update(rest))
        assert cli.main(plan.command) == 0
    return given


def test_the_command_is_one_the_command_line_takes(tmp_path):
    plan = make_plan(tmp_path, run="mine")
    given = comparison_of(plan)
    assert given["output"] == tmp_path / "mine"
    assert (given["seeds"], given["data"], given["data_dir"]) == ([0], ["gsm8k"], None)
    assert given["settings"] == EvalSettings(limit=300, max_new_tokens=320)
    assert plan.runs["t4-clip"].path == tmp_path / "mine" / "t4-clip" / "seed-0"


def test_the_plan_says_what_is_there_already(tmp_path):
    plan = make_plan(tmp_path)
    assert "There already" not in str(plan)
    run = plan.runs["t4-pspo"]
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text("{}")
    run.metrics.write_text("")
    run.describe(status="interrupted")
    assert "There already: t4-pspo, interrupted." in str(plan)


def test_attached_data_are_named_to_training_and_evaluation(tmp_path, monkeypatch):
    links = tmp_path / "data"
    links.mkdir()
    (links / "gsm8k").symlink_to(attach_data(tmp_path, "input/gsm8k"))
    monkeypatch.setattr(
        cells, "locate", lambda *arguments: kaggle_inputs.Sources(tmp_path / "model", links)
    )
    plan = make_plan(tmp_path, OFFLINE)
    config = plan.configs["t4-clip"]
    assert (config.model.id, config.data.data_dir) == ("Qwen/Qwen2.5-0.5B-Instruct", str(links))
    assert config.model.path == str(tmp_path / "model")
    assert comparison_of(plan)["data_dir"] == str(links)
    assert f"The model is the copy in {tmp_path / 'model'}\n" in str(plan)
    assert f"The problems are those in {tmp_path / 'input' / 'gsm8k'}\n" in str(plan)


def test_wrong_settings_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe t4-clap in configs/; known: .*t4-clip"):
        make_plan(tmp_path, arms=["t4-clap"])
    with pytest.raises(ConfigError, match="did you mean 'rank'"):
        make_plan(tmp_path, overrides=["lora.rnak=8"])
    with pytest.raises(ConfigError, match=r"train\.steps = 0 is not allowed"):
        make_plan(tmp_path, steps=0)


def test_hours_are_those_of_all_arms_and_of_the_answers(tmp_path):
    plan = make_plan(tmp_path, problems=128)  # as many as a validation has
    arm = estimate(plan.configs["t4-clip"], "L4").seconds
    # two arms, and answers of two arms and the base
    expected = [2 * arm["whole run"][i] + 3 * arm["validation"][i] for i in (0, 1)]
    assert cells.hours(plan, "L4") == pytest.approx([s / 3600 for s in expected], rel=1e-12)
    assert cells.hours(plan, "24") is None
    assert "Times: the speed of 24 GiB is not known" in cells.describe_cost(plan, "24")


def test_the_estimate_is_for_the_gpu_that_is_here(tmp_path):
    shown = [
        cells.describe_cost(make_plan(tmp_path, Place("local", card, online=True)))
        for card in (
            None,
            Card("NVIDIA L4", 22.5, 8.9),
            Card("Tesla P100-PCIE-16GB", 15.9, 6.0),
            Card("NVIDIA A100-SXM4-40GB", 40.0, 8.0),
            Card("NVIDIA GeForce RTX 3060", 8.0, 8.6),  # there is one of 12 GiB as well
        )
    ]
    assert [re.search(r"fits on (.+): ", text)[1] for text in shown] == [
        "T4",
        "L4",
        "15.9 GiB",
        "A100-40",
        "8 GiB",
    ]


# --- the process that trains ---------------------------------------------------------------------


def test_output_is_read_as_it_grows(tmp_path):
    log = tmp_path / "log"
    log.write_text("of the session before\n")
    output = process.Output(log)
    with log.open("ab") as file:

        def write(text: bytes) -> list[str]:
            file.write(text)
            file.flush()
            return output.read()

        assert write("seed 0: clip\nGrüß".encode()[:-1]) == ["seed 0: clip"]
        assert write("Grüß".encode()[-1:] + b"e\n") == ["Grüße"]
        assert write(b"\r  0%|      | 0/4 [00:00<?]\r 25%|##    | 1/4 [00:01]") == []
        assert output.progress == "25%|##    | 1/4 [00:01]"
        # what tqdm.write does: clear the bar, write a line, draw the bar again
        assert write(b"\r             \rafter 1 step: 50% right\n\r 50%|###   | 2/4") == [
            "after 1 step: 50% right"
        ]
        assert write(b"\r100%|######| 4/4 [00:04]\n\n") == []
        assert output.progress == "100%|######| 4/4 [00:04]"
    assert output.lines == ["seed 0: clip", "Grüße", "after 1 step: 50% right"]


def test_a_failing_command_is_quoted(tmp_path):
    log = tmp_path / "new" / "log"
    with pytest.raises(RunError) as caught:
        process.run(["train", "nothing.yaml"], log, lambda output: output.read())
    assert "kit train ended with status 1" in str(caught.value)
    assert "error: cannot read the configuration nothing.yaml" in str(caught.value)
    assert str(log) in str(caught.value)


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(program))


def test_an_interrupt_is_passed_on_once_and_waited_for(tmp_path, monkeypatch):
    script = "trap 'echo interrupted; sleep 0.5; echo saved; exit 0' INT; echo ready\n"
    fake_python(tmp_path, monkeypatch, script + "while :; do sleep 0.05; done")
    seen: list[str] = []

    def watch(output: process.Output) -> None:
        new = output.read()
        seen.extend(new)
        if "ready" in new:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(["compare"], tmp_path / "log", watch, every=0.05)
    assert seen == ["ready", "interrupted", "saved"]


def test_a_killed_command_is_an_error(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "echo working; kill -KILL $$")
    with pytest.raises(RunError, match=r"status -9 \(killed by signal 9\).*\n.*working"):
        process.run(["compare"], tmp_path / "log", lambda output: output.read(), every=0.05)


def test_a_fault_while_watching_ends_the_command(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "cat >/dev/null; echo ended")  # until its input is closed

    def watch(output: process.Output) -> None:
        raise ResultsError("no curve")

    with pytest.raises(ResultsError):
        process.run(["compare"], tmp_path / "log", watch, every=0.05)
    assert (tmp_path / "log").read_text() == "ended\n"


def test_commands_side_by_side_see_a_card_each(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "sleep 0.2; echo $4 on card $CUDA_VISIBLE_DEVICES; exit $5")
    log = tmp_path / "log"
    commands = [["train", "first", "0"], ["train", "second", "0"]]
    process.run_on_cards(commands, log, lambda output: None, every=0.05)
    assert sorted(log.read_text().splitlines()) == ["first on card 0", "second on card 1"]
    commands[0][2] = "4"
    with pytest.raises(RunError, match=r"kit train ended with status 4\. "):
        process.run_on_cards(commands, log, lambda output: None, every=0.05)
    assert log.read_text().count("second on card 1") == 2  # it was waited for


def test_each_arm_is_trained_on_a_card_of_its_own(tmp_path, monkeypatch):
    """As the comparison would train it, which therefore finds it finished."""
    assert not make_plan(tmp_path, KAGGLE).is_spread
    two = make_plan(tmp_path, Place("kaggle", T4, online=True, cards=2))
    assert "Each arm is trained on a card of its own" in str(two)
    asked = {}

    def train(config: object, *, resume: bool) -> None:
        asked[Path(config.output)] = (config, resume)
        raise RunError("that is enough")

    monkeypatch.setattr("kit.training.trainer.train", train)
    for command in two.trainings:
        assert cli.main(command) == 1
    for path, (arm, run) in zip(two.recipes, two.runs.items(), strict=True):
        config, resume = asked[run.path]
        assert resume and arm == path.stem
        assert config.model_copy(update={"output": None}) == load_config(
            path, [*two.overrides, "output=null"]
        )

    ran = []
    monkeypatch.setattr(process, "run_on_cards", lambda commands, *rest: ran.append(commands))
    monkeypatch.setattr(process, "run", lambda command, *rest: ran.append(command))
    run = two.runs["t4-clip"]
    run.path.mkdir(parents=True)
    run.describe(status="finished")
    cells.train(two)
    assert ran == [two.trainings[1:], two.command]


def test_what_the_doctor_finds_stops_nothing(tmp_path, monkeypatch, capsys):
    fake_python(tmp_path, monkeypatch, "echo not as expected    driver: old; exit 3")
    assert cells.examine(HERE, str(tmp_path)) == tmp_path / "doctor"
    assert capsys.readouterr().out == "not as expected driver: old\n"
    fake_python(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(RunError, match=r"^kit doctor ended with status 1\."):
        cells.examine(HERE, str(tmp_path))


def test_a_failed_arm_is_tried_again(tmp_path, monkeypatch):
    plan = make_plan(tmp_path)
    for arm, status in (("t4-clip", "failed"), ("t4-pspo", "finished")):
        plan.runs[arm].path.mkdir(parents=True)
        plan.runs[arm].describe(status=status)
    ran = []
    monkeypatch.setattr(process, "run", lambda *arguments: ran.append(arguments))
    cells.train(plan)
    assert ran[0][:2] == (plan.command, plan.folder / "notebook.log")
    assert {arm: run.status for arm, run in plan.runs.items()} == {
        "t4-clip": "interrupted",
        "t4-pspo": "finished",
    }


# --- packing and pushing -------------------------------------------------------------------------


def test_the_zip_has_everything_but_checkpoints(tmp_path, monkeypatch, capsys):
    plan = make_plan(tmp_path, run="mine")
    run = plan.runs["t4-clip"].path
    kept = ["adapter/adapter_model.safetensors", "eval/gsm8k.json", "metrics.jsonl"]
    for name in [*kept, "checkpoints/step-000010/state.pt", ".lock"]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")

    def report(paths: list[Path]) -> None:
        print("tables")
        (paths[0] / "report.html").write_text("x")

    monkeypatch.setattr(kit.reports, "report", report)
    monkeypatch.setattr(cells, "offer_download", lambda path, where: None)
    path = cells.pack(plan)
    assert path == tmp_path / "mine.zip"
    expected = {f"mine/t4-clip/seed-0/{name}" for name in kept} | {"mine/report.html"}
    assert set(zipfile.ZipFile(path).namelist()) == expected
    assert "tables" not in capsys.readouterr().out

    def write(*arguments: object) -> None:
        raise OSError("No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "write", write)
    with pytest.raises(RunError, match="No space left"):
        cells.pack(plan)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["mine.zip"]


def test_colab_downloads_by_the_browser(tmp_path, monkeypatch):
    offered = []
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(download=offered.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    notebook_show.offer_download(tmp_path / "mine.zip", Place("colab", T4, online=True))
    assert offered == [str(tmp_path / "mine.zip")]


@pytest.fixture
def hub(monkeypatch):
    """What is planned and uploaded, with the token that was there at that moment."""
    calls = types.SimpleNamespace(planned=[], uploaded=[])

    def plan_push(adapter: str, repo: str) -> str:
        calls.planned.append(repo)
        return f"files of {repo}"

    def upload(ready: str) -> str:
        calls.uploaded.append((ready, os.environ.get("HF_TOKEN")))
        return "commit"

    secrets = types.ModuleType("kaggle_secrets")
    secrets.UserSecretsClient = lambda: types.SimpleNamespace(
        get_secret=lambda name: {"HF_TOKEN": "hf_secret"}[name]
    )
    monkeypatch.setitem(sys.modules, "kaggle_secrets", secrets)
    monkeypatch.setattr(kit.adapters.push, "plan_push", plan_push)
    monkeypatch.setattr(kit.adapters.push, "push", upload)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return calls


def test_kaggles_secret_is_used_and_never_printed(tmp_path, hub, capsys):
    cells.push(make_plan(tmp_path, KAGGLE), "me/qwen")
    assert hub.uploaded == [
        ("files of me/qwen-t4-clip", "hf_secret"),
        ("files of me/qwen-t4-pspo", "hf_secret"),
    ]
    assert "HF_TOKEN" not in os.environ
    assert "hf_secret" not in "".join(capsys.readouterr())


def test_a_secret_that_is_not_attached_is_asked_for(tmp_path, hub, monkeypatch):
    class BackendError(Exception):
        pass

    def refuse(name: str) -> str:
        raise BackendError(f"No user secrets exist for label {name}.")

    client = types.SimpleNamespace(get_secret=refuse)
    monkeypatch.setattr(sys.modules["kaggle_secrets"], "UserSecretsClient", lambda: client)
    with pytest.raises(AdapterError, match=r"No user secrets.*Add-ons > Secrets.*Internet"):
        cells.push(make_plan(tmp_path, KAGGLE), "me/qwen")
    assert hub.uploaded == []


def test_a_token_that_is_there_is_left_alone(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    cells.push(make_plan(tmp_path, KAGGLE), "me/qwen")
    assert [token for _, token in hub.uploaded] == ["hf_mine", "hf_mine"]
    assert os.environ["HF_TOKEN"] == "hf_mine"


def test_without_a_repository_nothing_goes_up(tmp_path, hub, capsys):
    cells.push(make_plan(tmp_path, KAGGLE))
    assert hub.planned == ["OWNER/NAME-t4-clip", "OWNER/NAME-t4-pspo"]
    assert hub.uploaded == []
    assert capsys.readouterr().out.endswith("Nothing was uploaded: HUB is empty.\n")


def test_what_cannot_be_pushed_stops_only_a_push(tmp_path, hub, monkeypatch, capsys):
    def refuse(adapter: str, repo: str) -> str:
        raise AdapterError("its base is /kaggle/input/model, a folder of this machine")

    monkeypatch.setattr(kit.adapters.push, "plan_push", refuse)
    cells.push(make_plan(tmp_path))
    assert "t4-pspo could not be pushed: its base is /kaggle" in capsys.readouterr().out
    with pytest.raises(AdapterError):
        cells.push(make_plan(tmp_path), "me/qwen")


# --- what is shown -------------------------------------------------------------------------------


def attempt(number: int, *, strict: bool, completion: str = "") -> Attempt:
    return Attempt(
        id=f"test/{number}",
        temperature=0.0,
        sample=0,
        question=f"question {number}",
        answer="7",
        category="",
        difficulty="",
        completion=completion,
        tokens=3,
        truncated=False,
        strict_answer="7" if strict else "8",
        lenient_answer="7" if strict else "8",
        strict=strict,
        lenient=strict,
    )


def test_one_sided_answers_come_first_and_in_turn(tmp_path, monkeypatch):
    # right: 0 both, 1 and 2 left alone, 3 right alone, 4 neither
    left = [attempt(i, strict=i in (0, 1, 2)) for i in range(5)]
    right = [attempt(i, strict=i in (0, 3)) for i in range(5)]
    assert shown_questions(tmp_path, monkeypatch, left, right, count=4) == [1, 3, 2, 0]


def shown_questions(tmp_path, monkeypatch, left, right, count) -> list[int]:
    page = show(tmp_path, monkeypatch, left, right, count)
    assert "3 of 5 problems are solved by one arm alone" in page
    return [int(number) for number in re.findall(r"question (\d)", page)]


def show(tmp_path, monkeypatch, left, right, count=5) -> str:
    from kit.app.browse.pairs import Case, Pairing

    cases = tuple(Case(a, b) for a, b in zip(left, right, strict=True))
    monkeypatch.setattr(notebook_show, "_of_arm", lambda stored, arm: arm)
    monkeypatch.setattr(notebook_show, "pair_up", lambda a, b: Pairing(a, b, cases, (), (), ()))
    pages = []
    monkeypatch.setattr("IPython.display.display", lambda html: pages.append(html.data))
    notebook_show.show_answers(tmp_path, "clip", "pspo", count)
    return pages[0]


def test_texts_of_models_are_inert(tmp_path, monkeypatch):
    hostile = '<script>alert(1)</script> costs $3 and $4 <img src=x onerror="x">'
    page = show(
        tmp_path,
        monkeypatch,
        [attempt(0, strict=False, completion=hostile)],
        [attempt(0, strict=True)],
    )
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "costs <span>$</span>3 and <span>$</span>4" in page


def test_an_arm_without_answers_is_named(tmp_path):
    with pytest.raises(ResultsError, match="t4-clip has no stored answers yet"):
        notebook_show.show_answers(tmp_path, "t4-clip", "t4-pspo")


def test_the_app_is_not_opened_where_it_cannot_be_seen(tmp_path, capsys):
    notebook_show.open_app(tmp_path, KAGGLE)
    assert "SHARE = True" in capsys.readouterr().out


# --- the whole of it -----------------------------------------------------------------------------

SESSION = """
import sys
from pathlib import Path
from kit.notebook import process
process.run(sys.argv[2:], Path(sys.argv[1]), lambda output: None)
"""


def execute() -> dict[str, nbformat.NotebookNode]:
    """Run all cells; raises for an error in one of them."""
    executed = nbformat.read(FILE, as_version=4)
    resources = {"metadata": {"path": str(FILE.parent)}}
    NotebookClient(executed, timeout=300, kernel_name="python3", resources=resources).execute()
    return {cell.id: cell for cell in executed.cells}


def text_of(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def page_of(cell: nbformat.NotebookNode) -> str:
    pages = [output.data for output in cell.outputs if output.output_type == "display_data"]
    return "".join(data.get("text/html", "") for data in pages)


def smoke_plan(keep: Path) -> cells.Plan:
    """The plan that the notebook makes under KIT_SMOKE."""
    names: dict = {}
    exec(CELLS["settings"].source.partition("# --- the kit")[0], names)
    return make_plan(
        keep,
        arms=names["ARMS"],
        model=names["MODEL"],
        data=names["DATA"],
        steps=names["STEPS"],
        max_new_tokens=names["MAX_NEW_TOKENS"],
        problems=names["TEST_PROBLEMS"],
        overrides=names["OVERRIDES"],
        run=names["RUN"],
    )


def die_after_first_checkpoint(plan: cells.Plan) -> None:
    """A session that is killed without warning while it trains."""
    log = plan.folder / "notebook.log"
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(log), *plan.command], env=process.environment()
    )
    wait_until(
        lambda: all(any(run.checkpoints.glob("step-*")) for run in plan.runs.values()),
        unless=lambda: session.poll() is not None,
    )
    session.send_signal(signal.SIGKILL)
    session.wait()
    # nobody told the training; it finds out, finishes the step and saves
    wait_until(lambda: {run.status for run in plan.runs.values()} == {"interrupted"})


def wait_until(happened, unless=lambda: False, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert not unless(), "it cannot happen any more"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.smoke
def test_all_cells_run_and_go_on_where_a_killed_session_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_SMOKE", "1")
    monkeypatch.setenv("KIT_KEEP", str(tmp_path))
    plan = smoke_plan(tmp_path)
    die_after_first_checkpoint(plan)
    before = {arm: run.metrics.read_bytes() for arm, run in plan.runs.items()}
    # four steps, and validations before the first and after the last
    assert all(2 <= len(lines.splitlines()) < 6 for lines in before.values())

    cells = execute()
    log = (plan.folder / "notebook.log").read_text("utf-8")
    assert log.count("resuming from") == 2
    for arm, run in plan.runs.items():
        assert run.status == "finished"
        assert run.metrics.read_bytes().startswith(before[arm])  # nothing was done again
        steps = [r["step"] for r in read_metrics(run.metrics) if "reward/mean" in r]
        assert steps == [1, 2, 3, 4]
    assert "Verdict: ready." in text_of(cells["install"])
    assert "as expected     one step of the embedded model" in text_of(cells["doctor"])
    assert "There already: embedded-clip, interrupted." in text_of(cells["plan"])
    assert page_of(cells["train"]).count("data:image/svg+xml;base64,") == 6
    assert "Accuracy and length on gsm_symbolic (12 problems)" in page_of(cells["results"])
    assert "embedded-pspo" in page_of(cells["answers"])
    assert "<iframe" in page_of(cells["app"])
    names = zipfile.ZipFile(tmp_path / "smoke.zip").namelist()
    assert "smoke/embedded-pspo/seed-0/adapter/adapter_model.safetensors" in names
    assert "smoke/report/report.html" in names
    assert text_of(cells["push"]).endswith("Nothing was uploaded: HUB is empty.\n")
