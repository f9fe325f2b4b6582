r"""Read a LaTeX answer into a form: a point, an interval, a list, a number with its unit, …

What an algebra system would guess at (whether `(2, 4)` is a point or an interval, whether `52_8`
has a base, what follows a number) is decided here, from the text alone; only the formulas in the
leaves are left to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from kit.tasks.latex_formula import MAX_CHARS, MAX_DEPTH, Unreadable
from kit.tasks.latex_text import plain
from kit.tasks.units import is_unit, measure

Kind = Literal["leaf", "list", "tuple", "union", "equation", "relation", "matrix", "ratio", "base"]


@dataclass(frozen=True, slots=True)
class Form:
    """An answer taken apart."""

    kind: Kind
    text: str = ""  # leaf: a formula; base: the numeral; relation: its sign
    items: tuple[Form, ...] = ()  # matrix: its rows, each a tuple
    brackets: str = ""  # of a tuple: "()", "[)", ...
    unit: str | None = None  # of a leaf: its measure
    letters: str = ""  # of a leaf: a unit of two right after a number, which may be variables
    name: str = ""  # the variable that the answer is given for; base: the base


_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_GREEK = r"\\(?:alpha|beta|gamma|delta|theta|phi|lambda|mu|omega|sigma|rho)\b"
_LETTER = rf"(?:[A-Za-z]|{_GREEK})"
_NAME = re.compile(
    rf"(?:\\angle ?[A-Z]{{1,3}}|{_LETTER}(?:_\{{?\w\}}?)?'?(?:\([a-z](?:, ?[a-z])*\))?"  # f(x)
    rf"|\\(?:vec|overline) ?\{{?[A-Za-z]+\}}?|\({_LETTER}(?:, ?{_LETTER})+ ?\))"  # (x, y)
)
_OPEN, _CLOSE = "([{⟦⟨", ")]}⟧⟩"
_SEPARATOR = re.compile(r",? ?\b(?:and|or)\b ?|[,;]")
_RELATION = re.compile(r"[<>≤≥]")
_BASE = re.compile(
    r"(-? ?)[({]? ?([0-9A-Za-z]*[0-9][0-9A-Za-z]*) ?[)}]? ?"
    r"(?:_ ?\{? ?\(?|\(? ?base ?)([0-9]{1,2}|[a-z]+) ?\)? ?\}?\)?"
)
_NUMERALS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_BASES = {name: str(base) for base, name in enumerate(_NUMERALS, 2)}
_ARRAY = r"\{(?:[pb]?matrix|array)\}"
_MATRIX = re.compile(rf"(.*?)[(\[]?\\begin ?{_ARRAY}(?:\{{[clr| ]+\}})?(.*)\\end ?{_ARRAY}[)\]]?")
_FLIP = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
_TAIL = re.compile(r"(?<![\\A-Za-z])[A-Za-z(][A-Za-z ./()]*(?: ?\^ ?\{?[23]\}?)?$")


def read(text: str) -> Form:
    """Raises Unreadable."""
    if len(text) > MAX_CHARS:
        raise Unreadable("too long")
    return _read(plain(text), 0)


def _read(text: str, depth: int) -> Form:
    if not any(c in text for c in "([⟦⟨"):
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    parts, joints = _split(text, _SEPARATOR)
    if len(parts) == 1:
        return _item(text, depth)
    items = [_item(part, depth) for part in parts if part.strip()]
    ranges = [item.kind in ("tuple", "union") and item.name != "" for item in items]
    if all(ranges) and all("or" in joint for joint in joints):
        return Form("union", items=tuple(items))
    if any(ranges):
        raise Unreadable("several conditions")
    return _listed(items)


def _listed(items: list[Form]) -> Form:
    named = _named(items)
    if named is not None:
        return named
    flat: list[Form] = []
    for item in items:
        flat += item.items if item.kind == "list" and item.items else [item]
    return Form("list", items=tuple(flat))


def _named(items: list[Form]) -> Form | None:
    """`x=1, y=2`: values by name; in the order of their names they are a point as well."""
    names = [item.name for item in items]
    if not all(names) or any(item.kind != "equation" for item in items):
        return None
    if len(set(names)) < max(len(names), 2):
        return None
    brackets = "()" if sorted(names) == names else ""
    values = tuple(item.items[1] for item in items)
    return Form("tuple", items=values, brackets=brackets, name=";".join(names))


def values(form: Form) -> dict[str, Form] | None:
    """The values by name of `x=1, y=2` or `(x,y) = (1,2)`, else None."""
    if ";" in form.name:
        names = form.name.split(";")
    elif form.kind == "equation" and form.name.startswith("("):
        names, form = form.name.strip("()").split(","), form.items[1]
    else:
        return None
    if form.kind != "tuple" or not len(names) == len(set(names)) == len(form.items):
        return None
    return dict(zip(names, form.items, strict=True))


def _item(text: str, depth: int) -> Form:
    """An answer that is not several."""
    text = text.strip()
    if not text:
        raise Unreadable("empty")
    if text[0] == "{" and _closes(text) == len(text) - 1:
        return _item(text[1:-1], depth + 1)
    if depth > MAX_DEPTH:
        raise Unreadable("too deep")
    if ("\\pm" in text or "\\mp" in text) and text[0] != "⟦":
        signs = (("+", "-"), ("-", "+"))
        both = [text.replace("\\pm", p).replace("\\mp", m) for p, m in signs]
        return _listed([_item(t, depth + 1) for t in both])
    member = re.match(rf"({_NAME.pattern}) ?\\in(?![A-Za-z])", text)
    if member:
        return replace(_read(text[member.end() :], depth + 1), name=member[1])
    for reader in (_union, _relation, _equation, _matrix, _bracketed, _based, _ratio):
        form = reader(text, depth)
        if form is not None:
            return form
    return _leaf(text)


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The pieces between separators outside of all brackets, and the separators."""
    pieces, joints, level, start, i = [], [], 0, 0, 0
    while i < len(text):
        level += (text[i] in _OPEN) - (text[i] in _CLOSE)
        match = separator.match(text, i) if level == 0 else None
        if match:
            pieces.append(text[start:i])
            joints.append(match[0])
            start = i = match.end()
        else:
            i += 1
    return [*pieces, text[start:]], joints


def _union(text: str, depth: int) -> Form | None:
    pieces, _ = _split(text, re.compile(r"\\cup(?![A-Za-z])"))
    if len(pieces) == 1:
        return None
    return Form("union", items=tuple(_item(piece, depth + 1) for piece in pieces))


def _relation(text: str, depth: int) -> Form | None:
    """An inequality; one that bounds a variable by constants is an interval."""
    sides, signs = _split(text, _RELATION)
    sides = [side.strip() for side in sides]
    if not signs or not all(sides):
        return None
    if signs[0] in ">≥":
        sides, signs = sides[::-1], [_FLIP[s] for s in reversed(signs)]
    if any(s not in "<≤" for s in signs):
        raise Unreadable("directions differ")
    is_name = [_NAME.fullmatch(side) is not None for side in sides]
    left, right = "(" if signs[0] == "<" else "[", ")" if signs[-1] == "<" else "]"
    infinity = "\\infty"
    if is_name == [True, False]:
        low, name, high, left = "-" + infinity, sides[0], sides[1], "("
    elif is_name == [False, True]:
        low, name, high, right = sides[0], sides[1], infinity, ")"
    elif is_name == [False, True, False]:
        low, name, high = sides
    elif len(sides) == 2:
        return Form("relation", text=signs[0], items=tuple(_leaf(s) for s in sides))
    else:
        raise Unreadable("chain")
    return Form("tuple", items=(_leaf(low), _leaf(high)), brackets=left + right, name=name)


def _equation(text: str, depth: int) -> Form | None:
    sides, signs = _split(text, re.compile("="))
    sides = [side.strip() for side in sides]
    if not signs or not all(sides):
        return None
    first, last = sides[0], sides[-1]
    if _NAME.fullmatch(last) and not _NAME.fullmatch(first):
        first, last = last, first
    name = first.replace(" ", "") if _NAME.fullmatch(first) else ""
    if len(sides) > 2 and not name:
        raise Unreadable("chain")
    left = Form("leaf", text=first)
    return Form("equation", items=(left, _item(last, depth + 1)), name=name)


def _matrix(text: str, depth: int) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    factor, body = match[1].strip(), match[2]
    rows = [row for row in re.split(r"\\\\", body) if row.strip()]
    if len(rows) * max(row.count("&") + 1 for row in rows or [""]) > 64:
        raise Unreadable("large matrix")
    times = f"{factor}1" if factor in ("+", "-") else factor
    cells = [[f"({times})({c})" if times else c for c in row.split("&")] for row in rows]
    made = [
        Form("tuple", items=tuple(_leaf(c.strip()) for c in row), brackets="()") for row in cells
    ]
    return Form("matrix", items=tuple(made))


def _bracketed(text: str, depth: int) -> Form | None:
    if re.fullmatch(r"\][^\[\]]*\[", text):
        text = f"({text[1:-1]})"
    if text == "\\emptyset":
        return Form("list")
    if text[0] not in "([⟦⟨" or _closes(text) != len(text) - 1:
        return None
    inner = text[1:-1]
    parts, _ = _split(inner, re.compile(","))
    if text[0] == "⟦":
        items = [_item(part, depth + 1) for part in parts] if inner.strip() else []
        return _listed(items) if not any(i.kind == "equation" for i in items) else None
    if len(parts) == 1:
        return _item(inner, depth + 1) if text[0] + text[-1] == "()" else None
    brackets = (text[0] + text[-1]).replace("⟨⟩", "()")
    items = [_item(part, depth + 1) for part in parts]
    return _named(items) or Form("tuple", items=tuple(items), brackets=brackets)


def _closes(text: str) -> int:
    """Where the bracket that the text begins with is closed."""
    level = 0
    for i, character in enumerate(text):
        level += (character in _OPEN) - (character in _CLOSE)
        if level == 0:
            return i
    return -1


def _based(text: str, depth: int) -> Form | None:
    match = _BASE.fullmatch(text.replace(",", ""))
    if match is None:
        return None
    base = _BASES.get(match[3], match[3])
    if not base.isdecimal():
        return None
    numeral = match[1].strip() + (match[2].lower().lstrip("0") or "0")
    return Form("base", text=numeral, name=base)


def _ratio(text: str, depth: int) -> Form | None:
    parts, signs = _split(text, re.compile(":"))
    if not signs:
        return None
    return Form("ratio", items=tuple(_leaf(part.strip()) for part in parts))


def _leaf(text: str) -> Form:
    text, unit = _without_unit(whole := text.strip())
    letters = unit and re.fullmatch(r".*[0-9]([A-Za-z]{2})", whole)
    return Form("leaf", text=text, unit=unit, letters=letters[1] if letters else "")


def _without_unit(text: str) -> tuple[str, str | None]:
    """A quantity and the canonical name of its measure; things that are counted are dropped."""
    for sign, unit in (("$", "dollar"), ("€", "euro"), ("£", "pound")):
        bare = text.removeprefix("-").strip()
        if bare.startswith(sign):
            inner, found = _without_unit(("-" if text.startswith("-") else "") + bare[1:].strip())
            return inner, found or unit
        if text.endswith(sign):
            return text.removesuffix(sign).strip(), unit
    percent = re.fullmatch(r"(.*[0-9)}]) ?(?:%|percent|pct)", text)
    if percent:
        return percent[1], "%"
    if "°" in text and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        inner, count = re.subn(r" ?°(?=\}|$)", "", text)
        return (inner, "degree") if count == 1 and "°" not in inner else (text, None)
    tail = _TAIL.search(text)
    if tail is None or not re.search(r"[0-9]|\\pi", text[: tail.start()]):
        return text, None
    word, head = tail[0].strip().replace(" ^", "^"), text[: tail.start()].strip()
    if len(re.findall("[A-Za-z]", word)) < 2 or not is_unit(word):
        return text, None
    name = measure(word)
    return head, None if name is None or name.startswith("unit") else name


def with_bare_unit(form: Form, unit: str) -> Form:
    """`7 m` where metres are asked for: a single letter that is no variable there."""
    match = re.fullmatch(r"(.*[0-9)}]) ?([a-z](?:\^\{?[23]\}?)?)", form.text)
    if match and form.unit is None and measure(match[2]) == unit:
        return replace(form, text=match[1], unit=unit)
    return form
