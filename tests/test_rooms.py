"""The rooms of the kit: imports run downwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kit

KIT = Path(__file__).parents[1] / "kit"

# from the roof to the cellar; what stands on one floor may import each other
FLOORS = (
    ("notebook",),
    ("cli", "__main__"),
    ("commands",),
    ("app",),
    ("api",),
    ("comparison", "demo", "doctor", "integrations", "study"),
    ("training",),
    ("reports",),
    ("adapters",),
    ("preferences",),
    ("evaluation",),
    ("estimate",),
    ("model",),
    ("tasks",),
    (
        *("arms", "regions", "runs", "run_json", "run_settings", "manifest", "compare_json"),
        *("packages", "cards", "metrics"),
        *("files", "reading", "yaml_text", "spelling", "recipe", "refusals", "config"),
        *("guideline", "section"),
        *("stopping", "terminal", "errors", "threads"),
    ),
    ("assets", "__init__"),
)
API = set(kit.__all__) - {"__version__"}  # what `kit` itself offers is at the height of kit.api
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "kit")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kit":
            for alias in node.names:
                deeper = KIT.parent / (node.module or "").replace(".", "/") / f"{alias.name}.py"
                folder = deeper.with_suffix("")
                is_module = deeper.is_file() or folder.is_dir()
                is_api = node.module == "kit" and alias.name in API
                home = "kit.api" if is_api else node.module
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else home


def test_imports_run_downwards():
    upwards = []
    for path in sorted(set(KIT.rglob("*.py")) - {KIT / "__init__.py"}):  # it imports on demand
        module = ".".join(path.relative_to(KIT.parent).with_suffix("").parts)
        for line, imported in imports(path):
            if FLOOR_OF[room_of(module)] > FLOOR_OF[room_of(imported)]:
                upwards.append(f"{path.relative_to(KIT.parent)}:{line} imports {imported}")
    assert not upwards, "\n".join(upwards)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of what a module takes from another of the kit that is private there.

    Told by `from kit.room.file import _name` and by `file._name` of a module that was imported.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kit":
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from ((node.lineno, a.name) for a in node.names if is_private(a.name))
        elif isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.split(".")[0] == "kit"]
            modules |= {alias.asname or alias.name for alias in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner in modules:
                yield node.lineno, f"{owner}.{node.attr}"


def test_no_module_takes_private_names_of_another():
    found = [
        f"{path.relative_to(KIT.parent)}:{line} takes {name}"
        for path in sorted(KIT.rglob("*.py"))
        for line, name in private_names(path)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from kit.model.base import Base, _fit", [(1, "_fit")]),
        ("from kit.model import base\nbase._fit()", [(2, "base._fit")]),
        ("import kit.model.base as b\nb._fit", [(2, "b._fit")]),
        ("import kit.model.base\nkit.model.base._fit", [(2, "kit.model.base._fit")]),
        ("from kit.model import base\nbase.__doc__\nself._fit\nbase.fit", []),
    ],
)
def test_private_names_are_found(tmp_path, text, found):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert list(private_names(path)) == found


def sentence(path: Path) -> str:
    """The first of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def tree(folder: Path, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every file and room, with its sentence."""
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("__"):
            yield "  " * depth + path.name, sentence(path)
    for path in sorted(folder.glob("*/__init__.py")):
        yield "  " * depth + path.parent.name + "/", sentence(path)
        yield from tree(path.parent, depth + 1)


def test_contributing_names_every_file_and_nothing_else():
    rows = list(tree(KIT))
    assert all(said for _, said in rows)
    width = max(len(name) for name, _ in rows) + 2
    expected = "\n".join(f"{name:{width}}{said}" for name, said in rows)
    text = (KIT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert text.endswith(f"## The tree\n\n```\n{expected}\n```\n"), expected
