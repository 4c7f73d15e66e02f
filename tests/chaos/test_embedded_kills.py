"""The embedded servers under every way to end a process: no row that was acknowledged is lost, nothing stays behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from mivra.errors import EmbeddedError
from mivra.store import embedded
from mivra.store.embedded.places import Places
from tests.support import NOBODY, ordinary_user, server_processes, wait_until

ROOT = Path(__file__).resolve().parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user, which needs root")

USER = """
import sys
from pathlib import Path
from mivra.store import embedded
servers = embedded.start(Path(sys.argv[1]))
print(servers.database_url, flush=True)
sys.stdin.read()
"""

WRITER = """
import sys, time
from pathlib import Path
import psycopg
from mivra.store import embedded
servers = embedded.start(Path(sys.argv[1]))
number = 0
while True:
    try:
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            connection.execute("create table if not exists acknowledged (number int primary key)")
            while True:
                number += 1
                connection.execute("insert into acknowledged values (%s)", [number])
                print(number, flush=True)
    except psycopg.OperationalError:
        time.sleep(0.01)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    wait_until(lambda: not server_processes(home), what=f"no process of {home} is left")


@pytest.fixture
def launch(home: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts scripts on the home, each in a process of its own that the test cannot leave behind."""
    started: list[subprocess.Popen[str]] = []

    def launch(script: str, python: str = sys.executable, **options: Any) -> subprocess.Popen[str]:
        arguments = [python, "-c", script, str(options.pop("home", home))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(arguments, cwd=ROOT, **pipes, **options))
        return started[-1]

    yield launch
    for process in started:
        with process:
            process.kill()


Launch = Callable[..., subprocess.Popen[str]]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """Stops the process and returns what it had still said."""
    process.kill()
    assert process.stdout is not None
    return process.stdout.read().split()


def part(home: Path, word: str) -> psutil.Process:
    """The guardian, the postmaster or Valkey of a home."""
    return next(process for process in server_processes(home) if word in " ".join(process.info["cmdline"][:3]))


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: all(ended(process) for process in processes), what="the killed are dead")


def ended(process: psutil.Process) -> bool:
    """Whether its locks are free: a zombie with threads that are still dying has them."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True


def rows(url: str) -> set[int]:
    """Once the database answers: it may only be on its way back."""
    with wait_until(lambda: reached(url), what="the database is back") as connection:
        return {number for (number,) in connection.execute("select number from acknowledged")}


def reached(url: str) -> psycopg.Connection | None:
    with suppress(psycopg.OperationalError):
        return psycopg.connect(url)
    return None


def begun(url: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute("select pg_postmaster_start_time()").fetchone()
        assert row is not None
        return row[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_servers_stop_however_their_last_user_ends(home: Path, launch: Launch, number: signal.Signals) -> None:
    user = launch(USER)
    assert line(user)
    assert len(server_processes(home)) > 2
    user.send_signal(number)
    wait_until(lambda: not server_processes(home), what="the servers have stopped")
    assert "database system is shut down" in (home / "postgres.log").read_text()


@pytest.mark.parametrize("victims", ["user", "guardian", "postmaster", "servers", "all"])
def test_no_acknowledged_row_is_lost(home: Path, launch: Launch, victims: str) -> None:
    writer = launch(WRITER)
    acknowledged = [line(writer) for _ in range(300)]
    everything = server_processes(home)
    if victims in ("user", "all"):
        acknowledged += lines_of(writer)
    if victims == "guardian":
        kill([part(home, "guardian")])
    if victims == "postmaster":
        kill([part(home, "bin/postgres")])
    if victims == "servers":
        kill(everything[1:])
    if victims == "all":
        kill(everything)
    servers = embedded.start(home)
    if victims not in ("user", "all"):  # the writer finds the new server by itself
        known = rows(servers.database_url)
        while int(acknowledged[-1]) in known:
            acknowledged.append(line(writer))
        acknowledged += lines_of(writer)
    assert {int(number) for number in acknowledged} <= rows(servers.database_url)
    servers.close()


def test_without_anybody_asking_the_guardian_revives_what_died(home: Path) -> None:
    servers = embedded.start(home)
    first = begun(servers.database_url)
    part(home, "bin/postgres").kill()
    part(home, "valkey").kill()

    def both_answer() -> bool:
        try:
            assert servers.redis_url is not None
            with redis.Redis.from_url(servers.redis_url) as client:
                return bool(client.ping()) and begun(servers.database_url) != first
        except (psycopg.OperationalError, redis.ConnectionError):
            return False

    wait_until(both_answer, what="both servers answer again")
    servers.close()


def test_an_orphaned_server_gets_a_new_guardian(home: Path, launch: Launch) -> None:
    user = launch(USER)
    url = line(user)
    first = begun(url)
    kill([part(home, "guardian"), psutil.Process(user.pid)])
    assert begun(url) == first  # orphaned, and healthy
    servers = embedded.start(home)
    assert begun(servers.database_url) != first
    servers.close()
    wait_until(lambda: not server_processes(home), what="the new guardian has stopped the servers")


def test_a_backend_that_outlives_its_postmaster_is_ended(home: Path) -> None:
    servers = embedded.start(home)
    with closing(psycopg.connect(servers.database_url, autocommit=True)) as connection:
        # Pure computation does not notice the death of the postmaster.
        connection.pgconn.send_query(b"do $$begin loop end loop; end$$")
        kill([part(home, "guardian"), part(home, "bin/postgres")])
        again = embedded.start(home)
        assert begun(again.database_url)
        answer = connection.pgconn.get_result()
        # Lost, and not "canceling statement due to user request", which nobody would ask again.
        assert answer
        assert answer.error_field(psycopg.pq.DiagnosticField.SQLSTATE) != b"57014"
    again.close()
    servers.close()


def test_half_an_initdb_starts_over(home: Path, launch: Launch) -> None:
    user = launch(USER)
    wait_until((home / "postgres" / "data.half" / "base").exists, what="initdb is at work")
    kill([part(home, "guardian"), psutil.Process(user.pid)])
    assert not (home / "postgres" / "data").exists()
    servers = embedded.start(home)
    assert begun(servers.database_url)
    servers.close()


def stopped(home: Path) -> Path:
    """The data directory of a home whose servers have run and stopped."""
    embedded.start(home).close()
    wait_until(lambda: not server_processes(home))
    return home / "postgres" / "data"


@pytest.mark.parametrize("content", ["{pid}\n", "", "999999999\n", "nonsense\n"])
def test_a_stale_pid_file_does_not_matter(home: Path, content: str) -> None:
    data = stopped(home)
    with subprocess.Popen(["sleep", "300"], cwd="/") as other:
        (data / "postmaster.pid").write_text(content.format(pid=other.pid))
        (Places(home).home / "run").mkdir(mode=0o700, exist_ok=True)
        (Places(home).home / "run" / ".s.PGSQL.5432.lock").write_text(content.format(pid=other.pid))
        servers = embedded.start(home)
        assert begun(servers.database_url)
        assert other.poll() is None
        servers.close()
        other.kill()


def test_a_server_that_somebody_started_by_hand_is_left_alone(home: Path) -> None:
    data = stopped(home)
    with subprocess.Popen(["sleep", "300"], cwd=data) as other:
        pid_file = data / "postmaster.pid"
        pid_file.write_text(f"{other.pid}\n{data}\n")
        with pytest.raises(EmbeddedError, match=r'lock file "postmaster.pid" already exists'):
            embedded.start(home)
        assert pid_file.read_text().startswith(f"{other.pid}\n")
        other.kill()


@pytest.mark.parametrize("round_number", range(3))
def test_racing_starts_share_one_server(home: Path, launch: Launch, round_number: int) -> None:
    users = [launch(USER) for _ in range(8)]
    urls = {line(user) for user in users}
    assert len(urls) == 1
    assert (home / "postgres.log").read_text().count("starting PostgreSQL") == 1
    assert sum("embedded.guardian" in process.info["cmdline"] for process in server_processes(home)) == 1


def test_who_joins_at_the_moment_of_shutdown_gets_a_server_that_stays(home: Path) -> None:
    starts = set()
    servers = embedded.start(home)
    state = home / "guardian.lock"
    for attempt in range(40):
        servers.close()
        if attempt % 4:
            spin(attempt * 150_000)  # sweeps over the whole shutdown, from before the guardian wakes to after its end
        else:
            wait_until(lambda: state.read_bytes() != b"up", what="the guardian has decided to stop")
        servers = embedded.start(home)
        with psycopg.connect(servers.database_url, autocommit=True) as connection:
            row = connection.execute("select pg_postmaster_start_time()").fetchone()
            for _ in range(20):  # a server that was stopping would end this session
                connection.execute("select pg_sleep(0.005)")
        starts.add(row)
    servers.close()
    assert len(starts) > 10  # each time that it had decided, the server was a new one


def spin(rounds: int) -> None:
    for _ in range(rounds):
        pass


def test_killed_guardians_never_break_a_start(home: Path, launch: Launch) -> None:
    """The guardian dies at any moment of its start or shutdown; whoever starts next gets a working server."""
    for attempt in range(15):
        user = launch(USER)
        wait_until(lambda: server_processes(home), what="the guardian is there")
        spin(attempt * 200_000)
        for process in server_processes(home)[:1]:
            process.kill()
        servers = embedded.start(home)
        assert begun(servers.database_url)
        user.kill()
        servers.close()
        if attempt % 2:
            for process in server_processes(home)[:1]:
                process.kill()
    embedded.start(home).close()


@as_root
def test_an_ordinary_user_needs_no_privilege(launch: Launch) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chown(folder, NOBODY, NOBODY)
        python, options = ordinary_user()
        user = launch(USER, python, home=folder / "home", **options)
        url = line(user)
        assert begun(url)
        assert {process.uids().real for process in server_processes(folder / "home")} == {NOBODY}
        user.kill()
        wait_until(lambda: not server_processes(folder / "home"), what="the servers have stopped")
        # Root may use it after that, and the files stay the user's.
        servers = embedded.start(folder / "home")
        assert begun(servers.database_url)
        servers.close()
        wait_until(lambda: not server_processes(folder / "home"))
        assert {path.stat().st_uid for path in (folder / "home" / "postgres").rglob("*")} == {NOBODY}


@as_root
def test_root_owns_its_files_and_no_folder_above_changes(home: Path) -> None:
    above = [(path, path.stat().st_mode, path.stat().st_uid) for path in home.parents]
    servers = embedded.start(home)
    assert part(home, "bin/postgres").uids().real == 0  # seen from here; inside its namespace it is not
    assert {path.stat().st_uid for path in (home / "postgres").rglob("*")} == {0}
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path in home.parents] == above
    servers.close()


@pytest.fixture
def no_namespaces() -> Iterator[dict[str, Any]]:
    """Popen options of a world where root may not make user namespaces, as in many containers."""
    gate, opened = os.pipe()
    mapped, done = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).unshare(0x10000000)
        os.write(done, b".")
        os.read(gate, 1)
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        os.write(done, b".")
        signal.pause()
    os.read(mapped, 1)
    for kind in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{kind}").write_text("0 0 100000")
    os.write(opened, b".")
    os.read(mapped, 1)
    namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    yield {"preexec_fn": lambda: ctypes.CDLL(None).setns(namespace, 0)}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for descriptor in (gate, opened, mapped, done, namespace):
        os.close(descriptor)


@as_root
def test_root_without_namespaces_gives_only_the_servers_directories_away(
    launch: Launch, no_namespaces: dict[str, Any]
) -> None:
    python, as_nobody = ordinary_user()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    home = folder / "home"
    options = no_namespaces | {"env": as_nobody["env"]}
    for _ in range(2):
        user = launch(USER, python, home=home, **options)
        assert begun(line(user))
        assert part(home, "bin/postgres").uids().real == NOBODY
        assert home.stat().st_uid == 0
        assert (home / "postgres" / "data").stat().st_uid == NOBODY
        part(home, "bin/postgres").kill()  # the guardian, nobody too by now, can still revive it
        wait_until(lambda: (home / "guardian.lock").read_bytes() == b"")
        wait_until(lambda: (home / "guardian.lock").read_bytes() == b"up")
        user.kill()
        wait_until(lambda: not server_processes(home), what="the servers have stopped")
    folder.chmod(0o700)
    failed = launch(USER, python, home=home, stderr=subprocess.PIPE, **options)
    assert f"must run as the unprivileged user {NOBODY} here, who cannot reach {home}" in failed.communicate()[1]
    wait_until(lambda: not server_processes(home))
    shutil.rmtree(folder)
