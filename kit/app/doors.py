"""Which requests the app answers: those of its own page and API, of bounded size, in good time.

Gradio serves more than the page uses, to whoever asks: files can be uploaded without end, other
sites fetched. What is not in OPEN is closed, so that a new version of Gradio opens nothing either.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20  # bytes; the page sends a few KB
PATIENCE = 30.0  # seconds a body may take to arrive
WINDOW = 600.0  # seconds for which a failed login counts
PER_ADDRESS, OVERALL = 5, 50  # failed logins within that time

_READ = (
    r"/|/config|/logout|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d+)?"
    r"|/(static|assets|svelte|_app)/.+"
    r"|/gradio_api/(info|openapi\.json|user|login_check|app_id|startup-events|theme\.css"
    r"|heartbeat/[\w-]+|queue/data|call/compare/[\w-]+|file=.+)"
)
_WRITE = r"/login|/gradio_api/(queue/join|call/compare|run/predict|cancel|reset)"
OPEN = {
    "GET": re.compile(f"(?:{_READ})/?"),
    "HEAD": re.compile(f"(?:{_READ})/?"),
    "POST": re.compile(f"(?:{_WRITE})/?"),
}
_LOGIN = re.compile("/login/?")


class Throttle:
    """Counts failed logins. All is forgotten when the app is started anew.

    An address may be that of a proxy, or be made up by one, so there is a bound on all together
    too: 300 guesses an hour.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: deque[tuple[float, str]] = deque()  # at most OVERALL

    def attempt(self, address: str) -> float:
        """Seconds until this address may try; 0: now, which counts as failed until it succeeds.

        Counted beforehand, for many may try at once.
        """
        now = self._clock()
        while self._failures and self._failures[0][0] <= now - WINDOW:
            self._failures.popleft()
        everybody = [moment for moment, _ in self._failures]
        same = [moment for moment, other in self._failures if other == address]
        waits = [
            times[-bound] + WINDOW - now
            for times, bound in ((everybody, OVERALL), (same, PER_ADDRESS))
            if len(times) >= bound
        ]
        if not waits:
            self._failures.append((now, address))
        return max(waits, default=0.0)

    def succeeded(self, address: str) -> None:
        """The newest attempt of this address was none that failed."""
        for i in reversed(range(len(self._failures))):
            if self._failures[i][1] == address:
                del self._failures[i]
                return


class _Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        self.response = JSONResponse({"detail": reason}, status, headers | {"connection": "close"})


class Doors:
    """ASGI middleware that lets in what the module's text says."""

    def __init__(self, app: ASGIApp, throttle: Throttle | None = None) -> None:
        self.app = app
        self.throttle = throttle or Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                _check(scope)
                receive = await _whole(receive)
                if scope["method"] == "POST" and _LOGIN.fullmatch(scope["path"]):
                    send = self._watched(scope, send)
            except _Refused as refused:
                await refused.response(scope, receive, send)
                return
            await self.app(scope, receive, send)
        else:  # the page has no web sockets
            await send({"type": "websocket.close", "code": 1008})

    def _watched(self, scope: Scope, send: Send) -> Send:
        """`send` of a login, which tells the throttle when it succeeds."""
        address = scope["client"][0] if scope.get("client") else ""
        if wait := math.ceil(self.throttle.attempt(address)):
            raise _Refused(
                429,
                f"too many logins failed; the next may be tried in {wait} s",
                **{"retry-after": str(wait)},
            )

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self.throttle.succeeded(address)
            await send(message)

        return sending


def _check(scope: Scope) -> None:
    """Raise _Refused for a request that can be told by its head."""
    method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
    allowed = OPEN.get(method)
    if allowed is None or not allowed.fullmatch(path):
        raise _Refused(404, "there is nothing here")
    if (method == "POST" or path.startswith("/logout")) and _is_of_another_site(headers):
        raise _Refused(403, "this came from a page of another site")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > MAX_BODY:
        raise _Refused(413, f"a request may have {MAX_BODY} bytes")


def _is_of_another_site(headers: Headers) -> bool:
    """Whether a browser says so; programs that are none say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:  # not sent to plain-HTTP addresses of other computers
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    # behind a proxy that gives the host another name; a page cannot set this without permission
    forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()
    own = {name.lower() for name in (headers.get("host", ""), forwarded) if name}
    return origin is not None and urlsplit(origin).netloc.lower() not in own


async def _whole(receive: Receive) -> Receive:
    """Wait for the whole body, and give it out again; what comes after is handed on.

    Raises _Refused for one that is too large or too slow.
    """
    parts, size, ends = [], 0, time.monotonic() + PATIENCE
    message: Message = {"type": "http.request", "more_body": True}
    while message["type"] == "http.request" and message.get("more_body"):
        try:
            message = await asyncio.wait_for(receive(), ends - time.monotonic())
        except asyncio.TimeoutError as error:
            raise _Refused(408, f"a request may take {PATIENCE:g} s to arrive") from error
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise _Refused(413, f"a request may have {MAX_BODY} bytes")
    first: list[Message] = [
        {"type": "http.request", "body": b"".join(parts), "more_body": False}
        if message["type"] == "http.request"
        else message
    ]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again
