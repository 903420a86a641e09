"""One live link: what comes in becomes batches of envelopes, what goes out passes the outbox.

A transport either reads by itself and calls `Connection.feed` (`PushTransport`), or is read by a task here. Both ways
end in one bounded memory channel of batches. When it is full nobody reads, and TCP pushes back on the peer.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, cast, final

import trio

from trio_wskit._core.codec import decode
from trio_wskit._core.envelope import CONTROL_TYPES, Envelope
from trio_wskit._core.frames import close_frame
from trio_wskit._core.options import Limits
from trio_wskit._flusher import Flusher
from trio_wskit._inbox import Inbox
from trio_wskit._outbox import Outbox
from trio_wskit.abc import PushTransport, Receiver, Transport, WatchedTransport
from trio_wskit.errors import ConnectionClosed, WsKitError

__all__ = ["Connection", "Owner"]

_LAST_FRAME: Final = 1.0  # seconds for a close frame to find room, where the peer is too slow for all the others


class Owner(Protocol):
    """Who a connection belongs to. None of these may wait."""

    def on_control(self, envelope: Envelope) -> None:
        """A heartbeat or an abort came; it does not wait behind other messages."""
        ...

    def on_refused(self, error: WsKitError) -> None:
        """A message came that cannot be decoded."""
        ...

    def on_disconnected(self, code: int, reason: str) -> None:
        """The link is closed. Called once."""
        ...


@final
class Connection:
    """The link of one session, or of one client.

    Args:
        transport: an open WebSocket.
        limits: the bounds.
        flusher: joins the writes of a scheduler pass.
        nursery: owns the reader and the writer.
        owner: is told what must not wait.
        client: we are the client, which is sent what a server is not.
    """

    __slots__ = (
        "_client",
        "_closed",
        "_closing",
        "_limits",
        "_nursery",
        "_owner",
        "_push",
        "_resumed",
        "close_code",
        "close_reason",
        "inbox",
        "outbox",
        "transport",
    )

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        flusher: Flusher,
        nursery: trio.Nursery,
        owner: Owner,
        *,
        client: bool = False,
    ) -> None:
        self._client = client
        self.transport: Transport = transport
        self.outbox: Outbox = Outbox(transport, limits, flusher, self._start_writer, self._write_failed)
        self.close_code: int | None = None  # None while the link is open
        self.close_reason: str = ""
        self._limits = limits
        self._nursery = nursery
        self._owner = owner
        # Not isinstance(): for a protocol that looks at every method, and costs as much as the rest of this.
        self._push = cast("PushTransport", transport) if hasattr(transport, "attach") else None
        self.inbox: Inbox = Inbox(limits.max_waiting_batches, self._resume)
        self._resumed: trio.Event | None = None  # set while the reader is held back
        self._closing: tuple[int, str] | None = None  # what we have begun to close with
        self._closed: trio.Event | None = None  # there while somebody waits for the close of another

    def _start_writer(self) -> bool:
        return self._start_task(self.outbox.run_writer)

    def _start_task(self, run: Callable[..., Awaitable[object]], *args: object) -> bool:
        try:
            self._nursery.start_soon(run, *args)
        except RuntimeError:  # the nursery has just been closed, and its owner says goodbye next
            return False
        return True

    def _write_failed(self, closed: ConnectionClosed) -> None:
        """The reader finds the end of the link itself, behind what came before it; but not while it is held back.

        Nor where we have dropped the link: a transport that reads by itself does not tell us what we told it.
        """
        if self.inbox.is_full or (self.outbox.aborted and self._closing is None):
            self.disconnected(closed.code, closed.reason)

    def start(self, receiver: Receiver | None = None) -> None:
        """Begin to read, through `receiver` if there is one, which gives us what it lets in."""
        if self._push is not None:
            self._push.attach(receiver or self)
        else:
            self._nursery.start_soon(self._read, receiver or self)

    async def _read(self, receiver: Receiver) -> None:
        try:
            while True:
                if not receiver.feed(await self.transport.receive()):
                    await self._hold_back()
        except ConnectionClosed as closed:
            self.disconnected(closed.code, closed.reason)

    async def _hold_back(self) -> None:
        """Wait for room; and see meanwhile whether the peer hangs up, as its handlers must end then."""
        self._resumed = resumed = trio.Event()
        if not hasattr(self.transport, "hung_up"):
            await resumed.wait()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._abort_when_hung_up, cast("WatchedTransport", self.transport))
            await resumed.wait()
            nursery.cancel_scope.cancel()

    async def _abort_when_hung_up(self, transport: WatchedTransport) -> None:
        await transport.hung_up()
        self.abort()

    def feed(self, messages: list[bytes]) -> bool:
        """Decode messages, queue them as one batch, and answer the control envelopes among them at once.

        Returns:
            False when the dispatcher is behind: the caller holds back until `PushTransport.resume`.
        """
        if self._closing is not None or self.close_code is not None:
            return True  # only the peer's close frame matters now
        limits = self._limits
        batch: list[Envelope] = []
        controls: list[Envelope] = []
        for message in messages:
            try:
                envelope = decode(
                    message,
                    max_bytes=limits.max_payload_bytes,
                    max_depth=limits.max_depth,
                    from_server=self._client,
                )
            except WsKitError as error:
                self._owner.on_refused(error)
                if self.is_closing:
                    break  # that was one too many
                continue
            if envelope.type in CONTROL_TYPES:
                controls.append(envelope)
            else:
                batch.append(envelope)
        if batch and self.close_code is None:
            self.inbox.put_nowait(batch, messages)  # never full: nobody feeds after being told to hold back
        for envelope in controls:  # now an abort finds the call that came just before it
            self._owner.on_control(envelope)
        if not self.inbox.is_full:
            return True
        if self.outbox.closed is not None:
            self._write_failed(self.outbox.closed)
        return False

    @property
    def is_closing(self) -> bool:
        """True from the begin of a close on: what comes is not looked at any more."""
        return self._closing is not None or self.close_code is not None

    @property
    def holds_back(self) -> bool:
        """True while we do not read because the dispatcher is behind: the peer's pongs cannot be seen now."""
        return self.inbox.is_full

    def _resume(self) -> None:
        if self._push is not None:
            self._push.resume()
        elif self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def aclose(self, code: int = 1000, reason: str = "", *, patience: float = math.inf) -> None:
        """Send what is queued, then a close frame, and wait for the peer's. Who comes second waits for the first.

        Args:
            code: a close code that may be sent.
            reason: at most 123 bytes of UTF-8.
            patience: seconds, at most ``close_timeout``; then the link is aborted.

        Raises:
            LocalProtocolError: the code may not be sent, or the reason is too long; nothing has happened.

        Cancelled: the link is aborted.
        """
        close_frame(code, reason)  # refuses what cannot be sent
        if self.close_code is not None:
            await trio.lowlevel.checkpoint()
        elif self._closing is not None:
            await self._close_of_another(self._closing, patience)
        else:
            self._closing = (code, reason)
            await self._close(code, reason, patience)

    async def _close_of_another(self, closing: tuple[int, str], patience: float) -> None:
        if self._closed is None:
            self._closed = trio.Event()
        try:
            with trio.move_on_after(min(patience, self._limits.close_timeout)):
                await self._closed.wait()
        finally:
            if self.close_code is None:
                self.abort(*closing)

    async def _close(self, code: int, reason: str, patience: float) -> None:
        if self.holds_back:
            self._resume()  # the peer's close frame is behind what we did not read
        clean = False
        try:
            with trio.move_on_after(min(patience, self._limits.close_timeout)):
                await self.outbox.drained()
                await self.outbox.aclose()
                await self.transport.aclose(code, reason)
                clean = True
        except ConnectionClosed:
            pass  # the peer was quicker
        finally:
            if not clean:
                self.transport.abort()
            self.disconnected(code, reason)

    def close_soon(self, code: int, reason: str) -> None:
        """Like `aclose`, in a task of the connection; what comes from now on is not looked at.

        What came before it and is served without a wait is answered before the close frame.
        """
        if not self.is_closing and self._start_task(self._close_behind, code, reason):
            self._closing = (code, reason)

    async def _close_behind(self, code: int, reason: str) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()  # the dispatcher was woken in the same pass as we
        await self._close(code, reason, math.inf)

    def give_up(self, code: int, reason: str) -> None:
        """Close on a peer that does not read, in a task of the connection. What is queued is forgotten.

        The close frame stands behind the frame that is half written, if there is one: nothing else is legal. So it
        comes where the peer reads that far within a second; where it does not, the link is aborted, and it sees 1006.
        """
        if self.is_closing:
            return
        self.outbox.forget(ConnectionClosed(code, reason))
        if self._start_task(self._close, code, reason, _LAST_FRAME):
            self._closing = (code, reason)
        else:
            self.abort(code, reason)

    def abort(self, code: int = 1006, reason: str = "") -> None:
        """Drop the link at once."""
        self.transport.abort()
        self.disconnected(code, reason)

    def disconnected(self, code: int, reason: str) -> None:
        """The link is closed: nothing more can be sent, and the inbox ends after what has arrived."""
        if self.close_code is not None:
            return
        self.close_code, self.close_reason = code, reason
        self.outbox.break_off(ConnectionClosed(code, reason))
        self.inbox.close()
        if self._closed is not None:
            self._closed.set()
        self._owner.on_disconnected(code, reason)
