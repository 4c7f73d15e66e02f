"""The executor's side of the fork server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from mivra.config import ROOT
from mivra.lines import Lines

SEND_TIMEOUT_S = 2.0
"""A fork takes milliseconds: a server that reads nothing for this long is stuck."""


class ForkServer:
    """Starts the server, which needs half a second to import what a bot needs, and speaks with it."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(SEND_TIMEOUT_S)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "mivra.control.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Where the module is found, wherever the dashboard was started.
                cwd=ROOT,
                # A Ctrl-C at the dashboard is not for the bots.
                start_new_session=True,
            )

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, bot_id: str, folder: Path, environ: dict[str, str]) -> None:
        """Ask for a bot; the answer comes by receive. OSError when the server does not listen."""
        order = {"bot_id": bot_id, "folder": str(folder), "environ": environ}
        self._socket.sendall(json.dumps(order).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What the server has said since; None when it has ended. Never waits."""
        try:
            data = self._socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return self._lines.feed(data) if data else None

    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """End the server; its bots stay."""
        self._socket.close()
        # It has nothing to tidy up, and may be stopped.
        self._process.kill()
        self._process.wait()
