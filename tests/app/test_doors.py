"""The app's doors, by real requests to a running app: what is closed, how much, how often."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager

import httpx
import pytest

from kit.app import doors
from kit.app.doors import MAX_BODY, OVERALL, PER_ADDRESS, WINDOW, Doors, Throttle
from kit.app.library.adapters import find
from kit.app.options import AppOptions
from kit.app.page import build, guard, settings
from kit.app.session import Session

LOCKED = ("me", "right")
UPLOAD = "/gradio_api/upload"
JOIN = "/gradio_api/queue/join"


@contextmanager
def running(runs, auth):
    """The port of an app on an empty folder."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options = AppOptions(runs=runs, port=port, auth=auth)
        page = build(Session(options, find(options)))
        page.launch(
            **settings(options), app_kwargs=guard(options), prevent_thread_lock=True, quiet=True
        )
        yield port
        page.close(verbose=False)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with running(tmp_path_factory.mktemp("open") / "runs", None) as port:
        yield port


@pytest.fixture
def locked(tmp_path):
    """A new one for each test, for it remembers who has failed."""
    with running(tmp_path / "runs", LOCKED) as port:
        yield f"http://127.0.0.1:{port}"


def answered(port, head, body=b"", rest=()):
    """Status of a request sent as these bytes; `rest` goes on until the app has answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"{head}\r\nHost: 127.0.0.1:{port}\r\n".encode() + body)
        sent, answer = 0, threading.Event()

        def send():
            nonlocal sent
            try:
                for part in rest:
                    if answer.is_set():
                        return
                    connection.sendall(part)
                    sent += len(part)
            except OSError:  # the app has closed the connection
                return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            reply = connection.recv(4096)
        except ConnectionResetError:
            reply = b""
        answer.set()
        connection.close()
        sender.join(30)
        return (int(reply.split()[1]) if reply else None), sent


# --- what is closed -------------------------------------------------------------------------------


def test_an_upload_is_refused_before_it_is_sent(port):
    """From a program, from a page of this app and from one of another site."""
    for origin in ("", f"Origin: http://127.0.0.1:{port}\r\n", "Origin: https://evil.example\r\n"):
        head = f"{origin}Content-Type: multipart/form-data; boundary=b\r\n"
        head += "Content-Length: 300000000\r\n\r\n"
        assert answered(port, f"POST {UPLOAD} HTTP/1.1", head.encode())[0] == 404
    posted = httpx.post(f"http://127.0.0.1:{port}{UPLOAD}", files={"files": ("a.txt", b"a")})
    assert posted.status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/upload_progress?upload_id=x"),
        ("GET", "/gradio_api/proxy=https://example.org"),
        ("HEAD", "/gradio_api/proxy=https://example.org"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/token"),
        ("GET", "/gradio_api/deep_link?session_hash=x"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/gradio_api/custom_component/1/client/component/x.js"),
        ("GET", "/gradio_api/stream/x/1/2/playlist.m3u8"),
        ("POST", "/gradio_api/stream/x"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/run/compare"),
        ("POST", "/gradio_api/api/predict"),
        ("POST", "/gradio_api/call/v2/compare"),
        ("POST", "/gradio_api/call/other"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("PUT", "/config"),
        ("DELETE", "/"),
        ("PATCH", "/login"),
        ("TRACE", "/"),
        ("GET", "//config"),
        ("POST", "/gradio_api//upload"),
        ("POST", "/gradio_api/upload/"),
        ("POST", "/gradio_api/%75pload"),
    ],
)
def test_what_the_page_does_not_use_is_closed(port, method, path):
    assert httpx.request(method, f"http://127.0.0.1:{port}{path}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/info", "/gradio_api/startup-events", "/theme.css"]
)
def test_what_the_page_uses_is_open(port, path):
    assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200


@pytest.mark.parametrize("session", ["k2x9", "3047c2c6-07a8-4edb-be6a-182b80c41f67"])
def test_a_session_of_a_page_and_of_a_client_is_kept_alive(port, session):
    url = f"http://127.0.0.1:{port}/gradio_api/heartbeat/{session}"
    with httpx.stream("GET", url) as stream:
        assert next(stream.iter_lines()) == "data: ALIVE"


def test_web_sockets_are_not_answered(port):
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert answered(port, f"GET {JOIN} HTTP/1.1", upgrade + key)[0] in (403, 404)
    said = []

    async def send(message):
        said.append(message)

    asyncio.run(Doors(None)({"type": "websocket"}, None, send))
    assert said == [{"type": "websocket.close", "code": 1008}]


# --- how much -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [JOIN, "/login", "/gradio_api/call/compare", "/gradio_api/cancel"])
def test_a_body_that_says_it_is_too_large_is_not_read(port, path):
    head = f"Content-Type: application/json\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
    assert answered(port, f"POST {path} HTTP/1.1", head.encode())[0] == 413


def test_a_body_without_end_is_cut_off(port):
    head = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, sent = answered(port, f"POST {JOIN} HTTP/1.1", head, (part for _ in range(4000)))
    assert status in (413, None)  # the connection may be closed before the answer is read
    assert sent < 40 * MAX_BODY  # what is under way in the buffers included, of 262 MB


@pytest.mark.parametrize("length", ["1e3", "+5", "9" * 400, "-1"])
def test_a_length_that_is_none_is_refused(port, length):
    head = f"Content-Length: {length}\r\n\r\n"
    assert answered(port, f"POST {JOIN} HTTP/1.1", head.encode())[0] in (400, 413)


def test_heads_without_end_are_refused(port):
    status, _ = answered(port, "GET / HTTP/1.1", b"X: " + b"x" * 200_000 + b"\r\n\r\n")
    assert status in (400, 431, None)


def test_a_body_of_a_page_is_read_whole(port):
    """In several parts too: what the app gets is what was sent."""
    text = '{"data": ["' + "x" * 500_000 + '", "base", "base"]}'
    posted = httpx.post(
        f"http://127.0.0.1:{port}/gradio_api/call/compare",
        content=(text[i : i + 50_000].encode() for i in range(0, len(text), 50_000)),
        headers={"content-type": "application/json"},
    )
    assert posted.status_code == 200 and posted.json()["event_id"]


def test_a_body_that_does_not_come_is_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(doors, "PATIENCE", 0.2)
    head = b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    assert answered(port, f"POST {JOIN} HTTP/1.1", head)[0] == 408


# --- from where -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"origin": "http://127.0.0.1:{port}"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),  # another program's page on this computer
        ({"origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"origin": "https://mine.example", "x-forwarded-host": "mine.example"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://mine.example"}, 200),  # a proxy
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:{port}"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing(port, headers, status):
    headers = {key: value.format(port=port) for key, value in headers.items()}
    body = {"data": ["What?", "base", "base"]}
    url = f"http://127.0.0.1:{port}/gradio_api/call/compare"
    assert httpx.post(url, json=body, headers=headers).status_code == status
    logout = httpx.get(f"http://127.0.0.1:{port}/logout", headers=headers)
    assert (logout.status_code == 403) == (status == 403)


# --- how often ------------------------------------------------------------------------------------


def log_in(address, password, **headers):
    data = {"username": "me", "password": password}
    return httpx.post(f"{address}/login", data=data, headers=headers)


def test_guesses_are_throttled_and_who_is_in_stays_in(locked):
    assert httpx.get(f"{locked}/config").status_code == 401
    inside = httpx.Client(cookies=log_in(locked, "right").cookies)
    for i in range(PER_ADDRESS):
        assert log_in(locked, f"wrong{i}").status_code == 400
    for password in ("wrong", "right"):
        late = log_in(locked, password)
        assert late.status_code == 429 and 0 < int(late.headers["retry-after"]) <= WINDOW
        assert "too many logins failed" in late.json()["detail"]
    assert log_in(locked, "right", **{"x-forwarded-for": "10.0.0.1"}).status_code == 200
    assert inside.get(f"{locked}/config").status_code == 200
    assert "login is closed for 10 minutes" in httpx.get(locked).text


def test_addresses_that_are_made_up_help_little(locked):
    """A proxy here may hand on whatever address it is told: all guesses together are bounded."""
    statuses = [
        log_in(locked, "wrong", **{"x-forwarded-for": f"10.0.0.{i}"}).status_code
        for i in range(OVERALL + 5)
    ]
    assert statuses == [400] * OVERALL + [429] * 5


def test_the_right_password_is_never_throttled(locked):
    assert {log_in(locked, "right").status_code for _ in range(2 * PER_ADDRESS)} == {200}


def test_guesses_at_the_same_time_count_before_they_are_answered():
    throttle = Throttle(lambda: 0.0)
    assert [throttle.attempt("a") > 0 for _ in range(PER_ADDRESS + 1)] == [
        *[False] * PER_ADDRESS,
        True,
    ]
    throttle.succeeded("a")
    assert throttle.attempt("a") == 0 and throttle.attempt("a") == WINDOW


def test_failures_count_for_a_while():
    now = 0.0
    throttle = Throttle(lambda: now)
    for second in range(PER_ADDRESS):
        now = float(second)
        assert throttle.attempt("a") == 0
    now = 100.0
    assert throttle.attempt("a") == WINDOW - 100  # until the first, at 0, counts no more
    assert throttle.attempt("b") == 0
    now = WINDOW - 0.5
    assert throttle.attempt("a") == 0.5
    now = WINDOW
    assert throttle.attempt("a") == 0
    assert throttle.attempt("a") == 1  # the second was at 1
    now = 3 * WINDOW
    for i in range(OVERALL):
        assert throttle.attempt(str(i)) == 0
    assert throttle.attempt("new") == WINDOW
    assert len(throttle._failures) == OVERALL
