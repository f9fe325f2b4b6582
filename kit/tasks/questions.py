"""Find questions again in what users say: in other spacing or case, and between other words.

Between other words ("Solve: …", "… Think first.") only those of at least LEAST characters are
found, and only whole: what follows one must be a sentence of its own, as "3 + 4" goes on in
"3 + 4 * 2". So no question of GSM8K, SVAMP, ASDiv or MATH-500 is taken for another one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from kit.tasks.problems import same_question

LEAST = 40
_START = re.compile(r"(?<!\w)\S")


class Questions:
    """Questions that are looked for."""

    def __init__(self, questions: Iterable[str]) -> None:
        self._all = frozenset(map(same_question, questions))
        self._lengths = defaultdict[str, set[int]](set)  # by what questions start with
        for question in self._all:
            if len(question) >= LEAST:
                self._lengths[question[:LEAST]].add(len(question))

    def asked_in(self, text: str) -> set[str]:
        """Those that a text asks, as `same_question` has them."""
        said = same_question(text)
        found = {said} & self._all
        for start in (match.start() for match in _START.finditer(said)):
            for length in self._lengths.get(said[start : start + LEAST], ()):
                end = start + length
                question, after = said[start:end], said[end : end + 1]
                if question in self._all and _is_whole(question, after):
                    found.add(question)
        return found


def _is_whole(question: str, after: str) -> bool:
    return not after or (question[-1] in ".?!" and not after.isalnum())
