"""Who is answered: with sign-in who has a session, without it this machine, under its own name, and nobody else.

It stands before pages, sockets and routes alike: Streamlit would let a socket in before it asks anybody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mivra.config import LOCAL_NAMES
from mivra.errors import MivraError
from mivra.web import api, oidc, sign_in
from mivra.web.live import EVENTS
from mivra.web.problems import problem
from mivra.web.sessions import Person
from mivra.web.sign_in import Desk

SENTENCE: Final = (
    "This dashboard has no sign-in, so it answers only to this machine: open http://localhost:{port} on it.\n"
)
OTHER_NAME: Final = (
    "This dashboard is not known by this name. Its operator sets MIVRA_PUBLIC_URL to its address, and a proxy in front "
    "of it passes the Host header on.\n"
)
ANONYMOUS: Final = "Sign in first."
STARTING: Final = "Mivra is starting, or its database does not answer. This page tries again by itself."

SEE_OTHER: Final = 303
PERSON: Final = b"x-mivra-person"
"""Header by which Streamlit is told who it is (.streamlit/config.toml); what a client says of itself is removed."""
PROBES: Final = ("/_stcore/health", "/livez", "/readyz")
ASSETS: Final = ("/_stcore/", "/static/", "/media/", "/component/", "/app/static/")
"""What is no page: a redirect would be read as the thing itself."""

LOOK_S: Final = 2.0
"""How often an open socket asks whether its session goes on."""

AGAIN_S: Final = 5
"""A page that waits for the database looks again this often."""

HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "DENY"}
"""Of every answer; frame-ancestors says the same as the last to newer browsers."""

FAREWELL: Final[dict[str, Message]] = {
    "websocket": {"type": "websocket.close", "code": 1008, "reason": "the session has ended"},
    "http": {"type": "http.response.body", "body": b"", "more_body": False},
}

logger = logging.getLogger(__name__)


class Gate:
    """ASGI middleware: opens the door that fits the settings when the server starts, and has nobody answered before.

    `door` raises for settings under which nothing must be served; the server ends with that sentence.
    """

    def __init__(self, app: ASGIApp, door: Callable[[ASGIApp], ASGIApp]) -> None:
        self._app = app
        self._make = door
        self._door: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._door = self._door or self._make(self._app)
        except (MivraError, OSError, ValueError) as error:
            if scope["type"] != "lifespan":
                raise
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"Mivra does not start: {error}"})
            return
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if not scope["path"].isprintable():
            # It would be one route to us and another to who matches it with a regular expression.
            await _refuse(scope, receive, send, PlainTextResponse("There is no such page.\n", 404), "no such page")
            return
        await self._door(scope, receive, _with_headers(send) if scope["type"] == "http" else send)


class LocalOnly:
    """403 for a client of another machine, and for a Host that is not this machine's name.

    The second keeps out a web page whose own name was pointed at 127.0.0.1 (DNS rebinding). It holds whatever
    address the server listens on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_local(scope):
            await self._app(scope, receive, send)
            return
        port = (scope.get("server") or ("", 8501))[1]
        refusal = PlainTextResponse(SENTENCE.format(port=port), status_code=403)
        await _refuse(scope, receive, send, refusal, "not this machine")


class SignedIn:
    """Answers who has a session, under the names of this dashboard; all others may only sign in.

    Programs go to the API, which asks for a token and never sees a session. Probes are answered to everybody, since
    they come by an address: they say that the process is there, or ready, and nothing else.
    """

    def __init__(self, app: ASGIApp, desk: Desk, names: frozenset[str], *, away: Callable[[], None]) -> None:
        self._app = app
        self._desk = desk
        self._names = names
        self._front = desk.app()
        self._away = away
        """Called when the database cannot be asked, so that a start that failed is tried again."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, is_http = scope["path"], scope["type"] == "http"
        if path in PROBES and is_http and scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        elif _name(scope) not in self._names:
            await _refuse(scope, receive, send, PlainTextResponse(OTHER_NAME, 403), "another name")
        elif api.answers(scope):
            await self._app(scope, receive, send)
        elif is_http and path.removeprefix("/").partition("/")[0] in ("sign-in", "sign-out"):
            await self._front(scope, receive, send)
        elif is_http and self._desk.providers and path in (oidc.LOGIN, oidc.CALLBACK):
            await self._app(scope, receive, _or_failed(path, send))
        else:
            await self._gated(scope, receive, send)

    async def _gated(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._desk.providers and _kind(scope) == "page":
            request = Request(scope, receive)
            if claims := oidc.brought(request):
                await (await oidc.exchange(self._desk, request, claims))(scope, receive, send)
                return
        cookie = HTTPConnection(scope).cookies.get(self._desk.sessions.cookie_name)
        try:
            session = await self._look(cookie)
        except MivraError as error:
            self._away()
            await _refuse(scope, receive, send, _waiting(scope), str(error))
            return
        if session is None:
            await _refuse(scope, receive, send, _anonymous(scope), "nobody has signed in")
            return
        scope = _with_person(scope, session)
        if scope["type"] == "websocket" or scope["path"] == EVENTS:
            await self._while_signed_in(scope, receive, send, cookie)
        else:
            await self._app(scope, receive, send)

    async def _look(self, cookie: str | None) -> Person | None:
        session, is_fresh = self._desk.sessions.recall(cookie)
        return session if is_fresh else await asyncio.to_thread(self._desk.sessions.find, cookie)

    async def _while_signed_in(self, scope: Scope, receive: Receive, send: Send, cookie: str | None) -> None:
        """The application, for as long as the session lasts; what is still open then is closed."""
        work = asyncio.ensure_future(self._app(scope, receive, send))
        watch = asyncio.ensure_future(self._over(cookie))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            is_cut = not work.done()
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        if is_cut:
            # The client may have gone in the same moment.
            with suppress(OSError, RuntimeError):
                await send(FAREWELL[scope["type"]])
        elif error := work.exception():
            raise error

    async def _over(self, cookie: str | None) -> None:
        """Returns when the session has ended."""
        with suppress(MivraError):
            while await self._look(cookie):
                await asyncio.sleep(LOOK_S)


def _with_person(scope: Scope, person: Person) -> Scope:
    """So that Streamlit lets nobody else take up what a browser tab left."""
    headers = [header for header in scope["headers"] if header[0] != PERSON]
    return {**scope, "headers": [*headers, (PERSON, str(person.operator_id).encode())]}


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Response, why: str) -> None:
    # Who is led to the sign-in page is no news. Quoted: a path may hold a line break.
    level = logging.INFO if refusal.status_code == SEE_OTHER else logging.WARNING
    logger.log(level, "refused %.200r from %s: %s", scope["path"], (scope.get("client") or ("unknown",))[0], why)
    if scope["type"] == "websocket":
        # Closed before it is accepted: the server answers the handshake with 403.
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    await refusal(scope, receive, send)


def _anonymous(scope: Scope) -> Response:
    """Pages lead to the sign-in page, programs are told."""
    kind = _kind(scope)
    if kind == "api":
        return problem(401, ANONYMOUS)
    if kind == "other":
        return PlainTextResponse(ANONYMOUS, 401)
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    target = quote(f"{path}?{query}" if query else path, safe="")
    return RedirectResponse(f"/sign-in?next={target}" if target != "%2F" else "/sign-in", SEE_OTHER)


def _waiting(scope: Scope) -> Response:
    kind = _kind(scope)
    if kind == "api":
        return problem(503, STARTING, {"Retry-After": str(AGAIN_S)})
    if kind == "other":
        return PlainTextResponse(STARTING, 503)
    return sign_in.document("One moment", "", STARTING, 503, refresh_s=AGAIN_S)


def _kind(scope: Scope) -> Literal["page", "api", "other"]:
    """What is asked for: a file's name has a dot, a page's none."""
    path = scope["path"]
    if path == "/api" or path.startswith("/api/"):
        return "api"
    is_asset = path.startswith(ASSETS) or "." in path.rpartition("/")[2]
    is_read = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return "page" if is_read and not is_asset else "other"


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if headers.get("content-type", "").startswith("text/html"):
                headers.setdefault("Content-Security-Policy", "frame-ancestors 'none'")
                # The browser's Back shows nobody else's page, and asks again who is there.
                headers["Cache-Control"] = "no-store"
        await send(message)

    return sending


def _or_failed(path: str, send: Send) -> Send:
    """What Streamlit's own routes answer; a sign-in that led nowhere leads back to the sign-in page, which says so."""
    failed: list[bool] = []

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and oidc.has_failed(path, message["status"], message["headers"]):
            failed.append(True)
            kept = [header for header in message["headers"] if header[0] == b"set-cookie"]
            headers = [*kept, (b"location", b"/sign-in?failed=1"), (b"content-length", b"0")]
            message = {"type": "http.response.start", "status": 303, "headers": headers}
        elif failed:
            message = {**message, "body": b""}
        await send(message)

    return sending


def is_local(scope: Scope) -> bool:
    """Whether client and Host header are both this machine."""
    return _is_loopback(scope.get("client")) and _name(scope) in LOCAL_NAMES


def _name(scope: dict[str, Any] | Scope) -> str | None:
    """The name in the Host header; None without one, or with more."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return host_name(hosts[0].decode("latin-1")) if len(hosts) == 1 else None


def host_name(header: str) -> str:
    """The name of a Host header without its port; brackets of IPv6 removed."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_loopback(client: tuple[str, int] | None) -> bool:
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
