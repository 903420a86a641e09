"""Histories beside `exclude`, other processes, publishers that do not know, and after a store was lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.pubsub.drivers import SlowStore
from tests.pubsub.histories import KEEP, T, offsets, say
from tests.sessions import Said, open_house
from trio_wskit._core.history import Position
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.pubsub.history import MemoryHistory

# Who is left out.


async def test_who_is_left_out_is_told_the_position(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        one, other = await house.connect(), await house.connect()
        for client in (one, other):
            await client.session.topics.subscribe(T)
        position = await say(house, "1", exclude=one.client_id)
        await say(house, "2")
        notice, second = await one.heard()
        assert notice["type"] == "$ws:position"
        assert notice["payload"] == {"topic": T}
        assert (notice["meta"]["epoch"], notice["meta"]["offset"]) == (position.epoch, 1)
        assert second["meta"]["offset"] == 2
        assert await other.texts() == ["1", "2"]


async def test_who_is_left_out_and_does_not_subscribe_hears_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        await say(house, "1", exclude=client.client_id)
        await say(house, "2", exclude="nobody")
        assert await client.heard() == []


# Several processes with a memory each.


async def test_a_history_in_memory_keeps_what_another_process_publishes(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        begun = (await client.session.topics.subscribe(T)).position
        meta = {"timestamp": 1, "epoch": "theirs", "offset": 77}
        await house.app._publisher.deliver(  # pyright: ignore[reportPrivateUsage]
            PublishEnvelope(T, "SAID", b'{"text":"far"}', meta)
        )
        position = await say(house, "near")
        assert position.offset == 2
        heard = await client.heard()
        assert [one["meta"] | {"timestamp": 1} for one in heard] == [
            {"timestamp": 1, "epoch": position.epoch, "offset": 1},
            {"timestamp": 1, "epoch": position.epoch, "offset": 2},
        ]
        second = await house.connect()
        assert (await second.session.topics.subscribe(T, since=begun)).recovered
        assert await second.texts() == ["far", "near"]


async def test_a_message_with_the_place_before_the_first_has_no_place(autojump_clock: trio.testing.MockClock) -> None:
    """Its publisher is none of ours."""
    async with open_house(history=KEEP, history_store=SlowStore()) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        for _ in range(2):
            await house.app._publisher.deliver(  # pyright: ignore[reportPrivateUsage]
                PublishEnvelope(T, "SAID", b'{"text":"far"}', {"epoch": "theirs", "offset": 0})
            )
        await say(house, "near")
        assert await client.texts() == ["far", "far", "near"]


async def test_who_may_have_missed_something_recovers_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The link to the broker was lost for a while: what others published is not in this process' memory."""
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        first = await say(house, "1")
        house.app._desk.histories.doubt()  # type: ignore[union-attr]  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]
        second = await house.connect()
        recovery = await second.session.topics.subscribe(T, since=first)
        assert not recovery.recovered
        assert recovery.position is not None
        assert recovery.position.epoch != first.epoch
        newest = await say(house, "2")
        assert newest == Position(recovery.position.epoch, 1)
        one, notice, two = await client.heard()
        assert (one["payload"]["text"], two["payload"]["text"]) == ("1", "2")
        assert notice["type"] == "$ws:position"
        assert (notice["meta"]["epoch"], notice["meta"]["offset"]) == (newest.epoch, 0)
        assert await second.texts() == ["2"]


# New epochs.


async def test_who_is_there_is_told_of_a_new_epoch_before_its_first_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryHistory()
    async with open_house(history=KEEP, history_store=store) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        for _ in range(2):
            await say(house, "1", "2")
            store.clear()
        heard = await client.heard()
        assert [(one["type"], one["meta"]["offset"]) for one in heard] == [
            ("SAID", 1),
            ("SAID", 2),
            ("$ws:position", 0),
            ("SAID", 1),
            ("SAID", 2),
        ]
        assert heard[1]["meta"]["epoch"] != heard[2]["meta"]["epoch"] == heard[3]["meta"]["epoch"]


async def test_topics_that_nobody_wants_any_more_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        histories: Any = house.app._desk.histories  # pyright: ignore[reportPrivateUsage]
        for number in range(50):
            await client.session.topics.subscribe(f"kept:{number}")
            await client.session.topics.unsubscribe(f"kept:{number}")
        assert len(histories._epochs) <= 2
        assert len(histories._round) == len(histories._epochs)


# Publishers that do not know.


@pytest.mark.parametrize("how", ["cancelled", "fails"])
async def test_what_is_kept_though_its_publisher_does_not_know_comes_by_itself(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    store = SlowStore()
    async with open_house(history=KEEP, history_store=store) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        await say(house, "1")
        store.append_delays = [(0, 5)]
        if how == "cancelled":
            with trio.move_on_after(1):
                await say(house, "2")
        else:
            append = store.append

            async def fails(*args: Any) -> Position:
                await append(*args)
                raise OSError("gone")

            store.append = fails  # type: ignore[assignment, method-assign]
            result = await house.app.publish(T, Said("2"))
            assert result.error == "ADAPTER_ERROR"
            assert house.logged() == ["the history of kept:1 failed: OSError"]
        assert await offsets(client) == [1]
        await trio.sleep(0.2)
        assert await offsets(client) == [2]
