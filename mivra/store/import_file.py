"""A file of trades: its columns, its records by physical line, and the file of those that were refused."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from mivra.errors import TradeImportError
from mivra.store.import_rows import COLUMNS

LINE_LIMIT = 1_000_000
"""Characters of one line in memory: a file without line ends is not read whole."""
ALIASES = {
    "valor": "stake",
    "profit_esperado": "payout_rate",
    "resultado": "result",
    "data_abertura": "opened_at",
    "data_expiracao": "expires_at",
    "ativo_nome": "asset",
    "user_email": "email",
}
"""Names of the platform before this one, to ours."""
REQUIRED = (
    "external_id, user_id or email, asset, direction, stake, payout_rate, result, opened_at, "
    "expires_at or expiration_seconds"
)
FORMULA = re.compile(r"[=+\-@\t\r]")
PLAIN_NUMBER = re.compile(r"[+-]?[\d.,]+", re.ASCII)


class TradesFile:
    """An open CSV file; its records can be read more than once."""

    def __init__(self, path: Path, raw: io.BufferedReader) -> None:
        if b"\0" in raw.peek(4096):
            raise TradeImportError(f"{path} is not a text file; save it as CSV UTF-8")
        self.path, self.size, self.position = path, path.stat().st_size, raw.tell
        self._text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        first_line = next((line for line in self._lines() if line.strip()), None)
        if first_line is None:
            raise TradeImportError(f"{path} is empty")
        self.delimiter = max(",;\t", key=first_line.count)
        _, self.header = next(self._read())
        self.columns = _columns(path, self.header)

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """The first physical line and the cells of each record after the header; blank lines are none."""
        records = self._read()
        next(records)
        return records

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        lines = csv.reader(self._lines(), delimiter=self.delimiter)
        line = 1
        try:
            for cells in lines:
                if cells:
                    yield line, cells
                line = lines.line_num + 1
        except csv.Error as error:
            raise TradeImportError(f"{self.path}: the record at line {line} cannot be read ({error})") from error

    def _lines(self) -> Iterator[str]:
        self._text.seek(0)
        return iter(partial(self._text.readline, LINE_LIMIT), "")


def write_rejects(target: Path, file: TradesFile, reasons: Iterable[tuple[int, str]]) -> None:
    """The refused records with their line and reason, which come in the order of the lines."""
    if target.resolve() == file.path.resolve():
        raise TradeImportError(f"{target} is the file to import; choose another one for the rejects")
    # The byte order mark and the file's own delimiter: a spreadsheet that opens the one opens the other.
    with target.open("w", encoding="utf-8-sig", newline="") as out:
        writer = csv.writer(out, delimiter=file.delimiter)
        writer.writerow(["line", "reason", *map(_inert, file.header)])
        records = file.records()
        for line, reason in reasons:
            cells = next(cells for at, cells in records if at == line)
            writer.writerow([line, *map(_inert, (reason, *cells))])


def _columns(path: Path, header: list[str]) -> dict[str, tuple[int, str]]:
    """Position and name in the file of each of our columns; columns that we do not know are left alone."""
    found: dict[str, tuple[int, str]] = {}
    for position, name in enumerate(map(str.strip, header)):
        column = ALIASES.get(name.lower(), name.lower())
        if column in found:
            raise TradeImportError(f"{path} has two columns for {column}: {found[column][1]} and {name}")
        if column in COLUMNS:
            found[column] = (position, name)
    missing = [names for names in REQUIRED.split(", ") if found.keys().isdisjoint(names.split(" or "))]
    if missing:
        seen = ", ".join(map(str.strip, header))
        raise TradeImportError(f"{path} lacks the column {', '.join(missing)}; its columns are {seen[:500]}")
    return found


def _inert(cell: str) -> str:
    # A spreadsheet runs what begins like a formula; a negative number stays one, so that a corrected file can be read.
    return f"'{cell}" if FORMULA.match(cell) and not PLAIN_NUMBER.fullmatch(cell) else cell
