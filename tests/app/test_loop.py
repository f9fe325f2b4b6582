"""From blind votes to an adapter trained on them and to votes on that, as a voter does it: in the
page, and with the commands that the page hands out."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from kit.evaluation.benchmark import benchmark
from kit.evaluation.compared import questions_of
from kit.evaluation.settings import EvalSettings
from kit.evaluation.stats import paired_difference
from kit.evaluation.subjects import resolve_data, resolve_targets
from kit.preferences.votes import Vote, read_votes
from kit.recipe import load_config
from kit.tasks.problems import load_problems, same_question
from kit.tasks.verifiers import NumberVerifier
from kit.training.trainer import train
from tests.app.test_page import BROWSER, LONG, opened, playwright, pytestmark, serving

__all__ = ["pytestmark"]  # these too need a browser
pytestmark = [*pytestmark, pytest.mark.slow]

RECIPE = Path(__file__).parents[2] / "configs" / "embedded-pspo.yaml"
KEYS = {"left": "1", "right": "2", "tie": "3", "both_bad": "4"}
PROBLEMS = 150


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Any) -> Path:
    """An adapter and its base, with answers to training problems; either may end in #### or in
    words, which is longer."""
    folder = tmp_path_factory.mktemp("loop") / "runs"
    config = load_config(RECIPE, ["train.steps=9", f"output={folder / 'arm'}"])
    train(config, base=base)
    bare, arm = resolve_targets([str(folder / "arm")], base_id="embedded")
    targets = [replace(bare, results=folder / "base" / "eval"), arm]
    settings = EvalSettings(split="train", limit=PROBLEMS, temperature=[1.0])
    benchmark(targets, resolve_data(["gsm_symbolic"], targets), settings, base=base)
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Iterator[Any]:
    with serving(runs) as address, playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(LONG)
        opened(page, address)
        yield page
        browser.close()


def test_votes_for_the_shortest_right_answer_make_right_answers_shorter(
    page: Any, runs: Path
) -> None:
    problems = load_problems(load_config(RECIPE).data, "train").problems
    gold = dict(zip(problems["question"], problems["answer"], strict=True))

    def shortest_right(question: str, answers: list[str]) -> str:
        verdicts = NumberVerifier().verify_many(answers, [{"answer": gold[question]}] * 2)
        right = [verdict.lenient for verdict in verdicts]
        if right == [False, False]:
            return "both_bad"
        if right == [True, True] and len(answers[0]) == len(answers[1]):
            return "tie"
        # of two right ones the shorter
        costs = [(not is_right, len(text)) for is_right, text in zip(right, answers, strict=True)]
        return "left" if costs[0] < costs[1] else "right"

    page.get_by_label("blind").check()
    said = votes(page, shortest_right)
    assert "between base and arm" in said
    assert not violations(page)
    for command in page.inner_text("#kit-result .cm-content").splitlines():
        _, *arguments = shlex.split(command)
        run = [sys.executable, "-m", "kit", *arguments]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    old, new = (by_problem(runs / name) for name in ("arm", "arm-voted"))
    both = [i for i in old if old[i]["lenient"] and new[i]["lenient"]]
    lengths = [[len(rows[i]["completion"]) for i in both] for rows in (new, old)]
    assert ttest_rel(*lengths).confidence_interval(0.95).high < 0
    right = [[rows[i]["lenient"] for i in old] for rows in (new, old)]
    assert paired_difference(right[:1], right[1:]).high >= 0  # not shown to have fallen

    page.get_by_role("button", name="Vote again").click()
    said = votes(page, shortest_right)
    numbers = r"(\d+) : (\d+) arm-voted \((?:[\d.]+)% \[([\d.]+)%, ([\d.]+)%\], p = ([\d.e-]+)\)"
    found = re.search("arm " + numbers, said)
    assert found, said
    for_old, for_new, low, high, p = map(float, found.groups())
    assert for_new > for_old and low < 100 * for_old / (for_old + for_new) < high < 50 and p < 0.05
    learned = questions_of(str(runs / "arm-voted" / "preferences.jsonl"))
    first, later = by_pair(runs / "votes.jsonl")
    assert learned <= {same_question(vote.question) for vote in first}
    assert len(later) >= for_old + for_new
    assert not {v.question for v in first} & {v.question for v in later}


def votes(page: Any, voter: Callable[[str, list[str]], str]) -> str:
    """A session to its end, by keys; what it came to."""
    page.wait_for_function("/^0 of/.test(document.querySelector('#kit-votes').innerText.trim())")
    total = int(page.inner_text("#kit-votes").split(" of ")[1])
    assert not violations(page)
    for number in range(total):
        cells = page.locator("#kit-text .kit-row .kit-cell").all_inner_texts()
        answers = ["\n".join(filter(None, cells[place::2])) for place in (0, 1)]
        page.keyboard.press(KEYS[voter(page.input_value("#kit-question textarea"), answers)])
        page.wait_for_function(
            "n => document.querySelector('#kit-votes').innerText.startsWith(`${n} of`)"
            " || document.querySelector('#kit-result')?.offsetParent",
            arg=number + 1,
        )
    page.wait_for_selector("#kit-result")
    return str(page.inner_text("#kit-result"))


def violations(page: Any) -> list[str]:
    """What keeps people from using the page as it is."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    return [
        f"{violation['id']}: {[node['html'][:200] for node in violation['nodes'][:3]]}"
        for violation in axe.run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


def by_pair(path: Path) -> list[list[Vote]]:
    """The votes between each two adapters."""
    pairs: dict[frozenset[str | None], list[Vote]] = {}
    for vote in read_votes(path)[0]:
        both = frozenset((vote.left.adapter_sha256, vote.right.adapter_sha256))
        pairs.setdefault(both, []).append(vote)
    return [*pairs.values()]


def by_problem(run: Path) -> dict[str, dict[str, Any]]:
    """The answers that the page's second command has left."""
    rows = map(json.loads, max(run.glob("eval/*.jsonl")).read_text().splitlines())
    return {row["id"]: row for row in rows}
