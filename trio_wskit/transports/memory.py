"""A link in memory, for tests: no sockets, virtual time, and faults on request.

Example:
    >>> server_end, peer = memory_link()
    >>> async with trio.open_nursery() as nursery:
    ...     nursery.start_soon(app.serve_session, server_end, Request())
    ...     await peer.send('{"type": "HELLO"}')
    ...     print(await peer.receive())
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar, final

import trio

from trio_wskit._core.frames import payload_of
from trio_wskit.errors import ConnectionClosed

__all__ = ["MemoryPeer", "MemoryTransport", "memory_link"]

T = TypeVar("T")
_CAPACITY: Final = 65536


@final
class _Pipe(Generic[T]):
    """One direction: bounded in bytes, first in first out, each item there `delay` seconds after it was put."""

    def __init__(self, capacity: int, size: Callable[[T], int]) -> None:
        self.delay: float = 0.0
        self.broken: ConnectionClosed | None = None
        self._capacity = capacity
        self._size = size
        self._items: deque[tuple[float, T]] = deque()
        self._bytes = 0
        self._arrivals = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._drops = 0

    def drop(self, count: int) -> None:
        self._drops += count

    def check(self) -> None:
        if self.broken is not None:
            raise ConnectionClosed(self.broken.code, self.broken.reason)

    def put_nowait(self, item: T) -> bool:
        self.check()
        if self._drops:
            self._drops -= 1
            return True
        size = self._size(item)
        if self._items and self._bytes + size > self._capacity:
            return False
        self._items.append((trio.current_time() + self.delay, item))
        self._bytes += size
        self._arrivals.unpark_all()
        return True

    async def put(self, item: T) -> None:
        while not self.put_nowait(item):
            await self._room.park()

    async def arrived(self) -> None:
        """Wait until there is something to take, or nothing will come any more."""
        while not (self._items and self._items[0][0] <= trio.current_time()):
            if not self._items and self.broken is not None:
                return
            with trio.move_on_at(self._items[0][0] if self._items else math.inf):
                await self._arrivals.park()

    def take(self) -> list[T]:
        """All that has arrived; raises where nothing will come any more."""
        now = trio.current_time()
        batch: list[T] = []
        while self._items and self._items[0][0] <= now:
            batch.append(self._items.popleft()[1])
        if not batch and not self._items:
            self.check()
        self._bytes -= sum(map(self._size, batch))
        self._room.unpark_all()
        return batch

    async def get_batch(self) -> list[T]:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.arrived()
        batch = self.take()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return batch

    def break_off(self, code: int, reason: str, *, forget: bool) -> None:
        if self.broken is None:
            self.broken = ConnectionClosed(code, reason)
        if forget:
            self._items.clear()
            self._bytes = 0
        self._arrivals.unpark_all()
        self._room.unpark_all()


@final
class MemoryTransport:
    """The server's end. What a `MemoryPeer` does to the link happens here too."""

    def __init__(self, inbound: _Pipe[bytes], outbound: _Pipe[bytes]) -> None:
        self._inbound = inbound
        self._outbound = outbound
        self.reading: trio.Event = trio.Event()  # set while the peer reads: only then it answers pings and closes
        self.reading.set()
        self._torn = False
        self.writes: int = 0  # hand-overs, as a kernel would count system calls

    async def receive(self) -> list[bytes]:
        """See `trio_wskit.abc.Transport.receive`."""
        return await self._inbound.get_batch()

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        """See `trio_wskit.abc.Transport.write_nowait`. Takes whole frames only."""
        self._refuse_after_tear()
        self.writes += 1
        for taken, frame in enumerate(frames):
            if not self._outbound.put_nowait(frame):
                return list(frames[taken:])
        return ()

    async def write(self, frames: Sequence[bytes]) -> None:
        """See `trio_wskit.abc.Transport.write`."""
        self._refuse_after_tear()
        self.writes += 1
        try:
            await trio.lowlevel.checkpoint()
            for frame in frames:
                await self._outbound.put(frame)
        except trio.Cancelled:
            self._torn = True
            raise

    def _refuse_after_tear(self) -> None:
        if self._torn and self._outbound.broken is None:
            raise AssertionError("a write after a cancelled write: on a real socket this tears a frame")

    async def ping(self) -> None:
        """Answered at once while the peer reads, after the delays of both ways."""
        self._outbound.check()
        await trio.sleep(self._outbound.delay)
        await self.reading.wait()
        await trio.sleep(self._inbound.delay)
        self._inbound.check()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """The peer sees the code after everything written before. Waits until it reads."""
        if self._torn:
            self.abort()
        self._outbound.break_off(code, reason, forget=False)
        if self._inbound.broken is not None:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.reading.wait()
        finally:
            self._inbound.break_off(code, reason, forget=True)

    def abort(self) -> None:
        """The peer sees 1006."""
        self._outbound.break_off(1006, "", forget=self._torn)
        self._inbound.break_off(1006, "", forget=True)
        self.reading.set()


@final
class MemoryPeer:
    """The client's end, as a test holds it."""

    def __init__(self, transport: MemoryTransport, inbound: _Pipe[bytes], outbound: _Pipe[bytes]) -> None:
        self._transport = transport
        self._inbound = inbound
        self._outbound = outbound
        self._received: deque[bytes] = deque()

    async def send(self, message: str | bytes) -> None:
        """Send a text message; waits while the server does not read. Raises ConnectionClosed."""
        await trio.lowlevel.checkpoint()
        await self._inbound.put(message.encode() if isinstance(message, str) else message)

    def send_nowait(self, message: str | bytes) -> None:
        """Send without waiting. Raises trio.WouldBlock, ConnectionClosed."""
        if not self._inbound.put_nowait(message.encode() if isinstance(message, str) else message):
            raise trio.WouldBlock

    async def receive(self) -> str:
        """Wait for the next message. Raises ConnectionClosed with the server's code after the last one."""
        while True:
            await self._transport.reading.wait()
            if self._received:
                return self._received.popleft().decode()
            await self._outbound.arrived()
            if self._transport.reading.is_set():  # else it has stalled meanwhile, and takes nothing
                self._received.extend(map(payload_of, self._outbound.take()))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close cleanly: the server first gets what was sent before."""
        self._inbound.break_off(code, reason, forget=False)
        self._outbound.break_off(code, reason, forget=False)
        self._transport.reading.set()

    def cut(self) -> None:
        """Break the link: both ends see 1006 at once, and what was on its way is lost."""
        self._inbound.break_off(1006, "", forget=True)
        self._outbound.break_off(1006, "", forget=True)
        self._received.clear()
        self._transport.reading.set()

    def stall(self) -> None:
        """Stop reading, and answer neither ping nor close, until `resume`; a `receive` that waits goes on waiting."""
        if self._transport.reading.is_set():  # who waits for it already waits on
            self._transport.reading = trio.Event()

    def resume(self) -> None:
        """Read again."""
        self._transport.reading.set()

    def delay(self, seconds: float) -> None:
        """From now on every message takes so long in each direction, and a ping and its pong; a close comes behind."""
        self._inbound.delay = self._outbound.delay = seconds

    def drop(self, count: int) -> None:
        """Lose the next `count` messages that the server sends."""
        self._outbound.drop(count)


def memory_link(*, capacity: int = _CAPACITY) -> tuple[MemoryTransport, MemoryPeer]:
    """Make a link.

    Args:
        capacity: bytes that each direction holds, as a kernel's buffers would; one larger message fits alone.
    """
    inbound: _Pipe[bytes] = _Pipe(capacity, len)
    outbound: _Pipe[bytes] = _Pipe(capacity, len)
    transport = MemoryTransport(inbound, outbound)
    return transport, MemoryPeer(transport, inbound, outbound)
