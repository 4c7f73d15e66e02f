"""Where the primary of our keys is: the sentinels or the nodes of the cluster know, and are asked at each connection.

All keys of ours lie in one slot, so in one node of a cluster. Whoever finds that node needs no other client for it.
"""
# mypy: disable-error-code=no-untyped-call
# redis-py's connections are not annotated.

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, cast

import redis
from redis import exceptions
from redis.crc import key_slot

from mivra.cache.entry import NAMESPACE

Address = tuple[str, int]

ASK_S = 1.0
"""How long an answer is believed: after a failover by hand, the old primary takes writes that are lost for 8 s more."""
SLOT = key_slot(NAMESPACE.encode())
FAILURES: tuple[type[Exception], ...] = (
    *(redis.RedisError, OSError),
    *(AttributeError, LookupError, TypeError, ValueError, RecursionError, MemoryError),
)
"""What a call may raise when the server misbehaves.

The second row is what redis-py lets out when an answer has the wrong type or length, when it cannot read a MOVED, on
thousands of pushes in a row, and on a list that says it is longer than the memory.
"""


class NoPrimary(redis.ConnectionError):
    """No server, or another one than thought, is the primary of our keys."""


class Finder:
    """Who answered last is asked first; whom it named may be asked later; whom the operator named always is."""

    def __init__(
        self,
        given: list[Address],
        node: Callable[..., redis.Connection],
        ask: Callable[[redis.Connection], list[Address]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ask returns the address of the primary first, then those of others that know it."""
        self._given = self._known = given
        self._node = node
        self._ask = ask
        self._clock = clock
        self._found: Address | None = None
        self._asked_at = 0.0

    @property
    def primary(self) -> Address | None:
        """The one of now; while nobody answers, the one of before."""
        if self._clock() - self._asked_at > ASK_S:
            try:
                # One of them: a reader waits for this.
                self.find(1)
            except FAILURES:
                self.doubt()
        return self._found

    def find(self, tries: int | None = None) -> Address:
        """Raises what the last one raised when nobody knows."""
        # Set first: one thread asks, the others go on.
        self._asked_at = self._clock()
        error: Exception = NoPrimary()
        for host, port in self._known[:tries]:
            node = self._node(host=host, port=port)
            try:
                primary, *others = self._ask(node)
            except FAILURES as failure:
                error = failure
            else:
                self._known = list(dict.fromkeys([(host, port), *others, *self._given]))
                self._found = primary
                return primary
            finally:
                node.disconnect()
        raise error

    def doubt(self) -> None:
        """It was not the primary: ask somebody else first."""
        first, *others = self._known
        self._known = [*others, first]


class FoundConnection(redis.Connection):
    """To where the primary is when it connects."""

    def __init__(self, *, finder: Finder, **options: Any) -> None:
        self._finder = finder
        super().__init__(**options)

    def _connect(self) -> socket.socket:
        self.host, self.port = self._finder.find()
        return cast("socket.socket", super()._connect())

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        # Two primaries have different fences, so they must not be mixed.
        if self.is_connected and (self.host, self.port) != self._finder.primary:
            self.disconnect()
        super().send_packed_command(command, check_health)

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except (exceptions.MovedError, exceptions.ReadOnlyError, exceptions.ClusterDownError) as error:
            self._finder.doubt()
            raise NoPrimary(str(error)) from None


class FoundTLSConnection(FoundConnection, redis.SSLConnection):
    """The same with TLS."""


def of_sentinel(node: redis.Connection, service: str) -> list[Address]:
    """What a sentinel says."""
    node.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    answer = node.read_response()
    if answer is None:
        raise NoPrimary("unknown service")
    return [_address(*answer)]


def of_cluster(node: redis.Connection) -> list[Address]:
    """What a node of a cluster says."""
    node.send_command("CLUSTER", "SLOTS")
    rows = node.read_response()
    ours = [row for row in rows if row[0] <= SLOT <= row[1]]
    if not ours:
        raise NoPrimary("a slot without a node")
    # A node that does not know its own address is where it was asked.
    return [_address(host or node.host.encode(), port) for row in ours + rows for host, port, *_ in row[2:]]


def _address(host: bytes, port: bytes | int) -> Address:
    if not 0 < int(port) < 65536:  # noqa: PLR2004 - beyond, a socket raises OverflowError
        raise redis.InvalidResponse
    return host.decode(), int(port)
