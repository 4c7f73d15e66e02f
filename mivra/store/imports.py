"""An operator's own history from a CSV file into trade_history: once, however often it is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg

from mivra.errors import Conflict, InvalidData, TradeImportError
from mivra.store.base import Row, one
from mivra.store.import_file import TradesFile, write_rejects
from mivra.store.import_rows import RowReader
from mivra.store.postgres import connect, translated

Progress = Callable[[int, int], None]
Connection = psycopg.Connection[Row]

PROGRESS_ROWS = 2_000
"""Rows between two reports: several a second."""
STAGE, JUDGE, WRITE = (Path(__file__).with_name(f"import_{name}.sql") for name in ("stage", "judge", "write"))
COPY = "copy staged from stdin"
REJECTED = "select line, reason from staged where reason is not null order by line"


@dataclass(frozen=True, slots=True)
class ImportSummary:
    read: int
    """Records of the file; read = imported + already_there + rejected, unless strict kept all of them out."""
    imported: int
    already_there: int
    rejected: int
    rejects_file: Path | None
    """Where the refused records are; None when there are none."""


def import_trades(
    dsn: str,
    path: Path,
    *,
    account_type: str | None = None,
    strict: bool = False,
    rejects: Path | None = None,
    timezone: str = "UTC",
    progress: Progress | None = None,
) -> ImportSummary:
    """All good rows of the file in one transaction; with `strict` none when one is bad.

    import_rows says how the file is read. `account_type` is for rows without one, `timezone` for times without an
    offset. A trade that is already there (by external_id) is counted and stays as it is; unknown users get a profile,
    signed up when their first trade opened. Refused records go to `rejects`, by default <path>.rejects.csv. `progress`
    is called with the bytes read and all bytes. Raises TradeImportError, or StoreError when the database cannot be
    used.
    """
    target = rejects or path.with_name(f"{path.name}.rejects.csv")
    with _opened(path) as file, connect(dsn, "mivra import") as connection:
        reader = RowReader(file.columns, len(file.header), account_type=account_type, zone=ZoneInfo(timezone))
        with translated(), connection.transaction():
            read = _stage(connection, file, reader, progress)
            rejected = _reject(connection, file, target)
            if strict and rejected:
                return ImportSummary(read, 0, 0, rejected, target)
            imported = connection.execute(WRITE.read_bytes()).set_result(-1).rowcount
    return ImportSummary(read, imported, read - rejected - imported, rejected, target if rejected else None)


@contextmanager
def _opened(path: Path) -> Iterator[TradesFile]:
    """The file; whatever is wrong with it or its rows is told in one sentence."""
    try:
        if path.exists() and not path.is_file():
            raise TradeImportError(f"{path} is not a file")
        with path.open("rb") as raw:
            yield TradesFile(path, raw)
    except UnicodeDecodeError as error:
        raise TradeImportError(f"{path} is not text in UTF-8; save it as CSV UTF-8") from error
    except OSError as error:
        raise TradeImportError(f"{error.filename or path} cannot be used: {error.strerror}") from error
    except (InvalidData, Conflict) as error:
        raise TradeImportError(f"{path}: nothing was imported, the database refused a row: {error}") from error


def _stage(connection: Connection, file: TradesFile, reader: RowReader, progress: Progress | None) -> int:
    """Copy every record into the temporary table, a bad one as its line and reason; how many there are."""
    connection.execute(STAGE.read_bytes())
    read = 0
    with connection.cursor() as cursor, cursor.copy(COPY) as copy:
        for line, cells in file.records():
            reason, row = reader.read(cells)
            copy.write_row((line, reason, *row.values()))
            read += 1
            if progress and read % PROGRESS_ROWS == 0:
                progress(file.position(), file.size)
    if progress:
        progress(file.size, file.size)
    return read


def _reject(connection: Connection, file: TradesFile, target: Path) -> int:
    """Find what occurs twice and write the rejects file; how many records are in it."""
    rejected: int = one(connection.execute(JUDGE.read_bytes()).set_result(-1).fetchall())["rejected"]
    if rejected:
        with connection.cursor("rejected") as cursor:
            write_rejects(target, file, ((row["line"], row["reason"]) for row in cursor.execute(REJECTED)))
    return rejected
