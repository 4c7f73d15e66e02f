"""Keys and the wire: the same question has the same key, and every value comes back exactly."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mivra.analytics import Deployment
from mivra.analytics.results import (
    AssetPerformance,
    DashboardMetrics,
    RankedUser,
    Revenue,
    TopUsers,
    TradeStats,
    UserGrowth,
)
from mivra.cache.entry import COMPRESS_ABOVE, NAMESPACE, VALUES, Entry, Spec, decode, encode, fence_key, key_of

RESULTS = (DashboardMetrics, Revenue, UserGrowth, TopUsers, AssetPerformance, TradeStats, Deployment)
VERSION = "0123456789abcdef0123456789abcdef"
WHEN = datetime(2026, 7, 29, 12, tzinfo=UTC)
KEY = f"{VALUES}figure:0:{{}}"

# Trailing zeros, more digits than a float or the default context has, and what numeric allows besides numbers.
DECIMALS = st.builds(
    lambda digits, exponent, negative: Decimal((int(negative), digits, exponent)),
    st.lists(st.integers(0, 9), min_size=1, max_size=60).map(tuple),
    st.integers(-40, 40),
    st.booleans(),
)
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    str: st.text(max_size=20),
    bool: st.booleans(),
    Decimal: DECIMALS,
    UUID: st.uuids(),
    date: st.dates(),
    datetime: st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.timezones()),  # noqa: DTZ001
    types.NoneType: st.none(),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a result type, down to its leaves."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{field.name: values(hints[field.name]) for field in fields(kind)})
    if get_origin(kind) is tuple:
        return st.lists(values(get_args(kind)[0]), max_size=3).map(tuple)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) in (types.UnionType, typing.Union):
        return st.one_of(*(values(option) for option in get_args(kind)))
    return SIMPLE[kind]


def exact(value: Any) -> Any:
    """Something that is equal only for equal digits; 1.0 and 1.00 are equal Decimals."""
    if is_dataclass(value):
        return [type(value), *(exact(getattr(value, field.name)) for field in fields(value))]
    if isinstance(value, tuple):
        return [exact(item) for item in value]
    if isinstance(value, Decimal):
        return value.as_tuple()
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return value


def entry(value: Any, **changes: Any) -> Entry:
    return Entry(value, **{"loaded_at": 1.5, "version": VERSION, "fences": (b"a", b"b"), **changes})


@given(st.data())
def test_every_result_comes_back_exactly(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(RESULTS))
    sent = entry(data.draw(values(kind)))
    got = decode(encode(KEY, sent), KEY, kind)
    assert got is not None
    assert exact(got.value) == exact(sent.value)
    assert (got.loaded_at, got.version, got.fences) == (1.5, VERSION, (b"a", b"b"))


def test_money_keeps_its_zeros_and_all_its_digits() -> None:
    for text in ("1.500", "0.00", "-0.10", "1E+3", "9" * 50 + ".000000000000000000001", "NaN"):
        user = RankedUser(1, UUID(int=7), None, 1, Decimal(text), Decimal(text), None)
        got = decode(encode(KEY, entry(TopUsers(datetime.now(UTC), (user,)))), KEY, TopUsers)
        assert got is not None
        assert str(got.value.users[0].volume) == text


@given(st.binary(max_size=400))
def test_bytes_of_somebody_else_are_a_miss(data: bytes) -> None:
    for kind in RESULTS:
        assert decode(data, KEY, kind) is None


@given(st.data())
def test_damaged_bytes_are_a_miss(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([3, COMPRESS_ABOVE]))
    good = bytearray(encode(KEY, entry(Deployment(WHEN, "UTC", "$" * size, False))))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(good), bytes(good[:at])):
        assert decode(damaged, KEY, Deployment) is None


def test_the_value_of_another_key_is_a_miss() -> None:
    """An answer out of turn on a connection would otherwise be one figure under the name of another."""
    data = encode(KEY, entry(Old(1)))
    assert decode(data, KEY, Old)
    assert decode(data, KEY + "1", Old) is None


def test_a_large_value_is_compressed_and_comes_back() -> None:
    large = Deployment(datetime.now(UTC), "UTC", "$" * COMPRESS_ABOVE, False)
    data = encode(KEY, entry(large))
    assert len(data) < COMPRESS_ABOVE / 10
    got = decode(data, KEY, Deployment)
    assert got is not None
    assert got.value == large


def test_a_small_value_that_would_fill_the_memory_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(KEY, entry(Deployment(datetime.now(UTC), "UTC", "$" * 10 * COMPRESS_ABOVE, False)))
    monkeypatch.setattr("mivra.cache.entry.DECOMPRESS_MAX", COMPRESS_ABOVE)
    assert decode(data, KEY, Deployment) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"loaded_at": -1.0},
        {"loaded_at": float("nan")},
        {"loaded_at": "1"},
        {"version": "zz"},
        {"version": ""},
        {"version": VERSION.upper()},
        {"fences": (1,)},
        {"fences": (None,)},
    ],
)
def test_an_entry_with_a_wrong_part_is_a_miss(changes: dict[str, Any]) -> None:
    data = encode(KEY, entry(Deployment(WHEN, "UTC", "USD", False), **changes))
    assert decode(data, KEY, Deployment) is None


@dataclass(frozen=True)
class Old:
    trades: int


@dataclass(frozen=True)
class New:
    trades: int
    volume: Decimal


def spec(result: Any, name: str = "figure") -> Spec:
    return Spec(name, result, 60.0, ("trade_closed",))


def test_a_key_is_of_the_function_its_shape_and_its_arguments() -> None:
    arguments = {"days": 30, "account_type": "real"}
    key = key_of(spec(Old), arguments)
    assert key == key_of(spec(Old), dict(reversed(arguments.items())))
    others = {
        key_of(spec(New), arguments),
        key_of(spec(Old, "other"), arguments),
        key_of(spec(Old), {**arguments, "days": 31}),
        key_of(spec(Old), {**arguments, "days": None}),
        key_of(spec(Old), {"days": 30}),
        fence_key("trade_closed"),
    }
    assert len(others) == 6
    assert key not in others
    assert all(each.startswith(f"{NAMESPACE}:") for each in (key, *others))


def test_exact_arguments_make_exact_keys() -> None:
    when = datetime(2026, 7, 29, 12, 0, 0, 1, tzinfo=UTC)
    arguments = [
        Decimal("0.1"),
        Decimal("0.10000000000000000000000000000000001"),
        UUID(int=1),
        UUID(int=2),
        when,
        when + timedelta(microseconds=1),
        date(2026, 7, 29),
        None,
        "",
        0,
    ]
    assert len({key_of(spec(Old), {"x": argument}) for argument in arguments}) == len(arguments)


def test_a_value_of_an_old_shape_is_not_read_as_the_new_one() -> None:
    data = encode(KEY, entry(Old(1)))
    assert decode(data, KEY, New) is None
    assert isinstance(decode(data, KEY, Old), Entry)


def test_an_entry_lives_nine_to_ten_tenths_of_its_ttl() -> None:
    assert entry(1, version="0" * 32).ttl_share == 0.9
    assert entry(1, version="f" * 32).ttl_share == 1.0


def test_the_wire_holds_no_program() -> None:
    assert msgspec.msgpack.decode(encode(KEY, entry(Old(1)))[4:]) == [KEY, 1.5, VERSION, [b"a", b"b"], {"trades": 1}]
