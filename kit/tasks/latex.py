"""Compare two LaTeX answers: their forms by the kit, the formulas in them by math-verify.

It evaluates what it reads, so this runs in `kit.tasks.sandboxed`, which bounds it.
What the two must share beyond their values: brackets of a point or interval, the base of a
numeral, the variable, the measure where both name one. `25%` answers both `25%` and `1/4`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from kit.tasks.latex_forms import Form, read, values, with_bare_unit
from kit.tasks.latex_formula import Unreadable, formula
from kit.tasks.latex_text import bare_words, plain, signs, words


def judge_latex(gold: str, answer: str) -> tuple[bool, bool]:
    """Whether the answer is right, and whether it could be read."""
    said = words(gold)
    if said is not None:
        return bare_words(answer) == said and signs(answer) == signs(gold), True
    if not _balanced(answer):
        return False, False
    if _tight(plain(gold)) == _tight(plain(answer)):
        return True, True
    try:
        return _same(read(gold), read(answer)), True
    except Unreadable:
        return False, False


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def _tight(text: str) -> str:
    """Without spaces, but for those between digits."""
    return re.sub(r"(?<![0-9]) +| +(?![0-9])", "", text)


def _same(gold: Form, answer: Form) -> bool:
    """Whether two forms are the same answer."""
    gold, answer = _sole(gold), _sole(answer)
    by_name, said = values(gold), values(answer)
    if by_name is not None and said is not None:
        return by_name.keys() == said.keys() and all(_same(by_name[n], said[n]) for n in said)
    if "equation" in (gold.kind, answer.kind):
        return _same_equation(gold, answer)
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if {gold.kind, answer.kind} == {"matrix", "tuple"}:
        gold, answer = _as_point(gold), _as_point(answer)
    if gold.kind != answer.kind or len(gold.items) != len(answer.items):
        return False
    if gold.kind == "leaf":
        return _same_quantity(gold, answer)
    if gold.kind in ("list", "union"):
        return _same_items(gold.items, answer.items)
    if gold.kind == "relation":
        return gold.text == answer.text and _ratio(gold, answer) > 0
    if gold.brackets != answer.brackets or gold.text != answer.text:
        return False
    return all(_same(g, a) for g, a in zip(gold.items, answer.items, strict=True))


def _sole(form: Form) -> Form:
    """A list of one number is that number."""
    if form.kind == "list" and len(form.items) == 1 and form.items[0].kind == "leaf":
        return form.items[0]
    return form


def _as_point(form: Form) -> Form:
    """A column as the tuple of its components."""
    if form.kind == "matrix" and all(len(row.items) == 1 for row in form.items):
        return Form("tuple", items=tuple(row.items[0] for row in form.items), brackets="()")
    return form


def _same_items(gold: tuple[Form, ...], answer: tuple[Form, ...]) -> bool:
    """In any order."""
    left = list(answer)
    for item in gold:
        match = next((i for i, other in enumerate(left) if _same(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_equation(gold: Form, answer: Form) -> bool:
    """Of `x = 5` the right side is an answer too; of other equations only an equivalent one."""
    if gold.kind == answer.kind:
        if gold.name and gold.name == answer.name:
            return _same(gold.items[1], answer.items[1])
        return _ratio(gold, answer) != 0
    if gold.kind == "equation":
        return gold.name != "" and _same(gold.items[1], answer)
    return answer.name != "" and _same(gold, answer.items[1])


def _same_quantity(gold: Form, answer: Form) -> bool:
    if gold.unit and not answer.unit:
        answer = with_bare_unit(answer, gold.unit)
    if answer.unit and not gold.unit:
        gold = with_bare_unit(gold, answer.unit)
    g, a = gold.text, answer.text
    if gold.letters and not answer.unit:  # `2mg` may be a product, so no number alone
        return _equal(g + gold.letters, a)
    if answer.letters and not gold.unit and _equal(g, a + answer.letters):
        return True
    if "%" in (gold.unit, answer.unit):
        return _same_percentage(gold, answer)
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    return _equal(g, a)


def _same_percentage(gold: Form, answer: Form) -> bool:
    """Without its sign a percentage is itself or a hundredth; with it, the integer asked for."""
    g, a = gold.text, answer.text
    if gold.unit == answer.unit:
        return _equal(g, a)
    if gold.unit == "%":
        return answer.unit is None and (_equal(g, a) or _equal(f"\\frac{{{g}}}{{100}}", a))
    if gold.unit is not None:
        return False
    return _equal(g, f"\\frac{{{a}}}{{100}}") or (g.isdecimal() and g != "0" and _equal(g, a))


def _equal(gold: str, answer: str) -> bool:
    """Whether two formulas have the same value."""
    from math_verify import verify

    if _tight(gold) == _tight(answer):
        return True
    g, a = _expression(gold), _expression(answer)
    return g is not None and a is not None and bool(verify([g], [a], timeout_seconds=None))


def _ratio(gold: Form, answer: Form) -> Any:
    """The constant that makes the answer's equation of gold's; 0 where there is none."""
    from sympy import simplify

    g, a = (_expression(f"({f.items[0].text})-({f.items[1].text})") for f in (gold, answer))
    if g is None or a is None or a.is_zero or g.is_zero:
        return 0
    ratio = simplify(g / a)
    return ratio if ratio.is_number and ratio.is_finite and ratio.is_real else 0


@functools.lru_cache(maxsize=1024)
def _expression(text: str) -> Any:
    """The sympy expression of a formula; None where it has no value."""
    from math_verify import parse
    from sympy import Expr, I, Symbol

    written = f"\\boxed{{{formula(text)}}}"
    found = parse(written, [_extraction()], parsing_timeout=None)
    if not found or not isinstance(found[0], Expr):
        return None
    # one and the same letter is real in one text and complex in another
    letters = found[0].free_symbols
    return found[0].xreplace(
        {letter: I if letter.name == "i" else Symbol(letter.name, real=True) for letter in letters}
    )


@functools.cache
def _extraction() -> Any:
    """Without math-verify's list of units, which takes the `t` of `3+2t` for tons."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    return LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True,
            units=False,
            malformed_operators=True,
            nits=True,
            boxed="all",
            equations=False,
        )
    )
