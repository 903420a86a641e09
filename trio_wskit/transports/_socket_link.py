"""The native link on a plain TCP or unix socket: one `recv` for what has come, one `send` for what goes, no task.

Rules of writing
- A system call is tried first; a wait comes only after the kernel said no. One task at a time waits in the kernel for
  room (`_wait_writable`), all others wait for that one.
- `_rest` is what is left of a frame of which the kernel took a part. It is the next thing on the wire, always, and it
  belongs to whoever was told so by `write_nowait`: another first frame means that it is lost, and the link is aborted.
- Our own frames (`_urgent`) go out between two frames: `_rest` first, then they, then what is handed over.
- Once we close, or the conversation is over, nobody above writes any more, and `_flush` finishes the rest as well.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled, wait_readable, wait_writable

from trio_wskit._core.frames import Shared
from trio_wskit.errors import ConnectionClosed
from trio_wskit.transports._hangup import keep_alive
from trio_wskit.transports._wire import READ_BYTES, Wire

__all__ = ["SocketTransport"]

# Closing resets the link, and the kernel forgets what a stalled peer has not read, instead of keeping it for minutes.
_RESET: Final = struct.pack("ii", 1, 0)


class SocketTransport(Wire):
    """An open WebSocket on a plain socket.

    Whoever makes one calls `aclose` (or `abort`) at the end in any case.

    Args:
        sock: connected; it becomes non-blocking, and ours to close.
        client: we are the client.
        leftover: bytes that were read behind the handshake.
        max_message_bytes: larger messages are refused with 1009, a frame of that size from its header.
        max_fragments: frames that one message may come in; more are refused with 1008.
        deflate_window_bits: 9 to 15 where permessage-deflate was agreed on, else None.
    """

    __slots__ = ("_broken", "_rest", "_socket")

    def __init__(
        self,
        sock: socket.socket,
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
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)
        self._socket = sock
        self._rest: bytes = b""
        self._broken = False  # nothing more can be sent; what has come may still be read

    # Reading.

    async def receive(self) -> list[bytes]:
        """See `abc.Transport.receive`."""
        await checkpoint_if_cancelled()
        self._start_receiving()
        try:
            while True:
                self._end_if_closed()
                if self._end is not None:
                    raise self._closed()
                messages, waited = await self._read()
                if messages and self._closing is None:
                    if not waited:
                        await cancel_shielded_checkpoint()
                    return messages
                if not waited:
                    await trio.lowlevel.checkpoint()
        finally:
            self._receiving = False
            self._wake()

    async def _read(self) -> tuple[list[bytes], bool]:
        """Take what one read gives; wait if there is nothing. Cancelled: nothing was taken."""
        waited = False
        while (data := self._read_now()) is None:
            waited = True
            await self._wait_readable()
        messages = self._parse(data)
        if self._urgent:
            self._flush()
        return messages, waited

    def _read_now(self) -> bytes | None:
        """What one read gives; None where nothing has come, empty where nothing will."""
        if self._leftover:
            data, self._leftover = self._leftover, b""
            return data
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    async def _wait_readable(self) -> None:
        """Wait for the peer; and where a pong is stuck, see meanwhile that it goes."""
        if not self._urgent or self._rest:
            await self._wait_readable_only()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush_all)
            await self._wait_readable_only()
            nursery.cancel_scope.cancel()

    async def _wait_readable_only(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await wait_readable(self._socket)

    # Writing.

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """See `abc.Transport.write_nowait`."""
        if self._end is not None or self._closing is not None or self._broken:
            raise self._closed()
        if self._rest:
            frames = self._write_rest(frames)
            if self._rest:
                return frames
        if self._urgent and not self._flush():
            return frames
        if not frames:
            return ()
        dressed = frames if self._plain else self._dressed(frames)
        if len(dressed) == 1:
            data = dressed[0]
        elif type(dressed) is Shared:
            data = dressed.joined
        else:
            data = b"".join(dressed)
        try:
            taken = self._socket.send(data)  # not through `_send`: this is what a fan-out does for each delivery
        except OSError:
            taken = self._send(data)
        if taken == len(data):
            return ()
        at = 0
        while taken >= len(dressed[at]):
            taken -= len(dressed[at])
            at += 1
        if not taken:
            return frames[at:]
        self._rest = dressed[at][taken:]
        return [self._rest, *frames[at + 1 :]]

    def _write_rest(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        if not frames or frames[0] is not self._rest:
            self.abort()  # half a frame is on the wire, and its other half was thrown away
            raise self._closed()
        self._rest = self._rest[self._send(self._rest) :]
        return [self._rest, *frames[1:]] if self._rest else frames[1:]

    def _send(self, data: bytes) -> int:
        """How many bytes the kernel took.

        Raises:
            ConnectionClosed: it will take no more.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # What has come can still be read, so the reader finds the end by itself, in its turn.
            self._broken = True
            self._rest = self._urgent = b""
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._wake()
            raise ConnectionClosed(1006) from None

    def _flush(self) -> bool:
        """Send frames of our own, and before them a rest that nobody else will. True when nothing of it is left."""
        if self._rest and self._end is None and self._closing is None:
            return False
        try:
            while data := self._rest or self._urgent:
                taken = self._send(data)
                if self._rest:
                    self._rest = data[taken:]
                else:
                    self._urgent = data[taken:]
                if not taken:
                    return False
        except ConnectionClosed:
            pass  # `_broken` says so
        return True

    async def _flush_all(self) -> None:
        # With a rest, whoever writes it sends our own frames behind it.
        while not self._rest and not self._flush():
            await self._wait_writable()

    async def _wait_writable(self) -> None:
        """Wait for room in the kernel, or until somebody else who waits for it has it, or until the link is closed."""
        if self._writing:
            await self._wait_for_change()
            return
        self._writing = True
        try:
            await wait_writable(self._socket)
        except trio.ClosedResourceError:
            pass
        finally:
            self._writing = False
            self._wake()

    async def write(self, frames: Sequence[bytes]) -> None:
        """See `abc.Transport.write`."""
        await checkpoint_if_cancelled()
        left = self.write_nowait(frames)
        if not left and not self._urgent:
            await cancel_shielded_checkpoint()
            return
        while left or self._urgent:
            await self._wait_writable()
            left = self.write_nowait(left)

    async def ping(self) -> None:
        """See `abc.Transport.ping`."""
        await checkpoint_if_cancelled()
        if self._end is not None or self._closing is not None or self._broken:
            raise self._closed()
        payload, pong = self._new_ping()
        try:
            await self._flush_all()
            await pong.wait()
        finally:
            answered = self._forget_ping(payload)
        if not answered:
            raise self._closed()

    # Closing.

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """See `abc.Transport.aclose`; bound it with a cancel scope, for the peer may take its time.

        After an error of the peer it waits until the peer hangs up: a link that is dropped with unread bytes on it
        takes our close frame with it.

        Raises:
            LocalProtocolError: the code may not be sent, or the reason is too long; nothing has happened.
        """
        self._start_close(code, reason)
        self._stop_pushing()
        try:
            await checkpoint_if_cancelled()
            while self._is_open and not self._flush():
                await self._wait_writable()
            while self._is_open and self._receiving:
                await self._wait_for_change()
            if self._is_open:
                await self._hear_close()
            await cancel_shielded_checkpoint()
        except BaseException:
            self.abort()
            raise
        if self._end is None:
            self._finish(code, reason)
        self._close_socket()

    async def _hear_close(self) -> None:
        """Read until the peer's close frame has come; then, where the peer has to hang up first, until it has."""
        self._receiving = True
        try:
            while self._is_open:
                closed = self._parser.closed
                if closed is not None:
                    if closed.by_peer and not self._mask:
                        return  # RFC 6455 section 7.1.1: now it is the server who hangs up
                    with contextlib.suppress(OSError):
                        self._socket.shutdown(socket.SHUT_WR)
                data = self._read_now()
                if data is None:
                    await self._wait_readable_only()
                elif data:
                    self._parser.feed(data)
                    self._parser.control = None
                    await trio.lowlevel.checkpoint()
                else:
                    return
        finally:
            self._receiving = False
            self._wake()

    @property
    def _is_open(self) -> bool:
        return self._socket.fileno() >= 0

    def _end_if_closed(self) -> None:
        """Send the close frame that is due; close the socket if that was all, or leave it to `aclose`."""
        self._conclude()
        if self._end is not None:
            self._flush()
            closed = self._parser.closed
            if closed is None or (closed.by_peer and not self._urgent and not self._mask):
                self._close_socket()

    def _stop_pushing(self) -> None:
        """From now on `aclose` reads; see `PolledTransport`."""

    def abort(self) -> None:
        """See `abc.Transport.abort`. The kernel forgets what the peer has not read."""
        if self._is_open:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._finish(1006, "")
        self._close_socket()

    def _close_socket(self) -> None:
        if self._is_open:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
