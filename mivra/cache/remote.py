"""The Redis tier: shared by all processes, allowed to fail at any moment."""

from __future__ import annotations

import itertools
import logging
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import redis
from redis import exceptions

from mivra.cache.breaker import Breaker
from mivra.cache.entry import NAMESPACE, Entry, Event, Query, decode, encode, fence_key
from mivra.cache.server import FAILURES, TIMEOUT_S, RedisState, ask, connect, explain

log = logging.getLogger(__name__)

LOCK_MS = 11_000
"""Longer than a connection (5 s) and a statement (5 s), shorter than a reader waits for a process that died (12 s)."""
KEEP_S = 24 * 3600
"""A last good copy is kept, and shown, for a day: for when the database is away."""
LOCKS_KEPT = 100
"""Locks to give back after an outage; more have expired by then."""
NEW_SERVER_S = 60.0
"""In this time all processes have found out that the server is another one."""
QUIET_S = 60.0
"""One line in the log a minute of an outage, not one a request."""
RESTS = b"!"
"""What the value of a lock begins with while its key rests after a failed load; then follows why."""
CHANNEL = f"{NAMESPACE}:hints"
"""What changed, for the other processes: empty for fences, + and a key for an entry, - and a pattern to forget."""

_RUN = re.compile(rb"run_id:(\w+)")
"""Another one after each start of a server, and in each server."""
_LUA = Path(__file__).parent / "lua"


class Look(NamedTuple):
    """What Redis knows of one key."""

    entry: Entry | None
    fences: tuple[bytes, ...]
    problem: str | None
    """Why the last load failed, while the key rests from it."""


class Wait(NamedTuple):
    """What became of fences that should move."""

    seconds: float
    """Until it may be tried again; 0 when they moved."""
    moved: bool
    """Whether this call moved them, and not another process since."""
    fences: tuple[bytes, ...]
    """Those of now; empty ones when Redis is away."""


class RemoteTier:
    """Every method says by None or False that Redis is away; none raises."""

    def __init__(self, url: str | None, *, lock_ms: int = LOCK_MS) -> None:
        self._client = connect(url) if url else None
        self.breaker = Breaker()
        self._lock_ms = lock_ms
        self._groups: set[str] = set(get_args(Event))
        self._owed: set[tuple[str, int]] = set()
        self._debts = itertools.count()
        self._settling = threading.Lock()
        self._tried: set[str] = set()
        self._kept_locks: dict[str, str] = {}
        self._error = ""
        self._quiet_until = 0.0
        self._server: list[bytes] = []
        self._new_server: list[bytes] = []
        if self._client:
            self._client.connection_pool.connection_kwargs["redis_connect_func"] = self._on_connect
            self._store, self._release, self._move = (
                self._client.register_script((_LUA / f"{name}.lua").read_text())
                for name in ("store_fenced", "release", "move_fences")
            )

    def look(self, query: Query) -> Look | None:
        """The entry if there is one, and the fences of its groups, in one round trip.

        Redis is away for as long as it has not taken every invalidation: its entries would look fresh.
        """
        self._groups.update(query.spec.groups)
        keys = [query.key, f"{query.key}:lock"]
        found = self.attempt(lambda client: _get(client, keys, query.spec.groups)) if self._settle() else None
        if found is None or self._new_server:
            return None
        data, lock, *fences = found
        problem = lock[1:].decode(errors="replace") if lock and lock.startswith(RESTS) else None
        return Look(decode(data, query.key, query.spec.type) if data else None, tuple(fences), problem)

    def store(self, query: Query, entry: Entry) -> bool | None:
        """Whether it was written; False when an invalidation came during the load."""
        keys = [query.key, *map(fence_key, query.spec.groups)]
        arguments: list[Any] = [encode(query.key, entry), KEEP_S * 1000, CHANNEL, *entry.fences]
        written = self.attempt(lambda client: self._store(keys, arguments, client))
        return None if written is None else bool(written)

    def lock(self, key: str, token: str) -> bool | None:
        """Whether the caller is the one that loads; the lock ends by itself should it die."""

        def take(client: redis.Redis) -> bool:
            self._tried.add(token)
            return bool(client.set(f"{key}:lock", token, nx=True, px=self._lock_ms))

        taken: bool | None = self.attempt(take)
        if taken is not True and token in self._tried:
            self._tried.discard(token)
            if taken is None:
                # It may have been taken. Whoever asked waited once already.
                self._keep_lock(key, token)
        return taken

    def unlock(self, key: str, token: str, rest_s: float = 0.0, problem: str = "") -> None:
        """Give the lock back if it was taken, or let the key rest, and say why; made up for when it fails."""
        if token in self._tried:
            self._tried.discard(token)
            self._give_back(key, token, rest_s, problem)

    def invalidate(self, groups: Iterable[str]) -> None:
        """Move fences: entries loaded before are stale, loads in flight may not write. Made up for when it fails."""
        self._owe(tuple(groups))
        self._settle()

    def announce(self, seen: Mapping[str, bytes], interval_s: float) -> Wait | None:
        """Move fences, at most once an interval over all processes; not those that differ from what was seen.

        None when Redis is away: then it is made up for, as with invalidate.
        """
        if self._settle():
            wait = self._moved(seen, interval_s)
            if wait:
                return wait
        self._owe(tuple(seen))
        return None

    def fences(self, groups: Iterable[str]) -> dict[str, bytes] | None:
        """The fences of now."""
        names = tuple(groups)
        if not self._settle():
            return None
        found = self.attempt(lambda client: _get(client, [], names)) if names else []
        return None if found is None or self._new_server else dict(zip(names, found, strict=True))

    def hints(self, stopping: threading.Event, wait_s: float) -> Iterator[str | None]:
        """What other processes changed, as it comes; None when nothing did for wait_s. See CHANNEL for the words.

        Empty also first and after each connection that was lost: then hints may have been missed.
        """
        while not stopping.is_set():
            if self._client and self.breaker.closed:
                with closing(cast("Any", self._client).pubsub()) as subscription:
                    try:
                        while not stopping.is_set():
                            yield _hear(subscription, wait_s)
                    except FAILURES as error:
                        self._failed(error)
            stopping.wait(wait_s)
            yield None

    def state(self) -> RedisState:
        """Ask the server about itself."""
        if not self._client:
            return RedisState(False, False, "No Redis: each process caches for itself")
        # One late answer is no outage.
        found: RedisState | None = self.attempt(ask) or self.attempt(ask)
        return found or RedisState(True, False, self._error)

    def close(self) -> None:
        if self._client:
            self._client.close()

    def attempt(self, action: Callable[[Any], Any]) -> Any:
        """What the action returns; None when Redis is away, or fails in it. It never raises."""
        if self._client is None or not self.breaker.allow():
            return None
        try:
            result = action(self._client)
        except FAILURES as error:
            self._failed(error)
            return None
        self.breaker.succeeded()
        return result

    def _on_connect(self, connection: Any) -> None:
        """A server that started anew may have less than it had: old entries beside old fences."""
        connection.on_connect()
        connection.send_command("INFO", "server")
        try:
            server = _RUN.findall(_strings([connection.read_response()], 1)[0] or b"")
        except exceptions.NoPermissionError:
            return
        if self._server and server != self._server:
            self._new_server = server
        self._server = server

    def _owe(self, groups: Iterable[str]) -> None:
        self._groups.update(groups)
        # What is owed again while it is paid is another debt; else one is enough.
        known = set() if self._settling.locked() else {group for group, _ in set(self._owed)}
        self._owed.update((group, next(self._debts)) for group in groups if group not in known)

    def _settle(self) -> bool:
        """Make up for what failed; whether Redis is up to date. Others wait for the thread that does it."""
        if self._owed or self._new_server:
            if not self._settling.acquire(timeout=TIMEOUT_S):
                return False
            try:
                if not self._pay():
                    return False
            finally:
                self._settling.release()
        with suppress(KeyError):
            # One a call: each may have to wait.
            token, key = self._kept_locks.popitem()
            self._give_back(key, token)
        return True

    def _pay(self) -> bool:
        """What is owed stays so until it is paid: until then nothing of Redis is believed."""
        if server := self._new_server:
            # Once over all processes: with an interval, whoever comes first has done it for all.
            gate = f"server:{server[0].decode(errors='replace')}"
            if not self._moved(dict.fromkeys(self._groups, b""), NEW_SERVER_S, gate):
                return False
            if self._new_server is server:
                self._new_server = []
        owed = set(self._owed)
        if owed and not self._moved({group: b"" for group, _ in owed}, 0):
            return False
        self._owed -= owed
        return True

    def _moved(self, seen: Mapping[str, bytes], interval_s: float, gate: str = "gate") -> Wait | None:
        keys = [f"{NAMESPACE}:{gate}", *map(fence_key, seen)]
        arguments: list[Any] = [_fence(), int(interval_s * 1000), CHANNEL, *seen.values()]
        wait: Wait | None = self.attempt(lambda client: _wait(self._move(keys, arguments, client), len(seen)))
        return wait

    def _give_back(self, key: str, token: str, rest_s: float = 0.0, problem: str = "") -> None:
        arguments: list[Any] = [token, int(rest_s * 1000), RESTS + problem.encode(errors="replace")]
        if self.attempt(lambda client: self._release([f"{key}:lock"], arguments, client)) is None:
            self._keep_lock(key, token)

    def _keep_lock(self, key: str, token: str) -> None:
        self._kept_locks[token] = key
        if len(self._kept_locks) > LOCKS_KEPT:
            self._kept_locks.clear()

    def _failed(self, error: Exception) -> None:
        self._error = explain(error)
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_S
            log.warning("%s", self._error)
        # That all connections are busy says nothing of the server.
        if not isinstance(error.__cause__, queue.Empty):
            self.breaker.failed()


def _get(client: redis.Redis, keys: list[str], groups: tuple[str, ...]) -> list[Any]:
    """Values and fences; a fence that was lost becomes a new one, since entries from before it may be back."""
    fences = [fence_key(group) for group in groups]
    found = _strings(client.mget([*keys, *fences]), len(keys) + len(fences))
    if None in found[len(keys) :]:
        for fence in fences:
            client.set(fence, _fence(), nx=True)
        found = _strings(client.mget([*keys, *fences]), len(keys) + len(fences))
    return found


def _strings(answer: object, length: int) -> list[Any]:
    """The answer to MGET; an answer out of turn, or somebody else's server, is a failure."""
    if not isinstance(answer, list) or len(answer) != length:
        raise redis.InvalidResponse
    if not all(one is None or isinstance(one, bytes) for one in answer):
        raise redis.InvalidResponse
    return answer


def _wait(answer: object, length: int) -> Wait:
    match answer:
        case [int(milliseconds), int(moved), *fences]:
            return Wait(max(0, milliseconds) / 1000, bool(moved), tuple(_strings(fences, length)))
    raise redis.InvalidResponse


def _hear(subscription: Any, wait_s: float) -> str | None:
    if not subscription.subscribed:
        subscription.subscribe(CHANNEL)
    message = subscription.get_message(timeout=wait_s)
    if message is None:
        return None
    data = message.get("data")
    return data.decode(errors="replace") if isinstance(data, bytes) else ""


def _fence() -> bytes:
    """Never the same again, whatever the server forgets; a counter would come back to where it was."""
    return uuid.uuid4().hex.encode()
