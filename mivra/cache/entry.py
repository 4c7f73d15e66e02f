"""A cached value with what is needed to judge it, and its exact form on the wire."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

Event = Literal["trade_closed", "user_changed", "bot_status", "bot_control"]

NAMESPACE = "{mivra}"
"""The braces put every key into one slot of a Redis Cluster, since one script touches an entry and its fences."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What the region has to know of one cached function."""

    name: str
    type: Any
    ttl_s: float
    events: tuple[Event, ...]

    @property
    def hard_limit_s(self) -> float:
        """Older than this is not served while it can be read anew: by six TTLs, live data has moved on."""
        return 6 * self.ttl_s


@dataclass(frozen=True, slots=True)
class Query:
    """One function with its arguments."""

    spec: Spec
    key: str
    load: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Entry:
    value: Any
    loaded_at: float
    """Unix time at which the load began: what the database said then, or later."""
    version: str
    """Changes with every load."""
    fences: tuple[bytes, ...]
    """The fence of each of the function's events when the load began; empty when Redis was away."""

    @property
    def ttl_share(self) -> float:
        """0.9 to 1: entries loaded together do not expire together, the same in every process."""
        return 0.9 + 0.1 * int(self.version[:4], 16) / 0xFFFF


@functools.cache
def schema(result: Any) -> str:
    """A fingerprint of a result's shape, so that a new release never misreads an old value."""
    return hashlib.sha256(msgspec.json.encode(msgspec.json.schema(result))).hexdigest()[:12]


def key_of(spec: Spec, arguments: dict[str, Any]) -> str:
    """The one key function: at run time, for warm-up and for invalidation."""
    canonical = msgspec.json.encode(arguments, order="sorted").decode()
    return f"{NAMESPACE}:{spec.name}:{schema(spec.type)}:{canonical}"


def fence_key(event: Event) -> str:
    return f"{NAMESPACE}:fence:{event}"


def encode(entry: Entry) -> bytes:
    """Decimal, timestamps and UUIDs as exact text inside MessagePack."""
    return msgspec.msgpack.encode([entry.loaded_at, entry.version, entry.fences, entry.value])


def decode(data: bytes, result: Any) -> Entry | None:
    """The entry, or None when the bytes are not one: somebody else's, or damaged."""
    try:
        loaded_at, version, fences, value = msgspec.msgpack.decode(data, type=_wire(result))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return Entry(value, loaded_at, version, fences)


@functools.cache
def _wire(result: Any) -> Any:
    # Each part is checked here, so that nobody's bytes can raise where an entry is judged.
    time = Annotated[float, msgspec.Meta(ge=0)]
    version = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    return types.GenericAlias(tuple, (time, version, tuple[bytes, ...], result))
