"""A dashboard as operators run it, with sign-in, and programs with tokens that use its HTTP API."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from psycopg import sql

from mivra.control.commands import create_bot
from mivra.store.base import one
from mivra.store.postgres import PostgresStore
from mivra.web.sessions import Role
from mivra.web.tokens import hashed, made
from tests.browser.dashboard import Dashboard, serve
from tests.conftest import _maintain, _url
from tests.supabase.project import Project, open_project
from tests.support import wait_until

CONFIG = {"strategy": "balanced", "asset": "EURUSD", "amount": "20", "expiration_seconds": 5}


@dataclass
class World:
    """A running dashboard, and a store of the tests' own."""

    dashboard: Dashboard
    store: PostgresStore
    project: Project
    database: str
    environ: dict[str, str]

    @property
    def url(self) -> str:
        return self.dashboard.url

    def token(self, role: Role, name: str = "", **options: Any) -> str:
        text, name = made(), name or uuid.uuid4().hex[:12]
        given = {"expires_at": None, "actor": "the tests", **options}
        self.store.call("create_token", name=name, role=role, token_hash=hashed(text), **given)
        return text

    def client(self, role: Role | None = None, token: str = "", **headers: str) -> httpx.Client:
        """Of a program with a token of this role, or with this one, or with none."""
        text = token or (self.token(role) if role else "")
        own = {"Authorization": f"Bearer {text}"} if text else {}
        return httpx.Client(base_url=self.url, headers={**own, **headers}, timeout=30)

    def bot(self, name: str = "") -> str:
        """A new one, stopped."""
        owner = one(self.store.call("ensure_user", email="owner@example.com"))["user_id"]
        name = name or f"bot-{uuid.uuid4().hex[:8]}"
        assert create_bot(self.store, name, name, CONFIG, owner)
        return name

    def row(self, bot_id: str) -> dict[str, Any]:
        """A bot as the database has it."""
        return next(row for row in self.store.call("list_bots") if row["bot_id"] == bot_id)

    def log(self) -> str:
        return (self.dashboard.home / "server.log").read_text()

    def is_ready(self) -> bool:
        return httpx.get(f"{self.url}/readyz").status_code == 200


@contextmanager
def open_world(servers: tuple[str, str | None], template: str, home: Path) -> Iterator[World]:
    """With a database of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _maintain(servers[0], sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, template))))
    url = _url(servers[0], name)
    with open_project(url) as project:
        environ = {"DATABASE_URL": url, "REDIS_URL": str(servers[1])}
        signs_in = {"SUPABASE_URL": project.url, "SUPABASE_PUBLISHABLE_KEY": project.publishable_key}
        store = PostgresStore(url, max_connections=2, application="mivra tests")
        with serve(home, **environ, **signs_in) as dashboard:
            world = World(dashboard, store, project, name, environ)
            wait_until(world.is_ready, what="the dashboard has started")
            yield world
        store.close()
    _maintain(servers[0], sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
