"""The embedded Valkey: a bounded cache, of which nothing is written to disk."""

from __future__ import annotations

import socket
import subprocess

from .places import valkey_binary
from .server import Server

SETTINGS = """
port 0
unixsocket {socket}
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
    name = "valkey"

    def launch(self) -> subprocess.Popen[bytes]:
        name = self.places.valkey_socket.name  # in its working directory: a whole path would have to be quoted
        settings = SETTINGS.format(socket=name, password=self.places.password.read_text(), tag=self.tag)
        # By stdin: any user may read a command line, and the password would be in it.
        return self.spawn(valkey_binary() or "", "-", stdin=settings)

    def accepts(self, pid: int) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.places.valkey_socket)) == 0
