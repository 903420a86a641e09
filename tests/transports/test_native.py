"""The native transport, on each of the three ways of carrying it; the peer speaks bare frames."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from tests.transports.native_links import KINDS, READ_BY_A_TASK, Frame, Kind, Link, RawPeer, open_link, open_small_link
from trio_wskit._core.deflate import deflated
from trio_wskit._core.frames import (
    Binary,
    binary_frame,
    close_frame,
    frame,
    ping_frame,
    pong_frame,
    text_frame,
)
from trio_wskit.errors import ConnectionClosed, LocalProtocolError

every_kind = pytest.mark.parametrize("kind", KINDS)


async def closed_code(link: Link) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        await link.receive()
    return caught.value.code, caught.value.reason


@every_kind
async def test_all_messages_of_a_read_come_in_one_list(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        await peer.send(text_frame(b"one"), binary_frame(b"two"), text_frame("drei €".encode()))
        messages = await link.receive()
        assert messages == [b"one", b"two", "drei €".encode()]
        assert [type(message) for message in messages] == [bytes, Binary, bytes]


@every_kind
async def test_what_came_with_the_handshake_comes_first(kind: Kind) -> None:
    wire = RawPeer(trio.testing.memory_stream_pair()[0]).wire(text_frame(b"early"), text_frame(b"cut here"))
    async with open_link(kind, leftover=wire[:-3]) as (link, peer):
        assert await link.receive() == [b"early"]
        await peer.send_raw(wire[-3:])
        assert await link.receive() == [b"cut here"]


@every_kind
async def test_frames_reach_the_peer_in_order_and_joined(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        frames = [text_frame(b"a" * size) for size in (1, 200, 70_000)]
        left = link.write_nowait(frames)
        async with trio.open_nursery() as nursery:
            if left:
                nursery.start_soon(link.write, left)
            for size in (1, 200, 70_000):
                assert await peer.frame() == (0x81, False, b"a" * size)
        assert link.write_nowait(()) == ()


@every_kind
async def test_a_ping_is_answered_by_itself(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        nursery.start_soon(closed_code, link)
        await peer.send(ping_frame(b"1"), ping_frame(b"2"))
        assert await peer.frame() == (0x8A, False, b"1")
        assert await peer.frame() == (0x8A, False, b"2")
        await peer.send(close_frame())


@every_kind
@pytest.mark.parametrize(("sent", "code", "reason"), [(close_frame(4001, "bye"), 4001, "bye"), (b"\x88\x00", 1005, "")])
async def test_the_peers_close_is_answered_and_ends_it(kind: Kind, sent: bytes, code: int, reason: str) -> None:
    async with open_link(kind) as (link, peer):
        await peer.send(text_frame(b"last"), sent, text_frame(b"not looked at"))
        assert await link.receive() == [b"last"]
        assert await closed_code(link) == (code, reason)
        assert await closed_code(link) == (code, reason)
        answer = await peer.frame()
        assert answer is not None
        assert answer.first == 0x88
        assert answer.payload == (code.to_bytes(2, "big") + reason.encode() if code != 1005 else b"")
        for frames in ([text_frame(b"late")], []):
            with pytest.raises(ConnectionClosed):
                link.write_nowait(frames)
            with pytest.raises(ConnectionClosed):
                await link.write(frames)
        with pytest.raises(ConnectionClosed):
            await link.ping()
        await link.aclose()
        assert await peer.frame() is None


@every_kind
async def test_a_broken_protocol_is_answered_with_its_close_code(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        await peer.send(text_frame(b"fine"), text_frame(b"\xff"))
        assert await link.receive() == [b"fine"]
        assert await closed_code(link) == (1007, "text that is not UTF-8")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.aclose)
            answer = await peer.frame()
            assert answer is not None
            assert answer.payload[:2] == (1007).to_bytes(2, "big")
            await peer.stream.aclose()


@every_kind
async def test_a_frame_above_the_limit_is_refused_before_it_has_come(kind: Kind) -> None:
    async with open_link(kind, max_message_bytes=1000) as (link, peer):
        await peer.send_raw(peer.wire(binary_frame(bytes(100_000)))[:10])
        assert (await closed_code(link))[0] == 1009
        answer = await peer.frame()
        assert answer is not None
        assert answer.payload[:2] == (1009).to_bytes(2, "big")


@every_kind
async def test_a_peer_that_hangs_up_without_a_word_is_1006(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        await peer.send(text_frame(b"last"))
        await peer.send_raw(peer.wire(text_frame(b"half of it"))[:7])
        await peer.stream.aclose()
        assert await link.receive() == [b"last"]
        assert await closed_code(link) == (1006, "")
        with pytest.raises(ConnectionClosed):
            link.write_nowait([text_frame(b"x")])
        await link.aclose()


@pytest.mark.parametrize("kind", READ_BY_A_TASK)
async def test_receive_can_be_cancelled_and_loses_nothing(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        half = peer.wire(text_frame(b"in two parts"))
        await peer.send_raw(half[:5])
        with trio.move_on_after(0.01) as scope:
            await link.receive()
        assert scope.cancelled_caught
        await peer.send_raw(half[5:])
        with trio.CancelScope() as at_once:
            at_once.cancel()
            await link.receive()
        assert await link.receive() == [b"in two parts"]


@pytest.mark.parametrize("kind", READ_BY_A_TASK)
async def test_only_one_task_may_receive(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        nursery.start_soon(closed_code, link)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await link.receive()
        await peer.send(close_frame())


@every_kind
async def test_ping_waits_for_its_own_pong(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        nursery.start_soon(closed_code, link)
        done: list[int] = []

        async def ping(number: int) -> None:
            await link.ping()
            done.append(number)

        pings: list[bytes] = []
        for number in (1, 2):
            nursery.start_soon(ping, number)
            one = await peer.frame()
            assert one is not None
            assert one.first == 0x89
            pings.append(one.payload)
        await peer.send(pong_frame(b"nobody asked"), pong_frame(pings[1]))
        await trio.testing.wait_all_tasks_blocked()
        assert done == [2]
        await peer.send(pong_frame(pings[0]), pong_frame(pings[0]))
        await trio.testing.wait_all_tasks_blocked()
        assert done == [2, 1]
        await peer.send(close_frame())


@every_kind
async def test_a_cancelled_ping_is_forgotten(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        nursery.start_soon(closed_code, link)
        with trio.move_on_after(0.01) as scope:
            await link.ping()
        assert scope.cancelled_caught
        late = await peer.frame()
        assert late is not None
        await peer.send(pong_frame(late.payload))
        nursery.start_soon(link.ping)
        again = await peer.frame()
        assert again is not None
        await peer.send(pong_frame(again.payload), close_frame())


@every_kind
async def test_a_ping_ends_when_the_link_does(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:

        async def ping() -> None:
            with pytest.raises(ConnectionClosed):
                await link.ping()

        nursery.start_soon(ping)
        nursery.start_soon(closed_code, link)
        await peer.frame()
        await peer.send(close_frame())


@every_kind
async def test_aclose_says_goodbye_and_waits_for_the_peers(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose, 1001, "going away")
        assert await peer.frame() == (0x88, False, b"\x03\xe9going away")
        await peer.send(text_frame(b"crossed"), ping_frame(b"not answered"), close_frame(1001))
        assert await peer.frame() is None
        with pytest.raises(ConnectionClosed) as caught:
            link.write_nowait([text_frame(b"x")])
        assert (caught.value.code, caught.value.reason) == (1001, "going away")


@every_kind
async def test_aclose_while_somebody_receives_ends_that_too_and_throws_away_what_comes(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        codes: list[tuple[int, str]] = []

        async def receive() -> None:
            codes.append(await closed_code(link))

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(link.aclose, 1001)
        assert await peer.frame() == (0x88, False, b"\x03\xe9")
        await peer.send(text_frame(b"crossed"))
        await peer.send(close_frame(1001))
        assert await peer.frame() is None
        await trio.testing.wait_all_tasks_blocked()
        assert [code for code, _ in codes] == [1001]


@pytest.mark.parametrize("kind", READ_BY_A_TASK)
async def test_a_receive_that_begins_while_the_link_closes_is_told_so(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose, 1001)
        await trio.testing.wait_all_tasks_blocked()
        assert (await closed_code(link))[0] == 1001
        await peer.send(close_frame(1001))


@every_kind
async def test_aclose_takes_over_reading_from_a_cancelled_receive(kind: Kind) -> None:
    async with open_link(kind) as (link, peer), trio.open_nursery() as nursery:
        receiver = trio.CancelScope()

        async def receive() -> None:
            with receiver:
                await link.receive()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(link.aclose)
        await trio.testing.wait_all_tasks_blocked()
        receiver.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(close_frame())
        assert await peer.frames() == [(0x88, False, b"\x03\xe8")]


@every_kind
async def test_two_may_close_at_once_and_again(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.aclose)
            nursery.start_soon(link.aclose, 1001)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(close_frame())
            assert len(await peer.frames()) == 1
        await link.aclose()
        link.abort()


@every_kind
async def test_a_close_that_the_protocol_forbids_changes_nothing(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        with pytest.raises(LocalProtocolError):
            await link.aclose(1006)
        await peer.send(text_frame(b"still open"))
        assert await link.receive() == [b"still open"]


@every_kind
async def test_aclose_of_a_peer_that_does_not_answer_is_bounded_by_its_caller(
    kind: Kind, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_link(kind) as (link, peer):
        start = trio.current_time()
        with trio.move_on_after(5) as scope:
            await link.aclose(1001)
        assert scope.cancelled_caught
        assert trio.current_time() - start == 5
        with pytest.raises(ConnectionClosed):
            await link.receive()
        if kind == "stream":
            assert await peer.frames() == [(0x88, False, b"\x03\xe9")]


@every_kind
async def test_aclose_of_a_peer_that_does_not_read_is_bounded_by_its_caller(
    kind: Kind, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_small_link(kind) as (link, _peer), trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(ConnectionClosed):
                await link.write([binary_frame(bytes(1_000_000))])

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(5) as scope:
            await link.aclose(1001)
        assert scope.cancelled_caught


@every_kind
async def test_aclose_lets_a_frame_that_was_begun_be_finished(kind: Kind) -> None:
    async with open_small_link(kind) as (link, peer), trio.open_nursery() as nursery:
        ends: list[ConnectionClosed | None] = []

        async def write() -> None:
            try:
                await link.write([binary_frame(bytes(100_000)), text_frame(b"this one may be dropped")])
            except ConnectionClosed as closed:
                ends.append(closed)
            else:
                ends.append(None)

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(link.aclose, 1001)
        await trio.testing.wait_all_tasks_blocked()
        frames = [await peer.frame()]
        while frames[-1] and frames[-1].first != 0x88:
            frames.append(await peer.frame())
        assert frames[0] == (0x82, False, bytes(100_000))
        assert frames[-1] == (0x88, False, b"\x03\xe9")
        await peer.send(close_frame(1001))
        await trio.testing.wait_all_tasks_blocked()
        assert len(ends) == 1


@every_kind
async def test_abort_wakes_everybody_with_1006(kind: Kind) -> None:
    async with open_small_link(kind) as (link, _peer), trio.open_nursery() as nursery:
        ended: list[int] = []

        async def expect_1006(waiting: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(ConnectionClosed) as caught:
                await waiting()
            ended.append(caught.value.code)

        for waiting in (link.receive, partial(link.write, [binary_frame(bytes(1_000_000))]), link.ping):
            nursery.start_soon(expect_1006, waiting)
            await trio.testing.wait_all_tasks_blocked()
        link.abort()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [1006, 1006, 1006]
        with pytest.raises(ConnectionClosed):
            await link.write([text_frame(b"x")])


@every_kind
async def test_a_write_that_was_cancelled_within_a_frame_never_lets_another_follow(kind: Kind) -> None:
    async with open_small_link(kind) as (link, peer), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

            nursery.start_soon(cancel)
            await link.write([binary_frame(bytes(1_000_000))])
        assert scope.cancelled_caught
        with pytest.raises(ConnectionClosed):
            await link.write([text_frame(b"swallowed")])
        received = bytearray()
        try:
            while data := await peer.stream.receive_some(65536):
                received += data
        except trio.BrokenResourceError:
            pass
        assert b"swallowed" not in received


@every_kind
async def test_nothing_is_torn_or_lost_whatever_the_pace_of_the_peer(kind: Kind) -> None:
    chance = random.Random(6455)
    async with open_small_link(kind) as (link, peer), trio.open_nursery() as nursery:
        frames = [text_frame(b"%06d" % n + b"x" * chance.choice([0, 5, 300, 5000, 40_000])) for n in range(200)]

        async def write() -> None:
            waiting = list(frames)
            while waiting:
                some, waiting = waiting[:7], waiting[7:]
                left = link.write_nowait(some)
                if left:
                    await link.write(left)
            await trio.lowlevel.checkpoint()

        async def ping() -> None:
            for number in range(50):
                await peer.send(ping_frame(b"%d" % number))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(closed_code, link)
        nursery.start_soon(write)
        nursery.start_soon(ping)
        messages: list[bytes] = []
        pongs: list[bytes] = []
        while len(messages) < len(frames) or len(pongs) < 50:
            one = await peer.frame()
            assert one is not None
            (pongs if one.first == 0x8A else messages).append(one.payload)
        assert [message[:6] for message in messages] == [b"%06d" % n for n in range(200)]
        assert [len(message) for message in messages] == [len(one) - (2 if len(one) < 128 else 4) for one in frames]
        assert pongs == [b"%d" % number for number in range(50)]
        await peer.send(close_frame())


@every_kind
async def test_a_client_masks_each_frame(kind: Kind) -> None:
    async with open_link(kind, client=True) as (link, peer):
        await peer.send(text_frame(b"from the server"), ping_frame(b"p"))
        assert await link.receive() == [b"from the server"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_code, link)
            frames = [text_frame(b"same"), text_frame(b"same")]
            left = link.write_nowait(frames)
            if left:
                await link.write(left)
            got = [await peer.frame() for _ in range(3)]
            assert got.count(Frame(0x81, True, b"same")) == 2
            assert got.count(Frame(0x8A, True, b"p")) == 1
            await peer.send(close_frame(1001))
        assert await peer.frame() == (0x88, True, b"\x03\xe9")


@every_kind
async def test_a_client_lets_the_server_hang_up_first(kind: Kind) -> None:
    async with open_link(kind, client=True) as (link, peer), trio.open_nursery() as nursery:
        done = trio.Event()

        async def close() -> None:
            await link.aclose()
            done.set()

        nursery.start_soon(close)
        assert await peer.frame() == (0x88, True, b"\x03\xe8")
        await peer.send(close_frame())
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        await peer.stream.aclose()
        await done.wait()


@every_kind
async def test_a_client_can_be_slowed_down_as_well(kind: Kind) -> None:
    async with open_small_link(kind, client=True) as (link, peer), trio.open_nursery() as nursery:
        payloads = [b"%d" % n + b"y" * 30_000 for n in range(20)]

        async def write() -> None:
            left = link.write_nowait([text_frame(one) for one in payloads])
            await link.write(left)

        nursery.start_soon(write)
        assert [frame.payload for frame in [await peer.frame() for _ in payloads] if frame] == payloads


@every_kind
async def test_messages_are_compressed_where_that_was_agreed_on(kind: Kind) -> None:
    payload = b"so much of the same " * 50
    async with open_link(kind, deflate_window_bits=15) as (link, peer):
        await peer.send(deflated(text_frame(payload)), text_frame(b"plain"))
        assert await link.receive() == [payload, b"plain"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.write, [text_frame(payload), text_frame(b"short")])
            assert await peer.frame() == (0xC1, False, deflated(text_frame(payload))[2:])
            assert await peer.frame() == (0x81, False, b"short")


@every_kind
async def test_fragments_and_bytes_one_by_one_make_the_same_messages(kind: Kind) -> None:
    async with open_link(kind) as (link, peer):
        wire = peer.wire(frame(1, b"in ", first_bits=0), ping_frame(), frame(0, b"parts"), text_frame(b"whole"))

        async def drip() -> None:
            for byte in wire:
                await peer.send_raw(bytes((byte,)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            messages: list[bytes] = []
            while len(messages) < 2:
                messages += await link.receive()
        assert messages == [b"in parts", b"whole"]
