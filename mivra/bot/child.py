"""The operator's own program as a child process that cannot hold its bot up, and that does not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from subprocess import PIPE, Popen
from typing import Any

from mivra.errors import ControlError
from mivra.lines import MAX_LINE, encoded

MAX_READ = 4096
"""Bytes of the program's output at a time."""
PIPE_READS = 16
"""So many hold all that a pipe can."""

_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
_END_WITH_PARENT = (1, ctypes.c_ulong(signal.SIGKILL))
"""PR_SET_PDEATHSIG; elsewhere than on Linux, the program sees the end of its input instead."""
_SIGNALS = {number.value: number.name for number in signal.Signals}


class Child:
    """To be made while this process has one thread: its preexec_fn then finds no lock taken by another."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], lock: int) -> None:
        """The lock is held as long as the program lives; ControlError when it cannot be started."""
        try:
            self._process = Popen(  # noqa: S603 - the operator's own command
                command,
                stdin=PIPE,
                stdout=PIPE,
                bufsize=0,
                env=environ,
                pass_fds=[lock],
                preexec_fn=partial(_end_with, os.getpid()),  # noqa: PLW1509 - see the class
            )
        except OSError as error:
            raise ControlError(f"{command[0]} cannot be started: {error.strerror}") from error
        assert self._process.stdin  # noqa: S101 - for mypy
        assert self._process.stdout  # noqa: S101
        self._in, self.output = self._process.stdin.fileno(), self._process.stdout.fileno()
        for end in (self._in, self.output):
            os.set_blocking(end, False)
        self._unsaid: dict[str, bytes] = {}
        self._rest = b""
        self._partial = b""
        self.has_ended_output = False

    def tell(self, level: str, message: Mapping[str, Any]) -> None:
        """A line to the program as soon as its pipe takes it; only the newest of each level waits."""
        self._unsaid.pop(level, None)
        self._unsaid[level] = encoded(message)
        self.flush()

    def flush(self) -> None:
        """Say what waits, as far as the pipe takes it."""
        try:
            while self._rest or self._unsaid:
                self._rest = self._rest or self._unsaid.pop(next(iter(self._unsaid)))
                self._rest = self._rest[os.write(self._in, self._rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._rest = b""
            self._unsaid.clear()

    def read(self) -> list[bytes] | None:
        """Whole lines that it wrote since, None when it wrote nothing; never waits."""
        try:
            data = os.read(self.output, MAX_READ)
        except BlockingIOError:
            return None
        self.has_ended_output = not data
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[-MAX_LINE:]
        return lines

    def ending(self) -> str | None:
        """How it ended, in words; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return f"The program was ended by signal {_SIGNALS.get(-code, -code)}"
        return f"The program ended with exit code {code}" if code else "The program ended by itself"

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()


def _end_with(parent: int) -> None:
    """Between fork and exec: the kernel ends the program when its parent is gone, however that ends."""
    if _PRCTL:
        _PRCTL(*_END_WITH_PARENT)
    if os.getppid() != parent:
        os._exit(1)
