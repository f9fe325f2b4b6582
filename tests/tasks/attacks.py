"""Hostile answers, and a program that has them judged: `python -m tests.tasks.attacks FOLDER`.

Each answer would leave a file of its own in FOLDER, or make later verdicts wrong, or take all time
or memory. The program prints as JSON what became of them; tests look into FOLDER.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TASKS = {  # and the name of the class whose verdicts an answer would change
    "n_queens": "NQueensDataset",
    "binary_matrix": "BinaryMatrixDataset",
    "spiral_matrix": "SpiralMatrixDataset",
    "string_insertion": "StringInsertionDataset",
    "countdown": "CountdownDataset",
    "puzzle24": "Puzzle24Dataset",
    "polynomial_multiplication": "PolynomialMultiplicationDataset",
    "simple_integration": "SimpleIntegrationDataset",
    "intermediate_integration": "IntermediateIntegrationDataset",
}
UNFILTERED = ("string_insertion", "intermediate_integration")  # by `eval`, and by sympy's parser
LIMIT = 2.0  # seconds an answer

_ACTS = (  # expressions; @ stands for the path
    "open('@','w')",
    "__import__('os').system('touch @')",
    "exec(\"open('@','w')\")",
    "eval(compile(\"open('@','w')\",'a','eval'))",
    "__builtins__['open']('@','w')",
    "getattr(__import__('io'),'open')('@','w')",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='Popen'][0](['touch','@'])",
    "print.__self__.open('@','w')",
    "sin.__globals__['__builtins__']['open']('@','w')",
    "(1).__reduce_ex__(2)[0].__globals__['__builtins__']['open']('@','w')",
    "__import__('subprocess').run(['touch','@'])",
    "__import__('pathlib').Path('@').touch()",
    "__import__('socket').socketpair() and open('@','w')",
)
_FRAMES = (  # & stands for the expression
    "&",
    "[&]",
    "[[&, '1'], ['2']]",
    "(lambda: &)()",
    "[f() for f in [lambda: &]]",
    "f'{&}'",
    "[y := &]",
    "[*[&]]",
    "1 if & else 2",
    "1 + &",
    "x*sin(&)",
    "E**(&) + C",
    "{&: 1}",
    "& #",
    "1\n& \n",
    "#\n&",
    "'%s' % &",
    "[0 for x in [1] if &]",
    "sorted([1], key=lambda _: &)",
    "C if False else &",
)
_CALLED = "import os;os.system\\x28'touch @'\\x29"
_BOUND = ("log", "exp", "sin", "sqrt", "Integral", "l\N{LATIN SMALL LETTER O}g")


def _fullwidth(text: str) -> str:
    """Letters and underscores that Python's identifiers are normalised from (NFKC)."""
    return "".join(chr(ord(c) + 0xFEE0) if c.isalpha() or c == "_" else c for c in text)


def _bold(text: str) -> str:
    small = ord("\N{MATHEMATICAL BOLD SMALL A}") - ord("a")
    return "".join(chr(ord(c) + small) if "a" <= c <= "z" else c for c in text)


def _outside_strings(spell: Callable[[str], str], text: str) -> str:
    """Names spelled otherwise, but not what stands in quotes."""
    parts = text.split("'")
    return "'".join(spell(part) if i % 2 == 0 else part for i, part in enumerate(parts))


def python_attacks(folder: Path) -> list[str]:
    """Answers that would leave a file behind if Python or sympy evaluated them."""
    texts = [frame.replace("&", act) for act, frame in itertools.product(_ACTS, _FRAMES)]
    texts += [_outside_strings(_fullwidth, act) for act in _ACTS]
    texts += [_outside_strings(_bold, act) for act in _ACTS]
    texts += [
        _outside_strings(lambda t: t.replace("_", "\N{FULLWIDTH LOW LINE}"), a) for a in _ACTS
    ]
    for name in _BOUND:  # a harmless name, bound to another function
        texts += [
            f'[{name}("{_CALLED}") for {name} in [exec]]',
            f'[{name}("{_CALLED}") for {name} in [eval, exec]][0]',
            f"[{name}('@', 'w') for {name} in [open]]",
            f"[{name}('o','w') for {name} in [lambda *a: open('@', 'w')]]",
            f"[{name} (chr(111)) for {name} in [lambda o: open('@', 'w')]]",
        ]
    texts += [
        "\N{FULLWIDTH LATIN SMALL LETTER O}pen('@', 'w')",
        "S(\"open('@','w')\")",
        "sympify(\"open('@','w')\")",
        "parse_expr(\"open('@','w')\")",
        "lambdify(x, \"open('@','w')\")(1)",
        "Symbol('x').evalf(subs={x: \"open('@','w')\"})",
        "Q.positive.__class__.__mro__[-1].__subclasses__() and open('@','w')",
        "Function(\"open('@','w')\")(x)",
        "Lambda(x, x)(open('@','w'))",
        "preview(x, viewer='file', filename='@')",
        "N(\"open('@','w')\")",
        "Integer(\"open('@','w')\")",
        "Matrix([\"open('@','w')\"])",
        "(lambda f: f('@', 'w'))(open)",
        "b'a'.__class__ and open('@','w')",
        "'{0.__class__}'.format(open('@','w'))",
        "open ('@' , 'w')",
        "open\\\n('@','w')",
        "open\t('@','w')",
        "[open][0]('@','w')",
        "{0: open}[0]('@','w')",
        "(open)('@','w')",
        "open('\\x40' and '@','w')",
        "sin(1)\x00 or open('@','w')",
        "@open\ndef f(): pass",
        "import os; os.system('touch @')",
        "1; open('@','w')",
        "\ufeffopen('@','w')",
    ]
    return [text.replace("@", str(folder / str(i))) for i, text in enumerate(texts)]


def poison(cls: str) -> list[str]:
    """Answers that would have every later one judged right, if they were evaluated."""
    return [
        f"[0 for {cls}.score_answer in [lambda s, a, e: 1.0]]",
        f"[0 for {_fullwidth(cls)}.score_answer in [lambda s, a, e: 1.0]]",
        "[0 for type(self).score_answer in [lambda s, a, e: 1.0]]",
        "[0 for __builtins__['float'] in [lambda a: 1.0]]",
        "[0 for entry['answer'] in [answer]]",
        "entry.update(answer=answer)",
        "[0 for Symbol.__sub__ in [lambda a, b: 0]]",
        "[0 for Basic.__eq__ in [lambda a, b: True]]",
        "globals().update(parse_expr=lambda *a, **k: 24)",
        "[0 for sympy.simplify in [lambda a: 0]]",
        "[0 for np.isclose in [lambda *a, **k: True]]",
    ]


def bombs() -> list[str]:
    """Answers that would take all time or memory, or the interpreter's stack."""
    return [
        "9**9**9",
        "9**9**9**9",
        "2**(10**10)",
        "(x+1)**99999999",
        "x**(9**9**9)",
        "10**10**10*x",
        "factorial(10**9)",
        "99999!!!!",
        "[[0]*10**9]*10**9",
        "'A'*10**10",
        "[0 for x in iter(int, 1)]",
        "(" * 5000 + "1" + ")" * 5000,
        "[" * 5000 + "]" * 5000,
        "-" * 9000 + "1",
        "1" + "+1" * 4900,
        "1" + "**1" * 3000,
        "sin(" * 2000 + "x" + ")" * 2000,
        "9" * 9999,
        "0." + "9" * 9000,
        "\N{ARABIC-INDIC DIGIT NINE}" * 50,
        "1_0" * 3000,
        "1e999999999",
        "0x" + "f" * 9000,
        "x" + "*x" * 4000,
        "",
        " " * 9999,
        "\x00",
        "\ud800",
    ]


def latex_attacks(folder: Path) -> list[str]:
    r"""LaTeX that would leave a file behind if names in it became code, or TeX ran.

    Sympy sums a series by compiling its terms, names included: in `\sum_n \dot{(f(x))}^n/n!` the
    name is `dot{(f(x))}`, and what it compiles is `dot(f(x))`.
    """
    accents = (
        *("dot", "ddot", "hat", "bar", "vec", "tilde", "acute", "grave", "breve", "check"),
        *("mathcal", "mathbb", "mathfrak", "mathscr", "text", "textbf", "mathrm", "mathbf", "mbox"),
        *("overline", "underline", "widehat", "operatorname", "variable"),
    )
    series = (
        r"\sum_{n=0}^{\infty} \frac{@^{n}}{n!}",
        r"\sum_{n=0}^{\infty} {@}^n/n!",
        r"\sum_{n=1}^{\infty} \sin(@)^n/n!",
        r"e - \sum_{k=0}^{\infty} \frac{{@}^{k}}{k!}",
    )
    texts = [s.replace("@", rf"\{a}{{(open(?,chr(119)))}}") for a in accents for s in series]
    texts += [s.replace("@", rf"\{a}{{[open(?,chr(119))]}}") for a in accents for s in series[:2]]
    texts += [
        r"\prod_{n=0}^{\infty} (1+\frac{\dot{(open(?,chr(119)))}^{n}}{n!})",
        r"\int_0^1 \dot{(open(?,chr(119)))} x dx",
        r"\lim_{x \to 0} \dot{(open(?,chr(119)))}/x",
        r"x_{open(?,chr(119))}",
        r"\frac{x_{open(?,chr(119))}}{2}",
        r"\write18{touch ?}",
        r"\immediate\write18{touch ?}",
        r"\input{|touch ?}",
        r"\openout\f=? \write\f{a}",
        r"\directlua{io.open(?)}",
        r"\catcode`\@=0 \def\x{open(?)}",
        r"\operatorname{open}(?, w)",
        r"\operatorname{eval}(open(?))",
        r"\begin{matrix} \dot{(open(?,chr(119)))} & 1 \\ 2 & 3 \end{matrix}",
        r"\det\begin{pmatrix} \dot{(open(?,chr(119)))} & 1 \\ 2 & 3 \end{pmatrix}",
        r"\{\dot{(open(?,chr(119)))}, 1\}",
        r"\dot{(open(?,chr(119)))} = 6",
        r"4 \% \dot{(open(?,chr(119)))}",
    ]
    return [text.replace("?", _characters(folder / f"l{i}")) for i, text in enumerate(texts)]


def latex_bombs() -> list[str]:
    return [r"9^{9^{9^{9}}}", "{" * 3000 + "5" + "}" * 3000, r"\frac{" * 500, r"\sqrt{" * 400]


def _characters(path: Path) -> str:
    """A text without quotes or slashes, which are lost where LaTeX is made plain."""
    return "+".join(f"chr({ord(c)})" for c in str(path))


# --- the program ----------------------------------------------------------------------------------


def main(folder: Path) -> None:
    devnull = os.open(os.devnull, os.O_RDWR)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(devnull, 1)
    found = {task: _attack_task(task, cls, folder) for task, cls in TASKS.items()}
    json.dump(found, report)


def _attack_task(task: str, cls: str, folder: Path) -> dict[str, Any]:
    """Verdicts on attacks, wrong and right answers: with the grammar, and without it."""
    import reasoning_gym

    from kit.tasks.protocol import Reply
    from kit.tasks.sandboxed import judge_batch
    from kit.tasks.task_scores import judge_task

    dataset: Any = reasoning_gym.create_dataset(task, size=6, seed=1)
    entries = [dataset[i] for i in range(6)]
    entry = next(e for e in entries if "Integral" not in e["answer"])
    others = (e["answer"] for e in entries if e is not entry)
    wrong = next(a for a in others if not judge_task(dataset, entry, a).right)
    is_unfiltered = task in UNFILTERED
    attacks = python_attacks(folder) + poison(cls) + bombs()

    def judge(request: dict[str, Any]) -> Reply:
        return judge_task(dataset, entry, request["answer"])

    def unfiltered(request: dict[str, Any]) -> Reply:
        return Reply(dataset.score_answer(request["answer"], entry) == 1.0, True)

    def judged(by: Callable[[dict[str, Any]], Reply], answers: list[str]) -> Iterator[bool]:
        requests = [{"answer": answer} for answer in answers]
        return (reply.right for reply in judge_batch(by, requests, LIMIT))

    # bombs are for the grammar; what they do without it is the time limit's business
    return {
        "same batch": list(judged(judge, [*attacks, wrong, entry["answer"]])),
        "next batch": list(judged(judge, [wrong, entry["answer"]])),
        "unfiltered": list(judged(unfiltered, attacks[: -len(bombs())])) if is_unfiltered else [],
        "afterwards": list(judged(judge, [wrong, entry["answer"]])),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
