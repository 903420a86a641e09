"""The native link on any Trio stream: TLS, a stream in memory, or whatever else has `send_all` and `receive_some`.

Rules
- `_lock` is held by whoever is in `send_all`; it also sends the frames of our own that came up meanwhile.
- While nobody writes, a task of its own sends those (`_send_ours`): a system task, which no cancellation of a `receive`
  or a `ping` tears, and which ends with the link. It exists only while there is something to send.
- `_torn` is true from the first byte of a `send_all` to its last: if it is still true when nobody holds the lock, half
  a frame is on the wire for good, and the link is aborted by whoever finds it.
- The stream is closed by `aclose`, or by `abort` where its kind can be closed at once (Trio's own kinds can).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Final, cast, final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from trio_wskit.errors import ConnectionClosed
from trio_wskit.transports._hangup import hung_up, keep_alive, socket_below
from trio_wskit.transports._wire import READ_BYTES, Wire

__all__ = ["StreamTransport"]

logger = logging.getLogger(__name__)

# Where a stream cannot say that we send no more, a peer that broke the protocol may not know that we wait for it.
_LINGER_SECONDS: Final = 1.0


@final
class StreamTransport(Wire):
    """An open WebSocket on a Trio stream.

    Whoever makes one calls `aclose` at the end in any case.

    Args:
        stream: ready for frames; ours to close.
        client: we are the client.
        leftover: bytes that were read behind the handshake.
        max_message_bytes: larger messages are refused with 1009, a frame of that size from its header.
        max_fragments: frames that one message may come in; more are refused with 1008.
        deflate_window_bits: 9 to 15 where permessage-deflate was agreed on, else None.
    """

    __slots__ = ("_broken", "_lock", "_stream", "_torn")

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        client: bool = False,
        leftover: bytes = b"",
        max_message_bytes: int = 1 << 20,
        max_fragments: int = 1 << 17,
        deflate_window_bits: int | None = None,
    ) -> None:
        super().__init__(
            client=client,
            leftover=leftover,
            max_message_bytes=max_message_bytes,
            max_fragments=max_fragments,
            deflate_window_bits=deflate_window_bits,
        )
        below = socket_below(stream)
        if below is not None:
            with contextlib.suppress(OSError):  # it has gone already, which the first read tells
                keep_alive(below.socket)
        self._stream = stream
        self._lock = trio.Lock()
        self._torn = False
        self._broken = False

    async def receive(self) -> list[bytes]:
        """See `abc.Transport.receive`."""
        await checkpoint_if_cancelled()
        self._start_receiving()
        try:
            while True:
                self._conclude()
                if self._end is not None:
                    await self._send_urgent()
                    raise self._closed()
                self._send_urgent_soon()
                messages = self._parse(await self._read())
                if messages and self._closing is None:
                    return messages
        finally:
            self._receiving = False
            self._wake()

    async def _read(self) -> bytes:
        if self._leftover:
            await checkpoint()
            data, self._leftover = self._leftover, b""
            return data
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """See `abc.Transport.write_nowait`. A stream takes nothing without waiting, so all of it is left."""
        self._check_open()
        return frames

    async def write(self, frames: Sequence[bytes]) -> None:
        """See `abc.Transport.write`."""
        await checkpoint_if_cancelled()
        async with self._lock:
            self._check_open()
            await self._send_all(self._take_urgent() + b"".join(self._dressed(frames)))
            while self._urgent:
                await self._send_all(self._take_urgent())

    def _check_open(self) -> None:
        if self._end is not None or self._closing is not None or self._broken:
            raise self._closed()

    async def _send_urgent(self) -> None:
        """Send frames of our own, unless somebody is writing, who then does it."""
        if self._urgent and not self._lock.locked():
            async with self._lock:
                while self._urgent and not self._broken:
                    try:
                        await self._send_all(self._take_urgent())
                    except ConnectionClosed:
                        return  # the reader finds the end by itself, in its turn

    def _send_urgent_soon(self) -> None:
        if self._urgent and not self._lock.locked():
            trio.lowlevel.spawn_system_task(self._send_ours)

    async def _send_ours(self) -> None:
        try:
            await self._send_urgent()
        except Exception:  # of a stream that breaks its own promises: it may end this link, but not all of Trio
            logger.exception("sending a control frame failed, and the connection is aborted")
            self.abort()

    def _take_urgent(self) -> bytes:
        data, self._urgent = self._urgent, b""
        return data

    async def _send_all(self, data: bytes) -> None:
        """Only with the lock held."""
        if self._torn:
            self.abort()
            raise self._closed()
        self._torn = True
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = True
            raise self._closed() from None
        self._torn = False

    async def hung_up(self) -> None:
        """See `abc.WatchedTransport.hung_up`."""
        await hung_up(self._stream)

    async def ping(self) -> None:
        """See `abc.Transport.ping`."""
        await checkpoint_if_cancelled()
        self._check_open()
        payload, pong = self._new_ping()
        try:
            self._send_urgent_soon()
            await pong.wait()
        finally:
            answered = self._forget_ping(payload)
        if not answered:
            raise self._closed()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """See `abc.Transport.aclose`; bound it with a cancel scope, for the peer may take its time.

        Raises:
            LocalProtocolError: the code may not be sent, or the reason is too long; nothing has happened.
        """
        self._start_close(code, reason)
        try:
            async with self._lock:
                try:
                    while self._urgent and not self._broken:
                        await self._send_all(self._take_urgent())
                except ConnectionClosed:
                    pass
            while self._receiving:
                await self._wait_for_change()
            await self._hear_close()
            await self._stream.aclose()
        except trio.BrokenResourceError:
            await cancel_shielded_checkpoint()  # TLS found the link broken while saying goodbye, and has closed it
        except BaseException:
            self.abort()
            await trio.aclose_forcefully(self._stream)
            raise
        if self._end is None:
            self._finish(code, reason)

    async def _hear_close(self) -> None:
        """Read until the peer's close frame has come; then, where the peer has to hang up first, until it has."""
        self._receiving = True
        try:
            while not self._broken and self._parser.closed is None:
                data = await self._read()
                if not data:
                    return
                self._parser.feed(data)
                self._parser.control = None
            closed = self._parser.closed
            if closed is None or (closed.by_peer and not self._mask):
                return  # RFC 6455 section 7.1.1: now it is the server who hangs up
            await self._linger()
        finally:
            self._receiving = False
            self._wake()

    async def _linger(self) -> None:
        """Give the peer time to read our close frame: bytes of its that nobody reads would destroy it on its way."""
        patience = _LINGER_SECONDS
        # TLS has no such word of its own; but a peer whose TCP says so hangs up as well.
        stream = socket_below(self._stream) or self._stream
        if isinstance(stream, trio.abc.HalfCloseableStream):
            patience = math.inf
            try:
                await stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
        with trio.move_on_after(patience):
            while await self._read():
                pass

    def abort(self) -> None:
        """See `abc.Transport.abort`."""
        self._broken = True
        self._finish(1006, "")
        _close_now(self._stream)


def _close_now(stream: object) -> None:
    """Close a stream without waiting, if its kind can be."""
    while isinstance(stream, trio.SSLStream):
        stream = cast("trio.SSLStream[trio.abc.Stream]", stream).transport_stream
    if isinstance(stream, trio.SocketStream):
        stream.socket.close()
    elif isinstance(stream, trio.StapledStream):
        _close_now(cast("object", stream.send_stream))
        _close_now(cast("object", stream.receive_stream))
    elif close := cast("Callable[[], object] | None", getattr(stream, "close", None)):
        close()  # in Trio's vocabulary what waits is called aclose
