"""The app as a server: its API and whom it answers, on a desk that needs no model."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from kit.app.compare.comparison import Answer, Comparison, finish
from kit.app.compare.setup import LEFT, RIGHT
from kit.app.doors import Doors
from kit.app.library.adapters import find
from kit.app.options import AppOptions
from kit.app.page import build, guard, settings
from kit.app.session import Session
from kit.model.rollout import Completion

QUESTION = "What is 3 + 4?"
ENDLESS = 100_000  # tokens asked for: words are written until somebody stops it
PATIENCE = 60  # seconds; a busy machine is no failure


class ScriptedDesk(Session):
    """Both sides say "one two three #### 7", or go on and on."""

    def __init__(self, options):
        super().__init__(options, find(options))
        self.ended = threading.Event()  # an answer without end has been given up

    def run(self, setup, session):
        said = Comparison(setup, "<prompt>", {}, {LEFT: None, RIGHT: None})
        try:
            for n in range(setup.max_new_tokens if setup.max_new_tokens == ENDLESS else 3):
                yield _saying(said, "word " * (n + 1))
                time.sleep(0.02)
        finally:
            if setup.max_new_tokens == ENDLESS:
                self.ended.set()
        yield finish(_saying(said, "one two three #### 7"), self.judge)


def _saying(comparison, text):
    answer = Answer(Completion([1, 2], [-0.5, -1.5], False, text), 0.5)
    return replace(comparison, answers=dict.fromkeys((LEFT, RIGHT), (answer,)))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, desk) of the page, as `launch` starts it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = AppOptions(runs=tmp_path_factory.mktemp("runs"), port=port)
    desk = ScriptedDesk(options)
    page = build(desk)
    page.launch(
        **settings(options), app_kwargs=guard(options), prevent_thread_lock=True, quiet=True
    )
    yield f"http://127.0.0.1:{port}", desk
    page.close(verbose=False)
    patch.undo()


@pytest.fixture
def client(served):
    return Client(served[0], verbose=False)


def ask(client, **changes):
    values = {"prompt": QUESTION, "left": "base", "right": "base"} | changes
    return client.predict(*values.values(), api_name="/compare")


# --- one call -------------------------------------------------------------------------------------


def test_a_call_streams_what_is_written_and_ends_with_the_whole(client):
    job = client.submit(QUESTION, "base", "base", "7", api_name="/compare")
    *written, last = job
    assert all(set(part) == {"left", "right"} for part in written)
    assert written[0]["left"] == {"completion": "word "}
    assert last == job.result() and last["question"] == QUESTION
    assert (last["left"]["completion"], last["left"]["strict"]) == ("one two three #### 7", True)
    assert client.predict(QUESTION, "base", "base", "8", api_name="/compare")["left"]["strict"] is (
        False
    )


@pytest.mark.parametrize("answer", [None, "", " "])
def test_without_an_answer_there_is_no_verdict(client, answer):
    said = client.predict(QUESTION, "base", "base", answer, api_name="/compare")
    assert said["answer"] is None and said["left"]["strict"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "problem must be text, got None"),
        ({"left": None}, "left must be text, got None"),
        ({"right": ["base"]}, r"right must be text, got \['base'\]"),
        ({"answer": 7}, "answer must be text or null, got 7"),
        ({"system_prompt": 1}, "system prompt must be text, got 1"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": None}, "temperature must be a number, got None"),
        ({"max_new_tokens": 1.5}, "new tokens must be a whole number, got 1.5"),
        ({"max_new_tokens": True}, "new tokens must be a whole number, got True"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": "x" * 200}, "seed must be a whole number, got 'x{79}$"),
    ],
)
def test_what_is_of_another_type_is_refused_in_words(client, capfd, changes, message):
    with pytest.raises(AppError, match=message):
        client.predict(
            **({"prompt": QUESTION, "left": "base", "right": "base"} | changes), api_name="/compare"
        )
    assert "Traceback" not in capfd.readouterr().err


# --- a client who leaves --------------------------------------------------------------------------


def test_a_call_that_is_cancelled_ends_there(served, client):
    _, desk = served
    desk.ended.clear()
    job = client.submit(QUESTION, "base", "base", max_new_tokens=ENDLESS, api_name="/compare")
    assert next(iter(job))["left"]["completion"].startswith("word ")
    assert not desk.ended.is_set()
    job.cancel()
    assert desk.ended.wait(PATIENCE)
    assert ask(client)["left"]["completion"] == "one two three #### 7"


def test_a_call_over_plain_http_ends_with_its_connection(served, client):
    address, desk = served
    desk.ended.clear()
    call = f"{address}/gradio_api/call/compare"
    data = [QUESTION, "base", "base", "7", None, 0, ENDLESS, 0]
    event = httpx.post(call, json={"data": data}).json()["event_id"]
    with httpx.stream("GET", f"{call}/{event}", timeout=PATIENCE) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: generating"
        (said,) = json.loads(next(lines).removeprefix("data: "))
        assert said["left"]["completion"].startswith("word ")
        assert not desk.ended.is_set()
    assert desk.ended.wait(PATIENCE)
    assert ask(client)["left"]["completion"] == "one two three #### 7"


# --- who is answered ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_another_name_that_leads_here_is_not_answered(served, name):
    address, _ = served
    host = f"{name}:{httpx.URL(address).port}"
    headers = {"Host": host, "Origin": f"http://{host}"}
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
        assert httpx.get(address + path, headers=headers).status_code == 400
    call = {"data": [QUESTION, "base", "base"]}
    posted = httpx.post(f"{address}/gradio_api/call/compare", json=call, headers=headers)
    assert posted.status_code == 400


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_names_of_this_computer_are_answered(served, name):
    address, _ = served
    for host in (name, f"{name}:{httpx.URL(address).port}"):
        assert httpx.get(f"{address}/config", headers={"Host": host}).status_code == 200


def test_the_name_is_free_behind_a_password_and_in_a_notebook():
    def hosts(**given):
        options = {"any_name": given.pop("any_name", False)}
        first, *others = guard(AppOptions(**given), **options)["middleware"]
        assert [one.cls for one in [first, *others]][-1] is Doors
        return first.kwargs["allowed_hosts"] if others else None

    assert hosts(host="0.0.0.0", auth=("me", "secret")) is None
    assert hosts(share=True, auth=("me", "secret")) is None
    assert hosts(any_name=True) is None
    assert "127.9.9.9" in hosts(host="127.9.9.9")
    assert "app_kwargs" not in settings(AppOptions())
