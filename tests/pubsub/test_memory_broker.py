from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, final

import pytest
import trio
from trio.testing import MockClock

from tests.sessions import Said, open_house, settle
from trio_wskit._core.publishing import PublishEnvelope, Written
from trio_wskit.abc import BrokerConsumer
from trio_wskit.pubsub import MemoryBroker, with_broker


@final
class Ear:
    """Runs a consumer, and hears.

    Attributes:
        ids: of what was heard.
        slow: hears nothing more until this is set.
        error: what ended the consumer.
    """

    def __init__(self, consumer: BrokerConsumer) -> None:
        self._consumer = consumer
        self.ids: list[str | None] = []
        self.heard: list[PublishEnvelope] = []
        self.slow = trio.Event()
        self.slow.set()
        self.error: BaseException | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await self._consumer.run(self._deliver, task_status=task_status)
        except trio.BrokenResourceError as error:
            self.error = error

    async def _deliver(self, envelope: PublishEnvelope) -> None:
        await self.slow.wait()
        self.heard.append(envelope)
        self.ids.append(envelope.id)


@asynccontextmanager
async def ears(broker: MemoryBroker, count: int = 1) -> AsyncGenerator[list[Ear]]:
    async with trio.open_nursery() as nursery:
        found = [Ear(broker.consumer()) for _ in range(count)]
        for ear in found:
            await nursery.start(ear.run)
        yield found
        nursery.cancel_scope.cancel()
    assert broker.links == 0


async def publish(broker: MemoryBroker, *ids: int, topic: str = "t") -> list[str | None]:
    """What came of each."""
    driver = broker.driver()
    results = [await driver.publish(PublishEnvelope(topic, "X", b"1", origin="me", id=str(n))) for n in ids]
    await settle()
    return [result.error for result in results]


async def test_everybody_who_listens_hears_everything(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with ears(broker, 3) as found:
        assert broker.links == 3
        await publish(broker, 1, 2)
        await publish(broker, 3, topic="u")
        assert [ear.ids for ear in found] == [["1", "2", "3"]] * 3


async def test_what_is_published_while_nobody_listens_is_lost(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    assert await publish(broker, 1) == [None]
    async with ears(broker) as (ear,):
        await publish(broker, 2)
        assert ear.ids == ["2"]


async def test_what_arrives_is_a_copy_and_its_payload_is_bytes(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    meta: dict[str, Any] = {"a": 1}
    async with ears(broker) as (ear,):
        message = b'{"type":"X","meta":{"a":1},"payload":[1]}'
        await broker.driver().publish(PublishEnvelope("t", "X", Written(message, "X", meta), meta, "c", "k", "o", "i"))
        meta.clear()
        await settle()
        assert ear.heard == [PublishEnvelope("t", "X", b"[1]", {"a": 1}, "c", "k", "o", "i")]


async def test_a_cut_ends_every_consumer_and_loses_what_it_has_not_read(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with ears(broker, 2) as (slow, quick):
        slow.slow = trio.Event()
        await publish(broker, 1, 2)
        broker.cut()
        await settle()
        assert broker.links == 0
        assert isinstance(quick.error, trio.BrokenResourceError)
        assert quick.ids == ["1", "2"]
        slow.slow.set()
        await settle()
        assert isinstance(slow.error, trio.BrokenResourceError)
        assert slow.ids == ["1"]
        assert await publish(broker, 3) == [None]


async def test_a_broker_that_is_stopped_lets_nobody_in_until_it_starts(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with ears(broker) as (ear,):
        broker.stop()
        await settle()
        assert ear.error is not None
        with pytest.raises(trio.BrokenResourceError, match="stopped"):
            await publish(broker, 1)
        with pytest.raises(trio.BrokenResourceError, match="stopped"):
            await broker.consumer().run(ear._deliver)  # pyright: ignore[reportPrivateUsage]
        broker.start()
        assert await publish(broker, 2) == [None]


async def test_a_pause_holds_back_and_loses_nothing(autojump_clock: MockClock) -> None:
    broker = MemoryBroker(3)
    async with ears(broker) as (ear,):
        broker.pause()
        assert await publish(broker, 1, 2, 3) == [None] * 3
        assert ear.ids == []
        broker.resume()
        await settle()
        assert await publish(broker, 4) == [None]
        assert ear.ids == ["1", "2", "3", "4"]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_consumer_that_is_too_slow_is_cut_and_the_others_are_not(
    autojump_clock: MockClock, paused: bool
) -> None:
    broker = MemoryBroker(2)
    async with ears(broker, 2) as (slow, quick):
        slow.slow = trio.Event()
        assert await publish(broker, 0) == [None]  # the slow one is at it
        if paused:
            broker.pause()
        assert await publish(broker, 1, 2) == [None] * 2
        assert broker.links == 2
        assert await publish(broker, 3) == [None]
        assert broker.links == (0 if paused else 1)
        broker.resume()
        slow.slow.set()
        await settle()
        assert slow.ids == ["0"]
        assert slow.error is not None
        assert quick.ids == (["0"] if paused else ["0", "1", "2", "3"])


async def test_a_broker_that_refuses_gives_to_all_or_none(autojump_clock: MockClock) -> None:
    broker = MemoryBroker(2, when_full="refuse")
    async with ears(broker, 2) as (slow, quick):
        slow.slow = trio.Event()
        assert await publish(broker, 0, 1) == [None] * 2
        assert await publish(broker, 2, 3) == [None, "BACKPRESSURE"]
        slow.slow.set()
        await settle()
        assert await publish(broker, 4) == [None]
        assert slow.ids == quick.ids == ["0", "1", "2", "4"]


async def test_who_follows_nothing_hears_nothing_and_has_room_for_it(autojump_clock: MockClock) -> None:
    broker = MemoryBroker(1, when_full="refuse")
    consumer = broker.selective_consumer()
    async with trio.open_nursery() as nursery:
        ear = Ear(consumer)
        await nursery.start(ear.run)
        assert await publish(broker, 1, 2, 3) == [None] * 3
        await consumer.follow("t")
        await publish(broker, 4)
        await consumer.unfollow("t")
        await publish(broker, 5)
        assert ear.ids == ["4"]
        nursery.cancel_scope.cancel()


async def test_a_slow_app_is_cut_comes_back_and_counts_an_epoch_more(autojump_clock: MockClock) -> None:
    broker = MemoryBroker(2)
    delivered: list[str | None] = []
    missed: list[int] = []
    pubsub = with_broker(broker.driver(), broker.consumer())

    async def slow(envelope: PublishEnvelope) -> None:
        await trio.sleep(1)
        delivered.append(envelope.id)

    async def tell() -> None:
        missed.append(len(delivered))

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pubsub.run, slow, missed=tell))
        for n in range(5):
            await publish(broker, n)
        await trio.sleep(5)
        await publish(broker, 5)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert delivered == ["0", "5"]
    assert missed == [1]
    assert pubsub.epoch == 2


async def test_apps_without_a_consumer_can_publish_to_those_with_one(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_house(pubsub=with_broker(broker.driver(), broker.consumer())) as house:
        client = await house.connect()
        await client.session.topics.subscribe("t")
        async with open_house(pubsub=broker.driver()) as speaker:
            assert (await speaker.app.publish("t", Said("hello"))).matched_local == 0
        assert await client.texts() == ["hello"]
