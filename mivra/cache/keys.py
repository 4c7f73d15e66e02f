"""Our keys in Redis, found by SCAN and removed by UNLINK, which do not hold up the server; for RemoteTier.attempt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import cast

import redis

from mivra.cache.entry import NAMESPACE, VALUES
from mivra.cache.remote import CHANNEL, KEEP_S

MOST = 1_000
"""Entries that are looked at: more than a person looks through."""
BATCH = 500
"""Keys removed with one command."""


def sizes(client: redis.Redis) -> dict[str, tuple[int, float]]:
    """Bytes and age in seconds of MOST entries: written to be kept for KEEP_S, its time to live says when that was."""
    names = list(itertools.islice(_entries(client, "*"), MOST))
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.strlen(name)
        pipeline.pttl(name)
    answers = pipeline.execute(raise_on_error=False)
    return {
        name.decode(errors="replace"): (size, max(0.0, KEEP_S - kept_ms / 1000))
        for name, size, kept_ms in zip(names, answers[::2], answers[1::2], strict=True)
        # An error instead: somebody keeps a list or a hash under our name.
        if isinstance(size, int) and isinstance(kept_ms, int)
    }


def remove(client: redis.Redis, pattern: str) -> int:
    """Remove the entries whose function and arguments match a glob, and tell the other processes; how many."""
    gone, names = 0, _entries(client, pattern)
    while batch := list(itertools.islice(names, BATCH)):
        gone += client.unlink(*batch)
    client.publish(CHANNEL, f"-{VALUES}{pattern}")
    return gone


def clear(client: redis.Redis) -> bool:
    """Remove everything of ours, and only that."""
    for name in client.scan_iter(match=f"{NAMESPACE}:*", count=500):
        client.unlink(name)
    return True


def _entries(client: redis.Redis, pattern: str) -> Iterator[bytes]:
    found = cast("Iterator[bytes]", client.scan_iter(match=f"{VALUES}{pattern}", count=500))
    return (name for name in found if not name.endswith(b":lock"))
