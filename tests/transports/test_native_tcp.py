"""The native transport on TCP, with what only a real network stack does; the choice of a transport; its memory."""

from __future__ import annotations

import gc
import socket
import struct
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from tests.transports.native_links import KEY, RawPeer, stream_of
from trio_wskit._core.frames import Shared, binary_frame, close_frame, masked, text_frame
from trio_wskit.errors import ConnectionClosed
from trio_wskit.transports.native import (
    PolledTransport,
    Poller,
    SocketTransport,
    StreamTransport,
    native_transport,
)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    theirs.setblocking(False)
    return ours, theirs


@asynccontextmanager
async def tcp_link(*, max_message_bytes: int = 1 << 20) -> AsyncGenerator[tuple[SocketTransport, RawPeer]]:
    ours, theirs = tcp_pair()
    link = SocketTransport(ours, max_message_bytes=max_message_bytes)
    stream = stream_of(theirs)
    try:
        yield link, RawPeer(stream)
    finally:
        link.abort()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


def reset(stream: trio.abc.Stream) -> None:
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def read_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some()
    return data


async def read_to_the_end(stream: trio.abc.Stream) -> None:
    while await stream.receive_some():
        pass


async def test_frames_that_many_links_share_are_those_of_each() -> None:
    shared = Shared([text_frame(b"a"), text_frame(b"b"), text_frame(b"c" * 3)])
    async with tcp_link() as (one, its_peer), tcp_link() as (other, other_peer):
        for link, peer in ((one, its_peer), (other, other_peer)):
            assert link.write_nowait(shared) == ()
            assert await read_exactly(peer.stream, len(shared.joined)) == shared.joined


async def test_what_is_left_of_shared_frames_begins_where_the_kernel_stopped() -> None:
    big = [text_frame(bytes([number]) * 500_000) for number in range(20)]
    shared = Shared(big)
    async with tcp_link() as (link, peer):
        left = link.write_nowait(shared)
        assert 0 < len(left) <= 20
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write, left)
            assert await read_exactly(peer.stream, len(shared.joined)) == shared.joined


async def test_a_reset_is_1006_for_reader_and_writer() -> None:
    async with tcp_link() as (link, peer):
        await peer.send(text_frame(b"before"))
        assert await link.receive() == [b"before"]
        reset(peer.stream)
        with pytest.raises(ConnectionClosed) as caught:
            await link.receive()
        assert caught.value.code == 1006
        with pytest.raises(ConnectionClosed):
            link.write_nowait([text_frame(b"x")])
        await link.aclose()


async def test_a_reset_that_a_writer_meets_first_is_found_by_the_reader_too() -> None:
    async with tcp_link() as (link, peer):
        reset(peer.stream)
        with pytest.raises(ConnectionClosed) as caught:
            link.write_nowait([text_frame(b"x")])
        assert caught.value.code == 1006
        for call in (link.ping, link.receive, link.receive):
            with pytest.raises(ConnectionClosed):
                await call()
        await link.aclose()


async def test_a_peer_that_only_shuts_its_sending_down_is_gone() -> None:
    async with tcp_link() as (link, peer):
        assert isinstance(peer.stream, trio.SocketStream)
        await peer.stream.send_eof()
        with pytest.raises(ConnectionClosed) as caught:
            await link.receive()
        assert caught.value.code == 1006
        assert await peer.frame() is None


async def test_a_peer_in_the_middle_of_a_huge_message_still_reads_why_it_was_closed() -> None:
    async with tcp_link(max_message_bytes=1000) as (link, peer), trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                await peer.send(binary_frame(bytes(20_000_000)))
            await peer.stream.aclose()

        nursery.start_soon(send)
        with pytest.raises(ConnectionClosed) as caught:
            await link.receive()
        assert caught.value.code == 1009
        nursery.start_soon(link.aclose)
        answer = await peer.frame()
        assert answer is not None
        assert answer.first == 0x88
        assert answer.payload[:2] == (1009).to_bytes(2, "big")


async def test_abort_makes_the_kernel_forget_what_a_stalled_peer_has_not_read() -> None:
    async with tcp_link() as (link, peer):
        while not link.write_nowait([binary_frame(bytes(100_000))]):
            pass
        link.abort()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_the_end(peer.stream)


async def test_frames_go_at_once() -> None:
    async with tcp_link() as (link, _):
        sock = link._socket  # pyright: ignore[reportPrivateUsage]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getblocking()


async def test_the_quickest_transport_that_a_link_allows_is_chosen() -> None:
    ours, theirs = socket.socketpair()
    stream = stream_of(ours)
    number = stream.socket.fileno()
    taken = native_transport(stream)
    assert type(taken) is SocketTransport
    assert taken._socket.fileno() == number  # pyright: ignore[reportPrivateUsage]
    taken.abort()
    theirs.close()

    for client, expected in ((False, PolledTransport), (True, SocketTransport)):
        ours, theirs = socket.socketpair()
        chosen = native_transport(ours, poller=Poller(), client=client)
        assert type(chosen) is expected
        chosen.abort()
        theirs.close()

    left, right = trio.testing.memory_stream_pair()
    chosen = native_transport(left, poller=Poller())
    assert type(chosen) is StreamTransport
    chosen.abort()
    await trio.aclose_forcefully(right)


class _Idle:
    def feed(self, messages: list[bytes]) -> bool:
        return True

    def disconnected(self, code: int, reason: str) -> None: ...


async def test_an_idle_link_behind_the_poller_is_below_one_kibibyte() -> None:
    count = 200
    async with trio.open_nursery() as nursery:
        poller = Poller()
        await nursery.start(poller.run)
        pairs = [socket.socketpair() for _ in range(count)]
        idle = _Idle()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        links = [PolledTransport(ours, poller) for ours, _ in pairs]
        for link, (_, theirs) in zip(links, pairs, strict=True):
            link.attach(idle)
            theirs.send(masked(text_frame(b"x" * 1000), KEY))
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (after - before) / count < 1024
        for link, (_, theirs) in zip(links, pairs, strict=True):
            link.abort()
            theirs.close()
        nursery.cancel_scope.cancel()


async def test_nothing_is_left_when_many_links_open_and_close_at_random() -> None:
    async with trio.open_nursery() as nursery:
        poller = Poller()
        await nursery.start(poller.run)

        async def life(number: int) -> None:
            ours, theirs = tcp_pair()
            link = PolledTransport(ours, poller)
            link.attach(_Idle())
            peer = RawPeer(stream_of(theirs))
            await peer.send(text_frame(b"x"))
            match number % 4:
                case 0:
                    reset(peer.stream)
                case 1:
                    await peer.stream.aclose()
                case 2:
                    await peer.send(close_frame())
                    await peer.frames()
                case _:
                    link.abort()
            with trio.move_on_after(1):
                await link.aclose()
            await trio.aclose_forcefully(peer.stream)

        async with trio.open_nursery() as lives:
            for number in range(300):
                lives.start_soon(life, number)
        assert poller._links == {}  # pyright: ignore[reportPrivateUsage]
        nursery.cancel_scope.cancel()
