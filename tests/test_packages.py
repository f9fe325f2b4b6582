"""What is installed, accepted and tested: read from files, or from an installed kit's metadata."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from kit import packages

ROOT = Path(__file__).parents[1]


def test_this_checkout_names_what_is_tested():
    tested, required = packages.tested(), packages.required()
    assert tested["torch"] and tested["pyyaml"] and tested["types-pyyaml"]
    assert {packages.canonical(one.name) for one in required} <= tested.keys()
    for one in required:
        assert one.specifier.contains(tested[packages.canonical(one.name)]), one


def test_what_is_for_another_python_is_left_out(tmp_path, monkeypatch):
    file = tmp_path / "constraints.txt"
    file.write_text(
        '# pins\na_b==1; python_version < "3"\nA.b==2; python_version >= "3"\n\nc==3  # why\n'
    )
    monkeypatch.setattr(packages, "CONSTRAINTS", file)
    assert packages.tested() == {"a-b": "2", "c": "3"}


@pytest.mark.slow
def test_an_installed_kit_knows_the_same(tmp_path, monkeypatch):
    """From the metadata that a wheel of this checkout has."""
    source, made = tmp_path / "source", tmp_path / "made"
    for name in ("pyproject.toml", "requirements.txt", "constraints.txt", "README.md"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "kit").mkdir()
    shutil.copy(ROOT / "kit" / "__init__.py", source / "kit")
    made.mkdir()
    build = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel"
    subprocess.run([sys.executable, "-c", f"{build}({str(made)!r})"], cwd=source, check=True)
    expected = packages.tested(), [str(one) for one in packages.required()]
    (folder,) = made.glob("*.dist-info")
    given = metadata.Distribution.at(folder).requires
    assert given
    monkeypatch.setattr(metadata, "requires", lambda name: given)
    for name in ("CONSTRAINTS", "REQUIREMENTS"):
        monkeypatch.setattr(packages, name, tmp_path / "nowhere")
    assert packages.tested() == expected[0]
    assert sorted(str(one) for one in packages.required()) == sorted(expected[1])
