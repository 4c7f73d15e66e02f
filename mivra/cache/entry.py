"""A cached value with what is needed to judge it, and its exact form on the wire."""

from __future__ import annotations

import functools
import hashlib
import types
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

Event = Literal["trade_closed", "user_changed", "bot_status", "bot_control"]

NAMESPACE = "{mivra}"
"""The braces put every key into one slot of a Redis Cluster, since one script touches an entry and its fences."""
VALUES = f"{NAMESPACE}:value:"
"""What the keys of entries begin with, and no other key of ours."""
COMPRESS_ABOVE = 16 * 1024
"""Bytes. Below it, compressing (40 us a KB) costs more than the 100 us of a round trip."""
DECOMPRESS_MAX = 64 * 2**20
"""Bytes; whoever can write to Redis could otherwise fill the memory with a small value."""


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

    @property
    def groups(self) -> tuple[str, ...]:
        """What can be made stale at once: all that depends on an event, or all results of one function."""
        return (*self.events, self.name)


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
    """The fence of each of the function's groups when the load began; empty when Redis was away."""

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
    return f"{VALUES}{spec.name}:{schema(spec.type)}:{canonical}"


def parts(key: str) -> tuple[str, str]:
    """A key's function and its arguments as JSON."""
    name, _, rest = key.removeprefix(VALUES).partition(":")
    return name, rest.partition(":")[2]


def fence_key(group: str) -> str:
    return f"{NAMESPACE}:fence:{group}"


def encode(key: str, entry: Entry) -> bytes:
    """Decimal, timestamps and UUIDs as exact text in MessagePack, compressed where that is less, after a checksum."""
    data = msgspec.msgpack.encode([key, entry.loaded_at, entry.version, entry.fences, entry.value])
    if len(data) > COMPRESS_ABOVE:
        data = zlib.compress(data, 1)
    return zlib.crc32(data).to_bytes(4) + data


def decode(sealed: bytes, key: str, result: Any) -> Entry | None:
    """The entry, or None when the bytes are not this key's: damaged, somebody else's, or an answer out of turn."""
    data = sealed[4:]
    if zlib.crc32(data).to_bytes(4) != sealed[:4]:
        return None
    try:
        owner, loaded_at, version, fences, value = msgspec.msgpack.decode(_plain(data), type=_wire(result))
    except (msgspec.MsgspecError, UnicodeDecodeError, zlib.error):
        return None
    return Entry(value, loaded_at, version, fences) if owner == key else None


def _plain(data: bytes) -> bytes:
    # An array of five begins with 0x95, what zlib writes with 0x78.
    if data[:1] != b"\x78":
        return data
    stream = zlib.decompressobj()
    plain = stream.decompress(data, DECOMPRESS_MAX)
    if not stream.eof:
        raise zlib.error("cut off, or too large")
    return plain


@functools.cache
def _wire(result: Any) -> Any:
    # Each part is checked here, so that nobody's bytes can raise where an entry is judged.
    time = Annotated[float, msgspec.Meta(ge=0)]
    version = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    return types.GenericAlias(tuple, (str, time, version, tuple[bytes, ...], result))
