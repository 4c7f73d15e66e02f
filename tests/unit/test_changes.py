"""Everybody who subscribed is told, once a subscription, and only for as long as it lasts."""

from __future__ import annotations

import threading

from mivra.changes import Changes


def test_subscribers_are_told_until_they_leave() -> None:
    changes, first, second = Changes(), list[str](), list[str]()
    leave = changes.subscribe(first.append)
    changes.subscribe(second.append)
    changes.publish("bots")
    leave()
    leave()
    changes.publish("data")
    assert (first, second) == (["bots"], ["bots", "data"])


def test_two_subscriptions_of_one_callback_end_one_by_one() -> None:
    changes, heard = Changes(), list[str]()
    callback = heard.append
    leave = changes.subscribe(callback)
    changes.subscribe(callback)
    leave()
    changes.publish("bots")
    assert heard == ["bots"]


def test_one_may_leave_while_it_is_told() -> None:
    changes, heard = Changes(), list[str]()

    def once(kind: str) -> None:
        heard.append(kind)
        leave()

    leave = changes.subscribe(once)
    changes.subscribe(heard.append)
    changes.publish("bots")
    changes.publish("data")
    assert heard == ["bots", "bots", "data"]


def test_none_is_lost_when_many_come_at_once() -> None:
    changes, heard = Changes(), list[str]()
    threads = [threading.Thread(target=lambda: [changes.subscribe(heard.append) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes.publish("bots")
    assert len(heard) == 800
