"""A database from scratch: whether one still waits for its first data, and how ours becomes empty again."""

from __future__ import annotations

from contextlib import suppress

from psycopg.conninfo import make_conninfo

from mivra.errors import InvalidData
from mivra.store.migrate import migrate
from mivra.store.postgres import connect, translated
from mivra.store.sample import load_sample


def load_sample_once(dsn: str) -> None:
    """Fill a database that has never had data; one that was emptied by hand stays empty."""
    with connect(dsn, "mivra sample") as connection, translated():
        row = connection.execute("select initialised from deployment").fetchone()
    if row and not row["initialised"]:
        # Somebody else may be faster, or may have brought in a history first: then there is nothing to do.
        with suppress(InvalidData):
            load_sample(dsn)


def reset(dsn: str) -> None:
    """Drop everything in the embedded database and make it anew, without sample data."""
    with connect(make_conninfo(dsn, dbname="postgres"), "mivra reset") as connection, translated():
        connection.execute("drop database mivra with (force)")
        connection.execute("create database mivra")
    migrate(dsn)
    with connect(dsn, "mivra reset") as connection, translated():
        connection.execute("update deployment set initialised = true")
