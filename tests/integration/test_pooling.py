"""Few connections serve many callers, directly and through a pooler; none of them notices that one was lost."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import scalar_row

from mivra import analytics
from mivra.cache import Region
from mivra.cache.cached import bind, unbind
from mivra.cache.remote import RemoteTier
from mivra.control.commands import Order, create_bot, request_bot
from mivra.errors import ConfigError, Conflict, InvalidData, StoreTimeout, StoreUnavailable
from mivra.store import pooler, postgres, retry
from mivra.store.base import READS, one
from mivra.store.pooler import is_transaction_pooler, refuse_transaction_pooler
from mivra.store.postgres import POOL_WAIT_S, PostgresStore, _counted
from tests.integration.control_world import CONFIG
from tests.pgbouncer import behind, pgbouncer
from tests.servers import Proxy, free_port
from tests.support import wait_until

CALLERS = 120
READERS = 50
APPLICATION = "mivra pooling"
Opened = Callable[..., PostgresStore]

FUNCTIONS = """
create function settings_here() returns table (backend int, operator uuid, patience text) language sql as
  $$ select pg_backend_pid(), on_behalf_of(), current_setting('statement_timeout') $$;
create function gate() returns table (passed int) language sql as
  $$ select 1 from (select pg_advisory_xact_lock_shared(1)) as l $$;
create function nap(seconds double precision) returns table (slept int) language sql as
  $$ select 1 from (select pg_sleep(seconds)) as s $$;
create function complain(code text) returns table (x int) language plpgsql as
  $$ begin raise exception 'refused as %', code using errcode = code; end $$;
create function chatter() returns table (x int) language plpgsql as
  $$ begin raise notice 'by the way'; raise warning 'mind this'; return query select 1; end $$;
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine is decides no test."""
    monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT_MS", 60_000)
    monkeypatch.setattr(postgres, "ANSWER_S", 70.0)
    monkeypatch.setattr(postgres, "POOL_WAIT_S", 60.0)
    monkeypatch.setattr(retry, "BUDGET_S", 60.0)


@pytest.fixture(scope="module")
def poolers(servers: tuple[str, str | None]) -> Iterator[dict[str, str | None]]:
    with pgbouncer(servers[0]) as url:
        yield {"direct": None, "pooled": url}


@pytest.fixture
def console(database_url: str) -> Iterator[psycopg.Connection[object]]:
    with psycopg.connect(database_url, autocommit=True, row_factory=scalar_row) as connection:
        connection.execute(FUNCTIONS)
        yield connection


@pytest.fixture(params=["direct", "pooled"])
def opened(
    request: pytest.FixtureRequest,
    database_url: str,
    poolers: dict[str, str | None],
    console: psycopg.Connection[object],
) -> Iterator[Opened]:
    """Opens a store to this database by one of the ways there are."""
    address = poolers[request.param]
    url = behind(address, database_url) if address else database_url
    with ExitStack() as stack:

        def open_one(**options: int) -> PostgresStore:
            made = PostgresStore(url, application=APPLICATION, pooled=request.param == "pooled", **options)
            return stack.enter_context(closing(made))

        yield open_one


def backends(console: psycopg.Connection[object]) -> set[object]:
    """Those that serve a store."""
    statement = "select pid from pg_stat_activity where datname = current_database() and application_name = %s"
    return set(console.execute(statement, [APPLICATION]).fetchall())


def end_backends(console: psycopg.Connection[object]) -> set[object]:
    """All but this one, whoever owns them; which they were."""
    rows = console.execute(
        "with others as materialized (select pid from pg_stat_activity where datname = current_database() "
        "and pid <> pg_backend_pid() and backend_type = 'client backend') "
        "select pid from others where pg_terminate_backend(pid)"
    )
    return set(rows.fetchall())


def fill(store: PostgresStore, console: psycopg.Connection[object]) -> None:
    """As many connections as the store may have, all of them idle at the end."""
    console.execute("select pg_advisory_lock(1)")
    with ThreadPoolExecutor(store.statistics().limit) as threads:
        calls = [threads.submit(store.call, "gate") for _ in range(store.statistics().limit)]
        wait_until(lambda: store.statistics().in_use == len(calls) == len(backends(console)), what="all are used")
        console.execute("select pg_advisory_unlock(1)")
        for call in calls:
            call.result()


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """What each of so many threads returns, all let go at the same time; the first error is raised."""
    start = threading.Barrier(count)

    def run(number: int) -> object:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


class Progress:
    """Counts what was done, and tells when it is time for the next fault."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.done, self.is_over = 0, False

    def add(self) -> None:
        with self._changed:
            self.done += 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    def wait_for_more(self, steps: int) -> bool:
        with self._changed:
            goal = self.done + steps
            self._changed.wait_for(lambda: self.is_over or self.done >= goal)
            return not self.is_over


@contextmanager
def losing_backends(console: psycopg.Connection[object], steps: int = READERS) -> Iterator[tuple[Progress, list[int]]]:
    """All backends end whenever so much was done; afterwards the list has what was done before each time."""
    progress, rounds = Progress(), []

    def end_them() -> None:
        while progress.wait_for_more(steps):
            end_backends(console)
            rounds.append(progress.done)

    thread = threading.Thread(target=end_them)
    thread.start()
    try:
        yield progress, rounds
    finally:
        progress.end()
        thread.join()


# Many callers


def test_a_hundred_and_twenty_callers_share_eight_connections(
    opened: Opened, console: psycopg.Connection[object]
) -> None:
    store = opened(max_connections=8)
    console.execute("select pg_advisory_lock(1)")
    with ThreadPoolExecutor(CALLERS) as threads:
        calls = [threads.submit(store.call, "gate") for _ in range(CALLERS)]

        def is_full() -> bool:
            now = store.statistics()
            return (now.in_use, now.waiting) == (8, CALLERS - 8)

        wait_until(is_full, what="eight are served and all others wait")
        wait_until(lambda: len(backends(console)) == 8, what="eight backends")
        console.execute("select pg_advisory_unlock(1)")
        assert [call.result() for call in calls] == [[{"passed": 1}]] * CALLERS
    assert len(backends(console)) <= 8
    now = store.statistics()
    assert (now.limit, now.size, now.in_use, now.waiting) == (8, 8, 0, 0)
    assert (now.queries, now.errors, now.retries, now.lost) == (CALLERS, 0, 0, 0)
    assert CALLERS - 8 <= now.waits <= CALLERS
    assert now.wait_ms > 0


def test_never_more_backends_than_the_limit_whatever_the_callers_do(
    opened: Opened, console: psycopg.Connection[object]
) -> None:
    store, most, over = opened(max_connections=8), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            most.append(len(backends(console)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        answers = at_once(CALLERS, lambda _: [len(store.call("nap", seconds=0.001)) for _ in range(5)])
    finally:
        over.set()
        watcher.join()
    assert answers == [[1] * 5] * CALLERS
    assert 0 < max(most) <= 8
    assert (store.statistics().queries, store.statistics().errors) == (5 * CALLERS, 0)


def test_what_many_threads_count_at_once_is_counted(opened: Opened) -> None:
    store, interval = opened(max_connections=1), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            store._counts.clear()
            at_once(8, lambda _: [store._count(queries=1) for _ in range(20)])
            assert store.statistics().queries == 160
    finally:
        sys.setswitchinterval(interval)


# Lost connections


def test_readers_do_not_notice_that_all_backends_end_again_and_again(
    opened: Opened, console: psycopg.Connection[object]
) -> None:
    store = opened(max_connections=8)
    with losing_backends(console) as (progress, rounds):

        def read(_: int) -> int:
            for _ in range(40):
                assert store.call("function_shapes")
                progress.add()
            return 40

        assert sum(map(int, at_once(READERS, read))) == READERS * 40
    now = store.statistics()
    assert len(rounds) >= 10
    assert (now.errors, now.in_use, now.waiting) == (0, 0, 0)
    assert now.retries > 0
    assert now.lost > 0
    assert now.queries == READERS * 40 + now.retries


def test_no_figure_of_a_page_fails_while_all_backends_end(opened: Opened, console: psycopg.Connection[object]) -> None:
    store, figures = opened(max_connections=8), analytics.FIGURES
    regions: list[Region] = []
    try:
        with losing_backends(console, len(figures)) as (progress, rounds):
            for _ in range(15):
                # Nothing is kept from before: every figure is read from the database.
                regions.append(Region(RemoteTier(None)))
                bind(regions[-1], store)

                def read(number: int) -> str | None:
                    shown = figures[number % len(figures)].read()
                    progress.add()
                    return shown.error

                assert at_once(3 * len(figures), read) == [None] * 3 * len(figures)
        assert len(rounds) >= 10
        assert store.statistics().errors == 0
    finally:
        unbind()
        for region in regions:
            region.close()


def test_a_command_is_given_once_however_often_its_connection_is_lost(
    opened: Opened, console: psycopg.Connection[object]
) -> None:
    store = opened(max_connections=8)
    owner = one(store.call("ensure_user", email="owner@example.com"))["user_id"]
    assert create_bot(store, "euro", "euro", CONFIG, owner)
    with losing_backends(console, 8) as (progress, rounds):

        def command(number: int) -> int:
            generations = []
            for desired in ("running", "paused", "stopped"):
                order = Order(f"person {number}", request_id=uuid4())
                generations.append(request_bot(store, "euro", desired, order).generation)
                progress.add()
            return len(set(generations))

        assert at_once(30, command) == [3] * 30
    assert len(rounds) >= 5
    audit = console.execute("select generation from bot_audit order by generation").fetchall()
    assert audit == list(range(1, 91))


def test_a_write_without_a_key_of_its_own_is_done_once_or_not_at_all(
    opened: Opened, console: psycopg.Connection[object]
) -> None:
    store = opened(max_connections=8)
    with losing_backends(console, 8) as (progress, _rounds):

        def write(number: int) -> list[str]:
            written = []
            for turn in range(10):
                target = f"{number}.{turn}@example.com"
                with suppress(StoreUnavailable):
                    store.call("sign_in_failed", email=target, address="here", why="wrong")
                    written.append(target)
                progress.add()
            return written

        known = {target for each in at_once(30, write) for target in each}  # type: ignore[attr-defined]
    found = console.execute("select target from operator_audit").fetchall()
    assert len(found) == len(set(found))
    assert known <= set(found)
    assert store.statistics().queries == 300


class Cut:
    """Ends the line after so many bytes of the server, with so many last words as a pooler may have."""

    WORDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    LAST = b"E" + (len(WORDS) + 4).to_bytes(4) + WORDS

    def __init__(self, proxy: Proxy, after: int, words: int) -> None:
        self.proxy, self.left, self.words, self.is_over = proxy, after, words, False
        proxy.is_cut, proxy.change = False, self

    def __call__(self, data: bytes) -> bytes:
        whole, self.left = data[: max(self.left, 0)], self.left - len(data)
        if self.left >= 0 or self.is_over:
            return whole
        self.proxy.is_cut = self.is_over = True
        return whole + self.words * self.LAST


def length_of_answer(proxy: Proxy, ask: Callable[[], object]) -> int:
    """In bytes."""
    heard = bytearray()

    def change(data: bytes) -> bytes:
        heard.extend(data)
        return data

    proxy.change = change
    ask()
    return len(heard)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_line_that_ends_at_any_byte_of_an_answer_is_an_error_of_ours(
    mode: str, database_url: str, console: psycopg.Connection[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_lives", lambda connection: not connection.closed)
    with ExitStack() as stack:
        there = conninfo_to_dict(stack.enter_context(pgbouncer(database_url, mode)))
        proxy = stack.enter_context(closing(Proxy(int(str(there["port"])))))
        url = make_conninfo(**{**there, "host": "127.0.0.1", "port": proxy.port})
        store = stack.enter_context(closing(PostgresStore(url, max_connections=1, pooled=mode == "transaction")))

        def write(who: str) -> None:
            store.call("sign_in_failed", email=f"{who}@example.com", address="here", why="wrong")

        store.call("gate")
        length = length_of_answer(proxy, lambda: write("nobody"))
        assert length > 50
        for words, after in itertools.product(range(3), range(length)):
            proxy.is_cut, proxy.change = False, bytes
            store.call("gate")
            proxy.change = Cut(proxy, after, words)
            with pytest.raises(StoreUnavailable):
                write(f"{words}.{after}")
    found = console.execute("select target from operator_audit").fetchall()
    assert len(found) == len(set(found))


def test_more_answers_than_were_asked_for_are_the_end_of_the_line(console: psycopg.Connection[object]) -> None:
    with pytest.raises(IndexError), _counted(console):
        deque[int]().popleft()
    console.close()
    with pytest.raises(StoreUnavailable, match="ended the connection"), _counted(console):
        deque[int]().popleft()


def test_what_is_asked_again_only_reads(console: psycopg.Connection[object]) -> None:
    readers = console.execute(
        "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and provolatile <> 'v'"
    )
    assert set(readers.fetchall()) >= READS


def test_whoever_finds_the_whole_pool_dead_is_served_all_the_same(
    monkeypatch: pytest.MonkeyPatch, opened: Opened, console: psycopg.Connection[object]
) -> None:
    monkeypatch.setattr(postgres, "POOL_WAIT_S", POOL_WAIT_S)  # not patient: the pool's own check took longer
    store = opened(max_connections=8)
    for callers in (1, 1, 4, 12):
        fill(store, console)
        died = end_backends(console)
        wait_until(lambda died=died: not died & backends(console), what="they are gone")  # type: ignore[misc]
        # Not to be repeated: the dead must be found before anything is asked.
        assert at_once(callers, lambda _: store.call("gate")) == [[{"passed": 1}]] * callers
    assert (store.statistics().errors, store.statistics().retries) == (0, 0)


def test_connections_that_were_lost_are_counted(database_url: str, console: psycopg.Connection[object]) -> None:
    with closing(PostgresStore(database_url, max_connections=1, application=APPLICATION)) as store:
        store.call("settings_here")
        end_backends(console)
        wait_until(lambda: not backends(console))
        store.call("settings_here")
        assert store.statistics().lost == 1, "found dead before it was used"
        console.execute("select pg_advisory_lock(1)")
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(store.call, "gate")
            wait_until(lambda: store.statistics().in_use and backends(console))
            end_backends(console)
            with pytest.raises(StoreUnavailable):
                call.result()
        assert store.statistics().lost == 2, "lost while it was used"
        assert (store.statistics().errors, store.statistics().retries) == (1, 0)


def test_a_database_that_is_away_is_one_line_in_the_log_that_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres._seldom, "due", 0.0)
    monkeypatch.setattr(postgres, "POOL_WAIT_S", 0.5)
    with closing(PostgresStore(f"postgresql://nobody@127.0.0.1:{free_port()}/none", max_connections=4)) as store:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                store.call("ensure_user", email="owner@example.com")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]
    assert "Connection refused" in line


# What a caller is told


@pytest.fixture(params=["itself", "operator"])
def asking(request: pytest.FixtureRequest, opened: Opened) -> PostgresStore:
    """One connection, asking for the program itself or on behalf of an operator."""
    store = opened(max_connections=1)
    return store.on_behalf_of(uuid4()) if request.param == "operator" else store


@pytest.mark.parametrize(
    ("code", "error"),
    [("PT409", Conflict), ("23505", Conflict), ("22023", InvalidData), ("57014", StoreTimeout)],
)
def test_an_error_has_the_code_and_the_words_of_the_database(
    asking: PostgresStore, code: str, error: type[Exception], console: psycopg.Connection[object]
) -> None:
    with pytest.raises(error, match=f"^refused as {code}$") as raised:
        asking.call("complain", code=code)
    assert raised.value.code == code  # type: ignore[attr-defined]
    assert console.execute(
        "select state from pg_stat_activity where application_name = %s", [APPLICATION]
    ).fetchall() in (
        ["idle"],
        ["idle", "idle"],
    )
    assert len(asking.call("settings_here")) == 1


def test_a_notice_disturbs_no_answer(asking: PostgresStore) -> None:
    assert asking.call("chatter") == [{"x": 1}]


def test_what_was_written_is_there_for_others_when_the_call_returns(
    opened: Opened, console: psycopg.Connection[object]
) -> None:
    opened(max_connections=1).call("ensure_user", email="owner@example.com")
    assert console.execute("select email from profiles").fetchall() == ["owner@example.com"]


def test_a_statement_over_its_time_is_a_timeout_and_the_connection_goes_on(
    monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT_MS", 300)
    own = opened(max_connections=1)
    for store in (own, own.on_behalf_of(uuid4())):
        before = store.call("settings_here")
        assert before[0]["patience"] == "300ms"
        with pytest.raises(StoreTimeout):
            store.call("nap", seconds=60.0)
        assert store.call("settings_here") == before
    assert (own.statistics().lost, own.statistics().retries, own.statistics().errors) == (0, 0, 2)


def test_a_pooler_in_session_mode_does_as_a_direct_connection(
    monkeypatch: pytest.MonkeyPatch, database_url: str, console: psycopg.Connection[object]
) -> None:
    monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT_MS", 300)
    with pgbouncer(database_url, "session") as url, closing(PostgresStore(url, max_connections=1)) as store:
        assert store.call("settings_here")[0]["patience"] == "300ms"
        with pytest.raises(StoreTimeout):
            store.call("nap", seconds=60.0)


def test_nobody_asks_in_the_name_of_who_used_the_connection_before(
    database_url: str, console: psycopg.Connection[object]
) -> None:
    with pgbouncer(database_url, pool_size=1) as url:
        for address, pooled in ((database_url, False), (url, True)):
            with closing(PostgresStore(address, max_connections=4, pooled=pooled)) as store:

                def ask(number: int, store: PostgresStore = store) -> list[UUID | None]:
                    operator = uuid4() if number % 3 else None
                    own = store.on_behalf_of(operator) if operator else store
                    seen = []
                    for turn in range(20):
                        if turn % 5 == 4:
                            with pytest.raises(Conflict):
                                own.call("complain", code="23505")
                        seen.append(own.call("settings_here")[0]["operator"])
                    return [operator] if seen == [operator] * 20 else seen

                assert all(len(seen) == 1 for seen in at_once(12, ask))  # type: ignore[arg-type]


# Poolers where LISTEN hears nothing


def test_a_direct_connection_is_no_pooler_and_nothing_of_the_question_stays(
    monkeypatch: pytest.MonkeyPatch, database_url: str, console: psycopg.Connection[object]
) -> None:
    monkeypatch.delattr(pooler, "_hold")  # known by the greeting, without a second connection
    assert not is_transaction_pooler(database_url)
    refuse_transaction_pooler(database_url)
    left = "select pid from pg_stat_activity where application_name = 'mivra pooler'"
    wait_until(lambda: not console.execute(left).fetchall(), what="the question's connections are closed")


@pytest.mark.parametrize(
    "pooling",
    [*itertools.product(("session", "transaction", "statement"), (1, 20), (False,)), ("transaction", 20, True)],
    ids=str,
)
def test_the_mode_of_a_pooler_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    console: psycopg.Connection[object],
    pooling: tuple[str, int, bool],
) -> None:
    mode, pool_size, round_robin = pooling
    monkeypatch.setattr(pooler, "HELD_S", 0.1)
    with pgbouncer(database_url, mode, pool_size=pool_size, round_robin=round_robin) as url:  # type: ignore[arg-type]
        for _ in range(3):
            assert is_transaction_pooler(url) == (mode != "session")
        in_transaction = "select pid from pg_stat_activity where state like '%in transaction%'"
        wait_until(lambda: not console.execute(in_transaction).fetchall(), what="nothing is held any more")
        if mode == "session":
            refuse_transaction_pooler(url)
        else:
            with pytest.raises(ConfigError, match="put it into POOLER_URL"):
                refuse_transaction_pooler(url)


def test_the_question_costs_a_pool_no_backend(database_url: str) -> None:
    def backend(url: str) -> object:
        with psycopg.connect(url, autocommit=True, row_factory=scalar_row) as connection:
            return connection.execute("select pg_backend_pid()").fetchone()

    with pgbouncer(database_url, pool_size=1) as url:
        before = backend(url)
        assert is_transaction_pooler(url)
        assert backend(url) == before


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_mode_is_found_out_while_others_use_the_pool(
    monkeypatch: pytest.MonkeyPatch, database_url: str, console: psycopg.Connection[object], mode: str
) -> None:
    monkeypatch.setattr(pooler, "HELD_S", 0.3)
    rounds = 20 if mode == "transaction" else 2
    with pgbouncer(database_url, mode, pool_size=4) as url:  # type: ignore[arg-type]
        busy = PostgresStore(url, max_connections=8 if mode == "transaction" else 3, pooled=mode == "transaction")
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                busy.call("nap", seconds=0.01)

        with closing(busy), ThreadPoolExecutor(8) as threads:
            work_done = [threads.submit(work) for _ in range(8)]
            try:
                assert [is_transaction_pooler(url) for _ in range(rounds)] == [mode == "transaction"] * rounds
            finally:
                over.set()
            for each in work_done:
                each.result()


def test_who_cannot_know_says_that_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, database_url: str, console: psycopg.Connection[object]
) -> None:
    with pytest.raises(StoreUnavailable):
        is_transaction_pooler(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    monkeypatch.setattr(pooler, "ANSWER_S", 0.5)
    with pgbouncer(database_url, pool_size=1) as url, psycopg.connect(url) as holder:
        holder.execute("select 1")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            refuse_transaction_pooler(url)
        assert time.monotonic() - began < 60
        holder.rollback()
    console.execute("select 1")
