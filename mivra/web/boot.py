"""Starts the runtime beside the server, so that the first page is there at once and says what it waits for."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Final, Literal

from mivra import config, runtime
from mivra.control.bots import BotBoard
from mivra.errors import ConfigError, MivraError
from mivra.web.live import hub

State = Literal["starting", "ready", "failed"]

WARM_IMPORTS: Final = ("pandas", "plotly.graph_objects")
"""0.6 s of imports that the first viewer would otherwise wait for."""

logger = logging.getLogger(__name__)


def say(sentence: str) -> None:
    """One line on the console, as the log has them."""
    if os.environ.get("MIVRA_LOG") == "json":
        logger.warning("%s", sentence)
        return
    sys.stderr.write(f"mivra: {sentence}\n")
    sys.stderr.flush()


class Boot:
    """One start at a time, in a thread; a failure is a sentence, and can be tried again."""

    def __init__(self, start: Callable[[], None], stop: Callable[[], None], warm_up: Callable[[], None]) -> None:
        self._start = start
        self._stop = stop
        self._warm_up = warm_up
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.state: State = "starting"
        self.problem = ""
        self.retryable = False

    def begin(self) -> None:
        """Start, unless a start is under way or done."""
        with self._lock:
            if self._thread and (self._thread.is_alive() or self.state == "ready"):
                return
            self.state, self.problem = "starting", ""
            self._done.clear()
            self._thread = threading.Thread(target=self._run, name="mivra-boot", daemon=True)
            self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether the start came to an end, well or not."""
        return self._done.wait(timeout_s)

    def end(self) -> None:
        """Stop what was started; a start under way is waited for, so that no server is left behind."""
        if self._thread:
            self._thread.join()
        if self.state == "ready":
            self._stop()

    def _run(self) -> None:
        try:
            self._start()
        except MivraError as error:
            self._fail(str(error), retryable=not isinstance(error, ConfigError))
        except Exception as error:
            logger.exception("the start failed")
            self._fail(f"The start failed ({type(error).__name__}); the console has the details", retryable=True)
        else:
            self.state = "ready"
        self._done.set()
        if self.state == "ready":
            self._warm_up()

    def _fail(self, problem: str, retryable: bool) -> None:
        say(problem)
        self.state, self.problem, self.retryable = "failed", problem, retryable


def start_runtime() -> None:
    """Settings and runtime; what changes from now on reaches the open pages."""
    threading.Thread(target=_warm_imports, name="mivra-warm", daemon=True).start()
    here = runtime.start(config.load(os.environ))
    here.changes.subscribe(Forward(here.board))


class Forward:
    """Hands changes to the pages; the database going away or coming back changes every page."""

    def __init__(self, board: BotBoard) -> None:
        self._board = board
        self._away = board.error is not None

    def __call__(self, kind: str) -> None:
        # Every page has the banner.
        hub.publish("data" if kind == "alerts" else kind)
        away = self._board.error is not None
        if away != self._away:
            self._away = away
            hub.publish("data")


def _warm_imports() -> None:
    for module in WARM_IMPORTS:
        importlib.import_module(module)


boot: Final = Boot(start_runtime, runtime.stop, runtime.warm_up)
"""The one of this process: app.py begins and ends it, the router asks it."""
