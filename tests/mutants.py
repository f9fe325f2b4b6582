"""Mutants: small faults put into the pure modules one at a time, which their tests must notice.

    python -m tests.mutants [module …] [--jobs N]        (make mutants)

A mutant swaps an operator, shifts a number, turns a condition round, returns None, drops a
statement or a keyword argument. Each runs in a process of its own, forked after the imports, with
the tests of its module alone; one that takes five times as long as they do counts as killed. Those
that change nothing a caller can see are listed with the reason in tests/mutants.yaml. The run fails
when another one survives, when fewer than 95 % are killed, or when the list names a mutant that
does not exist or that the tests kill.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
EXPLAINED = Path(__file__).with_suffix(".yaml")
ROOMS = {
    **dict.fromkeys(("objectives", "trust_regions"), "training"),
    **dict.fromkeys(("logprobs", "batching"), "model"),
    **dict.fromkeys(("answers", "rewards", "functions"), "tasks"),
    **dict.fromkeys(("stats",), "evaluation"),
}
TESTS = {  # what pytest is told, for each module
    "objectives": ["tests/training/test_objectives.py"],
    "trust_regions": ["tests/training/test_trust_regions.py", "tests/training/test_objectives.py"],
    # the memory of one big batch takes seconds and sees no formula
    "logprobs": ["tests/model/test_logprobs.py", "-k", "not qwens_vocabulary"],
    "batching": ["tests/model/test_batching.py"],
    "rewards": ["tests/tasks/test_rewards.py"],
    "functions": ["tests/tasks/test_rewards.py"],
    "answers": [
        *("tests/tasks/test_answers.py", "tests/tasks/test_answers_properties.py"),
        # processes of their own, which take seconds to start
        *("-k", "not (latex or worker or interrupted or asked_for_once or task_verifier or light)"),
    ],
    "stats": ["tests/evaluation/test_stats.py", "tests/evaluation/test_crossed.py"],
}
SHARE = 0.95  # that must be killed
PATIENCE = 5  # times what the tests take without a mutant
LEAST_SECONDS = 10.0
NO_TESTS = 5  # pytest's exit code

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {
    **{"min": "max", "max": "min", "any": "all", "all": "any"},
    **{"amin": "amax", "amax": "amin", "minimum": "maximum", "maximum": "minimum"},
    **{"zeros_like": "ones_like", "ones_like": "zeros_like", "exp": "expm1", "sum": "mean"},
    **{"floor": "ceil", "ceil": "floor", "startswith": "endswith", "endswith": "startswith"},
}
DROPPED = (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one fault."""

    module: str
    name: str  # function: what stood there => what stands there now
    code: CodeType


# --- making them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A node that may be changed, its parent, and the function it is in."""

    node: ast.AST
    parent: ast.AST
    function: str


@dataclass(frozen=True, slots=True)
class Change:
    """Another value for one field of a node, and what then stands at the place (None: itself)."""

    owner: ast.AST
    field: str
    value: Any
    instead: ast.AST | None = None

    @contextmanager
    def made(self) -> Iterator[None]:
        before = getattr(self.owner, self.field)
        setattr(self.owner, self.field, self.value)
        try:
            yield
        finally:
            setattr(self.owner, self.field, before)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All mutants of a module's source."""
    tree, path = ast.parse(source), str(_path(module))
    return [
        Mutant(
            module, name, compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        )
        for name in faults(tree)
    ]


def faults(tree: ast.Module) -> Iterator[str]:
    """The name of every mutant, in the order of the lines; the tree has the fault meanwhile."""
    seen: Counter[str] = Counter()
    for place in list(_places(tree)):
        shown = place.parent if isinstance(place.node, ast.Constant) else place.node
        for change in _changes(place):
            before = _line(shown)
            with change.made():
                name = f"{place.function}: {before} => {_line(change.instead or shown)}"
                seen[name] += 1
                yield f"{name} #{seen[name]}" if seen[name] > 1 else name


def _path(module: str) -> Path:
    return ROOT / "kit" / ROOMS[module] / f"{module}.py"


def _places(node: ast.AST, function: str = "module") -> Iterator[Place]:
    """Everything that computes: no annotations, decorators, docstrings or imports."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _says_nothing(child):
                continue
            inner = getattr(child, "name", function) if _is_scope(child) else function
            yield Place(child, node, inner)
            yield from _places(child, inner)


def _is_scope(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef))


def _says_nothing(node: ast.AST) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    # zip(strict=…) guards against faults elsewhere; texts are for people
    guard = isinstance(node, ast.keyword) and node.arg == "strict"
    return docstring or guard or isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr))


def _changes(place: Place) -> list[Change]:
    """What may be done at a place."""
    node, parent = place.node, place.parent
    if isinstance(node, ast.Constant):
        return [Change(node, "value", value) for value in _other_values(node.value)]
    if isinstance(node, ast.Compare):
        return _comparison_changes(node)
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        swapped = [Change(node, "op", SWAPS[type(node.op)]())]
        return swapped + ([_instead(node, parent)] if isinstance(node, ast.AugAssign) else [])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        return [_instead(node, parent, node.operand)]
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        return [Change(node, "test", ast.UnaryOp(ast.Not(), node.test))]
    if isinstance(node, ast.comprehension):
        return [Change(node, "ifs", [])] if node.ifs else []
    if isinstance(node, ast.Return) and node.value is not None:
        nothing = isinstance(node.value, ast.Constant) and node.value.value is None
        return [] if nothing else [Change(node, "value", ast.Constant(None))]
    if isinstance(node, ast.Call):
        return _call_changes(node)
    return [_instead(node, parent)] if isinstance(node, DROPPED) else []


def _comparison_changes(node: ast.Compare) -> list[Change]:
    return [
        Change(node, "ops", [*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]])
        for i, op in enumerate(node.ops)
        if type(op) in SWAPS
    ]


def _call_changes(node: ast.Call) -> list[Change]:
    changes = []
    if isinstance(node.func, ast.Name) and node.func.id in NAMES:
        changes.append(Change(node.func, "id", NAMES[node.func.id]))
    if isinstance(node.func, ast.Attribute) and node.func.attr in NAMES:
        changes.append(Change(node.func, "attr", NAMES[node.func.attr]))
    for out in node.keywords:
        if out.arg not in (None, "strict"):
            kept = [keyword for keyword in node.keywords if keyword is not out]
            changes.append(Change(node, "keywords", kept))
    return changes


def _other_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2, value + 1.0] if value else [1.0]
    return []


def _instead(node: ast.AST, parent: ast.AST, other: ast.AST | None = None) -> Change:
    """Something else in a node's place, or nothing."""
    other = other or ast.Pass()
    for field, value in ast.iter_fields(parent):
        if value is node:
            return Change(parent, field, other, other)
        if isinstance(value, list) and any(child is node for child in value):
            values = [other if child is node else child for child in value]
            return Change(parent, field, values, other)
    raise ValueError("the node is no child of its parent")


def _line(node: ast.AST) -> str:
    """The node as code; of a statement with a body, its first line."""
    return ast.unparse(node).strip().splitlines()[0]


# --- running them --------------------------------------------------------------------------------


class _Faulty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with its fault."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        module = self.mutant.module
        if name != f"kit.{ROOMS[module]}.{module}":
            return None
        return importlib.util.spec_from_file_location(name, _path(module), loader=self)

    def exec_module(self, module: Any) -> None:
        exec(self.mutant.code, vars(module))


def _preload() -> None:
    """Import everything that takes long, then forget what is the kit's: children import that."""
    importlib.import_module("tests.conftest")
    for name in ("pytest", "hypothesis", "scipy.stats"):
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.split(".")[0] in ("kit", "tests"):
            del sys.modules[name]
    gc.freeze()  # or each child's last collection goes through all of it


def _start(module: str, mutant: Mutant | None) -> int:
    """Fork a process that runs the module's tests, on the mutant; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setsid()  # so that what a test starts can be ended with it
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    code = 70
    try:
        import pytest

        if mutant is not None:
            sys.meta_path.insert(0, _Faulty(mutant))
        options = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code = int(pytest.main([*TESTS[module], *options]))
    finally:
        os._exit(code)


def _baseline(module: str) -> float:
    """Seconds the module's tests take; they must pass."""
    started = time.monotonic()
    _, status = os.waitpid(_start(module, None), 0)
    if (code := os.waitstatus_to_exitcode(status)) != 0:
        sys.exit(f"the tests of {module} do not pass as it is (pytest ended with {code})")
    return time.monotonic() - started


def _survivors(mutants: list[Mutant], limits: dict[str, float], jobs: int) -> list[Mutant]:
    waiting, running = list(reversed(mutants)), {}
    survivors: list[Mutant] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[_start(mutant.module, mutant)] = mutant, time.monotonic()
        for child, (mutant, started) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if not done and time.monotonic() - started > limits[mutant.module]:
                os.killpg(child, signal.SIGKILL)
                done, status = os.waitpid(child, 0)
            if done:
                del running[child]
                code = os.waitstatus_to_exitcode(status)
                if code == NO_TESTS:
                    sys.exit(f"pytest found no tests for {mutant.module}")
                if code == 0:
                    survivors.append(mutant)
                    print(f"survives: {mutant.module}: {mutant.name}", flush=True)
        time.sleep(0.01)
    return survivors


def explained() -> dict[str, dict[str, str]]:
    """By module: the mutants that no test could kill, and why."""
    return yaml.safe_load(EXPLAINED.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    modules = arguments.modules or list(TESTS)
    if unknown := set(modules) - set(TESTS):
        parser.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    started = time.monotonic()
    os.chdir(ROOT)
    _preload()
    limits = {module: max(LEAST_SECONDS, PATIENCE * _baseline(module)) for module in modules}
    sources = {module: _path(module).read_text(encoding="utf-8") for module in modules}
    mutants = [mutant for module in modules for mutant in mutants_of(module, sources[module])]
    survivors = _survivors(mutants, limits, arguments.jobs)
    sys.exit(_report(modules, mutants, survivors, time.monotonic() - started))


def _report(
    modules: list[str], mutants: list[Mutant], survivors: list[Mutant], seconds: float
) -> int:
    """Print the table and what is wrong; returns the exit code."""
    failures = []
    reasons = explained()
    print(f"\n{'module':12} {'mutants':>8} {'killed':>8} {'share':>8} {'explained':>10}")
    for module in modules:
        names = {mutant.name for mutant in mutants if mutant.module == module}
        alive = {mutant.name for mutant in survivors if mutant.module == module}
        listed = set(reasons.get(module) or {})
        killed = f"{len(names - alive):8} {1 - len(alive) / len(names):8.1%}"
        print(f"{module:12} {len(names):8} {killed} {len(alive & listed):10}")
        failures += [f"{module}: survives: {name}" for name in sorted(alive - listed)]
        failures += [f"{module}: listed, but killed: {name}" for name in names & listed - alive]
        failures += [f"{module}: listed, but no mutant: {name}" for name in listed - names]
    share = 1 - len(survivors) / len(mutants)
    print(f"{len(mutants)} mutants, {share:.1%} killed, {seconds:.0f} s")
    if share < SHARE:
        failures.append(f"{share:.1%} were killed; {SHARE:.0%} must be")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    main()
