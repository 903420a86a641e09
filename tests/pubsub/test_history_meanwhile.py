"""What is published, lost, cancelled or left while a subscription with its past is under way."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.pubsub.drivers import ScriptedDriver, SlowStore
from tests.pubsub.histories import KEEP, T, offsets, say
from tests.sessions import Said, open_house
from trio_wskit import (
    Limits,
    PubSubError,
    TopicPattern,
    TopicRules,
)
from trio_wskit._core.history import NOT_KEPT, Position, Recovery
from trio_wskit.pubsub.history import MemoryHistory


async def test_what_is_published_while_the_driver_works_comes_after_what_was_missed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    driver = ScriptedDriver()
    async with open_house(history=KEEP, pubsub=driver) as house:
        first = await say(house, "1")
        await say(house, "2")
        client = await house.connect()
        driver.pause = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                assert await client.session.topics.subscribe(T, since=first) == Recovery(
                    True, Position(first.epoch, 4), 3
                )

            await trio.sleep(1)
            nursery.start_soon(say, house, "3")
            await trio.sleep(1)
            nursery.start_soon(say, house, "4")
        driver.pause = 0
        await say(house, "5")
        assert await client.texts() == ["2", "3", "4", "5"]


async def test_a_store_that_waits_holds_back_what_is_new(autojump_clock: trio.testing.MockClock) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        await say(house, "2")
        client = await house.connect()
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                assert await client.session.topics.subscribe(T, since=first) == Recovery(
                    True, Position(first.epoch, 2), 1
                )

            await trio.sleep(1)
            await say(house, "3", "4")
            assert await client.heard() == []
        await say(house, "5")
        assert await offsets(client) == [2, 3, 4, 5]


@pytest.mark.parametrize("count", [3, 4])
async def test_more_than_can_be_held_back_is_not_recovered(count: int, autojump_clock: trio.testing.MockClock) -> None:
    store = SlowStore()
    limits = Limits(ping_interval=math.inf, outbox_messages=3)
    async with open_house(history=KEEP, history_store=store, limits=limits) as house:
        first = await say(house, "1")
        client, other = await house.connect(), await house.connect()
        await other.session.topics.subscribe(T)
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                newest = Position(first.epoch, 1 + count)
                recovery = await client.session.topics.subscribe(T, since=first)
                assert recovery == (Recovery(True, newest, 3) if count == 3 else Recovery(False, newest))

            await trio.sleep(1)
            for number in range(count):
                await say(house, str(2 + number))
        await say(house, "next")
        assert await offsets(client) == ([2, 3, 4, 5] if count == 3 else [6])
        assert len(await offsets(other)) == count + 1


async def test_what_was_held_with_a_hole_in_it_is_not_recovered(autojump_clock: trio.testing.MockClock) -> None:
    """Another one read later, and was done sooner: what it got from the store did not come by here again."""
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        slow, quick = await house.connect(), await house.connect()
        begun = (await store.read(T, KEEP["kept:*"])).position
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                recovery = await slow.session.topics.subscribe(T, since=begun)
                assert recovery == Recovery(False, Position(begun.epoch, 3))

            await trio.sleep(1)
            await say(house, "1", "2")
            store.after_read = 1
            assert (await quick.session.topics.subscribe(T, since=begun)).replayed == 2
            await say(house, "3")
        await say(house, "4")
        assert await slow.texts() == ["4"]
        assert await quick.texts() == ["1", "2", "3", "4"]


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("what", ["on its way", "here", "of another epoch"])
async def test_who_read_before_the_first_that_is_done_misses_nothing_untold(
    what: str, asks: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The first sets the place from where on messages go out, and it read later than another, who is done later."""
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        slow, quick = await house.connect(), await house.connect()
        begun = (await store.read(T, KEEP["kept:*"])).position
        told: list[Recovery] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                told.append(await slow.session.topics.subscribe(T, since=begun if asks else None))

            store.after_read = 5
            await trio.sleep(1)
            if what == "of another epoch":
                store.inner.clear()
            store.append_delays = [(0, 0 if what == "here" else 9)]  # whoever publishes it knows late
            nursery.start_soon(say, house, "1")
            await trio.sleep(1)
            store.after_read = 1
            first = (await quick.session.topics.subscribe(T)).position
            assert first is not None
            assert first.offset == 1
            assert (first.epoch == begun.epoch) == (what != "of another epoch")
        await say(house, "2")
        assert told == [Recovery(False, first)]
        assert await offsets(slow) == [2]
        assert await offsets(quick) == [2]


async def test_without_since_the_stream_begins_at_the_position_that_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        client = await house.connect()
        store.after_read = store.before_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def begin() -> None:
                assert await client.session.topics.subscribe(T) == Recovery(False, Position(first.epoch, 2))

            await trio.sleep(1)
            await say(house, "2")
            await trio.sleep(5)
            await say(house, "3")
        await say(house, "4")
        assert await offsets(client) == [3, 4]


async def test_who_is_subscribed_already_loses_nothing_to_another_subscribe(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        client = await house.connect()
        await client.session.topics.subscribe(TopicPattern("kept:*"))
        store.after_read = store.before_read = 5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.session.topics.subscribe, T)
            await trio.sleep(1)
            await say(house, "1")
            await trio.sleep(5)
            await say(house, "2")
        await say(house, "3")
        assert await offsets(client) == [1, 2, 3]


async def test_cancelled_while_the_store_reads_it_is_not_subscribed(autojump_clock: trio.testing.MockClock) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        client = await house.connect()
        store.after_read = 5
        with trio.move_on_after(1):
            await client.session.topics.subscribe(T, since=first)
        assert T not in client.session.topics
        assert not house.app._driver.has_topic(T)  # pyright: ignore[reportPrivateUsage]
        store.after_read = 0
        await say(house, "2")
        assert await client.heard() == []
        assert (await client.session.topics.subscribe(T, since=first)).recovered
        assert await client.texts() == ["2"]


async def test_cancelled_who_was_subscribed_before_still_is_and_gets_what_was_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        first = await say(house, "1")
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                with trio.move_on_after(2):
                    await client.session.topics.subscribe(T, since=first)

            await trio.sleep(1)
            await say(house, "2")
            await say(house, "3", exclude=client.client_id)
        await say(house, "4")
        heard = await client.heard()
        assert [(one["type"], one["meta"]["offset"]) for one in heard] == [
            ("SAID", 1),
            ("SAID", 2),
            ("$ws:position", 3),
            ("SAID", 4),
        ]


async def test_a_client_that_leaves_meanwhile_gets_nothing(autojump_clock: trio.testing.MockClock) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        client = await house.connect()
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                with pytest.raises(PubSubError, match="the client has left"):
                    await client.session.topics.subscribe(T, since=first)

            await trio.sleep(1)
            await client.leave()


async def test_a_store_that_fails_recovers_nothing_and_what_is_new_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        client = await house.connect()
        store.error = OSError("gone")
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                assert await client.session.topics.subscribe(T, since=first) is NOT_KEPT

            await trio.sleep(1)
            failed = await house.app.publish(T, Said("2"))
            assert (failed.ok, failed.error, failed.cause) == (False, "ADAPTER_ERROR", store.error)
            store.error = None
            await say(house, "3")
            store.error = OSError("gone")
        store.error = None
        await say(house, "4")
        assert await client.texts() == ["3", "4"]
        assert house.logged() == [
            "the history of kept:1 failed: OSError",
            "the history of kept:1 cannot be read: OSError",
        ]


@pytest.mark.parametrize("others", [0, 1])
async def test_another_epoch_that_begins_meanwhile_is_told(others: int, autojump_clock: trio.testing.MockClock) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        client = await house.connect()
        for _ in range(others):
            await (await house.connect()).session.topics.subscribe(T)
        store.after_read = 5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.session.topics.subscribe, T, since=first))
            await trio.sleep(1)
            store.inner.clear()
            second = await say(house, "2")
            assert second.epoch != first.epoch
        store.after_read = 0
        await say(house, "3")
        await trio.sleep(6)
        notice, *heard = await client.heard()
        assert notice["type"] == "$ws:position"
        assert (notice["meta"]["epoch"], notice["meta"]["offset"]) == (second.epoch, 0)
        assert [one["payload"]["text"] for one in heard] == ["2", "3"]


async def test_publishes_that_wait_for_the_store_have_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    store = SlowStore()
    store.before_append = 5
    rules = TopicRules(max_publishing=2)
    async with open_house(history=KEEP, history_store=store, topics=rules) as house, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(say, house, "1")
        await trio.sleep(1)
        refused = await house.app.publish(T, Said("3"))
        assert (refused.error, refused.details) == ("BACKPRESSURE", {"limit": 2})


async def test_a_driver_gets_the_position_from_a_store_that_is_shared(autojump_clock: trio.testing.MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(history=KEEP, pubsub=driver, history_store=SlowStore()) as house:
        position = await say(house, "1")
        (envelope,) = driver.envelopes
        assert (envelope.meta["epoch"], envelope.meta["offset"]) == (position.epoch, 1)


@pytest.mark.parametrize("store", [MemoryHistory, SlowStore])
async def test_what_is_kept_and_not_sent_on_is_a_failure_with_a_position(
    store: Any, autojump_clock: trio.testing.MockClock
) -> None:
    driver = ScriptedDriver()
    async with open_house(history=KEEP, pubsub=driver, history_store=store()) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        driver.failing = {"publish"}
        result = await house.app.publish(T, Said("1"))
        assert (result.ok, result.error, result.cause) == (False, "ADAPTER_ERROR", driver.error)
        assert result.position is not None
        driver.failing.clear()
        assert (await say(house, "2")).offset == 2
        assert await client.texts() == ["1", "2"]


async def test_who_is_left_out_meanwhile_is_told_the_position_in_the_place_of_the_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        client, other = await house.connect(), await house.connect()
        await other.session.topics.subscribe(T)
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def resume() -> None:
                assert await client.session.topics.subscribe(T, since=first) == Recovery(
                    True, Position(first.epoch, 4), 3
                )

            await trio.sleep(1)
            await say(house, "2")
            await say(house, "3", exclude=client.client_id)
            await say(house, "4")
        heard = [(one["type"], one["meta"]["offset"]) for one in await client.heard()]
        assert heard == [("SAID", 2), ("$ws:position", 3), ("SAID", 4)]
        assert await offsets(other) == [2, 3, 4]
