"""Opens and closes on their way into the database: nothing that was put here is lost while the disk lives."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice

from mivra.bot.spool import Spool
from mivra.bot.trade import Trade
from mivra.errors import InvalidData, MivraError, StoreError
from mivra.store.base import Store

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0
"""A restarted database is back in a second or two; asking one that stays away costs it nothing at this pace."""

log = logging.getLogger(__name__)


def jittered(failures: int) -> float:
    """Seconds until the next try: doubling, capped, and spread so that all bots do not come at once."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


BATCH = 500
"""Trades a call: PostgREST answers with 1000 rows at most."""


class Recorder:
    """Writes from a thread of its own what came while it wrote last; of each trade only the newest state waits.

    A repeated batch changes nothing (record_trades). From the first failure on, all that waits is on disk too.
    """

    def __init__(
        self,
        open_store: Callable[[], AbstractContextManager[Store]],
        spool: Spool,
        *,
        bot_id: str,
        run_id: str,
        backoff: Callable[[int], float] = jittered,
    ) -> None:
        self._open_store, self._spool, self._backoff = open_store, spool, backoff
        self._bot_id, self._run_id = bot_id, run_id
        self._wake = threading.Condition()
        self._pending = {trade.external_id: trade for trade in spool.load()}
        self._left_open = [trade for trade in self._pending.values() if trade.status == "open"]
        self._asked = False
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self.failures = 0
        """Tries since the last success; 0 while the database answers."""
        self.refused = 0
        """Trades that the database calls invalid; they are in refused.jsonl."""

    def start(self) -> None:
        self._thread.start()

    def put(self, trade: Trade) -> None:
        """Take a trade or its newer state; returns at once, or after the disk has it while the database is away."""
        with self._wake:
            self._pending[trade.external_id] = trade
            if self.failures:
                self._save()
            self._wake.notify()

    @property
    def unwritten(self) -> int:
        """Trades that the database has not confirmed."""
        return len(self._pending)

    def take_left_open(self) -> list[Trade]:
        """Trades that earlier processes of this bot left open; each once, as soon as they are known."""
        with self._wake:
            taken, self._left_open = self._left_open, []
            return taken

    def stop(self, within: float) -> int:
        """Write what waits for at most so many seconds; the rest goes to disk, and its number is returned."""
        with self._wake:
            self._stop_at = time.monotonic() + within
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(within)
        with self._wake:
            self._save()
            return len(self._pending)

    def _run(self) -> None:
        while not self._over():
            try:
                with self._open_store() as store:
                    self._work(store)
            except MivraError as error:
                self._failed(error)
            except Exception as error:
                log.exception("The recorder starts again")
                self._failed(error)

    def _work(self, store: Store) -> None:
        while self._due():
            try:
                self._turn(store)
            except StoreError as error:
                self._failed(error)

    def _due(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._pending or not self._asked or self._stop_at is not None)
            return not self._over()

    def _over(self) -> bool:
        return self._stop_at is not None and (not self._pending or time.monotonic() >= self._stop_at)

    def _turn(self, store: Store) -> None:
        with self._wake:
            batch = list(islice(self._pending.values(), BATCH))
        if batch:
            self._write(store, batch)
        if not self._asked:
            self._find_left_open(store)
        if self.failures:
            log.info("The database is back after %s tries", self.failures)
        self.failures = 0

    def _write(self, store: Store, batch: list[Trade]) -> None:
        try:
            store.call("record_trades", trades=[trade.as_json() for trade in batch])
        except InvalidData as error:
            if len(batch) == 1:
                return self._refuse(batch[0], error)
            # One bad trade must not keep the good ones out.
            for trade in batch:
                self._write(store, [trade])
        else:
            self._forget(batch)

    def _refuse(self, trade: Trade, error: InvalidData) -> None:
        self._spool.refuse(trade)
        self.refused += 1
        log.error("The database refused trade %s, kept in refused.jsonl: %s", trade.external_id, error)
        self._forget([trade])

    def _forget(self, batch: list[Trade]) -> None:
        with self._wake:
            for trade in batch:
                if self._pending.get(trade.external_id) is trade:
                    del self._pending[trade.external_id]
            if not self._pending:
                self._spool.clear()

    def _find_left_open(self, store: Store) -> None:
        found = [Trade.parse(row) for row in store.call("open_trades", bot=self._bot_id)]
        with self._wake:
            # This run's own trades are in the broker's hands already; one that is settled but unwritten is pending.
            self._left_open += [
                t for t in found if not t.external_id.startswith(self._run_id) and t.external_id not in self._pending
            ]
            self._asked = True

    def _failed(self, error: Exception) -> None:
        with self._wake:
            self.failures += 1
            if self.failures == 1:
                log.warning("Trades are kept until the database takes them: %s", error)
            self._save()
            stop_at = self._stop_at
            # A stop ends the wait, for a last try.
            self._wake.wait_for(lambda: self._stop_at != stop_at, self._backoff(self.failures))

    def _save(self) -> None:
        if not self._pending:
            return
        try:
            self._spool.save(self._pending.values())
        except OSError as error:
            log.error("Trades that wait for the database cannot be kept on disk: %s", error)
