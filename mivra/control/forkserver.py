"""A warm process that forks bots in milliseconds: everything a bot imports is imported here once.

It has one thread and no connection. It speaks with its executor in lines of JSON over the socket it was given:
in {"bot_id", "folder", "environ"}, out {"bot_id", "pid"} or {"bot_id", "error"}, and {"pid", "code"} when a bot ended.
It ends when its executor is gone; the bots go on by themselves until their watchdog ends them or they are adopted.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mivra.bot.__main__ import main as run_bot
from mivra.lines import Lines
from mivra.logs import configure

log = logging.getLogger(__name__)


def main() -> None:
    server, lines = socket.socket(fileno=int(sys.argv[1])), Lines()
    configure(os.environ.get("MIVRA_LOG", "text"))
    # What is imported is never garbage: without this each bot's first collection copies all of it.
    gc.collect()
    gc.freeze()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([server.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(server)
        if server.fileno() in ready:
            data = server.recv(65536)
            if not data:
                return  # The executor is gone.
            for order in lines.feed(data):
                _serve(server, order)


def _serve(server: socket.socket, order: Mapping[str, Any]) -> None:
    """Fork one bot."""
    try:
        pid = os.fork()
    except OSError as error:
        _tell(server, {"bot_id": order["bot_id"], "error": f"The system starts no more processes: {error}"})
        return
    if pid == 0:
        server.close()
        code = 1
        try:
            code = _become_bot(order)
        except Exception:
            log.exception("The bot did not start")
        finally:
            # Whatever happened: above is the server's loop.
            os._exit(code)
    _tell(server, {"bot_id": order["bot_id"], "pid": pid})


def _reap(server: socket.socket) -> None:
    while True:
        pid = _ended_child()
        if pid is None:
            return
        # What it started goes with it. Until it is reaped its number cannot be anybody else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        _tell(server, {"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _ended_child() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found else None


def _tell(server: socket.socket, message: dict[str, Any]) -> None:
    # When nobody listens any more, the next read says so too and ends this process.
    with suppress(OSError):
        server.sendall(json.dumps(message).encode() + b"\n")


def _become_bot(order: Mapping[str, Any]) -> int:
    """In the child: a session of its own, the bot's pipes as standard streams, then the bot."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(order["folder"])
    _redirect(folder / "in", os.O_RDWR, 0)
    # Read and write: a pipe whose reader is gone must neither end nor kill the bot while it may be adopted.
    _redirect(folder / "out", os.O_RDWR, 1)
    _redirect(folder / "bot.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 2)
    os.environ.update(order["environ"])
    return run_bot()


def _redirect(path: Path, flags: int, target: int) -> None:
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, target)
    os.close(opened)


if __name__ == "__main__":
    main()
