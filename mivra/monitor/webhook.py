"""Tells the operator's webhook of alerts, in Slack's JSON: each message once, and until it has arrived.

A process that is killed after a message arrived and before that is written down sends it again: by its Idempotency-Key
a receiver knows it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC
from html import escape
from urllib.parse import quote

import httpx
import msgspec

from mivra.control.pulse import Pulse
from mivra.errors import StoreError
from mivra.logs import masked, unlinked
from mivra.monitor.alerts import Firing
from mivra.store.base import Row, Store

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long a webhook may think."""
CALL_S = 10.0
"""How long a message takes at most: one that answers byte by byte thinks anew before each."""
BATCH = 3
"""Claimed at once: all are tried before the claim of a minute is over."""
BACKOFF_S = (5.0, 600.0)
"""First and longest pause before a message is tried again; doubled each time, jittered."""
IDLE_S = 3600.0
"""Nobody waits so long: the evaluator asks when something is due."""
HEADS = {"start": "{severity}: {title}", "worse": "{severity} now: {title}", "end": "Over: {title}"}
COLORS = {"critical": "danger", "warning": "warning"}

# They log the whole address, which is a secret, at every call.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Courier:
    """Sends what is due, in a thread of its own: a slow webhook keeps nobody from looking."""

    def __init__(self, store: Store, url: str | None, jitter: Callable[[float, float], float] = random.uniform) -> None:
        """Without a URL nothing is sent."""
        self.is_used = url is not None
        self._store, self._url, self._jitter = store, url, jitter
        self._is_over = False
        self._arrived: set[tuple[int, str]] = set()
        """What the database has not heard of yet."""
        self._pulse = Pulse(self.deliver)
        self.start, self.ask = self._pulse.start, self._pulse.ask
        """Begin to send, and send what is due now."""

    def stop(self) -> None:
        """After the message that is being sent."""
        self._is_over = True
        self._pulse.stop()

    def deliver(self) -> float:
        """Send what is due, in this thread; the seconds until the next time."""
        try:
            while self._url and not self._is_over and (claimed := self._store.call("claim_deliveries", size=BATCH)):
                for message in claimed:
                    if not self._is_over:
                        self._send(message)
        except StoreError as error:
            log.warning("Messages of alerts wait for the database: %s", error)
        return IDLE_S

    def tell(self, firing: Firing) -> bool:
        """Send its start without the database; whether it arrived."""
        return self.is_used and self._post({"moment": "start", **asdict(firing)}) is None

    def _send(self, message: Row) -> None:
        key = message["alert_id"], message["moment"]
        error = None if key in self._arrived else self._post(message)
        if not error:
            self._arrived.add(key)
        pause = min(BACKOFF_S[0] * 2.0 ** min(message["tries"] - 1, 10), BACKOFF_S[1]) * self._jitter(0.5, 1.0)
        claim = {"alert": message["alert_id"], "moment": message["moment"], "tries": message["tries"]}
        self._store.call("settle_delivery", **claim, error=error, again_seconds=pause if error else 0.0)
        self._arrived.discard(key)

    def _post(self, message: Row) -> str | None:
        """Why it did not arrive; None when it did."""
        try:
            with closing(asyncio.SelectorEventLoop()) as loop:
                # A lookup of a name that hangs is not waited for, as it would be by asyncio.run().
                status = loop.run_until_complete(asyncio.wait_for(_status(str(self._url), message), CALL_S))
                loop.run_until_complete(loop.shutdown_asyncgens())
            error = None if httpx.codes.is_success(status) else f"The webhook answered with status {status}"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as fault:
            # By its name alone: what it says may hold the address. ValueError: a proxy or a name that makes no sense.
            error = f"The webhook was not reached: {type(fault).__name__}"
        if error:
            log.warning("%s (alert %s)", error, message["name"])
        return error


async def _status(url: str, message: Row) -> int:
    """What it answers to the message; no more of it is read: it may be long."""
    headers = {"Idempotency-Key": f"{key_of(message)}:{message['moment']}"}
    async with (
        httpx.AsyncClient(timeout=ANSWER_S, follow_redirects=False) as client,
        client.stream("POST", url, json=body_of(message), headers=headers) as answer,
    ):
        return answer.status_code


def body_of(message: Row) -> Row:
    """For Slack, and `alert` for programs. What people wrote calls no channel, draws no link, and is masked."""
    detail, title, severity = masked(message["detail"]), masked(message["title"]), message["severity"]
    head = HEADS[message["moment"]].format(severity=severity.capitalize(), title=unlinked(title))
    color = "good" if message["moment"] == "end" else COLORS[severity]
    return {
        "text": escape(head, quote=False),
        "attachments": [{"color": color, "text": escape(unlinked(detail), quote=False)}],
        "alert": {**msgspec.to_builtins(message), "title": title, "detail": detail, "key": key_of(message)},
    }


def key_of(message: Row) -> str:
    """The same in all messages of one alert, and in none of another."""
    return quote(f"{message['name']}@{message['started_at'].astimezone(UTC).isoformat()}", safe=":@+")
