"""Compare two LaTeX answers by math-verify.

It evaluates what it reads, so this runs in the process of `kit.math_worker`, which bounds it.
"""

from __future__ import annotations

import functools
import re
from typing import Any

_DELIMITERS = re.compile(r"^\\[(\[]|\\[)\]]$|(?<!\\)\$|^\*\*|\*\*$")


def judge_latex(gold: str, answer: str) -> tuple[bool, bool]:
    """Whether the answer is right, and whether it could be read."""
    from math_verify import verify

    answer = _DELIMITERS.sub("", answer.strip().rstrip(".")).rstrip(" .")
    if not _balanced(answer):
        return False, False
    parsed = _parse_latex(answer)
    read = any(not isinstance(part, str) for part in parsed)
    return bool(verify(_parse_latex(gold), parsed, timeout_seconds=None)), read


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


@functools.lru_cache(maxsize=1024)
def _parse_latex(text: str) -> list[Any]:
    from math_verify import parse

    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)
