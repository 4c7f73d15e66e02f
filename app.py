"""The launcher: `streamlit run app.py` serves the dashboard, its event stream and the HTTP API from this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from mivra import config, logs, runtime
from mivra.errors import ConfigError, MivraError
from mivra.store import Store
from mivra.web import access, gate, live, oidc, passwords, problems
from mivra.web.api import Api
from mivra.web.boot import boot, say
from mivra.web.sessions import Sessions, cookie_secret
from mivra.web.sign_in import Desk
from mivra.web.tokens import Tokens

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
"""Every method is ours to answer below /api/: Streamlit would answer the rest with 200 and its page."""

UNGUARDED: Final = (
    "{exposed}, but nobody would have to sign in; set SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY, or [auth] in "
    ".streamlit/secrets.toml (README: Sign-in), or serve this machine only: server.address 127.0.0.1 and no "
    "MIVRA_PUBLIC_URL"
)


@contextlib.asynccontextmanager
async def lifespan(_app: st.App) -> AsyncIterator[dict[str, Any]]:
    """Start the runtime beside the server and stop both together."""
    live.hub.open()
    watcher = asyncio.create_task(live.watch_exit())
    boot.begin()
    try:
        yield {}
    finally:
        live.hub.close()
        watcher.cancel()
        await asyncio.to_thread(boot.end)


def door(inside: ASGIApp) -> ASGIApp:
    """Who is answered; ConfigError when that would be everybody."""
    inside = Api(inside, Tokens(store, is_away))
    address = listens_on()
    exposed = "" if address in config.LOCAL_NAMES else f"The server listens on {address or 'every address'}"
    if os.environ.get("MIVRA_PUBLIC_URL"):
        exposed = "MIVRA_PUBLIC_URL is set"
    try:
        settings = config.load(os.environ)
    except ConfigError:
        # The page says it, to this machine.
        if exposed:
            raise
        return gate.LocalOnly(inside)
    logs.configure(settings.log)
    logging.getLogger(Api.__module__).setLevel(logging.INFO)
    # It tells of each page that is opened and closed.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    providers = oidc.providers(settings.public_url)
    by_password = bool(settings.supabase_url and settings.supabase_publishable_key)
    if providers or by_password:
        return signed_in(inside, settings, providers, by_password=by_password)
    if exposed:
        raise ConfigError(UNGUARDED.format(exposed=exposed))
    say("there is no sign-in: only this machine is answered")
    return gate.LocalOnly(inside)


def listens_on() -> str:
    """What the server was told; uvicorn has an option of its own."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if (told := getattr(server, "config", None)) is None:
        return st.get_option("server.address") or ""
    return str(told.host)


def signed_in(inside: ASGIApp, settings: config.Settings, providers: dict[str, str], *, by_password: bool) -> ASGIApp:
    """The door for who has a session."""
    origin = settings.public_url
    verify = partial(passwords.verify, str(settings.supabase_url), str(settings.supabase_publishable_key))
    sessions = Sessions(
        store,
        settings.cookie_secret or cookie_secret(settings.home),
        idle_s=settings.session_idle * 60,
        secure=(origin or "").startswith("https://"),
    )
    access.use(sessions)
    desk = Desk(sessions, store, verify if by_password else None, providers, oidc.login_url, origin)
    names = frozenset({gate.host_name(urlsplit(origin).netloc)}) if origin else config.LOCAL_NAMES
    say(f"everybody signs in, at {origin or 'this machine only: MIVRA_PUBLIC_URL is not set'}")
    if not sessions.secure and not names <= config.LOCAL_NAMES:
        say("MIVRA_PUBLIC_URL is not https: passwords and cookies can be read on their way")
    return gate.SignedIn(inside, desk, names, away=start_again)


def store() -> Store:
    """That of the runtime; MivraError while there is none, and then it is tried again."""
    try:
        return runtime.current().store
    except MivraError:
        start_again()
        raise


def is_away() -> bool:
    """Whether the last look at the bots had no answer of the database."""
    with contextlib.suppress(MivraError):
        return runtime.current().board.error is not None
    return False


def start_again() -> None:
    """With sign-in nobody sees the button for it."""
    if boot.state == "failed" and boot.retryable:
        boot.begin()


app = st.App(
    config.ROOT / "mivra" / "web" / "router.py",
    lifespan=lifespan,
    routes=[
        Route(live.EVENTS, live.events, methods=METHODS),
        Route("/api/{path:path}", problems.no_such_route, methods=METHODS),
        Route("/api", problems.no_such_route, methods=METHODS),
    ],
    middleware=[Middleware(gate.Gate, door=door)],
    on_script_error=problems.script_failed,
)
