"""The faults of a link in memory, and its time. What every transport promises is tested in test_conformance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import settle
from trio_wskit import ConnectionClosed
from trio_wskit._core.frames import Binary, text_frame
from trio_wskit.transports.memory import MemoryPeer, MemoryTransport, memory_link


def frames(*texts: str) -> list[bytes]:
    return [text_frame(text.encode()) for text in texts]


async def received(peer: MemoryPeer, count: int) -> list[str]:
    return [await peer.receive() for _ in range(count)]


async def end(read: Callable[[], Awaitable[object]]) -> tuple[int, str]:
    """Read to the end of the link; how it ended."""
    try:
        while True:
            await read()
    except ConnectionClosed as closed:
        return closed.code, closed.reason


async def waits(what: Callable[[], Awaitable[object]]) -> bool:
    """Whether it is not done after a second."""
    with trio.move_on_after(1) as scope:
        await what()
    return scope.cancelled_caught


# --- as it should be -------------------------------------------------------------------------------------------------


async def test_messages_arrive_both_ways_in_order_and_at_once(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    assert transport.write_nowait(frames("a", "b")) == ()
    await transport.write(frames("c"))
    assert await received(peer, 3) == ["a", "b", "c"]
    peer.send_nowait("1")
    await peer.send("ü")
    peer.send_nowait(b"\xff")
    assert await transport.receive() == [b"1", "ü".encode(), b"\xff"]
    assert trio.current_time() == 0


async def test_a_binary_message_is_still_one_on_the_other_end() -> None:
    transport, peer = memory_link()
    await peer.send(Binary(b"x"))
    await peer.send(b"x")
    assert [type(one) for one in await transport.receive()] == [Binary, bytes]


async def test_every_hand_over_counts_as_one_write_however_many_frames_it_has() -> None:
    transport, _ = memory_link()
    transport.write_nowait(frames("a", "b", "c"))
    await transport.write(frames("d", "e"))
    assert transport.writes == 2


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    for read in (transport.receive, peer.receive):
        assert await waits(read)
    peer.send_nowait("1")
    transport.write_nowait(frames("a"))
    for read in (transport.receive, peer.receive):
        with trio.CancelScope() as scope:
            scope.cancel()
            await read()
        assert scope.cancelled_caught
    assert await transport.receive() == [b"1"]
    assert await peer.receive() == "a"


# --- capacity --------------------------------------------------------------------------------------------------------


async def test_a_link_holds_so_many_bytes_in_each_direction(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=10)
    big = frames("aaa", "bbb", "c")  # of 5, 5 and 3 bytes
    assert transport.write_nowait(big) == big[2:]
    assert transport.write_nowait(big[2:]) == big[2:]
    assert await peer.receive() == "aaa"
    assert transport.write_nowait(big[2:]) == ()
    assert await received(peer, 2) == ["bbb", "c"]

    peer.send_nowait("12345")
    peer.send_nowait("12345")
    with pytest.raises(trio.WouldBlock):
        peer.send_nowait("1")
    assert await waits(lambda: peer.send("1"))
    assert await transport.receive() == [b"12345", b"12345"]
    peer.send_nowait("1")
    assert await transport.receive() == [b"1"]


async def test_one_message_above_the_capacity_fits_alone() -> None:
    transport, peer = memory_link(capacity=1)
    one, two = frames("x" * 100, "y" * 100)
    assert transport.write_nowait([one, two]) == [two]
    assert await peer.receive() == "x" * 100
    assert transport.write_nowait([two]) == ()


async def test_who_writes_waits_until_the_other_reads(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=1)
    texts = [str(n) for n in range(10)]
    got: list[str] = []

    async def read() -> None:
        for _ in texts:
            await trio.sleep(1)
            got.append(await peer.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await transport.write(frames(*texts))
        assert trio.current_time() == 9  # when the last but one was read
    assert got == texts


async def test_a_write_that_was_cancelled_must_not_be_followed_by_another(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=1)
    assert await waits(lambda: transport.write(frames("a", "b")))
    with pytest.raises(AssertionError, match="tears a frame"):
        transport.write_nowait(frames("c"))
    with pytest.raises(AssertionError, match="tears a frame"):
        await transport.write(frames("c"))
    transport.abort()
    with pytest.raises(ConnectionClosed):
        transport.write_nowait(frames("c"))
    assert await end(peer.receive) == (1006, "")


async def test_a_write_that_was_cancelled_leaves_no_clean_close(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=1)
    assert await waits(lambda: transport.write(frames("a", "b")))
    await transport.aclose(1000)
    with pytest.raises(ConnectionClosed) as caught:
        await peer.receive()
    assert caught.value.code == 1006


# --- stall -----------------------------------------------------------------------------------------------------------


async def test_a_stalled_peer_reads_nothing_until_it_resumes(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=10)
    peer.stall()
    left = frames("aaa", "bbb", "ccc")
    left = list(transport.write_nowait(left))
    assert left == frames("ccc")
    assert await waits(peer.receive)
    assert transport.write_nowait(left) == left
    peer.resume()
    assert await received(peer, 2) == ["aaa", "bbb"]


async def test_a_peer_that_stalls_while_it_waits_for_a_message_does_not_get_it(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=1)
    got: list[str] = []

    async def read() -> None:
        got.append(await peer.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await settle()
        peer.stall()
        transport.write_nowait(frames("a"))
        await settle()
        assert got == []
        assert transport.write_nowait(frames("b")) == frames("b")
        peer.resume()
    assert got == ["a"]


async def test_a_peer_that_stalls_keeps_what_it_has_read_for_later(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    transport.write_nowait(frames("a", "b"))
    assert await peer.receive() == "a"
    peer.stall()
    assert await waits(peer.receive)
    peer.resume()
    assert await peer.receive() == "b"


async def test_a_stalled_peer_still_sends(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    peer.stall()
    await peer.send("1")
    assert await transport.receive() == [b"1"]


async def test_a_stalled_peer_answers_neither_ping_nor_close(autojump_clock: MockClock) -> None:
    for what in ("ping", "aclose"):
        transport, peer = memory_link()
        peer.stall()
        assert await waits(transport.ping if what == "ping" else transport.aclose)
        transport.abort()


async def test_who_waits_for_a_stalled_peer_goes_on_when_it_resumes_however_often_it_was_stalled(
    autojump_clock: MockClock,
) -> None:
    transport, peer = memory_link()
    peer.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.ping)
        await settle()
        peer.stall()
        await trio.sleep(5)
        peer.resume()
        peer.resume()
    assert trio.current_time() == 5


@pytest.mark.parametrize("how", ["close", "cut", "abort"])
async def test_the_end_of_the_link_ends_a_stall(autojump_clock: MockClock, how: str) -> None:
    transport, peer = memory_link()
    peer.stall()
    ends: list[tuple[int, str]] = []

    async def read() -> None:
        ends.append(await end(peer.receive))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await settle()
        {"close": peer.close, "cut": peer.cut, "abort": transport.abort}[how]()
    assert ends == [(1000 if how == "close" else 1006, "")]


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_a_close_comes_behind_what_was_sent_before_both_ways() -> None:
    transport, peer = memory_link()
    peer.send_nowait("1")
    transport.write_nowait(frames("a"))
    peer.close(3000, "enough")
    assert await transport.receive() == [b"1"]
    assert await peer.receive() == "a"
    assert await end(transport.receive) == await end(peer.receive) == (3000, "enough")


async def test_the_servers_close_waits_for_its_peer_which_sees_the_code_behind_all_that_was_written(
    autojump_clock: MockClock,
) -> None:
    transport, peer = memory_link()
    transport.write_nowait(frames("a"))
    peer.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.aclose, 3000, "enough")
        await trio.sleep(5)
        assert nursery.child_tasks
        peer.resume()
    assert trio.current_time() == 5
    assert await peer.receive() == "a"
    assert await end(peer.receive) == (3000, "enough")
    assert await end(transport.receive) == (3000, "enough")


async def test_a_cut_is_1006_on_both_ends_and_loses_what_was_on_its_way() -> None:
    transport, peer = memory_link()
    transport.write_nowait(frames("a", "b"))
    assert await peer.receive() == "a"
    transport.write_nowait(frames("c"))
    peer.send_nowait("1")
    peer.cut()
    for read in (transport.receive, peer.receive):
        with pytest.raises(ConnectionClosed) as caught:
            await read()
        assert (caught.value.code, caught.value.reason) == (1006, "")


async def test_an_abort_is_1006_for_the_peer_behind_what_was_written() -> None:
    transport, peer = memory_link()
    transport.write_nowait(frames("a"))
    peer.send_nowait("1")
    transport.abort()
    assert await peer.receive() == "a"
    assert await end(peer.receive) == (1006, "")
    with pytest.raises(ConnectionClosed):
        await transport.receive()


@pytest.mark.parametrize("how", ["close", "cut", "abort", "aclose"])
async def test_whoever_waits_is_woken_by_the_end_and_nothing_can_be_sent_after(
    autojump_clock: MockClock, how: str
) -> None:
    transport, peer = memory_link(capacity=1)
    transport.write_nowait(frames("x"))
    peer.send_nowait("x")
    ended: list[str] = []

    async def waiting(name: str, what: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(ConnectionClosed):
            await what()
        ended.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting, "write", lambda: transport.write(frames("y")))
        nursery.start_soon(waiting, "send", lambda: peer.send("y"))
        await settle()
        assert ended == []
        match how:
            case "close":
                peer.close()
            case "cut":
                peer.cut()
            case "abort":
                transport.abort()
            case _:
                await transport.aclose()
    assert sorted(ended) == ["send", "write"]
    with pytest.raises(ConnectionClosed):
        transport.write_nowait(frames("z"))
    with pytest.raises(ConnectionClosed):
        await transport.write(frames("z"))
    with pytest.raises(ConnectionClosed):
        await transport.ping()
    with pytest.raises(ConnectionClosed):
        peer.send_nowait("z")
    with pytest.raises(ConnectionClosed):
        await peer.send("z")


async def test_the_first_end_is_the_one_that_counts() -> None:
    transport, peer = memory_link()
    peer.close(3000, "first")
    peer.cut()
    transport.abort()
    await transport.aclose(1000, "last")
    assert await end(transport.receive) == await end(peer.receive) == (3000, "first")


# --- delay and loss --------------------------------------------------------------------------------------------------


async def test_a_delay_holds_for_each_message_both_ways_and_a_ping_takes_it_twice(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    peer.delay(2)
    await peer.send("1")
    await trio.sleep(1)
    await peer.send("2")
    assert (await transport.receive(), trio.current_time()) == ([b"1"], 2)
    assert (await transport.receive(), trio.current_time()) == ([b"2"], 3)
    transport.write_nowait(frames("a"))
    assert (await peer.receive(), trio.current_time()) == ("a", 5)
    await transport.ping()
    assert trio.current_time() == 9


async def test_a_delay_changes_nothing_for_what_is_on_its_way_and_order_is_kept(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    peer.delay(2)
    await peer.send("slow")
    peer.delay(0)
    await peer.send("quick")
    assert (await transport.receive(), trio.current_time()) == ([b"slow", b"quick"], 2)


async def test_what_is_late_still_fills_the_link(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=1)
    peer.delay(2)
    assert transport.write_nowait(frames("a", "b")) == frames("b")
    await trio.sleep(1)
    assert transport.write_nowait(frames("b")) == frames("b")
    assert await peer.receive() == "a"
    assert transport.write_nowait(frames("b")) == ()


async def test_a_close_comes_behind_what_is_late_and_a_cut_does_not(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    peer.delay(2)
    await peer.send("1")
    peer.close()
    assert (await transport.receive(), trio.current_time()) == ([b"1"], 2)
    assert await end(transport.receive) == (1000, "")

    transport, peer = memory_link()
    peer.delay(2)
    await peer.send("1")
    peer.cut()
    with pytest.raises(ConnectionClosed):
        await transport.receive()
    assert trio.current_time() == 2


async def test_a_link_that_is_cut_while_a_ping_is_on_its_way_gives_no_pong(autojump_clock: MockClock) -> None:
    transport, peer = memory_link()
    peer.delay(2)

    async def ping() -> None:
        with pytest.raises(ConnectionClosed):
            await transport.ping()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        await trio.sleep(3)
        peer.cut()


async def test_so_many_messages_of_the_server_are_lost_and_no_more() -> None:
    transport, peer = memory_link()
    peer.drop(1)
    peer.drop(1)
    assert transport.write_nowait(frames("a", "b", "c")) == ()
    peer.send_nowait("1")
    assert await peer.receive() == "c"
    assert await transport.receive() == [b"1"]


async def test_what_is_lost_takes_no_room(autojump_clock: MockClock) -> None:
    transport, peer = memory_link(capacity=1)
    peer.drop(2)
    assert transport.write_nowait(frames("a", "b", "c", "d")) == frames("d")
    assert await peer.receive() == "c"


async def test_a_link_starts_no_task_and_needs_no_end() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    transport, peer = memory_link()
    assert (type(transport), type(peer)) == (MemoryTransport, MemoryPeer)
    peer.send_nowait("1")
    await transport.receive()
    assert trio.lowlevel.current_statistics().tasks_living == before
