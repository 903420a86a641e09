"""`Feeds` by itself: what comes in whatever order goes out in the order of its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.feed_rig import Outlet, T, come, running
from trio_wskit._core.history import Position
from trio_wskit.pubsub._feeds import Feeds


async def test_what_overtakes_waits_for_what_is_before_it(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        fans = come(feeds, 1, 3, 4, 2, 2, 5)
        assert outlet.got["a"] == [1, 2, 3, 4, 5]
        assert [fan is None for fan in fans] == [False, True, True, False, True, False]
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 2, 3, 4, 5]


async def test_what_does_not_come_is_read_from_the_store(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2, 3, 4)
        come(feeds, 1, 4)
        await trio.sleep(0.09)
        assert outlet.reads == 0
        await trio.sleep(0.1)
        assert outlet.got["a"] == [1, 2, 3, 4]
        assert outlet.reads == 1


async def test_what_the_store_has_not_either_is_left_out(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(4, 5)  # 2 and 3 were trimmed
        come(feeds, 1, 5)
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 4, 5]


async def test_what_the_store_has_lost_in_between_is_left_out(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.newest = 9  # and nothing is kept
        come(feeds, 1, 5, 7)
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 5, 7]
        come(feeds, 8)
        assert outlet.got["a"] == [1, 5, 7, 8]


async def test_what_is_newer_than_the_reading_goes_on_waiting(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2)
        come(feeds, 1, 4)  # 3 is on its way into the store
        await trio.sleep(0.15)
        assert outlet.got["a"] == [1, 2]
        outlet.keep(3)
        await trio.sleep(0.3)
        assert outlet.got["a"] == [1, 2, 3, 4]


async def test_after_five_seconds_without_a_store_it_goes_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as (feeds, outlet):
        outlet.error = OSError("gone")
        come(feeds, 1, 3, 4)
        await trio.sleep(4)
        assert outlet.got["a"] == [1]
        await trio.sleep(2)
        assert outlet.got["a"] == [1, 3, 4]
        assert "messages of t are left out: OSError" in caplog.text
        come(feeds, 5)
        assert outlet.got["a"] == [1, 3, 4, 5]


async def test_without_a_store_another_epoch_begins_with_what_came(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as (feeds, outlet):
        outlet.error = OSError("gone")
        come(feeds, 1)
        come(feeds, 3, epoch="f")
        await trio.sleep(6)
        assert outlet.got["a"] == [1, ("f", 2), 3]
        assert caplog.records


async def test_without_a_store_nothing_waits_is_no_reason_to_go_anywhere(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as (feeds, outlet):
        outlet.error = OSError("gone")
        come(feeds, 1)
        feeds.doubt(T)
        await trio.sleep(6)
        come(feeds, 2)
        assert outlet.got["a"] == [1, 2]
        assert caplog.records


async def test_another_epoch_is_told_before_its_first_message(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1, 2)
        outlet.epoch = "f"
        outlet.keep(1, 2, 3)
        come(feeds, 2, epoch="f")
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 2, ("f", 0), 1, 2, 3]


async def test_another_epoch_without_any_message_is_told(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        outlet.epoch = "f"
        feeds.doubt()
        await trio.sleep(1)
        assert outlet.got["a"] == [1, ("f", 0)]


async def test_what_is_late_and_of_an_old_epoch_is_dropped(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.epoch = "f"
        outlet.keep(1)
        come(feeds, 1, epoch="f")
        come(feeds, 9, epoch="e")
        await trio.sleep(1)
        come(feeds, 2, epoch="f")
        assert outlet.got["a"] == [1, 2]


async def test_what_moves_on_while_the_store_is_read_is_looked_at_again(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        come(feeds, 1, epoch="f")
        await trio.sleep(0.105)  # it reads
        come(feeds, 2)
        outlet.epoch = "f"
        outlet.keep(1)
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 2, ("f", 0), 1]


async def test_only_so_many_wait_and_the_store_has_the_others(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(*range(1, 2001))
        come(feeds, 1, *range(3, 2001))
        inside: Any = feeds
        assert len(inside._feeds[T].waiting) == 1000
        await trio.sleep(1)
        assert outlet.got["a"] == [*range(1, 2001)]
        assert inside._feeds[T].waiting == {}


async def test_while_somebody_reads_the_store_nothing_goes_out_and_not_too_much_waits(
    autojump_clock: MockClock,
) -> None:
    async with running() as (feeds, outlet):
        outlet.got.clear()
        outlet.held.add("a")
        come(feeds, *range(1, 1501))
        inside: Any = feeds
        assert len(inside._feeds[T].waiting) == 1000
        outlet.held.clear()
        outlet.got["a"] = []
        outlet.keep(*range(1, 1501))
        feeds.joined(T, "a", Position("e", 2), alone=True)
        assert outlet.got["a"] == [*range(3, 1001)]
        await trio.sleep(1)  # the store has the others, and is asked although nothing newer comes
        assert outlet.got["a"] == [*range(3, 1501)]


async def test_who_learned_nothing_begins_with_what_came(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.held.add("a")
        come(feeds, 4, 5)
        assert outlet.got["a"] == []
        feeds.begin(T)  # another one is still at it
        assert outlet.got["a"] == []
        outlet.held.clear()
        feeds.begin(T)
        assert outlet.got["a"] == [4, 5]
        feeds.begin(T)
        feeds.begin("nothing came there")
        assert outlet.got["a"] == [4, 5]


async def test_who_is_not_done_is_told_from_where_on_messages_go_out(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.held.update("ab")
        come(feeds, 2, 4)
        outlet.held.remove("a")
        feeds.joined(T, "a", Position("e", 3), alone=False)
        assert outlet.begun == [("e", 3)]  # 2 may be news to the other one, and does not come
        assert outlet.got["a"] == [4]
        feeds.joined(T, "b", Position("e", 4), alone=False)  # all up to there has gone out
        feeds.joined("u", "a", Position("f", 1), alone=True)
        assert outlet.begun == [("e", 3)]


async def test_who_read_further_gets_nothing_twice(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        outlet.got["b"] = []
        feeds.joined(T, "b", Position("e", 3), alone=False)
        come(feeds, 2, 3, 4)
        assert outlet.got == {"a": [1, 2, 3, 4], "b": [4]}


async def test_who_read_further_makes_the_others_catch_up(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2, 3)
        come(feeds, 1)
        outlet.got["b"] = []
        feeds.joined(T, "b", Position("e", 3), alone=False)
        await trio.sleep(1)  # 2 and 3 were lost on their way here
        assert outlet.got == {"a": [1, 2, 3], "b": []}
        come(feeds, 4)
        assert outlet.got == {"a": [1, 2, 3, 4], "b": [4]}


async def test_who_is_alone_sets_the_place(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        feeds.joined(T, "a", Position("e", 7), alone=True)
        come(feeds, 7, 8)
        feeds.joined(T, "a", Position("e", 5), alone=True)  # it is further already
        come(feeds, 9)
        feeds.joined(T, "a", Position("f", 2), alone=True)
        come(feeds, 3, epoch="f")
        assert outlet.got["a"] == [1, 8, 9, 3]


async def test_who_read_another_epoch_gets_only_that(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        outlet.epoch = "f"
        outlet.keep(1, 2)
        outlet.got["b"] = []
        feeds.joined(T, "b", Position("f", 1), alone=False)
        come(feeds, 2)  # still of the old one
        await trio.sleep(1)
        assert outlet.got == {"a": [1, 2, ("f", 0), 1, 2], "b": [2]}


async def test_what_nobody_waits_for_any_more_is_waited_for_here(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.must_wait = True
        come(feeds, 1, 3, 2)
        first, second, third = outlet.fans
        await trio.sleep(2)
        assert (first.ended, second.ended) == (False, False)  # their publishers do that
        assert (third.waited, third.ended) == (True, True)


async def test_what_nobody_can_wait_for_is_given_up(autojump_clock: MockClock) -> None:
    outlet = Outlet()
    feeds = Feeds(outlet)  # it does not run
    outlet.must_wait = True
    come(feeds, 1, 3, 2)
    assert [fan.ended for fan in outlet.fans] == [False, False, True]
    await trio.lowlevel.checkpoint()


async def test_topics_that_nobody_wants_are_forgotten(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        for number in range(100):
            come(feeds, 1, topic=f"t:{number}")
            outlet.unwanted.add(f"t:{number}")
        assert len(feeds) <= 2
        feeds.doubt()
        outlet.got.clear()
        assert come(feeds, 1) == [None]
        feeds.joined(T, "a", Position("e", 1), alone=True)
        feeds.begin(T)
        await trio.sleep(1)
        assert outlet.reads == 0


async def test_many_topics_in_doubt_are_read_a_few_at_a_time(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        for number in range(100):
            come(feeds, 1, topic=f"t:{number}")
        outlet.keep(1)
        feeds.doubt()
        feeds.doubt()
        await trio.sleep(2)
        assert outlet.reads == 100
        assert outlet.most_at_once == 16


async def test_while_a_message_is_on_its_way_to_many_the_next_one_waits(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(*range(1, 6))
        come(feeds, 1)
        outlet.busy = True
        assert come(feeds, 2) == [None]
        come(feeds, 5)
        await trio.sleep(1)
        assert outlet.got["a"] == [1]
        outlet.busy = False
        feeds.go_on("nothing came there")
        feeds.go_on(T)
        assert outlet.got["a"] == [1, 2, 3, 4, 5]
        feeds.go_on(T)
        outlet.busy = True
        outlet.epoch = "f"
        come(feeds, 1, epoch="f")
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 2, 3, 4, 5]
        outlet.busy = False
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 2, 3, 4, 5, ("f", 0), 1, 2, 3, 4, 5]
