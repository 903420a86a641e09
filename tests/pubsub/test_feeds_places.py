"""`Feeds`: where a topic begins here, when some subscribers have a place in it and others have none."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.feed_rig import T, come, running
from trio_wskit._core.history import Position

E = "e"


async def test_the_first_that_comes_sets_the_place_of_who_has_none(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.got["b"] = []
        feeds.joined(T, "b", Position(E, 2), alone=False)
        come(feeds, 1, 2, 3)
        assert outlet.got == {"a": [1, 2, 3], "b": [3]}


async def test_it_is_no_later_than_what_those_need_who_have_one(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2, 3, 4)
        outlet.got |= {"b": [], "c": []}
        feeds.joined(T, "b", Position(E, 2), alone=False)
        feeds.joined(T, "c", Position(E, 1), alone=False)  # it read before, and is done later
        feeds.joined(T, "b", Position(E, 3), alone=False)
        come(feeds, 4)
        await trio.sleep(1)
        assert outlet.got == {"a": [2, 3, 4], "b": [4], "c": [2, 3, 4]}


async def test_who_has_left_sets_no_place(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.got["b"] = []
        feeds.joined(T, "b", Position(E, 2), alone=False)
        del outlet.got["b"]
        feeds.doubt()
        come(feeds, 7)
        assert outlet.got == {"a": [7]}
        await trio.sleep(1)


async def test_an_epoch_that_one_knows_is_told_to_the_others_before_its_first_message(
    autojump_clock: MockClock,
) -> None:
    async with running() as (feeds, outlet):
        outlet.got |= {"b": [], "c": []}
        feeds.joined(T, "b", Position(E, 2), alone=False)
        outlet.epoch = "f"
        outlet.keep(1)
        feeds.joined(T, "c", Position("f", 1), alone=False)
        await trio.sleep(1)
        assert outlet.got == {"a": [("f", 0), 1], "b": [("f", 0), 1], "c": []}
        come(feeds, 2, epoch="f")
        assert outlet.got == {"a": [("f", 0), 1, 2], "b": [("f", 0), 1, 2], "c": [2]}


async def test_an_epoch_that_nobody_knows_is_told_before_its_first_message(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.got["b"] = []
        feeds.joined(T, "b", Position(E, 2), alone=False)
        outlet.epoch = "f"
        outlet.keep(1)
        come(feeds, 1, epoch="f")
        await trio.sleep(1)
        assert outlet.got == {"a": [("f", 0), 1], "b": [("f", 0), 1]}


async def test_what_is_missing_at_the_end_is_found_though_nothing_has_set_the_place(
    autojump_clock: MockClock,
) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2)
        outlet.got["b"] = []
        feeds.joined(T, "b", Position(E, 2), alone=False)
        feeds.doubt()
        await trio.sleep(1)
        assert outlet.got == {"a": [], "b": []}
        outlet.keep(3)
        feeds.doubt()
        await trio.sleep(1)
        assert outlet.got == {"a": [3], "b": [3]}


async def test_who_joins_while_the_end_is_looked_for_is_not_overlooked(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2, 3)
        outlet.got |= {"b": [], "c": []}
        feeds.joined(T, "b", Position(E, 2), alone=False)
        feeds.doubt()
        await trio.sleep(0.105)  # it reads
        feeds.joined(T, "c", Position(E, 1), alone=False)
        await trio.sleep(1)
        assert outlet.got == {"a": [2, 3], "b": [3], "c": [2, 3]}


async def test_who_leaves_while_the_end_is_looked_for_sets_no_place(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2, 3)
        outlet.got["b"] = []
        feeds.joined(T, "b", Position(E, 2), alone=False)
        feeds.doubt()
        await trio.sleep(0.105)
        del outlet.got["b"]
        await trio.sleep(1)
        assert outlet.got == {"a": []}
        assert outlet.reads == 1


@pytest.mark.parametrize(("position", "gets"), [(1, [2, 3, 4]), (2, [3, 4]), (3, [3, 4])])
async def test_what_waited_goes_out_to_who_has_become_live_meanwhile(
    position: int, gets: list[object], autojump_clock: MockClock
) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1, 2, 3, 4)
        outlet.held.add("a")
        come(feeds, 3, 4)
        outlet.held.clear()
        outlet.got["b"] = []  # by a pattern
        feeds.joined(T, "a", Position(E, position), alone=False)
        await trio.sleep(1)
        assert outlet.got == {"a": [*range(position + 1, 5)], "b": gets}


async def test_what_waited_goes_out_before_what_comes_when_somebody_is_live(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.held.add("a")
        come(feeds, 4)
        outlet.held.clear()
        outlet.got["b"] = []
        come(feeds, 5)
        assert outlet.got["b"] == [4, 5]


async def test_what_could_not_wait_is_read_for_who_has_become_live_meanwhile(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(*range(1, 1501))
        outlet.held.add("a")
        come(feeds, *range(1, 1501))
        outlet.held.clear()
        outlet.got["b"] = []
        feeds.joined(T, "a", Position(E, 1200), alone=False)
        await trio.sleep(1)
        assert outlet.got == {"a": [*range(1201, 1501)], "b": [*range(1, 1501)]}


async def test_what_came_of_another_epoch_than_was_read_is_looked_at(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.epoch = "f"
        outlet.keep(1, 2)
        outlet.held.add("a")
        come(feeds, 9)  # late
        outlet.held.clear()
        outlet.got["b"] = []
        feeds.joined(T, "a", Position("f", 1), alone=False)
        await trio.sleep(1)
        assert outlet.got == {"a": [2], "b": [2]}


# Who read further, and what becomes of that.


async def test_who_read_further_gets_nothing_twice_after_the_store_has_failed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        outlet.got["b"] = []
        outlet.error = OSError("gone")
        feeds.joined(T, "b", Position(E, 3), alone=False)
        await trio.sleep(6)
        assert caplog.records
        come(feeds, 2, 3, 4)
        assert outlet.got == {"a": [1, 2, 3, 4], "b": [4]}


async def test_who_read_another_epoch_is_told_where_it_goes_on_after_the_store_has_failed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        outlet.got["b"] = []
        outlet.error = OSError("gone")
        feeds.joined(T, "b", Position("f", 3), alone=False)
        come(feeds, 2)
        await trio.sleep(6)
        assert caplog.records
        come(feeds, 3)
        assert outlet.got == {"a": [1, 2, 3], "b": [(E, 2), 3]}


async def test_who_reads_another_epoch_while_the_old_one_is_read_hears_nothing_of_that_one(
    autojump_clock: MockClock,
) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(1)
        come(feeds, 1)
        feeds.doubt()
        await trio.sleep(0.105)  # it reads
        outlet.got["b"] = []
        feeds.joined(T, "b", Position("f", 1), alone=False)
        await trio.sleep(0.01)
        assert outlet.reads == 1
        come(feeds, 2)  # late
        outlet.epoch = "f"
        await trio.sleep(1)
        assert outlet.got == {"a": [1, 2, ("f", 0), 1], "b": []}


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
async def test_who_read_an_epoch_that_is_over_when_the_store_is_read_goes_on_with_the_newest(
    when: str, autojump_clock: MockClock
) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        outlet.got["b"] = []
        feeds.joined(T, "b", Position("f", 1), alone=False)
        outlet.epoch = "g"
        outlet.keep(1)
        come(feeds, 1, epoch="f")
        if when == "while it is read":
            await trio.sleep(0.105)
        come(feeds, 1, epoch="g")
        await trio.sleep(1)
        assert outlet.got == {"a": [1, ("g", 0), 1], "b": [("g", 0), 1]}


# What is here, and what the store has not.


async def test_what_waits_is_not_left_out_because_the_store_has_it_no_more(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(5, 6)  # 1 to 4 were trimmed
        come(feeds, 1, 3, 6)
        await trio.sleep(1)
        assert outlet.got["a"] == [1, 3, 5, 6]


async def test_what_waits_of_a_new_epoch_is_not_left_out_because_the_store_has_it_no_more(
    autojump_clock: MockClock,
) -> None:
    async with running() as (feeds, outlet):
        come(feeds, 1)
        outlet.epoch = "f"
        outlet.keep(5, 6)
        come(feeds, 2, 3, epoch="f")
        await trio.sleep(1)
        assert outlet.got["a"] == [1, ("f", 1), 2, 3, 5, 6]


async def test_what_is_published_here_is_waited_for_though_the_store_has_it_no_more(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(4, 5)
        with feeds.publishing(T):
            come(feeds, 1, 4, 5)
            await trio.sleep(2)
            assert outlet.got["a"] == [1]
            with feeds.publishing(T):  # one that began later does not matter
                come(feeds, 3)
                await trio.sleep(1)
                come(feeds, 2)
        assert outlet.got["a"] == [1, 2, 3, 4, 5]
        with feeds.publishing("u"):
            come(feeds, 7)
            await trio.sleep(1)
        assert outlet.got["a"] == [1, 2, 3, 4, 5]  # the store does not know of 6
        outlet.keep(7)
        outlet.store.clear()
        await trio.sleep(1)
        with feeds.publishing(T):
            await trio.sleep(1)
        assert outlet.got["a"] == [1, 2, 3, 4, 5, 7]


async def test_what_is_published_here_is_waited_for_only_so_long(autojump_clock: MockClock) -> None:
    async with running() as (feeds, outlet):
        outlet.keep(4, 5)
        with feeds.publishing(T):
            come(feeds, 1, 5)
            await trio.sleep(4)
            assert outlet.got["a"] == [1]
            await trio.sleep(2)
            assert outlet.got["a"] == [1, 4, 5]
