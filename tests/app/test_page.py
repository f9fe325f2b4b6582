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
from pathlib import Path

import httpx
import pytest

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
TRIES = 5  # a browser that gets less of the processor than the model may come too late


# --- a folder of runs, the app on it, a page of it ------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base):
    """Two arms of three steps on one base, evaluated on six problems."""
    folder = tmp_path_factory.mktemp("app") / "runs"
    configs = [
        build_config(
            {
                "model": {"id": "embedded"},
                "lora": {"rank": 4, "alpha": 8},
                "data": {"name": "gsm_symbolic", "options": {"size": 60}, "validation_size": 4},
                "rollout": {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 24},
                "reward": {"functions": [{"path": "tests.reward_functions:share_of_vowels"}]},
                "objective": {"trust_region": {"name": arm}},
                "optim": {"learning_rate": 2e-3, "warmup_fraction": 0.0},
                "train": {"steps": 3, "validate_every": 3, "preflight_problems": 0},
                "output": str(folder / arm),
            }
        )
        for arm in ("clip", "pspo")
    ]
    train_together(configs, base=base)
    targets = resolve_targets([str(folder / "clip"), str(folder / "pspo")])
    settings = EvalSettings(limit=6, max_new_tokens=48)
    benchmark(targets, resolve_data(["gsm_symbolic"], targets), settings, base=base)
    return folder


@pytest.fixture(scope="module")
def app(runs):
    """The app's address. It starts as a user starts it, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = runs.parent / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--runs", str(runs), "--port", str(port), "--cpu"],
            cwd=ROOT,
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
def browser():
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def window(browser):
    """One window for all pages: what they load is in its cache after the first."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(LONG)
    yield context
    context.close()


@pytest.fixture
def page(window, app):
    """A page of the app; errors in it and requests to anywhere else fail the test."""
    page = window.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: r.url.startswith((app, "data:", "blob:")) or wrong.append(r.url))
    page.goto(app)
    page.wait_for_selector("#kit-run")
    yield page
    page.close()
    assert not wrong


def fill(page, question=QUESTION, gold="8", **settings):
    page.fill("#kit-question textarea", question)
    page.fill("#kit-gold textarea, #kit-gold input", gold)
    if settings:
        if not page.get_by_label("Seed").first.is_visible():
            page.click("#kit-settings > button")
        for label, value in settings.items():
            page.get_by_role("spinbutton", name=f"number input for {label}").fill(str(value))
            page.keyboard.press("Tab")


def run(page):
    start(page)
    finished(page)


def start(page):
    """Run, with what an earlier run left on the page marked as old."""
    page.evaluate("document.querySelectorAll('.kit-badge').forEach(b => { b.dataset.old = 1 })")
    page.click("#kit-run")


def refused(page):
    """Wait until the page says why not and takes another run; no badge waits for ever."""
    page.wait_for_selector(".kit-notice")
    page.wait_for_selector("#kit-run:not([disabled])")
    page.wait_for_function(
        "![...document.querySelectorAll('.kit-badge')].some(b => /waiting/.test(b.innerText))"
    )
    return page.inner_text(".kit-notice")


def finished(page):
    """Wait until both answers are complete and the page takes another run."""
    page.wait_for_function(
        """() => {
            const badges = [...document.querySelectorAll(
                '#kit-first .kit-badge, #kit-second .kit-badge')];
            return badges.length == 2 && !document.querySelector('#kit-run').disabled
                && badges.every(b => !b.dataset.old && !/waiting|writing/.test(b.innerText));
        }""",
    )


def text_of(page, column):
    return page.inner_text(f"#kit-{column} .kit-text")


# --- the Compare tab ------------------------------------------------------------------------------


def test_both_sides_stream_at_once_and_verdicts_are_right(page):
    fill(page, **{"Temperature": 2, "New tokens at most": 200})  # long answers
    page.evaluate(
        """() => {
            window.seen = [];
            const badge = column => document.querySelector(`#kit-${column} .kit-badge`);
            const text = column => document.querySelector(`#kit-${column} .kit-text`).innerText;
            new MutationObserver(() => {
                if (['first', 'second'].every(c => /writing/.test(badge(c)?.innerText)))
                    window.seen.push([text('first'), text('second')]);
            }).observe(document.body, {childList: true, characterData: true, subtree: true});
        }"""
    )
    for _ in range(TRIES):
        page.evaluate("window.seen = []")
        run(page)
        final = text_of(page, "first"), text_of(page, "second")
        growing = [pair for pair in page.evaluate("window.seen") if all(pair) and pair != final]
        if growing:
            break
    else:
        pytest.fail("no picture showed both sides half-way")
    assert all(
        len(side) <= len(end) for pair in growing for side, end in zip(pair, final, strict=True)
    )
    for column, text in zip(("first", "second"), final, strict=True):
        whole = text + "\n#### " + page.inner_text(f"#kit-{column} .kit-final").partition(": ")[2]
        verdict = NumberVerifier().verify(whole, {"answer": "8"})
        assert ("right" in page.inner_text(f"#kit-{column} .kit-badge")) == verdict.lenient
        figures = page.inner_text(f"#kit-{column} .kit-figures")
        assert all(name in figures for name in ("tokens", "seconds", "mean log-prob", "KL to base"))


def test_where_they_part_is_shown(page):
    fill(page)
    run(page)
    page.wait_for_selector("#kit-heat-left .kit-heat")
    shown = page.inner_text("#kit-first .kit-text").split("\n")[0]
    assert shown and shown in page.inner_text("#kit-heat-left")
    assert "base" not in page.inner_text("#kit-heat-right")
    page.get_by_label("each side").check()
    page.wait_for_function("document.querySelector('#kit-heat-right').innerText.includes('base')")
    page.locator("#kit-ratios svg").first.wait_for()


def test_enter_runs_and_the_exact_prompt_is_shown(page):
    fill(page)
    page.press("#kit-question textarea", "Enter")
    page.wait_for_selector("#kit-heat-left .kit-heat")
    page.get_by_role("button", name="The prompt exactly").click()
    page.wait_for_function(
        "q => [...document.querySelectorAll('textarea')].some(a => a.value.includes(q) "
        "&& a.value.includes('<|im_start|>assistant'))",
        arg=QUESTION,
    )


def test_several_samples_are_summed_up(page):
    fill(page, **{"Temperature": 1, "Samples of each side": 3})
    run(page)
    page.wait_for_selector("#kit-samples table")
    summary = page.inner_text("#kit-samples")
    assert "of 3" in summary and "pass@2" in summary and "majority" in summary
    page.wait_for_selector("#kit-sample", state="visible")


def test_samples_are_picked_by_the_arrow_keys(page):
    fill(page, **{"Temperature": 2, "Samples of each side": 4})
    run(page)
    page.wait_for_selector("#kit-sample", state="visible")
    first = text_of(page, "first")
    slider = page.locator("#kit-sample input[type=range]")
    slider.press("ArrowRight")
    page.wait_for_function(
        "t => document.querySelector('#kit-first .kit-text').innerText != t", arg=first
    )
    slider.press("ArrowLeft")
    page.wait_for_function(
        "t => document.querySelector('#kit-first .kit-text').innerText == t", arg=first
    )
    for _ in range(3):  # faster than they are scored
        slider.press("ArrowRight")
    page.wait_for_function(
        "t => document.querySelector('#kit-first .kit-text').innerText != t", arg=first
    )
    page.wait_for_timeout(1000)
    assert slider.input_value() == "4"  # nothing has set it back


def test_stop_ends_the_answers_and_frees_the_page(page):
    fill(page, **{"Temperature": 2, "New tokens at most": 900, "Samples of each side": 64})
    for _ in range(TRIES):
        start(page)
        page.wait_for_function(  # at the first word
            """() => {
                const stop = document.querySelector('#kit-stop');
                const text = document.querySelector('#kit-first .kit-text');
                if (!text?.innerText.trim() || stop.disabled) return false;
                stop.click();
                return true;
            }""",
            polling=20,
        )
        finished(page)
        page.wait_for_selector("#kit-stop[disabled]")
        if not page.is_visible("#kit-analysis"):  # what was cut short is not analysed
            break
    else:
        pytest.fail("the answers came to their ends each time")
    fill(page, **{"New tokens at most": 24, "Samples of each side": 1})
    run(page)


def test_a_blind_vote_names_nobody_before_and_lands_in_the_file(page, runs):
    page.get_by_label("Blind").check()
    fill(page)
    run(page)
    page.wait_for_selector("#kit-vote", state="visible")
    columns = page.inner_text("#kit-first") + page.inner_text("#kit-second")
    assert "Answer A" in columns and "Answer B" in columns
    assert not any(name in columns for name in ("clip", "pspo", "KL to base"))
    assert not page.is_visible("#kit-analysis") and not page.is_visible("#kit-export")
    first = page.inner_text("#kit-first .kit-text")
    page.click("#kit-vote-left")
    page.wait_for_selector("#kit-votes", state="visible")
    votes, corrupt = read_votes(runs / "votes.jsonl")
    assert len(votes) == 1 and corrupt == 0
    preferred = getattr(votes[0], votes[0].vote)
    assert votes[0].blind and first.split("\n")[0] in preferred.completion
    revealed = page.inner_text("#kit-votes")
    assert f"A was {preferred.name}" in revealed and "So far" in revealed
    assert preferred.name in page.inner_text("#kit-first")
    page.wait_for_selector("#kit-analysis")


def test_three_clicks_at_once_are_one_vote(page, runs):
    path = runs / "votes.jsonl"
    before = len(read_votes(path)[0]) if path.exists() else 0
    page.get_by_label("Blind").check()
    fill(page)
    run(page)
    page.wait_for_selector("#kit-vote", state="visible")
    page.evaluate(
        "['left', 'tie', 'right'].forEach(c => document.querySelector(`#kit-vote-${c}`).click())"
    )
    page.wait_for_selector("#kit-votes", state="visible")
    page.wait_for_selector("#kit-analysis", state="visible")
    page.wait_for_timeout(1000)  # for the other clicks
    assert len(read_votes(path)[0]) == before + 1
    assert "So far" in page.inner_text("#kit-votes")
    assert page.locator(".toast-item").count() == 0


def test_a_side_that_is_the_base_is_not_given_away(page):
    page.get_by_label("Left").first.fill("base")
    page.keyboard.press("Enter")
    page.get_by_label("Show the bare base").check()
    page.get_by_label("Blind").check()
    fill(page)
    run(page)
    page.wait_for_selector("#kit-vote", state="visible")
    assert not page.is_visible("#kit-base")
    page.click("#kit-vote-both_bad")
    page.wait_for_selector("#kit-base", state="visible")
    assert "base" in page.inner_text("#kit-base .kit-name")


def test_a_problem_of_a_data_set_is_picked_and_its_comparison_exported(page):
    page.get_by_role("button", name="Pick from a data set").click()
    page.get_by_label("Containing").fill("books")
    page.get_by_role("button", name="A random one").click()
    page.wait_for_function(
        "document.querySelector('#kit-question textarea').value.includes('books')"
    )
    question = page.input_value("#kit-question textarea")
    gold = page.input_value("#kit-gold textarea, #kit-gold input")
    assert gold.isdigit()
    run(page)
    page.wait_for_selector("#kit-export", state="visible")
    files = {}
    for name in ("as Markdown", "as JSON", "LLM Comparator"):
        with page.expect_download() as download:
            page.locator("#kit-export").get_by_text(name).click()
        files[name] = Path(download.value.path()).read_text(encoding="utf-8")
    assert question in files["as Markdown"] and "clip" in files["as Markdown"]
    pair = json.loads(files["as JSON"])
    assert (pair["question"], pair["answer"]) == (question, gold)
    assert pair["left"]["name"] == "clip" and pair["left"]["kl_to_base"] > 0
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
    page.get_by_role("button", name="The prompt exactly").click()
    page.wait_for_function(
        "[...document.querySelectorAll('textarea')].some("
        "a => a.value.includes('window.hacked = 2') && a.value.includes('assistant'))"
    )
    assert page.evaluate("window.hacked") is None
    assert (
        page.locator("#kit-first h1, #kit-second h1, #kit-first img, #kit-heat-left img").count()
        == 0
    )


@pytest.mark.parametrize(
    ("question", "message"),
    [("", "the problem is empty"), ("word " * 3000, "more than the 1024 this model can see")],
)
def test_what_cannot_be_run_is_said_in_place(page, question, message):
    fill(page, question=question)
    page.click("#kit-run")
    assert message in refused(page)


@pytest.mark.parametrize("path", ["../../etc", "/etc/passwd", "someone/adapter"])
def test_paths_out_of_the_folders_are_refused(page, path):
    page.get_by_label("Left").first.fill(path)
    page.keyboard.press("Enter")
    fill(page)
    page.click("#kit-run")
    notice = refused(page)
    assert path in notice and ("--adapters-root" in notice or "--allow-hub" in notice)


# --- the other tabs -------------------------------------------------------------------------------


PLOTS = "document.querySelectorAll('.vega-embed canvas, .vega-embed svg').length"
FILLED = {  # what is on a tab when all of it is there
    "Compare": "!!document.querySelector('#kit-heat-left .kit-heat')",
    "Browse": "document.body.innerText.includes('Run this one live')",
    "Training": f"{PLOTS} > 5",
    "Report": "document.body.innerText.includes('kit report')",
}


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def test_browse_filters_and_hands_a_problem_to_compare(page, runs):
    open_tab(page, "Browse")
    page.wait_for_selector("text=Run this one live")
    page.wait_for_function("document.body.innerText.includes('of 6')")
    page.get_by_label("Search questions").fill("zzz nowhere")
    page.wait_for_function("!document.body.innerText.includes('1 to 6 of 6')")
    page.get_by_label("Search questions").fill("")
    page.wait_for_function("document.body.innerText.includes('of 6')")
    rows = (runs / "clip" / "eval" / "gsm_symbolic.jsonl").read_text().splitlines()
    questions = [json.loads(row)["question"] for row in rows]
    page.get_by_role("button", name="Run this one live").click()
    page.wait_for_selector("#kit-question", state="visible")
    page.wait_for_function(
        "qs => qs.includes(document.querySelector('#kit-question textarea').value)", arg=questions
    )


def test_training_draws_curves_and_names_the_difference(page):
    open_tab(page, "Training")
    page.wait_for_function(FILLED["Training"])
    page.get_by_role("button", name="Settings of two runs").click()
    page.wait_for_selector("text=objective.trust_region >> visible=true")


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
    page.wait_for_selector("#kit-heat-left .kit-heat")
    for tab in FILLED:
        if page.get_by_role("tab", name=tab).is_visible():
            open_tab(page, tab)
        else:
            _overflowing(page, tab)
        page.wait_for_function(FILLED[tab])
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, tab


def _overflowing(page, tab):
    """On a narrow page the last tabs are in a menu."""
    page.locator(".overflow-menu button, button.overflow-item-selected").first.click()
    page.get_by_role("button", name=tab, exact=True).last.click()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_no_serious_violation_of_accessibility(browser, app, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(LONG)
    page = context.new_page()
    page.goto(f"{app}/?__theme={scheme}")
    page.wait_for_selector("#kit-run")
    fill(page, Temperature=1)
    run(page)
    page.wait_for_selector("#kit-heat-left .kit-heat")
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
    context.close()
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


def test_a_client_who_leaves_frees_the_model(browser, app):
    from gradio_client import Client

    page = browser.new_page()
    page.set_default_timeout(LONG)
    page.goto(app)
    page.wait_for_selector("#kit-run")
    fill(page, **{"Temperature": 2, "New tokens at most": 800, "Samples of each side": 8})
    page.click("#kit-run")
    page.wait_for_function("document.querySelector('#kit-first .kit-text')?.innerText.length > 5")
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
