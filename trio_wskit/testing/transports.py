"""Prove a transport: `await check_transport(open_link)` in a test of your own.

Every check is a promise of `trio_wskit.abc.Transport`; its failure says which. What a transport does to its peer is
seen from the other end alone, so bring one that shares no code with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from trio_wskit._core.frames import Binary, text_frame
from trio_wskit.abc import PushTransport
from trio_wskit.errors import ConnectionClosed
from trio_wskit.testing._transport_links import (
    AT_MOST,
    CHUNK,
    MANY_BYTES,
    STALLED,
    Link,
    closed_with,
    expect,
    fill,
    keep_reading,
    read_to_the_end,
    receive,
    write_all,
)
from trio_wskit.testing._transport_links import LinkFactory as LinkFactory
from trio_wskit.testing._transport_links import TransportPeer as TransportPeer

__all__ = ["LinkFactory", "TransportPeer", "check_transport"]


async def check_transport(open_link: LinkFactory) -> None:
    """Check everything that `trio_wskit.abc.Transport` promises, and `PushTransport` for one that is one.

    Runs in real time (about two seconds for kernel sockets) as well as under a clock that jumps.

    Args:
        open_link: opens the transport under test with a peer on its other end; called once for each check.

    Raises:
        AssertionError: a promise is broken; the message says which.

    Cancelled: the link in use is dropped.
    """
    for check in _CHECKS:
        try:
            async with open_link() as (transport, peer):
                with trio.move_on_after(6 * AT_MOST) as patience:
                    await check(Link(transport), peer)
                expect(not patience.cancelled_caught, "every check ends")
        except Exception as broken:
            broken.add_note(f"while checking: {check.__name__[1:].replace('_', ' ')}")
            raise


_SIZES: Final = (0, 1, 125, 126, 127, 65535, 65536, 100_000)


async def _messages_arrive_whole_and_in_order(link: Link, peer: TransportPeer) -> None:
    sent: list[bytes] = [b"x" * size for size in _SIZES]
    sent += [Binary(b"\x00\xff" * size) for size in (0, 1, 70_000)] + ["grüß 🎉".encode()]

    async def send() -> None:
        for message in sent:
            await peer.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = await receive(link, len(sent))
    expect(received == sent, "messages arrive whole and in order", [one[:10] for one in received])
    kinds = [type(message) for message in received]
    expect(kinds == [type(message) for message in sent], "binary messages are Binary, and text is plain bytes", kinds)


async def _receive_does_not_wait_for_more(link: Link, peer: TransportPeer) -> None:
    for message in (b"one", b"two"):
        await peer.send(message)
        with trio.move_on_after(AT_MOST) as patience:
            got = await link.receive()
            expect(got == [message], "receive gives what has come", got)
        expect(not patience.cancelled_caught, "receive does not wait for more than one message")


async def _a_cancelled_receive_loses_nothing(link: Link, peer: TransportPeer) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.receive()
    expect(scope.cancelled_caught, "receive can be cancelled before it begins")
    received: list[bytes] = []
    sent = [b"%d" % number for number in range(300)]

    async def send() -> None:
        for message in sent:
            await peer.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with trio.move_on_after(AT_MOST):
            while len(received) < len(sent):
                with trio.move_on_after(0.0005):
                    received += await link.receive()
    expect(received == sent, "a receive that was cancelled has lost nothing", len(received))


async def _frames_reach_the_peer_in_order(link: Link, peer: TransportPeer) -> None:
    bodies = [bytes([65 + number]) * size for number, size in enumerate(_SIZES)]
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_all, link, [text_frame(body) for body in bodies])
        for _ in bodies:
            got.append(await peer.receive())  # noqa: PERF401 - a comprehension would be an async generator
    expect(got == bodies, "frames reach the peer whole and in order", [one[:10] for one in got])
    expect(not link.write_nowait(()), "of nothing, nothing is left")
    await link.write(())
    await link.write([text_frame(b"after")])
    expect(await peer.receive() == b"after", "writing nothing changes nothing")


async def _what_is_left_goes_on_where_it_stopped(link: Link, peer: TransportPeer) -> None:
    bodies: list[bytes] = []
    left: Sequence[bytes] = ()
    while not left:
        expect(len(bodies) * CHUNK < MANY_BYTES, "write_nowait gives back what a peer that does not read leaves")
        more = [b"%d " % len(bodies) + b"w" * (CHUNK - 7 * len(bodies)), b"%d, " % len(bodies)]
        bodies += more
        left = link.write_nowait([text_frame(body) for body in more])
        await trio.lowlevel.checkpoint()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write, [*left, text_frame(b"last")])
        for body in [*bodies, b"last"]:
            got = await peer.receive()
            expect(got == body, f"after {body[:10]!r} was left, nothing is lost, torn or out of order", got[:10])


async def _a_cancelled_write_never_lets_another_frame_follow(link: Link, peer: TransportPeer) -> None:
    written = await fill(link)
    link.abort()
    expect(await closed_with(link.receive) == (1006, ""), "after abort, receive raises 1006")
    await closed_with(lambda: link.write([text_frame(b"late")]))
    await _nothing_more_can_be_sent(link)
    messages, code = await read_to_the_end(peer)
    expect(set(messages) <= {b"f" * CHUNK}, "the peer never sees a frame that is torn, or one after it", messages)
    # A link that is dropped may take with it what was not read yet.
    expect(len(messages) <= written, "the frame whose write was cancelled does not arrive", len(messages))
    expect(code == 1006, "the peer sees no close frame", code)


async def _nothing_more_can_be_sent(link: Link) -> None:
    for frames in ([text_frame(b"late")], []):
        try:
            link.write_nowait(frames)
        except ConnectionClosed:
            continue
        expect(not frames, "write_nowait raises ConnectionClosed once nothing can be sent")
    await closed_with(lambda: link.write([text_frame(b"late")]))
    await closed_with(link.ping)


async def _the_peers_close_comes_after_its_messages(link: Link, peer: TransportPeer) -> None:
    async with trio.open_nursery() as nursery:
        await peer.send(b"last")
        nursery.start_soon(peer.aclose, 4001, "bye")
        expect(await receive(link, 1) == [b"last"], "what was sent before a close arrives")
        for _ in range(2):
            got = await closed_with(link.receive)
            expect(got == (4001, "bye"), "receive raises the peer's code and reason, each time", got)
        await _nothing_more_can_be_sent(link)
        await link.aclose()


async def _a_broken_link_is_1006(link: Link, peer: TransportPeer) -> None:
    await peer.send(b"last")
    expect(await receive(link, 1) == [b"last"], "what was sent before arrives")
    peer.cut()
    got = await closed_with(link.receive)
    expect(got == (1006, ""), "a link that breaks is 1006", got)
    await _nothing_more_can_be_sent(link)
    await link.aclose()


async def _aclose_tells_the_peer_after_all_that_was_written(link: Link, peer: TransportPeer) -> None:
    async with trio.open_nursery() as nursery:
        await link.write([text_frame(b"before")])
        nursery.start_soon(link.aclose, 4002, "enough")
        expect(await peer.receive() == b"before", "what was written before a close arrives")
        got = await closed_with(peer.receive)
        expect(got == (4002, "enough"), "the peer sees the code and the reason", got)
    await closed_with(link.receive)
    await _nothing_more_can_be_sent(link)
    await link.aclose()  # a second one does nothing
    link.abort()


async def _aclose_ends_a_receive(link: Link, peer: TransportPeer) -> None:
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def receive() -> None:
            code, _ = await closed_with(link.receive)
            expect(code == 4003, "a receive that is under way ends with the code of the close", code)
            ended.set()

        nursery.start_soon(receive)
        nursery.start_soon(keep_reading, peer)
        await trio.sleep(0.01)
        await link.aclose(4003)
        await ended.wait()


async def _aclose_can_be_cancelled_and_then_drops_the_link(link: Link, peer: TransportPeer) -> None:
    await write_all(link, [text_frame(b"whole")])
    with trio.move_on_after(STALLED) as patience:
        await link.aclose(4004)
    expect(patience.cancelled_caught, "aclose waits for a peer that does not answer")
    await _nothing_more_can_be_sent(link)
    messages, code = await read_to_the_end(peer)
    expect(set(messages) <= {b"whole"}, "the peer sees nothing that is torn", messages)
    expect(code in (4004, 1006), "the peer sees the close, or the end of the link", code)


async def _aclose_of_a_stalled_peer_can_be_cancelled(link: Link, peer: TransportPeer) -> None:
    left: Sequence[bytes] = ()
    frame = text_frame(b"f" * CHUNK)
    for _ in range(MANY_BYTES // CHUNK):
        if left := link.write_nowait([frame]):
            break
        await trio.lowlevel.checkpoint()
    expect(left, "write_nowait gives back what a peer that does not read leaves")
    with trio.move_on_after(STALLED) as patience:
        await link.write(left)
        await link.aclose(4005)
    expect(patience.cancelled_caught, "neither writing nor closing ends while the peer does not read")
    link.abort()
    messages, _ = await read_to_the_end(peer)
    expect(set(messages) <= {b"f" * CHUNK}, "the peer sees nothing that is torn", messages)


async def _abort_wakes_whoever_waits(link: Link, peer: TransportPeer) -> None:
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            await link.write([text_frame(b"f" * CHUNK)])
            written += 1
            expect(written * CHUNK < MANY_BYTES, "write waits for a peer that does not read")

    async def ends(what: Callable[[], Awaitable[object]]) -> None:
        code, _ = await closed_with(what)
        expect(code == 1006, "abort ends what waits with 1006", code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends, link.receive)
        nursery.start_soon(ends, write)
        nursery.start_soon(ends, link.ping)
        before = -1
        while before != written:
            before = written
            await trio.sleep(STALLED)
        link.abort()
        link.abort()
    with trio.move_on_after(AT_MOST) as patience:
        await link.aclose()
    expect(not patience.cancelled_caught, "a close after an abort is over at once")
    _, code = await read_to_the_end(peer)
    expect(code == 1006, "the peer sees no close frame", code)


async def _ping_waits_for_the_peer(link: Link, peer: TransportPeer) -> None:
    with trio.move_on_after(STALLED) as patience:
        await link.ping()
    expect(patience.cancelled_caught, "ping waits for a peer that does not read")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_reading, peer)
        if not isinstance(link.transport, PushTransport):  # a pong is heard only while somebody reads
            nursery.start_soon(_closed_in_the_end, link)
        with trio.move_on_after(AT_MOST) as patience:
            await link.ping()
            await link.ping()
        expect(not patience.cancelled_caught, "a cancelled ping is forgotten, and the next one is answered")
        async with trio.open_nursery() as pings:
            for _ in range(3):
                pings.start_soon(link.ping)
        await link.aclose()


async def _closed_in_the_end(link: Link) -> None:
    with suppress(ConnectionClosed):
        await link.receive()


async def _who_does_not_receive_holds_the_peer_back(link: Link, peer: TransportPeer) -> None:
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent * CHUNK < MANY_BYTES:
            await peer.send(b"%d " % sent + b"s" * CHUNK)
            sent += 1

    with trio.CancelScope() as sending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            before = -1
            while before != sent:
                before = sent
                await trio.sleep(STALLED)
            expect(sent * CHUNK < MANY_BYTES, "a transport that nobody asks for messages takes only so many")
            held = sent
            received = 0
            while received <= held:
                for message in await link.receive():
                    expect(message[:12].startswith(b"%d " % received), "nothing is lost or out of order", message[:12])
                    received += 1
            sending.cancel()


_CHECKS: Final = (
    _messages_arrive_whole_and_in_order,
    _receive_does_not_wait_for_more,
    _a_cancelled_receive_loses_nothing,
    _frames_reach_the_peer_in_order,
    _what_is_left_goes_on_where_it_stopped,
    _a_cancelled_write_never_lets_another_frame_follow,
    _the_peers_close_comes_after_its_messages,
    _a_broken_link_is_1006,
    _aclose_tells_the_peer_after_all_that_was_written,
    _aclose_ends_a_receive,
    _aclose_can_be_cancelled_and_then_drops_the_link,
    _aclose_of_a_stalled_peer_can_be_cancelled,
    _abort_wakes_whoever_waits,
    _ping_waits_for_the_peer,
    _who_does_not_receive_holds_the_peer_back,
)
