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
        self._by_start = defaultdict[str, list[str]](list)
        for question in self._all:
            if len(question) >= LEAST:
                self._by_start[question[:LEAST]].append(question)

    def asked_in(self, text: str) -> set[str]:
        """Those that a text asks, as `same_question` has them."""
        said = same_question(text)
        found = {said} & self._all
        for start in (match.start() for match in _START.finditer(said)):
            candidates = self._by_start.get(said[start : start + LEAST], ())
            found.update(question for question in candidates if _is_whole(question, said, start))
        return found


def _is_whole(question: str, said: str, start: int) -> bool:
    if not said.startswith(question, start):
        return False
    rest = said[start + len(question) :]
    return not rest or (question[-1] in ".?!" and not rest[0].isalnum())
