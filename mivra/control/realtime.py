"""Hints by Supabase Realtime: a private broadcast from the database, else changes of the tables that it publishes.

The client repairs nothing here: it lasts one session, its callbacks only note what came, and any doubt ends it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final

from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates
from realtime._async.push import AsyncPush
from realtime.message import SuccessSystemPayload
from realtime.types import (
    BroadcastPayload,
    PostgresChangesPayload,
    RealtimeAcknowledgementStatus,
    RealtimeChannelOptions,
    RealtimePostgresChangesListenEvent,
)
from websockets.exceptions import WebSocketException

from mivra.control.line import Ask, Calls, Line, News, Transport
from mivra.errors import StoreUnavailable

ANSWER_S = 3.0
"""An answer that takes longer counts as none."""
JOIN_S = 10
"""How long a connection, and then a subscription, may take."""
READY_S = 20.0
"""How long it may take in all until it is known that hints come."""
PATH_S = 15.0
"""How often the whole way through the database is tried; each time is a message that the project's plan counts."""
RETRY_S = 600.0
"""How long changes are taken instead before the broadcast is tried again."""
HINTS: Final = {"bot_control": "bot_control", "bot_status": "bot_status", "kill_switch": "bot_control"}
"""What a change of a published table tells."""
TOLD: Final = ("state", "observed_generation", "error", "attempts", "pid")
"""Columns of bot_status whose change tells something; a heartbeat changes others."""


class Realtime:
    """A Source: lines to a project, by broadcast unless that was refused or not heard in the last minutes."""

    def __init__(self, url: str, key: str) -> None:
        # What the client logs, and at DEBUG what it is made of, holds the key.
        logging.getLogger("realtime").setLevel(logging.CRITICAL)
        logging.getLogger("websockets.client").setLevel(logging.WARNING)
        self._url, self._key = f"{url}/realtime/v1", key
        self._broadcast_at = float("-inf")

    @contextmanager
    def __call__(self) -> Iterator[Line]:
        left_s = self._broadcast_at - time.monotonic()
        with asyncio.Runner() as runner:
            client = AsyncRealtimeClient(self._url, self._key, auto_reconnect=False, timeout=JOIN_S)
            line = TableChanges(runner, client, left_s) if left_s > 0 else Broadcast(runner, client)
            try:
                yield line
            finally:
                line.hang_up()
                if line.is_refused:
                    self._broadcast_at = time.monotonic() + RETRY_S if left_s <= 0 else float("-inf")


class RealtimeLine:
    """See Line; of one channel, on a loop that runs while it is waited."""

    kind: Transport
    topic: str
    options: ClassVar[RealtimeChannelOptions]

    def __init__(self, runner: asyncio.Runner, client: AsyncRealtimeClient, lasts_s: float = float("inf")) -> None:
        self._runner, self._client = runner, client
        self._began, self._lasts_s = time.monotonic(), lasts_s
        self._link = Calls(ANSWER_S)
        self._path = Calls(ANSWER_S)
        self._came, self._news = asyncio.Event(), deque[str | News | StoreUnavailable]()
        self._is_joined = self._is_ended = self._is_proven = False
        self._channel = client.channel(self.topic, self.options)
        self._channel.on_system(self._on_system)
        # Replies to its heartbeats come to this topic, where the client itself does not look at them.
        self._phoenix = client.channels["phoenix"] = AsyncRealtimeChannel(client, "phoenix")
        self._joining = runner.get_loop().create_task(self._join())

    @property
    def transport(self) -> Transport:
        return self.kind if self._is_proven else "polling"

    @property
    def is_refused(self) -> bool:
        """The server was there, and it was never known that hints come."""
        return not self._is_proven and (self._is_ended or self._is_late)

    @property
    def overdue(self) -> bool:
        return self._is_late or self._link.overdue or self._path.overdue

    @property
    def _is_late(self) -> bool:
        return not self._is_proven and time.monotonic() - self._began > READY_S

    def call(self, ask: Ask) -> None:
        if self._is_joined:
            self._runner.run(self._heartbeat())

    def wait(self, seconds: float) -> Iterator[str | News]:
        if time.monotonic() - self._began > self._lasts_s:
            raise StoreUnavailable("The private broadcast is tried again")
        self._runner.run(self._something(seconds))
        while self._news:
            news = self._news.popleft()
            if isinstance(news, StoreUnavailable):
                raise news
            yield news

    def hang_up(self) -> None:
        """At once: the client would wait 10 s for a server that may be gone."""
        self._runner.run(self._hang_up())

    async def _join(self) -> None:
        try:
            await self._channel.subscribe(self._on_state)
        except (OSError, WebSocketException) as error:
            # Without the cause, since an address is part of some: it has the key in it.
            why = str(error).replace(self._client.apikey or "", "...")
            self._note(StoreUnavailable(f"Realtime cannot be reached: {why or type(error).__name__}"))

    async def _heartbeat(self) -> None:
        push = AsyncPush(self._phoenix, "heartbeat", timeout=JOIN_S)
        push.receive(RealtimeAcknowledgementStatus.Ok, self._on_heartbeat)
        self._link.made()
        await push.send()

    async def _something(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), seconds)
        self._came.clear()

    async def _hang_up(self) -> None:
        self._joining.cancel()
        if connection := self._client._ws_connection:
            connection.transport.abort()
        await self._client.close()

    def _note(self, news: str | News | StoreUnavailable) -> None:
        self._news.append(news)
        self._came.set()

    def _on_state(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        if state is RealtimeSubscribeStates.SUBSCRIBED:
            self._is_joined = True
            self._note(News.GAP)
        else:
            self._is_ended = True
            self._note(StoreUnavailable(f"Realtime ended the subscription: {error or state.value}"))

    def _on_heartbeat(self, _reply: object) -> None:
        self._link.answered()
        # A line that lives is not one by which hints come.
        if self._is_proven:
            self._note(News.ECHO)

    def _on_system(self, message: SuccessSystemPayload) -> None:
        self._note(News.GAP)


class Broadcast(RealtimeLine):
    """The private topic that the database writes to; proven by a call through the database."""

    kind = "broadcast"
    topic = "mivra_events"
    options: ClassVar[RealtimeChannelOptions] = {
        "config": {"broadcast": {"replication_ready": True}, "presence": None, "private": True}
    }

    def __init__(self, runner: asyncio.Runner, client: AsyncRealtimeClient) -> None:
        super().__init__(runner, client)
        self._path_due = 0.0
        self._channel.on_broadcast("*", self._on_broadcast)

    def call(self, ask: Ask) -> None:
        super().call(ask)
        if self._is_joined and time.monotonic() >= self._path_due:
            self._path_due = time.monotonic() + (PATH_S if self._is_proven else 0.0)
            ask(self._path.name)
            # Until the first came back the server may only be waking up.
            if self._is_proven:
                self._path.made()

    def _on_broadcast(self, message: BroadcastPayload) -> None:
        said = message["payload"]
        if said.get("channel") == self._path.name:
            self._path.answered()
            self._is_proven = True
            self._note(News.ECHO)
        elif isinstance(event := said.get("event"), str):
            self._note(event)


class TableChanges(RealtimeLine):
    """Changes of the tables of the publication; proven by the server's word that it reads them."""

    kind = "postgres_changes"
    topic = "mivra_changes"
    options: ClassVar[RealtimeChannelOptions] = {"config": {"broadcast": None, "presence": None, "private": False}}

    def __init__(self, runner: asyncio.Runner, client: AsyncRealtimeClient, lasts_s: float) -> None:
        super().__init__(runner, client, lasts_s)
        self._told: dict[str, list[Any]] = {}
        for table in HINTS:
            self._channel.on_postgres_changes(RealtimePostgresChangesListenEvent.All, self._on_change, table=table)

    def _on_system(self, message: SuccessSystemPayload) -> None:
        self._is_proven |= message.extension == "postgres_changes"
        super()._on_system(message)

    def _on_change(self, change: PostgresChangesPayload) -> None:
        table, record = change["data"]["table"], change["data"].get("record")
        if table == "bot_status" and record:
            bot_id, told = str(record.get("bot_id")), [record.get(name) for name in TOLD]
            if self._told.get(bot_id) == told:
                return
            self._told[bot_id] = told
        self._note(HINTS.get(table, ""))
