"""Problems to pick from: the data sets of the runs, and those the kit knows."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kit.app.catalogue import Catalogue
from kit.app.options import AppOptions
from kit.config import DEMO_RECIPE, EMBEDDED, DataConfig, load_config
from kit.data import load_problems
from kit.runs import RunFolder
from kit.sources import KNOWN
from kit.targets import data_config

LISTED = 500  # problems that the page offers at once
TITLE = 90  # characters of a problem in the list


class Problems:
    """Loads each data set once, when it is first asked for."""

    def __init__(self, options: AppOptions, catalogue: Catalogue) -> None:
        runs = [RunFolder(c.run).load_config().data for c in catalogue.choices if c.run]
        if catalogue.model.id == EMBEDDED:
            runs.append(load_config(DEMO_RECIPE).data)  # the problems it has learned
        names = dict.fromkeys([*(config.name for config in runs), "gsm_symbolic", *KNOWN])
        self.configs: dict[str, DataConfig] = {
            name: data_config(name, *runs, data_dir=options.data_dir) for name in names
        }
        self._loaded: dict[str, list[Mapping[str, Any]]] = {}
        self._lock = threading.Lock()

    def load(self, name: str) -> list[Mapping[str, Any]]:
        """The test problems of a data set; DataError when it cannot be had."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = list(load_problems(self.configs[name], "test").problems)
            return self._loaded[name]

    def titles(self, name: str, search: str = "") -> list[tuple[str, int]]:
        """(first words, index) of up to `LISTED` problems with `search` in the question."""
        wanted = search.casefold().strip()
        found = [
            (f"{index}: {_title(problem['question'])}", index)
            for index, problem in enumerate(self.load(name))
            if wanted in problem["question"].casefold()
        ]
        return found[:LISTED]


def _title(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= TITLE else line[: TITLE - 1] + "…"
