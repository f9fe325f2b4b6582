"""Where two completions part: the first token that differs, and the words that do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from kit.app.inert import MAX_CHARACTERS, escaped, inert_html

MAX_WORDS = 2_000  # compared of each text, spaces between them counted
_WORD = re.compile(r"\s+|\d+(?:[.,]\d+)*|[^\W\d_]+|.")  # a number keeps its decimals

STYLE = r"""
.kit-diff { --kit-page: #ffffff; --kit-text: #16181d; --kit-gone: #fbd3ae; --kit-new: #c3dcf5; }
.dark .kit-diff {
  --kit-page: #1a1c20; --kit-text: #f4f5f7; --kit-gone: #7a3d05; --kit-new: #1d4f80;
}
.kit-diff {
  color: var(--kit-text); background: var(--kit-page); padding: 0.5rem 0.75rem;
  border-radius: 6px;
}
.kit-diff p { color: inherit; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.kit-diff p + p { margin-top: 0.5rem; }
.kit-diff del { color: inherit; background: var(--kit-gone); text-decoration: line-through; }
.kit-diff ins {
  color: inherit; background: var(--kit-new); text-decoration: underline;
  text-underline-offset: 3px;
}
.kit-diff :is(del, ins)::before, .kit-diff :is(del, ins)::after {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap;
}
.kit-diff del::before { content: " [only left: "; }
.kit-diff ins::before { content: " [only right: "; }
.kit-diff :is(del, ins)::after { content: "] "; }
"""


def first_difference(a: Sequence[int | str], b: Sequence[int | str]) -> int | None:
    """Index of the first element, such as a token id, that differs; None where all are equal.

    A sequence that is the beginning of the other differs where it ends.
    """
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def word_diff(left: str, right: str) -> str:
    """HTML of both texts in one: words only on the left struck out, only on the right underlined.

    White space is kept. From the first difference on, MAX_WORDS words of each are compared and what
    follows is shown as replaced; characters beyond MAX_CHARACTERS are counted, not shown.
    """
    note = "<del>Struck out</del>: only on the left. <ins>Underlined</ins>: only on the right."
    if left == right:
        note = "Both texts are the same."
    hidden = [max(0, len(text) - MAX_CHARACTERS) for text in (left, right)]
    if any(hidden):
        note += f" Not shown: {hidden[0]:,} characters of the left, {hidden[1]:,} of the right."
    changes = _changes(left[:MAX_CHARACTERS], right[:MAX_CHARACTERS])
    body = "".join(_marked(a, b) for a, b in changes)
    return f'<div class="kit-diff"><p>{note}</p><p>{body}</p></div>'


def _changes(left: str, right: str) -> Iterator[tuple[str, str]]:
    """Stretches of both texts in order; a pair of equal ones where nothing changed."""
    a, b = _WORD.findall(left), _WORD.findall(right)
    start = first_difference(a, b)
    yield "".join(a[:start]), "".join(b[:start])
    if start is None:
        return
    a, b = a[start:], b[start:]
    # spaces are no anchors, or every word of two unlike sentences would be a change of its own
    matcher = SequenceMatcher(str.isspace, a[:MAX_WORDS], b[:MAX_WORDS])
    for _, i, j, k, m in matcher.get_opcodes():
        yield "".join(a[i:j]), "".join(b[k:m])
    yield "".join(a[MAX_WORDS:]), "".join(b[MAX_WORDS:])


def _marked(left: str, right: str) -> str:
    if left == right:
        return escaped(left)
    gone, new = (inert_html(text) for text in (left, right))
    return (f"<del>{gone}</del>" if gone else "") + (f"<ins>{new}</ins>" if new else "")
