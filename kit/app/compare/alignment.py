"""Where two texts part: lines that stand beside each other, and the words in them that differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

MAX_WORDS = 2_000  # compared of two lines, spaces between them counted
MAX_CELLS = 2_500  # pairs of lines that are weighed against each other
LIKE = 0.3  # share of words that two lines must have in common to stand beside each other
_WORD = re.compile(r"\s+|\d+(?:[.,]\d+)*|[^\W\d_]+|.")  # a number keeps its decimals

Pair = tuple[int | None, int | None]  # indices of lines; None: there is none beside it
Span = tuple[int, int]  # of characters


def first_difference(a: Sequence[int | str], b: Sequence[int | str]) -> int | None:
    """Index of the first element, such as a token id, that differs; None where all are equal.

    A sequence that is the beginning of the other differs where it ends.
    """
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def align(left: Sequence[str], right: Sequence[str]) -> list[Pair]:
    """All lines of both in order; equal ones stand together, then those with most in common."""
    pairs: list[Pair] = []
    matcher = SequenceMatcher(None, left, right, autojunk=len(left) + len(right) > MAX_WORDS)
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            pairs += zip(range(i, j), range(k, m), strict=True)
        else:
            pairs += ((_at(a, i), _at(b, k)) for a, b in _likeliest(left[i:j], right[k:m]))
    return pairs


def differing(left: str, right: str) -> tuple[list[Span], list[Span]]:
    """The stretches of each line that the other does not have, in order.

    White space alone anchors nothing. What follows MAX_WORDS words of both counts as different.
    """
    ours, theirs = ([m.span() for m in _WORD.finditer(text)] for text in (left, right))
    a, b = [left[i:j] for i, j in ours], [right[i:j] for i, j in theirs]
    start = first_difference(a, b)
    if start is None:
        return [], []
    most = MAX_WORDS // 2
    matcher = SequenceMatcher(
        str.isspace, a[start : start + most], b[start : start + most], autojunk=False
    )
    changed = [op[1:] for op in matcher.get_opcodes() if op[0] != "equal"]
    spans = (
        [ours[start + i : start + j] for i, j, _, _ in changed] + [ours[start + most :]],
        [theirs[start + k : start + m] for _, _, k, m in changed] + [theirs[start + most :]],
    )
    return tuple([(words[0][0], words[-1][1]) for words in side if words] for side in spans)  # type: ignore[return-value]


def _likeliest(left: Sequence[str], right: Sequence[str]) -> Iterator[Pair]:
    """The pairs in order whose likenesses come to most; lines without a like one stay alone."""
    if len(left) * len(right) > MAX_CELLS:
        longest = max(len(left), len(right))
        for i in range(longest):
            yield (i if i < len(left) else None), (i if i < len(right) else None)
        return
    words = [[set(_WORD.findall(line.casefold())) for line in side] for side in (left, right)]
    best = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]  # of the lines from i and j on
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            together = best[i + 1][j + 1] + _likeness(words[0][i], words[1][j])
            best[i][j] = max(together, best[i + 1][j], best[i][j + 1])
    i = j = 0
    while i < len(left) and j < len(right):
        if best[i][j] == best[i + 1][j + 1] + _likeness(words[0][i], words[1][j]):
            yield i, j
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            yield i, None
            i += 1
        else:
            yield None, j
            j += 1
    yield from ((rest, None) for rest in range(i, len(left)))
    yield from ((None, rest) for rest in range(j, len(right)))


def _likeness(a: set[str], b: set[str]) -> float:
    """Share of words in common; below LIKE, a little, so that even unlike lines stand together."""
    share = len(a & b) / max(len(a | b), 1)
    return share if share >= LIKE else 0.01


def _at(index: int | None, start: int) -> int | None:
    return None if index is None else start + index
