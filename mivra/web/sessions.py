"""Sessions of people: a signed token in a cookie, its SHA-256 in the database; an answer counts for some seconds."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

from itsdangerous import BadSignature, Signer

from mivra.cache.flight import Flights
from mivra.config import SECRET_LENGTH
from mivra.errors import ConfigError, MivraError, StoreTimeout, StoreUnavailable
from mivra.store import Row, Store

Role = Literal["viewer", "operator", "admin"]
ROLES: Final[tuple[Role, ...]] = ("viewer", "operator", "admin")
"""Each may what the one before it may."""

FRESH_S: Final = 20.0
"""For so long an answer of the database counts: a role that was removed is gone within a minute, sockets included."""

BELIEVED_S: Final = 600.0
"""For so long a session is believed while the database is away: the pages say so, and nothing can be changed."""

AWAY_S: Final = 3.0
"""While the database is away it is asked this long after the last answer that did not come."""

TOUCH_S: Final = 60.0
"""A click is written down at most this often; idle time is counted in minutes."""

WAIT_S: Final = 10.0
"""For another thread's look at the same session; its call has ended by then."""

SIZE: Final = 10_000
"""Sessions remembered; the ones that were looked up longest ago make room."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Person:
    """Who looks: an operator who is signed in, or without sign-in the program itself, which may everything."""

    operator_id: UUID | None
    """None without sign-in."""
    name: str
    """E-mail, or operator@host without sign-in."""
    role: Role
    confirmed: bool = True
    """False while the database is away and the session is believed without it."""

    @property
    def signed_in(self) -> bool:
        return self.operator_id is not None


@dataclass(slots=True)
class Known:
    """What is known of a token; without a session it has ended for good, since no token is given twice."""

    session: Person | None
    due: float
    confirmed_at: float
    touched_at: float


class Sessions:
    """Those of one database. Safe for threads; may block for a query, unless recall() says that it will not."""

    def __init__(
        self,
        store: Callable[[], Store],
        secret: str,
        *,
        idle_s: int,
        secure: bool,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._signer = Signer(secret, salt="mivra session", digest_method=hashlib.sha256)
        # A click within TOUCH_S of the one that was written down may be the last: nobody is sent away too early.
        self._idle_s = idle_s + int(TOUCH_S)
        self._fresh_s = fresh_s
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._away_until = float("-inf")
        self._lock = threading.Lock()
        self._flights = Flights[Person | None]()
        self.secure = secure
        # __Host-: no other host of the same domain can set it.
        self.cookie_name = "__Host-mivra_session" if secure else "mivra_session"

    def open(self, method: Literal["password", "oidc"], address: str, **who: object) -> str | None:
        """A new session and what its cookie holds, or None for who has no role; `who` is as open_session() has it."""
        token = secrets.token_urlsafe(32)
        key = _hash(token)
        rows = self._store().call("open_session", token_hash=key, method=method, address=address, **who)
        if not rows:
            return None
        self._remember(key, _session(rows[0]))
        return self._signer.sign(token).decode()

    def find(self, cookie: str | None) -> Person | None:
        """The session of a cookie, None when it has none any more; MivraError when that cannot be known."""
        session, is_fresh = self.recall(cookie)
        key = self._key(cookie)
        if is_fresh or key is None:
            return session
        try:
            return self._flights.run(key, lambda: self._look(key), WAIT_S)[0]
        except TimeoutError as error:
            raise StoreTimeout from error

    def recall(self, cookie: str | None) -> tuple[Person | None, bool]:
        """The session as it is remembered, and whether that is fresh enough; never blocks."""
        key = self._key(cookie)
        known = self._known.get(key) if key else None
        if known is None:
            return None, key is None
        return known.session, known.session is None or self._clock() < known.due

    def touch(self, cookie: str | None) -> None:
        """A person has done something; while the database is away nobody waits for that to be written."""
        key = self._key(cookie)
        known = self._known.get(key) if key else None
        with self._lock:
            if known is None or self._clock() < max(known.touched_at + TOUCH_S, self._away_until):
                return
            known.touched_at = self._clock()
        try:
            self._store().call("touch_session", token_hash=key, idle_seconds=self._idle_s)
        except MivraError as error:
            self._away_until = self._clock() + AWAY_S
            logger.warning("a click was not written down: %s", error)

    def close(self, cookie: str | None, address: str) -> None:
        """Signs out: here at once, elsewhere within FRESH_S."""
        key = self._key(cookie)
        if key is None:
            return
        self._remember(key, None)
        try:
            self._store().call("close_session", token_hash=key, address=address)
        except MivraError as error:
            logger.warning("a session was closed in this process only: %s", error)

    def _look(self, key: str) -> Person | None:
        known = self._known.get(key)
        if known and self._clock() < known.due:
            # Another thread has asked since recall() said no.
            return known.session
        if self._clock() >= self._away_until:
            try:
                rows = self._store().call("find_session", token_hash=key, idle_seconds=self._idle_s)
            except MivraError as error:
                # One failure counts for all, so that a page never waits behind the others' vain questions.
                self._away_until = self._clock() + AWAY_S
                logger.warning("nobody can be looked up: %s", error)
            else:
                return self._remember(key, _session(rows[0]) if rows else None)
        with self._lock:
            known = self._known.get(key)
            if known is None or known.session is None or self._clock() > known.confirmed_at + BELIEVED_S:
                raise StoreUnavailable
            known.due = self._away_until
            known.session = replace(known.session, confirmed=False)
            return known.session

    def _remember(self, key: str, session: Person | None) -> Person | None:
        now = self._clock()
        with self._lock:
            before = self._known.pop(key, None)
            if before and before.session is None:
                session = None
            touched_at = before.touched_at if before else float("-inf")
            while len(self._known) >= SIZE:
                del self._known[next(iter(self._known))]
            self._known[key] = Known(session, now + self._fresh_s, now, touched_at)
        return session

    def _key(self, cookie: str | None) -> str | None:
        try:
            return _hash(self._signer.unsign(cookie or "").decode())
        except (BadSignature, UnicodeError):
            return None


def _session(row: Row) -> Person:
    return Person(UUID(str(row["operator_id"])), row["operator_email"], row["role"])


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def cookie_secret(home: Path) -> str:
    """The secret of this home, made once: of two processes that begin together both get the same."""
    file = home / "cookie_secret"
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        # Readable by its owner alone, and complete before it has its name.
        with tempfile.NamedTemporaryFile("w", dir=home) as draft:
            draft.write(secrets.token_hex(32))
            draft.flush()
            with suppress(FileExistsError):
                os.link(draft.name, file)
    secret = file.read_text()
    if len(secret) < SECRET_LENGTH:
        raise ConfigError(f"{file} is damaged; remove it, and everybody signs in again")
    return secret
