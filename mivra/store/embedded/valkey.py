"""The embedded Valkey: a bounded cache."""

from __future__ import annotations

import subprocess

from .places import valkey_binary
from .server import Server

SETTINGS = """
port 0
unixsocket "{socket}"
unixsocketperm 700
requirepass {password}
proc-title-template "{{title}} {tag}"
save ""
appendonly no
maxmemory 256mb
maxmemory-policy allkeys-lru
loglevel warning
"""


class Valkey(Server):
    """A cache: bounded, and nothing of it is written to disk."""

    name = "valkey"

    def tidy(self) -> None:
        self.places.valkey_socket.unlink(missing_ok=True)

    def launch(self) -> subprocess.Popen[bytes]:
        socket = str(self.places.valkey_socket).replace("\\", "\\\\").replace('"', '\\"')
        settings = SETTINGS.format(socket=socket, password=self.password, tag=self.tag)
        # By stdin: any user may read a command line, and the password would be in it.
        return self.spawn(valkey_binary() or "", "-", stdin=settings)

    def accepts(self, pid: int) -> bool:
        return self.places.valkey_socket.is_socket()
