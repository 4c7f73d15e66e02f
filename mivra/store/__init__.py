"""The database: one function opens it, embedded or the operator's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mivra.config import Settings
from mivra.store.base import Row, Store, one
from mivra.store.postgres import PostgresStore

__all__ = ["Row", "Store", "database", "one", "open_store", "server_urls"]


@contextmanager
def server_urls(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """URLs of Postgres and Redis for as long as this process uses them: the operator's own, else the embedded ones."""
    if settings.database_url and settings.redis_url:
        yield settings.database_url, settings.redis_url
        return
    from mivra.store.embedded import start  # noqa: PLC0415 - who has servers of their own need not have the wheels

    servers = start(settings.home)
    try:
        yield settings.database_url or servers.database_url, settings.redis_url or servers.redis_url
    finally:
        servers.close()


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """URL of Postgres for as long as this process uses it; in a forked child the embedded one gets a user more."""
    if settings.database_url:
        yield settings.database_url
        return
    with server_urls(settings) as (url, _redis_url):
        yield url


@contextmanager
def open_store(settings: Settings, *, application: str, max_connections: int = 8) -> Iterator[Store]:
    """A store for as long as the block lasts."""
    with database(settings) as url:
        store = PostgresStore(url, max_connections=max_connections, application=application)
        try:
            yield store
        finally:
            store.close()
