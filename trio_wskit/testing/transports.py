"""Prove a transport: `await check_transport(open_link)` in a test of your own.

Every check is a promise of `trio_wskit.abc.Transport`; its failure says which. What a transport does to its peer is
seen from the other end alone, so bring one that shares no code with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, TypeAlias, final

import trio

from trio_wskit._core.frames import Binary, text_frame
from trio_wskit.abc import PushTransport, Transport
from trio_wskit.errors import ConnectionClosed

__all__ = ["LinkFactory", "TransportPeer", "check_transport"]


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

_MANY_BYTES: Final = 64 * 1024 * 1024  # more than any link holds
_CHUNK: Final = 256 * 1024
_STALLED: Final = 0.1  # seconds without progress
_AT_MOST: Final = 10.0  # seconds for what must happen by itself
_HELD_BATCHES: Final = 4


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
                with trio.move_on_after(6 * _AT_MOST) as patience:
                    await check(_Link(transport), peer)
                _expect(not patience.cancelled_caught, "every check ends")
        except Exception as broken:
            broken.add_note(f"while checking: {check.__name__[1:].replace('_', ' ')}")
            raise


def _expect(condition: object, promise: str, got: object = None) -> None:
    if not condition:
        raise AssertionError(promise if got is None else f"{promise}; got {got!r}")


@final
class _Link:
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
            _expect(batch, "receive waits for at least one message")
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
        _expect(messages, "feed is called with at least one message")
        _expect(not self._held_back, "nothing is fed until resume")
        _expect(not self._closed_by_us, "nothing is fed to who has closed")
        self._batches.append(messages)
        self._news.set()
        self._held_back = len(self._batches) >= _HELD_BATCHES
        return not self._held_back

    def disconnected(self, code: int, reason: str) -> None:
        _expect(not self._closed_by_us, "who has closed is not told of it")
        _expect(self._end is None, "the end is told once")
        self._end = ConnectionClosed(code, reason)
        self._news.set()


async def _receive(link: _Link, count: int) -> list[bytes]:
    messages: list[bytes] = []
    while len(messages) < count:
        messages += await link.receive()
    return messages


async def _closed(what: Callable[[], Awaitable[object]]) -> tuple[int, str]:
    """The code and reason that something ends with."""
    with trio.move_on_after(_AT_MOST):
        try:
            got = await what()
        except ConnectionClosed as closed:
            return closed.code, closed.reason
        raise AssertionError(f"ConnectionClosed is raised; got {got!r}")
    raise AssertionError("ConnectionClosed is raised soon")


async def _write_all(link: _Link, frames: Sequence[bytes]) -> None:
    if left := link.write_nowait(frames):
        await link.write(left)


async def _fill(link: _Link) -> int:
    """Write to a peer that does not read until nothing more goes; how many frames went."""
    frame = text_frame(b"f" * _CHUNK)
    for count in range(_MANY_BYTES // _CHUNK):
        with trio.move_on_after(_STALLED) as patience:
            await _write_all(link, [frame])
        if patience.cancelled_caught:
            return count
    raise AssertionError("write waits for a peer that does not read")


async def _read_to_the_end(peer: TransportPeer) -> tuple[list[bytes], int]:
    messages: list[bytes] = []
    with trio.move_on_after(_AT_MOST):
        while True:
            try:
                messages.append(await peer.receive())
            except ConnectionClosed as closed:
                return messages, closed.code
    raise AssertionError("the peer sees the end of the link")


async def _keep_reading(peer: TransportPeer) -> None:
    with suppress(ConnectionClosed):
        while True:
            await peer.receive()


_SIZES: Final = (0, 1, 125, 126, 127, 65535, 65536, 100_000)


async def _messages_arrive_whole_and_in_order(link: _Link, peer: TransportPeer) -> None:
    sent: list[bytes] = [b"x" * size for size in _SIZES]
    sent += [Binary(b"\x00\xff" * size) for size in (0, 1, 70_000)] + ["grüß 🎉".encode()]

    async def send() -> None:
        for message in sent:
            await peer.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = await _receive(link, len(sent))
    _expect(received == sent, "messages arrive whole and in order", [one[:10] for one in received])
    kinds = [type(message) for message in received]
    _expect(kinds == [type(message) for message in sent], "binary messages are Binary, and text is plain bytes", kinds)


async def _receive_does_not_wait_for_more(link: _Link, peer: TransportPeer) -> None:
    for message in (b"one", b"two"):
        await peer.send(message)
        with trio.move_on_after(_AT_MOST) as patience:
            got = await link.receive()
            _expect(got == [message], "receive gives what has come", got)
        _expect(not patience.cancelled_caught, "receive does not wait for more than one message")


async def _a_cancelled_receive_loses_nothing(link: _Link, peer: TransportPeer) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.receive()
    _expect(scope.cancelled_caught, "receive can be cancelled before it begins")
    received: list[bytes] = []
    sent = [b"%d" % number for number in range(300)]

    async def send() -> None:
        for message in sent:
            await peer.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with trio.move_on_after(_AT_MOST):
            while len(received) < len(sent):
                with trio.move_on_after(0.0005):
                    received += await link.receive()
    _expect(received == sent, "a receive that was cancelled has lost nothing", len(received))


async def _frames_reach_the_peer_in_order(link: _Link, peer: TransportPeer) -> None:
    bodies = [bytes([65 + number]) * size for number, size in enumerate(_SIZES)]
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write_all, link, [text_frame(body) for body in bodies])
        for _ in bodies:
            got.append(await peer.receive())  # noqa: PERF401 - a comprehension would be an async generator
    _expect(got == bodies, "frames reach the peer whole and in order", [one[:10] for one in got])
    _expect(not link.write_nowait(()), "of nothing, nothing is left")
    await link.write(())
    await link.write([text_frame(b"after")])
    _expect(await peer.receive() == b"after", "writing nothing changes nothing")


async def _what_is_left_goes_on_where_it_stopped(link: _Link, peer: TransportPeer) -> None:
    bodies: list[bytes] = []
    left: Sequence[bytes] = ()
    while not left:
        _expect(len(bodies) * _CHUNK < _MANY_BYTES, "write_nowait gives back what a peer that does not read leaves")
        more = [b"%d " % len(bodies) + b"w" * (_CHUNK - 7 * len(bodies)), b"%d, " % len(bodies)]
        bodies += more
        left = link.write_nowait([text_frame(body) for body in more])
        await trio.lowlevel.checkpoint()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write, [*left, text_frame(b"last")])
        for body in [*bodies, b"last"]:
            got = await peer.receive()
            _expect(got == body, f"after {body[:10]!r} was left, nothing is lost, torn or out of order", got[:10])


async def _a_cancelled_write_never_lets_another_frame_follow(link: _Link, peer: TransportPeer) -> None:
    written = await _fill(link)
    link.abort()
    _expect(await _closed(link.receive) == (1006, ""), "after abort, receive raises 1006")
    await _closed(lambda: link.write([text_frame(b"late")]))
    await _nothing_more_can_be_sent(link)
    messages, code = await _read_to_the_end(peer)
    _expect(set(messages) <= {b"f" * _CHUNK}, "the peer never sees a frame that is torn, or one after it", messages)
    # A link that is dropped may take with it what was not read yet.
    _expect(len(messages) <= written, "the frame whose write was cancelled does not arrive", len(messages))
    _expect(code == 1006, "the peer sees no close frame", code)


async def _nothing_more_can_be_sent(link: _Link) -> None:
    for frames in ([text_frame(b"late")], []):
        try:
            link.write_nowait(frames)
        except ConnectionClosed:
            continue
        _expect(not frames, "write_nowait raises ConnectionClosed once nothing can be sent")
    await _closed(lambda: link.write([text_frame(b"late")]))
    await _closed(link.ping)


async def _the_peers_close_comes_after_its_messages(link: _Link, peer: TransportPeer) -> None:
    async with trio.open_nursery() as nursery:
        await peer.send(b"last")
        nursery.start_soon(peer.aclose, 4001, "bye")
        _expect(await _receive(link, 1) == [b"last"], "what was sent before a close arrives")
        for _ in range(2):
            got = await _closed(link.receive)
            _expect(got == (4001, "bye"), "receive raises the peer's code and reason, each time", got)
        await _nothing_more_can_be_sent(link)
        await link.aclose()


async def _a_broken_link_is_1006(link: _Link, peer: TransportPeer) -> None:
    await peer.send(b"last")
    _expect(await _receive(link, 1) == [b"last"], "what was sent before arrives")
    peer.cut()
    got = await _closed(link.receive)
    _expect(got == (1006, ""), "a link that breaks is 1006", got)
    await _nothing_more_can_be_sent(link)
    await link.aclose()


async def _aclose_tells_the_peer_after_all_that_was_written(link: _Link, peer: TransportPeer) -> None:
    async with trio.open_nursery() as nursery:
        await link.write([text_frame(b"before")])
        nursery.start_soon(link.aclose, 4002, "enough")
        _expect(await peer.receive() == b"before", "what was written before a close arrives")
        got = await _closed(peer.receive)
        _expect(got == (4002, "enough"), "the peer sees the code and the reason", got)
    await _closed(link.receive)
    await _nothing_more_can_be_sent(link)
    await link.aclose()  # a second one does nothing
    link.abort()


async def _aclose_ends_a_receive(link: _Link, peer: TransportPeer) -> None:
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def receive() -> None:
            code, _ = await _closed(link.receive)
            _expect(code == 4003, "a receive that is under way ends with the code of the close", code)
            ended.set()

        nursery.start_soon(receive)
        nursery.start_soon(_keep_reading, peer)
        await trio.sleep(0.01)
        await link.aclose(4003)
        await ended.wait()


async def _aclose_can_be_cancelled_and_then_drops_the_link(link: _Link, peer: TransportPeer) -> None:
    await _write_all(link, [text_frame(b"whole")])
    with trio.move_on_after(_STALLED) as patience:
        await link.aclose(4004)
    _expect(patience.cancelled_caught, "aclose waits for a peer that does not answer")
    await _nothing_more_can_be_sent(link)
    messages, code = await _read_to_the_end(peer)
    _expect(set(messages) <= {b"whole"}, "the peer sees nothing that is torn", messages)
    _expect(code in (4004, 1006), "the peer sees the close, or the end of the link", code)


async def _aclose_of_a_stalled_peer_can_be_cancelled(link: _Link, peer: TransportPeer) -> None:
    left: Sequence[bytes] = ()
    frame = text_frame(b"f" * _CHUNK)
    for _ in range(_MANY_BYTES // _CHUNK):
        if left := link.write_nowait([frame]):
            break
        await trio.lowlevel.checkpoint()
    _expect(left, "write_nowait gives back what a peer that does not read leaves")
    with trio.move_on_after(_STALLED) as patience:
        await link.write(left)
        await link.aclose(4005)
    _expect(patience.cancelled_caught, "neither writing nor closing ends while the peer does not read")
    link.abort()
    messages, _ = await _read_to_the_end(peer)
    _expect(set(messages) <= {b"f" * _CHUNK}, "the peer sees nothing that is torn", messages)


async def _abort_wakes_whoever_waits(link: _Link, peer: TransportPeer) -> None:
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            await link.write([text_frame(b"f" * _CHUNK)])
            written += 1
            _expect(written * _CHUNK < _MANY_BYTES, "write waits for a peer that does not read")

    async def ends(what: Callable[[], Awaitable[object]]) -> None:
        code, _ = await _closed(what)
        _expect(code == 1006, "abort ends what waits with 1006", code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends, link.receive)
        nursery.start_soon(ends, write)
        nursery.start_soon(ends, link.ping)
        before = -1
        while before != written:
            before = written
            await trio.sleep(_STALLED)
        link.abort()
        link.abort()
    with trio.move_on_after(_AT_MOST) as patience:
        await link.aclose()
    _expect(not patience.cancelled_caught, "a close after an abort is over at once")
    _, code = await _read_to_the_end(peer)
    _expect(code == 1006, "the peer sees no close frame", code)


async def _ping_waits_for_the_peer(link: _Link, peer: TransportPeer) -> None:
    with trio.move_on_after(_STALLED) as patience:
        await link.ping()
    _expect(patience.cancelled_caught, "ping waits for a peer that does not read")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_reading, peer)
        if not isinstance(link.transport, PushTransport):  # a pong is heard only while somebody reads
            nursery.start_soon(_closed_in_the_end, link)
        with trio.move_on_after(_AT_MOST) as patience:
            await link.ping()
            await link.ping()
        _expect(not patience.cancelled_caught, "a cancelled ping is forgotten, and the next one is answered")
        async with trio.open_nursery() as pings:
            for _ in range(3):
                pings.start_soon(link.ping)
        await link.aclose()


async def _closed_in_the_end(link: _Link) -> None:
    with suppress(ConnectionClosed):
        await link.receive()


async def _who_does_not_receive_holds_the_peer_back(link: _Link, peer: TransportPeer) -> None:
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent * _CHUNK < _MANY_BYTES:
            await peer.send(b"%d " % sent + b"s" * _CHUNK)
            sent += 1

    with trio.CancelScope() as sending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            before = -1
            while before != sent:
                before = sent
                await trio.sleep(_STALLED)
            _expect(sent * _CHUNK < _MANY_BYTES, "a transport that nobody asks for messages takes only so many")
            held = sent
            received = 0
            while received <= held:
                for message in await link.receive():
                    _expect(message[:12].startswith(b"%d " % received), "nothing is lost or out of order", message[:12])
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
