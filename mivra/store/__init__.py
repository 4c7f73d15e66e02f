"""The database: one function opens it, embedded, the operator's own, or a Supabase project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

from mivra.config import Settings
from mivra.errors import ConfigError
from mivra.store.base import Row, Store, Watcher, one
from mivra.store.calls import ignore
from mivra.store.postgres import PostgresStore

__all__ = ["Row", "Store", "check_identity", "connected", "database", "one", "open_store", "server_urls"]


@contextmanager
def server_urls(settings: Settings) -> Iterator[tuple[str | None, str | None]]:
    """URLs of Postgres and Redis for as long as this process uses them: the operator's own, else the embedded ones.

    Where the operator's own Postgres cannot be reached directly, only through a pooler or PostgREST, it has none.
    """
    if not settings.embedded and settings.redis_url:
        yield settings.database_url, settings.redis_url
        return
    from mivra.store.embedded import start  # noqa: PLC0415 - who has servers of their own need not have the wheels

    servers = start(settings.home)
    try:
        database_url = servers.database_url if settings.embedded else settings.database_url
        yield database_url, settings.redis_url or servers.redis_url
    finally:
        servers.close()


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """URL of Postgres for as long as this process uses it; in a forked child the embedded one gets a user more."""
    if settings.database_url:
        yield settings.database_url
        return
    if not settings.embedded:
        raise ConfigError("This needs DATABASE_URL: a direct or session connection to the database, port 5432")
    with server_urls(settings) as (url, _redis_url):
        assert url  # noqa: S101 - the embedded one has one
        yield url


def connected(
    settings: Settings,
    database_url: str | None,
    *,
    application: str,
    max_connections: int = 8,
    watch: Watcher = ignore,
) -> Store:
    """A store by the best way there is: the pooler, a connection of its own, else PostgREST."""
    if url := settings.pooler_url or database_url:
        pooled = bool(settings.pooler_url)
        return PostgresStore(url, max_connections=max_connections, application=application, pooled=pooled, watch=watch)
    from mivra.store.supabase import SupabaseStore  # noqa: PLC0415 - 0.6 s of imports that nobody else needs

    assert settings.supabase_url  # noqa: S101 - settings without any database are the embedded one's
    assert settings.supabase_secret_key  # noqa: S101 - load() refuses that
    return SupabaseStore(
        settings.supabase_url, settings.supabase_secret_key, max_connections=max_connections, watch=watch
    )


def check_identity(store: Store) -> None:
    """ConfigError when it gets lost for whom is asked: who asks for nobody is the program, and may everything."""
    if not one(store.on_behalf_of(uuid4()).call("database_facts"))["on_behalf"]:
        raise ConfigError(
            "The database is not told for whom the dashboard asks, so nothing is served: what stands before "
            "SUPABASE_URL drops the header x-mivra-operator; let it pass, or set DATABASE_URL or POOLER_URL"
        )


@contextmanager
def open_store(settings: Settings, *, application: str, max_connections: int = 8) -> Iterator[Store]:
    """A store for as long as the block lasts."""
    with ExitStack() as closing:
        url = closing.enter_context(server_urls(settings))[0] if settings.embedded else settings.database_url
        store = connected(settings, url, application=application, max_connections=max_connections)
        closing.callback(store.close)
        yield store
