"""Who is subscribed already and subscribes again: nothing comes twice that was not asked for, and nothing is lost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import SlowStore
from tests.pubsub.histories import KEEP, T, offsets, say
from tests.sessions import Client, House, open_house
from trio_wskit import Limits
from trio_wskit._core.history import NOT_KEPT, Position, Recovery


async def behind_its_client(house: House, store: SlowStore) -> tuple[Client, Client, Position]:
    """A client that got message 2 from the store, before it has come here; and one that waits for it."""
    first = await say(house, "1")
    client, other = await house.connect(), await house.connect()
    for one in (other, client):
        await one.session.topics.subscribe(T)
    store.append_delays = [(0, 0.05)]  # whoever publishes it knows late
    house.nursery.start_soon(say, house, "2")
    await trio.sleep(0.01)
    assert await client.session.topics.subscribe(T, since=first) == Recovery(True, Position(first.epoch, 2), 1)
    assert await offsets(client) == [2]
    return client, other, first


@pytest.mark.parametrize("how", ["cancelled", "the store fails"])
async def test_what_it_had_from_the_store_does_not_come_again_after_a_subscribe_of_which_nothing_came(
    how: str, autojump_clock: MockClock
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        client, other, first = await behind_its_client(house, store)
        store.after_read = 1
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def again() -> None:
                if how == "cancelled":
                    with trio.move_on_after(0.5):
                        await client.session.topics.subscribe(T, since=first)
                else:
                    assert await client.session.topics.subscribe(T) is NOT_KEPT

            await trio.sleep(0.2)
            assert await offsets(other) == [2]
            store.error = OSError("gone") if how == "the store fails" else None
        store.error = None
        await say(house, "3")
        assert await offsets(client) == [3]
        assert await offsets(other) == [3]
        assert len(house.logged()) == (how == "the store fails")


@pytest.mark.parametrize("asks", [True, False])
async def test_what_it_had_from_the_store_comes_again_only_where_it_asks_for_it(
    asks: bool, autojump_clock: MockClock
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        client, other, first = await behind_its_client(house, store)
        store.after_read = 1
        told: list[Any] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def again() -> None:
                told.append(await client.session.topics.subscribe(T, since=first if asks else None))

            await trio.sleep(0.2)
            assert await offsets(other) == [2]
        await say(house, "3")
        assert told == [Recovery(asks, Position(first.epoch, 2), int(asks))]
        assert await offsets(client) == ([2, 3] if asks else [3])


async def test_late_messages_of_an_epoch_that_is_over_for_it_are_nothing_to_it(autojump_clock: MockClock) -> None:
    """It knows the new epoch by the store; here the old one goes on until the store is read."""
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        client, other = await house.connect(), await house.connect()
        first = await say(house, "1")
        for one in (other, client):
            await one.session.topics.subscribe(T)
        store.append_delays = [(0, 0.05)]
        house.nursery.start_soon(say, house, "2")
        await trio.sleep(0.01)
        store.inner.clear()
        begun = (await client.session.topics.subscribe(T)).position
        assert begun is not None
        assert begun != first
        store.after_read = 0.5
        async with trio.open_nursery() as nursery:
            told: list[Recovery] = []

            @nursery.start_soon
            async def again() -> None:
                told.append(await client.session.topics.subscribe(T, since=begun))

            await trio.sleep(0.07)
            assert await offsets(other) == [2]
        assert told == [Recovery(True, begun, 0)]
        store.after_read = 0
        await say(house, "3")
        await trio.sleep(1)
        assert [(one["type"], one["meta"]["epoch"]) for one in await client.heard()] == [("SAID", begun.epoch)]
        assert [(one["type"], one["meta"]["epoch"]) for one in await other.heard()] == [
            ("$ws:position", begun.epoch),
            ("SAID", begun.epoch),
        ]


@pytest.mark.parametrize("how", ["cancelled", "answered"])
async def test_who_is_live_loses_nothing_though_more_comes_than_can_be_held_back(
    how: str, autojump_clock: MockClock
) -> None:
    store = SlowStore()
    limits = Limits(ping_interval=math.inf, outbox_messages=3)
    async with open_house(history=KEEP, history_store=store, limits=limits) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        first = await say(house, "1")
        assert await offsets(client) == [1]
        store.after_read = 5
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def again() -> None:
                with trio.move_on_after(3 if how == "cancelled" else math.inf):
                    assert await client.session.topics.subscribe(T, since=first) == Recovery(
                        False, Position(first.epoch, 7)
                    )

            await trio.sleep(1)
            for number in range(2, 6):
                await say(house, str(number))
            assert await offsets(client) == [2, 3, 4, 5]
            await say(house, "6")
            await say(house, "7", exclude=client.client_id)
            heard = await client.heard()
            assert [(one["type"], one["meta"]["offset"]) for one in heard] == [("SAID", 6), ("$ws:position", 7)]
        await say(house, "8")
        assert await offsets(client) == [8]
