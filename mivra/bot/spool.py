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
        self._path = folder / "unwritten.jsonl"
        self._refused = folder / "refused.jsonl"

    def load(self) -> list[Trade]:
        """The trades that an earlier process could not write."""
        if not self._path.exists():
            return []
        lines = self._path.read_bytes().splitlines()
        return [self._parse(number, line) for number, line in enumerate(lines, start=1)]

    def save(self, trades: Iterable[Trade]) -> None:
        """Replace the file at once and durably: after a power cut it is the old one or the new one."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.writelines(map(_line, trades))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        _sync_folder(self._path.parent)

    def clear(self) -> None:
        """All of them are in the database."""
        self._path.unlink(missing_ok=True)

    def refuse(self, trade: Trade) -> None:
        """Keep for a person what the database calls invalid."""
        with self._refused.open("ab") as file:
            file.write(_line(trade))
            file.flush()
            os.fsync(file.fileno())

    def _parse(self, number: int, line: bytes) -> Trade:
        try:
            return Trade.parse(msgspec.json.decode(line))
        except (msgspec.DecodeError, ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise ControlError(f"{self._path}, line {number} is damaged: {error}; repair it or move it away") from error


def _line(trade: Trade) -> bytes:
    return msgspec.json.encode(trade.as_json()) + b"\n"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
