"""One stream, two writers: no frame of one is ever inside a frame of the other."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from tests.transports.peers import client_tls, server_tls, socket_pair, stream_of
from trio_wskit._core.frames import close_frame, pong_frame, text_frame
from trio_wskit.transports._frame_stream import FrameStream

KINDS = ("tcp", "tls")
every_kind = pytest.mark.parametrize("kind", KINDS)
ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)
MORE_THAN_FITS = text_frame(b"m" * 8_000_000)


@asynccontextmanager
async def open_pair(kind: str, already_read: bytes = b"") -> AsyncGenerator[tuple[FrameStream, trio.abc.Stream]]:
    """Ours, and the peer's."""
    ours: trio.abc.Stream
    theirs: trio.abc.Stream
    raw_ours, raw_theirs = map(stream_of, socket_pair())
    ours, theirs = raw_ours, raw_theirs
    if kind == "tls":
        server = trio.SSLStream(raw_ours, server_tls(), server_side=True, https_compatible=True)
        client = trio.SSLStream(raw_theirs, client_tls(), server_hostname="localhost", https_compatible=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            await client.do_handshake()
        ours, theirs = server, client
    stream = FrameStream(ours, already_read)
    try:
        yield stream, theirs
    finally:
        stream.abort()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(raw_theirs)


async def read_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = await stream.receive_some(min(65536, count - len(data)))
        assert more, f"the stream ended after {len(data)} of {count} bytes"
        data += more
    return bytes(data)


async def read_to_the_end(stream: trio.abc.Stream) -> bytes:
    data = bytearray()
    try:
        while more := await stream.receive_some(65536):
            data += more
    except trio.BrokenResourceError:
        pass
    return bytes(data)


async def write_rest(stream: FrameStream, frames: Sequence[bytes], left: Sequence[bytes]) -> None:
    owed = left[0] is not frames[len(frames) - len(left)]
    await stream.write(left, owed=owed)


@every_kind
async def test_what_was_read_before_is_read_again_first(kind: str) -> None:
    async with open_pair(kind, b"before") as (ours, theirs):
        await theirs.send_all(b"after")
        assert [await ours.receive_some(4), await ours.receive_some(4), await ours.receive_some()] == [
            b"befo",
            b"re",
            b"after",
        ]
        await theirs.aclose()
        assert await ours.receive_some() == b""


async def test_what_is_for_later_waits_until_it_is_asked_for() -> None:
    stream, theirs = trio.testing.memory_stream_pair()
    ours = FrameStream(stream, b"head", for_later=b"frames")
    await theirs.send_all(b"more")
    assert await ours.receive_some() == b"head"
    with trio.move_on_after(0.01) as patience:
        await ours.receive_some()
    assert patience.cancelled_caught
    ours.go_on()
    assert [await ours.receive_some(), await ours.receive_some()] == [b"frames", b"more"]
    ours.go_on()


@every_kind
async def test_frames_of_both_writers_are_never_mixed(kind: str) -> None:
    """The library sends many small frames while large ones of ours are half sent."""
    chance = random.Random(5)
    async with open_pair(kind) as (ours, theirs), trio.open_nursery() as nursery:
        ours_sent = [text_frame(bytes([65 + n % 26]) * chance.choice([10, 70_000, 700_000])) for n in range(30)]
        theirs_sent = [pong_frame(b"%d" % n) for n in range(60)]
        read = bytearray()

        async def send_ours() -> None:
            for start in range(0, len(ours_sent), 3):
                frames = ours_sent[start : start + 3]
                if left := ours.write_nowait(frames):
                    await write_rest(ours, frames, left)
                await trio.lowlevel.checkpoint()

        async def send_theirs() -> None:
            for one in theirs_sent:
                await ours.send_all(one)

        nursery.start_soon(send_ours)
        nursery.start_soon(send_theirs)
        read += await read_exactly(theirs, sum(map(len, [*ours_sent, *theirs_sent])))
        for expected in (ours_sent, theirs_sent):
            expected.reverse()
        while read:
            mine = theirs_sent if read[0] == 0x8A else ours_sent
            assert read.startswith(mine[-1]), "a torn frame, or one out of order"
            del read[: len(mine.pop())]
        assert not ours_sent
        assert not theirs_sent


async def test_the_library_waits_until_the_rest_of_our_frame_is_sent() -> None:
    async with open_pair("tcp") as (ours, theirs), trio.open_nursery() as nursery:
        left = ours.write_nowait([MORE_THAN_FITS])
        assert 0 < len(left[0]) < len(MORE_THAN_FITS)
        assert ours.write_nowait([b"another"]) == [b"another"]
        nursery.start_soon(ours.send_all, b"the library's")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(write_rest, ours, [MORE_THAN_FITS], left)
        assert await read_exactly(theirs, len(MORE_THAN_FITS)) == MORE_THAN_FITS
        assert await read_exactly(theirs, 13) == b"the library's"
        assert ours.write_nowait([b"a", b"b"]) == ()
        assert await read_exactly(theirs, 2) == b"ab"


@every_kind
async def test_a_write_that_was_cancelled_in_the_middle_lets_nothing_follow(kind: str) -> None:
    async with open_pair(kind) as (ours, theirs):
        with trio.move_on_after(0.05) as patience:
            await ours.write([MORE_THAN_FITS], owed=False)
        assert patience.cancelled_caught
        with pytest.raises(trio.BrokenResourceError):
            ours.write_nowait([b"late"])
        with pytest.raises(trio.BrokenResourceError):
            await ours.write([b"late"], owed=False)
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"late")
        ours.last_words = lambda: close_frame(1002)
        await ours.aclose()
        assert MORE_THAN_FITS.startswith(await read_to_the_end(theirs))


async def test_a_rest_whose_write_is_cancelled_before_it_begins_is_torn_as_well() -> None:
    async with open_pair("tcp") as (ours, _):
        left = ours.write_nowait([MORE_THAN_FITS])
        with trio.CancelScope() as scope:
            scope.cancel()
            await write_rest(ours, [MORE_THAN_FITS], left)
        with pytest.raises(trio.BrokenResourceError):
            await ours.send_all(b"late")


@every_kind
async def test_a_cancelled_wait_for_ones_turn_tears_nothing(kind: str) -> None:
    async with open_pair(kind) as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: ours.write([MORE_THAN_FITS], owed=False))
        await trio.sleep(0.01)
        with trio.move_on_after(0.01) as patience:
            await ours.send_all(b"never mind")
        assert patience.cancelled_caught
        nursery.start_soon(ours.send_all, b"next")
        assert await read_exactly(theirs, len(MORE_THAN_FITS)) == MORE_THAN_FITS
        assert await read_exactly(theirs, 4) == b"next"


@every_kind
async def test_abort_wakes_everybody_who_waits(kind: str) -> None:
    async with open_pair(kind) as (ours, _), trio.open_nursery() as nursery:

        async def fails(data: bytes) -> None:
            with pytest.raises(ENDED):
                await ours.send_all(data)

        async def reads() -> None:
            with pytest.raises(ENDED):
                await ours.receive_some()

        nursery.start_soon(fails, MORE_THAN_FITS)
        await trio.sleep(0.01)
        for _ in range(5):
            nursery.start_soon(fails, b"waits for its turn")
        nursery.start_soon(reads)
        await trio.testing.wait_all_tasks_blocked(0.01)
        ours.abort()
        ours.abort()
        with pytest.raises(ENDED):
            ours.write_nowait([b"late"])


@every_kind
async def test_a_link_that_breaks_is_told_to_both_writers(kind: str) -> None:
    async with open_pair(kind) as (ours, theirs):
        await trio.aclose_forcefully(theirs)

        async def write() -> None:
            while True:
                if ours.write_nowait([b"x" * 10_000]):
                    await ours.write([b"x" * 10_000], owed=False)

        with pytest.raises(ENDED):
            await write()
        with pytest.raises(ENDED):
            await ours.send_all(b"late")


@every_kind
async def test_a_peer_that_broke_the_protocol_reads_why_though_it_has_not_stopped_sending(kind: str) -> None:
    async with open_pair(kind) as (ours, theirs), trio.open_nursery() as nursery:
        ours.last_words = lambda: close_frame(1007, "not text")

        async def send() -> None:
            with suppress(*ENDED):
                for _ in range(10):
                    await theirs.send_all(b"x" * 20_000)

        nursery.start_soon(send)
        nursery.start_soon(ours.aclose)
        assert await read_exactly(theirs, len(close_frame(1007, "not text"))) == close_frame(1007, "not text")
        await trio.aclose_forcefully(theirs)


@every_kind
async def test_a_second_close_does_not_cut_the_first_one_short(kind: str) -> None:
    async with open_pair(kind) as (ours, theirs), trio.open_nursery() as nursery:
        ours.last_words = lambda: close_frame(1002)
        nursery.start_soon(ours.aclose)
        await trio.testing.wait_all_tasks_blocked(0.01)
        closed_again = trio.Event()

        async def close_again() -> None:
            await ours.aclose()
            closed_again.set()

        nursery.start_soon(close_again)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not closed_again.is_set()
        await theirs.send_all(b"still talking")  # which would be answered with a reset
        assert await read_exactly(theirs, len(close_frame(1002))) == close_frame(1002)
        await trio.aclose_forcefully(theirs)
        await closed_again.wait()


@every_kind
async def test_a_close_frame_that_the_library_has_sent_is_not_sent_again(kind: str) -> None:
    async with open_pair(kind) as (ours, theirs), trio.open_nursery() as nursery:
        ours.last_words = lambda: close_frame(1009)
        await ours.send_all(close_frame(1009))
        nursery.start_soon(ours.aclose)
        assert await read_exactly(theirs, 4) == close_frame(1009)
        await theirs.aclose()


async def test_without_a_broken_protocol_nobody_lingers() -> None:
    async with open_pair("tcp") as (ours, theirs):
        ours.last_words = lambda: b""
        await ours.send_all(b"done")
        with trio.fail_after(0.5):
            await ours.aclose()
        assert await read_to_the_end(theirs) == b"done"


@every_kind
async def test_lingering_ends_after_a_second_or_when_it_is_cancelled(kind: str) -> None:
    async with open_pair(kind) as (ours, theirs):
        ours.last_words = lambda: close_frame(1002)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.aclose)
            assert await read_exactly(theirs, 4) == close_frame(1002)
            nursery.cancel_scope.cancel()
        assert await read_to_the_end(theirs) == b""
        with pytest.raises(ENDED):
            await ours.send_all(b"late")
    async with open_pair(kind) as (ours, theirs):
        ours.last_words = lambda: close_frame(1002)
        started = trio.current_time()
        await ours.aclose()
        assert 0.9 < trio.current_time() - started < 5
        assert await read_to_the_end(theirs) == close_frame(1002)


async def test_what_never_becomes_a_message_has_a_bound_and_control_frames_do_not_count() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    stream = FrameStream(ours, max_unfinished=100)
    for _ in range(20):  # messages
        await theirs.send_all(b"x" * 90)
        assert len(await stream.receive_some()) == 90
        stream.message_finished()
    for _ in range(20):  # pings that are answered, and pongs
        await theirs.send_all(b"x" * 16)
        assert len(await stream.receive_some()) == 16
        await stream.send_all(pong_frame(b"0123456789"))
        await theirs.send_all(b"x" * 10)
        assert len(await stream.receive_some()) == 10
        stream.control_frame_read(10)
    assert not stream.endless
    await theirs.send_all(b"x" * 100)
    assert len(await stream.receive_some()) == 100
    assert not stream.endless
    await theirs.send_all(b"x")
    assert len(await stream.receive_some()) == 1
    with_one_more: bool = stream.endless
    assert with_one_more
    await theirs.send_all(b"more")
    assert await stream.receive_some() == b""
