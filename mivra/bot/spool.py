"""Trades on disk while the database is away: JSON lines in the bot's folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from mivra.bot.trade import Trade
from mivra.errors import ControlError


class Spool:
    """A file with the trades that are not in the database yet, and one with those that it will never take."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "unwritten.jsonl"

    def load(self) -> list[Trade]:
        """The trades that an earlier process could not write."""
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        return [self._parse(number, line) for number, line in enumerate(lines, start=1)]

    def save(self, trades: Iterable[Trade]) -> None:
        """Replace the file at once and durably: after a power cut it is the old one or the new one."""
        fresh = self._path.with_suffix(".new")
        _write(fresh, "wb", trades)
        fresh.replace(self._path)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def clear(self) -> None:
        """All of them are in the database."""
        self._path.unlink(missing_ok=True)

    def refuse(self, trade: Trade) -> None:
        """Keep for a person what the database calls invalid."""
        _write(self._folder / "refused.jsonl", "ab", [trade])

    def _parse(self, number: int, line: bytes) -> Trade:
        try:
            return msgspec.json.decode(line, type=Trade)
        except ValueError as error:
            raise ControlError(f"{self._path}, line {number} is damaged: {error}; repair it or move it away") from error


def _write(path: Path, mode: str, trades: Iterable[Trade]) -> None:
    with path.open(mode) as file:
        file.writelines(msgspec.json.encode(trade) + b"\n" for trade in trades)
        file.flush()
        os.fsync(file.fileno())
