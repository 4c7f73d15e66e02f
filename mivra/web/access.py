"""Who is answered while there is no sign-in: this machine, under its own name, and nobody else."""

from __future__ import annotations

import ipaddress
import logging
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})

SENTENCE: Final = (
    "This dashboard has no sign-in, so it answers only to this machine: open http://localhost:{port} on it.\n"
)

logger = logging.getLogger(__name__)


class LocalOnly:
    """ASGI middleware: 403 for a client of another machine, and for a Host that is not this machine's name.

    The second keeps out a web page whose own name was pointed at 127.0.0.1 (DNS rebinding). It holds whatever
    address the server listens on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_local(scope):
            await self._app(scope, receive, send)
            return
        logger.warning("refused %s from %s: not this machine", scope["path"], (scope.get("client") or ("unknown",))[0])
        if scope["type"] == "websocket":
            # Closed before it is accepted: the server answers the handshake with 403.
            await send({"type": "websocket.close", "code": 1008, "reason": "this machine only"})
            return
        port = (scope.get("server") or ("", 8501))[1]
        await PlainTextResponse(SENTENCE.format(port=port), status_code=403)(scope, receive, send)


def is_local(scope: Scope) -> bool:
    """Whether client and Host header are both this machine."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return (
        _is_loopback(scope.get("client")) and len(hosts) == 1 and host_name(hosts[0].decode("latin-1")) in LOCAL_NAMES
    )


def host_name(header: str) -> str:
    """The name of a Host header without its port; brackets of IPv6 removed."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_loopback(client: tuple[str, int] | None) -> bool:
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
