"""A stand-in for a Supabase project: its one gateway, in front of the real PostgREST and the real database.

Auth and Realtime behind it are stand-ins of their own (auth.py, realtime.py). With SUPABASE_TEST_URL a live project
takes its place; tests that need the hooks of the stand-in, or a database of their own, are skipped then.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import httpx
import jwt
import psycopg
import pytest
import uvicorn
from psycopg.conninfo import conninfo_to_dict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.supabase import auth, realtime
from tests.supabase.postgrest import postgrest
from tests.support import wait_until

AS_HOSTED = """
do $$
begin
  create role authenticator login noinherit password 'authenticator';
  grant anon, authenticated, service_role to authenticator;
  alter role authenticator set statement_timeout = '8s';
  alter role anon set statement_timeout = '3s';
  alter role authenticated set statement_timeout = '8s';
exception when duplicate_object or unique_violation then null;
end
$$;
grant usage on schema auth to anon, authenticated, service_role;
"""
"""The role that PostgREST connects as, and how long its callers may take."""
OPEN_PATHS = ("/auth/v1/verify", "/auth/v1/callback", "/auth/v1/authorize", "/auth/v1/.well-known")
"""Asked by browsers, without a key."""


@dataclass
class RestHooks:
    """What a test may do to /rest/v1, and what it saw."""

    faults: deque[ASGIApp] = field(default_factory=deque)
    """Each answers one request in PostgREST's place."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, headers as they came."""


class Project:
    """What a test knows of a project."""

    def __init__(self, dsn: str, *, live: bool = False) -> None:
        self.dsn = dsn
        self.live = live
        self.url = ""
        self.secret_key = f"sb_secret_test_{secrets.token_urlsafe(16)}"
        self.publishable_key = f"sb_publishable_test_{secrets.token_urlsafe(16)}"
        self.jwt_secret = secrets.token_hex(32)
        self.service_role_key = self._key("service_role")
        self.anon_key = self._key("anon")
        self.closing = ExitStack()
        """Left when the gateway has ended; a stand-in puts here what it has to take down."""
        self._rest = RestHooks()
        self._auth: Any = None
        self._realtime: Any = None

    def token(self, user_id: uuid.UUID | str, email: str, role: str = "authenticated", **claims: object) -> str:
        """The access token of a user who has signed in; claims replace what it says by default."""
        now = int(time.time())
        said = {
            "iss": f"{self.url}/auth/v1",
            "sub": str(user_id),
            "aud": "authenticated",
            "iat": now,
            "exp": now + 3600,
            "email": email,
            "role": role,
            "aal": "aal1",
            "session_id": str(uuid.uuid4()),
            "is_anonymous": False,
            "app_metadata": {"provider": "email", "providers": ["email"]},
            "user_metadata": {},
        }
        return self._signed({**said, **claims})

    def token_of(self, key: str | None) -> str | None:
        """The JWT that the gateway makes of an API key; None for what is no key of this project."""
        roles = {self.secret_key: "service_role", self.publishable_key: "anon"}
        if key in roles:
            return self._key(roles[key])
        return key if key in (self.service_role_key, self.anon_key) else None

    @property
    def rest(self) -> RestHooks:
        self.need_hooks()
        return self._rest

    @property
    def auth(self) -> Any:
        self.need_hooks()
        return self._auth

    @auth.setter
    def auth(self, hooks: object) -> None:
        self._auth = hooks

    @property
    def realtime(self) -> Any:
        self.need_hooks()
        return self._realtime

    @realtime.setter
    def realtime(self, hooks: object) -> None:
        self._realtime = hooks

    def need_hooks(self) -> None:
        """Skips the test where a live project is used."""
        if self.live:
            pytest.skip("needs the stand-in: its fault hooks, its keys or a database of its own")

    def _key(self, role: str) -> str:
        now = int(time.time())
        return self._signed({"iss": "supabase", "ref": "test", "role": role, "iat": now, "exp": now + 86400})

    def _signed(self, claims: dict[str, object]) -> str:
        self.need_hooks()
        return jwt.encode(claims, self.jwt_secret, algorithm="HS256")


@contextmanager
def open_project(dsn: str) -> Iterator[Project]:
    """A project over this migrated database, for as long as the block lasts."""
    project = Project(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(AS_HOSTED)
    with ExitStack() as stack:
        stack.enter_context(project.closing)
        rest_url = stack.enter_context(postgrest(_dsn_as(dsn, "authenticator"), project.jwt_secret))
        routes = [*auth.routes(project), *realtime.routes(project)]
        project.url = stack.enter_context(_served(_gateway(project, rest_url, routes)))
        yield project


@contextmanager
def live_project() -> Iterator[Project | None]:
    """The project of SUPABASE_TEST_URL, or None."""
    url = os.environ.get("SUPABASE_TEST_URL")
    if not url:
        yield None
        return
    project = Project.__new__(Project)
    project.live, project.url = True, url.rstrip("/")
    project.dsn = os.environ.get("SUPABASE_TEST_DATABASE_URL", "")
    project.secret_key = os.environ["SUPABASE_TEST_SECRET_KEY"]
    project.publishable_key = os.environ["SUPABASE_TEST_PUBLISHABLE_KEY"]
    yield project


def _dsn_as(dsn: str, role: str) -> str:
    given = {**conninfo_to_dict(dsn), "user": role, "password": role}
    return f"postgresql:///?{urlencode(given, quote_via=quote)}"


def _gateway(project: Project, rest_url: str, routes: list[BaseRoute]) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=rest_url, timeout=60) as client:
            app.state.upstream = client
            yield

    async def forward(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.raw if name not in (b"host", b"connection")]
        answer = await request.app.state.upstream.request(
            request.method,
            httpx.URL(path="/" + request.path_params["path"], query=request.scope["query_string"]),
            content=await request.body(),
            headers=headers,
        )
        kept = {k: v for k, v in answer.headers.items() if k not in ("content-length", "transfer-encoding", "server")}
        return Response(answer.content, answer.status_code, kept)

    rest = Route("/rest/v1/{path:path}", forward, methods=["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"])
    return _Keys(project, _Faults(project, Starlette(routes=[rest, *routes], lifespan=lifespan)))


class _Keys:
    """What the hosted gateway does with API keys: asks for one, and makes a new-style one the JWT of its role."""

    def __init__(self, project: Project, app: ASGIApp) -> None:
        self.project, self.app = project, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith(OPEN_PATHS):
            await self.app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        key = headers.get("apikey") or parse_qs(scope["query_string"].decode()).get("apikey", [None])[0]
        token = self.project.token_of(key)
        if token is None:
            await _refused(scope, receive, send, key)
            return
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if bearer in ("", key):
            kept = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
            scope = {**scope, "headers": [*kept, (b"authorization", f"Bearer {token}".encode())]}
        await self.app(scope, receive, send)


async def _refused(scope: Scope, receive: Receive, send: Send, key: str | None) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    said = {"message": "Invalid API key", "hint": "Double check your Supabase `anon` or `service_role` API key."}
    if not key:
        said = {"message": "No API key found in request", "hint": "No `apikey` request header or url param was found."}
    await JSONResponse(said, 401)(scope, receive, send)


class _Faults:
    """Keeps what was asked of /rest/v1, and lets a test answer instead."""

    def __init__(self, project: Project, app: ASGIApp) -> None:
        self.project, self.app = project, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["path"].startswith("/rest/v1/"):
            path = f"{scope['path']}?{scope['query_string'].decode()}"
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.project.rest.requests.append((scope["method"], path, headers))
            scope = {**scope, "behind": self.app}
            with suppress(IndexError):
                app = self.project.rest.faults.popleft()
        await app(scope, receive, send)


def answering(status: int, body: object, media_type: str = "application/json") -> ASGIApp:
    """A fault: this answer; an object is sent as JSON, text as it is."""
    return Response(body if isinstance(body, str) else json.dumps(body), status, media_type=media_type)


def without(header: str) -> ASGIApp:
    """A fault: what stands between lets this header of the request fall."""

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        kept = [(name, value) for name, value in scope["headers"] if name.decode() != header]
        await scope["behind"]({**scope, "headers": kept}, receive, send)

    return forward


async def dropping(_scope: Scope, _receive: Receive, send: Send) -> None:
    """A fault: the connection ends within the answer."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})


async def losing(scope: Scope, receive: Receive, send: Send) -> None:
    """A fault: what was asked is done, but the connection ends within the answer."""

    async def drop(_message: Message) -> None:
        """Nobody is told."""

    await scope["behind"](scope, receive, drop)
    await dropping(scope, receive, send)


async def hanging(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """A fault: no answer ever comes."""
    await asyncio.Event().wait()


@contextmanager
def _served(app: ASGIApp) -> Iterator[str]:
    config = uvicorn.Config(
        app,
        port=0,
        lifespan="on",
        ws="websockets-sansio",
        ws_ping_interval=None,
        timeout_graceful_shutdown=1,
        log_config=None,
        log_level="critical",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="supabase stand-in", daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), what="the stand-in listens")
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
