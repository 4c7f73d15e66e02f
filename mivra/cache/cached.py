"""`@cached(...)`: a query function becomes one that every viewer may call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, get_type_hints

import msgspec

from mivra.cache.entry import Event, Query, Spec, key_of, parts
from mivra.cache.region import Read, Region
from mivra.errors import CacheError
from mivra.store.base import Store

P = ParamSpec("P")
T = TypeVar("T")

Check = Callable[[str, Any], None]
"""Refuses an argument by its name and value with a ValueError."""

QUERIES_KEPT = 1_000
"""Per function: checked arguments and their key, half of what a hit costs otherwise."""


@dataclass(frozen=True, slots=True)
class Binding:
    region: Region
    store: Store


_bound: list[Binding] = []
_functions: dict[str, CachedFunction[Any, Any]] = {}


def bind(region: Region, store: Store) -> None:
    """The composition root says where cached functions read and are kept."""
    _bound[:] = [Binding(region, store)]


def unbind() -> None:
    _bound.clear()


class CachedFunction(Generic[P, T]):
    """Calling it returns the value; `read` also says how old it is."""

    def __init__(self, function: Callable[Concatenate[Store, P], T], spec: Spec, checks: dict[str, Check]) -> None:
        self.spec = spec
        self.__doc__ = function.__doc__
        self._function = function
        self._checks = checks
        signature = inspect.signature(function)
        self._signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        self._types = get_type_hints(function)
        # Typed: True and 1.0 equal 1, but are not a whole number.
        self._kept = cast("Callable[P, Query]", lru_cache(QUERIES_KEPT, typed=True)(self._make))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.read(*args, **kwargs).value

    def read(self, *args: P.args, **kwargs: P.kwargs) -> Read[T]:
        """The value with its age; raises ValueError for arguments out of range, StoreError when there is nothing."""
        return _binding().region.read(self._query(*args, **kwargs))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Read it anew, once for all viewers."""
        _binding().region.refresh(self._query(*args, **kwargs))

    def keep(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Read it now, in the background, and ahead of its expiry from now on."""
        _binding().region.keep(self._query(*args, **kwargs))

    def query_of(self, arguments: str) -> Query:
        """The query of arguments as they stand in a key; ValueError for what this function does not take."""
        given = msgspec.json.decode(arguments, type=dict[str, Any])
        typed = {name: msgspec.convert(value, self._types[name]) for name, value in given.items()}
        return cast("Callable[..., Query]", self._make)(**typed)

    def _query(self, *args: P.args, **kwargs: P.kwargs) -> Query:
        try:
            return self._kept(*args, **kwargs)
        except TypeError:  # Arguments that cannot be hashed, or that the function does not have: the check says it.
            return self._make(*args, **kwargs)

    def _make(self, *args: P.args, **kwargs: P.kwargs) -> Query:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, check in self._checks.items():
            check(name, bound.arguments[name])
        return Query(
            self.spec,
            key_of(self.spec, bound.arguments),
            lambda: self._function(_binding().store, *bound.args, **bound.kwargs),
        )


def cached(
    *, ttl_s: float, events: tuple[Event, ...], **checks: Check
) -> Callable[[Callable[Concatenate[Store, P], T]], CachedFunction[P, T]]:
    """Cache a function of a store for ttl_s seconds, or until one of its events; checks guard its arguments by name."""

    def decorate(function: Callable[Concatenate[Store, P], T]) -> CachedFunction[P, T]:
        result = get_type_hints(function)["return"]
        made = CachedFunction(function, Spec(function.__name__, result, ttl_s, events), checks)
        _functions[made.spec.name] = made
        return made

    return decorate


def query_of(key: str) -> Query | None:
    """The query that a key stands for; None when this release has none."""
    name, arguments = parts(key)
    try:
        query = _functions[name].query_of(arguments)
    except (KeyError, ValueError, TypeError):
        return None
    return query if query.key == key else None


def _binding() -> Binding:
    if not _bound:
        raise CacheError("Nothing is started yet; call mivra.runtime.start() first")
    return _bound[0]
