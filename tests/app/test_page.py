"""The real app in a real browser: `python app.py` on the embedded model, driven in Chromium."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import httpx
import pytest

from kit.app.training.view import SECONDS
from kit.evaluation.benchmark import benchmark
from kit.evaluation.settings import EvalSettings
from kit.evaluation.subjects import resolve_data, resolve_targets
from kit.preferences.votes import read_votes
from kit.recipe import build_config
from kit.tasks.verifiers import NumberVerifier
from kit.training.trainer import train_together

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

ROOT = Path(__file__).parents[2]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NEEDED = os.environ.get("KIT_NEEDS_BROWSER")  # set in continuous integration: no skipping there
pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(
        BROWSER is None and not NEEDED, reason="no Chromium here: apt-get install chromium"
    ),
]
QUESTION = "Tom has 3 apples and buys 5 more. How many apples does he have?"
LONG = 60_000  # ms; a busy machine is no failure
HANDLE = ".toggle-button"  # of the drawer
TRIES = 5  # a browser that gets less of the processor than the model may come too late


# --- a folder of runs, the app on it, a page of it ------------------------------------------------


def arms(folder):
    """Two arms of three steps on one base."""
    common = {
        "model": {"id": "embedded"},
        "lora": {"rank": 4, "alpha": 8},
        "data": {"name": "gsm_symbolic", "options": {"size": 60}, "validation_size": 4},
        "rollout": {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 24},
        "reward": {"functions": [{"path": "tests.reward_functions:share_of_vowels"}]},
        "optim": {"learning_rate": 4e-3, "warmup_fraction": 0.0},
        "train": {
            "steps": 3,
            "updates_per_rollout": 4,  # or both arms say the same
            "validate_every": 3,
            "preflight_problems": 0,
        },
    }
    return [
        build_config(
            common | {"objective": {"trust_region": {"name": arm}}, "output": str(folder / arm)}
        )
        for arm in ("clip", "pspo")
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base):
    """Two arms, evaluated on six problems."""
    folder = tmp_path_factory.mktemp("app") / "runs"
    train_together(arms(folder), base=base)
    targets = resolve_targets([str(folder / "clip"), str(folder / "pspo")])
    settings = EvalSettings(limit=6, max_new_tokens=48)
    benchmark(targets, resolve_data(["gsm_symbolic"], targets), settings, base=base)
    return folder


@contextmanager
def serving(runs):
    """The app's address. It starts as a user starts it, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = runs.parent / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, ROOT / "app.py", "--runs", str(runs), "--port", str(port), "--cpu"],
            cwd=runs.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(address, timeout=2)
                break
            except httpx.TransportError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def app(runs):
    with serving(runs) as address:
        yield address


@contextmanager
def window_of(folder):
    """A browser window whose scripts stay compiled in `folder` from one page to the next."""
    with playwright.sync_playwright() as player:
        context = player.chromium.launch_persistent_context(
            folder,
            executable_path=BROWSER,
            args=["--no-sandbox"],
            viewport={"width": 1280, "height": 900},
        )
        context.set_default_timeout(LONG)
        yield context
        context.close()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with window_of(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.fixture
def page(window, app):
    """A page of the app as it opens; errors in it and requests to anywhere else fail the test."""
    page = window.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: r.url.startswith((app, "data:", "blob:")) or wrong.append(r.url))
    opened(page, app)
    yield page
    page.close()
    assert not wrong


def opened(page, address):
    page.goto(address)
    page.wait_for_selector(".kit-row")


def fill(page, question=QUESTION, gold="8", **settings):
    page.fill("#kit-question textarea", question)
    page.fill("#kit-gold textarea, #kit-gold input", gold)
    if settings:
        page.click(HANDLE)
        for label, value in settings.items():
            page.get_by_role("spinbutton", name=f"number input for {label}").fill(str(value))
            page.keyboard.press("Tab")
        page.click(HANDLE)


def run(page):
    start(page)
    finished(page)


def start(page):
    """Run, with what an earlier run left on the page marked as old."""
    page.evaluate("document.querySelectorAll('.kit-row').forEach(row => { row.dataset.old = 1 })")
    page.click("#kit-run")


def refused(page, message):
    """Wait until the page says so and takes another run; nothing waits for ever."""
    said = "words => document.querySelector('.kit-notice')?.innerText.includes(words)"
    page.wait_for_function(said, arg=message)
    page.wait_for_selector("#kit-run", state="visible")
    assert "waiting" not in page.inner_text("#kit-head")
    return page.inner_text(".kit-notice")


def finished(page):
    """Wait until both answers are complete and the page takes another run."""
    page.wait_for_function(
        """() => {
            const row = document.querySelector('.kit-row');
            const run = document.querySelector('#kit-run');
            return row && !row.dataset.old && document.querySelector('.kit-strip')
                && run && !run.disabled && run.getClientRects().length;
        }""",
    )


def text_of(page, side):
    """The completion of a side, as it is read."""
    cells = page.locator(f"#kit-text .kit-cell.kit-is-{side}").all_inner_texts()
    return "\n".join(cells)


def top(page, selector):
    return page.eval_on_selector(selector, "element => element.getBoundingClientRect().top")


# --- the Compare tab ------------------------------------------------------------------------------


def test_the_page_opens_on_reasoning_that_differs(page, runs):
    """From disk, at once; and the reasoning has the page."""
    left, right = text_of(page, "left"), text_of(page, "right")
    stored = [
        json.loads(line)["completion"]
        for arm in ("clip", "pspo")
        for line in (runs / arm / "eval" / "gsm_symbolic.jsonl").read_text().splitlines()
    ]
    squeezed = {"".join(text.split()) for text in stored}
    for shown in (left, right):
        assert "".join(shown.replace("first difference", "").split()) in squeezed
    assert left != right and "clip" in page.inner_text("#kit-first")
    chip = "getComputedStyle(document.querySelector('#kit-gold'), '::before').content"
    assert page.evaluate(chip) == '"gold:"'  # "right:" would be the right side's
    page.set_viewport_size({"width": 1440, "height": 900})
    assert top(page, "#kit-head") <= 112 and top(page, ".kit-row") <= 150
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 1440
    style = "element => parseFloat(getComputedStyle(element).fontSize)"
    assert page.eval_on_selector(".kit-cell", style) >= 16
    boxes = page.locator(".kit-row >> nth=0 >> .kit-cell")
    first, second = boxes.nth(0).bounding_box(), boxes.nth(1).bounding_box()
    assert first["y"] == second["y"]  # lines stand beside each other
    assert first["width"] + second["width"] > 1300
    widths = page.evaluate(
        """async () => {
            const font = "600 100px 'Source Sans Pro', monospace";
            await document.fonts.load(font, "i");
            const canvas = document.createElement("canvas").getContext("2d");
            return [font, "600 100px monospace"].map(each => {
                canvas.font = each;
                return canvas.measureText("i").width;
            });
        }"""
    )
    assert widths[0] < 0.7 * widths[1]  # monospace is what a letter that is lacking is drawn in


def test_the_foot_is_read_beside_the_open_drawer(page):
    page.set_viewport_size({"width": 1180, "height": 900})
    page.click(HANDLE)
    page.wait_for_function("document.querySelector('#kit-drawer').getBoundingClientRect().x < 810")
    said, drawer = (page.locator(part).bounding_box() for part in ("#kit-votes", "#kit-drawer"))
    assert said["x"] + said["width"] <= drawer["x"]
    page.click(HANDLE)
    page.wait_for_function(
        "document.querySelector('#kit-foot').getBoundingClientRect().width == 1180"
    )


def test_a_phone_shows_the_reasoning_and_what_differs(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert top(page, ".kit-row") <= 220
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    run, height = page.locator("#kit-run").bounding_box(), 844
    assert run["y"] + run["height"] > height - 20  # in the bar at the bottom
    assert page.locator("#kit-head button:visible").all_inner_texts() == ["clip", "Diff", "pspo"]
    differing = page.locator(".kit-row:not(.kit-same) >> nth=0")
    assert differing.locator(".kit-cell:visible").count() == 2
    page.click("#kit-head button[data-show=right]")
    assert page.locator("#kit-text .kit-is-left:visible").count() == 0
    assert page.locator("#kit-text .kit-is-right:visible").count() > 0


@pytest.mark.parametrize("box", ["base", "blind"])
def test_a_phone_that_shows_the_base_shows_both_when_its_column_goes(page, box):
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("checkbox", name="base").check()
    page.click("#kit-head button[data-show=base]")
    page.get_by_role("checkbox", name=box).click()
    page.wait_for_selector("#kit-head button[data-show=base]", state="detached")
    page.wait_for_selector(".kit-cell.kit-is-left >> visible=true", timeout=5000)
    assert page.locator(".kit-both").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("is_blind", [False, True])
@pytest.mark.parametrize("width", [660, 768, 1100, 1101])
def test_nothing_stands_over_the_foot_of_a_narrow_window(page, width, is_blind):
    page.set_viewport_size({"width": width, "height": 844})
    page.get_by_role("checkbox", name="blind").set_checked(is_blind)
    page.wait_for_selector("#kit-vote-left" if is_blind else ".kit-scores", timeout=5000)
    page.wait_for_timeout(200)
    parts = "#kit-views, #kit-votes p, #kit-next, #kit-outcome, #kit-vote, #kit-scores, #kit-voter"
    boxes = [part.bounding_box() for part in page.locator(parts).locator("visible=true").all()]
    assert len(boxes) == 5
    for one, other in combinations(boxes, 2):
        beside = max(one["x"], other["x"]) >= min(b["x"] + b["width"] for b in (one, other))
        below = max(one["y"], other["y"]) >= min(b["y"] + b["height"] for b in (one, other))
        assert beside or below, (one, other)
    assert page.locator("#kit-votes p").bounding_box()["height"] < 60  # no word a line
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_nothing_stands_over_the_menu_of_a_small_phone(page):
    page.set_viewport_size({"width": 320, "height": 780})
    page.wait_for_selector(".overflow-menu")
    menu, handle = (page.locator(part).bounding_box() for part in (".overflow-menu", HANDLE))
    assert menu["x"] + menu["width"] <= handle["x"]
    _overflowing(page, "Training")
    page.wait_for_function(FILLED["Training"])


@pytest.mark.parametrize("width", [320, 390, 1101, 1280])
def test_long_names_of_a_pair_can_be_read(page, width):
    """As long as the page makes them, in both boxes of the bar and in both heads."""
    page.set_viewport_size({"width": width, "height": 844})
    name = "one-equation-p…e-pspo/seed-0"
    page.evaluate(
        """name => {
            document.querySelectorAll('#kit-bar input[role=combobox]').forEach(box => {
                box.value = name;
            });
            document.querySelectorAll('.kit-head > button').forEach(button => {
                button.innerText = name;
            });
        }""",
        name,
    )
    boxes = page.locator("#kit-bar input[role=combobox], .kit-head > button")
    assert boxes.count() == 4
    cut = "e => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight + 4"
    assert not any(boxes.nth(i).evaluate(cut) for i in range(4))
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_the_same_text_is_looked_at_in_four_ways(page):
    fill(page)
    run(page)
    before = text_of(page, "left")
    for view in ("Text", "Heat", "Silenced", "Diff"):
        page.get_by_label(view, exact=True).check(force=True)
        page.wait_for_selector(f"#kit-reader[data-view={view.lower()}]")
        assert before.split("\n")[0][:8] in text_of(page, "left")
    assert page.inner_text("body").count(before.split("\n")[0]) <= 2  # once for each side
    page.get_by_role("button", name="What the trust regions").click()
    page.wait_for_selector("#kit-ratios svg circle")
    assert page.locator("#kit-ratios svg .kit-is-right circle").count() > 0
    page.locator("#kit-ratios svg .kit-is-right :is(circle, .kit-mark)").nth(1).click()
    assert "token 2" in page.evaluate("document.activeElement.getAttribute('label')")
    page.keyboard.press("ArrowRight")  # the keyboard alone goes from token to token
    assert "token 3" in page.evaluate("document.activeElement.getAttribute('label')")


def test_heat_of_stored_answers_needs_no_run(page):
    """Picked on what is on disk, and on the pair that is read after that."""
    before = text_of(page, "left").replace("first difference", "").split()
    page.get_by_label("Heat", exact=True).check(force=True)
    page.wait_for_selector("#kit-reader[data-view=heat] .kit-cell .kit-token")
    page.wait_for_selector("#kit-run", state="visible")
    assert not page.is_visible("#kit-stop") and not page.is_visible("#kit-notice")
    assert "token 1" in page.locator(".kit-cell .kit-token").first.get_attribute("label")
    assert before[0] in text_of(page, "left")
    first = page.input_value("#kit-question textarea")
    page.click("#kit-following")
    page.wait_for_function(
        "q => document.querySelector('#kit-question textarea').value != q", arg=first
    )
    page.wait_for_selector("#kit-analysis", state="visible")
    page.wait_for_selector("#kit-reader[data-view=heat] .kit-cell .kit-token")


def test_both_sides_stream_at_once_and_verdicts_are_right(page):
    fill(page, **{"Temperature": 2, "New tokens at most": 200})  # long answers
    page.evaluate(
        """() => {
            const text = side => [...document.querySelectorAll(`#kit-text .kit-is-${side}`)]
                .map(cell => cell.innerText).join('');
            new MutationObserver(() => {
                if (document.querySelector('.kit-row') && !document.querySelector('.kit-strip'))
                    window.seen.push([text('left'), text('right')]);
            }).observe(document.body, {childList: true, characterData: true, subtree: true});
        }"""
    )
    for _ in range(TRIES):
        page.evaluate("window.seen = []")
        run(page)
        final = text_of(page, "left"), text_of(page, "right")
        growing = [pair for pair in page.evaluate("window.seen") if all(pair) and pair != final]
        if growing:
            break
    else:
        pytest.fail("no picture showed both sides half-way")
    assert all(
        len(side) <= len(end) for pair in growing for side, end in zip(pair, final, strict=True)
    )
    for column in ("first", "second"):
        head = page.inner_text(f"#kit-{column}")
        answer = page.locator(f"#kit-{column} b")
        found = answer.inner_text() if answer.count() else ""
        verdict = NumberVerifier().verify(f"#### {found}", {"answer": "8"})
        assert ("right" in head) == verdict.lenient and "tokens" in head
        page.hover(f"#kit-{column}")
        figures = page.inner_text(f"#kit-{column} .kit-figures")
        assert all(name in figures for name in ("seconds", "mean log-prob", "KL to base"))


def test_enter_runs_and_the_exact_prompt_is_shown(page):
    fill(page)
    page.press("#kit-question textarea", "Enter")
    page.wait_for_selector(".kit-cell .kit-token")
    page.click(HANDLE)
    page.get_by_role("button", name="The prompt exactly").click()
    page.wait_for_function(
        "q => [...document.querySelectorAll('textarea')].some(a => a.value.includes(q) "
        "&& a.value.includes('<|im_start|>assistant'))",
        arg=QUESTION,
    )


def test_several_samples_are_dots_that_are_clicked(page):
    fill(page, **{"Temperature": 2, "Samples of each side": 4})
    run(page)
    summary = page.inner_text("#kit-samples")
    assert "of 4" in summary and "pass@2" in summary and "majority" in summary
    assert page.locator("#kit-first .kit-dot").count() == 4
    first = text_of(page, "left")
    page.locator("#kit-first .kit-dot").nth(1).click()
    page.wait_for_selector("#kit-first .kit-dot[data-sample='1'][aria-pressed=true]")
    page.locator("#kit-first .kit-dot").nth(0).press("Enter")
    page.wait_for_selector("#kit-first .kit-dot[data-sample='0'][aria-pressed=true]")
    page.wait_for_function(
        "t => [...document.querySelectorAll('#kit-text .kit-is-left')]"
        ".map(cell => cell.innerText).join('\\n') == t",
        arg=first,
    )


def test_stop_ends_the_answers_and_frees_the_page(page):
    fill(page, **{"Temperature": 2, "New tokens at most": 900, "Samples of each side": 64})
    for _ in range(TRIES):
        start(page)
        page.wait_for_function(  # at the first word
            """() => {
                const stop = document.querySelector('#kit-stop');
                const cell = document.querySelector('.kit-row:not([data-old]) .kit-cell');
                if (!cell?.innerText.trim() || !stop?.offsetParent) return false;
                stop.click();
                return true;
            }""",
            polling=20,
        )
        finished(page)
        page.wait_for_selector("#kit-stop", state="hidden")
        if not page.is_visible("#kit-analysis"):  # what was cut short is not analysed
            break
    else:
        pytest.fail("the answers came to their ends each time")
    fill(page, **{"New tokens at most": 24, "Samples of each side": 1})
    run(page)


def test_a_blind_vote_names_nobody_before_and_lands_in_the_file(page, runs):
    page.get_by_label("blind").check()
    page.wait_for_selector("#kit-vote-left")
    fill(page)
    run(page)
    page.wait_for_selector("#kit-vote-left")
    heads = page.inner_text("#kit-head")
    assert "Answer A" in heads and "Answer B" in heads
    page.evaluate("document.activeElement.blur()")
    gold = page.locator("#kit-gold textarea, #kit-gold input")
    assert gold.evaluate("field => getComputedStyle(field).color") == "rgba(0, 0, 0, 0)"
    assert not any(name in heads for name in ("clip", "pspo", "KL to base", "right", "wrong"))
    assert not page.is_visible("#kit-analysis")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    page.wait_for_function("document.querySelector('#kit-votes').innerText.includes('A was')")
    votes, corrupt = read_votes(runs / "votes.jsonl")
    assert len(votes) == 1 and corrupt == 0 and votes[0].blind and votes[0].question == QUESTION
    preferred = getattr(votes[0], votes[0].vote)
    revealed = page.inner_text("#kit-votes")
    assert f"A was {preferred.name}" in revealed and "So far" in revealed
    assert preferred.name in page.inner_text("#kit-first")
    page.wait_for_selector("#kit-analysis")


def test_a_session_of_blind_votes_by_keys_alone(page, runs):
    """Progress, N, an end with its score, and another voter's own session."""
    path = runs / "votes.jsonl"
    before = len(read_votes(path)[0]) if path.exists() else 0
    page.get_by_label("blind").focus()
    page.keyboard.press("Space")
    page.wait_for_selector("#kit-vote-left")
    page.focus("#kit-voter input, #kit-voter textarea")
    page.keyboard.type("Ada 1")  # a key typed there is no vote
    page.keyboard.press("Enter")  # after it keys are votes again
    page.wait_for_function("/^0 of/.test(document.querySelector('#kit-votes').innerText.trim())")
    skipped = page.input_value("#kit-question textarea")
    page.keyboard.press("n")
    said = page.inner_text("#kit-votes")
    total = int(said.split(" of ")[1])
    page.wait_for_function(
        "q => document.querySelector('#kit-question textarea').value != q", arg=skipped
    )
    for number in range(total):
        assert "Answer A" in page.inner_text("#kit-head")
        assert page.locator("#kit-scores button").count() == 0
        page.keyboard.press("3" if number % 2 else "1")
        page.wait_for_function(
            "n => document.querySelector('#kit-votes').innerText.startsWith(`${n} of`)"
            " || document.querySelector('#kit-result')?.offsetParent",
            arg=number + 1,
        )
    page.wait_for_selector("#kit-result")
    result = page.inner_text("#kit-result")
    assert f"{total} of {total} votes by Ada 1 between" in result
    assert "p = " in result and "that came twice" in result
    assert "kit train" in result and "method=dpo" in result and "kit evaluate" in result
    votes = read_votes(path)[0][before:]
    assert len(votes) == total and {vote.voter for vote in votes} == {"Ada 1"}
    assert sum(vote.repeat_of is not None for vote in votes) == 1
    assert skipped in {vote.question for vote in votes}
    page.get_by_role("button", name="Vote again").click()
    page.wait_for_selector(".kit-notice")
    assert "no run in" in page.inner_text(".kit-notice")


def test_three_clicks_at_once_are_one_vote(page, runs):
    path = runs / "votes.jsonl"
    before = len(read_votes(path)[0]) if path.exists() else 0
    page.get_by_label("blind").check()
    page.wait_for_selector("#kit-vote-left")
    fill(page)
    run(page)
    page.wait_for_selector("#kit-vote-left")
    page.evaluate(
        "['left', 'tie', 'right'].forEach(c => document.querySelector(`#kit-vote-${c}`).click())"
    )
    page.wait_for_function("document.querySelector('#kit-votes').innerText.includes('So far')")
    page.wait_for_selector("#kit-analysis", state="visible")
    page.wait_for_timeout(1000)  # for the other clicks
    assert len(read_votes(path)[0]) == before + 1
    assert page.locator(".toast-item").count() == 0


def test_a_side_that_is_the_base_is_not_given_away(page):
    page.get_by_label("Left").first.fill("base")
    page.keyboard.press("Enter")
    page.get_by_role("checkbox", name="base").check()
    page.get_by_label("blind").check()
    fill(page)
    run(page)
    page.wait_for_selector("#kit-vote-left")
    assert page.locator("#kit-base").count() == 0
    page.click("#kit-vote-both_bad")
    page.wait_for_selector("#kit-base")
    assert "base" in page.inner_text("#kit-base")


def test_the_pair_is_in_the_address_and_can_be_shared(page, app):
    page.wait_for_function("/left=clip&right=pspo/.test(location.search)")
    assert "problem=" in page.url
    page.click("#kit-swap")
    page.wait_for_function("location.search.includes('left=pspo')")
    assert "right=clip" in page.url
    page.goto(page.url)
    page.wait_for_selector(".kit-row")
    assert page.inner_text("#kit-first button") == "pspo"
    opened(page, f"{app}/?left=..%2F..%2Fetc&right=clip")  # no path that was not offered
    assert page.inner_text("#kit-first button") == "clip"
    said = page.inner_text(".kit-notice")
    assert said == "../../etc is not among the adapters here; clip and pspo are shown"
    page.wait_for_function("/left=clip&right=pspo/.test(location.search)")


def test_the_problem_is_in_the_address_and_can_be_shared(page, app):
    before = page.input_value("#kit-question textarea")
    page.click("#kit-following")
    page.wait_for_function(
        "q => document.querySelector('#kit-question textarea').value != q", arg=before
    )
    page.wait_for_function("location.search.includes('problem=')")
    asked, shared = page.input_value("#kit-question textarea"), page.url
    assert asked != before
    opened(page, shared)
    assert page.input_value("#kit-question textarea") == asked and page.url == shared
    opened(page, f"{app}/?problem=nowhere")
    assert page.input_value("#kit-question textarea") == before


def test_the_base_is_in_the_address_and_can_be_shared(page, app):
    opened(page, f"{app}/?base=on")
    page.wait_for_selector("#kit-base")
    box = page.get_by_role("checkbox", name="base")
    assert box.is_checked()
    box.uncheck()
    page.wait_for_function("!location.search.includes('base')")
    page.wait_for_selector("#kit-base", state="detached")
    box.check()
    page.wait_for_function("location.search.includes('base=on')")
    page.wait_for_selector("#kit-base")


def test_a_problem_of_a_data_set_is_picked_and_its_comparison_exported(page):
    page.get_by_label("Left").first.fill("base")  # which has no stored answers here
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('.kit-row')")
    page.click(HANDLE)
    page.get_by_label("Problems containing").fill("books")
    page.click(HANDLE)
    page.click("#kit-chance")
    page.wait_for_function(
        "document.querySelector('#kit-question textarea').value.includes('books')"
    )
    question = page.input_value("#kit-question textarea")
    gold = page.input_value("#kit-gold textarea, #kit-gold input")
    assert gold.isdigit()
    run(page)
    page.click(HANDLE)
    files = {}
    for name in ("as Markdown", "as JSON", "LLM Comparator"):
        with page.expect_download() as download:
            page.locator("#kit-export").get_by_text(name).click()
        files[name] = Path(download.value.path()).read_text(encoding="utf-8")
    assert question in files["as Markdown"] and "pspo" in files["as Markdown"]
    pair = json.loads(files["as JSON"])
    assert (pair["question"], pair["answer"]) == (question, gold)
    assert pair["right"]["name"] == "pspo" and pair["right"]["kl_to_base"] > 0
    (example,) = json.loads(files["LLM Comparator"])["examples"]
    assert example["output_text_b"] == pair["right"]["completion"]


def test_hostile_text_does_nothing(page):
    hostile = (
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> "
        "[a](javascript:window.hacked=3) ![b](http://example.org/b.png) "
        "<h1>big</h1> $\\def\\x{\\x}\\x$"
    )
    fill(page, question=hostile, gold="<b>8</b>")
    run(page)
    page.click(HANDLE)
    page.get_by_role("button", name="The prompt exactly").click()
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some("
        "a => a.value.includes('window.hacked = 2') && a.value.includes('assistant'))"
    )
    assert page.evaluate("window.hacked") is None
    assert page.locator("#kit-reader :is(h1, img, script, a)").count() == 0


def test_what_cannot_be_run_is_said_in_place(page):
    for question, message in (
        ("", "the problem is empty"),
        ("word " * 3000, "no room for an answer within the 1024"),
    ):
        fill(page, question=question)
        page.click("#kit-run")
        refused(page, message)


def test_paths_out_of_the_folders_are_refused(page):
    fill(page)
    for path in ("../../etc", "/etc/passwd", "someone/adapter"):
        page.get_by_label("Left").first.fill(path)
        page.keyboard.press("Enter")
        page.click("#kit-run")
        notice = refused(page, path)
        assert "--adapters-root" in notice or "--allow-hub" in notice


# --- the other tabs -------------------------------------------------------------------------------


PLOTS = "document.querySelectorAll('.kit-curves svg').length"
FILLED = {  # what is on a tab when all of it is there
    "Compare": "!!document.querySelector('.kit-cell .kit-token')",
    "Browse": "document.body.innerText.includes('Read them in Compare')",
    "Training": f"{PLOTS} > 5",
    "Report": "document.body.innerText.includes('kit report')",
}


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def test_browse_filters_and_hands_its_pairs_to_compare(page, runs):
    open_tab(page, "Browse")
    page.wait_for_function("document.body.innerText.includes('1 to 6 of 6')")
    boxes = page.get_by_role("tabpanel").get_by_label("Left", exact=True)
    assert boxes.last.input_value() == "clip"  # the pair of the bar
    page.get_by_label("Search questions").fill("zzz nowhere")
    page.wait_for_function("!document.body.innerText.includes('1 to 6 of 6')")
    page.get_by_label("Search questions").fill("")
    page.wait_for_function("document.body.innerText.includes('1 to 6 of 6')")
    rows = (runs / "clip" / "eval" / "gsm_symbolic.jsonl").read_text().splitlines()
    questions = [json.loads(row)["question"] for row in rows]
    page.get_by_role("button", name="Read them in Compare").click()
    page.wait_for_selector("#kit-question", state="visible")
    page.wait_for_function(
        "qs => qs.includes(document.querySelector('#kit-question textarea').value)", arg=questions
    )
    assert page.locator(".kit-row").count() > 0


def test_left_may_become_what_right_is(page):
    """They change places, here and in the bar, and nothing is an error."""
    open_tab(page, "Browse")
    page.wait_for_function("document.body.innerText.includes('1 to 6 of 6')")
    left = page.get_by_role("tabpanel").get_by_label("Left", exact=True).last
    left.click()
    page.get_by_role("option", name="pspo").last.click()
    page.wait_for_function("location.search.includes('left=pspo')")
    assert page.locator(".toast-item").count() == 0
    open_tab(page, "Compare")
    page.wait_for_function("document.querySelector('#kit-first button').innerText == 'pspo'")
    assert page.inner_text("#kit-second button") == "clip"


def test_many_problems_are_answered_and_kept_like_an_evaluation(page, runs):
    page.click(HANDLE)
    page.get_by_label("Problems of a queue").fill("6")
    page.keyboard.press("Tab")
    page.get_by_role("spinbutton", name="number input for New tokens at most").fill("16")
    page.keyboard.press("Tab")
    page.click(HANDLE)
    page.get_by_role("button", name="6 problems").click()
    page.wait_for_function("document.querySelectorAll('.kit-scores button').length == 4")
    page.wait_for_selector("#kit-many", state="visible")
    assert page.locator(".kit-scores button").count() == 6
    said = page.inner_text("#kit-votes")
    assert "6 stored problems of gsm_symbolic" in said and "McNemar" in said
    for arm in ("clip", "pspo"):
        (path,) = (runs / arm / "eval").glob("gsm_symbolic.app-t0-n16-s0-*.json")
        kept = json.loads(path.read_text())
        assert (kept["status"], kept["n"]) == ("finished", 6)
    page.locator(".kit-scores button").nth(2).click()
    page.wait_for_selector(".kit-scores button[data-case='2'][aria-pressed=true]")
    fill(page)  # the adapters are on the base again
    run(page)
    page.wait_for_selector(".kit-cell .kit-token", state="attached")


@pytest.mark.slow
def test_a_queue_stops_between_problems_and_goes_on(page, runs):
    page.click(HANDLE)
    page.get_by_label("Problems of a queue").fill("20")
    page.keyboard.press("Tab")
    page.get_by_role("spinbutton", name="number input for New tokens at most").fill("56")
    page.keyboard.press("Tab")
    page.click(HANDLE)
    page.get_by_role("button", name="20 problems").click()
    page.wait_for_function(  # at the first marks of this queue
        """() => {
            if (document.querySelectorAll('.kit-scores button').length != 4) return false;
            document.querySelector('#kit-stop').click();
            return true;
        }""",
        polling=20,
    )
    page.wait_for_selector("#kit-many", state="visible")
    stopped = page.locator(".kit-scores button").count()
    assert 4 <= stopped < 20 and stopped % 4 == 0
    (path,) = (runs / "clip" / "eval").glob("gsm_symbolic.app-t0-n56-s0-*.jsonl")
    kept = path.read_text().splitlines()
    assert len(kept) == stopped
    page.click("#kit-many")
    page.wait_for_function("document.querySelectorAll('.kit-scores button').length == 20")
    page.wait_for_selector("#kit-many", state="visible")
    assert path.read_text().splitlines()[:stopped] == kept  # what was answered is not asked again


def test_training_draws_curves_and_names_the_difference(page):
    open_tab(page, "Training")
    page.wait_for_function(FILLED["Training"])
    page.get_by_role("button", name="Settings of two runs").click()
    page.wait_for_selector("text=objective.trust_region >> visible=true")


def test_the_charts_are_narrowed_to_some_steps_by_keys_alone(page):
    open_tab(page, "Training")
    page.wait_for_function(FILLED["Training"])
    ends = "[...document.querySelectorAll('.kit-curves svg')].map(svg => svg.textContent)"
    assert all("step 3" in text for text in page.evaluate(ends))
    page.get_by_label("Steps to").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    narrowed = "texts => texts.some(t => t.includes('step 2')) && !texts.join().includes('step 3')"
    page.wait_for_function(f"({narrowed})({ends})")
    page.get_by_role("button", name="All steps").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"{ends}.every(text => text.includes('step 3'))")
    assert page.get_by_label("Steps to").input_value() == "0"


@pytest.mark.slow
def test_a_step_below_the_first_is_no_error(page):
    open_tab(page, "Training")
    page.wait_for_function(FILLED["Training"])
    page.get_by_label("Steps to").fill("2")
    page.get_by_label("Steps from").fill("-3")
    ends = "[...document.querySelectorAll('.kit-curves svg')].map(svg => svg.textContent)"
    page.wait_for_function(f"!{ends}.join().includes('step 3')")
    page.wait_for_timeout(1000 * SECONDS + 500)  # the page looks whether the runs have changed
    assert page.locator(".toast-body").count() == 0


@pytest.mark.slow
def test_the_curves_stay_while_a_run_is_written(page, runs):
    open_tab(page, "Training")
    page.wait_for_function(FILLED["Training"])
    page.evaluate(
        f"window.least = {PLOTS};"
        f"setInterval(() => {{ window.least = Math.min(window.least, {PLOTS}) }}, 50)"
    )
    for hour in (1, 2):  # to the page, a file with a new time is one with a new line
        os.utime(runs / "clip" / "metrics.jsonl", (2e9 + 3600 * hour, 2e9 + 3600 * hour))
        changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(2e9 + 3600 * hour))
        page.wait_for_function(
            "t => document.querySelector('.kit-runs').innerText.includes(t)", arg=changed
        )
    page.wait_for_timeout(4000)
    assert page.evaluate("window.least") > 5


def test_report_says_what_to_run(page):
    open_tab(page, "Report")
    page.wait_for_function(FILLED["Report"])


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    fill(page)
    run(page)
    page.wait_for_selector(".kit-cell .kit-token", state="attached")
    for tab in FILLED:
        if page.get_by_role("tab", name=tab).is_visible():
            open_tab(page, tab)
        else:
            _overflowing(page, tab)
        page.wait_for_function(FILLED[tab])
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, tab


def test_tables_are_read_in_whole_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    cut = """(cells) => cells.filter(cell => {
        const edge = cell.closest('.virtual-table-viewport, [role=region]').getBoundingClientRect();
        const box = cell.getBoundingClientRect();
        return cell.scrollWidth > cell.clientWidth + 1 || box.right > edge.right + 1;
    }).map(cell => cell.innerText)"""
    for tab, cells in (
        ("Browse", "#kit-matching .body-cell .text"),
        ("Training", ".kit-runs tbody :is(th, td)"),
    ):
        open_tab(page, tab)
        page.wait_for_selector(cells)
        assert page.eval_on_selector_all(cells, cut) == []
        assert page.locator(cells).count() >= 2 * 5


def _overflowing(page, tab):
    """On a narrow page the last tabs are in a menu."""
    page.locator(".overflow-menu button, button.overflow-item-selected").first.click()
    page.get_by_role("button", name=tab, exact=True).last.click()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(window, app, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = window.new_page()
    page.emulate_media(color_scheme=scheme)
    opened(page, f"{app}/?__theme={scheme}")
    fill(page, Temperature=1)
    run(page)
    page.wait_for_selector(".kit-cell .kit-token", state="attached")
    # colours are all that the dark page has of its own
    options = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    found = {}
    for tab in FILLED:
        open_tab(page, tab)
        page.wait_for_function(FILLED[tab])
        for violation in axe.run(page, options=options).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = [node["html"][:200] for node in violation["nodes"][:3]]
                found[f"{tab}: {violation['id']}"] = nodes
    page.close()
    assert not found


# --- as an API, by several at once ----------------------------------------------------------------


def test_the_api_answers_two_users_at_once_with_their_own(app):
    from gradio_client import Client

    asked = [("clip", "pspo", 0), ("pspo", "clip", 1), ("base", "clip", 2)]

    def ask(left, right, seed):
        client = Client(app, verbose=False)
        return client.predict(QUESTION, left, right, "8", None, 1.0, 24, seed, api_name="/compare")

    alone = [ask(*one) for one in asked]
    together: list = [None] * len(asked)

    def worker(i):
        together[i] = ask(*asked[i])

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for (left, right, _), one, other in zip(asked, alone, together, strict=True):
        assert (one["left"]["name"], one["right"]["name"]) == (left, right)
        for side in ("left", "right"):
            assert one[side]["completion"] == other[side]["completion"]
            verdict = NumberVerifier().verify(one[side]["completion"], {"answer": "8"})
            assert one[side]["strict"] == verdict.strict
            assert one[side]["lenient_answer"] == verdict.lenient_answer
    assert len({one["left"]["completion"] for one in alone}) == 3


def test_the_api_refuses_in_words(app):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(app, verbose=False)
    with pytest.raises(AppError, match="the problem is empty"):
        client.predict("", "clip", "pspo", api_name="/compare")
    with pytest.raises(AppError, match="adapters-root"):
        client.predict(QUESTION, "../../etc", "pspo", api_name="/compare")
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/compare"}


@pytest.mark.slow
def test_a_client_who_leaves_frees_the_model(window, app):
    from gradio_client import Client

    page = window.new_page()
    opened(page, app)
    fill(page, **{"Temperature": 2, "New tokens at most": 800, "Samples of each side": 8})
    page.click("#kit-run")
    page.wait_for_function("!document.querySelector('.kit-strip')")
    page.close()
    began = time.monotonic()
    answer = Client(app, verbose=False).predict(
        QUESTION, "clip", "pspo", "8", None, 0.0, 8, 0, api_name="/compare"
    )
    assert answer["left"]["tokens"] <= 8
    assert time.monotonic() - began < 45  # 16 answers of 800 tokens would take longer


def test_files_of_the_computer_are_not_served(app, runs):
    for path in ("/etc/passwd", str(runs / "votes.jsonl"), str(ROOT / "README.md")):
        assert httpx.get(f"{app}/gradio_api/file={path}").status_code in (403, 404)
