"""The HTTP API: programs with a bearer token. Never a browser's cookie, so that no other site can ask in its name.

It stands behind the look at the Host header, and before sessions and pages.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from mivra import runtime
from mivra.errors import MivraError
from mivra.web.access import READ_ONLY
from mivra.web.api_endpoints import ENDPOINTS, PATHS, PROBES, Asked, Endpoint
from mivra.web.limits import Limit, body_of
from mivra.web.live import EVENTS
from mivra.web.problems import RETRY_S, answer_to
from mivra.web.sessions import ROLES
from mivra.web.sign_in import address_of
from mivra.web.tokens import Token, Tokens

REALM: Final = 'Bearer realm="mivra"'
BODY_BYTES: Final = 64 * 1024
BODY_S: Final = 10.0
CALLS: Final = (100.0, 200)
"""Of one token: a second, and at once."""
FAILURES: Final = (1 / 3, 20)
"""Of one address, tokens that are nobody's: those that come faster are looked up one after the other."""
AT_ONCE: Final = 8
"""Threads for each kind of work: while the database is slow, no write keeps what is known from being told."""
SHARED_S: Final = 1.0
QUEUE: Final = 100
"""Who would wait behind more is told to come again."""

UNASKED: Final = (401, 403, 429)
"""Refused before anything was done."""
PROBE_PATHS: Final = {label.partition(" ")[2] for label in PROBES}

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
T = TypeVar("T")

logger = logging.getLogger(__name__)


def answers(scope: Scope) -> bool:
    """Whether this is the API's to answer; at paths that it does not have only for who brings a token."""
    path = scope["path"]
    if scope["type"] != "http" or path == EVENTS:
        # The one route below /api/ that is a browser's.
        return False
    return path in PATHS or (path.startswith("/api/") and any(name == b"authorization" for name, _ in scope["headers"]))


class Api:
    """ASGI middleware: answers programs; all else goes inside."""

    def __init__(self, inside: ASGIApp, tokens: Tokens, clock: Callable[[], float] = time.monotonic) -> None:
        self._inside = inside
        self._tokens = tokens
        self._clock = clock
        self._calls = Limit(*CALLS, clock)
        self._failures = Limit(*FAILURES, clock)
        self._threads = {name: anyio.CapacityLimiter(AT_ONCE) for name in ("token", "read", "write")}
        self._threads["stranger"] = anyio.CapacityLimiter(1)
        self._under_way: Counter[str] = Counter()
        self._made: dict[tuple[str, Any], tuple[float, asyncio.Future[Response]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not answers(scope):
            await self._inside(scope, receive, send)
            return
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        bind_contextvars(request_id=request_id)
        response = await self._timed(request)
        # What is left here is where the next request on this connection begins, whoever sends it.
        clear_contextvars()
        response.headers["X-Request-Id"] = request_id
        response.headers["Cache-Control"] = "no-store"
        await response(scope, receive, send)

    async def _timed(self, request: Request) -> Response:
        began, label = self._clock(), _label(request.scope)
        try:
            response = await self._answer(request, label)
        except Exception as error:  # noqa: BLE001 - the top of a request
            response = answer_to(error)
        _record(label, response.status_code, self._clock() - began, is_quiet="authorization" not in request.headers)
        return response

    async def _answer(self, request: Request, label: str) -> Response:
        if label in PROBES:
            return PROBES[label]()
        if request.scope["path"] in PROBE_PATHS:
            raise _not_allowed(request.scope["path"])
        token = await self._token(request)
        bind_contextvars(actor=token.actor)
        if wait_s := self._calls.wait_s(token.token_id):
            raise HTTPException(429, "Too many requests.", {"Retry-After": str(math.ceil(wait_s))})
        self._calls.count(token.token_id)
        endpoint, here = _endpoint(label), runtime.current()
        _admit(token, endpoint, here.settings.read_only)
        query, body = _query(request, endpoint), await _body(request, endpoint)
        asked = Asked(here, token, f"api {address_of(request)}", query, body)
        if endpoint.how == "known":
            return _done(endpoint, asked)
        if endpoint.how == "shared":
            return await self._shared(endpoint, asked)
        return await self._threaded("write", lambda: _done(endpoint, asked))

    async def _shared(self, endpoint: Endpoint, asked: Asked) -> Response:
        """The same answer for all who ask within a second, while it is made too: it depends on nobody's token."""
        began, made = self._made.get((endpoint.label, asked.query), (-math.inf, None))
        if made is None or (made.done() and self._clock() > began + SHARED_S):
            made = asyncio.ensure_future(self._threaded("read", lambda: _done(endpoint, asked)))
            # Should all who wait for it go, nobody asks what became of it.
            made.add_done_callback(lambda one: one.cancelled() or one.exception())
            self._made[endpoint.label, asked.query] = self._clock(), made
        answer = await asyncio.shield(made)
        return Response(answer.body, answer.status_code, answer.headers)

    async def _token(self, request: Request) -> Token:
        """Whose request it is; HTTPException for nobody's."""
        given = request.headers.getlist("authorization")
        bearer = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
        if bearer is None:
            raise HTTPException(401, "Send a token: Authorization: Bearer mivra_...", {"WWW-Authenticate": REALM})
        to_write = request.method == "POST"
        token, is_fresh = self._tokens.recall(bearer[1], to_write=to_write)
        if not is_fresh:
            address = address_of(request)
            kind = "stranger" if token is None and self._failures.wait_s(address) else "token"
            token = await self._threaded(kind, lambda: self._tokens.find(bearer[1], to_write=to_write))
            if token is None:
                self._failures.count(address)
                self._tokens.refuse(bearer[1])
        if token is None:
            invalid = f'{REALM}, error="invalid_token"'
            raise HTTPException(401, "This token is nobody's, or not any more.", {"WWW-Authenticate": invalid})
        return token

    async def _threaded(self, kind: str, work: Callable[[], T]) -> T:
        if self._under_way[kind] >= AT_ONCE + QUEUE:
            raise HTTPException(503, "Too many wait already.", {"Retry-After": str(RETRY_S)})
        self._under_way[kind] += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._threads[kind])
        finally:
            self._under_way[kind] -= 1


def _done(endpoint: Endpoint, asked: Asked) -> Response:
    try:
        return endpoint.does(asked)
    except Exception as error:  # noqa: BLE001 - once, however many wait for it
        return answer_to(error)


def _endpoint(label: str) -> Endpoint:
    path = label.partition(" ")[2]
    if path not in PATHS:
        raise HTTPException(404, f"There is nothing at {path}.")
    if label not in ENDPOINTS:
        raise _not_allowed(path)
    return ENDPOINTS[label]


def _admit(token: Token, endpoint: Endpoint, read_only: bool) -> None:
    """HTTPException for who may not; of what is written, the database decides once more."""
    if ROLES.index(token.role) < ROLES.index(endpoint.role):
        raise HTTPException(403, f"This needs the role {endpoint.role}, and the token has {token.role}.")
    if endpoint.method == "POST" and read_only:
        raise HTTPException(403, READ_ONLY)


def _query(request: Request, endpoint: Endpoint) -> Any:
    given = request.query_params.multi_items()
    if len(dict(given)) < len(given):
        raise HTTPException(422, "A parameter is given twice.")
    return _checked(lambda: msgspec.convert(dict(given), endpoint.query, strict=False))


async def _body(request: Request, endpoint: Endpoint) -> Any:
    """What was sent, checked; nothing is read for an endpoint that takes nothing."""
    if endpoint.body is None:
        return None
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send application/json.")
    data = await body_of(request, BODY_BYTES, BODY_S)
    return _checked(lambda: msgspec.json.decode(data, type=endpoint.body))


def _checked(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValueError as error:
        raise HTTPException(422, f"{error}.") from None


def _not_allowed(path: str) -> HTTPException:
    methods = {"GET": "GET, HEAD", "POST": "POST"}
    allowed = [methods[method] for method in methods if f"{method} {path}" in {*ENDPOINTS, *PROBES}]
    return HTTPException(405, "This is asked in another way.", {"Allow": ", ".join(allowed)})


def _label(scope: Scope) -> str:
    """The route as it is counted; HEAD is GET, of which the server keeps the body back.

    Not of the request's URL, into which the Host header goes.
    """
    return f"{'GET' if scope['method'] == 'HEAD' else scope['method']} {scope['path']}"


def _record(label: str, status: int, seconds: float, *, is_quiet: bool) -> None:
    """One line in the log, and the counts: of names from outside none. is_quiet: no line that anybody could cause."""
    if label not in ENDPOINTS:
        return
    is_trouble = status in UNASKED or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    level = logging.WARNING if is_trouble else logging.INFO if label.startswith("POST") else logging.DEBUG
    method, route = label.split()
    fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000)}
    logger.log(logging.DEBUG if is_quiet else level, "answered", extra=fields)
    with suppress(MivraError):
        subject = runtime.current().meter.subject(f"api:{label}")
        subject.count("requests")
        subject.count(f"{status // 100}xx")
        # A flood of refusals would make slow answers look rare.
        if status not in UNASKED:
            subject.time(seconds)
