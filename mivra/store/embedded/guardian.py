"""The guardian: a small detached process, the servers' parent, that outlives their last user by one shutdown.

It blocks on the exclusive lock of the users' file, which the kernel grants when the last user is gone, however it went,
and keeps that lock until its own end: so whoever joins has its shared lock either before the decision to stop, and the
servers stay, or when they are gone, and starts new ones. A server that dies early is started again.
Standard library only: this process must start fast and stay small.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from mivra.errors import EmbeddedError

from .locks import Lock
from .places import UP, Places, postgres_binary, valkey_binary, write_private
from .postgres import Postgres
from .server import Server
from .valkey import Valkey

RETRY_PAUSE = 1.0  # seconds between attempts to revive a server: a full disk is not hammered
LOG_CHECK = 60.0  # seconds between looks at the size of the logs
CLONE_NEWUSER = 0x10000000  # <linux/sched.h>
NOBODY = 65534  # user and group


class Guardian:
    """Takes over the lock that its starter holds: between the two there is no moment without."""

    def __init__(self, places: Places, lock: Lock) -> None:
        self.places = places
        self.lock = lock
        self.users = Lock(places.users_lock)
        self.events: SimpleQueue[Server | None] = SimpleQueue()  # a server that has died, or None: stop
        password = _password(places.password)
        self.servers: list[Server] = [Postgres(places, password)]
        if valkey_binary():
            self.servers.append(Valkey(places, password))

    def run(self) -> None:
        """Starts the servers and returns when they have stopped; EmbeddedError when they cannot start."""
        signal.signal(signal.SIGTERM, lambda *_: self.events.put(None))
        _make_private(self.places.sockets, {os.geteuid(), self.servers[0].directory.stat().st_uid})
        for server in self.servers:
            server.claim()
        leave_root([*(server.directory for server in self.servers), self.places.sockets])
        _check_reach(self.places.home, postgres_binary("postgres"))
        try:
            for server in self.servers:
                self._start(server)
            self._report()
            self._guard()
        finally:
            self._stop()

    def _guard(self) -> None:
        Thread(target=self._await_last_user, daemon=True).start()
        for descriptor in (1, 2):  # nobody reads the starter's pipe from here on
            os.dup2(self.servers[0].log, descriptor)
        while dead := self._next_event():
            self._report()
            self._revive(dead)

    def _revive(self, server: Server) -> None:
        try:
            server.claim()
            self._start(server)
            self._report()
        except (EmbeddedError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            time.sleep(RETRY_PAUSE)
            self.events.put(server)

    def _start(self, server: Server) -> None:
        server.start()
        Thread(target=self._await_death, args=(server,), daemon=True).start()

    def _stop(self) -> None:
        self.lock.write(b"")
        for server in self.servers:
            server.stop()
        with suppress(OSError):  # not ours to remove, or not empty after a kill -9
            self.places.sockets.rmdir()

    def _report(self) -> None:
        self.lock.write(UP if all(server.alive for server in self.servers) else b"")

    def _next_event(self) -> Server | None:
        while True:
            with suppress(Empty):
                return self.events.get(timeout=LOG_CHECK)
            for server in self.servers:
                server.trim_log()

    def _await_last_user(self) -> None:
        self.users.wait_exclusive()
        self.events.put(None)

    def _await_death(self, server: Server) -> None:
        server.ended()
        self.events.put(server)


def leave_root(directories: Sequence[Path]) -> None:
    """Postgres refuses uid 0; so root becomes nobody in a user namespace of its own, where root's files stay its own.

    Where namespaces are refused, as in many containers, the servers' directories go to the real nobody, for good;
    and servers of another user's data run as that user.
    """
    data = directories[0].stat()
    if os.geteuid() == 0 and data.st_uid == 0 and _succeeds(_enter_namespace):
        _enter_namespace()
    elif os.geteuid() == 0:
        _become(data.st_uid or NOBODY, data.st_gid if data.st_uid else NOBODY, directories)


def _become(uid: int, gid: int, directories: Sequence[Path]) -> None:
    for directory in directories:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _enter_namespace() -> None:
    gid = os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} 0 1")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")


def _succeeds(action: Callable[[], None]) -> bool:
    """Tried in a child, because half a namespace cannot be left again."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    status = 1
    try:
        action()
        status = 0
    finally:
        os._exit(status)


def _check_reach(*paths: Path) -> None:
    for path in paths:
        if not os.access(path, os.X_OK):
            raise EmbeddedError(
                f"Postgres must run as the unprivileged user {os.geteuid()} here, who cannot reach {path}: "
                "move it out of the private folder, or set DATABASE_URL."
            )


def _make_private(directory: Path, owners: set[int]) -> None:
    """Makes a directory that only its owner can enter; an existing one is believed only if it is that already."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
        raise EmbeddedError(f"{directory} is not a private directory of this user: remove it and start again.")


def _password(file: Path) -> str:
    if not file.exists():
        new = file.with_suffix(".new")
        new.unlink(missing_ok=True)
        write_private(new, os.urandom(24).hex())
        new.rename(file)
    return file.read_text()


def main() -> None:
    home, descriptor = sys.argv[1:]
    if os.fork():
        os._exit(0)  # the starter waits for this process only, and never has the guardian as a zombie
    try:
        Guardian(Places(Path(home)), Lock(int(descriptor))).run()
    except EmbeddedError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"The embedded servers cannot use {error.filename}: {error.strerror}.")


if __name__ == "__main__":
    main()
