"""A client with a server that a test plays: links in memory, virtual time; at the end nothing may be left."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, final

import trio
from trio.testing import wait_all_tasks_blocked

from trio_wskit import Limits, Rpc, message
from trio_wskit._core.handshake import Headers
from trio_wskit.client import Client, Handshake, Opened, open_client
from trio_wskit.errors import ConnectFailed, ConnectionClosed
from trio_wskit.transports.memory import MemoryPeer, MemoryTransport, memory_link

__all__ = ["NOW", "OURS", "GetUser", "Hello", "News", "Server", "User", "open_pair", "settle"]

NOW: Final = 1_700_000_000_000  # what the client's wall clock shows, in milliseconds
OURS: Final = Headers([("x-wskit-meta", "timeoutMs, idempotencyKey, traceparent"), ("x-client-id", "c1")])

settle = wait_all_tasks_blocked


@message("HELLO")
class Hello:
    name: str


@message("NEWS")
class News:
    text: str


@message("USER")
class User:
    name: str


@message("GET_USER")
class GetUser(Rpc[User]):
    id: str


@final
class Server:
    """The test's end.

    Attributes:
        handshakes: what the client asked for, one for each attempt.
        links: the connections, the last one last.
        before: awaited in each attempt: raise here to refuse, sleep to be slow.
    """

    def __init__(self) -> None:
        self.handshakes: list[Handshake] = []
        self.times: list[float] = []
        self.links: list[tuple[MemoryTransport, MemoryPeer]] = []
        self.headers = OURS
        self.subprotocol: str | None = None
        self.failures: list[BaseException | float] = []  # for the next attempts: what is raised, or seconds to take
        self.born_stalled = False  # the next link begins with a peer that reads nothing
        self.capacity = 65536  # bytes that each direction of a link holds
        self.at_once = 0
        self.most_at_once = 0

    async def connect(self, handshake: Handshake) -> Opened:
        """What the client connects with."""
        self.handshakes.append(handshake)
        self.times.append(trio.current_time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once + self.open_links)
        try:
            await trio.lowlevel.checkpoint()
            while self.failures:
                failure = self.failures.pop(0)
                if isinstance(failure, BaseException):
                    raise failure
                await trio.sleep(failure)
            transport, peer = memory_link(capacity=self.capacity)
            if self.born_stalled:
                peer.stall()
                self.born_stalled = False
            self.links.append((transport, peer))
            return Opened(transport, self.subprotocol, self.headers)
        finally:
            self.at_once -= 1

    def refuse(self, status: int | None = None, retry_after: float | None = None) -> None:
        """Let the next attempt fail."""
        self.failures.append(ConnectFailed("refused", status=status, retry_after=retry_after))

    @property
    def open_links(self) -> int:
        """Links that neither side has closed."""
        return sum(
            transport._inbound.broken is None  # pyright: ignore[reportPrivateUsage]
            for transport, _ in self.links
        )

    @property
    def peer(self) -> MemoryPeer:
        """Our end of the last connection."""
        return self.links[-1][1]

    def send(
        self,
        kind: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's word
        **others: Any,
    ) -> None:
        """Send a message on the last connection, with `id` for its correlation id."""
        envelope: dict[str, Any] = {"type": kind, "meta": {} if id is None else {"correlationId": id}}
        if payload is not None:
            envelope["payload"] = payload
        self.peer.send_nowait(json.dumps({**envelope, **others}))

    async def receive(self) -> dict[str, Any]:
        """Wait for the next message on the last connection."""
        received: dict[str, Any] = json.loads(await self.peer.receive())
        return received

    async def heard(self, link: int = -1) -> list[dict[str, Any]]:
        """All that has come on a connection when nothing moves any more."""
        heard: list[dict[str, Any]] = []

        async def hear() -> None:
            with suppress(ConnectionClosed):
                while True:
                    heard.append(json.loads(await self.links[link][1].receive()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await settle()
            nursery.cancel_scope.cancel()
        return heard

    async def asked(self) -> str:
        """Wait for a request, and give its correlation id."""
        while "correlationId" not in (received := await self.receive())["meta"] or received["type"].startswith("$"):
            pass
        found: str = received["meta"]["correlationId"]
        return found


@final
class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "trying again" not in record.msg:
            self.lines.append(self.format(record))


@asynccontextmanager
async def open_pair(
    server: Server | None = None, *, url: str = "ws://server.test/path", logged: list[str] | None = None, **options: Any
) -> AsyncGenerator[tuple[Client, Server]]:
    """Open a client; at the end look that nothing is left of it.

    Pings are off unless `limits` are given, and delays are half of what they can be. What is logged is put into
    `logged`; without that, a warning fails the test.
    """
    server = server or Server()
    options.setdefault("limits", Limits(ping_interval=math.inf))
    options.setdefault("randomness", lambda: 0.5)
    options.setdefault("wall_clock", lambda: NOW / 1000)
    tasks = trio.lowlevel.current_statistics().tasks_living
    handler = _Keep()
    logging.getLogger("trio_wskit").addHandler(handler)
    client: Client | None = None
    try:
        with trio.fail_after(1_000_000):  # virtual: a test that hangs ends at once
            async with open_client(url, connect=server.connect, **options) as client:
                yield client, server
    finally:
        logging.getLogger("trio_wskit").removeHandler(handler)
        if logged is not None:
            logged += handler.lines
    await settle()
    assert trio.lowlevel.current_statistics().tasks_living <= tasks, "a task is left"
    check_nothing_left(client, server)
    assert logged is not None or handler.lines == []


def check_nothing_left(client: Client, server: Server) -> None:
    """After the end: no request, no message, no link; and there never were two links."""
    stats = client.stats
    assert (client.state, stats.pending, stats.queued) == ("closed", 0, 0)
    inside: Any = client
    assert inside._turns._queue.queued_bytes == 0
    assert inside._life.link is None
    assert server.open_links == 0
    assert server.most_at_once <= 1
