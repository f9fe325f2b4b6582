"""The process that judges what must be evaluated: hostile answers, limits, and its own death."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import DataError
from kit.tasks import confine
from kit.tasks.protocol import Reply, pack, unpack
from kit.tasks.sandbox import Worker
from kit.tasks.task_grammar import EVALUATING_TASKS, rewrite
from kit.tasks.task_scores import judge_task
from kit.tasks.verifiers import LatexVerifier, TaskVerifier
from tests.tasks.attacks import (
    LIMIT,
    TASKS,
    UNFILTERED,
    bombs,
    latex_attacks,
    latex_bombs,
    poison,
    python_attacks,
)

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


# --- attacks --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """What became of the attacks on each task, and the files that they left."""
    folder = tmp_path_factory.mktemp("left")
    done = subprocess.run(
        [sys.executable, "-m", "tests.tasks.attacks", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), sorted(path.name for path in folder.iterdir())


@POSIX
@pytest.mark.parametrize("task", TASKS)
def test_no_answer_acts_or_changes_a_verdict(attacked, task: str) -> None:
    verdicts, left = attacked
    assert left == []
    *attacks, wrong, right = verdicts[task]["same batch"]
    assert len(attacks) >= 300 and not any(attacks)
    assert (wrong, right) == (False, True)  # after all of them, in one batch with them
    assert verdicts[task]["next batch"] == [False, True]


@POSIX
@pytest.mark.parametrize("task", UNFILTERED)
def test_nothing_depends_on_the_grammar_alone(attacked, task: str) -> None:
    """The same texts given to the scorer, which evaluates them, in a confined fork."""
    verdicts, left = attacked
    assert left == []
    assert len(verdicts[task]["unfiltered"]) >= 300 and not any(verdicts[task]["unfiltered"])
    assert verdicts[task]["afterwards"] == [False, True]


@pytest.mark.parametrize("task", TASKS)
def test_the_grammar_reads_no_attack(task: str) -> None:
    entry = {"metadata": {"variable": "x", "variables": ["x"]}}
    for answer in [*python_attacks(Path("/nowhere")), *poison(TASKS[task])]:
        assert rewrite(task, answer, entry) is None, answer


@pytest.fixture(scope="module")
def latex():
    verifier = LatexVerifier(limit=LIMIT)
    yield verifier
    verifier.worker.close()


def _attack_latex(latex, attacks: list[str], folder: Path) -> None:
    latex.worker.limit = LIMIT / 4
    requests = [{"gold": "5", "answer": answer} for answer in [*attacks, "6", "5"]]
    *replies, wrong, right = latex.worker.ask_many(requests)
    latex.worker.limit = LIMIT
    assert [a for a, reply in zip(attacks, replies, strict=True) if reply.right] == []
    assert list(folder.iterdir()) == []
    assert (wrong.right, right.right) == (False, True)


def test_no_latex_acts_or_changes_a_verdict(latex, tmp_path) -> None:
    """The first series is one that did: sympy compiled its terms, and numpy has a `dot`."""
    attacks = latex_attacks(tmp_path)
    _attack_latex(latex, [*attacks[:4], *attacks[-18:]], tmp_path)


@pytest.mark.slow
def test_no_other_latex_does(latex, tmp_path) -> None:
    attacks = [*latex_attacks(tmp_path), *python_attacks(tmp_path)[::5], *latex_bombs()]
    assert len(attacks) >= 200
    _attack_latex(latex, attacks, tmp_path)


def test_a_series_is_still_summed(latex) -> None:
    """Sympy has another way to sum where it may compile nothing."""
    series = r"#### \sum_{n=0}^{\infty} \frac{1}{n!}"
    assert latex.verify(series, {"id": "0", "answer": "e"}).strict
    assert not latex.verify(series, {"id": "0", "answer": "e+1"}).strict


_UNCOMPILED = """
import os, sys
from kit.tasks import confine
sys.path.insert(0, sys.argv[1])
held, end = os.pipe()
if not os.fork():
    confine.confine(5)
    try:
        import fresh
        os.write(end, str(fresh.value).encode())
        compile("import os", "", "exec")
    except BaseException as error:
        os.write(end, f" {type(error).__name__}".encode())
    os._exit(0)
os.close(end)
while part := os.read(held, 999):
    print(part.decode(), end="")
"""


def test_a_package_that_was_installed_uncompiled_is_loaded(tmp_path) -> None:
    """As uv installs: what Python keeps compiled is not there, and cannot be put there."""
    (tmp_path / "fresh.py").write_text("value = [number for number in range(3)]\n")
    done = subprocess.run(
        [sys.executable, "-c", _UNCOMPILED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[0, 1, 2] Refused", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fresh.py"]


_NATIVE = """
import ctypes, os, sys
from pathlib import Path
from kit.tasks import confine
folder = Path(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
name = str(folder / "new").encode()
kept = str(folder / "kept").encode()
calls = {
    "open": lambda: libc.open(name, os.O_CREAT | os.O_WRONLY, 0o600),
    "open existing": lambda: libc.open(kept, os.O_RDWR),
    "truncate": lambda: libc.truncate(kept, 0),
    "unlink": lambda: libc.unlink(kept),
    "rename": lambda: libc.rename(kept, name),
    "mkdir": lambda: libc.mkdir(name, 0o700),
    "chmod": lambda: libc.chmod(kept, 0),
    "symlink": lambda: libc.symlink(kept, name),
    "socket": lambda: libc.socket(2, 1, 0),
    "fork": lambda: libc.fork(),
    "execv": lambda: libc.execv(b"/bin/true", None),
    "kill": lambda: libc.kill(os.getppid(), 0),
    "ptrace": lambda: libc.ptrace(16, os.getppid(), None, None),
    "setrlimit": lambda: libc.setrlimit(7, (ctypes.c_ulong * 2)(9999, 9999)),
}
held, end = os.pipe()
if not os.fork():
    is_filtered = confine.filter_calls()
    passed = [name for name, call in calls.items() if call() != -1]
    read = len(open("/proc/version").read()) if Path("/proc/version").exists() else 1
    os.write(end, f"{is_filtered} {passed} {read > 0}".encode())
    os._exit(0)
os.close(end)
print(os.read(held, 999).decode())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a filter of Linux")
def test_native_code_gets_out_no_more_than_python(tmp_path) -> None:
    (tmp_path / "kept").write_text("as it was")
    done = subprocess.run(
        [sys.executable, "-c", _NATIVE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    if done.stdout.startswith("False"):
        pytest.skip("this kernel or processor has no such filter")
    assert done.stdout == "True [] True\n", done.stderr
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("kept", "as it was")]


@pytest.mark.parametrize(
    "source",
    [
        "Integer (2 )*Symbol ('x' )**Integer (3 )",
        "-sin (Float ('0.5' ))+x /7",
        "(0x1f + 0xa0) << 0x2",
        "['a', 'b c', 1]",
        "from sympy import *",
    ],
)
def test_formulas_are_compiled(source: str) -> None:
    assert confine._is_plain(source, confine._NAMES)
    assert confine._is_plain(source.encode(), confine._NAMES)


def test_nothing_else_is_compiled() -> None:
    for source in python_attacks(Path("/nowhere")):
        assert not confine._is_plain(source, confine._NAMES), source
    generated = "def _lambdifygenerated(n):\n    return dot(open(chr(47),chr(119)))"
    assert not confine._is_plain(generated, confine._NAMES)
    assert not confine._is_plain("from os import *", confine._NAMES)


@pytest.mark.parametrize(
    "doing",
    [
        "open('left', 'w')",
        "open('left', 'r+b')",
        "os.open('left', os.O_CREAT | os.O_RDONLY)",
        "os.remove('no such file')",
        "os.system('true')",
        "subprocess.run(['true'])",
        "socket.socket().bind(('127.0.0.1', 0))",
        "os.kill(os.getpid(), 0)",
        "ctypes.CDLL(None)",
        "eval('print')",
        "exec('import os')",
        "compile('lambda: 1', 'a', 'eval')",
    ],
)
def test_the_hook_alone_refuses(doing: str, monkeypatch) -> None:
    """Where the kernel offers nothing, as on Windows; what is attempted would do no harm."""
    code = compile(doing, "doing", "eval")
    events = []

    def hook(event, arguments):
        if events and events[0] is None:
            confine._audit(event, arguments, confine._NAMES)

    import ctypes
    import socket

    sys.addaudithook(hook)  # for good: switched by `events`
    events.append(None)
    try:
        with pytest.raises(confine.Refused):
            eval(code, {"os": os, "subprocess": subprocess, "socket": socket, "ctypes": ctypes})
    finally:
        events.clear()


# --- right answers --------------------------------------------------------------------------------


def test_tasks_that_evaluate_answers_are_known() -> None:
    """A new version of reasoning-gym must not bring an `eval` of model text unseen.

    Read are the classes and what their modules define: a scorer may leave it to a function.
    """
    from reasoning_gym.factory import DATASETS

    call = re.compile(
        r"\b(?:eval|exec|compile|parse_expr|sympify|literal_eval|loads|load|lambdify|__import__)\("
        r"(?:str\()?(?:answer|user_solution|cleaned_answer|expr|solution|response|text|s)\b"
    )
    # what these call is a JSON parser, or the task's own parser of that name
    parsed = {"boxnet", "codeio", "game_of_life", "graph_color", "group_anagrams", "jugs"}
    parsed |= {"number_sorting", "palindrome_partitioning", "propositional_logic"}
    found = set()
    for name, (dataset, _) in DATASETS.items():
        source = inspect.getsource(sys.modules[dataset.__module__])
        calls = call.findall(source.replace("json.loads(answer", ""))
        if calls and name not in parsed:
            found.add(name)
    assert found == EVALUATING_TASKS


BOARD = "_ Q _ _\n_ _ _ Q\nQ _ _ _\n_ _ Q _"
MATRIX = "0 1 1\n1 0 1\n2 1 0"
RIGHT = [
    (
        "n_queens",
        {"valid_answers": [BOARD]},
        BOARD,
        [BOARD, f"{BOARD}\n", BOARD.replace(" \n", "\n")],
    ),
    ("binary_matrix", {}, MATRIX, [MATRIX, MATRIX.replace("\n", " \n"), f"\n{MATRIX}\n"]),
    ("spiral_matrix", {}, "3 9 5 -6", ["3 9 5 -6", " 3 9 5 -6\n", "3  9 5 -6"]),
    ("string_insertion", {}, "EEBCDEB", ["EEBCDEB", "EEBCDEB "]),
    (
        "countdown",
        {"numbers": [67, 50, 20, 82], "target": 119},
        "82 + 20 + 67 - 50",
        ["82 + 20 + 67 - 50", "82+20+67-50", "(82 + 20) + (67 - 50)", "-50 + 67 + 20 + 82"],
    ),
    (
        "puzzle24",
        {"numbers": [4, 8, 6, 2]},
        "4*8 - 6 - 2",
        ["4*8 - 6 - 2", "4*8-6-2", "8 * 4 - (6 + 2)", "(4*8) - 6 - 2", "6*(8/2)*4/4*1"][:4],
    ),
    (
        "polynomial_multiplication",
        {"variables": ["x", "y"]},
        "189*x**4 + 1281*x**3 - 2*y",
        ["189*x**4+1281*x**3-2*y", "-2*y + 1281*x**3 + 189*x**4", "(189*x**4) + 1281*x**3 - y*2"],
    ),
    (
        "simple_integration",
        {"variable": "X", "integrand": "-36*X**7/5 + 6*X**3"},
        "-9*X**8/10 + 3*X**4/2 + C",
        [
            "-9*X**8/10 + 3*X**4/2 + C",
            "-9*X**8/10 + 3*X**4/2",
            "-0.9*X**8+1.5*X**4+C",
            "3/2*X**4 - 9/10*X**8 + 7",
        ],
    ),
    (
        "intermediate_integration",
        {"variable": "x", "integrand": "exp(x) + 1/x + sqrt(x)"},
        "exp(x) + log(x) + 2*x**(3/2)/3 + C",
        [
            "exp(x) + log(x) + 2*x**(3/2)/3 + C",
            "E**(x) + ln(x) + (2/3)*x*sqrt(x) + C",
            "E**x+log(x)+2*x**(3/2)/3",
        ],
    ),
]


@pytest.fixture(scope="module")
def datasets():
    import reasoning_gym

    return {task: reasoning_gym.create_dataset(task, size=1, seed=0) for task in TASKS}


@pytest.mark.parametrize(("task", "metadata", "gold", "answers"), RIGHT)
def test_right_answers_as_a_model_writes_them(datasets, task, metadata, gold, answers) -> None:
    entry = {"answer": gold, "metadata": metadata | {"source_dataset": task}}
    for answer in answers:
        assert judge_task(datasets[task], entry, answer) == Reply(True, True), answer


@pytest.mark.parametrize(
    ("task", "metadata", "answer"),
    [
        ("binary_matrix", {}, "[[0, 1], [1, 0]]"),  # the task gives a tenth of the score
        ("spiral_matrix", {}, "[0, 1]"),
        ("string_insertion", {}, '["A", "B"]'),
        ("n_queens", {"valid_answers": ["_ Q"]}, "[['_', 'Q']]"),
        ("countdown", {"numbers": [2, 3], "target": 6}, "3*3"),
    ],
)
def test_what_is_read_need_not_be_right(datasets, task, metadata, answer) -> None:
    entry = {"answer": "0 1\n1 0", "metadata": metadata | {"source_dataset": task}}
    assert judge_task(datasets[task], entry, answer) == Reply(right=False, read=True)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("countdown", "2**3"),
        ("countdown", "1.5*4"),  # the scorer would count a 1 and a 5
        ("countdown", "2(3)"),
        ("countdown", "6 = 2*3"),
        ("countdown", "x"),
        ("puzzle24", "4*6//1"),
        ("puzzle24", "(1+2"),
        ("puzzle24", "1/0"),
        ("polynomial_multiplication", "sin(x)"),
        ("polynomial_multiplication", "z"),
        ("polynomial_multiplication", "x**257"),
        ("simple_integration", "Integral(x**2, x)"),  # would be right for every integrand
        ("simple_integration", "x.diff"),
        ("intermediate_integration", "sin x"),
        ("intermediate_integration", "(2**256)**9"),
        ("binary_matrix", "[[NaN]]"),
        ("binary_matrix", "[[[0]]]"),
        ("binary_matrix", "[1e999]"),
        ("spiral_matrix", "{'a': 1}"),
        ("string_insertion", "['a\\nb']"),
        ("n_queens", "_ Q . Q"),
    ],
)
def test_what_is_not_read(task: str, answer: str) -> None:
    entry = {"metadata": {"variable": "x", "variables": ["x", "y"]}}
    assert rewrite(task, answer, entry) is None


@given(
    st.sampled_from(sorted(TASKS)),
    st.one_of(
        st.text(max_size=60),
        st.text("x1209+-*/() .C", max_size=40),
        st.lists(st.sampled_from(["sin(", "x", ")", "**", "2", "+", "E", "(", "-", "/"])).map(
            "".join
        ),
    ),
)
def test_what_is_written_again_is_plain(task: str, answer: str) -> None:
    """ASCII of a few kinds, read as itself, and harmless to compile: whatever came."""
    entry = {"metadata": {"variable": "x", "variables": ["x"]}}
    written = rewrite(task, answer, entry)
    if written is not None:
        assert re.fullmatch(r"[A-Za-z0-9_+*/().,'\[\]\s-]*", written)
        assert rewrite(task, written, entry) == written
        if task not in ("n_queens", "binary_matrix", "spiral_matrix", "string_insertion"):
            assert confine._is_plain(written, confine._NAMES)


@pytest.mark.parametrize("task", TASKS)
def test_reading_takes_little_time(task: str) -> None:
    entry = {"metadata": {"variable": "x", "variables": ["x"]}}
    for answer in bombs():
        start = time.thread_time()
        rewrite(task, answer[:10_000], entry)
        assert time.thread_time() - start < 0.05, answer[:20]


@pytest.mark.parametrize(
    ("task", "metadata", "gold", "answer"),
    [
        ("number_sorting", {"direction": "ascending"}, "['1', '2']", "[NaN, NaN]"),
        ("complex_arithmetic", {"result": [1.0, 2.0]}, "1.0 + 2.0i", "nan"),
        ("puzzle24", {"numbers": [4, 8, 6, 2]}, "4*8 - 6 - 2", "4*6*1*1"),
        ("game_of_life_halting", {}, "True", "False"),
        ("game_of_life_halting", {}, "False", "I do not know"),
    ],
)
def test_answers_that_only_the_scorer_takes_for_right(task, metadata, gold, answer) -> None:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, size=1, seed=0)
    entry = {"answer": gold.replace("'", '"'), "metadata": metadata | {"source_dataset": task}}
    assert dataset.score_answer(answer, entry) == 1.0
    assert judge_task(dataset, entry, answer) == Reply(right=False, read=True)
    assert judge_task(dataset, entry, entry["answer"]).right


@pytest.mark.parametrize(
    ("task", "gold", "wrong", "right"),
    [
        ("gsm_symbolic", "20", ("-20", "20 or 5", "20 21", "not 20"), ("20", "20.0", "$20")),
        ("coin_flip", "0.234375", ("0", "0.3"), ("0.234375", "0.2344", "15/64")),
        ("coin_flip", "1", ("15", "19"), ("1",)),
        ("knights_knaves", "Zoey is a knight", ("not Zoey is a knight",), ("Zoey is a knight",)),
        ("knights_knaves", "Al is a fool", ("It is false that Al is a fool",), ("Al is a fool",)),
    ],
)
def test_one_number_is_one_number_and_a_denial_is_none(task, gold, wrong, right) -> None:
    """A scorer that takes everything shows what the kit asks besides."""

    class Credulous:
        score_answer = staticmethod(lambda answer, entry: 1.0)

    entry = {"answer": gold, "metadata": {"source_dataset": task}}
    assert not any(judge_task(Credulous, entry, answer).right for answer in wrong)
    assert all(judge_task(Credulous, entry, answer).right for answer in right)


# --- entries --------------------------------------------------------------------------------------


def _equal(a, b) -> bool:
    """Equal, and of the same types of containers throughout."""
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def test_entries_travel_as_json() -> None:
    entry = {"a": [1, (2.5, None, True)], 3: {"b": {4}}, (5, "c"): frozenset([6]), "d": [["list"]]}
    assert _equal(unpack(json.loads(json.dumps(pack(entry)))), entry)


def test_an_entry_that_cannot_travel() -> None:
    with pytest.raises(DataError, match=r"task cannot be used.* hold a fractions.Fraction"):
        TaskVerifier(
            "gcd", "{}", {"gcd/0": {"metadata": {"x": __import__("fractions").Fraction(1)}}}
        )


@pytest.mark.slow
def test_every_tasks_own_answers_are_right_after_the_journey() -> None:
    """Packed, unpacked and judged in a confined fork, as they are judged without either."""
    done = subprocess.run(
        [sys.executable, "-c", _JOURNEY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tasks = json.loads(done.stdout.splitlines()[-1])
    assert len(tasks) > 100
    assert {task: v for task, v in tasks.items() if v["here"] != v["confined"]} == {}
    without = {task for task, v in tasks.items() if not all(v["here"])}
    # they have no gold answers, or one that is no antiderivative
    assert without <= {
        "boxnet",
        "graph_color",
        "propositional_logic",
        "rubiks_cube",
        "rush_hour",
    } | {"intermediate_integration"}


_JOURNEY = """
import json, sys, reasoning_gym
from reasoning_gym.factory import DATASETS
from kit.tasks.protocol import pack, unpack
from kit.tasks.sandboxed import judge_batch, judged
from kit.tasks.task_scores import judge_task
found = {}
for task in sorted(set(DATASETS) - {"composite", "gsm_symbolic"}):
    dataset = reasoning_gym.create_dataset(task, size=3, seed=0)
    def judge(request):
        return judge_task(dataset, unpack(request["entry"]), request["answer"])
    def judge_here(request):
        return judge_task(dataset, request["entry"], request["answer"])
    entries = [dataset[i] for i in range(3)]
    golds = [str(e["answer"]) for e in entries]
    packed = [json.loads(json.dumps(pack(e))) for e in entries]
    requests = [{"entry": e, "answer": a} for e, a in zip(packed, golds)]
    here = [judged(judge_here, {"entry": e, "answer": a}) for e, a in zip(entries, golds)]
    confined = list(judge_batch(judge, requests, 60.0))
    found[task] = {
        "here": [r is not None and r.right for r in here],
        "confined": [r.right for r in confined],
    }
print()
print(json.dumps(found))
"""


# --- the process ----------------------------------------------------------------------------------


def test_a_child_that_dies_while_idle_is_asked_again(latex, monkeypatch) -> None:
    """Dead between two requests, so that only the silence after one shows it."""
    assert latex.verify("#### 5", {"answer": "5"}).strict
    worker, send, deaths = latex.worker, latex.worker._send, []

    def dying(batch):
        if not deaths:
            deaths.append(worker._child.pid)
            worker._child.kill()
            worker._child.wait()
        send(batch)

    monkeypatch.setattr(worker, "_send", dying)
    assert latex.verify("#### 5", {"answer": "5"}).strict
    assert deaths and worker._child.pid != deaths[0]


def test_an_answer_that_kills_the_child_twice_is_wrong_and_stops_nobody_else(monkeypatch) -> None:
    worker, asked = Worker(), []

    def ask(requests):
        asked.append(requests[0]["answer"])
        return [] if requests[0]["answer"] == "deadly" else [Reply(True, True)]

    monkeypatch.setattr(worker, "_ask", ask)
    replies = worker.ask_many([{"answer": a} for a in ("a", "deadly", "b")])
    assert replies == [Reply(True, True), Reply(False, False), Reply(True, True)]
    assert asked == ["a", "deadly", "deadly", "b"]


@POSIX
def test_what_ends_a_fork_costs_only_its_own_answer() -> None:
    script = """
import json, os, time
from kit.tasks.protocol import Reply
from kit.tasks.sandboxed import judge_batch
def judge(request):
    do = request["do"]
    if do == "raise": raise MemoryError
    if do == "exit": os._exit(0)
    if do == "abort": os.abort()
    while do == "spin": pass
    if do == "fill": bytearray(8 << 30)
    return Reply(right=do == "right", read=True)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
told = "right raise right exit right abort right spin wrong fill right".split()
print(json.dumps([list(r) for r in judge_batch(judge, [{"do": t} for t in told], 0.3)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    right, died, late = [True, True, False], [False, False, False], [False, True, True]
    wrong = [False, True, False]
    assert json.loads(done.stdout) == [
        *(right, died, right, died, right, died, right, late, wrong, died, right)
    ]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_environment_holds_no_secrets(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    worker = Worker()
    assert worker.ask_many([{"gold": "5", "answer": "5"}])[0].right
    held = Path(f"/proc/{worker._child.pid}/environ").read_bytes().decode()
    worker.close()
    names = {line.partition("=")[0] for line in held.split("\0") if line}
    assert "secret" not in held and "HOME" not in names and "PYTHONPATH" in names
