"""Programs in processes of their own, forked from one that has imported what they import.

Run as a program of its own, with the modules to import as arguments, so that it holds nothing of
the tests. `Forks` starts it, and asks it by lines of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Forks:
    """Start it with the environment that its programs are to have; close it at the end."""

    def __init__(self, imported: tuple[str, ...], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *imported],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def run(self, line: list[str], folder: Path, path: str = "") -> str:
        """What `python LINE` prints in a folder, with `path` on PYTHONPATH; it must end well."""
        order = {"line": line, "folder": str(folder), "path": path}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        status = json.loads(self._process.stdout.readline())
        said, errors = ((folder / name).read_text() for name in ("stdout", "stderr"))
        assert status == 0, errors[-3000:]
        return said

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def _serve(imported: list[str]) -> None:
    for name in imported:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


def _become(line: list[str], folder: str, path: str) -> None:
    """The program that `python LINE` would be."""
    status: Any = 1
    try:
        os.chdir(folder)
        for number, name in enumerate((os.devnull, "stdout", "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        if path:
            sys.modules.pop("kit", None)  # which could not be imported where the fork began
            sys.path.insert(1, path)
        sys.argv, sys.path[0] = line, folder
        runpy.run_path(line[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _serve(sys.argv[1:])
