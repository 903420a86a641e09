"""Rounds, step by step; see also `pubsub/test_rounds_model.py`, where they are compared with having none."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, cast, final

import pytest
import trio

from tests.sessions import settle
from tests.test_outbox import Wire, frame
from trio_wskit import ConnectionClosed, Limits
from trio_wskit._budget import ByteBudget
from trio_wskit._core.frames import text_frame
from trio_wskit._core.publishing import PublishEnvelope, PublishResult
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Outbox
from trio_wskit.abc import Transport
from trio_wskit.pubsub import MemoryPubSub
from trio_wskit.pubsub._hub import Hub

PLENTY: Final = 10**9


@final
class Taker:
    def __init__(self, flusher: Flusher, limits: Limits, nursery: trio.Nursery) -> None:
        self.wire = Wire(PLENTY)
        self.nursery = nursery
        self.slow = 0
        self.outbox = Outbox(cast("Transport", self.wire), limits, flusher, self._start, lambda _: None)

    def _start(self) -> bool:
        self.nursery.start_soon(self.outbox.run_writer)
        return True

    def too_slow(self) -> None:
        self.slow += 1

    def evicted(self, used: int, limit: float) -> None:
        self.slow += 1

    def got(self) -> str:
        return "".join(self.wire.texts())


@final
class Room:
    """A topic with twenty subscribers."""

    def __init__(self, nursery: trio.Nursery, limits: Limits, budget: ByteBudget | None) -> None:
        self.flusher = Flusher(limits)
        self.driver = MemoryPubSub()
        self.hub = Hub(self.driver, "drop_newest", budget=budget)
        self.hub.flusher = self.flusher
        self.takers = [Taker(self.flusher, limits, nursery) for _ in range(20)]
        self.one = self.takers[7]
        self.other = self.takers[8]

    async def publish(self, *texts: str, exclude: int | None = None) -> PublishResult:
        result = None
        for text in texts:
            envelope = PublishEnvelope("t", "X", exclude=None if exclude is None else str(exclude))
            result = await self.hub.publish(envelope, text.encode())
        assert result is not None
        return result

    def all_got(self) -> set[str]:
        return {taker.got() for taker in self.takers}


@asynccontextmanager
async def open_room(budget: ByteBudget | None = None, **limits: Any) -> AsyncGenerator[Room]:
    async with trio.open_nursery() as nursery:
        room = Room(nursery, Limits(**limits), budget)
        for number, taker in enumerate(room.takers):
            room.hub.join(str(number), taker)
            await room.driver.subscribe(str(number), "t")
        nursery.start_soon(room.flusher.run)
        await settle()
        try:
            yield room
        finally:
            room.flusher.stop()
            nursery.cancel_scope.cancel()


# --- the usual -------------------------------------------------------------------------------------------------------


async def test_what_is_published_in_one_pass_leaves_in_one_write_for_each() -> None:
    async with open_room() as room:
        assert (await room.publish("a", "b", "c")).delivered == 20
        assert [len(one.frames) for one in room.flusher.rounds] == [3]
        assert room.all_got() == {""}
        await settle()
        assert room.all_got() == {"abc"}
        assert {tuple(taker.wire.writes) for taker in room.takers} == {(3,)}
        assert room.flusher.rounds == []


async def test_a_message_to_one_alone_stands_behind_what_was_published_before_it() -> None:
    async with open_room() as room:
        await room.publish("a")
        assert room.one.outbox.offer(frame("b"))
        await room.publish("c")
        await settle()
        assert room.one.got() == "abc"
        assert room.other.got() == "ac"
        assert room.one.wire.writes == [3]


async def test_what_waits_in_a_round_counts_as_queued() -> None:
    async with open_room() as room:
        await room.publish("a")
        assert room.one.outbox.queued_bytes == len(text_frame(b"a"))


async def test_who_is_excluded_gets_what_others_publish() -> None:
    async with open_room() as room:
        assert (await room.publish("a", exclude=7)).delivered == 19
        assert (await room.publish("b", exclude=8)).delivered == 19
        assert (await room.publish("c")).delivered == 20
        await settle()
        assert (room.one.got(), room.other.got(), room.takers[0].got()) == ("bc", "ac", "abc")


async def test_a_round_takes_no_more_messages_than_an_outbox() -> None:
    async with open_room(outbox_messages=2) as room:
        await room.publish("a", "b", "c")
        assert [len(one.frames) for one in room.flusher.rounds] == [1]
        await settle()
        assert room.all_got() == {"abc"}


async def test_a_round_takes_no_more_bytes_than_an_outbox() -> None:
    async with open_room(outbox_bytes=8) as room:
        await room.publish("aaa", "b", "c")  # 5, 3 and 3 bytes
        assert [len(one.frames) for one in room.flusher.rounds] == [1]
        await settle()
        assert room.all_got() == {"aaabc"}


async def test_a_message_larger_than_an_outbox_goes_to_all_who_have_nothing_else() -> None:
    async with open_room(outbox_bytes=8) as room:
        assert (await room.publish("a" * 20)).delivered == 20
        await settle()
        assert room.all_got() == {"a" * 20}


async def test_what_does_not_fit_behind_a_message_to_one_alone_makes_it_leave() -> None:
    async with open_room(outbox_messages=2) as room:
        assert room.one.outbox.offer(frame("x"))
        await room.publish("a", "b")
        assert room.one.outbox.offer(frame("y"))
        assert room.one.got() == "xab"
        await settle()
        assert room.one.got() == "xaby"


# --- those who are behind --------------------------------------------------------------------------------------------


async def test_who_does_not_read_is_counted_out_at_once_and_in_again_when_it_reads() -> None:
    async with open_room(outbox_messages=2) as room:
        room.one.wire.room = 0
        await room.publish("a")
        await settle()
        assert room.one.outbox.congested
        assert (await room.publish("b")).delivered == 20
        assert (await room.publish("c")).delivered == 20
        result = await room.publish("d")
        assert (result.delivered, result.dropped) == (19, 1)
        room.one.wire.read(PLENTY)
        await settle()
        assert (room.one.got(), room.other.got()) == ("abc", "abcd")
        await room.publish("e")
        assert room.flusher.rounds[-1].apart == {}
        await settle()
        assert (room.one.got(), room.other.got()) == ("abce", "abcde")


async def test_who_falls_behind_before_a_round_is_sent_still_gets_it() -> None:
    async with open_room(outbox_messages=2) as room:
        assert room.one.outbox.offer(frame("x"))
        await settle()
        room.one.wire.room = 0
        room.one.outbox.cork()
        assert room.one.outbox.offer(frame("y"))
        await room.publish("a")
        room.one.outbox.uncork()
        assert room.one.outbox.congested
        assert (await room.publish("b")).delivered == 19  # "y" is with the writer, "a" and then "b" would be too many
        room.one.wire.read(PLENTY)
        await settle()
        assert (room.one.got(), room.other.got()) == ("xya", "ab")


async def test_what_waits_for_a_notice_stands_before_it() -> None:
    def write_gap(topic: str, _first: int | None, _last: int | None) -> bytes:
        return text_frame(f"<{topic}>".encode())

    async with open_room() as room:
        await room.publish("a")
        room.one.outbox.miss("t", None, None, write_gap)
        await room.publish("b")
        await settle()
        assert (room.one.got(), room.other.got()) == ("a<t>b", "ab")


async def test_who_joins_while_it_does_not_read_is_not_in_the_round() -> None:
    async with open_room(outbox_messages=1) as room:
        room.hub.leave("7")
        room.one.wire.room = 0
        assert room.one.outbox.offer(frame("x"))
        await settle()
        assert room.one.outbox.offer(frame("y"))
        room.hub.join("7", room.one)
        result = await room.publish("a")
        assert (result.delivered, result.dropped) == (19, 1)


async def test_who_has_left_is_nobody_s_business_any_more() -> None:
    async with open_room(outbox_messages=1) as room:
        room.one.wire.room = 0
        await room.publish("a")
        await settle()
        room.hub.leave("7")
        successor = Taker(room.flusher, Limits(), room.one.nursery)
        room.hub.join("7", successor)
        room.one.outbox.break_off(ConnectionClosed(1006, "gone"))  # says nothing about who has its name now
        assert (await room.publish("b")).delivered == 20
        assert room.flusher.rounds[-1].apart == {}
        await settle()
        assert (successor.got(), room.one.got()) == ("b", "")


async def test_a_writer_that_ends_because_the_link_broke_does_not_bring_it_back() -> None:
    async with open_room() as room:
        room.one.wire.room = 0
        await room.publish("a")
        await settle()
        room.one.wire.fail(ConnectionClosed(1006, "gone"))
        await settle()
        assert (await room.publish("b")).delivered == 19


async def test_one_that_is_evicted_while_a_round_collects_is_left_out() -> None:
    budget = ByteBudget(20)
    async with open_room(budget) as room:
        for taker in (room.one, room.other):
            taker.wire.room = 0
        await room.publish("a")
        await settle()
        await room.publish("b" * 6, "c" * 6)
        assert budget.evicted > 0
        await settle()
        assert room.takers[0].got() == "a" + "b" * 6 + "c" * 6


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_who_closes_sends_what_was_published_before() -> None:
    async with open_room() as room:
        await room.publish("a")
        await room.one.outbox.drained()
        assert room.one.got() == "a"
        await room.publish("b")
        await room.one.outbox.aclose()
        await settle()
        assert (room.one.got(), room.other.got()) == ("ab", "ab")


async def test_drained_waits_for_a_round() -> None:
    async with open_room() as room:
        room.one.wire.room = 0
        await room.publish("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(room.one.outbox.drained)
            await settle()
            assert room.one.got() == ""
            assert nursery.child_tasks
            room.one.wire.read(PLENTY)
        assert room.one.got() == "a"


async def test_who_is_forgotten_keeps_the_first_frame_alone_and_is_told_no_more() -> None:
    async with open_room() as room:
        await room.publish("a", "b")
        room.one.outbox.forget(ConnectionClosed(4008, "too slow"))
        assert room.one.outbox.queued_bytes == len(text_frame(b"a"))
        assert (await room.publish("c")).delivered == 19
        await settle()
        assert (room.one.got(), room.other.got()) == ("", "abc")


async def test_who_breaks_off_counts_no_more_though_the_round_is_not_sent() -> None:
    async with open_room() as room:
        await room.publish("a")
        room.one.outbox.break_off(ConnectionClosed(1006, "gone"))
        assert (await room.publish("b")).delivered == 19
        await settle()
        assert (room.one.got(), room.other.got()) == ("", "ab")


async def test_a_link_that_fails_in_a_round_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async with open_room() as room:
        room.one.wire.fail(ConnectionClosed(1006, "gone"))
        room.other.wire.fail(ValueError("a transport's bug"))
        await room.publish("a")
        await settle()
        assert {taker.got() for taker in room.takers if taker not in (room.one, room.other)} == {"a"}
        assert room.one.outbox.closed is not None
        assert room.other.wire.aborted
        assert [record.message for record in caplog.records] == ["a transport failed"]


async def test_a_link_that_fails_as_it_takes_its_share_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async with open_room(outbox_messages=2) as room:
        assert room.one.outbox.offer(frame("x"))
        await room.publish("a", "b")
        room.one.wire.fail(ValueError("a transport's bug"))
        await room.publish("c")  # the next round: "x", "a" and "b" are too many, so they must leave
        await settle()
        assert room.one.wire.aborted
        assert room.other.got() == "abc"
        assert [record.message for record in caplog.records] == ["a transport failed"]


# --- another round, and one that is half sent ------------------------------------------------------------------------


async def test_what_is_published_to_others_comes_behind_what_was_before() -> None:
    async with open_room() as room:
        for number in range(20):
            await room.driver.subscribe(str(number), "u")
        await room.publish("a")
        await room.hub.publish(PublishEnvelope("u", "X"), b"b")  # the same clients: still the same round
        await room.driver.unsubscribe("3", "u")
        await room.hub.publish(PublishEnvelope("u", "X"), b"c")
        await room.publish("d")
        await settle()
        assert (room.takers[3].got(), room.one.got()) == ("abd", "abcd")
        assert room.one.wire.writes == [4]


async def test_a_new_round_stands_behind_one_that_is_half_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_wskit._flusher._FLUSHES_PER_PASS", 5)
    async with open_room() as room:
        await room.publish("a")
        while room.takers[0].got() != "a":
            await trio.lowlevel.checkpoint()
        assert room.takers[19].got() == ""
        await room.publish("b")
        await room.driver.unsubscribe("3", "t")
        await room.publish("c")
        assert room.takers[19].outbox.offer(frame("d"))
        await settle()
        assert room.takers[3].got() == "ab"
        assert room.takers[19].got() == "abcd"
        assert room.takers[18].got() == "abc"


async def test_a_large_round_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_wskit._flusher._FLUSHES_PER_PASS", 5)
    async with open_room() as room:
        await room.publish("a")
        seen: set[int] = set()
        while 20 not in seen:
            seen.add(sum(taker.got() == "a" for taker in room.takers))
            await trio.lowlevel.checkpoint()
        assert seen <= {0, 5, 10, 15, 20}
        assert len(seen) > 2  # Trio runs the tasks of a pass in any order, so not each step is seen
