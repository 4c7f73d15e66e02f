"""The guardian: a small detached process, the servers' parent, that outlives their last user by one shutdown.

It tries for the exclusive lock of the users' file, which the kernel grants when the last user is gone, however it went,
and keeps that lock until its own end: so whoever joins has its shared lock either before the decision to stop, and the
servers stay, or when they are gone, and starts new ones. A server that dies early is started again.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mivra.errors import EmbeddedError

from .locks import Lock
from .places import UP, Places, postgres_binary, unusable, valkey_binary
from .postgres import Postgres
from .server import Server
from .valkey import Valkey

WATCH_PAUSE = 0.05  # seconds between looks at the users and the servers: 20 microseconds of work each
RETRY_PAUSE = 1.0  # seconds between attempts to revive a server: a full disk is not hammered
CLONE_NEWUSER = 0x10000000  # <linux/sched.h>
NOBODY = 65534  # user and group


class Guardian:
    """Takes over the lock that its starter holds: between the two there is no moment without."""

    def __init__(self, places: Places, lock: Lock) -> None:
        self.places = places
        self.lock = lock
        self.users = Lock(places.users_lock)
        self.servers: list[Server] = [Postgres(places)]
        if valkey_binary():
            self.servers.append(Valkey(places))
        self.told_to_stop = False

    def run(self) -> None:
        """Starts the servers and returns when they have stopped; EmbeddedError when they cannot start."""
        signal.signal(signal.SIGTERM, self._stop)
        self._prepare()
        try:
            self._start_dead()
            for descriptor in (1, 2):  # the starter reads its pipe to the end
                os.dup2(self.servers[0].log, descriptor)
            while not (self.told_to_stop or self.users.exclusive()):
                self._watch()
        finally:
            self.lock.write(b"")
            for server in self.servers:
                server.end()
            shutil.rmtree(self.places.sockets, ignore_errors=True)

    def _stop(self, *_: object) -> None:
        self.told_to_stop = True

    def _prepare(self) -> None:
        """All that needs the rights of who started us."""
        for server in self.servers:
            server.end()
            server.tidy()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.places.sockets)
        self.places.sockets.mkdir(mode=0o700)  # ours: it fails where somebody else is faster
        leave_root([*(server.directory for server in self.servers), self.places.sockets, self.places.password])
        _check_reach(self.places.home, postgres_binary("postgres"))

    def _start_dead(self) -> None:
        dead = [server for server in self.servers if not server.alive]
        if dead:
            self.lock.write(b"")
            for server in dead:
                server.start()
            self.lock.write(UP)

    def _watch(self) -> None:
        time.sleep(WATCH_PAUSE)
        for server in self.servers:
            server.trim_log()
        try:
            self._start_dead()
        except (EmbeddedError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            time.sleep(RETRY_PAUSE)


def leave_root(paths: Sequence[Path]) -> None:
    """Postgres refuses uid 0; so root becomes nobody in a user namespace of its own, where root's files stay its own.

    Where namespaces are refused, as in many containers, the servers' files go to the real nobody, for good;
    and servers of another user's data run as that user. The first path tells whose data it is.
    """
    data = paths[0].stat()
    if os.geteuid() == 0 and data.st_uid == 0 and _may_enter_namespace():
        _enter_namespace()
    elif os.geteuid() == 0:
        _become(data.st_uid or NOBODY, data.st_gid if data.st_uid else NOBODY, paths)


def _become(uid: int, gid: int, paths: Sequence[Path]) -> None:
    for top in paths:
        for path in (top, *top.rglob("*")):
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


def _may_enter_namespace() -> bool:
    """Tried in a child, because half a namespace cannot be left again."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    with suppress(OSError, AttributeError):  # the second on macOS, which has none
        _enter_namespace()
        os._exit(0)
    os._exit(1)


def _check_reach(*paths: Path) -> None:
    for path in paths:
        if not os.access(path, os.X_OK):
            raise EmbeddedError(
                f"Postgres must run as the unprivileged user {os.geteuid()} here, who cannot reach {path}: "
                "move it out of the private folder, or set DATABASE_URL."
            )


def main() -> None:
    home, descriptor = sys.argv[1:]
    if os.fork():
        os._exit(0)  # the starter waits for this process only, and never has the guardian as a zombie
    places = Places(Path(home))
    try:
        Guardian(places, Lock(int(descriptor))).run()
    except EmbeddedError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(str(unusable(error, places.home)))


if __name__ == "__main__":
    main()
