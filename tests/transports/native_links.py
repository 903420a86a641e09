"""Both ends of a native link for a test: the transport on one side, and on the other a peer that speaks bare frames."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, NamedTuple, Protocol, final

import trio
import trio.testing

from trio_wskit._core.frames import masked
from trio_wskit.errors import ConnectionClosed, LocalProtocolError
from trio_wskit.transports.native import PolledTransport, Poller, SocketTransport, StreamTransport

KEY = b"\x37\xfa\x21\x3d"
Kind = Literal["socket", "polled", "stream"]
KINDS: tuple[Kind, ...] = ("socket", "polled", "stream")
READ_BY_A_TASK: tuple[Kind, ...] = ("socket", "stream")


class Link(Protocol):
    """What the three transports have in common, for tests that run on each of them."""

    async def receive(self) -> list[bytes]: ...
    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]: ...
    async def write(self, frames: Sequence[bytes]) -> None: ...
    async def ping(self) -> None: ...
    async def aclose(self, code: int = 1000, reason: str = "") -> None: ...
    def abort(self) -> None: ...


@final
class Pulled:
    """A `PolledTransport` behind `receive`, as the session's dispatcher is: holds back after a few batches."""

    def __init__(self, transport: PolledTransport, *, room: int = 1 << 30) -> None:
        self.transport = transport
        self.batches: list[list[bytes]] = []
        self.room = room
        self.end: ConnectionClosed | None = None
        self._arrived = trio.Event()
        transport.attach(self)

    @property
    def ended(self) -> list[int]:
        return [self.end.code] if self.end else []

    def feed(self, messages: list[bytes]) -> bool:
        self.batches.append(messages)
        self._arrived.set()
        return len(self.batches) < self.room

    def disconnected(self, code: int, reason: str) -> None:
        assert self.end is None, "told twice"
        self.end = ConnectionClosed(code, reason)
        self._arrived.set()

    async def receive(self) -> list[bytes]:
        while not self.batches and self.end is None:
            self._arrived = trio.Event()
            await self._arrived.wait()
        if self.batches:
            messages = self.batches.pop(0)
            self.transport.resume()
            return messages
        assert self.end is not None
        raise self.end

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        return self.transport.write_nowait(frames)

    async def write(self, frames: Sequence[bytes]) -> None:
        await self.transport.write(frames)

    async def ping(self) -> None:
        await self.transport.ping()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        try:
            await self.transport.aclose(code, reason)
        except BaseException:
            if not isinstance(sys.exception(), LocalProtocolError):
                self._closed_by_us(1006, "")
            raise
        self._closed_by_us(code, reason)

    def abort(self) -> None:
        self.transport.abort()
        self._closed_by_us(1006, "")

    def _closed_by_us(self, code: int, reason: str) -> None:
        # As the session does: a transport does not tell its receiver what it was told to do.
        if self.end is None:
            self.disconnected(code, reason)


class Frame(NamedTuple):
    """One frame off the wire: the first byte, whether it was masked, the payload without the mask."""

    first: int
    masked: bool
    payload: bytes


@final
class RawPeer:
    """The other end, which does what a test tells it and nothing by itself."""

    def __init__(self, stream: trio.abc.Stream, *, server: bool = False) -> None:
        self.stream = stream
        self.server = server
        self.received = bytearray()

    async def send(self, *frames: bytes) -> None:
        await self.send_raw(self.wire(*frames))

    def wire(self, *frames: bytes) -> bytes:
        return b"".join(frames if self.server else [masked(one, KEY) for one in frames])

    async def send_raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def frame(self) -> Frame | None:
        """The next frame; None at the end of the stream, also if the link was reset."""
        while (found := self._cut()) is None:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                assert not self.received, f"half a frame: {bytes(self.received[:20])!r}"
                return None
            self.received += data
        return found

    async def frames(self) -> list[Frame]:
        """All that come until the end of the stream."""
        found: list[Frame] = []
        while one := await self.frame():
            found.append(one)
        return found

    def _cut(self) -> Frame | None:
        data = self.received
        if len(data) < 2:
            return None
        length, start = data[1] & 0x7F, 2
        if length > 125:
            size = 2 if length == 126 else 8
            length, start = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
            if len(data) < start:
                return None
        is_masked = bool(data[1] & 0x80)
        start += 4 if is_masked else 0
        if len(data) < start + length:
            return None
        payload = bytes(data[start : start + length])
        if is_masked:
            key = bytes(data[start - 4 : start])
            payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
        found = Frame(data[0], is_masked, payload)
        del data[: start + length]
        return found


@asynccontextmanager
async def open_link(
    kind: Kind,
    *,
    client: bool = False,
    leftover: bytes = b"",
    max_message_bytes: int = 1 << 20,
    deflate_window_bits: int | None = None,
    small_buffers: bool = False,
) -> AsyncGenerator[tuple[Link, RawPeer]]:
    """A transport of this kind and its peer. At the end both are closed, and no task is left."""
    async with trio.open_nursery() as nursery:
        if kind == "stream":
            stream, other = trio.testing.memory_stream_pair() if not small_buffers else narrow_stream_pair()
            link: Link = StreamTransport(
                stream,
                client=client,
                leftover=leftover,
                max_message_bytes=max_message_bytes,
                deflate_window_bits=deflate_window_bits,
            )
        else:
            ours, theirs = socket.socketpair()
            if small_buffers:
                narrow(ours, theirs)
            other = stream_of(theirs)
            if kind == "polled" and not client:
                poller = Poller()
                await nursery.start(poller.run)
                polled = PolledTransport(
                    ours,
                    poller,
                    leftover=leftover,
                    max_message_bytes=max_message_bytes,
                    deflate_window_bits=deflate_window_bits,
                )
                link = Pulled(polled)
            else:
                link = SocketTransport(
                    ours,
                    client=client,
                    leftover=leftover,
                    max_message_bytes=max_message_bytes,
                    deflate_window_bits=deflate_window_bits,
                )
        peer = RawPeer(other, server=client)
        try:
            yield link, peer
        finally:
            link.abort()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(other)
            nursery.cancel_scope.cancel()


def narrow(*sockets: socket.socket) -> None:
    """Give sockets the smallest buffers that the kernel allows."""
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


def narrow_stream_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    """Streams with backpressure. (A stream in memory takes everything, or waits for a reader who comes back.)"""
    ours, theirs = socket.socketpair()
    narrow(ours, theirs)
    return stream_of(ours), stream_of(theirs)


def stream_of(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


open_small_link = partial(open_link, small_buffers=True)
