"""One connection of a client, while it lasts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import final

import trio

from trio_wskit._connection import Connection
from trio_wskit._core.envelope import Envelope
from trio_wskit._core.options import Limits
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Frame, Outbox
from trio_wskit.client._auth import Credentials
from trio_wskit.client._connect import Opened
from trio_wskit.client._streams import Bell
from trio_wskit.errors import ConnectionClosed, WsKitError

__all__ = ["Link"]


@final
class Link:
    """A connection, and what is known of its server.

    Args:
        opened: the open link; it is closed by `run`.
        credentials: whose token stays out of what the server writes into its close reason.
        limits: the bounds.
        flusher: joins writes.
        nursery: owns the connection's tasks.
        on_lost: called once, at the moment when the connection is lost.
        on_refused: called for what cannot be read.

    Attributes:
        meta_keys: meta keys, in lower case, that the server takes beside the standard ones. ws-kit's own server drops
            a message with any other.
        closed: why the connection is lost; None while it is not.
        heard: set when something was taken from the connection; `heartbeat` resets it.
        latency: seconds that the last ping took; None before the first pong.
        scrub: takes the token out of a text.
    """

    def __init__(
        self,
        opened: Opened,
        credentials: Credentials,
        limits: Limits,
        flusher: Flusher,
        nursery: trio.Nursery,
        on_lost: Callable[[Link], None],
        on_refused: Callable[[Exception], None],
    ) -> None:
        self.meta_keys: frozenset[str] = frozenset(opened.headers.tokens("x-wskit-meta"))
        self.client_id: str | None = opened.headers.get("x-client-id")
        self.subprotocol: str | None = opened.subprotocol
        self.latency: float | None = None
        self.closed: ConnectionClosed | None = None
        self.heard: bool = False
        self.connection: Connection = Connection(opened.transport, limits, flusher, nursery, self, client=True)
        self.outbox: Outbox = self.connection.outbox
        self._nursery = nursery
        self._backlog: deque[Frame] = deque()
        self._caught_up = Bell()
        self.scrub: Callable[[str], str] = credentials.scrub
        self._limits = limits
        self._on_lost = on_lost
        self._on_refused = on_refused

    # Sending. What must not wait and finds no room (many subscriptions, or a full offline queue, at the begin of a
    # connection) is sent by a task of its own, and everybody else comes behind that.

    def push(self, frame: bytes) -> None:
        """Send a frame without waiting, in its turn; where the connection is lost, it is lost too."""
        if not self._backlog and self.outbox.push(Frame(frame)):
            return
        self._backlog.append(Frame(frame))
        if len(self._backlog) == 1:
            self._nursery.start_soon(self._catch_up)

    async def _catch_up(self) -> None:
        try:
            while self._backlog:
                await self.outbox.send(self._backlog[0])
                self._backlog.popleft()
        except ConnectionClosed:
            pass
        finally:
            self._backlog.clear()
            self._caught_up.ring()

    def offer(self, frame: bytes) -> bool:
        """The usual case of `send`: False where it must wait, or where it is time to let others run."""
        return not self._backlog and self.outbox.accept(Frame(frame))

    async def send(self, frame: bytes) -> None:
        """Send a frame; wait for room.

        Raises:
            ConnectionClosed: the connection is lost; the frame was not sent.

        Cancelled: it was not accepted.
        """
        while self._backlog:
            await self._caught_up.wait()
        await self.outbox.send(Frame(frame))

    def broke(self) -> None:
        """Nothing can be sent any more, and perhaps the reader does not know it yet."""
        self.connection.abort()

    # What the connection tells its owner.

    def on_control(self, envelope: Envelope) -> None:
        """A server has no heartbeats to be answered, and no calls to be aborted."""

    def on_refused(self, error: WsKitError) -> None:
        """Something came that is no message."""
        self._on_refused(error)

    def on_disconnected(self, code: int, reason: str) -> None:
        """The link is closed."""
        self.closed = ConnectionClosed(code, self.scrub(reason))
        self._on_lost(self)

    async def heartbeat(self) -> None:
        """Find out by ourselves that the server is no more."""
        interval = self._limits.ping_interval
        while interval < math.inf:
            await trio.sleep(interval)
            self.heard = False
            sent = trio.current_time()
            with trio.move_on_after(self._limits.ping_timeout) as patience:
                try:
                    await self.connection.transport.ping()
                except ConnectionClosed:
                    await trio.sleep_forever()  # the reader has its time to find the end, behind what came before it
                self.latency = trio.current_time() - sent
            # A pong comes behind all that was sent before it, and we may be slow to take that, or not read at all.
            if patience.cancelled_caught and not (self.heard or self.connection.holds_back):
                self.connection.abort(1006, "no pong in time")
                return
