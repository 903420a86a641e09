"""A stream with one writer for two: a WebSocket library sends its own frames through it, and we send ours.

It also does what the library leaves out: it gives a peer that broke the protocol a close frame, and time to read it; it
bounds what is collected for one message, which may come in any number of fragments; and it keeps frames that come with
the handshake until that is over.

Rules
- `_busy` is true while somebody writes, or while a part of a frame is on the wire and its rest is owed. Nobody else
  writes then, so no frame of one is ever inside a frame of the other.
- A write that is cancelled, or that fails, leaves the stream torn; from then on every write raises.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import trio

from trio_wskit._core.frames import Shared
from trio_wskit.transports._hangup import hung_up, keep_alive, socket_below

__all__ = ["FrameStream"]

_READ_BYTES: Final = 65536
_CLOSE: Final = b"\x88"  # the first byte of a close frame
_PONG: Final = b"\x8a"
_MASK_BYTES: Final = 4
_LINGER_SECONDS: Final = 1.0
_ENDED: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


@final
class FrameStream(trio.abc.Stream):
    """Wraps a stream, and takes whole frames beside what the library sends.

    Args:
        stream: TCP's is taken apart and its socket used directly: a system call is tried before a wait.
        already_read: bytes that were read from the stream and shall be read again.
        for_later: the same, but nothing is read from here on until `go_on` is called.
        max_unfinished: bytes that the peer may send without finishing a message; then the stream ends.

    Attributes:
        last_words: tells the close frame that a broken protocol deserves, empty where the conversation ended otherwise.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        already_read: bytes = b"",
        *,
        for_later: bytes = b"",
        max_unfinished: float = math.inf,
    ) -> None:
        self._stream: trio.abc.Stream | None = stream
        self._socket: socket.socket | None = None
        below = socket_below(stream)
        if below is not None:
            with contextlib.suppress(OSError):  # it has gone already, which the first read tells
                keep_alive(below.socket)
        if isinstance(stream, trio.SocketStream):
            self._socket = socket.socket(fileno=stream.socket.detach())
            self._socket.setblocking(False)
            self._stream = None
        self._already_read = already_read
        self._later = trio.Event() if for_later else None
        self._for_later = for_later
        self._max_unfinished = max_unfinished
        self._unfinished = 0
        self._busy = False
        self._torn = False
        self._turn = trio.lowlevel.ParkingLot()
        self._close_sent = False
        self._lingering = False  # nobody but `aclose` reads any more
        self._last_words_said: trio.Event | None = None  # there once somebody says them
        self.last_words: Callable[[], bytes] | None = None

    # Reading, by the library.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream` says."""
        if self._later is not None and not self._already_read:
            await self._later.wait()
            self._later = None
            self._already_read, self._for_later = self._for_later, b""
        if self._already_read:
            await trio.lowlevel.checkpoint()
            data = self._already_read[:max_bytes]
            self._already_read = self._already_read[len(data) :]
        elif self.endless or self._lingering:
            await trio.lowlevel.checkpoint()
            return b""
        else:
            data = await self._receive(max_bytes)
        self._unfinished += len(data)
        return data

    def go_on(self) -> None:
        """Give out what was kept for later."""
        if self._later is not None:
            self._later.set()

    @property
    def endless(self) -> bool:
        """True when the peer has sent more than `max_unfinished` bytes without finishing a message."""
        return self._unfinished > self._max_unfinished

    def message_finished(self) -> None:
        """The library has given out a message."""
        self._unfinished = 0

    def control_frame_read(self, size: int) -> None:
        """So many bytes of what was read belong to no message."""
        self._unfinished = max(0, self._unfinished - size)

    async def _receive(self, max_bytes: int | None = None) -> bytes:
        if self._socket is None:
            assert self._stream is not None
            return bytes(await self._stream.receive_some(max_bytes))
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._lingering:
            try:
                data = self._socket.recv(max_bytes or _READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise _broken(self._socket, error) from error
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return data
        return b""

    async def hung_up(self) -> None:
        """Wait until the peer has hung up, without reading."""
        await hung_up(self._socket or self._stream)

    # Writing, by the library.

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream` says; waits until no frame of ours is half sent."""
        await self._begin()
        self._close_sent = self._close_sent or data[:1] == _CLOSE
        if data[:1] == _PONG:
            self.control_frame_read(len(data) + _MASK_BYTES)  # the ping that it answers
        await self._write(memoryview(bytes(data)))

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream` says."""
        await trio.lowlevel.checkpoint()

    async def _begin(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._busy and not self._torn:
            await self._turn.park()
        if self._torn:
            raise trio.BrokenResourceError("a write was cancelled in the middle of a frame")
        self._busy = True

    async def _write(self, data: memoryview) -> None:
        """Write to the end. `_busy` is ours."""
        done = False
        try:
            if self._socket is None:
                assert self._stream is not None
                await self._stream.send_all(data)
            else:
                while data := data[self._send(data) :]:
                    await trio.lowlevel.wait_writable(self._socket)
            done = True
        finally:
            self._torn = self._torn or not done
            self._release()

    def _release(self) -> None:
        self._busy = False
        if self._torn:
            self._turn.unpark_all()
        else:
            self._turn.unpark()

    def _send(self, data: bytes | memoryview) -> int:
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._torn = True
            raise _broken(self._socket, error) from error

    # Writing, by us.

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """Hand over what the kernel takes now; see `trio_wskit.abc.Transport.write_nowait`.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: nothing more can be sent.
        """
        if self._torn:
            raise trio.BrokenResourceError("a write was cancelled in the middle of a frame")
        if self._socket is None or self._busy:
            return frames
        data = frames.joined if isinstance(frames, Shared) else b"".join(frames)
        taken = self._send(data)
        if taken == len(data):
            return ()
        position = 0
        while taken >= len(frames[position]):
            taken -= len(frames[position])
            position += 1
        if not taken:
            return frames[position:]
        self._busy = True  # until `write` has sent the rest
        return [frames[position][taken:], *frames[position + 1 :]]

    async def write(self, frames: Sequence[bytes], *, owed: bool) -> None:
        """Write all; `owed` when the first is the rest that `write_nowait` gave back. Cancelled: torn."""
        if not owed:
            await self._begin()
        else:
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
            except BaseException:
                self._torn = True
                self._release()
                raise
        await self._write(memoryview(b"".join(frames)))

    # Closing.

    async def aclose(self) -> None:
        """Close. A peer that broke the protocol first gets the close frame that is due, unless a frame is half sent.

        A second one waits for the first, which may still talk. Cancelled: the link is dropped.
        """
        words = b""
        if self.last_words is not None and not self._torn:
            words, self.last_words = self.last_words(), None
        try:
            if self._last_words_said is not None:
                await self._last_words_said.wait()
            elif words:
                self._last_words_said = trio.Event()
                with trio.move_on_after(_LINGER_SECONDS), contextlib.suppress(*_ENDED):
                    if not self._close_sent:
                        await self.send_all(words)
                    await self._linger()
        finally:
            if self._last_words_said is not None:
                self._last_words_said.set()
            self.abort()
        if self._stream is not None:
            await self._stream.aclose()
        else:
            await trio.lowlevel.checkpoint()

    async def _linger(self) -> None:
        """Wait for the peer to hang up: a link dropped with unread bytes on it is reset, and our last frame lost."""
        self._lingering = True
        below: Any = self._socket
        if self._stream is not None:
            stream = socket_below(self._stream)
            below = None if stream is None else stream.socket
        if below is None:
            return
        trio.lowlevel.notify_closing(below)  # whoever reads for the library stops now
        with contextlib.suppress(OSError):
            below.shutdown(socket.SHUT_WR)
            with socket.socket(fileno=os.dup(below.fileno())) as drain:
                while True:
                    await trio.lowlevel.wait_readable(drain)
                    with contextlib.suppress(BlockingIOError):
                        if not drain.recv(_READ_BYTES):
                            return

    def abort(self) -> None:
        """Drop the link at once."""
        self._torn = True
        self._release()
        if self._socket is not None:
            if self._socket.fileno() >= 0:
                trio.lowlevel.notify_closing(self._socket)
                self._socket.close()
        elif self._stream is not None:
            below = socket_below(self._stream)
            if below is not None:
                below.socket.close()


def _broken(sock: socket.socket, error: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if sock.fileno() < 0:
        return trio.ClosedResourceError("closed by this side")
    return trio.BrokenResourceError(f"the link broke: {error}")
