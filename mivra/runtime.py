"""The composition root: builds everything once a process, from the settings, and takes it down again."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import Any, Protocol, cast, get_args

from mivra import analytics
from mivra.cache import Region
from mivra.cache.cached import bind, unbind
from mivra.cache.coalescer import Coalescer
from mivra.cache.entry import Event
from mivra.cache.inspector import Inspector
from mivra.cache.remote import RemoteTier
from mivra.cache.watch import Watch
from mivra.changes import Changes
from mivra.config import Settings, environ_of
from mivra.control.bots import BotBoard
from mivra.control.listener import Listener
from mivra.control.pulse import Pulse
from mivra.control.signals import open_signals
from mivra.errors import MigrationError, MivraError
from mivra.monitor import server
from mivra.monitor.alerts import AlertBoard
from mivra.monitor.evaluator import evaluator
from mivra.monitor.health import Health
from mivra.monitor.levels import load_levels
from mivra.monitor.meter import Meter
from mivra.monitor.readings import Staleness
from mivra.monitor.slow import SlowLog
from mivra.monitor.starts import Starts
from mivra.monitor.timings import Timings
from mivra.store import Store, check_identity, connected, server_urls
from mivra.store.base import Call
from mivra.store.fresh import load_sample_once
from mivra.store.migrate import migrate, pending

log = logging.getLogger(__name__)

BOARD_S = 0.8
"""How often the bots are read without a hint: with a sweep a second, a command is seen within 2 s when none comes."""
ALERTS_S = 5.0
"""How often alerts are read without a hint: as often as they are looked for."""
EVENTS = frozenset(get_args(Event))


class Part(Protocol):
    """Something that runs in a thread of its own."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Runtime:
    """What a process of the dashboard has. Use start() and current()."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.changes = Changes()
        self._closing = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._closing.close)
            self._open(settings)
            undo.pop_all()

    def close(self) -> None:
        """In the reverse order of the start; the bots are left to the next listener."""
        self._closing.close()

    def _open(self, settings: Settings) -> None:
        database_url, redis_url = self._closing.enter_context(server_urls(settings))
        if settings.embedded:
            fill(settings, str(database_url))
        self._open_meter(settings, redis_url)
        self.store = self._connected(settings, database_url, application="mivra")
        if pending(self.store):
            raise MigrationError
        check_identity(self.store)
        self._configure(settings)
        # Of its own: however slow the figures are, the bots are looked after.
        self._control = self._connected(settings, database_url, application="mivra control", max_connections=3)
        self._open_cache()
        self._run(self.slow)
        self._open_control(settings, database_url)
        self._open_monitor(settings)

    def _open_meter(self, settings: Settings, redis_url: str | None) -> None:
        self.levels = load_levels(settings.levels)
        self.remote = RemoteTier(redis_url)
        self.meter = Meter(self.remote)
        self._timings = Timings(self.meter)
        self.slow = SlowLog(self.remote, self.meter, lambda *call: server.plan(self.store, *call))

    def _open_cache(self) -> None:
        self.region = Region(self.remote, self.meter, on_load=lambda _name: self.changes.publish("data"))
        self._closing.callback(self.region.close)
        self.meter.sources.append(Staleness(self.levels, self.region))
        bind(self.region, self.store)
        self._closing.callback(unbind)
        self._coalescer = Coalescer(self.region.announce)
        self.inspector = Inspector(self.region, self.remote, self.store)
        self._run(Watch(self.region, self.remote))

    def _open_control(self, settings: Settings, database_url: str | None) -> None:
        self.board = BotBoard(self._control, on_change=self._on_bots)
        self.alerts = AlertBoard(self._control, on_change=lambda: self.changes.publish("alerts"))
        self._starts = Starts(self.meter)
        self._board_due, self._alerts_due, self._status_changed = 0.0, 0.0, False
        self.listener: Listener | None = None
        self._pulse = Pulse(self._beat)
        self._run(self._pulse)
        # First of the two: under a setting that it refuses no bot is started.
        self.signals = open_signals(
            settings, database_url, self._control, on_event=self.hear, on_connect=self._on_connect
        )
        if settings.listener and not settings.read_only:
            self.listener = Listener(self._control, settings.home, environ_of(settings), on_report=self._on_report)
            self._run(self.listener)
        self._run(self.signals)

    def _open_monitor(self, settings: Settings) -> None:
        self.health = Health(
            settings=settings,
            store=self.store,
            remote=self.remote,
            board=self.board,
            signals=self.signals,
            listener=self.listener,
            alerts=self.alerts,
        )
        self._closing.callback(self.health.close)
        if self.listener:
            self._run(
                evaluator(
                    settings,
                    self._control,
                    levels=self.levels,
                    remote=self.remote,
                    region=self.region,
                    signals=self.signals,
                    listener=self.listener,
                )
            )

    def _run(self, part: Part) -> None:
        part.start()
        self._closing.callback(part.stop)

    def _connected(self, settings: Settings, database_url: str | None, **options: Any) -> Store:
        store = connected(settings, database_url, watch=self._watch, **options)
        self._closing.callback(store.close)
        return store

    def _watch(self, call: Call) -> None:
        self._timings.watch(call)
        self.slow.watch(call)

    def _configure(self, settings: Settings) -> None:
        if settings.timezone or settings.currency:
            self.store.call("configure_deployment", new_timezone=settings.timezone, new_currency=settings.currency)

    def hear(self, event: str) -> None:
        """A hint, never trusted: what it names is looked at again."""
        if self.listener and event == "bot_control":
            self.listener.wake()
        if event in EVENTS:
            self._coalescer.note(cast("Event", event))
        # What the own listener wrote, it has told already.
        if event == "bot_control" or (event == "bot_status" and not (self.listener and self.listener.state().acting)):
            self._board_due = 0.0
        if event == "alerts":
            self._alerts_due = 0.0
        self._pulse.ask()

    def _on_bots(self) -> None:
        self.changes.publish("bots")
        self._starts.look(self.board.bots())

    def _on_report(self) -> None:
        self._status_changed = True
        self._pulse.ask()

    def _on_connect(self) -> None:
        """Hints may have been missed: everything is looked at again."""
        for event in ("alerts", *sorted(EVENTS)):
            self.hear(event)

    def _beat(self) -> float:
        # Taken back before the tables are read: what is told meanwhile is read again.
        if is_due := time.monotonic() >= self._board_due:
            self._board_due = time.monotonic() + BOARD_S
        if has_news := self._status_changed:
            self._status_changed = False
        if is_due or has_news:
            self.board.refresh(only_status=not is_due)
        if time.monotonic() >= self._alerts_due:
            self._alerts_due = time.monotonic() + ALERTS_S
            self.alerts.refresh()
        due = self._coalescer.run_due()
        next_look = min(self._board_due, self._alerts_due) - time.monotonic()
        waits = [next_look] + ([due] if due is not None else [])
        return max(0.0, min(waits))


def fill(settings: Settings, database_url: str) -> None:
    """Bring the embedded database up to date, and fill an empty one."""
    migrate(database_url)
    if settings.sample_data:
        load_sample_once(database_url)


def warm_up() -> None:
    """Read what the pages show by default, so that the first viewer does not wait, and keep it warm from now on."""
    for figure in analytics.FIGURES:
        figure.keep()


_lock = threading.Lock()
_running: list[Runtime] = []


def start(settings: Settings) -> Runtime:
    """Start what this process needs, once; MivraError says what is wrong and what to do."""
    with _lock:
        if not _running:
            _running.append(Runtime(settings))
        return _running[0]


def current() -> Runtime:
    """The running one; MivraError when nothing is started."""
    if not _running:
        raise MivraError("The dashboard is not started; look at its console for the reason")
    return _running[0]


def stop() -> None:
    """Take everything down; nothing happens when nothing runs."""
    with _lock:
        while _running:
            _running.pop().close()
