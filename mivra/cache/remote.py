"""The Redis tier: shared by all processes, allowed to fail at any moment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.retry import Retry

from mivra.cache.breaker import Breaker
from mivra.cache.entry import NAMESPACE, Entry, Event, Spec, decode, encode, fence_key

log = logging.getLogger(__name__)

TIMEOUT_S = 0.05
"""A cache that answers later than this is slower than doing without."""
LOCK_MS = 15_000
"""Longer than the wait for a connection (5 s) and a statement (5 s) together may take."""
KEEP_MS = 24 * 3600 * 1000
"""A last good copy is kept for a day, for when the database is away."""

_LUA = Path(__file__).parent / "lua"
T = TypeVar("T")


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

    def __init__(self, url: str | None, breaker: Breaker | None = None) -> None:
        self._client = connect(url) if url else None
        self._breaker = breaker or Breaker()
        self._error = ""
        if self._client:
            self._store = self._client.register_script((_LUA / "store_fenced.lua").read_text())
            self._release = self._client.register_script((_LUA / "release.lua").read_text())

    def look(self, key: str, spec: Spec) -> tuple[Entry | None, tuple[int, ...]] | None:
        """The entry if there is one, and the fences of its events, in one round trip."""
        keys = [key, *(fence_key(event) for event in spec.events)]
        found = self._try(lambda client: client.mget(keys))
        if found is None:
            return None
        entry = decode(found[0], spec.type) if found[0] else None
        return entry, tuple(int(value or 0) for value in found[1:])

    def store(self, key: str, spec: Spec, entry: Entry) -> bool | None:
        """Whether it was written; False when an invalidation came during the load."""
        keys = [key, *(fence_key(event) for event in spec.events)]
        written = self._try(lambda client: self._store(keys, [encode(entry), KEEP_MS, *entry.fences], client))
        return None if written is None else bool(written)

    def lock(self, key: str, token: str) -> bool | None:
        """Whether the caller is the one that loads; the lock ends by itself should it die."""
        taken: bool | None = self._try(lambda client: bool(client.set(f"{key}:lock", token, nx=True, px=LOCK_MS)))
        return taken

    def unlock(self, key: str, token: str) -> None:
        self._try(lambda client: self._release([f"{key}:lock"], [token], client))

    def invalidate(self, event: Event) -> None:
        """Raise the fence: entries loaded before are stale, loads in flight may not write."""
        self._try(lambda client: client.incr(fence_key(event)))

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
        # One line an outage, not one a request.
        if self._breaker.closed:
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
        **options,
    )
    return redis.Redis(connection_pool=cast("Any", pool))
