"""Everybody who subscribed is told, once a subscription."""

from __future__ import annotations

import threading

from mivra.changes import Changes


def test_every_subscriber_is_told_of_what_comes_later() -> None:
    changes, first, second = Changes(), list[str](), list[str]()
    changes.subscribe(first.append)
    changes.publish("bots")
    changes.subscribe(second.append)
    changes.publish("data")
    assert (first, second) == (["bots", "data"], ["data"])


def test_none_is_lost_when_many_come_at_once() -> None:
    changes, heard = Changes(), list[str]()
    threads = [threading.Thread(target=lambda: [changes.subscribe(heard.append) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes.publish("bots")
    assert len(heard) == 800
