"""What an operator sees of the cache and does to it, with a real Valkey, and a real Postgres that writes it down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg
import pytest

from mivra.cache import inspector, watch
from mivra.cache.cached import bind, cached, unbind
from mivra.cache.entry import VALUES, Query, fence_key
from mivra.cache.inspector import PREVIEW_CHARACTERS, Inspector, Key
from mivra.cache.remote import KEEP_S
from mivra.errors import CacheError, InvalidData, StoreError
from mivra.logs import masked
from mivra.store.base import Row, Store
from mivra.store.postgres import PostgresStore
from tests.house import House, idle
from tests.servers import Process
from tests.support import wait_until

USER = UUID("0123abcd-0123-4567-89ab-0123456789ab")
HERS = "0123abcd..."
TTL_S = 60.0


@cached(ttl_s=TTL_S, events=("user_changed",))
def inspected_users(store: Store, count: int = 3, user: UUID | None = None) -> list[Row]:
    """As rows of people are: with what is nobody's business."""
    found = store.call("list_audit", area="cache", size=1)
    return [
        {"email": f"secret.name{n}@private.example", "user": str(user or USER), "written_down_before": len(found)}
        for n in range(count)
    ]


@cached(ttl_s=TTL_S, events=("trade_closed",))
def inspected_number(store: Store) -> int:
    """A figure without people."""
    return 7


def users(count: int = 3, user: UUID | None = None) -> Query:
    return inspected_users._query(count, user)


class Desk:
    """Two processes; the operator sits at the first."""

    def __init__(self, url: str, store: PostgresStore) -> None:
        self.house = House()
        self.store = store
        self.here, self.elsewhere = (self.house.watched(url) for _ in range(2))
        bind(self.here, store)
        self.inspector = Inspector(self.here, self.here._remote, store)

    def audit(self) -> list[tuple[str, str, str, str | None]]:
        rows = self.store.call("list_audit", area="cache")
        return [(row["actor"], row["action"], row["target"], row["reason"]) for row in rows]

    def found(self) -> dict[str, Key]:
        shown = self.inspector.keys()
        return {key.name: key for key in shown}

    def do(self, action: str, actor: str, reason: str | None = None) -> Any:
        deeds: dict[str, Callable[[], Any]] = {
            "refresh": lambda: self.inspector.refresh(users().key, actor, reason),
            "make_stale": lambda: self.inspector.make_stale("inspected_users", actor, reason),
            "delete": lambda: self.inspector.delete("inspected_u*", actor, reason),
            "flush": lambda: self.inspector.flush(actor, reason),
        }
        return deeds[action]()

    def close(self) -> None:
        unbind()
        self.house.close()


TARGETS = {"refresh": users().key, "make_stale": "inspected_users", "delete": "inspected_u*", "flush": "*"}


@pytest.fixture
def valkey() -> Iterator[Process]:
    with closing(Process(unix=True)) as server:
        yield server
        assert not server.calls("keys")


@pytest.fixture
def desk(valkey: Process, store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(watch, "CHECK_S", 0.05)  # also how long a watch takes to end
    with closing(Desk(valkey.url, store)) as made:
        yield made


def test_keys_are_told_with_size_and_age_also_those_of_other_processes(desk: Desk, valkey: Process) -> None:
    mine, theirs, only_here = users(), users(5, USER), inspected_number._query()
    for query in (mine, only_here):
        desk.here.read(query)
    desk.elsewhere.read(theirs)
    valkey.client.unlink(only_here.key)
    valkey.client.pexpire(theirs.key, int((KEEP_S - 50) * 1000))
    desk.house.clock.ahead += 30
    found = desk.found()
    assert list(found) == sorted((mine.key, theirs.key, only_here.key))
    assert {name: key.size for name, key in found.items()} == {
        mine.key: valkey.client.strlen(mine.key),
        theirs.key: valkey.client.strlen(theirs.key),
        only_here.key: None,
    }
    assert {name for name, key in found.items() if key.here} == {mine.key, only_here.key}
    assert found[mine.key].function == "inspected_users"
    assert found[theirs.key].arguments == f'{{"count":5,"user":"{HERS}"}}'
    assert found[mine.key].age_s >= 30 > found[mine.key].fresh_s > 0
    assert found[theirs.key].age_s >= 50
    assert found[theirs.key].fresh_s is None, "nobody here knows whether it was made stale"
    for held in desk.here.held():
        held.stale = True
    assert [found.fresh_s for found in desk.found().values() if found.here] == [0, 0]


def test_only_as_many_keys_are_told_as_a_person_looks_through(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "KEYS_SHOWN", 3)
    for count in range(5):
        desk.elsewhere.read(users(count))
    assert list(desk.found()) == [users(count).key for count in range(3)]


@pytest.mark.parametrize("here", [True, False])
def test_a_preview_shows_no_personal_data(here: bool, desk: Desk) -> None:
    (desk.here if here else desk.elsewhere).read(users())
    text = desk.inspector.preview(users().key)
    assert text.count('"***@***"') == text.count(f'"{HERS}"') == 3
    assert "secret" not in text
    assert "private" not in text


def test_a_preview_that_is_cut_off_shows_no_part_of_personal_data(desk: Desk) -> None:
    """Wherever the cut falls: the rows are moved by one character each time."""
    for length in range(1, 140):
        number = desk.house.query(length, load=lambda length=length: rows(length))
        found = Query(users().spec, users(length).key, number.load)
        desk.here.read(found)
        text = desk.inspector.preview(found.key)
        assert len(text) <= PREVIEW_CHARACTERS
        assert "secret" not in text
        assert str(USER)[:9] not in text


def rows(length: int) -> list[Row]:
    return [{"x": "-" * length}, *({"email": f"secret{n:03}@private.example", "user": str(USER)} for n in range(100))]


def test_what_is_gone_or_damaged_has_no_preview(desk: Desk, valkey: Process) -> None:
    for name in (users().key, f"{VALUES}inspected_users:old:{{}}", f"{VALUES}nobody", "other", ""):
        with pytest.raises(CacheError, match="gone"):
            desk.inspector.preview(name)
    valkey.client.set(users().key, b"\xff garbage")
    with pytest.raises(CacheError, match="gone"):
        desk.inspector.preview(users().key)


@pytest.mark.parametrize(("action", "target"), TARGETS.items())
def test_every_deed_is_written_down_with_who_and_why(action: str, target: str, desk: Desk) -> None:
    desk.here.read(users())
    desk.do(action, "ada", "it looked wrong")
    assert desk.audit() == [("ada", f"cache.{action}", target, "it looked wrong")]
    (row,) = desk.inspector.history()
    assert row["source"].startswith("mivra tests")
    desk.do(action, "bob")
    assert [(row["actor"], row["reason"]) for row in desk.inspector.history()] == [
        ("bob", None),
        ("ada", "it looked wrong"),
    ]
    assert len(desk.inspector.history(1)) == 1


def test_refreshing_reads_one_key_anew_for_everybody_after_it_was_written_down(desk: Desk) -> None:
    for region in (desk.here, desk.elsewhere):
        assert region.read(users()).value[0]["written_down_before"] == 0
    desk.do("refresh", "ada")
    assert desk.here.read(users()).value[0]["written_down_before"] == 1
    wait_until(lambda: desk.elsewhere.read(users()).value[0]["written_down_before"] == 1)


@pytest.mark.parametrize("group", ["inspected_users", "user_changed"])
def test_making_stale_reaches_every_process(group: str, desk: Desk) -> None:
    for region in (desk.here, desk.elsewhere):
        region.read(users())
        region.read(inspected_number._query())
    number = desk.here.read(inspected_number._query()).version
    desk.inspector.make_stale(group, "ada")
    for region in (desk.here, desk.elsewhere):
        wait_until(lambda region=region: region.read(users()).value[0]["written_down_before"] == 1)
        assert region.read(inspected_number._query()).version == number


@pytest.mark.parametrize(("action", "gone"), [("delete", 3), ("flush", 4)])
def test_deleting_empties_redis_and_every_process(action: str, gone: int, desk: Desk, valkey: Process) -> None:
    number = inspected_number._query()
    for count in range(3):
        desk.elsewhere.read(users(count))
    for region in (desk.here, desk.elsewhere):
        region.read(number)
    valkey.client.set("other", "not ours")
    assert desk.do(action, "ada") == gone
    left = [number.key] if gone == 3 else []
    assert [key.decode() for key in valkey.client.scan_iter(f"{VALUES}*")] == left
    for region in (desk.here, desk.elsewhere):
        wait_until(lambda region=region: [held.query.key for held in region.held()] == left)
    assert valkey.client.exists("other", fence_key("user_changed")) == 2


@pytest.mark.parametrize("action", TARGETS)
@pytest.mark.parametrize("unwritable", ["nobody did it", "the reason is a book", "the audit is broken"])
def test_what_cannot_be_written_down_is_not_done(
    action: str, unwritable: str, desk: Desk, valkey: Process, database_url: str
) -> None:
    before = [region.read(users()) for region in (desk.here, desk.elsewhere)]
    fences = [valkey.client.get(fence_key(group)) for group in users().spec.groups]
    actor, reason = ("" if unwritable.startswith("nobody") else "ada"), None
    if "book" in unwritable:
        reason = "x" * 1001
    if "broken" in unwritable:
        execute(database_url, "alter table operator_audit rename to gone")
    with pytest.raises(StoreError):
        desk.do(action, actor, reason)
    wait_until(lambda: idle(desk.here, desk.elsewhere))
    assert [valkey.client.get(fence_key(group)) for group in users().spec.groups] == fences
    assert valkey.client.exists(users().key)
    assert [region.read(users()).version for region in (desk.here, desk.elsewhere)] == [one.version for one in before]
    assert len(desk.here.held()) == len(desk.elsewhere.held()) == 1


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("pattern", ["", "[a-z]*", "revenue\\*", "a;b", "*\n", "x" * 201, "it's", "^a", "a|b", "{a!}"])
def test_a_pattern_that_could_mean_two_things_is_refused(pattern: str, desk: Desk, valkey: Process) -> None:
    desk.here.read(users())
    with pytest.raises(InvalidData, match=r"with \* and \?"):
        desk.inspector.delete(pattern, "ada")
    assert not desk.audit()
    assert valkey.client.exists(users().key)


@pytest.mark.parametrize(("pattern", "gone"), [("inspected_users", 0), ("inspected_user?:*", 1), ('*"count":1,*', 1)])
def test_a_pattern_means_the_same_here_and_in_redis(pattern: str, gone: int, desk: Desk) -> None:
    desk.here.read(users(1))
    assert desk.inspector.delete(pattern, "ada") == gone
    assert len(desk.here.held()) == 1 - gone


def test_a_deed_is_written_down_without_personal_data(desk: Desk) -> None:
    desk.here.read(users(1, USER))
    desk.inspector.refresh(users(1, USER).key, "ada")
    desk.inspector.delete(f'*"{USER}"*', "ada")
    (removed, refreshed) = desk.inspector.history()
    assert removed["target"] == f'*"{HERS}"*'
    assert refreshed["target"].endswith(f'{{"count":1,"user":"{HERS}"}}')


def test_foreign_keys_under_our_names_are_in_nobodys_way(desk: Desk, valkey: Process) -> None:
    desk.here.read(users())
    valkey.client.hset(f"{VALUES}a hash", "of", "somebody")
    valkey.client.rpush(f"{VALUES}inspected_users:list", "of", "somebody")
    valkey.client.set(f"{VALUES}".encode() + b"\xff\xfe", b"\xff")
    valkey.client.set(f"{VALUES}inspected_users:x:[", "not JSON")
    valkey.client.set(f"{VALUES}inspected_users:x:{{}}", "no arguments")
    valkey.client.set(VALUES, "nothing")
    for _ in range(5):
        found = desk.found()
        assert found[users().key].size == valkey.client.strlen(users().key)
    assert desk.here._remote.breaker.closed
    for name in sorted(found.keys() - {users().key}):
        with pytest.raises(CacheError, match="gone"):
            desk.inspector.preview(name)
        with pytest.raises(CacheError, match="another release"):
            desk.inspector.refresh(name, "ada")
    assert not desk.audit()
    desk.do("flush", "ada")
    assert not list(valkey.client.scan_iter(f"{VALUES}*"))


def test_without_redis_this_process_is_told_of_and_emptied(desk: Desk, valkey: Process) -> None:
    desk.here.read(users())
    valkey.kill()
    (key,) = desk.inspector.keys()
    assert (key.name, key.size, key.here) == (users().key, None, True)
    assert desk.inspector.preview(users().key).count("***@***") == 3
    desk.do("refresh", "ada")
    assert desk.here.read(users()).value[0]["written_down_before"] == 1
    assert desk.do("delete", "ada") is None
    assert not desk.here.held()
    assert [row[1] for row in desk.audit()] == ["cache.delete", "cache.refresh"]
    valkey.start()


@pytest.mark.parametrize(
    "statement", ["update operator_audit set actor = 'x'", "delete from operator_audit", "truncate operator_audit"]
)
def test_the_audit_can_only_grow(statement: str, desk: Desk, database_url: str) -> None:
    desk.do("make_stale", "ada")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        execute(database_url, statement)
    assert len(desk.audit()) == 1


def test_masking_leaves_the_rest_as_it_is() -> None:
    assert masked(f'{{"a":"x.y+z@mail.example","b":"{USER}","c":"1@","d":12345678}}') == (
        f'{{"a":"***@***","b":"{HERS}","c":"1@","d":12345678}}'
    )
