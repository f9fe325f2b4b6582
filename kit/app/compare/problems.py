"""Problems to pick from: the data sets of the runs, and those the kit knows."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kit.app.inert import short
from kit.app.library.adapters import Catalogue
from kit.app.options import AppOptions
from kit.app.verdicts import Judge, NoVerifier, Standard
from kit.config import EMBEDDED_RECIPES, DataConfig
from kit.evaluation.subjects import data_config
from kit.preferences.votes import VotedProblem
from kit.recipe import load_config
from kit.runs import RunFolder
from kit.tasks.problems import load_problems
from kit.tasks.sources import KNOWN, SYMBOLIC, TASK_PREFIX
from kit.tasks.splits import TEST_SPLIT
from kit.tasks.verifiers import Verifier

LISTED = 500  # problems that the page offers at once
TITLE = 89  # characters of a problem in the list


class Problems:
    """Loads each data set once, when it is first asked for."""

    def __init__(self, options: AppOptions, catalogue: Catalogue, judge: Judge) -> None:
        self._judge = judge
        runs = [RunFolder(c.run).load_config().data for c in catalogue.choices if c.run]
        if catalogue.model.id in EMBEDDED_RECIPES:
            # the problems it has learned
            runs.append(load_config(EMBEDDED_RECIPES[catalogue.model.id]).data)
        names = dict.fromkeys([*(config.name for config in runs), SYMBOLIC, *KNOWN])
        self.configs: dict[str, DataConfig] = {
            name: data_config(name, *runs, data_dir=options.data_dir) for name in names
        }
        self._loaded: dict[str, tuple[list[Mapping[str, Any]], Verifier]] = {}
        self._lock = threading.Lock()

    def load(self, name: str) -> list[Mapping[str, Any]]:
        """The test problems of a data set; DataError when it cannot be had."""
        return self._load(name)[0]

    def standard(self, name: str, question: str, gold: str | None) -> Standard:
        """What answers to a problem of a data set are judged by, as `kit evaluate` would.

        A task judges its own problems alone: with another gold answer a problem is the user's, and
        to one that is not among the task's no verdict is given. DataError for an unknown task.
        """
        if not name.startswith(TASK_PREFIX):
            source = KNOWN.get(name) or self._config(name)
            return self._judge.standard(gold, source.verifier)
        problems, verifier = self._load(name)
        asked = [problem for problem in problems if problem["question"] == question]
        if not asked:
            return Standard(NoVerifier(), {}, decides=False)
        own = next((row for row in asked if _bare(row["answer"]) == _bare(gold or "")), None)
        return Standard(verifier, own, decides=True) if own else self._judge.standard(gold)

    def find(self, name: str, question: str) -> VotedProblem | None:
        """Which problem of a data set a question is; None where it is none of them."""
        found = (p["id"] for p in self.load(name) if p["question"] == question)
        return next((VotedProblem(name, TEST_SPLIT, str(one)) for one in found), None)

    def titles(self, name: str, search: str = "") -> list[tuple[str, int]]:
        """(first words, index) of up to `LISTED` problems with `search` in the question."""
        wanted = search.casefold().strip()
        found = [
            (f"{index}: {short(problem['question'], TITLE)}", index)
            for index, problem in enumerate(self.load(name))
            if wanted in problem["question"].casefold()
        ]
        return found[:LISTED]

    def _config(self, name: str) -> DataConfig:
        return self.configs.get(name) or DataConfig(name=name)

    def _load(self, name: str) -> tuple[list[Mapping[str, Any]], Verifier]:
        with self._lock:
            if name not in self._loaded:
                problem_set = load_problems(self._config(name), TEST_SPLIT)
                self._loaded[name] = list(problem_set.problems), problem_set.verifier
            return self._loaded[name]


def _bare(text: str) -> str:
    """Without spaces and line breaks, which the page's field of one line takes out."""
    return "".join(text.split())
