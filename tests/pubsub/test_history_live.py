"""Who is live and has no position in a topic: by a pattern, or because the store did not answer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import SlowStore
from tests.pubsub.histories import KEEP, T, offsets, say
from tests.sessions import Client, House, open_house
from trio_wskit import TopicPattern
from trio_wskit._core.history import NOT_KEPT, Position, Recovery


async def live(house: House, store: SlowStore, how: str) -> Client:
    client = await house.connect()
    if how == "by a pattern":
        await client.session.topics.subscribe(TopicPattern("kept:*"))
    else:
        store.error = OSError("gone")
        assert await client.session.topics.subscribe(T) is NOT_KEPT
        store.error = None
        assert house.logged() == ["the history of kept:1 cannot be read: OSError"]
    return client


HOW = pytest.mark.parametrize("how", ["by a pattern", "its reading failed"])


@HOW
async def test_it_loses_nothing_to_the_first_who_read_the_store(how: str, autojump_clock: MockClock) -> None:
    """What that one got from the store is on its way here, and news to whoever was live before."""
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        begun = (await store.read(T, KEEP["kept:*"])).position
        one = await live(house, store, how)
        store.append_delays = [(0.02, 0.03), (0, 0.05)]  # their publisher knows when both are kept
        house.nursery.start_soon(say, house, "1", "2")
        await trio.sleep(0.01)
        named = await house.connect()
        assert await named.session.topics.subscribe(T, since=begun) == Recovery(True, Position(begun.epoch, 1), 1)
        await trio.sleep(1)
        await say(house, "3")
        assert await offsets(one) == [1, 2, 3]
        assert await offsets(named) == [1, 2, 3]


@HOW
async def test_who_read_the_store_loses_nothing_to_it(how: str, autojump_clock: MockClock) -> None:
    """The first message that comes here is not the next after the reading."""
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        await say(house, "1", "2")
        one = await live(house, store, how)
        named = await house.connect()
        begun = (await named.session.topics.subscribe(T)).position
        assert begun is not None
        assert begun.offset == 2
        store.append_delays = [(0, 0), (0, 9)]  # the next but one knows first
        house.nursery.start_soon(say, house, "3")
        await trio.sleep(0.01)
        await say(house, "4")
        await trio.sleep(1)
        assert await offsets(named) == [3, 4]
        assert await offsets(one) == [3, 4]
        await trio.sleep(9)
        await say(house, "5")
        assert await offsets(named) == await offsets(one) == [5]


@HOW
async def test_who_read_the_store_and_is_done_late_loses_nothing_to_it(how: str, autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        one = await live(house, store, how)
        slow, quick = await house.connect(), await house.connect()
        store.after_read = 0.5
        async with trio.open_nursery() as nursery:
            told: list[Recovery] = []

            @nursery.start_soon
            async def late() -> None:
                told.append(await slow.session.topics.subscribe(T, since=first))

            await trio.sleep(0.1)
            store.after_read = 0
            store.append_delays = [(0, 9)]
            house.nursery.start_soon(say, house, "2")
            await trio.sleep(0.01)
            assert (await quick.session.topics.subscribe(T)).position == Position(first.epoch, 2)
        assert told == [Recovery(True, first, 0)]
        await say(house, "3")
        await trio.sleep(1)
        assert await offsets(slow) == [2, 3]
        assert await offsets(quick) == [3]
        assert await offsets(one) == [2, 3]


@HOW
async def test_another_epoch_that_the_first_who_read_the_store_does_not_know_is_told(
    how: str, autojump_clock: MockClock
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        one = await live(house, store, how)
        named = await house.connect()
        assert (await named.session.topics.subscribe(T)).position == first
        store.inner.clear()
        second = await say(house, "2")
        await trio.sleep(1)
        for client in (named, one):
            assert [(m["type"], m["meta"]["epoch"], m["meta"]["offset"]) for m in await client.heard()] == [
                ("$ws:position", second.epoch, 0),
                ("SAID", second.epoch, 1),
            ]
