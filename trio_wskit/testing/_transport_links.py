"""What the checks of transports are made of: the two ends of a link, and what is done with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, TypeAlias, final

import trio

from trio_wskit._core.frames import text_frame
from trio_wskit.abc import PushTransport, Transport
from trio_wskit.errors import ConnectionClosed

__all__ = [
    "AT_MOST",
    "CHUNK",
    "MANY_BYTES",
    "STALLED",
    "Link",
    "LinkFactory",
    "TransportPeer",
    "closed_with",
    "expect",
    "fill",
    "keep_reading",
    "read_to_the_end",
    "receive",
    "write_all",
]


class TransportPeer(Protocol):
    """The other end of a link: a WebSocket client. It reads while somebody is in `receive`, and never else.

    While it reads, it answers pings, and a close frame with its own. It must notice a torn frame.
    """

    async def send(self, message: bytes) -> None:
        """Send a message: `Binary`, or the UTF-8 of a text. Waits while the transport does not read."""
        ...

    async def receive(self) -> bytes:
        """Wait for a text message and give its UTF-8. Cancelled: nothing is lost.

        Raises:
            ConnectionClosed: the other end closed, with this code; 1006 when the link ended without a close frame.
        """
        ...

    async def aclose(self, code: int, reason: str) -> None:
        """Send a close frame, wait for the answer, and for the end of the link."""
        ...

    def cut(self) -> None:
        """Break the link at once, without a word."""
        ...


LinkFactory: TypeAlias = "Callable[[], AbstractAsyncContextManager[tuple[Transport, TransportPeer]]]"
"""Opens a link on which nothing was sent yet; whatever is left of it when the block ends is dropped."""

MANY_BYTES: Final = 64 * 1024 * 1024  # more than any link holds
CHUNK: Final = 256 * 1024
STALLED: Final = 0.1  # seconds without progress
AT_MOST: Final = 10.0  # seconds for what must happen by itself
_HELD_BATCHES: Final = 4


def expect(condition: object, promise: str, got: object = None) -> None:
    if not condition:
        raise AssertionError(promise if got is None else f"{promise}; got {got!r}")


@final
class Link:
    """A transport as its owner uses it: what pushes is turned into `receive`, with room for a few batches."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.write_nowait = transport.write_nowait
        self.write = transport.write
        self.ping = transport.ping
        self._push = transport if isinstance(transport, PushTransport) else None
        self._batches: deque[list[bytes]] = deque()
        self._held_back = False
        self._end: ConnectionClosed | None = None
        self._news = trio.Event()
        self._closed_by_us = False
        if self._push is not None:
            self._push.attach(self)

    async def receive(self) -> list[bytes]:
        if self._push is None:
            batch = await self.transport.receive()
            expect(batch, "receive waits for at least one message")
            return batch
        while not self._batches and self._end is None:
            self._news = trio.Event()
            await self._news.wait()
        if not self._batches:
            assert self._end is not None
            raise self._end
        batch = self._batches.popleft()
        if self._held_back:
            self._held_back = False
            self._push.resume()
        return batch

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self._closed_by_us = True
        await self.transport.aclose(code, reason)
        self._over(code, reason)

    def abort(self) -> None:
        self._closed_by_us = True
        self.transport.abort()
        self._over(1006, "")

    def _over(self, code: int, reason: str) -> None:
        self._batches.clear()
        if self._end is None:
            self._end = ConnectionClosed(code, reason)
        self._news.set()

    # As `abc.Receiver`.

    def feed(self, messages: list[bytes]) -> bool:
        expect(messages, "feed is called with at least one message")
        expect(not self._held_back, "nothing is fed until resume")
        expect(not self._closed_by_us, "nothing is fed to who has closed")
        self._batches.append(messages)
        self._news.set()
        self._held_back = len(self._batches) >= _HELD_BATCHES
        return not self._held_back

    def disconnected(self, code: int, reason: str) -> None:
        expect(not self._closed_by_us, "who has closed is not told of it")
        expect(self._end is None, "the end is told once")
        self._end = ConnectionClosed(code, reason)
        self._news.set()


async def receive(link: Link, count: int) -> list[bytes]:
    messages: list[bytes] = []
    while len(messages) < count:
        messages += await link.receive()
    return messages


async def closed_with(what: Callable[[], Awaitable[object]]) -> tuple[int, str]:
    """The code and reason that something ends with."""
    with trio.move_on_after(AT_MOST):
        try:
            got = await what()
        except ConnectionClosed as closed:
            return closed.code, closed.reason
        raise AssertionError(f"ConnectionClosed is raised; got {got!r}")
    raise AssertionError("ConnectionClosed is raised soon")


async def write_all(link: Link, frames: Sequence[bytes]) -> None:
    if left := link.write_nowait(frames):
        await link.write(left)


async def fill(link: Link) -> int:
    """Write to a peer that does not read until nothing more goes; how many frames went."""
    frame = text_frame(b"f" * CHUNK)
    for count in range(MANY_BYTES // CHUNK):
        with trio.move_on_after(STALLED) as patience:
            await write_all(link, [frame])
        if patience.cancelled_caught:
            return count
    raise AssertionError("write waits for a peer that does not read")


async def read_to_the_end(peer: TransportPeer) -> tuple[list[bytes], int]:
    messages: list[bytes] = []
    with trio.move_on_after(AT_MOST):
        while True:
            try:
                messages.append(await peer.receive())
            except ConnectionClosed as closed:
                return messages, closed.code
    raise AssertionError("the peer sees the end of the link")


async def keep_reading(peer: TransportPeer) -> None:
    with suppress(ConnectionClosed):
        while True:
            await peer.receive()
