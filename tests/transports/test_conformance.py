"""Every transport keeps every promise of `trio_wskit.abc.Transport`, and so does the fake that other tests use."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import final

import pytest
import trio
import trio.testing
import trio_websocket

from tests.transports.peers import ProtocolPeer, client_tls, server_tls, socket_pair, stream_of
from trio_wskit.abc import Transport
from trio_wskit.errors import ConnectionClosed
from trio_wskit.testing import LinkFactory, TransportPeer, check_transport
from trio_wskit.transports._frame_stream import FrameStream
from trio_wskit.transports.memory import MemoryPeer, memory_link
from trio_wskit.transports.native import native_transport
from trio_wskit.transports.trio_websocket import TrioWebSocketTransport

Link = tuple[Transport, TransportPeer]


@asynccontextmanager
async def _streams(*, tls: bool) -> AsyncGenerator[tuple[trio.abc.Stream, trio.abc.Stream]]:
    """Ours, and the peer's."""
    ours, theirs = map(stream_of, socket_pair())
    try:
        if not tls:
            yield ours, theirs
            return
        server = trio.SSLStream(ours, server_tls(), server_side=True, https_compatible=True)
        client = trio.SSLStream(theirs, client_tls(), server_hostname="localhost", https_compatible=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            await client.do_handshake()
        yield server, client
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(ours)
            await trio.aclose_forcefully(theirs)


@asynccontextmanager
async def _native(*, tls: bool = False) -> AsyncGenerator[Link]:
    async with _streams(tls=tls) as (ours, theirs):
        transport = native_transport(ours)
        yield transport, ProtocolPeer(theirs)
        transport.abort()


@asynccontextmanager
async def _polled() -> AsyncGenerator[Link]:
    from trio_wskit.transports.native import Poller

    async with _streams(tls=False) as (ours, theirs), trio.open_nursery() as nursery:
        poller = Poller()
        await nursery.start(poller.run)
        transport = native_transport(ours, poller=poller)
        yield transport, ProtocolPeer(theirs)
        transport.abort()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _trio_websocket(*, ours_beneath: bool, tls: bool = False) -> AsyncGenerator[Link]:
    async with _streams(tls=tls) as (ours, theirs), trio.open_nursery() as nursery:
        peer = ProtocolPeer(theirs, shaken=False)
        stream = FrameStream(ours) if ours_beneath else None
        nursery.start_soon(peer.shake_hands)
        request = await trio_websocket.wrap_server_stream(nursery, stream or ours)
        websocket = await request.accept()
        transport = TrioWebSocketTransport(websocket, nursery, stream)
        await trio.testing.wait_all_tasks_blocked()
        yield transport, peer
        transport.abort()
        nursery.cancel_scope.cancel()


@final
class _MemoryPeer:
    """A `MemoryPeer` that reads only while it is in `receive`, as a `TransportPeer` does."""

    def __init__(self, peer: MemoryPeer) -> None:
        self._peer = peer
        self._peer.stall()
        self.send = peer.send
        self.cut = peer.cut

    async def receive(self) -> bytes:
        self._peer.resume()
        try:
            return (await self._peer.receive()).encode()
        finally:
            self._peer.stall()

    async def aclose(self, code: int, reason: str) -> None:
        self._peer.close(code, reason)
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def _memory() -> AsyncGenerator[Link]:
    transport, peer = memory_link()
    yield transport, _MemoryPeer(peer)
    transport.abort()


async def test_memory(autojump_clock: trio.testing.MockClock) -> None:
    await check_transport(_memory)


@pytest.mark.parametrize(
    "open_link",
    [
        pytest.param(_native, id="native-socket"),
        pytest.param(
            _polled,
            id="native-polled",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's own"),
        ),
        pytest.param(partial(_native, tls=True), id="native-tls"),
        pytest.param(partial(_trio_websocket, ours_beneath=True), id="trio_websocket"),
        pytest.param(partial(_trio_websocket, ours_beneath=True, tls=True), id="trio_websocket-tls"),
        pytest.param(partial(_trio_websocket, ours_beneath=False), id="trio_websocket-embedded"),
        pytest.param(partial(_trio_websocket, ours_beneath=False, tls=True), id="trio_websocket-embedded-tls"),
    ],
)
async def test_real_links(open_link: LinkFactory) -> None:
    await check_transport(open_link)


@final
class _Broken:
    """A link in memory that breaks one promise."""

    def __init__(self, broken: str) -> None:
        self._broken = broken
        self._transport, self.peer = memory_link()

    async def receive(self) -> list[bytes]:
        messages = await self._transport.receive()
        match self._broken:
            case "loses messages":
                return messages[:1]
            case "forgets what is binary":
                return [bytes(message) for message in messages]
            case "waits for more":
                return [*messages, *await self._transport.receive()]
            case _:
                return messages

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        left = self._transport.write_nowait(frames)
        return left[1:] if self._broken == "loses what is left" else left

    async def write(self, frames: Sequence[bytes]) -> None:
        try:
            await self._transport.write(frames)
        except ConnectionClosed:
            if self._broken != "hides that nothing can be sent":
                raise

    async def ping(self) -> None:
        if self._broken != "waits for no pong":
            await self._transport.ping()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._transport.aclose(1000 if self._broken == "forgets the close code" else code, reason)

    def abort(self) -> None:
        if self._broken != "does not abort":
            self._transport.abort()


@pytest.mark.parametrize(
    "broken",
    [
        "loses messages",
        "forgets what is binary",
        "waits for more",
        "loses what is left",
        "hides that nothing can be sent",
        "waits for no pong",
        "forgets the close code",
        "does not abort",
    ],
)
async def test_the_suite_notices_a_transport_that(broken: str, autojump_clock: trio.testing.MockClock) -> None:
    @asynccontextmanager
    async def open_link() -> AsyncGenerator[Link]:
        transport = _Broken(broken)
        yield transport, _MemoryPeer(transport.peer)

    with pytest.RaisesGroup(AssertionError, allow_unwrapped=True, flatten_subgroups=True):
        await check_transport(open_link)
