"""The transport on trio-websocket: for applications that use it already, and beside which the native one is measured.

Served by us, its stream is a `FrameStream`: our frames go to the socket ready-made, and its pongs and closes cannot
tear them. Handed an open `WebSocketConnection`, frames are taken apart and sent one by one through its own API.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio
import trio_websocket
from wsproto.utilities import LocalProtocolError

from trio_wskit._core.frames import Binary, close_frame, payload_of
from trio_wskit._core.handshake import Headers, Request
from trio_wskit.errors import ConnectionClosed, Reject
from trio_wskit.transports._frame_stream import FrameStream
from trio_wskit.transports._front import Head, accept_headers

if TYPE_CHECKING:
    from trio_wskit._app import App
    from trio_wskit._door import Admission

__all__ = ["TrioWebSocketTransport", "request_of", "serve_request"]

_PONG_BYTES: Final = 10  # the answer to a ping with the payload of four bytes that trio-websocket gives it
_ENDED: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


@final
class TrioWebSocketTransport:
    """An open trio-websocket connection.

    Args:
        websocket: open; its reader task runs in a nursery of its owner.
        nursery: open as long as the transport is used; `abort` needs it when there is no `stream`.
        stream: what `websocket` writes to, if it is ours.
    """

    def __init__(
        self,
        websocket: trio_websocket.WebSocketConnection,
        nursery: trio.Nursery,
        stream: FrameStream | None = None,
    ) -> None:
        self._websocket = websocket
        self._nursery = nursery
        self._stream = stream
        self._owed: bytes | None = None  # the rest of a frame that the kernel took in part
        # Set by who ends the conversation on this side: trio-websocket remembers 1000 for all of its own closes.
        self._end: ConnectionClosed | None = None
        self._closing: trio.Event | None = None  # there from the first `aclose` on, set when it is done
        self._waiting: set[trio.CancelScope] = set()  # for a pong or a close that trio-websocket cannot hear any more

    async def receive(self) -> list[bytes]:
        """See `trio_wskit.abc.Transport.receive`: one message at a time, as trio-websocket gives them."""
        try:
            message = await self._websocket.get_message()
        except trio_websocket.ConnectionClosed:
            if self._closing is not None:
                await self._closing.wait()  # whoever hears the end stops the tasks that the close may need
            self.reader_ended()
            raise self._closed() from None
        if self._stream is not None:
            self._stream.message_finished()
        return [message.encode() if isinstance(message, str) else Binary(message)]

    def _closed(self) -> ConnectionClosed:
        if self._end is not None:
            return ConnectionClosed(self._end.code, self._end.reason)
        if self._stream is not None and self._stream.endless:
            return ConnectionClosed(1009, "message too big, or in too many fragments")
        reason = self._websocket.closed
        if reason is None:
            return ConnectionClosed(1006)
        return ConnectionClosed(int(reason.code), reason.reason or "")

    def _check_open(self) -> None:
        if self._end is not None or self._websocket.closed is not None:
            raise self._closed()

    def reader_ended(self) -> None:
        """trio-websocket reads no more: what waits for an answer of the peer has waited long enough."""
        for scope in self._waiting:
            scope.cancel()

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """See `trio_wskit.abc.Transport.write_nowait`."""
        self._check_open()
        if self._stream is None:
            return frames
        try:
            left = self._stream.write_nowait(frames)
        except _ENDED:
            raise self._closed() from None
        if left and left[0] is not frames[len(frames) - len(left)]:
            self._owed = left[0]
        return left

    async def write(self, frames: Sequence[bytes]) -> None:
        """See `trio_wskit.abc.Transport.write`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        owed, self._owed = self._owed, None
        if owed is not None and (not frames or frames[0] is not owed):
            self.abort()  # half a frame is on the wire, and its other half was thrown away
        try:
            if owed is not None and self._stream is not None:
                # Even where nothing may follow: trio-websocket waits for the end of this frame, to answer a close.
                await self._stream.write((owed,), owed=True)
                frames = frames[1:]
            self._check_open()
            if self._stream is not None:
                await self._stream.write(frames, owed=False)
            else:
                for frame in frames:
                    payload = payload_of(frame)
                    await self._websocket.send_message(payload if isinstance(payload, Binary) else payload.decode())
        except (*_ENDED, trio_websocket.ConnectionClosed):
            raise self._closed() from None

    async def hung_up(self) -> None:
        """See `trio_wskit.abc.WatchedTransport.hung_up`. Waits for ever on a connection of the application's own."""
        if self._stream is None:
            await trio.sleep_forever()
        else:
            await self._stream.hung_up()

    async def ping(self) -> None:
        """See `trio_wskit.abc.Transport.ping`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        try:
            answered = await self._until_answered(self._websocket.ping)
        except trio_websocket.ConnectionClosed:
            raise self._closed() from None
        if not answered:
            raise self._closed()
        if self._stream is not None:
            self._stream.control_frame_read(_PONG_BYTES)

    async def _until_answered(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """True if the peer has answered, False if the reader ended."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                await ask()
            finally:
                self._waiting.discard(scope)
        return not scope.cancelled_caught

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """See `trio_wskit.abc.Transport.aclose`."""
        if self._end is None and self._websocket.closed is None:
            self._end = ConnectionClosed(code, reason)
        first = self._closing is None
        if self._closing is None:
            self._closing = trio.Event()
        try:
            if not first:
                await self._closing.wait()
            await self._until_answered(partial(self._websocket.aclose, code, reason))
        except trio.Cancelled:
            self.abort()
            raise
        finally:
            if first:
                self._closing.set()

    def last_words(self) -> bytes:
        """The close frame for a peer that broke the protocol: trio-websocket would just hang up."""
        closed = self._closed()
        return close_frame(closed.code, closed.reason[:100]) if closed.code in (1002, 1007, 1009) else b""

    def abort(self) -> None:
        """See `trio_wskit.abc.Transport.abort`."""
        if self._end is None:
            self._end = ConnectionClosed(1006)
        self.reader_ended()
        if self._stream is not None:
            self._stream.abort()
        else:
            self._nursery.start_soon(trio.aclose_forcefully, self._websocket)


def request_of(request: trio_websocket.WebSocketRequest) -> Request:
    """The handshake of a trio-websocket request, in our words. It has no Host: trio-websocket does not give it."""
    remote = request.remote
    address = getattr(remote, "address", None)
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
    if request.proposed_subprotocols:  # which it takes out of the headers
        fields.append(("Sec-WebSocket-Protocol", ", ".join(request.proposed_subprotocols)))
    return Request(
        target=request.path,
        headers=Headers(fields),
        remote=None if address is None else str(address),
        secure=bool(getattr(remote, "is_ssl", False)),
    )


async def serve_request(app: App, request: trio_websocket.WebSocketRequest) -> None:
    """Serve one request of an application that uses trio-websocket already: its handler may be just this call.

    The app admits the request (limits, Origin, authentication), or it is rejected with the HTTP status that is due. The
    handshake's Host is not known here, so an app that browsers connect to must name its `origins`.

    Returns when the connection is over. Cancelled: the client gets 1001.
    """
    try:
        async with app.admit(request_of(request)) as admission, trio.open_nursery() as nursery:
            try:
                websocket = await request.accept(
                    subprotocol=_subprotocol(app, admission.request),
                    extra_headers=_as_bytes(accept_headers(admission)),
                )
            except trio_websocket.ConnectionClosed:
                return  # it left before it was let in
            await app.serve_session(TrioWebSocketTransport(websocket, nursery), admission)
            nursery.cancel_scope.cancel()
    except Reject as refusal:
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            await request.reject(
                refusal.status, extra_headers=_as_bytes(refusal.headers.items()), body=refusal.body.encode()
            )


def _subprotocol(app: App, request: Request) -> str | None:
    offered = request.subprotocols
    return next((one for one in app.subprotocols_for(request) if one in offered), None)


def _as_bytes(fields: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]


async def serve_trio_websocket(
    app: App, stream: trio.abc.Stream, head: Head, admission: Admission, handshake: trio.CancelScope
) -> None:
    """Shake hands through trio-websocket on a stream whose request was read already, and serve the session.

    Args:
        app: is open.
        stream: is closed here.
        head: what was read from it.
        admission: of the app.
        handshake: its deadline ends with the handshake.
    """
    largest = app.limits.max_frame_bytes
    request_head = head.raw[: len(head.raw) - len(head.leftover)]
    frames = FrameStream(stream, request_head, for_later=head.leftover, max_unfinished=largest + largest // 8 + 65536)
    try:
        async with trio.open_nursery() as nursery:
            reader = await nursery.start(_Reader().run)
            try:
                request = await trio_websocket.wrap_server_stream(
                    reader.nursery, frames, max_message_size=largest, receive_buffer_size=65536
                )
                try:
                    websocket = await request.accept(
                        subprotocol=_subprotocol(app, head.request),
                        extra_headers=_as_bytes(accept_headers(admission)),
                    )
                except trio_websocket.ConnectionClosed:
                    return
                handshake.deadline = math.inf
                frames.go_on()
                transport = reader.transport = TrioWebSocketTransport(websocket, nursery, frames)
                frames.last_words = transport.last_words
                await app.serve_session(transport, admission)
                with trio.CancelScope(shield=True):
                    await frames.aclose()
            finally:
                reader.nursery.cancel_scope.cancel()
    finally:
        frames.abort()


@final
class _Reader:
    """Where trio-websocket reads: it goes on while a session that was cancelled says goodbye, and fails alone."""

    nursery: trio.Nursery

    def __init__(self) -> None:
        self.transport: TrioWebSocketTransport | None = None

    async def run(self, *, task_status: trio.TaskStatus[_Reader]) -> None:
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as self.nursery:
                    task_status.started(self)
                    await trio.sleep_forever()
        except* LocalProtocolError:
            pass  # trio-websocket 0.12.2 wants to answer a ping that came after our close frame
        finally:
            if self.transport is not None:
                self.transport.reader_ended()
