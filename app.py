"""The launcher: `streamlit run app.py` serves the dashboard, its event stream and nothing else from this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route

from mivra.config import ROOT
from mivra.web import access, live, problems
from mivra.web.boot import boot, say

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
"""Every method is ours to answer below /api/: Streamlit would answer the rest with 200 and its page."""


@contextlib.asynccontextmanager
async def lifespan(_app: st.App) -> AsyncIterator[dict[str, Any]]:
    """Start the runtime beside the server and stop both together."""
    live.hub.open()
    watcher = asyncio.create_task(live.watch_exit())
    say_who_is_answered()
    boot.begin()
    try:
        yield {}
    finally:
        live.hub.close()
        watcher.cancel()
        await asyncio.to_thread(boot.end)


def say_who_is_answered() -> None:
    """The promise of access.py, also when the server was told to listen to the whole network."""
    address = st.get_option("server.address")
    say("there is no sign-in: only this machine is answered")
    if address not in access.LOCAL_NAMES:
        say(f"it listens on {address or 'every address'}, but refuses every other machine with 403")


app = st.App(
    ROOT / "mivra" / "web" / "router.py",
    lifespan=lifespan,
    routes=[
        Route("/api/events", live.events, methods=METHODS),
        Route("/api/{path:path}", problems.no_such_route, methods=METHODS),
        Route("/api", problems.no_such_route, methods=METHODS),
    ],
    middleware=[Middleware(access.LocalOnly)],
    on_script_error=problems.script_failed,
)
