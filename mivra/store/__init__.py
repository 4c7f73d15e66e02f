"""The database: one function opens it, embedded or the operator's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mivra.config import Settings
from mivra.store.base import Row, Store, one
from mivra.store.postgres import PostgresStore

__all__ = ["Row", "Store", "one", "open_store", "server_urls"]


@contextmanager
def server_urls(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """URLs of Postgres and Redis for as long as this process uses them: the operator's own, else the embedded ones."""
    if settings.database_url and settings.redis_url:
        yield settings.database_url, settings.redis_url
        return
    from mivra.store import embedded  # noqa: PLC0415 - a deployment with its own servers need not have the wheels

    servers = embedded.start(settings.home)
    try:
        yield settings.database_url or servers.database_url, settings.redis_url or servers.redis_url
    finally:
        servers.close()


@contextmanager
def open_store(settings: Settings, *, application: str, max_connections: int = 8) -> Iterator[Store]:
    """A store for as long as the block lasts; in a forked child it becomes a user of the embedded servers by itself."""
    with server_urls(settings) as (database_url, _):
        store = PostgresStore(database_url, max_connections=max_connections, application=application)
        try:
            yield store
        finally:
            store.close()
