"""Pushes "something changed" to every open page: a mark a topic, one event stream a page, a rerun only when needed.

The mark is a level, not an event: a page knows the mark that it was drawn at, and asks for a rerun while the
server's mark is another one. So nothing is lost while a connection is away, a restart is one rerun, and a thousand
changes between two looks are one.
"""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

import anyio
import orjson
import streamlit as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mivra.web import access
from mivra.web.problems import problem

Topic = Literal["bots", "data"]

PING_S: Final = 15.0
"""A comment this often, so that either side notices a dead connection."""

COALESCE_S: Final = 0.2
"""At most five messages a second to a page; a person does not see more."""

EXIT_LOOK_S: Final = 0.25
"""How often it is looked whether the server wants to stop: it waits for open streams."""

GESTURE_S: Final = 60.0
"""A click is told with the next rerun; somewhere on a page that is every ten seconds."""

EVENTS: Final = "/api/events"
STATIC: Final = Path(__file__).parent / "static"


class Hub:
    """Hears of changes from any thread and wakes the streams of one event loop."""

    def __init__(self) -> None:
        self._marks = {"bots": _new_mark(), "data": _new_mark()}
        self._waiting: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closing = False

    def open(self) -> None:
        """Called in the event loop that serves the streams."""
        self._loop = asyncio.get_running_loop()

    def publish(self, topic: str) -> None:
        """Something of this topic changed; called from any thread."""
        if topic not in self._marks:
            return
        self._marks[topic] = _new_mark()
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def mark(self, topic: Topic) -> str:
        """What a page was drawn at; taken before its data is read, so that a change meanwhile counts as one."""
        return self._marks[topic]

    def close(self) -> None:
        """End every stream, so that the server can stop."""
        self.closing = True
        self._wake()

    async def stream(self) -> AsyncIterator[bytes]:
        """The marks now, and again whenever they changed; comments in between."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            # A browser whose connection broke tries again after this long.
            yield b"retry: 2000\n\n"
            while not self.closing:
                changed.clear()
                yield self._message()
                await asyncio.sleep(COALESCE_S)
                while not self.closing and not await _set_within(changed, PING_S):
                    yield b": ping\n\n"
        finally:
            self._waiting.discard(changed)

    def _message(self) -> bytes:
        return b"data: " + orjson.dumps({**self._marks, "now": time.time() * 1000}) + b"\n\n"

    def _wake(self) -> None:
        for changed in tuple(self._waiting):
            changed.set()


def _new_mark() -> str:
    """One that no start of the server has had before."""
    return uuid.uuid4().hex[:16]


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    with anyio.move_on_after(timeout_s):
        await event.wait()
    return event.is_set()


hub: Final = Hub()
"""The one of this process."""


async def watch_exit() -> None:
    """Close the hub when the server is told to stop: it would wait for the open streams for ever."""
    while not hub.closing:
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if getattr(server, "should_exit", False):
            hub.close()
        await asyncio.sleep(EXIT_LOOK_S)


async def events(request: Request) -> Response:
    if request.method != "GET":
        return problem(405, "The event stream is read with GET.", {"Allow": "GET"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(hub.stream(), media_type="text/event-stream", headers=headers)


_component = st.components.v2.component(
    "mivra_live",
    js=(STATIC / "live.js").read_text(encoding="utf-8"),
    css=(STATIC / "live.css").read_text(encoding="utf-8"),
)


def mount(topic: Topic, mark: str, *, key: str, indicator: bool = False, idle_s: float | None = None) -> None:
    """Rerun what this is mounted in (the page, or a fragment) as soon as the topic's mark is not this one any more.

    With idle_s also when nothing changed for so long: figures age although no trade closes. A person who has clicked or
    typed lately is noted with it.
    """
    _component(
        key=key,
        data={
            "topic": topic,
            "mark": mark,
            "indicator": indicator,
            "idle_ms": idle_s and idle_s * 1000,
            "drawn": time.time(),
        },
        on_changed_change=lambda: note(key),
        height="content",
    )


def note(key: str) -> None:
    """A rerun may be nobody's: that a person is there is told by the clicks and keys of a short while ago."""
    if st.session_state[key]["changed"]["still_s"] < GESTURE_S:
        access.touch()
