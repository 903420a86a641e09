"""What the native transport does with streams that are not sockets: half of them cannot be half-closed, some break."""

from __future__ import annotations

import socket
from functools import partial

import pytest
import trio
import trio.testing

from tests.transports.native_links import RawPeer, narrow_stream_pair, stream_of
from tests.transports.peers import client_tls, server_tls
from trio_wskit._core.frames import binary_frame, ping_frame, text_frame
from trio_wskit.errors import ConnectionClosed
from trio_wskit.transports.native import StreamTransport


class OneWayToClose(trio.abc.Stream):
    """A stream that cannot say that it sends no more, as TLS cannot; nor be closed without waiting."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.fails_to_close = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()
        if self.fails_to_close:
            raise trio.BrokenResourceError


async def end_of(link: StreamTransport) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        await link.receive()
    return caught.value.code


async def test_after_an_error_the_peer_gets_a_second_to_read_why(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link, peer = StreamTransport(OneWayToClose(ours)), RawPeer(theirs)
    await peer.send_raw(b"\xff\xff")
    assert await end_of(link) == 1002
    start = trio.current_time()
    await link.aclose()
    assert trio.current_time() - start == 1
    (answer,) = await peer.frames()
    assert answer.payload[:2] == (1002).to_bytes(2, "big")


async def test_a_link_that_breaks_while_tls_says_goodbye_is_closed_all_the_same() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    stream = OneWayToClose(ours)
    stream.fails_to_close = True
    link, peer = StreamTransport(stream), RawPeer(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose)
        assert await peer.frame() is not None
        await theirs.send_eof()
    assert await peer.frame() is None


async def test_a_writer_that_meets_the_broken_link_first_is_told() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link = StreamTransport(ours)
    await theirs.aclose()
    with pytest.raises(ConnectionClosed) as caught:
        await link.write([text_frame(b"x")])
    assert caught.value.code == 1006
    with pytest.raises(ConnectionClosed):
        link.write_nowait([text_frame(b"x")])
    assert await end_of(link) == 1006
    await link.aclose()


async def test_a_pong_that_nobody_takes_any_more_does_not_end_a_receive_before_its_time() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link, peer = StreamTransport(ours), RawPeer(theirs)
    await peer.send(ping_frame(b"1"), text_frame(b"last words"))
    await theirs.aclose()
    assert await link.receive() == [b"last words"]
    assert await end_of(link) == 1006
    await link.aclose()


async def test_closing_a_link_that_is_broken_already_is_quiet() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link = StreamTransport(ours)
    await theirs.aclose()
    await link.aclose()
    with pytest.raises(ConnectionClosed):
        await link.ping()


async def test_a_peer_that_hangs_up_on_our_close_after_an_error_is_enough() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link, peer = StreamTransport(ours), RawPeer(theirs)
    await peer.send_raw(b"\xff\xff")
    assert await end_of(link) == 1002
    await theirs.aclose()
    await link.aclose()


@pytest.mark.parametrize("waits", ["receive", "ping"])
async def test_who_is_cancelled_behind_a_stuck_pong_leaves_a_link_that_can_be_used(waits: str) -> None:
    ours, theirs = narrow_stream_pair()
    link, peer = StreamTransport(ours), RawPeer(theirs)
    pings = 120
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(peer.send, *[ping_frame(bytes(125))] * pings))
        nursery.start_soon(link.receive)
        await trio.testing.wait_all_tasks_blocked()
        if waits == "ping":
            nursery.start_soon(link.ping)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write, [text_frame(b"all of it")])
            while (frame := await peer.frame()) is not None and frame.payload != b"all of it":
                assert frame.first in (0x8A, 0x89)
                assert len(frame.payload) in (125, 8)
        assert frame is not None
    link.abort()
    await trio.aclose_forcefully(theirs)
    await link.aclose()


async def test_a_write_that_is_torn_by_a_cancellation_is_never_followed_by_another_frame() -> None:
    ours, theirs = narrow_stream_pair()
    link = StreamTransport(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write, [binary_frame(bytes(1_000_000))])
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectionClosed) as caught:
        await link.write([text_frame(b"swallowed")])
    assert caught.value.code == 1006
    await trio.aclose_forcefully(theirs)
    await link.aclose()


async def test_a_stream_that_fails_under_a_pong_ends_its_own_link_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(OneWayToClose):
        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            raise ZeroDivisionError

    ours, theirs = trio.testing.memory_stream_pair()
    link, peer = StreamTransport(Fails(ours)), RawPeer(theirs)
    await peer.send(ping_frame(b"1"), text_frame(b"x"))
    assert await link.receive() == [b"x"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_of, link)
        await trio.testing.wait_all_tasks_blocked()
        assert "a control frame failed" in caplog.text
        await theirs.aclose()
    caplog.clear()
    await link.aclose()


async def test_over_tls_a_peer_that_broke_the_protocol_need_not_wait_for_our_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = socket.socketpair()
    server = trio.SSLStream(stream_of(ours), server_tls(), server_side=True, https_compatible=True)
    client = trio.SSLStream(stream_of(theirs), client_tls(), server_hostname="localhost", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    link, peer = StreamTransport(server), RawPeer(client)
    await peer.send_raw(b"\xff\xff" + bytes(1000))  # and bytes that nobody will read
    assert await end_of(link) == 1002
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose)
        frame = await peer.frame()
        assert frame is not None
        assert frame.payload[:2] == (1002).to_bytes(2, "big")
        assert await client.receive_some() == b""  # our end has come, and now it hangs up
        await client.aclose()
    assert trio.current_time() == start


async def test_abort_of_a_stream_that_cannot_be_closed_at_once_leaves_it_to_aclose() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link, peer = StreamTransport(OneWayToClose(ours)), RawPeer(theirs)
    link.abort()
    with pytest.raises(ConnectionClosed):
        await link.write([binary_frame(b"x")])
    await link.aclose()
    assert await peer.frames() == []
