"""The Redis tier: shared by all processes, allowed to fail at any moment."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from mivra.cache.breaker import Breaker
from mivra.cache.entry import NAMESPACE, Entry, Event, Spec, decode, encode, fence_key

log = logging.getLogger(__name__)

TIMEOUT_S = 0.05
"""A cache that answers later than this is slower than doing without."""
LOCK_MS = 11_000
"""Longer than a connection (5 s) and a statement (5 s), shorter than a reader waits for a process that died (12 s)."""
KEEP_MS = 24 * 3600 * 1000
"""A last good copy is kept for a day, for when the database is away."""
LOCKS_KEPT = 100
"""Locks to give back after an outage; more have expired by then."""
QUIET_S = 60.0
"""One line in the log a minute of an outage, not one a request."""

_LUA = Path(__file__).parent / "lua"


@dataclass(frozen=True, slots=True)
class RedisState:
    """What the pages say of the server. Sizes in bytes; hit_rate is the server's own, over all its clients."""

    configured: bool
    available: bool
    detail: str
    used_memory: int | None = None
    keys: int | None = None
    evicted: int | None = None
    hit_rate: float | None = None


class RemoteTier:
    """Every method says by None or False that Redis is away; none raises."""

    def __init__(self, url: str | None, breaker: Breaker | None = None, *, lock_ms: int = LOCK_MS) -> None:
        self._client = connect(url) if url else None
        self._breaker = breaker or Breaker()
        self._lock_ms = lock_ms
        self._owed: set[Event] = set()
        self._tried: set[str] = set()
        self._kept_locks: dict[str, str] = {}
        self._error = ""
        self._quiet_until = 0.0
        if self._client:
            self._store = self._client.register_script((_LUA / "store_fenced.lua").read_text())
            self._release = self._client.register_script((_LUA / "release.lua").read_text())

    def look(self, key: str, spec: Spec) -> tuple[Entry | None, tuple[bytes, ...]] | None:
        """The entry if there is one, and the fences of its events, in one round trip.

        Redis is away for as long as it has not taken every invalidation: its entries would look fresh.
        """
        found = self._try(lambda client: _get(client, key, spec)) if self._settle() else None
        if found is None:
            return None
        entry = decode(found[0], spec.type) if found[0] else None
        return entry, tuple(found[1:])

    def store(self, key: str, spec: Spec, entry: Entry) -> bool | None:
        """Whether it was written; False when an invalidation came during the load."""
        keys = [key, *(fence_key(event) for event in spec.events)]
        written = self._try(lambda client: self._store(keys, [encode(entry), KEEP_MS, *entry.fences], client))
        return None if written is None else bool(written)

    def lock(self, key: str, token: str) -> bool | None:
        """Whether the caller is the one that loads; the lock ends by itself should it die."""

        def take(client: redis.Redis) -> bool:
            self._tried.add(token)
            return bool(client.set(f"{key}:lock", token, nx=True, px=self._lock_ms))

        taken: bool | None = self._try(take)
        if taken is False:
            self._tried.discard(token)
        return taken

    def unlock(self, key: str, token: str) -> None:
        """Give the lock back if it was, or may have been, taken. Made up for when it fails: others would wait."""
        if token in self._tried:
            self._tried.discard(token)
            self._give_back(key, token)

    def invalidate(self, event: Event) -> None:
        """Move the fence: entries loaded before are stale, loads in flight may not write. Made up for when it fails."""
        self._owed.add(event)
        self._settle()

    def state(self) -> RedisState:
        """Ask the server about itself."""
        if not self._client:
            return RedisState(False, False, "No Redis: each process caches for itself")
        info = self._try(lambda client: client.info())
        if info is None:
            return RedisState(True, False, f"Redis is away: {self._error}; each process caches for itself")
        hits, misses = info["keyspace_hits"], info["keyspace_misses"]
        return RedisState(
            configured=True,
            available=True,
            detail=f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}",
            used_memory=info["used_memory"],
            keys=sum(database["keys"] for name, database in info.items() if name.startswith("db")),
            evicted=info["evicted_keys"],
            hit_rate=hits / (hits + misses) if hits + misses else None,
        )

    def clear(self) -> None:
        """Remove our keys, and only ours, without blocking the server."""

        def scan_and_unlink(client: redis.Redis) -> bool:
            for key in client.scan_iter(match=f"{NAMESPACE}:*", count=500):
                client.unlink(key)
            return True

        self._try(scan_and_unlink)

    def close(self) -> None:
        if self._client:
            self._client.close()

    def _settle(self) -> bool:
        """Make up for what failed; whether Redis knows of every invalidation."""
        for event in tuple(self._owed):
            # Taken out first: the same event may come again while its fence is on its way.
            self._owed.discard(event)
            if not self._move(event):
                self._owed.add(event)
                return False
        for token in tuple(self._kept_locks):
            if key := self._kept_locks.pop(token, None):
                self._give_back(key, token)
        return True

    def _give_back(self, key: str, token: str) -> None:
        if self._try(lambda client: self._release([f"{key}:lock"], [token], client)) is None:
            self._kept_locks[token] = key
            if len(self._kept_locks) > LOCKS_KEPT:
                self._kept_locks.clear()

    def _move(self, event: Event) -> bool:
        return bool(self._try(lambda client: client.set(fence_key(event), _fence())))

    def _try(self, action: Callable[[redis.Redis], Any]) -> Any:
        if self._client is None or not self._breaker.allow():
            return None
        try:
            result = action(self._client)
        except (redis.RedisError, OSError) as error:
            self._failed(error)
            return None
        self._breaker.succeeded()
        return result

    def _failed(self, error: Exception) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_S
            log.warning("Redis failed: %s", error)
        self._error = f"{type(error).__name__}: {error}"
        self._breaker.failed()


def connect(url: str) -> redis.Redis:
    """A client that fails fast: one try, 50 ms, and never more than 32 connections."""
    options: dict[str, Any] = {} if url.startswith("unix:") else {"socket_connect_timeout": TIMEOUT_S}
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=0.25,
        socket_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0 if url.startswith("unix:") else 30,
        driver_info=None,
        # On by default: it relaxes the time-out to 10 s, and trusts a connection that has unread bytes.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **options,
    )
    # Owns the pool, so that closing the client closes the connections.
    return redis.Redis.from_pool(cast("Any", pool))


def _get(client: redis.Redis, key: str, spec: Spec) -> list[Any]:
    """The entry and the fences; a fence that was lost becomes a new one, since entries from before it may be back."""
    fences = [fence_key(event) for event in spec.events]
    found = cast("list[Any]", client.mget([key, *fences]))
    if None in found[1:]:
        for fence in fences:
            client.set(fence, _fence(), nx=True)
        found = cast("list[Any]", client.mget([key, *fences]))
    return found


def _fence() -> bytes:
    """Never the same again, whatever the server forgets; a counter would come back to where it was."""
    return uuid.uuid4().hex.encode()
