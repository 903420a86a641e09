from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, cast, final

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import settle
from trio_wskit import ConnectionClosed, Limits
from trio_wskit._core.frames import payload_of, text_frame
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Frame, Outbox
from trio_wskit.abc import Transport


@final
class Wire:
    """A transport that takes so many bytes, then none until it is read. It may take a part of a frame, as a kernel."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""
        self.writes: list[int] = []  # how many frames each was handed
        self.broken: Exception | None = None
        self.aborted = False
        self._rest: bytes | None = None
        self._read = trio.lowlevel.ParkingLot()

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        if self.broken is not None:
            raise self.broken
        assert not self.aborted
        self.writes.append(len(frames))
        if self._rest is not None:
            assert frames[0] is self._rest, "the rest of a frame was not the next thing written"
            self._rest = None
        left = list(frames)
        while left and self.room:
            taken, rest = left[0][: self.room], left[0][self.room :]
            self.taken += taken
            self.room -= len(taken)
            if rest:
                left[0] = self._rest = rest
            else:
                del left[0]
        return left

    async def write(self, frames: Sequence[bytes]) -> None:
        left = frames
        while left := self.write_nowait(left):
            await self._read.park()

    def read(self, size: int) -> None:
        """Make room for so many bytes more."""
        self.room += size
        self._read.unpark_all()

    def fail(self, error: Exception) -> None:
        self.broken = error
        self._read.unpark_all()

    def abort(self) -> None:
        self.aborted = True
        self.fail(ConnectionClosed(1006))

    def texts(self) -> list[str]:
        """The whole messages that were taken."""
        texts: list[str] = []
        data = self.taken
        while len(data) > 1 and len(data) >= 2 + data[1]:
            texts.append(payload_of(data[: 2 + data[1]]).decode())
            data = data[2 + data[1] :]
        return texts


@final
class Desk:
    """An outbox with all that belongs to it."""

    def __init__(self, wire: Wire, limits: Limits, nursery: trio.Nursery) -> None:
        self.wire = wire
        self.flusher = Flusher()
        self.broke: list[ConnectionClosed] = []
        self.nursery = nursery
        self.ended = False  # no writer can be started any more
        self.outbox = Outbox(cast("Transport", wire), limits, self.flusher, self._start, self.broke.append)
        self.log: list[str] = []  # of `send_all`

    def _start(self) -> bool:
        if self.ended:
            return False
        self.nursery.start_soon(self.outbox.run_writer)
        return True

    def aborted(self) -> bool:
        return self.wire.aborted

    def congested(self) -> bool:
        return self.outbox.congested

    async def send_all(self, *texts: str) -> None:
        for text in texts:
            await self.outbox.send(frame(text))
            self.log.append(text)


def frame(text: str, topic: str | None = None) -> Frame:
    """A frame of two bytes more than the text."""
    return Frame(text_frame(text.encode()), topic)


@asynccontextmanager
async def open_desk(room: int = 10**9, **limits: Any) -> AsyncGenerator[Desk]:
    async with trio.open_nursery() as nursery:
        desk = Desk(Wire(room), Limits(**limits), nursery)
        nursery.start_soon(desk.flusher.run)
        await settle()
        try:
            yield desk
        finally:
            desk.flusher.stop()
            nursery.cancel_scope.cancel()


def offered(desk: Desk, *texts: str) -> list[bool]:
    return [desk.outbox.offer(frame(text)) for text in texts]


# --- leaving ---------------------------------------------------------------------------------------------------------


async def test_what_was_accepted_in_a_pass_leaves_at_its_end_in_one_write() -> None:
    async with open_desk() as desk:
        assert offered(desk, "a", "b", "c") == [True] * 3
        assert desk.wire.writes == []
        assert desk.outbox.queued_bytes == 9
        await settle()
        assert desk.wire.writes == [3]
        assert desk.wire.texts() == ["a", "b", "c"]
        assert desk.outbox.queued_bytes == 0
        offered(desk, "d")
        await settle()
        assert desk.wire.writes == [3, 1]


async def test_while_the_system_takes_everything_there_is_no_writer() -> None:
    async with open_desk() as desk:
        before = trio.lowlevel.current_statistics().tasks_living
        for n in range(1000):
            await desk.outbox.send(frame(str(n)))
        await settle()
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert not desk.congested()


async def test_a_cork_collects_until_it_is_drawn() -> None:
    async with open_desk() as desk:
        desk.outbox.cork()
        offered(desk, "a")
        await settle()
        assert desk.wire.writes == []
        offered(desk, "b")
        desk.outbox.uncork()
        assert desk.wire.writes == [2]
        desk.outbox.uncork()  # with nothing in it
        await settle()
        assert desk.wire.writes == [2]


async def test_what_was_accepted_before_the_cork_leaves_with_the_pass_and_once() -> None:
    async with open_desk() as desk:
        offered(desk, "a")
        desk.outbox.cork()
        offered(desk, "b")
        desk.outbox.uncork()
        await settle()
        assert desk.wire.writes == [2]


async def test_many_outboxes_are_flushed_in_turns_that_let_others_run() -> None:
    async with open_desk() as desk:
        outboxes = [
            Outbox(cast("Transport", Wire(100)), Limits(), desk.flusher, lambda: False, lambda _: None)
            for _ in range(600)
        ]
        for outbox in outboxes:
            outbox.offer(frame("a"))
        waiting: list[int] = []
        while any(outbox.queued_bytes for outbox in outboxes):
            waiting.append(sum(outbox.queued_bytes for outbox in outboxes))
            await trio.lowlevel.checkpoint()
        assert {1800 - 3 * 256, 1800 - 6 * 256} & {*waiting}


async def test_a_transport_that_fails_ends_its_own_link_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with open_desk() as desk:
        bad = Wire(100)
        bad.fail(OSError("a bug"))
        broke: list[ConnectionClosed] = []
        outbox = Outbox(cast("Transport", bad), Limits(), desk.flusher, lambda: False, broke.append)
        outbox.offer(frame("a"))
        offered(desk, "b")
        await settle()
        assert bad.aborted
        assert [closed.code for closed in broke] == [1006]
        assert desk.wire.texts() == ["b"]
    assert [record.getMessage() for record in caplog.records] == ["a transport failed"]


async def test_goodbyes_are_still_sent_when_all_around_is_cancelled() -> None:
    async with open_desk() as desk:
        offered(desk, "goodbye")
        desk.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            for _ in range(5):
                await trio.lowlevel.checkpoint()
        assert desk.wire.texts() == ["goodbye"]


# --- a full system ---------------------------------------------------------------------------------------------------


async def test_the_writer_takes_over_where_the_system_stopped_in_the_middle_of_a_frame() -> None:
    async with open_desk(room=4) as desk:
        offered(desk, "aa", "bb", "cc")
        await settle()
        assert desk.congested()
        desk.outbox.offer(frame("dd"))
        for _ in range(4):
            desk.wire.read(3)
            await settle()
        assert desk.wire.texts() == ["aa", "bb", "cc", "dd"]
        assert not desk.congested()
        assert desk.outbox.queued_bytes == 0


async def test_what_comes_in_the_right_order_leaves_in_it_whatever_the_system_takes() -> None:
    async with open_desk(room=7, outbox_messages=5) as desk:
        texts = [str(n) * (n % 5 + 1) for n in range(60)]
        desk.nursery.start_soon(desk.send_all, *texts)
        while len(desk.wire.taken) < sum(map(len, texts)) + 2 * len(texts):
            await settle()
            desk.wire.read(len(desk.wire.taken) % 11 + 1)
        assert desk.wire.texts() == texts


async def test_the_writer_joins_at_most_64_kib() -> None:
    async with open_desk(room=0) as desk:
        texts = ["x" * 100] * 2000
        desk.outbox.cork()
        for text in texts[:1000]:
            assert desk.outbox.offer(frame(text))
        desk.outbox.uncork()
        await settle()
        desk.wire.writes.clear()
        desk.wire.read(10**6)
        await settle()
        assert desk.wire.writes == [643, 357]  # 643 * 102 bytes are the first past 65,536
        assert len(desk.wire.texts()) == 1000


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_an_offer_is_refused_while_messages_are_full() -> None:
    async with open_desk(room=0, outbox_messages=2) as desk:
        desk.outbox.cork()
        assert offered(desk, "a", "b", "c") == [True, True, False]


async def test_an_offer_is_refused_while_bytes_are_full() -> None:
    async with open_desk(outbox_bytes=10) as desk:
        desk.outbox.cork()
        assert offered(desk, "aaa", "bbb", "c", "") == [True, True, False, False]
        assert desk.outbox.queued_bytes == 10


async def test_one_frame_larger_than_the_bound_goes_alone() -> None:
    async with open_desk(room=0, outbox_bytes=10) as desk:
        assert offered(desk, "x" * 50) == [True]
        await settle()
        assert offered(desk, "a") == [False]
        desk.wire.read(1000)
        await settle()
        assert offered(desk, "a") == [True]


async def test_what_the_writer_holds_counts_as_queued() -> None:
    async with open_desk(room=0, outbox_bytes=10) as desk:
        offered(desk, "aaaaaaaa")
        await settle()
        assert desk.outbox.queued_bytes == 10
        assert offered(desk, "") == [False]


async def test_a_full_batch_is_sent_at_once_before_anybody_is_refused() -> None:
    async with open_desk(outbox_messages=2) as desk:
        desk.outbox.cork()
        for n in range(9):
            desk.outbox.send_nowait(frame(str(n)))
        assert desk.wire.writes == [2, 2, 2, 2]
        desk.outbox.uncork()
        assert desk.wire.texts() == list("012345678")


async def test_send_nowait_would_block_where_the_system_is_full() -> None:
    async with open_desk(room=0, outbox_messages=2) as desk:
        offered(desk, "a")
        await settle()
        desk.outbox.send_nowait(frame("b"))
        desk.outbox.send_nowait(frame("c"))
        with pytest.raises(trio.WouldBlock):
            desk.outbox.send_nowait(frame("d"))


async def test_a_push_may_use_twice_the_bounds_and_no_more() -> None:
    async with open_desk(room=0, outbox_messages=2) as desk:
        offered(desk, "a")
        await settle()
        pushed = [desk.outbox.push(frame(text)) for text in "bcdefgh"]
        assert pushed == [True, True, True, True, False, False, False]
        desk.wire.read(1000)
        await settle()
        assert desk.wire.texts() == list("abcde")


async def test_a_push_may_use_twice_the_bytes_and_no_more() -> None:
    async with open_desk(room=0, outbox_bytes=10) as desk:
        offered(desk, "aaa")
        await settle()
        assert [desk.outbox.push(frame("bbb")) for _ in range(4)] == [True, True, True, False]


async def test_pushes_in_a_batch_are_sent_before_the_bounds_are_overdrawn() -> None:
    async with open_desk(outbox_messages=2) as desk:
        desk.outbox.cork()
        assert all(desk.outbox.push(frame(str(n))) for n in range(50))
        desk.outbox.uncork()
        assert len(desk.wire.texts()) == 50


# --- waiting for room ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"outbox_messages": 2}, {"outbox_bytes": 6}])
async def test_send_waits_while_the_outbox_is_full_and_is_served_in_order(limits: dict[str, int]) -> None:
    async with open_desk(room=0, **limits) as desk:
        offered(desk, "0")
        await settle()
        for text in "12345678":
            desk.nursery.start_soon(desk.send_all, text)
            await settle()
        accepted = len(desk.log)
        assert accepted < 8
        assert offered(desk, "x") == [False]
        for _ in range(9):
            desk.wire.read(3)
            await settle()
        assert len(desk.log) == 8
        assert desk.wire.texts() == list("012345678")


async def test_who_waits_came_before_who_offers() -> None:
    async with open_desk(room=0, outbox_bytes=12) as desk:
        offered(desk, "0")
        await settle()
        offered(desk, "1")
        desk.nursery.start_soon(desk.send_all, "large" * 2)
        await settle()
        assert offered(desk, "s") == [False]  # it would fit, but it is not its turn
        desk.wire.read(100)
        await settle()
        assert offered(desk, "s") == [True]
        await settle()
        assert desk.wire.texts() == ["0", "1", "largelarge", "s"]


async def test_a_send_that_is_cancelled_while_it_waits_has_queued_nothing(autojump_clock: MockClock) -> None:
    async with open_desk(room=0, outbox_messages=1) as desk:
        offered(desk, "a")
        await settle()
        offered(desk, "b")
        with trio.move_on_after(1) as scope:
            await desk.outbox.send(frame("c"))
        assert scope.cancelled_caught
        desk.nursery.start_soon(desk.send_all, "d")
        await settle()
        desk.wire.read(100)
        await settle()
        assert desk.wire.texts() == ["a", "b", "d"]


async def test_who_waits_behind_a_large_frame_that_is_given_up_gets_in_where_it_fits() -> None:
    async with open_desk(room=0, outbox_bytes=12) as desk:
        offered(desk, "0")
        await settle()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.send_all, "large" * 2)
                await settle()
                desk.nursery.start_soon(desk.send_all, "s")
                await settle()
                assert desk.log == []
                scope.cancel()
        await settle()
        assert desk.log == ["s"]


async def test_a_send_is_a_cancellation_point_even_where_there_is_room() -> None:
    async with open_desk() as desk:
        with trio.CancelScope() as scope:
            scope.cancel()
            await desk.outbox.send(frame("a"))
        assert scope.cancelled_caught
        assert desk.outbox.queued_bytes == 0


async def test_a_task_that_only_sends_lets_others_run() -> None:
    async with open_desk() as desk:
        turns: list[int] = []

        async def other() -> None:
            while True:
                turns.append(len(desk.log))
                await trio.lowlevel.checkpoint()

        desk.nursery.start_soon(other)
        await desk.send_all(*map(str, range(640)))
        assert len(turns) >= 9
        assert max(later - turn for turn, later in pairwise(turns)) <= 128


# --- topics ----------------------------------------------------------------------------------------------------------


async def test_the_oldest_frames_of_topics_make_room_and_replies_stay() -> None:
    async with open_desk(room=0, outbox_messages=4) as desk:
        offered(desk, "head")
        await settle()
        for text in ("t1", "r1", "t2", "r2"):
            assert desk.outbox.offer(frame(text, "topic" if text[0] == "t" else None))
        assert desk.outbox.offer_instead(frame("t3", "topic"))
        assert desk.outbox.dropped == 1
        desk.wire.read(1000)
        await settle()
        assert desk.wire.texts() == ["head", "r1", "t2", "r2", "t3"]


async def test_as_many_are_dropped_as_the_new_one_is_large() -> None:
    async with open_desk(room=0, outbox_bytes=20) as desk:
        desk.outbox.cork()
        for _ in range(5):
            assert desk.outbox.offer(frame("tt", "topic"))
        assert desk.outbox.offer_instead(frame("t" * 8, "topic"))
        assert desk.outbox.dropped == 3
        assert desk.outbox.queued_bytes == 18


async def test_nothing_is_dropped_where_it_would_not_be_enough() -> None:
    async with open_desk(room=0, outbox_messages=2) as desk:
        desk.outbox.cork()
        offered(desk, "r1", "r2")
        assert not desk.outbox.offer_instead(frame("t", "topic"))
    async with open_desk(room=0, outbox_bytes=10) as desk:
        desk.outbox.cork()
        desk.outbox.offer(frame("t1", "topic"))
        offered(desk, "rrrr")
        assert not desk.outbox.offer_instead(frame("t" * 8, "topic"))
        assert desk.outbox.dropped == 0
        assert desk.outbox.queued_bytes == 10


async def test_who_waits_for_room_does_not_cost_the_topics_their_frames() -> None:
    async with open_desk(room=0, outbox_messages=2) as desk:
        offered(desk, "head")
        await settle()
        for text in ("t1", "t2"):
            desk.outbox.offer(frame(text, "topic"))
        desk.nursery.start_soon(desk.send_all, "r")
        await settle()
        for n in (3, 4, 5):
            assert desk.outbox.offer_instead(frame(f"t{n}", "topic"))
        assert desk.outbox.dropped == 3
        desk.wire.read(1000)
        await settle()
        assert desk.wire.texts() == ["head", "t4", "t5", "r"]


async def test_the_rest_of_a_frame_is_never_dropped() -> None:
    async with open_desk(room=3, outbox_messages=2) as desk:
        desk.ended = True  # no writer: the rest stays at the front
        desk.outbox.cork()
        desk.outbox.offer(frame("t1", "topic"))
        desk.outbox.offer(frame("t2", "topic"))
        desk.outbox.uncork()
        assert desk.outbox.offer_instead(frame("t3", "topic"))
        desk.wire.read(1000)
        await desk.outbox.drained()
        assert desk.wire.texts() == ["t1", "t3"]


async def test_a_closed_outbox_takes_nothing_instead() -> None:
    async with open_desk() as desk:
        desk.outbox.break_off(ConnectionClosed(1001))
        assert not desk.outbox.offer_instead(frame("t", "topic"))


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_a_peer_that_does_not_read_in_time_is_aborted(autojump_clock: MockClock) -> None:
    async with open_desk(room=1, write_timeout=3, outbox_messages=2) as desk:
        offered(desk, "a")
        await settle()
        offered(desk, "b", "c")
        desk.nursery.start_soon(_expect_closed, desk, "d")
        await trio.sleep(2.9)
        assert not desk.aborted()
        await trio.sleep(0.2)
        assert desk.aborted()
        assert desk.outbox.queued_bytes == 0
        assert [closed.code for closed in desk.broke] == [1006]
        assert desk.log == ["closed 1006"]
        assert offered(desk, "e") == [False]


async def _expect_closed(desk: Desk, text: str) -> None:
    try:
        await desk.send_all(text)
    except ConnectionClosed as closed:
        desk.log.append(f"closed {closed.code}")


async def test_each_write_has_a_time_of_its_own(autojump_clock: MockClock) -> None:
    async with open_desk(room=0, write_timeout=3) as desk:
        desk.outbox.cork()
        offered(desk, *["x" * 100] * 900)
        desk.outbox.uncork()
        await trio.sleep(2)
        desk.wire.read(70_000)  # the first of two writes
        await trio.sleep(2)
        assert not desk.aborted()
        desk.wire.read(70_000)
        await settle()
        assert len(desk.wire.texts()) == 900


async def test_a_writer_that_is_cancelled_aborts_the_link() -> None:
    async with open_desk(room=1) as desk:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                desk.nursery = nursery
                offered(desk, "a")
                await settle()
                assert desk.congested()
                scope.cancel()
        assert desk.aborted()
        assert not desk.congested()
        with pytest.raises(ConnectionClosed):
            await desk.outbox.send(frame("b"))


async def test_a_link_that_breaks_in_a_flush_is_told_once_and_forgets_everything() -> None:
    async with open_desk() as desk:
        desk.wire.fail(ConnectionClosed(1006))
        offered(desk, "a", "b")
        await settle()
        assert [closed.code for closed in desk.broke] == [1006]
        assert desk.outbox.queued_bytes == 0
        assert desk.outbox.closed is not None
        assert offered(desk, "c") == [False]
        assert not desk.outbox.push(frame("c"))
        with pytest.raises(ConnectionClosed):
            desk.outbox.send_nowait(frame("c"))


async def test_a_link_that_breaks_under_the_writer_is_told_to_all_who_wait() -> None:
    async with open_desk(room=0, outbox_messages=1) as desk:
        offered(desk, "a")
        await settle()
        offered(desk, "b")
        for text in "cd":
            desk.nursery.start_soon(_expect_closed, desk, text)
        await settle()
        desk.wire.fail(ConnectionClosed(1001, "bye"))
        await settle()
        assert desk.log == ["closed 1001", "closed 1001"]
        assert [closed.reason for closed in desk.broke] == ["bye"]
        assert desk.outbox.queued_bytes == 0


async def test_a_send_that_finds_the_link_broken_does_not_wait_for_ever() -> None:
    async with open_desk(outbox_messages=1) as desk:
        desk.outbox.cork()
        offered(desk, "a")
        desk.wire.fail(ConnectionClosed(1006))
        with pytest.raises(ConnectionClosed):
            await desk.outbox.send(frame("b"))


async def test_everybody_gets_an_exception_of_his_own() -> None:
    async with open_desk() as desk:
        desk.outbox.break_off(ConnectionClosed(1001, "bye"))
        raised: list[ConnectionClosed] = []
        for _ in range(2):
            with pytest.raises(ConnectionClosed) as caught:
                await desk.outbox.send(frame("a"))
            raised.append(caught.value)
        assert raised[0] is not raised[1]
        assert raised[0] is not desk.outbox.closed
        assert (raised[0].code, raised[0].reason) == (1001, "bye")


async def test_a_write_that_ends_after_the_break_leaves_nothing_counted() -> None:
    async with open_desk(room=0) as desk:
        offered(desk, "a")
        await settle()
        desk.outbox.break_off(ConnectionClosed(1001))
        desk.wire.read(100)
        await settle()
        assert desk.outbox.queued_bytes == 0
        assert not desk.congested()


async def test_drained_waits_until_the_system_has_everything() -> None:
    async with open_desk(room=0) as desk:
        await desk.outbox.drained()  # there is nothing
        offered(desk, "a")
        await settle()
        offered(desk, "b")
        done: list[str] = []

        async def drain() -> None:
            await desk.outbox.drained()
            done.append("drained")

        desk.nursery.start_soon(drain)
        await settle()
        desk.wire.read(5)
        await settle()
        assert done == []
        desk.wire.read(5)
        await settle()
        assert done == ["drained"]
        assert desk.wire.texts() == ["a", "b"]


async def test_who_waits_gets_in_with_a_flush_where_no_writer_can_be_started() -> None:
    async with open_desk(room=0, outbox_messages=1) as desk:
        desk.ended = True
        offered(desk, "a")
        desk.nursery.start_soon(desk.send_all, "b", "c")
        await settle()
        assert desk.log == []
        desk.wire.read(100)
        desk.flusher.add(desk.outbox)
        await settle()
        assert desk.log == ["b", "c"]
        assert desk.wire.texts() == ["a", "b", "c"]


def _never(topic: str, first: int | None, last: int | None) -> bytes:
    raise AssertionError("there is nobody to tell")


async def test_a_ticket_is_told_of_a_write_by_a_flush_where_no_writer_can_be_started() -> None:
    told: list[str] = []

    class Teller:
        def written(self) -> None:
            told.append("written")

        def lost(self) -> None:
            told.append("lost")

    async with open_desk(room=0, outbox_messages=1) as desk:
        desk.ended = True
        offered(desk, "a")
        await settle()
        desk.outbox.watch(Teller())
        desk.nursery.start_soon(desk.send_all, "b")
        await settle()
        assert offered(desk, "late") == [False]  # who waits came first
        desk.wire.read(100)
        desk.flusher.add(desk.outbox)
        await settle()
        assert told == ["written"]
        assert desk.wire.texts() == ["a", "b"]
        desk.wire.room = 0
        offered(desk, "c")
        await settle()
        desk.outbox.watch(Teller())
        desk.outbox.break_off(ConnectionClosed(1006))
        assert told == ["written", "lost"]
        desk.outbox.miss("t", 1, 1, _never)
        assert desk.outbox.gaps == 0


async def test_two_may_wait_for_the_same_drain() -> None:
    async with open_desk(room=0) as desk:
        offered(desk, "a")
        await settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.outbox.drained)
            nursery.start_soon(desk.outbox.drained)
            await settle()
            desk.wire.read(100)
        assert desk.wire.texts() == ["a"]


async def test_drained_writes_itself_where_no_writer_can_be_started() -> None:
    async with open_desk(room=0) as desk:
        desk.ended = True
        offered(desk, "a", "b")
        await settle()
        assert not desk.congested()
        desk.wire.read(100)
        await desk.outbox.drained()
        assert desk.wire.texts() == ["a", "b"]


async def test_drained_sends_what_is_corked() -> None:
    async with open_desk() as desk:
        desk.outbox.cork()
        offered(desk, "a")
        await desk.outbox.drained()
        assert desk.wire.texts() == ["a"]


async def test_drained_waits_for_what_was_accepted_while_it_waited() -> None:
    async with open_desk(room=0) as desk:
        offered(desk, "a")
        await settle()

        async def one_more() -> None:
            while desk.congested():
                await trio.lowlevel.checkpoint()
            offered(desk, "b")

        desk.nursery.start_soon(one_more)
        with trio.CancelScope() as late:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.outbox.drained)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                desk.wire.read(100)
        assert not late.cancelled_caught
        assert desk.outbox.queued_bytes in (0, 3)
        await settle()
        assert desk.wire.texts() == ["a", "b"]


async def test_drained_ends_when_the_link_breaks() -> None:
    async with open_desk(room=0) as desk:
        offered(desk, "a")
        await settle()
        desk.nursery.start_soon(desk.outbox.drained)
        await settle()
        desk.wire.fail(ConnectionClosed(1006))
        await settle()
        assert not desk.congested()
        await desk.outbox.drained()


async def test_drained_cancelled_while_it_writes_has_aborted_the_link(autojump_clock: MockClock) -> None:
    async with open_desk(room=0) as desk:
        desk.ended = True
        offered(desk, "a")
        with trio.move_on_after(1) as scope:
            await desk.outbox.drained()
        assert scope.cancelled_caught
        assert desk.aborted()
        with trio.CancelScope() as scope:
            scope.cancel()
            await desk.outbox.drained()
        assert scope.cancelled_caught


async def test_to_forget_leaves_the_frame_that_is_half_written_and_tells_who_waits() -> None:
    async with open_desk(room=3, outbox_messages=3) as desk:
        offered(desk, "half", "b", "c")
        desk.nursery.start_soon(_expect_closed, desk, "waits")
        await settle()
        # The writer has taken all three. Two more wait behind them.
        offered(desk, "d", "e")
        desk.outbox.forget(ConnectionClosed(1013))
        assert offered(desk, "late") == [False]
        desk.wire.read(1000)
        await desk.outbox.drained()
        assert desk.wire.texts()[0] == "half"
        assert "e" not in desk.wire.texts()
        assert desk.outbox.queued_bytes == 0
    async with open_desk(room=3) as desk:
        offered(desk, "half", "b", "c")
        desk.outbox.flush()  # and the writer has not run yet
        desk.outbox.forget(ConnectionClosed(1013))
        desk.wire.read(1000)
        await desk.outbox.drained()
        assert desk.wire.texts() == ["half"]
        assert desk.outbox.queued_bytes == 0


async def test_aclose_accepts_nothing_more_and_what_was_accepted_is_written() -> None:
    async with open_desk(room=0) as desk:
        offered(desk, "a")
        async with desk.outbox:
            offered(desk, "b")
        assert offered(desk, "c") == [False]
        with pytest.raises(ConnectionClosed) as caught:
            await desk.outbox.send(frame("c"))
        assert caught.value.code == 1000
        desk.wire.read(100)
        await settle()
        assert desk.wire.texts() == ["a", "b"]
        assert desk.broke == []
        await desk.outbox.aclose()
        desk.outbox.break_off(ConnectionClosed(1006))
        assert desk.outbox.closed is not None
        assert desk.outbox.closed.code == 1000  # the first reason is the reason


async def test_an_aclose_that_finds_the_link_broken_keeps_that_reason() -> None:
    async with open_desk() as desk:
        offered(desk, "a")
        desk.wire.fail(ConnectionClosed(1006))
        await desk.outbox.aclose()
        assert desk.outbox.closed is not None
        assert desk.outbox.closed.code == 1006


async def test_a_flusher_that_is_stopped_while_it_works_ends() -> None:
    async with open_desk() as desk:
        offered(desk, "a")
