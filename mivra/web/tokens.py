"""Tokens of the HTTP API: random text that only its holder has, its SHA-256 in the database; an answer counts 5 s."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from mivra.errors import MivraError, StoreUnavailable
from mivra.store import Row, Store
from mivra.web.sessions import Role

FRESH_S: Final = 5.0
"""For so long an answer of the database counts: a token that was revoked is nobody's a few seconds later."""
BELIEVED_S: Final = 600.0
"""For so long a token may read what this process knows while the database is away; it writes nothing."""
NOBODYS: Final = 1_000
"""Remembered of what is nobody's, for good, since no token is given twice: who goes on with one costs nothing."""

_SHAPE: Final = re.compile(r"mivra_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Token:
    """A program that may ask."""

    token_id: UUID
    name: str
    role: Role

    @property
    def actor(self) -> str:
        """As the audit trail has it."""
        return f"token:{self.name}"


@dataclass(slots=True)
class Known:
    token: Token
    due: float
    confirmed_at: float


class Tokens:
    """Those of one database. recall() and refuse() are for one thread alone, the event loop's; find() for any."""

    def __init__(
        self, store: Callable[[], Store], is_away: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """is_away: the database did not answer others a moment ago, so that nobody waits to hear it again."""
        self._store = store
        self._is_away = is_away
        self._clock = clock
        # Of those that the database has: no stranger can fill it.
        self._known: dict[str, Known] = {}
        self._nobodys: dict[str, None] = {}

    def recall(self, text: str, *, to_write: bool = False) -> tuple[Token | None, bool]:
        """The token as it is remembered, and whether that is fresh enough; never blocks.

        Of all who ask at the same time one is told that it is not fresh: the others believe it meanwhile. Of those that
        are to write, each: they need an answer of the database.
        """
        if not _SHAPE.fullmatch(text) or (key := hashed(text)) in self._nobodys:
            return None, True
        if (known := self._known.get(key)) is None:
            return None, False
        if to_write:
            return known.token, not self._is_away() and self._clock() < known.confirmed_at + FRESH_S
        if is_due := self._clock() >= known.due:
            known.due = self._clock() + FRESH_S
        return known.token, not is_due

    def refuse(self, text: str) -> None:
        """find() has said that it is nobody's."""
        while len(self._nobodys) >= NOBODYS:
            del self._nobodys[next(iter(self._nobodys))]
        self._nobodys[hashed(text)] = None

    def find(self, text: str, *, to_write: bool = False) -> Token | None:
        """The token as the database has it now, None when it is nobody's; MivraError when that cannot be known."""
        key = hashed(text)
        try:
            rows = self._ask(key)
        except MivraError:
            known = self._known.get(key)
            if to_write or known is None or self._clock() > known.confirmed_at + BELIEVED_S:
                raise
            return known.token
        if not rows:
            self._known.pop(key, None)
            return None
        token, now = Token(UUID(str(rows[0]["token_id"])), rows[0]["name"], rows[0]["role"]), self._clock()
        self._known[key] = Known(token, now + FRESH_S, now)
        return token

    def _ask(self, key: str) -> list[Row]:
        if self._is_away():
            raise StoreUnavailable
        return self._store().call("use_token", token_hash=key)


def made() -> str:
    return f"mivra_{secrets.token_urlsafe(32)}"


def hashed(text: str) -> str:
    """What the database keeps of it; the text is random, so that no salt is needed."""
    return hashlib.sha256(text.encode()).hexdigest()
