"""Redis alone, behind TLS, with sentinels and as a cluster: reached, found again, and explained when it is not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.parse import quote

import pytest
import redis

from mivra.cache.entry import NAMESPACE
from mivra.cache.primary import ASK_S, NoPrimary
from mivra.cache.server import FAILURES, TIMEOUT_S, Client, ask, connect, explain
from mivra.errors import ConfigError
from tests.servers import CERTIFICATE, Group, Liar, Process, cluster, cluster_state, free_port, sentinels, tls
from tests.support import wait_until

KINDS = ("redis", "rediss", "sentinel", "cluster")
ONE, TWO = f"{NAMESPACE}:one", f"{NAMESPACE}:two"
Open = Callable[[str], Client]


@pytest.fixture(scope="module")
def watched() -> Iterator[Group]:
    with sentinels() as group:
        yield group


@pytest.fixture(scope="module")
def nodes() -> Iterator[Group]:
    with cluster() as group:
        yield group


@pytest.fixture
def clustered(nodes: Group) -> Group:
    wait_until(lambda: all(cluster_state(node)["cluster_state"] == "ok" for node in nodes.servers))
    return nodes


@pytest.fixture(scope="module")
def alone() -> Iterator[Process]:
    with closing(Process()) as server:
        yield server


@pytest.fixture(scope="module")
def secured(alone: Process) -> Iterator[str]:
    with tls(alone.port) as port:
        yield f"rediss://:secret@localhost:{port}/0?ssl_ca_certs={quote(str(CERTIFICATE))}"


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    match request.param:
        case "redis":
            return f"redis://:secret@{request.getfixturevalue('alone').address}/0"
        case "rediss":
            return str(request.getfixturevalue("secured"))
        case "sentinel":
            return str(request.getfixturevalue("watched").url)
    return str(request.getfixturevalue("clustered").url)


@pytest.fixture
def open_client() -> Iterator[Open]:
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(closing(connect(patient(url))))


def patient(url: str) -> str:
    """With time for a crowded machine, unless the URL says how long; of two options the first counts."""
    return f"{url}{'&' if '?' in url else '?'}socket_timeout=5&socket_connect_timeout=5"


@pytest.fixture
def lie() -> Iterator[Callable[..., Liar]]:
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(closing(Liar(*args, **options)))


def keeps_trying(client: Client, key: str, value: str) -> list[str]:
    """Write until it is written; what was said meanwhile."""
    said: list[str] = []

    def written() -> bool:
        try:
            return bool(client.set(key, value))
        except FAILURES as error:
            said.append(explain(error))
            return False

    wait_until(written)
    return said


def test_every_command_of_the_cache_works(url: str, open_client: Open) -> None:
    client = open_client(url)
    for key in client.scan_iter(match=f"{NAMESPACE}:*", count=500):
        client.unlink(key)
    assert (client.set(ONE, "1", nx=True, px=60_000), client.set(ONE, "2", nx=True, px=60_000)) == (True, None)
    assert client.mget([ONE, TWO]) == [b"1", None]
    script = client.register_script("redis.call('set', KEYS[2], ARGV[1]) return redis.call('get', KEYS[1])")
    assert script([ONE, TWO], ["2"], client) == b"1"
    assert client.pipeline(transaction=False).get(TWO).hincrby(f"{NAMESPACE}:h", "f", 2).execute() == [b"2", 2]
    assert client.hgetall(f"{NAMESPACE}:h") == {b"f": b"2"}
    assert sorted(client.scan_iter(match=f"{NAMESPACE}:[ot]*", count=500)) == sorted([ONE.encode(), TWO.encode()])
    assert client.unlink(ONE) == 1


def test_what_one_client_publishes_another_hears(url: str, open_client: Open) -> None:
    with closing(open_client(url).pubsub()) as subscription:
        subscription.subscribe(f"{NAMESPACE}:hints")
        wait_until(lambda: (message := subscription.get_message(timeout=1)) and message["type"] == "subscribe")
        open_client(url).publish(f"{NAMESPACE}:hints", "changed")
        heard = wait_until(lambda: subscription.get_message(timeout=1))
    assert heard["data"] == b"changed"


def test_two_hundred_threads_wait_for_32_connections(url: str, open_client: Open) -> None:
    client = open_client(f"{url}{'&' if '?' in url else '?'}client_name=crowd&timeout=60")
    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(lambda _: client.blpop([f"{NAMESPACE}:none"], 0.02), range(400)))
    assert answers == [None] * 400
    assert [each["name"] for each in client.client_list()].count("crowd") == 32


@pytest.mark.parametrize(
    "form",
    [
        *("redis://h", "rediss://h", "unix:///s"),
        *("redis+sentinel://h/mine", "rediss+sentinel://h/mine/1"),
        *("redis+cluster://h,[::1]:7", "rediss+cluster://h:7,i"),
    ],
)
def test_options_in_the_url_win_over_ours(form: str) -> None:
    def options(url: str) -> tuple[Any, ...]:
        pool: Any = connect(url).connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)
        times = connection.socket_timeout, connection.socket_connect_timeout, connection.health_check_interval
        return *times, pool.timeout, pool.max_connections

    ours = (TIMEOUT_S, 5, 0, TIMEOUT_S, 32) if form.startswith("unix") else (TIMEOUT_S, TIMEOUT_S, 30, TIMEOUT_S, 32)
    theirs = "socket_timeout=0.3&socket_connect_timeout=1&health_check_interval=9&timeout=2&max_connections=5"
    assert options(form) == ours
    assert options(f"{form}?{theirs}") == (0.3, 1, 9, 2, 5)


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_options_in_the_url_are_those_of_who_is_asked_as_well(kind: str, open_client: Open) -> None:
    url = f"rediss+{kind}://user:secret@h{'/mine/3' if kind == 'sentinel' else ''}?socket_timeout=0.3"
    pool: Any = open_client(url).connection_pool
    asked = pool.connection_kwargs["finder"]._node(host="h", port=1)
    assert isinstance(asked, redis.SSLConnection)
    assert (asked.socket_timeout, asked.db) == (0.3, 0)
    assert (asked.username, asked.password) == ((None, None) if kind == "sentinel" else ("user", "secret"))


def test_sentinels_have_a_login_of_their_own(open_client: Open) -> None:
    pool: Any = open_client("redis+sentinel://u:p@h/mine?sentinel_username=su&sentinel_password=sp").connection_pool
    asked = pool.connection_kwargs["finder"]._node(host="h", port=1)
    assert (asked.username, asked.password) == ("su", "sp")
    found = pool.connection_class(**pool.connection_kwargs)
    assert (found.username, found.password) == ("u", "p")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://:hunter2@h", "must begin with redis://, "),
        ("hunter2", "must begin"),
        ("", "must begin"),
        ("unix+cluster:///hunter2", "must begin"),
        ("redis://:hunter2@h:port", "wrong host or port"),
        ("redis://:hunter2@h:99999", "wrong host or port"),
        ("redis://:hun/ter2@h:1", "wrong host or port"),
        ("redis://:hun#ter2@h:1", "wrong host or port"),
        ("redis+cluster://:hunter2@h:1,i:x", "wrong host or port"),
        ("redis+cluster://[::1", "wrong host or port"),
        ("redis+sentinel://:hunter2@h", "wrong service or database"),
        ("redis+sentinel://:hunter2@h//0", "wrong service or database"),
        ("redis+sentinel://:hunter2@h/mine/hunter2", "wrong service or database"),
        ("redis://:hunter2@h/hunter2", "wrong path"),
        ("redis+cluster://:hunter2@h/mine/0", "wrong path"),
        ("redis://:hunter2@h?hunter2=1", "wrong option"),
        ("redis://h?sentinel_password=hunter2", "wrong option"),
        ("redis+cluster://h?ssl_ca_certs=hunter2", "wrong option"),
        ("rediss://h?ssl_cert_reqs=hunter2", "wrong option"),
        ("redis://:hunter2@h?socket_timeout=hunter2", "wrong option"),
        ("redis://:hunter2@h?protocol=9", "wrong option"),
    ],
)
def test_a_wrong_url_is_refused_with_what_is_wrong_and_an_example(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^REDIS_URL .*{said}.* write redis") as caught:
        connect(url)
    assert "hun" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_nothing_is_asked_before_the_first_command(open_client: Open) -> None:
    port = free_port()
    for url in (f"redis+sentinel://127.0.0.1:{port}/mine", f"redis+cluster://127.0.0.1:{port}"):
        client = open_client(url)
        client.register_script("return 1")
        client.pubsub().close()
        with pytest.raises(redis.ConnectionError, match="refused"):
            client.get(ONE)


def test_a_planned_failover_is_followed_at_once(watched: Group, clustered: Group, open_client: Open) -> None:
    """The old primary of sentinels takes writes for 8 s more, which would be lost."""
    sentinel = open_client(f"redis://:secret@{watched.url.partition('@')[2].partition(',')[0]}")
    for group, decides, command in (
        (watched, sentinel, ("SENTINEL FAILOVER", "mine")),
        (clustered, replica_of(clustered).client, ("CLUSTER FAILOVER",)),
    ):
        client = open_client(group.url)
        client.set(ONE, "before")
        old, new = group.primary(), replica_of(group)
        decides.execute_command(*command)
        wait_until(lambda new=new: new.client.info("replication")["role"] == "master")
        wait_until(lambda client=client, new=new: client_writes(client, new), what="a write to the new primary")
        assert keeps_trying(client, TWO, "after") == []
        obey(old, new, group)
        assert new.client.get(TWO) == b"after"


def client_writes(client: Client, server: Process) -> bool:
    keeps_trying(client, ONE, "after")
    return server.client.get(ONE) == b"after"


def obey(old: Process, new: Process, group: Group) -> None:
    """Sentinels would say so after 8 s."""
    if "sentinel" in group.url:
        old.client.execute_command("REPLICAOF", "127.0.0.1", new.port)
    wait_until(lambda: old.client.info("replication").get("master_link_status") == "up")


def replica_of(group: Group) -> Process:
    return next(server for server in group.servers if server.client.info("replication")["role"] == "slave")


@pytest.mark.parametrize("form", ["redis://{}", "redis+sentinel://{}/mine", "redis+cluster://{}"])
def test_a_server_that_does_not_answer_is_tried_once(form: str, lie: Callable[..., Liar]) -> None:
    heard: list[int] = []
    server = lie(lambda: heard.append(1) or b"", handshake=False)
    with closing(connect(form.format(f"127.0.0.1:{server.port}"))) as client, pytest.raises(redis.TimeoutError):
        client.get(ONE)
    wait_until(lambda: heard)
    assert len(heard) == 1


def test_after_a_failover_the_same_client_writes_to_the_new_primary(
    watched: Group, clustered: Group, open_client: Open
) -> None:
    for group in (watched, clustered):
        client = open_client(group.url)
        script = client.register_script("return redis.call('get', KEYS[1])")
        client.set(ONE, "before")
        assert script([ONE], [], client) == b"before"
        old = group.primary()
        old.kill()
        assert keeps_trying(client, ONE, "after")
        assert script([ONE], [], client) == b"after"
        new = group.primary()
        assert new is not old
        assert new.client.get(ONE) == b"after"
        old.start()
        obey(old, new, group)
        assert client.get(ONE) == b"after"


def test_a_cluster_that_was_away_altogether_is_found_again(clustered: Group, open_client: Open) -> None:
    client = open_client(clustered.url)
    client.set(ONE, "before")
    for server in clustered.servers:
        server.kill()
    for _ in range(5):
        with pytest.raises(FAILURES):
            client.get(ONE)
    for server in clustered.servers:
        server.start()
    keeps_trying(client, ONE, "after")


def test_the_one_node_in_the_url_may_go_once_it_named_the_others(clustered: Group, open_client: Open) -> None:
    client = open_client(clustered.url)
    client.set(ONE, "before")
    given = next(server for server in clustered.servers if server.address in clustered.url)
    assert given is not clustered.primary()
    given.kill()
    client.connection_pool.disconnect()
    try:
        keeps_trying(client, ONE, "after")
        with pytest.raises(FAILURES):
            open_client(clustered.url).get(ONE)
    finally:
        given.start()
        keeps_trying(open_client(clustered.url), ONE, "after")


def test_a_node_that_hangs_is_gone_around(clustered: Group, open_client: Open) -> None:
    hung = next(server for server in clustered.servers if server.address in clustered.url)
    primary = clustered.primary()
    client = open_client(
        f"{clustered.url.replace(hung.address, f'{hung.address},{primary.address}')}?socket_timeout=0.2"
    )
    hung.hang()
    try:
        keeps_trying(client, ONE, "after")
    finally:
        hung.wake()


def says(port: int) -> Callable[[], bytes]:
    """What a sentinel answers that takes the server at this port for the primary."""
    answer = f"*2\r\n$9\r\n127.0.0.1\r\n${len(str(port))}\r\n{port}\r\n".encode()
    return lambda: answer


def test_sentinels_and_their_servers_are_reached_with_tls(
    secured: str, lie: Callable[..., Liar], open_client: Open
) -> None:
    login, _, rest = secured.partition("localhost:")
    port, _, options = rest.partition("/0")
    with tls(lie(says(int(port))).port) as sentinel:
        client = open_client(f"{login.replace('rediss', 'rediss+sentinel')}localhost:{sentinel}/mine{options}")
        assert client.set(ONE, "1")
        client.close()


def test_two_primaries_are_never_used_at_once(alone: Process, lie: Callable[..., Liar], open_client: Open) -> None:
    with closing(Process()) as other:
        sentinel = lie(says(alone.port))
        pool: Any = open_client(f"redis+sentinel://:secret@127.0.0.1:{sentinel.port}/mine").connection_pool
        first, second = pool.get_connection(), pool.get_connection()
        sentinel.answer = says(other.port)
        first.disconnect()
        for number, connection in enumerate((first, second)):
            connection.send_command("SET", f"where{number}", "here")
            assert connection.read_response() == b"OK"
            pool.release(connection)
        assert other.client.mget("where0", "where1") == [b"here", b"here"]
        assert alone.client.mget("where0", "where1") == [None, None]


def test_a_primary_is_believed_for_a_second_and_longer_while_nobody_knows_better(
    alone: Process, lie: Callable[..., Liar], open_client: Open
) -> None:
    with closing(Process()) as other:
        sentinel = lie(says(alone.port))
        client = open_client(f"redis+sentinel://:secret@127.0.0.1:{sentinel.port}/mine")
        now = itertools.count(0.0, ASK_S + 0.1)
        client.connection_pool.connection_kwargs["finder"]._clock = now.__next__
        client.set("believed", "0")
        sentinel.answer = lambda: None
        client.set("believed", "1")
        assert alone.client.get("believed") == b"1"
        sentinel.answer = says(other.port)
        client.set("believed", "2")
        assert (alone.client.get("believed"), other.client.get("believed")) == (b"1", b"2")


def test_a_sentinel_that_is_behind_is_not_asked_twice(
    watched: Group, lie: Callable[..., Liar], open_client: Open
) -> None:
    primary, replica = watched.primary(), replica_of(watched)
    behind, right = lie(says(replica.port)), lie(says(primary.port))
    client = open_client(f"redis+sentinel://:secret@127.0.0.1:{behind.port},127.0.0.1:{right.port}/mine")
    with pytest.raises(NoPrimary) as caught:
        client.set(ONE, "1")
    assert "no primary" in explain(caught.value)
    assert client.set(ONE, "1")


def test_a_node_that_is_behind_is_not_asked_twice(
    clustered: Group, lie: Callable[..., Liar], open_client: Open
) -> None:
    primary = clustered.primary()
    other = next(server for server in clustered.servers if server is not primary)
    down = lie(lambda: b"-CLUSTERDOWN The cluster is down\r\n")
    for wrong in (other.port, down.port):
        behind = lie(lambda wrong=wrong: b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % wrong)
        client = open_client(f"redis+cluster://:secret@127.0.0.1:{behind.port},{primary.address}")
        with pytest.raises(NoPrimary):
            client.set(ONE, "1")
        keeps_trying(client, ONE, "2")


def test_a_sentinel_that_is_gone_is_gone_around(watched: Group, open_client: Open) -> None:
    url = watched.url.replace("@", f"@127.0.0.1:{free_port()},")
    assert open_client(url).set(ONE, "1")


def test_the_state_of_every_kind_of_server_is_told(url: str, open_client: Open) -> None:
    state = ask(open_client(url))
    assert (state.configured, state.available) == (True, True)
    assert state.detail.startswith("valkey ")
    assert state.detail.endswith("cluster") == ("+cluster" in url)
    assert (state.max_memory, state.eviction_policy) == (0, "noeviction")
    assert state.used_memory


def test_a_limit_of_memory_and_the_keys_of_all_databases_are_told(open_client: Open) -> None:
    with closing(Process("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")) as server:
        for database in (0, 3):
            client = open_client(f"redis://:secret@{server.address}/{database}")
            client.set(ONE, "1")
            client.get(ONE)
        state = ask(client)
    assert (state.max_memory, state.eviction_policy, state.keys, state.hit_rate) == (64 << 20, "allkeys-lru", 2, 1.0)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (b"redis_version:7.2", ("redis 7.2", None, None, 0)),
        (
            b"redis_version:8.0.1\r\ndb0:keys=3,expires=1\r\ndb0_distrib_strings_sizes:1=2",
            ("redis 8.0.1", None, None, 3),
        ),
    ],
)
def test_what_a_hosted_server_leaves_out_is_not_known(
    answer: bytes, state: tuple[Any, ...], lie: Callable[..., Liar], open_client: Open
) -> None:
    server = lie(lambda: b"$%d\r\n%s\r\n" % (len(answer), answer))
    found = ask(open_client(f"redis://127.0.0.1:{server.port}"))
    assert (found.detail, found.used_memory, found.hit_rate, found.keys) == state


@pytest.mark.parametrize(
    "answer",
    [
        *(b":5\r\n", b"$-1\r\n", b"*1\r\n+OK\r\n", b"+OK\r\n", b"*0\r\n", b"%1\r\n+redis_version\r\n:1\r\n"),
        *(b"$30\r\nredis_version:7\r\nused_memory:x\r\n", b"$24\r\nredis_version:7\r\ndb0:x=1\r\n"),
    ],
)
def test_a_state_that_makes_no_sense_is_no_state(answer: bytes, lie: Callable[..., Liar], open_client: Open) -> None:
    client = open_client(f"redis://127.0.0.1:{lie(lambda: answer).port}")
    with pytest.raises(redis.InvalidResponse) as caught:
        ask(client)
    assert "not Redis" in explain(caught.value)


def sentence(url: str) -> str:
    """What is said of a server when a figure is written and a channel is heard."""
    with closing(connect(patient(url))) as client, pytest.raises(FAILURES) as caught:
        client.set(ONE, "1")
    said = explain(caught.value)
    assert "secret" not in said
    assert "somebody" not in said
    assert "\n" not in said
    return said


def test_a_wrong_login_is_explained(alone: Process, watched: Group, clustered: Group) -> None:
    for url in (f"redis://{alone.address}", f"redis://somebody:secrets@{alone.address}"):
        assert "refuses the password in REDIS_URL" in sentence(url)
    for group in (watched, clustered):
        assert "refuses the password in REDIS_URL" in sentence(group.url.replace(":secret@", ":secrets@"))
    assert "refuses the password in REDIS_URL" in sentence(watched.url.partition("?")[0])
    alone.client.execute_command("ACL SETUSER", "somebody", "on", ">secret", "~other:*", "+@all")
    assert f"too little: it needs {NAMESPACE}" in sentence(f"redis://somebody:secret@{alone.address}")


def test_a_server_that_cannot_be_written_to_is_explained(watched: Group, open_client: Open) -> None:
    primary, replica = watched.primary(), replica_of(watched)
    assert "read-only replica" in sentence(f"redis://:secret@{replica.address}")
    primary.client.config_set("maxmemory", "1")
    try:
        assert "raise maxmemory" in sentence(watched.url)
    finally:
        primary.client.config_set("maxmemory", "0")


def test_the_wrong_kind_of_url_is_explained(
    alone: Process, watched: Group, clustered: Group, lie: Callable[..., Liar]
) -> None:
    sentinel = watched.url.partition("@")[2].partition(",")[0]
    wrong = clustered.url.partition("@")[2]
    assert "write redis+cluster://" in sentence(f"redis://:secret@{wrong}")
    assert "write redis+sentinel://" in sentence(f"redis://:secret@{sentinel}")
    assert "write redis://" in sentence(f"redis+cluster://:secret@{alone.address}")
    assert "no sentinel" in sentence(f"redis+sentinel://{alone.address}/mine?sentinel_password=secret")
    assert "service" in sentence(watched.url.replace("/mine", "/yours"))
    empty = lie(lambda: b"*0\r\n")
    assert "no primary" in sentence(f"redis+cluster://127.0.0.1:{empty.port}")
    assert "database that Redis does not have" in sentence(f"redis://:secret@{alone.address}/99")


def test_tls_that_does_not_fit_is_explained(alone: Process, secured: str) -> None:
    assert "certificate is not trusted" in sentence(secured.partition("?")[0])
    assert "does it want TLS" in sentence(secured.replace("rediss:", "redis:").partition("?")[0])
    assert "without TLS" in sentence(f"rediss://:secret@{alone.address}?socket_timeout=0.05")
    assert "does not exist" in sentence(f"{secured}.no")


def test_an_address_without_a_server_is_explained() -> None:
    assert "Nothing listens" in sentence(f"redis://somebody:secret@127.0.0.1:{free_port()}")
    assert "does not exist" in sentence("unix:///nowhere/valkey.sock")
    assert "host in REDIS_URL is not known" in sentence("redis://:secret@nobody.invalid:1")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "does not answer in time"),
        (None, "ends the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not Redis"),
        (b"*5\r\n", "does not answer in time"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "do not agree about TLS"),
        (b"-MOVED nonsense\r\n", "not Redis"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "still loading"),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "cannot save"),
        (b"-ERR max number of clients reached\r\n", "maxclients"),
        (b"-DENIED Redis is running in protected mode\r\n", "protected mode"),
        (b"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'somebody' 'secret'\r\n", "older than 6"),
        (b"-ASK 1 127.0.0.1:1\r\n", "ends by itself"),
        (b"-ODD secret\r\n", "Redis fails: ResponseError"),
    ],
)
def test_what_a_server_answers_is_explained(answer: bytes | None, said: str, lie: Callable[..., Liar]) -> None:
    server = lie(lambda: answer, handshake=False)
    wait = "?socket_timeout=0.05" if "in time" in said else ""
    assert said in sentence(f"redis://somebody:secret@127.0.0.1:{server.port}{wait}")


def test_a_crowd_is_explained(alone: Process) -> None:
    with closing(connect(f"redis://:secret@{alone.address}?max_connections=1&timeout=0.01")) as client:
        held: Any = client.connection_pool.get_connection()
        with pytest.raises(FAILURES) as caught:
            client.get(ONE)
        client.connection_pool.release(held)
    assert "busy" in explain(caught.value)


WRONG = [
    *(b"*1\r\n+OK\r\n", b"*-1\r\n", b"$-1\r\n", b":5\r\n", b"#t\r\n", b",1.5\r\n", b"_\r\n", b"*0\r\n", b"%0\r\n", b""),
    *(b"+OK\r\n", b"+\xff\r\n", b"$0\r\n\r\n", b"$5\r\nhello\r\n", b"*2\r\n:1\r\n:2\r\n", b"%1\r\n+a\r\n:1\r\n"),
    *(b"%1\r\n*1\r\n:1\r\n:1\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n", b"*3\r\n*0\r\n*0\r\n*0\r\n"),
    *(b">0\r\n", b">1\r\n+\xff\r\n", b">3\r\n$7\r\nmessage\r\n:1\r\n:2\r\n", b">2\r\n+message\r\n+x\r\n" * 2_000),
    *(
        b"*3\r\n$7\r\nmessage\r\n*0\r\n_\r\n",
        b"*3\r\n$11\r\nunsubscribe\r\n*0\r\n_\r\n",
        b"*2\r\n$7\r\nmessage\r\n*0\r\n",
    ),
    *(b"-\r\n", b"-MOVED x\r\n", b"-MOVED 1 x:y\r\n", b"-ASK 1 2 3\r\n", b"-CLUSTERDOWN\r\n", b"-READONLY\r\n"),
    *(b"-NOSCRIPT x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46", b"$9\r\nhalf"),
    *(b"*99999999999\r\n", b"*2\r\n$1\r\nh\r\n$20\r\n99999999999999999999\r\n", b"*2\r\n$1\r\nh\r\n:-1\r\n"),
    b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$1\r\nh\r\n:99999\r\n",
]


def hear(client: Client) -> None:
    with closing(client.pubsub()) as subscription:
        subscription.subscribe("c")
        for _ in range(3):
            subscription.get_message(timeout=0.005)


USES: dict[str, Callable[[Client], Any]] = {
    "get": lambda client: client.get(ONE),
    "set": lambda client: client.set(ONE, "1", nx=True, px=100),
    "mget": lambda client: client.mget([ONE, TWO]),
    "script": lambda client: client.register_script("return 1")([ONE, TWO], ["1"], client),
    "scan": lambda client: list(itertools.islice(client.scan_iter(match="x*", count=5), 20)),
    "unlink": lambda client: client.unlink(ONE),
    "info": ask,
    "publish": lambda client: client.publish("c", "x"),
    "hash": lambda client: (client.hincrby(ONE, "f", 1), client.hgetall(ONE)),
    "pipeline": lambda client: client.pipeline(transaction=False).get(ONE).hgetall(ONE).hincrby(ONE, "f", 1).execute(),
    "pubsub": hear,
}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("form", ["redis://{}", "redis+sentinel://{}/mine", "redis+cluster://{}"])
def test_garbage_raises_nothing_but_failures(form: str, protocol: int, lie: Callable[..., Liar]) -> None:
    """Each wrong answer, in the handshake too; then 200 that are damaged at random, the same in each run."""
    server = lie()
    dice = random.Random(protocol)  # noqa: S311 - to damage, not to hide
    answers = [*itertools.product(WRONG, (True, False)), *((damaged(dice), dice.random() < 0.5) for _ in range(200))]
    url = f"{form.format(f'127.0.0.1:{server.port}')}?socket_timeout=0.005&protocol={protocol}"
    for (wrong, server.handshake), use in zip(answers, itertools.cycle(USES.values()), strict=False):
        server.answer = lambda wrong=wrong: wrong
        with closing(connect(url)) as client, suppress(*FAILURES):
            use(client)


def damaged(dice: random.Random) -> bytes:
    answer = bytearray(dice.choice(WRONG) or b"x")
    for _ in range(dice.randint(1, 3)):
        answer[dice.randrange(len(answer))] = dice.choice((*b"*$%>:-\r\n019", dice.randrange(256)))
    return bytes(answer)
