"""A stand-in for Supabase Realtime in front of the real database: its wire, row security as the token's role, faults.

Written from the wire format (protocol 1.0.0) and never compared with the hosted one by a test.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from tests.supabase.project import Project

Json = dict[str, Any]
READY = "Subscribed to PostgreSQL"
NUMBERS = count(1_064_573_141)


def routes(project: Project) -> list[BaseRoute]:
    project.realtime = Realtime(project.dsn, project.jwt_secret)
    return [WebSocketRoute("/realtime/v1/websocket", project.realtime)]


def install(dsn: str) -> None:
    """Give a migrated database what Realtime has there, then let the product set itself up in it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set client_min_messages = error")
        connection.execute(Path(__file__).with_suffix(".sql").read_bytes())
        connection.execute("select set_up_realtime()")
        published = "select tablename from pg_publication_tables where pubname = 'supabase_realtime'"
        for (table,) in connection.execute(published).fetchall():
            connection.execute(
                sql.SQL(
                    "create or replace trigger realtime_changed after insert or update or delete on {}"
                    " for each row execute function realtime.changed()"
                ).format(sql.Identifier(table))
            )


@dataclass
class Channel:
    """One subscription of one client."""

    topic: str
    claims: Json
    is_private: bool
    bindings: list[Json] = field(default_factory=list)


class Client:
    """One websocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive, self.send = receive, send
        self.channels: dict[str, Channel] = {}

    async def say(self, topic: str, event: str, payload: Json, ref: str | None = None) -> None:
        said = {"ref": ref, "event": event, "payload": payload, "topic": topic}
        await self.say_text(json.dumps(said, default=str))

    async def say_text(self, text: str | bytes) -> None:
        kind = "text" if isinstance(text, str) else "bytes"
        with suppress(Exception):  # It may be gone.
            await self.send({"type": "websocket.send", kind: text})

    async def reply(self, message: Json, status: str, response: Json) -> None:
        await self.say(message["topic"], "phx_reply", {"status": status, "response": response}, message.get("ref"))

    async def system(self, channel: Channel, status: str, text: str, extension: str = "system") -> None:
        payload = {"extension": extension, "status": status, "message": text}
        await self.say(channel.topic, "system", {**payload, "channel": channel.topic.removeprefix("realtime:")})

    def reset(self) -> None:
        """End the connection as a dead router does: by RST."""
        transport = self.receive.__self__.transport  # type: ignore[attr-defined]
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class Realtime:
    """The server, and what a test may do to it; all of it from the test's own thread."""

    def __init__(self, dsn: str, jwt_secret: str) -> None:
        self._dsn, self._secret = dsn, jwt_secret
        self._clients: set[Client] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = asyncio.Event()
        self._changed = asyncio.Event()
        self.heal()

    def heal(self) -> None:
        """No fault, and nothing counted yet."""
        self.attempts: list[float] = []
        """Connections that were tried, when."""
        self.joins: list[str] = []
        """Topics that were joined, or would have been."""
        self.gateway_status = 0
        """What the gateway answers in place of the server; -1 ends the connection instead."""
        self.is_silent = False
        """Half-open: connections are accepted and kept, nothing is said on them."""
        self.refused: dict[str, str] = {}
        """Why a topic may not be joined; "*" is every topic."""
        self.join_delay_s = 0.0
        self.keeps_system_ok = False
        """It never says that hints flow."""
        self.is_lossy = False
        """What happens is not told: a gap on the server's side."""
        self.copies = 1
        """How often each event is told."""
        self.is_astray = False
        """Events go to a topic that nobody has joined."""
        self.poll_s = 0.0
        """How often changes are looked for, as the hosted one does; 0 is at once."""

    # Faults

    def drop(self) -> None:
        self._each(lambda client: self._now(client.reset))

    def close(self, code: int) -> None:
        self._each(lambda client: client.send({"type": "websocket.close", "code": code}))

    def say_text(self, text: str | bytes) -> None:
        self._each(lambda client: client.say_text(text))

    def say(self, event: str, payload: Json) -> None:
        """In each channel."""
        self._each_channel(lambda client, channel: client.say(channel.topic, event, payload))

    def end_channels(self, why: str) -> None:
        """As at the end of a token's life, or of what a plan allows: said, and closed."""

        async def end(client: Client, channel: Channel) -> None:
            await client.system(channel, "error", why)
            await client.say(channel.topic, "phx_close", {})
            client.channels.pop(channel.topic, None)

        self._each_channel(end)

    def end_gap(self) -> None:
        """Changes flow again, which the server says."""
        self.is_lossy = False
        self._each_channel(lambda client, channel: client.system(channel, "ok", READY, "postgres_changes"))

    @property
    def connected(self) -> int:
        return len(self._clients)

    async def _now(self, deed: Callable[[], object]) -> None:
        deed()

    def _each(self, deed: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        async def all_of_them() -> None:
            for client in list(self._clients):
                with suppress(Exception):  # It may be gone.
                    await deed(client)

        assert self._loop, "nobody has connected yet"
        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result(10)

    def _each_channel(self, deed: Callable[[Client, Channel], Coroutine[Any, Any, None]]) -> None:
        async def in_each(client: Client) -> None:
            for channel in list(client.channels.values()):
                await deed(client, channel)

        self._each(in_each)

    # The wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.attempts.append(time.monotonic())
        client = Client(receive, send)
        await receive()
        if self.gateway_status == -1:
            client.reset()
            return
        if self.gateway_status:
            await send({"type": "websocket.http.response.start", "status": self.gateway_status, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"upstream"})
            return
        await send({"type": "websocket.accept"})
        self._start()
        self._clients.add(client)
        bearer = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        try:
            while (message := await receive())["type"] == "websocket.receive":
                if not self.is_silent:
                    await self._answer(client, json.loads(message["text"]), bearer)
        finally:
            self._clients.discard(client)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._tasks = [loop.create_task(self._read_database()), loop.create_task(self._read_changes())]

    async def _answer(self, client: Client, message: Json, bearer: str) -> None:
        match message["event"]:
            case "heartbeat":
                await client.reply(message, "ok", {})
            case "phx_join":
                await self._join(client, message, bearer)
            case "phx_leave":
                client.channels.pop(message["topic"], None)
                await client.reply(message, "ok", {})
                await client.say(message["topic"], "phx_close", {})

    async def _join(self, client: Client, message: Json, bearer: str) -> None:
        topic, config = message["topic"].removeprefix("realtime:"), message["payload"]["config"]
        self.joins.append(topic)
        began = time.monotonic()
        while time.monotonic() - began < self.join_delay_s:
            await asyncio.sleep(0.05)
        given = message["payload"].get("access_token", "")
        try:
            claims = self._claims(bearer if given.startswith("sb_") else given or bearer)
        except jwt.PyJWTError as error:
            await client.reply(message, "error", {"reason": f"InvalidJWTToken: {error}"})
            return
        channel = Channel(message["topic"], claims, bool(config.get("private")))
        refused = self.refused.get(topic) or self.refused.get("*")
        if not refused and channel.is_private and not await self._may_join(claims, topic):
            refused = f"Unauthorized: You do not have permissions to read from this Channel topic: {topic}"
        if refused:
            await client.reply(message, "error", {"reason": refused})
            return
        channel.bindings = [{**binding, "id": next(NUMBERS)} for binding in config.get("postgres_changes") or []]
        client.channels[message["topic"]] = channel
        await client.reply(message, "ok", {"postgres_changes": channel.bindings})
        await self._ready.wait()
        wants_word = (config.get("broadcast") or {}).get("replication_ready")
        if self.keeps_system_ok:
            return
        if channel.bindings:
            await client.system(channel, "ok", READY, "postgres_changes")
        elif wants_word:
            await client.system(channel, "ok", "Replication connection established")

    def _claims(self, token: str) -> Json:
        claims: Json = jwt.decode(token, self._secret, algorithms=["HS256"], options={"verify_aud": False})
        return claims

    # The database

    async def _read_database(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        async with connection:
            await connection.execute("listen realtime_stand_in")
            self._ready.set()
            async for hint in connection.notifies():
                kind, _, text = hint.payload.partition(" ")
                if kind == "change":
                    self._changed.set()
                elif not self.is_lossy:
                    await self._broadcast(json.loads(text))

    async def _broadcast(self, message: Json) -> None:
        payload = {key: message[key] for key in ("event", "payload")}
        payload |= {"type": "broadcast", "meta": {"id": message["id"]}}
        topic = f"realtime:{message['topic']}"
        for client in list(self._clients):
            channel = client.channels.get(topic)
            if channel and channel.is_private == message["private"]:
                await self._tell(client, topic, "broadcast", payload)

    async def _read_changes(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True, row_factory=dict_row) as reader:
            while await self._changed.wait():
                if self.poll_s:
                    await asyncio.sleep(self.poll_s - time.monotonic() % self.poll_s)
                self._changed.clear()
                cursor = await reader.execute("delete from realtime.changes returning *")
                for change in sorted(await cursor.fetchall(), key=lambda change: int(change["id"])):
                    if not self.is_lossy:
                        await self._tell_change(reader, change)

    async def _tell_change(self, reader: psycopg.AsyncConnection[Json], change: Json) -> None:
        data = {"schema": "public", "table": change["table"], "type": change["type"], "errors": None}
        data |= {"commit_timestamp": change["at"].isoformat(), "columns": [{"name": "bot_id", "type": "text"}]}
        data |= {"record": change["record"] or {}, "old_record": change["old_record"] or {}}
        for client in list(self._clients):
            for channel in list(client.channels.values()):
                ids = [b["id"] for b in channel.bindings if b.get("table") == change["table"]]
                if ids and await self._may_see(reader, channel.claims, change):
                    await self._tell(client, channel.topic, "postgres_changes", {"ids": ids, "data": data})

    async def _tell(self, client: Client, topic: str, event: str, payload: Json) -> None:
        for _ in range(0 if self.is_silent else self.copies):
            await client.say("realtime:elsewhere" if self.is_astray else topic, event, payload)

    async def _may_see(self, reader: psycopg.AsyncConnection[Json], claims: Json, change: Json) -> bool:
        """Whether this role sees this row, by row security; a row that is gone is told to everybody, as hosted."""
        row = change["record"]
        if row is None:
            return True
        keys = await reader.execute(
            "select a.attname from pg_index i"
            " join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)"
            " where i.indisprimary and i.indrelid = to_regclass('public.' || quote_ident(%s))",
            [change["table"]],
        )
        names = [key["attname"] for key in await keys.fetchall()]
        where = sql.SQL(" and ").join(sql.SQL("{}::text = {}").format(sql.Identifier(n), str(row[n])) for n in names)
        found = sql.SQL("select from {} where {}").format(sql.Identifier(change["table"]), where)
        return await self._finds(reader, claims, found)

    def may_join(self, claims: Json, topic: str) -> bool:
        """Whether row security lets this role join a private topic."""
        return asyncio.run(self._may_join(claims, topic))

    async def _may_join(self, claims: Json, topic: str) -> bool:
        """As hosted: a message is written, and looked for as this role, in a transaction that never was."""
        connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        async with connection, connection.transaction(force_rollback=True):
            await connection.execute("select set_config('realtime.topic', %s, true)", [topic])
            message = "insert into realtime.messages (topic, extension) values (%s, 'broadcast') returning id"
            row = await (await connection.execute(message, [topic])).fetchone()
            assert row
            found = sql.SQL("select from realtime.messages where id = {}").format(row[0])
            return await self._finds(connection, claims, found)

    async def _finds(self, connection: psycopg.AsyncConnection[Any], claims: Json, found: sql.Composed) -> bool:
        try:
            async with connection.transaction(force_rollback=True):
                await connection.execute(
                    "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)",
                    [claims["role"], json.dumps(claims)],
                )
                return (await connection.execute(found)).rowcount > 0
        except psycopg.errors.InsufficientPrivilege:
            return False
