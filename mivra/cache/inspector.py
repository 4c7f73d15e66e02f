"""What the cache holds, key by key, and what an operator may do to it; each deed is written down before it is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import msgspec

from mivra.cache.cached import query_of
from mivra.cache.entry import VALUES, decode, parts
from mivra.cache.keys import MOST, remove, sizes
from mivra.cache.local import Held
from mivra.cache.region import Region
from mivra.cache.remote import RemoteTier
from mivra.errors import CacheError, InvalidData
from mivra.logs import masked
from mivra.store.base import Row, Store

Action = Literal["refresh", "make_stale", "delete", "flush"]

KEYS_SHOWN = MOST
"""More keys are neither counted nor shown."""
PREVIEW_CHARACTERS = 4_000
"""Of a value as JSON: the first rows say what it is."""

_PATTERN = re.compile(r'[\w:{}",.*? -]{1,200}')
"""* and ? only: other signs mean one thing to Redis and another to us."""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry; times in seconds."""

    name: str
    function: str
    arguments: str
    """As JSON, a user's id cut short."""
    size: int | None
    """Bytes in Redis; None for what only this process holds."""
    age_s: float
    fresh_s: float | None
    """Until it is stale; 0 when it is, None when this process holds no copy to know it from."""
    here: bool
    """Whether this process holds a copy."""


class Inspector:
    def __init__(self, region: Region, remote: RemoteTier, store: Store, source: str | None = None) -> None:
        self._region = region
        self._remote = remote
        self._store = store
        self._source = source

    def writing(self, store: Store, source: str) -> Inspector:
        """The same for deeds that are written down with this store, as done from there."""
        return Inspector(self._region, self._remote, store, source)

    def keys(self) -> tuple[Key, ...]:
        """What Redis holds, and this process; by function and arguments, at most KEYS_SHOWN."""
        here = {held.query.key: held for held in self._region.held()}
        there: dict[str, tuple[int, float]] = self._remote.attempt(sizes) or {}
        names = sorted({*here, *there})[:KEYS_SHOWN]
        return tuple(self._key(name, here.get(name), there.get(name)) for name in names)

    def preview(self, name: str) -> str:
        """The value as JSON, cut short, personal data masked; CacheError when it is gone."""
        held = next((held for held in self._region.held() if held.query.key == name), None)
        value = held.entry.value if held else self._value(name)
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
        # First masked: half an e-mail does not look like one.
        return masked(text)[:PREVIEW_CHARACTERS]

    def refresh(self, name: str, actor: str, reason: str | None = None) -> None:
        """Read one key anew, once for all viewers; raises what the load raises."""
        query = query_of(name)
        if query is None:
            raise CacheError("This key is of another release; it expires by itself")
        self._write_down("refresh", name, actor, reason)
        self._region.refresh(query)

    def make_stale(self, group: str, actor: str, reason: str | None = None) -> None:
        """All that depends on an event, or all results of a function, in every process; still shown until read anew."""
        self._write_down("make_stale", group, actor, reason)
        self._region.invalidate(group)

    def delete(self, pattern: str, actor: str, reason: str | None = None) -> int | None:
        """Remove the keys that match a pattern with * and ?, everywhere; how many Redis had, None when it is away."""
        if not _PATTERN.fullmatch(pattern) or not pattern.strip("*"):
            raise InvalidData("Write a function's name with * and ?, such as revenue*")
        return self._remove("delete", pattern, actor, reason)

    def flush(self, actor: str, reason: str | None = None) -> int | None:
        """Remove all keys, everywhere; see delete."""
        return self._remove("flush", "*", actor, reason)

    def history(self, size: int = 100) -> list[Row]:
        """Who did what to the cache, newest first: at, actor, action, target, reason, source."""
        return self._store.call("list_audit", area="cache", size=size)

    def _remove(self, action: Action, pattern: str, actor: str, reason: str | None) -> int | None:
        self._write_down(action, pattern, actor, reason)
        removed: int | None = self._remote.attempt(partial(remove, pattern=pattern))
        self._region.forget(partial(fnmatchcase, pat=f"{VALUES}{pattern}"))
        return removed

    def _write_down(self, action: Action, target: str, actor: str, reason: str | None) -> None:
        done = {"action": f"cache.{action}", "target": masked(target)}
        self._store.call("record_audit", actor=actor, reason=reason, source=self._source, **done)

    def _key(self, name: str, held: Held | None, there: tuple[int, float] | None) -> Key:
        function, arguments = parts(name)
        age_s = self._region.age(held) if held else (there or (0, 0.0))[1]
        fresh_s = None if held is None else 0.0 if held.stale else max(0.0, held.fresh_s - age_s)
        return Key(name, function, masked(arguments), there[0] if there else None, age_s, fresh_s, held is not None)

    def _value(self, name: str) -> Any:
        query = query_of(name)
        data = self._remote.attempt(lambda client: client.get(name)) if query else None
        entry = decode(data, name, query.spec.type) if query and isinstance(data, bytes) else None
        if entry is None:
            raise CacheError("This key is gone")
        return entry.value
