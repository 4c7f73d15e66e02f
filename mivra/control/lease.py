"""Who may act: one row by the database's clock; and a lock a listener, which proves to its neighbours that it lives."""

from __future__ import annotations

import fcntl
import os
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mivra.bot.channel import clock
from mivra.control.reconcile import Row
from mivra.control.running import HOST
from mivra.store.base import Store, one

LEASE_S = 15.0
"""How long the others wait before they take over from a listener that is silent; renewed when a third of it is gone."""
MARGIN_S = 2.0
"""A listener stops trusting its own lease this long before the others do."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer of claim_bots: who acts, and for who does, what is to be looked after."""

    acting: bool
    term: int
    acting_holder: str
    now: datetime
    lease_left: float
    """Seconds."""
    hold: str | None
    """Why no bot may place an order; None when they may."""
    bots: list[Row]


class Lease:
    """This listener's part in it. A holder on this machine that died is not waited for: its lock says so."""

    def __init__(self, store: Store, home: Path) -> None:
        self._store = store
        self._folder = home / "listeners"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.holder = f"{HOST}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lock = os.open(self._path(self.holder), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._other: str | None = None
        self.asked_at = 0.0
        self.trusted_until = 0.0
        """Moment of mivra.bot.channel.clock until which nobody else can act."""

    def claim(self) -> Claim:
        """Take, renew or only read; StoreError when it is not known who acts."""
        self.asked_at = asked_at = clock()
        dead = self._other if self._other and self._is_dead(self._other) else None
        answer = one(self._store.call("claim_bots", holder=self.holder, ttl_seconds=LEASE_S, dead=dead))
        claim = msgspec.convert(answer, Claim)
        self._other = None if claim.acting else claim.acting_holder
        # Trusted from the moment of asking: the answer may have been long on its way.
        self.trusted_until = asked_at + claim.lease_left - MARGIN_S if claim.acting else 0.0
        return claim

    @property
    def is_trusted(self) -> bool:
        """Whether nobody else can act yet, also when this process slept in between."""
        return clock() <= self.trusted_until

    def report(self, term: int, reports: list[dict[str, Any]]) -> None:
        """Write what is observed; Conflict when the lease is over."""
        self._store.call("report_bots", holder=self.holder, term=term, reports=reports)

    def release(self) -> None:
        """Hand over at once; StoreError when it must end by itself."""
        os.close(self._lock)
        self._path(self.holder).unlink(missing_ok=True)
        self._store.call("release_lease", holder=self.holder)

    def _path(self, holder: str) -> Path:
        return self._folder / f"{holder.rpartition(':')[2]}.lock"

    def _is_dead(self, holder: str) -> bool:
        """Whether a holder of this home ended without a word; one of another machine has no file here."""
        try:
            with self._path(holder).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        return True
