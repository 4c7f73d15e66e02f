"""A stand-in for Supabase Auth: password sign-in over the users of the project's own database, as GoTrue answers."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import jwt
import psycopg
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

if TYPE_CHECKING:
    from tests.supabase.project import Project

HASH_ROUNDS = 1000
"""A stand-in need not be slow."""


@dataclass(frozen=True)
class User:
    """An account."""

    user_id: uuid.UUID
    email: str
    salt: bytes
    password: bytes
    confirmed: bool
    factors: list[dict[str, str]]


@dataclass
class AuthHooks:
    """What a test may do to /auth/v1, and what it saw."""

    dsn: str
    users: dict[str, User] = field(default_factory=dict)
    faults: deque[ASGIApp] = field(default_factory=deque)
    """Each answers one request in Auth's place; see answering, dropping and hanging of the project."""
    delay_s: float = 0.0
    """Every answer is this late."""
    is_down: bool = False
    """Every connection ends without an answer."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, headers as they came."""
    open_sessions: set[str] = field(default_factory=set)
    """Those that nobody has signed out of."""

    def add_user(
        self, email: str, password: str, *, confirmed: bool = True, factors: tuple[str, ...] = ()
    ) -> uuid.UUID:
        """An account; factors are the statuses of its second factors."""
        user_id, salt = uuid.uuid4(), secrets.token_bytes(16)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("insert into auth.users (id, email) values (%s, %s)", (user_id, email))
        stamp = datetime.now(UTC).isoformat()
        rows = [
            {"id": str(uuid.uuid4()), "status": status, "factor_type": "totp", "created_at": stamp, "updated_at": stamp}
            for status in factors
        ]
        self.users[email.lower()] = User(user_id, email, salt, _hash(password, salt), confirmed, rows)
        return user_id

    def verified(self, email: str, password: str) -> User | None:
        user = self.users.get(email.lower())
        return user if user and _hash(password, user.salt) == user.password else None


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, HASH_ROUNDS)


def routes(project: Project) -> list[BaseRoute]:
    """What a project serves below /auth/v1; its hooks are project.auth."""
    hooks = AuthHooks(project.dsn)
    project.auth = hooks

    async def token(request: Request) -> Response:
        if request.query_params.get("grant_type") != "password":
            return _error(400, "unsupported_grant_type", "unsupported grant_type")
        body = await request.json()
        user = hooks.verified(str(body.get("email", "")), str(body.get("password", "")))
        if user is None:
            return _error(400, "invalid_credentials", "Invalid login credentials")
        if not user.confirmed:
            return _error(400, "email_not_confirmed", "Email not confirmed")
        return JSONResponse(_session(project, hooks, user))

    async def user(request: Request) -> Response:
        claims = _claims(project, request)
        found = next((u for u in hooks.users.values() if str(u.user_id) == claims.get("sub")), None)
        return JSONResponse(_user(found)) if found else _error(403, "bad_jwt", "invalid JWT")

    async def logout(request: Request) -> Response:
        claims = _claims(project, request)
        if claims.get("session_id") not in hooks.open_sessions:
            return _error(403, "session_not_found", "Session from session_id claim in JWT does not exist")
        hooks.open_sessions.discard(claims["session_id"])
        return Response(status_code=204)

    async def settings(_request: Request) -> Response:
        return JSONResponse({"external": {"email": True}, "disable_signup": True, "mailer_autoconfirm": False})

    async def health(_request: Request) -> Response:
        return JSONResponse({"version": "v2.180.0", "name": "GoTrue", "description": "GoTrue"})

    return [
        Route("/auth/v1/token", _Faulty(hooks, Route("/", token, methods=["POST"]).app), methods=["POST"]),
        Route("/auth/v1/user", _Faulty(hooks, Route("/", user).app)),
        Route("/auth/v1/logout", _Faulty(hooks, Route("/", logout, methods=["POST"]).app), methods=["POST"]),
        Route("/auth/v1/settings", _Faulty(hooks, Route("/", settings).app)),
        Route("/auth/v1/health", _Faulty(hooks, Route("/", health).app)),
    ]


class _Faulty:
    """Keeps what was asked, and lets a test answer instead."""

    def __init__(self, hooks: AuthHooks, app: ASGIApp) -> None:
        self.hooks, self.app = hooks, app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = f"{scope['path']}?{scope['query_string'].decode()}"
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.hooks.requests.append((scope["method"], path, headers))
        await asyncio.sleep(self.hooks.delay_s)
        if self.hooks.is_down:
            # An answer that was promised and never comes: the connection ends.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            return
        app = self.hooks.faults.popleft() if self.hooks.faults else self.app
        await app(scope, receive, send)


def _session(project: Project, hooks: AuthHooks, user: User) -> dict[str, Any]:
    session_id = str(uuid.uuid4())
    hooks.open_sessions.add(session_id)
    return {
        "access_token": project.token(user.user_id, user.email, session_id=session_id),
        "token_type": "bearer",
        "expires_in": 3600,
        "expires_at": int(time.time()) + 3600,
        "refresh_token": secrets.token_urlsafe(9),
        "user": _user(user),
    }


def _user(user: User) -> dict[str, Any]:
    stamp = datetime.now(UTC).isoformat()
    return {
        "id": str(user.user_id),
        "aud": "authenticated",
        "role": "authenticated",
        "email": user.email,
        "email_confirmed_at": stamp if user.confirmed else None,
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {},
        "identities": [],
        "factors": user.factors,
        "created_at": stamp,
        "updated_at": stamp,
        "is_anonymous": False,
    }


def _claims(project: Project, request: Request) -> dict[str, Any]:
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    try:
        claims: dict[str, Any] = jwt.decode(bearer, project.jwt_secret, ["HS256"], audience="authenticated")
    except jwt.InvalidTokenError:
        return {}
    return claims


def _error(status: int, code: str, message: str) -> Response:
    """As GoTrue writes it for a client that asks for its 2024-01-01 version."""
    return JSONResponse({"code": code, "message": message}, status, {"X-Supabase-Api-Version": "2024-01-01"})
