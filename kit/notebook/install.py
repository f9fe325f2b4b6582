"""Install what the kit needs around the torch that is there, and say whether all of it works.

Imports nothing that has to be installed first. The kit itself is not installed: a notebook uses the
checkout it was started with.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from kit import packages
from kit.errors import InstallError
from kit.notebook.kaggle_inputs import find_wheels
from kit.notebook.place import Place
from kit.notebook.process import LAST_LINES, environment
from kit.packages import canonical, installed

SHOWN = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "gradio")
# the kit does without these, but PEFT refuses to adapt an unquantized layer beside an older one;
# torchao's wheels require no torch, so none is replaced
CLASHES = ("torchao>=0.16",)
# what breaks first when versions do not fit together, and what the kit would compute with
TRIAL = """
import accelerate, bitsandbytes, datasets, peft, transformers
from kit.config import ModelConfig
from kit.model.hardware import choose_hardware
from kit.model.base import check_torchao
check_torchao()
print(choose_hardware(ModelConfig(id="embedded")).reason)
"""
RESTART = {
    "colab": "Runtime > Restart session",
    "kaggle": "Run > Restart & clear cell outputs",
    "local": "restart the kernel",
}


def install(place: Place) -> None:
    """Install what is missing or out of range, then print versions and a verdict.

    Raises InstallError when that fails, when torch is no longer the one there was, when the kit's
    libraries do not work together, or when the session has to be restarted.
    """
    before, missing = installed(), unmet()
    if missing:
        print(f"Installing {', '.join(missing)} …", flush=True)
        _install(place, before.get("torch"), missing)
    after, wrong = installed(), unmet()
    print(table(after))
    if wrong:
        raise InstallError(f"not as required after installing: {', '.join(wrong)}")
    if before.get("torch") not in (None, after["torch"]):
        raise InstallError(
            f"torch was {before['torch']} and is now {after['torch']}, which may not fit the GPU's "
            "driver; start with a fresh session"
        )
    stale = imported_before(before, after, sys.modules)
    if stale:
        raise InstallError(
            f"restart once ({RESTART[place.name]}), then run all cells again: the notebook has "
            f"already imported what is replaced now: {', '.join(stale)}"
        )
    torch = "was left as it was" if "torch" in before else "was installed"
    done = f"{len(missing)} packages were" if missing else "nothing had to be"
    reason = _try_out()
    print(f"\nVerdict: ready. torch {torch}, {done} installed, no restart is needed.\n{reason}")


def unmet() -> list[str]:
    """The lines of requirements.txt that what is installed does not satisfy, and what clashes."""
    from packaging.requirements import Requirement

    there, lacking = installed(), []
    for requirement in [*packages.required(), *map(Requirement, CLASHES)]:
        version = there.get(canonical(requirement.name))
        if version is None and str(requirement) in CLASHES:
            continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking.append(str(requirement))
    return lacking


def imported_before(
    before: Mapping[str, str], after: Mapping[str, str], modules: Collection[str]
) -> list[str]:
    """Packages of another version than the one that is in memory, in words.

    A private module alone, such as setuptools' hook in every process, is no use of its package.
    """
    names = metadata.packages_distributions()
    imported = {
        canonical(name)
        for module in list(modules)
        if not module.startswith("_")
        for name in filter(None, names.get(module, ()))  # None as in installed()
    }
    return [
        f"{name} {before[name]} -> {after.get(name, 'none')}"
        for name in sorted(imported & before.keys())
        if before[name] != after.get(name)
    ]


def table(there: Mapping[str, str]) -> str:
    """What is installed, beside the tested versions and the range that is accepted."""
    ranges = {canonical(one.name): str(one.specifier) for one in packages.required()}
    tested = packages.tested()
    rows = [("", "here", "tested with", "accepted")]
    rows += [(name, there.get(name, "missing"), tested[name], ranges[name]) for name in SHOWN]
    return "\n".join(f"{a:14}{b:18}{c:14}{d}" for a, b, c, d in rows)


def save_wheels(folder: str | Path) -> None:
    """Make wheels of what is missing here, to be attached where there is no internet."""
    with _pins(installed().get("torch")) as pins:
        plan = _run("pip", "install", "--dry-run", "--report=-", *_sources(pins, unmet()))
    names = [
        f"{entry['metadata']['name']}=={entry['metadata']['version']}"
        for entry in json.loads(plan)["install"]
    ]
    if names:
        _run("pip", "wheel", "--no-deps", "--wheel-dir", str(folder), *names)
    print(f"{len(names)} wheels -> {folder}")


def _install(place: Place, torch: str | None, missing: list[str]) -> None:
    offline: list[str] = []
    if not place.online:
        wheels = find_wheels()
        if wheels is None:
            raise InstallError(
                f"missing are {', '.join(missing)}, and there is no internet here. Turn it on "
                "(Session options > Internet), or attach a data set of wheels: the text above this "
                "cell says how to make one"
            )
        offline = ["--no-index", "--find-links", str(wheels)]
    with _pins(torch) as pins:
        sources = _sources(pins, missing)
        if shutil.which("uv"):  # ten times as fast; Colab and Kaggle have it
            _run("uv", "pip", "install", "--python", sys.executable, *sources, *offline)
        else:
            _run("pip", "install", *sources, *offline)


@contextmanager
def _pins(torch: str | None) -> Iterator[Path]:
    """A constraints file that keeps this version of torch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text(f"torch=={torch}\n" if torch else "", encoding="utf-8")
        yield path


def _sources(pins: Path, missing: list[str]) -> list[str]:
    """What to install: the requirements, and a newer version of what is here and clashes."""
    clashing = [requirement for requirement in missing if requirement in CLASHES]
    return [
        "--quiet",
        "--constraint",
        str(pins),
        "--requirement",
        str(packages.REQUIREMENTS),
        *clashing,
    ]


def _try_out() -> str:
    """The hardware and why, from a process that imports everything the kit computes with."""
    return _run("python", "-c", TRIAL).strip().splitlines()[-1]


def _run(program: str, *arguments: str) -> str:
    """What a program prints; InstallError with its last lines when it fails."""
    python = {"python": [sys.executable], "pip": [sys.executable, "-m", "pip"]}
    command = [*python.get(program, [program]), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment())
    if ended.returncode:
        last = "\n".join((ended.stdout + ended.stderr).splitlines()[-LAST_LINES:])
        raise InstallError(f"{program} {arguments[0]} failed:\n{last}")
    return ended.stdout
