"""JSON lines, as a bot, its executor and the fork server speak them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_LINE = 65_536
"""A line longer than a pipe holds is no message."""


class Lines:
    """Bytes as they come, JSON objects as they are whole; what is no object is left out."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[-MAX_LINE:]
        return [message for line in lines if (message := _parse(line)) is not None]


def encoded(message: Mapping[str, Any]) -> bytes:
    """The line of a message; no character takes more than four bytes, but for quotes and control characters."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
