"""The Redis or Valkey of REDIS_URL: alone, with sentinels, or a cluster; and what is said of it."""

from __future__ import annotations

import queue
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import msgspec
import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from mivra.cache.entry import NAMESPACE
from mivra.cache.primary import (
    FAILURES,
    Address,
    Finder,
    FoundConnection,
    FoundTLSConnection,
    NoPrimary,
    of_cluster,
    of_sentinel,
)
from mivra.errors import ConfigError

__all__ = ["FAILURES", "TIMEOUT_S", "Client", "RedisState", "ask", "connect", "explain"]

Client = redis.Redis

TIMEOUT_S = 0.05
"""A cache that answers later than this is slower than doing without."""

_SCHEMES = {
    "redis": "redis://:password@host:6379/0",
    "rediss": "rediss://:password@host:6379/0",
    "unix": "unix:///run/valkey.sock",
    "redis+sentinel": "redis+sentinel://:password@host:26379,host:26379/service/0",
    "rediss+sentinel": "rediss+sentinel://:password@host:26379,host:26379/service/0",
    "redis+cluster": "redis+cluster://:password@host:6379,host:6379",
    "rediss+cluster": "rediss+cluster://:password@host:6379,host:6379",
}


@dataclass(frozen=True, slots=True)
class RedisState:
    """What the pages say of the server; of a cluster, the node that has our keys. Sizes in bytes.

    max_memory is 0 without a limit; hit_rate is the server's own, over all its clients.
    """

    configured: bool
    available: bool
    detail: str
    used_memory: int | None = None
    max_memory: int | None = None
    eviction_policy: str | None = None
    keys: int | None = None
    evicted: int | None = None
    hit_rate: float | None = None


def connect(url: str) -> Client:
    """A client that fails fast: one try, 50 ms, and never more than 32 connections; options in the URL win.

    It connects when it is used, and always finds the primary anew when that moved. ConfigError when the URL is wrong.
    """
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        raise ConfigError(f"REDIS_URL must begin with {'://, '.join(_SCHEMES)}://; write {_SCHEMES['redis']}")
    base, _, kind = scheme.partition("+")
    part = "host or port"
    try:
        parts = urlsplit(url)
        login, at, hosts = parts.netloc.rpartition("@")
        given = [_given(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(",")]
        part = "path" if kind != "sentinel" else "service or database"
        service, database = _path(parts.path, kind) if base != "unix" else ("", 0)
        part = "option"
        pool = _pool(f"{base}://{login}{at}localhost/{database}?{parts.query}" if kind else url)
        if kind:
            _follow(pool, given, service)
        # An option that redis-py does not know would else be found by the first command.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, redis.RedisError):
        # The value may hold a password, so neither the sentence nor a cause repeats it.
        raise ConfigError(
            f"REDIS_URL has a wrong {part}; write {_SCHEMES[scheme]}, with special characters of a password as %XX"
        ) from None
    # Owns the pool, so that closing the client closes the connections.
    return redis.Redis.from_pool(cast("Any", pool))


def ask(client: Client) -> RedisState:
    """Ask the server about itself; raises one of FAILURES, redis.InvalidResponse when its answer makes no sense."""
    try:
        answer = client.info()
        info = msgspec.convert(answer, _Info)
        # Redis 8 adds db0_distrib_strings_sizes and the like.
        databases = [value for name, value in answer.items() if name.startswith("db") and name[2:].isdigit()]
        keys = sum(msgspec.convert(database, dict[str, int])["keys"] for database in databases)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise redis.InvalidResponse(str(error)) from error
    reads = info.keyspace_hits + info.keyspace_misses
    return RedisState(
        configured=True,
        available=True,
        detail=f"{info.server_name} {info.valkey_version or info.redis_version}"
        + (", node of a cluster" if info.cluster_enabled else ""),
        used_memory=info.used_memory,
        max_memory=info.maxmemory,
        eviction_policy=info.maxmemory_policy,
        keys=keys,
        evicted=info.evicted_keys,
        hit_rate=info.keyspace_hits / reads if reads else None,
    )


def explain(error: Exception) -> str:
    """What is wrong and what to do, in one sentence; never in the server's words, which may quote a password."""
    one: BaseException | None = error
    while one:
        for kind, words, sentence in _SENTENCES:
            if isinstance(one, kind) and words in str(one):
                return sentence
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    if isinstance(error, redis.ConnectionError):
        return "Redis ends the connection: is the port in REDIS_URL right, and does it want TLS (rediss://)?"
    return f"Redis fails: {type(error).__name__}" if isinstance(error, redis.RedisError | OSError) else _NOT_REDIS


class _Info(msgspec.Struct):
    """What is told of INFO; hosted servers leave some of it out."""

    redis_version: str | float
    server_name: str = "redis"
    valkey_version: str | float = ""
    cluster_enabled: int = 0
    used_memory: int | None = None
    maxmemory: int | None = None
    maxmemory_policy: str | None = None
    evicted_keys: int | None = None
    keyspace_hits: int = 0
    keyspace_misses: int = 0


def _given(host: str, port: int) -> Address:
    part = urlsplit(f"//{host}")
    return unquote(part.hostname or "localhost"), part.port or port


def _path(path: str, kind: str) -> tuple[str, int]:
    """The service and the database; ValueError when one is missing or too much."""
    service, _, database = path[1:].partition("/") if kind == "sentinel" else ("", "", path.strip("/"))
    if kind == "sentinel" and not service:
        raise ValueError
    return unquote(service), int(database or 0)


def _pool(url: str) -> BlockingConnectionPool:
    unix = url.startswith("unix:")
    options: dict[str, Any] = {} if unix else {"socket_connect_timeout": TIMEOUT_S}
    return BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0 if unix else 30,
        driver_info=None,
        # On by default: it relaxes the time-out to 10 s, and trusts a connection that has unread bytes.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **options,
    )


def _follow(pool: BlockingConnectionPool, given: list[Address], service: str) -> None:
    """Let the pool's connections find the primary: of the sentinels' service, or else of the cluster."""
    options, plain = pool.connection_kwargs, pool.connection_class
    if service:
        login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        finder = Finder(given, partial(plain, **{**options, **login, "db": 0}), partial(of_sentinel, service=service))
    else:
        finder = Finder(given, partial(plain, **options), of_cluster)
    options["finder"] = finder
    pool.connection_class = FoundTLSConnection if issubclass(plain, redis.SSLConnection) else FoundConnection


_NOT_REDIS = "What answers at REDIS_URL is not Redis"
_CLUSTER = "This is a Redis Cluster: write redis+cluster:// in REDIS_URL"
_MOVING = "The Redis Cluster moves our keys to another node; that ends by itself"
_TLS = "Redis and REDIS_URL do not agree about TLS: rediss:// is with it, redis:// without"
_SENTENCES: tuple[tuple[type[BaseException], str, str], ...] = (
    (redis.AuthenticationError, "", "Redis refuses the password in REDIS_URL, or the user, or wants one"),
    (exceptions.NoPermissionError, "", f"Redis allows the user in REDIS_URL too little: it needs {NAMESPACE}:*"),
    (redis.OutOfMemoryError, "", "Redis is full: raise maxmemory or choose an eviction policy such as allkeys-lru"),
    (redis.ReadOnlyError, "", "Redis is a read-only replica: point REDIS_URL to the primary"),
    (exceptions.MovedError, "", _CLUSTER),
    (redis.ResponseError, "SELECT is not allowed", _CLUSTER),
    (exceptions.ClusterDownError, "", "The Redis Cluster is down: too few of its nodes are up"),
    (exceptions.AskError, "", _MOVING),
    (exceptions.TryAgainError, "", _MOVING),
    (NoPrimary, "service", "The sentinels do not know the service in REDIS_URL"),
    (NoPrimary, "", "Redis has no primary for our keys at the moment; the next one is found by itself"),
    (redis.BusyLoadingError, "", "Redis is still loading its data; that ends by itself"),
    (redis.ResponseError, "cluster support disabled", "Redis is no cluster: write redis:// in REDIS_URL"),
    (redis.ResponseError, "HELLO", "Redis is older than 6: add ?protocol=2 to REDIS_URL"),
    (redis.ResponseError, "SENTINEL", "REDIS_URL names no sentinel: its port is usually 26379"),
    (redis.ResponseError, "unknown command", "REDIS_URL names a sentinel: write redis+sentinel://"),
    (redis.ResponseError, "DB index", "REDIS_URL names a database that Redis does not have"),
    (redis.ResponseError, "MISCONF", "Redis takes no writes since it cannot save to its disk: look into its log"),
    (redis.ResponseError, "DENIED", "Redis is in protected mode: give it a password and write it in REDIS_URL"),
    (redis.ConnectionError, "max number of clients", "Redis has too many clients: raise its maxclients"),
    (redis.InvalidResponse, "\\x15", _TLS),
    (redis.InvalidResponse, "", _NOT_REDIS),
    (queue.Empty, "", "All connections of this process to Redis are busy"),
    (ssl.SSLCertVerificationError, "", "Redis's certificate is not trusted: add ?ssl_ca_certs=/ca.pem to REDIS_URL"),
    (ssl.SSLError, "", _TLS),
    (socket.gaierror, "", "The host in REDIS_URL is not known"),
    (ConnectionRefusedError, "", "Nothing listens where Redis should: is it running, and the port in REDIS_URL right?"),
    (FileNotFoundError, "", "A file in REDIS_URL, the socket or a certificate, does not exist"),
    (PermissionError, "", "This program may not open the socket or the certificate in REDIS_URL"),
    (redis.TimeoutError, "", "Redis does not answer in time: is it far away (?socket_timeout=0.3), or without TLS?"),
)
"""The first that fits an error, or else what caused it, and whose words it has."""
