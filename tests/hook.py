"""A webhook of the test's own: a real HTTP server that keeps what it is sent, and fails when it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0-SECRET-PATH"  # noqa: S105 - what no log may hold


class Hook(ThreadingHTTPServer):
    """Answers with what `answers` gives, then with 200; a status of 0 ends the connection without an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/services/{SECRET}"
        self.answers: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.tried: list[dict[str, Any]] = []
        """All that came, whatever was answered."""
        self.arrived: list[dict[str, Any]] = []
        """What was answered with 200."""
        self.before_answer: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def moments(self, name: str) -> list[str]:
        """The moments of one alert that arrived, in their order."""
        return [each["alert"]["moment"] for each in self.arrived if each["alert"]["name"] == name]


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        with suppress(OSError):  # who asked may be dead by now
            self._answer(self.server)

    def _answer(self, hook: Hook) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hook.tried.append(body)
        hook.headers.append(dict(self.headers))
        status = hook.answers.pop(0) if hook.answers else 200
        hook.before_answer()
        if not status:
            self.close_connection = True
            return
        if status == 200:
            hook.arrived.append(body)
        self.send_response(status)
        # To itself: who follows it comes again.
        self.send_header("Location", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""
