"""`python -m mivra doctor` against real servers: what is wrong has its line, the others stay as they were."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from mivra.control import realtime
from mivra.doctor import case as doctor_case
from mivra.doctor import database as doctor_database
from mivra.doctor import report
from mivra.doctor import supabase as doctor_supabase
from mivra.store import embedded, postgres
from mivra.store.embedded.locks import Lock
from mivra.store.embedded.places import UP, valkey_binary
from mivra.store.migrate import migrate
from mivra.store.postgres import PostgresStore
from tests.pgbouncer import pgbouncer
from tests.servers import Process, free_port
from tests.supabase.project import Project, answering, hanging, without
from tests.supabase.realtime import install
from tests.support import server_processes, wait_until

COOKIE_SECRET = "c00kie" * 6
NOWHERE = "postgresql://nobody:hunter2@127.0.0.1:1/none"
SCHEMA = {"operators", "identity", "clock", "connections", "hints"}
"""What is only known of a database that is reached and migrated."""
SUBJECTS = SCHEMA | {
    *("settings", "database", "pooler", "supabase", "secret key", "publishable key", "auth", "redis", "home"),
    *("sign-in", "cookies", "migrations"),
}

Environ = dict[str, str]


@dataclass(frozen=True)
class Seen:
    """What the doctor said."""

    code: int
    lines: dict[str, list[tuple[str, str]]]
    """Verdict and text by subject."""

    def wrong(self) -> set[str]:
        return {subject for subject, lines in self.lines.items() if any(verdict == "wrong" for verdict, _ in lines)}

    def said(self, subject: str) -> str:
        return " / ".join(text for _, text in self.lines.get(subject, []))


def examined(environ: Environ) -> Seen:
    """One report; no line of it has a secret, and its exit code says whether a line is wrong."""
    said: list[str] = []
    code = report(environ, said.append)
    secrets = [environ.get(name) for name in ("SUPABASE_SECRET_KEY", "SUPABASE_PUBLISHABLE_KEY", "MIVRA_COOKIE_SECRET")]
    assert not [line for line in said for secret in ["hunter2", *secrets] if secret and secret in line]
    lines: dict[str, list[tuple[str, str]]] = {}
    for line in said:
        verdict, rest = line[:5].strip(), line[6:]
        subject, _, text = rest.partition(": ")
        assert verdict in ("ok", "note", "wrong"), line
        lines.setdefault(subject, []).append((verdict, text))
    seen = Seen(code, lines)
    assert code == (1 if seen.wrong() else 0)
    return seen


@pytest.fixture
def sound(database_url: str, redis_url: str, project: Project, tmp_path: Path) -> Iterator[Environ]:
    """A configuration of everything, with nothing wrong."""
    project.need_hooks()
    install(database_url)
    project.auth.add_user("ana@example.com", "hunter2")
    with closing(PostgresStore(database_url, max_connections=1)) as store:
        store.call("add_operator", email="ana@example.com", role="admin", actor="tests")
    with pgbouncer(database_url) as pooler_url:
        yield {
            "MIVRA_HOME": str(tmp_path),
            "DATABASE_URL": database_url,
            "POOLER_URL": pooler_url,
            "REDIS_URL": redis_url,
            "SUPABASE_URL": project.url,
            "SUPABASE_SECRET_KEY": project.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": project.publishable_key,
            "MIVRA_PUBLIC_URL": "https://mivra.example.com",
            "MIVRA_COOKIE_SECRET": COOKIE_SECRET,
        }


def rest_only(environ: Environ) -> Environ:
    """Without a connection to Postgres."""
    return {name: text for name, text in environ.items() if name not in ("DATABASE_URL", "POOLER_URL")}


def test_a_sound_configuration_has_an_ok_for_everything(sound: Environ) -> None:
    seen = examined(sound)
    assert {verdict for lines in seen.lines.values() for verdict, _ in lines} == {"ok"}
    assert set(seen.lines) == SUBJECTS
    assert "NOTIFY" in seen.said("hints")
    assert "transaction mode" in seen.said("pooler")


def test_a_project_is_enough_without_any_connection_to_postgres(sound: Environ) -> None:
    seen = examined(rest_only(sound))
    assert seen.code == 0
    assert "broadcast" in seen.said("hints")
    assert seen.lines["migrations"][0][0] == "ok"


def test_a_gateway_that_keeps_back_for_whom_is_asked_is_named(sound: Environ, project: Project) -> None:
    project.rest.faults.extend([without("x-mivra-operator")] * 50)
    seen = examined(rest_only(sound))
    assert seen.wrong() == {"identity"}
    assert "drops the header x-mivra-operator" in seen.said("identity")


def test_a_new_project_is_told_to_migrate(sound: Environ, project: Project) -> None:
    environ = {name: text for name, text in rest_only(sound).items() if name != "SUPABASE_PUBLISHABLE_KEY"}
    unknown = {"code": "PGRST202", "message": "Could not find the function in the schema cache"}
    project.rest.faults.extend([answering(404, unknown), answering(404, unknown)])
    seen = examined({**environ, "MIVRA_PUBLIC_URL": ""})
    assert seen.wrong() == {"migrations"}
    assert "python -m mivra migrate" in seen.said("migrations")


def test_with_nothing_set_nothing_is_wrong_and_nothing_is_started(tmp_path: Path) -> None:
    seen = examined({"MIVRA_HOME": str(tmp_path / "home")})
    assert seen.code == 0
    assert seen.said("database") == seen.said("redis") == "embedded; starts with the dashboard"
    assert not (tmp_path / "home").exists()
    assert not server_processes(tmp_path / "home")


def test_embedded_servers_that_run_are_looked_at_and_left_running(tmp_path: Path) -> None:
    with closing(embedded.start(tmp_path)) as servers:
        before = examined({"MIVRA_HOME": str(tmp_path)})
        assert before.wrong() == {"migrations"}
        assert "python -m mivra migrate" in before.said("migrations")
        migrate(servers.database_url)
        assert examined({"MIVRA_HOME": str(tmp_path)}).code == 0
        assert server_processes(tmp_path)
    wait_until(lambda: not server_processes(tmp_path), what="the doctor keeps no server")
    # As a guardian that was killed leaves it; one that ends has no name any more before it lets its lock go.
    with closing(Lock(tmp_path / "guardian.lock")) as lock:
        wait_until(lock.exclusive)
        lock.write(UP)
    assert "starts with the dashboard" in examined({"MIVRA_HOME": str(tmp_path)}).said("database")


Change = Callable[[Environ, Project], Environ]


def _no_admin(environ: Environ, _project: Project) -> Environ:
    _execute(environ, "delete from operators")
    return environ


def _not_migrated(environ: Environ, _project: Project) -> Environ:
    _execute(environ, "delete from mivra_migrations where name like '0010%'")
    return environ


def _granted_to_anon(environ: Environ, _project: Project) -> Environ:
    _execute(environ, "grant execute on function database_facts to anon")
    return environ


def _health(answer: Callable[..., object]) -> Change:
    def change(environ: Environ, project: Project) -> Environ:
        project.auth.faults.append(answer)
        return environ

    return change


def _auth_says(**settings: object) -> Change:
    def change(environ: Environ, project: Project) -> Environ:
        said = {"external": {"email": True}, "disable_signup": True, "mailer_autoconfirm": False, **settings}
        project.auth.faults.extend([answering(200, {"name": "GoTrue"}), answering(200, said)])
        return environ

    return change


def _other_role(environ: Environ, project: Project) -> Environ:
    project.rest.faults.append(answering(200, [{"role": "anon", "trusted": False}]))
    return environ


def _not_postgrest(environ: Environ, project: Project) -> Environ:
    project.rest.faults.append(answering(200, {"rows": 1}))
    return environ


def _with(**variables: str) -> Change:
    return lambda environ, _project: {**environ, **variables}


def _with_secret_key(key: str) -> Change:
    return lambda environ, _project: {**environ, "SUPABASE_SECRET_KEY": key}


def _direct_by_pooler(environ: Environ, _project: Project) -> Environ:
    return {**environ, "DATABASE_URL": environ["POOLER_URL"]}


def _readable_cookie_secret(environ: Environ, _project: Project) -> Environ:
    file = Path(environ["MIVRA_HOME"]) / "cookie_secret"
    file.write_text("x" * 64)
    file.chmod(0o644)
    return {name: text for name, text in environ.items() if name != "MIVRA_COOKIE_SECRET"}


@pytest.mark.parametrize(
    ("change", "subject", "words", "others"),
    [
        (_with(DATABASE_URL=NOWHERE), "database", "refused", {"hints"}),
        (_direct_by_pooler, "database", "in transaction mode", {"hints"}),
        (_with(POOLER_URL=NOWHERE), "pooler", "refused", {"connections"}),
        (
            _with(SUPABASE_URL="http://127.0.0.1:1"),
            "supabase",
            "SUPABASE_URL",
            {"secret key", "publishable key", "auth"},
        ),
        (_health(answering(540, "")), "supabase", "paused", {"secret key", "publishable key", "auth"}),
        (_health(answering(200, "<p>")), "supabase", "no Supabase", {"secret key", "publishable key", "auth"}),
        (_with_secret_key("sb_secret_of_another"), "secret key", "is refused", set()),
        (_with_secret_key("sb_secret_ä"), "secret key", "no key has", set()),
        (_other_role, "secret key", "acts as anon", set()),
        (_not_postgrest, "secret key", "makes no sense", set()),
        (_with(SUPABASE_PUBLISHABLE_KEY="sb_publishable_x"), "publishable key", "is refused", {"supabase", "auth"}),
        (_granted_to_anon, "publishable key", "alone reads rpc/database_facts", set()),
        (_auth_says(mailer_autoconfirm=True), "auth", "Confirm email", set()),
        (_auth_says(external={"email": False}), "auth", "sign-in by e-mail is off", set()),
        (_with(REDIS_URL="redis://:hunter2@127.0.0.1:1/0"), "redis", "Nothing listens", set()),
        (_with(MIVRA_HOME="/proc/mivra"), "home", "/proc", set()),
        (_with(MIVRA_PUBLIC_URL="http://mivra.example.com"), "sign-in", "without TLS", set()),
        (_readable_cookie_secret, "cookies", "others may read", set()),
        (_not_migrated, "migrations", "python -m mivra migrate", {"schema", *SCHEMA}),
        (_no_admin, "operators", "operator add", set()),
    ],
)
def test_what_is_wrong_has_its_line_and_the_others_stay(  # noqa: PLR0917 - a row of the table
    sound: Environ, project: Project, change: Change, subject: str, words: str, others: set[str]
) -> None:
    seen = examined(change(sound, project))
    assert seen.wrong() == {subject}
    assert words in seen.said(subject)
    left_alone = (SUBJECTS | seen.lines.keys()) - {subject} - others
    assert {verdict for other in left_alone for verdict, _ in seen.lines[other]} == {"ok"}


@contextmanager
def another_database(environ: Environ) -> Iterator[str]:
    """URL of a second database of the same server, migrated as the first."""
    given = conninfo_to_dict(environ["DATABASE_URL"])
    name = f"{given['dbname']}_other"
    _execute(environ, f"create database {name}")
    url = f"postgresql:///?{urlencode({**given, 'dbname': name}, quote_via=quote)}"
    migrate(url)
    try:
        yield url
    finally:
        _execute(environ, f"drop database {name} with (force)")


def test_a_pooler_of_another_database_is_found_out(sound: Environ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_supabase, "HEARD_S", 0.0)
    with another_database(sound) as url, pgbouncer(url) as pooler_url:
        assert "another database" in examined({**sound, "POOLER_URL": pooler_url}).said("pooler")


def test_a_pooler_in_session_mode_is_only_worth_a_note(sound: Environ) -> None:
    with pgbouncer(sound["DATABASE_URL"], "session") as pooler_url:
        seen = examined({**sound, "POOLER_URL": pooler_url})
        as_direct = examined({**sound, "DATABASE_URL": pooler_url})
    assert (seen.code, as_direct.code) == (0, 0)
    assert "no pooler in transaction mode" in seen.said("pooler")


def test_no_part_of_a_password_is_said_whatever_the_url_looks_like(tmp_path: Path) -> None:
    for login in ("u:hun/ter2", "u:hun@ter2", "u:hun#ter2", "u:hun?ter2", "u:hun ter2", "u:hun:ter2", "u:hun%ter2"):
        for variable in ("DATABASE_URL", "POOLER_URL"):
            url = f"postgresql://{login}@127.0.0.1:1/x"
            said: list[str] = []
            assert report({"MIVRA_HOME": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1", variable: url}, said.append)
            assert not [line for line in said if "hun" in line or "ter2" in line], login


def test_a_setting_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    seen = examined({"MIVRA_HOME": str(tmp_path), "MIVRA_TIMEZON": "UTC"})
    assert seen.lines == {"settings": [("wrong", "There is no setting MIVRA_TIMEZON; did you mean MIVRA_TIMEZONE?")]}


def test_other_machines_are_not_served_without_sign_in(tmp_path: Path) -> None:
    for variables in ({"MIVRA_PUBLIC_URL": "https://mivra.example.com"}, {"STREAMLIT_SERVER_ADDRESS": "192.0.2.1"}):
        assert examined({"MIVRA_HOME": str(tmp_path), **variables}).wrong() == {"sign-in"}


def test_a_listeners_own_role_is_told_what_it_may(database_url: str, redis_url: str, tmp_path: Path) -> None:
    role = f"runner_{free_port()}"
    environ = {"MIVRA_HOME": str(tmp_path), "REDIS_URL": redis_url, "DATABASE_URL": database_url}
    _execute(environ, f"create role {role} login password 'hunter2' in role mivra_listener, mivra_bot")
    try:
        given = {**conninfo_to_dict(database_url), "user": role, "password": "hunter2"}
        url = f"postgresql:///?{urlencode(given, quote_via=quote)}"
        seen = examined({**environ, "DATABASE_URL": url})
        _execute(environ, f"revoke mivra_listener, mivra_bot from {role}")
        without = examined({**environ, "DATABASE_URL": url})
    finally:
        _execute(environ, f"drop role {role}")
    assert seen.code == 0
    assert "may run bots" in seen.said("database")
    assert seen.lines["hints"][0][0] == "ok"
    assert "database" in without.wrong()


def test_hints_that_realtime_does_not_bring_are_named(sound: Environ, project: Project) -> None:
    project.realtime.refused = {"mivra_events": "no"}
    by_tables = examined(rest_only(sound))
    project.realtime.refused = {"*": f"what key is {project.secret_key}?"}
    by_nothing = examined(rest_only(sound))
    assert (by_tables.code, by_nothing.code) == (0, 1)
    assert by_tables.lines["hints"][0][0] == "note"
    assert "table changes" in by_tables.said("hints")
    assert by_nothing.wrong() == {"hints"}
    assert "what key is ***?" in by_nothing.said("hints")


def test_a_realtime_that_answers_but_brings_nothing_is_not_believed(
    sound: Environ, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "READY_S", 8.0)
    project.realtime.is_lossy = True
    seen = examined(rest_only(sound))
    assert seen.lines["hints"][0][0] == "note"
    assert "by private broadcast calls to itself do not come back" in seen.said("hints")


def test_realtime_that_was_never_set_up_is_told_to_migrate(sound: Environ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_supabase, "HEARD_S", 0.0)
    _execute(sound, "drop policy mivra_hints on realtime.messages")
    _execute(sound, "alter publication supabase_realtime drop table kill_switch")
    seen = examined(rest_only(sound))
    assert seen.wrong() == {"hints"}
    assert "mivra_events is not set up" in seen.said("hints")
    assert "not published: kill_switch" in seen.said("hints")


@pytest.mark.skipif(not valkey_binary(), reason="no Valkey for this platform")
def test_a_redis_that_is_full_for_ever_or_hangs_is_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = Process()
        stack.callback(shutil.rmtree, server.folder)
        stack.callback(server.kill)
        environ = {"MIVRA_HOME": str(tmp_path), "REDIS_URL": f"{server.url}?socket_timeout=2"}
        environ["DATABASE_URL"] = NOWHERE
        assert "without a limit" in examined(environ).said("redis")
        server.client.config_set("maxmemory", "100mb")
        server.client.config_set("maxmemory-policy", "volatile-lru")
        assert examined(environ).lines["redis"][0] == ("ok", examined(environ).said("redis"))
        server.client.config_set("maxmemory-policy", "noeviction")
        assert "maxmemory-policy" in examined(environ).said("redis")
        assert "redis" in examined(environ).wrong()
        server.hang()
        stack.callback(server.wake)
        assert "does not answer in time" in examined(environ).said("redis")


@pytest.mark.parametrize(
    ("scheme", "is_noted"), [("redis", True), ("redis+cluster", True), ("rediss", False), ("rediss+cluster", False)]
)
def test_a_redis_far_away_without_tls_is_worth_a_note(scheme: str, is_noted: bool, tmp_path: Path) -> None:
    seen = examined({"MIVRA_HOME": str(tmp_path), "REDIS_URL": f"{scheme}://:hunter2@cache.invalid:6379"})
    assert (("note", "without TLS") in [(verdict, text[:11]) for verdict, text in seen.lines["redis"]]) == is_noted


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(0.0, "ok"), (5.0, "note"), (-5.0, "note"), (60.0, "wrong"), (-60.0, "wrong")]
)
def test_clocks_that_differ_are_told_apart(
    sound: Environ, monkeypatch: pytest.MonkeyPatch, ahead_s: float, verdict: str
) -> None:
    real = doctor_case.now
    for module in (doctor_case, doctor_supabase):
        monkeypatch.setattr(module, "now", lambda: real() - ahead_s)
    seen = examined(sound)
    assert [found for found, _ in seen.lines["clock"]] == [verdict]
    assert [found for found, _ in seen.lines["supabase"]] == ["ok", verdict]
    assert ("ahead" if ahead_s > 0 else "behind") in seen.said("clock") or not ahead_s


def test_too_few_connections_are_counted(sound: Environ, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {name: text for name, text in sound.items() if name != "POOLER_URL"}
    assert "12 connections" in examined(alone).said("connections")
    monkeypatch.setattr(doctor_database, "RESERVED", 100_000)
    assert examined(alone).wrong() == {"connections"}
    assert examined(sound).code == 0, "the pooler has enough"


class Silent:
    """Takes connections, and says nothing on them."""

    def __init__(self) -> None:
        self.taken: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                self.taken.append(self._listening.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for one in self.taken:
            one.close()


def test_a_server_that_hangs_is_asked_once_and_stops_no_other_check(
    sound: Environ, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres.KEEPALIVE, "connect_timeout", 2)
    monkeypatch.setattr(doctor_supabase, "ANSWER_S", 0.3)
    with closing(Silent()) as silent:
        url = f"postgresql://ana:hunter2@127.0.0.1:{silent.port}/x?sslmode=disable&gssencmode=disable"
        after = examined({**sound, "DATABASE_URL": url})
        assert len(silent.taken) == 1
    assert after.wrong() == {"database"}
    assert set(after.lines) == SUBJECTS
    project.auth.faults.append(hanging)
    project.auth.requests.clear()
    assert examined(sound).wrong() == {"supabase"}
    assert len(project.auth.requests) == 1


def test_the_line_of_a_sound_project_is_what_a_person_can_read(sound: Environ) -> None:
    said: list[str] = []
    report(sound, said.append)
    assert not [line for line in said if "{" in line or len(line) > 200], json.dumps(said, indent=1)


def _execute(environ: Environ, statement: str) -> None:
    with psycopg.connect(environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(statement.encode())
