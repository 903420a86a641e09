# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, final

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from tests.sessions import NOW, Client, House, Said, Say, open_house, settle
from trio_wskit import App, ConfigError, Context, PublishResult, PubSubError, Router, message
from trio_wskit._core.publishing import RETRYABLE, PublishEnvelope, PublishErrorCode
from trio_wskit.abc import BrokerConsumer, BrokeredDriver, Deliver, SelectiveConsumer
from trio_wskit.pubsub import BrokeredPubSub, MemoryBroker, MemoryPubSub, TopicPattern, with_broker

HELLO: Final = b'{"text":"hello"}'


@message("BARE")
class Bare:
    pass


@final
class Feed:
    """A consumer that hands in what the test gives it.

    Attributes:
        heard: how many envelopes were taken from it.
    """

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[PublishEnvelope](math.inf)
        self.heard = 0

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async for envelope in self._receive:
            await deliver(envelope)
            self.heard += 1

    async def give(self, *envelopes: PublishEnvelope) -> None:
        for envelope in envelopes:
            self._send.send_nowait(envelope)
        await settle()


def said(text: str, topic: str = "t", **more: Any) -> PublishEnvelope:
    return PublishEnvelope(topic, "SAID", b'{"text":"%b"}' % text.encode(), **more)


def numbered(number: int, *, origin: str | None = "elsewhere") -> PublishEnvelope:
    return said(str(number), origin=origin, id=str(number))


@asynccontextmanager
async def open_houses(
    broker: MemoryBroker, count: int, make: Callable[[MemoryBroker], BrokeredPubSub] | None = None, **options: Any
) -> AsyncGenerator[list[House]]:
    async with AsyncExitStack() as stack:
        houses: list[House] = []
        for _ in range(count):
            pubsub = make(broker) if make else with_broker(broker.driver(), broker.consumer())
            houses.append(await stack.enter_async_context(open_house(pubsub=pubsub, **options)))
        yield houses
        await all_leave(houses)
    assert broker.links == 0


async def all_leave(houses: list[House]) -> None:
    """Each house counts its tasks when it closes, and finds those of the others."""
    for house in houses:
        for client in house.clients:
            await client.leave()


async def listener(house: House, *topics: str) -> Client:
    client = await house.connect()
    for topic in topics or ("t",):
        await client.session.topics.subscribe(topic)
    return client


# --- one to another --------------------------------------------------------------------------------------------------


def everything(broker: MemoryBroker) -> BrokeredPubSub:
    return with_broker(broker.driver(), broker.consumer())


def selected(broker: MemoryBroker) -> BrokeredPubSub:
    return with_broker(broker.driver(), broker.selective_consumer())


def both(broker: MemoryBroker) -> BrokeredPubSub:
    return with_broker(broker.driver(), broker.consumer(), broker.selective_consumer())


@pytest.mark.parametrize("make", [everything, selected, both])
async def test_what_one_process_publishes_is_delivered_once_in_each_and_in_order(
    autojump_clock: MockClock, make: Callable[[MemoryBroker], BrokeredPubSub]
) -> None:
    async with open_houses(MemoryBroker(), 3, make) as houses:
        clients = [await listener(house) for house in houses]
        others = [await listener(house, "u") for house in houses]
        for n in range(30):
            result = await houses[n % 3].app.publish("t", Said(str(n)))
            assert (result.ok, result.matched_local, result.delivered) == (True, 1, 1)
            await settle()
        assert [await client.texts() for client in clients] == [[str(n) for n in range(30)]] * 3
        assert [await client.texts() for client in others] == [[]] * 3


async def test_the_message_is_the_same_on_the_wire_wherever_it_was_published(autojump_clock: MockClock) -> None:
    async with open_houses(MemoryBroker(), 2) as houses:
        clients = [await listener(house) for house in houses]
        for what in (Said('"é\\\n{}'), Bare()):
            await houses[0].app.publish("t", what, meta={"by": {"whom": [1, None, "ü"]}})
            await settle()
            here, there = [await client.peer.receive() for client in clients]
            assert here == there


async def test_who_is_left_out_is_left_out_everywhere_and_nobody_learns_of_it(autojump_clock: MockClock) -> None:
    async with open_houses(MemoryBroker(), 2) as houses:
        one, two = [await listener(house) for house in houses]
        await houses[0].app.publish("t", Said("not for two"), exclude=two.client_id)
        await houses[1].app.publish("t", Said("not for one"), exclude=one.client_id)
        await settle()
        expected = {"type": "SAID", "meta": {"timestamp": NOW}}
        assert await one.heard() == [{**expected, "payload": {"text": "not for two"}}]
        assert await two.heard() == [{**expected, "payload": {"text": "not for one"}}]


async def test_patterns_hear_what_others_publish_each_message_once(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_houses(broker, 2, both) as houses:
        client = await listener(houses[1], "room:1", TopicPattern("room:*"), TopicPattern("**"))
        await houses[0].app.publish("room:1", Said("1"))
        await houses[0].app.publish("room:2", Said("2"))
        assert await client.texts() == ["1", "2"]


async def test_what_a_handler_publishes_about_what_it_heard_goes_in_no_circle(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.publish("t", Said(ctx.payload.text))

    broker = MemoryBroker()
    sent: list[PublishEnvelope] = []
    send = broker.send

    def count(envelope: PublishEnvelope) -> PublishResult | None:
        sent.append(envelope)
        return send(envelope)

    broker.send = count  # type: ignore[method-assign]
    async with AsyncExitStack() as stack:
        houses: list[House] = []
        for _ in range(2):  # two ways from each to each
            pubsub = with_broker(broker.driver(), broker.consumer(), broker.consumer())
            houses.append(await stack.enter_async_context(open_house(router, pubsub=pubsub)))
        one, two = [await listener(house) for house in houses]
        one.say("hello")
        assert await one.texts() == await two.texts() == ["hello"]
        assert len(sent) == 1
        await all_leave(houses)


# --- what comes from a consumer --------------------------------------------------------------------------------------


async def test_local_keys_of_a_foreign_meta_are_obeyed_and_never_shown(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with open_house(pubsub=with_broker(MemoryPubSub(), feed)) as house:
        one, two = await listener(house), await listener(house)
        meta = {"excludeClientId": one.client_id, "clientId": "x", "receivedAt": 1, "tag": "news"}
        await feed.give(said("hello", meta=meta), said("late", meta={"timestamp": 5, "excludeClientId": 7}))
        assert await one.heard() == [{"type": "SAID", "meta": {"timestamp": 5}, "payload": {"text": "late"}}]
        assert (await two.heard())[0] == {
            "type": "SAID",
            "meta": {"tag": "news", "timestamp": NOW},
            "payload": {"text": "hello"},
        }
        assert set(meta) == {"excludeClientId", "clientId", "receivedAt", "tag"}  # it was the consumer's


async def test_who_the_envelope_leaves_out_stands_before_what_its_meta_says(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with open_house(pubsub=with_broker(MemoryPubSub(), feed)) as house:
        one, two = await listener(house), await listener(house)
        await feed.give(said("hello", exclude=one.client_id, meta={"excludeClientId": two.client_id}))
        assert (await one.texts(), await two.texts()) == ([], ["hello"])


async def test_an_envelope_that_two_consumers_hear_is_delivered_once(autojump_clock: MockClock) -> None:
    feeds = [Feed(), Feed()]
    pubsub = with_broker(MemoryPubSub(), *feeds)
    async with open_house(pubsub=pubsub) as house:
        client = await listener(house)
        await feeds[0].give(numbered(1), numbered(2))
        await feeds[1].give(numbered(1), numbered(2), numbered(3))
        await feeds[0].give(numbered(3), numbered(3, origin="another"))
        assert await client.texts() == ["1", "2", "3", "3"]
        assert attrs.astuple(pubsub.counts) == (4, 0, 3, 0, 0)


async def test_what_nobody_numbered_is_always_delivered(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with open_house(pubsub=with_broker(MemoryPubSub(), feed)) as house:
        client = await listener(house)
        await feed.give(said("same"), said("same"), said("same", origin="elsewhere"))
        assert await client.texts() == ["same"] * 3


async def test_ids_are_forgotten_after_so_many_others(autojump_clock: MockClock) -> None:
    feed = Feed()
    pubsub = with_broker(MemoryPubSub(), feed, remember=3)
    async with open_house(pubsub=pubsub) as house:
        client = await listener(house)
        await feed.give(*map(numbered, (1, 2, 3, 1, 4, 1)))
        assert await client.texts() == ["1", "2", "3", "4", "1"]
        assert len(pubsub._recent) == 3


async def test_an_id_without_an_origin_is_one_among_its_like(autojump_clock: MockClock) -> None:
    feed = Feed()
    async with open_house(pubsub=with_broker(MemoryPubSub(), feed)) as house:
        client = await listener(house)
        await feed.give(numbered(1, origin=None), numbered(1, origin=None), numbered(1))
        assert await client.texts() == ["1", "1"]


async def test_what_this_process_published_does_not_come_back(autojump_clock: MockClock) -> None:
    feed, driver = Feed(), ScriptedDriver()
    pubsub = with_broker(driver, feed)
    async with open_house(pubsub=pubsub) as house:
        client = await listener(house)
        for text in ("1", "2"):
            await house.app.publish("t", Said(text))
        first, second = driver.envelopes
        assert first.origin == second.origin == pubsub.origin
        assert first.id != second.id
        await feed.give(first, second)
        assert await client.texts() == ["1", "2"]
        assert (pubsub.counts.own, pubsub.counts.delivered) == (2, 0)


def test_no_two_processes_have_one_origin() -> None:
    origins = {with_broker(MemoryPubSub(), Feed()).origin for _ in range(100)}
    assert len(origins) == 100
    assert all(len(origin) == 16 and origin.isalnum() for origin in origins)


async def test_skipped_envelopes_let_the_others_run_too(autojump_clock: MockClock) -> None:
    feed = Feed()
    rounds = 0

    async def spin() -> None:
        nonlocal rounds
        while feed.heard < 6400:
            await trio.lowlevel.checkpoint()
            rounds += 1

    pubsub = with_broker(MemoryPubSub(), feed, accept=lambda _: False)
    async with open_house(pubsub=pubsub) as house:
        for _ in range(6400):
            feed._send.send_nowait(said(""))
        house.nursery.start_soon(spin)
        await settle()
        assert rounds >= 100
    assert pubsub.counts.refused == 6400


@pytest.mark.parametrize("kind", ["delivered", "skipped"])
async def test_each_envelope_is_a_chance_to_cancel(autojump_clock: MockClock, kind: str) -> None:
    pubsub = with_broker(MemoryPubSub(), Feed(), accept=lambda _: kind == "delivered")
    app = App(Router(), pubsub=pubsub)
    for _ in range(200):
        with trio.CancelScope() as scope:
            scope.cancel()
            await pubsub._heard(said(""), app._publisher.deliver)
        assert scope.cancelled_caught


# --- filters and transforms ------------------------------------------------------------------------------------------


async def test_filters_are_asked_in_order_and_all_must_agree(autojump_clock: MockClock) -> None:
    asked: list[str] = []
    feed = Feed()

    def longer(envelope: PublishEnvelope) -> bool:
        asked.append("longer")
        return len(envelope.payload or b"") > len(b'{"text":"x"}')

    def ours(envelope: PublishEnvelope) -> bool:
        asked.append("ours")
        return envelope.meta.get("tenant") == "us"

    pubsub = with_broker(MemoryPubSub(), feed, accept=[longer, ours])
    async with open_house(pubsub=pubsub) as house:
        client = await listener(house)
        await feed.give(
            said("x", meta={"tenant": "us"}), said("xx", meta={"tenant": "you"}), said("xxx", meta={"tenant": "us"})
        )
        assert await client.texts() == ["xxx"]
    assert asked == ["longer", "longer", "ours", "longer", "ours"]
    assert (pubsub.counts.refused, pubsub.counts.delivered) == (2, 1)


async def test_transforms_follow_one_another_and_may_drop(autojump_clock: MockClock) -> None:
    feed = Feed()

    def louder(envelope: PublishEnvelope) -> PublishEnvelope | None:
        payload = envelope.payload
        return None if payload is None else attrs.evolve(envelope, payload=payload.replace(b"hello", b"HELLO"))

    def elsewhere(envelope: PublishEnvelope) -> PublishEnvelope:
        return attrs.evolve(envelope, topic=f"{envelope.topic}:copy", meta={**envelope.meta, "moved": True})

    pubsub = with_broker(MemoryPubSub(), feed, transform=[louder, elsewhere])
    async with open_house(pubsub=pubsub) as house:
        client = await listener(house, "t", "t:copy")
        await feed.give(said("hello"), PublishEnvelope("t", "SAID"))
        (heard,) = await client.heard()
        assert (heard["payload"], heard["meta"]) == ({"text": "HELLO"}, {"moved": True, "timestamp": NOW})
    assert (pubsub.counts.refused, pubsub.counts.delivered) == (1, 1)


@pytest.mark.parametrize("where", ["accept", "transform", "delivery"])
async def test_what_fails_on_the_way_skips_one_envelope_and_is_logged_less_and_less(
    autojump_clock: MockClock, where: str
) -> None:
    def fail(envelope: PublishEnvelope) -> Any:
        if envelope.payload == HELLO:
            raise KeyError("bug")
        return envelope

    feed = Feed()
    options: dict[str, Any] = {} if where == "delivery" else {where: fail}
    bad = said("hello", meta={"not JSON": object()} if where == "delivery" else {})
    pubsub = with_broker(MemoryPubSub(), feed, **options)
    async with open_house(pubsub=pubsub) as house:
        client = await listener(house)
        for n in range(10):
            await feed.give(bad, said(str(n)))
        assert await client.texts() == [str(n) for n in range(10)]
        assert house.logged() == [f"an envelope of topic t from a broker is lost; {n} so far" for n in (1, 2, 4, 8)]
        assert house.app.ready
    assert attrs.astuple(pubsub.counts) == (10, 0, 0, 0, 10)


async def test_a_slow_delivery_pushes_the_consumer_back(autojump_clock: MockClock) -> None:
    feed = Feed()
    pubsub = with_broker(MemoryPubSub(), feed)
    delivered: list[str | None] = []

    async def slow(envelope: PublishEnvelope) -> None:
        await trio.sleep(1)
        delivered.append(envelope.id)

    async with trio.open_nursery() as nursery:
        await nursery.start(pubsub.run, slow)
        await feed.give(*map(numbered, range(5)))
        await trio.sleep(2.5)
        assert delivered == ["0", "1"]
        assert feed.heard == 2
        assert feed._receive.statistics().current_buffer_used == 2  # one more is on its way
        nursery.cancel_scope.cancel()


# --- the driver's side -----------------------------------------------------------------------------------------------


async def test_it_is_its_driver_in_everything_else() -> None:
    driver = ScriptedDriver()
    pubsub = with_broker(driver, Feed())
    await pubsub.subscribe("one", "t")
    await pubsub.subscribe("one", "u")
    await pubsub.unsubscribe("one", "u")
    assert driver.calls == [("subscribe", "t"), ("subscribe", "u"), ("unsubscribe", "u")]
    assert list(pubsub.local_subscribers("t")) == ["one"]
    assert list(pubsub.list_topics()) == ["t"]
    assert (pubsub.has_topic("t"), pubsub.has_topic("u")) == (True, False)
    await pubsub.aclose()


FAILURES: Final = [PublishResult.failure(code, OSError(), {"why": "test"}) for code in RETRYABLE]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.error)
async def test_every_failure_of_the_driver_is_the_publishers_and_nothing_is_delivered(
    autojump_clock: MockClock, failure: PublishResult
) -> None:
    driver = ScriptedDriver()
    driver.answer = failure
    async with open_house(pubsub=with_broker(driver, Feed())) as house:
        client = await listener(house)
        assert await house.app.publish("t", Said("lost")) is failure
        assert await client.texts() == []


async def test_a_broker_says_why_it_did_not_take_a_message(autojump_clock: MockClock) -> None:
    async def result_of(broker: MemoryBroker, text: str = "") -> tuple[PublishErrorCode | None, bool]:
        async with open_houses(broker, 2) as houses:
            clients = [await listener(house) for house in houses]
            broker.pause()
            result = await houses[0].app.publish("t", Said(text))
            result = await houses[0].app.publish("t", Said(text))
            broker.resume()
            await settle()
            for client in clients:
                await client.heard()
            return result.error, result.retryable

    assert await result_of(MemoryBroker()) == (None, False)
    assert await result_of(MemoryBroker(1, when_full="refuse")) == ("BACKPRESSURE", True)
    assert await result_of(MemoryBroker(max_payload_bytes=99), "x" * 88) == (None, False)
    assert await result_of(MemoryBroker(max_payload_bytes=99), "x" * 89) == ("PAYLOAD_TOO_LARGE", False)


async def test_a_broker_that_is_gone_takes_no_message(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_houses(broker, 1) as (house,):
        client = await listener(house)
        broker.stop()
        result = await house.app.publish("t", Said("lost"))
        assert (result.error, result.retryable) == ("CONNECTION_CLOSED", True)
        assert isinstance(result.cause, trio.BrokenResourceError)
        broker.start()
        await house.app.wait_ready()
        assert (await house.app.publish("t", Said("found"))).ok
        assert await client.texts() == ["found"]
        assert len(house.logged()) == 1


async def test_a_driver_that_does_not_know_its_figures_delivers_all_the_same(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    driver.answer = PublishResult(ok=True, capability="unknown")
    async with open_house(pubsub=with_broker(driver, Feed())) as house:
        client = await listener(house)
        result = await house.app.publish("t", Said("hello"))
        assert (result.capability, result.matched_local, result.delivered) == ("unknown", 0, 1)
        assert await client.texts() == ["hello"]


# --- consumers that hear what they are told to -----------------------------------------------------------------------


@final
class Selective:
    """Does what `MemorySelectiveConsumer` does, and writes it down."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pause = 0.0
        self.fails = False

    async def run(self, deliver: Deliver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def _asked(self, what: str) -> None:
        self.calls.append(what)
        await trio.sleep(self.pause)
        if self.fails:
            raise OSError("the broker is gone")
        self.calls.append(f"{what} done")

    async def follow(self, topic: str) -> None:
        await self._asked(f"follow {topic}")

    async def unfollow(self, topic: str) -> None:
        await self._asked(f"unfollow {topic}")


async def test_the_first_subscriber_makes_a_consumer_follow_and_the_last_leave(autojump_clock: MockClock) -> None:
    consumer = Selective()
    async with open_house(pubsub=with_broker(MemoryPubSub(), Feed(), consumer)) as house:
        one = await listener(house, "t", TopicPattern("t:*"))
        two = await listener(house, "t")
        await one.session.topics.clear()
        assert consumer.calls == [
            *("follow t", "follow t done"),
            *("follow t:*", "follow t:* done"),
            *("unfollow t:*", "unfollow t:* done"),
        ]
        consumer.calls.clear()
        await two.leave()
        assert consumer.calls == ["unfollow t", "unfollow t done"]


async def test_a_topic_is_followed_and_left_one_call_at_a_time(autojump_clock: MockClock) -> None:
    consumer = Selective()
    consumer.pause = 1
    pubsub = with_broker(MemoryPubSub(), consumer)
    async with trio.open_nursery() as nursery:
        for client_id in ("a", "b"):
            nursery.start_soon(pubsub.subscribe, client_id, "t")
            await settle()
        for client_id in ("a", "b"):
            nursery.start_soon(pubsub.unsubscribe, client_id, "t")
            await settle()
        nursery.start_soon(pubsub.subscribe, "c", "t")
        nursery.start_soon(pubsub.subscribe, "c", "u")
    assert [call for call in consumer.calls if "t" in call.split()] == [
        *("follow t", "follow t done"),
        *("unfollow t", "unfollow t done"),
        *("follow t", "follow t done"),
    ]
    assert trio.current_time() == 3
    assert pubsub._turns == {}
    assert pubsub._followed == {"t", "u"}


async def test_a_topic_that_could_not_be_followed_is_not_subscribed_and_the_next_tries_again(
    autojump_clock: MockClock,
) -> None:
    consumer = Selective()
    async with open_house(pubsub=with_broker(MemoryPubSub(), consumer)) as house:
        client = await house.connect()
        consumer.fails = True
        with pytest.raises(PubSubError) as refused:
            await client.session.topics.subscribe("t")
        assert refused.value.reason == "ADAPTER_ERROR"
        consumer.fails = False
        assert list(client.session.topics) == []
        house.logged()
        consumer.calls.clear()
        await client.session.topics.subscribe("t")
        assert "follow t done" in consumer.calls


async def test_a_topic_that_could_not_be_followed_is_left_by_all_and_nothing_of_it_is_delivered(
    autojump_clock: MockClock,
) -> None:
    well, ill = Selective(), Selective()
    async with open_house(pubsub=with_broker(MemoryPubSub(), well, ill)) as house:
        client = await house.connect()
        ill.fails = True
        with pytest.raises(PubSubError):
            await client.session.topics.subscribe("t")
        assert well.calls == ["follow t", "follow t done", "unfollow t", "unfollow t done"]
        assert (await house.app.publish("t", Said("nobody"))).matched_local == 0
        assert house.logged() == ["broker consumer Selective could not leave topic t"]


async def test_who_leaves_has_left_even_where_a_consumer_could_not(autojump_clock: MockClock) -> None:
    consumer = Selective()
    async with open_house(pubsub=with_broker(MemoryPubSub(), consumer)) as house:
        client = await listener(house)
        consumer.fails = True
        await client.session.topics.unsubscribe("t")
        assert list(client.session.topics) == []
        assert house.logged() == ["broker consumer Selective could not leave topic t"]
        consumer.fails = False
        consumer.calls.clear()
        await client.session.topics.subscribe("t")
        assert consumer.calls == ["follow t", "follow t done"]


async def test_who_is_cancelled_while_waiting_for_a_turn_holds_up_nobody(autojump_clock: MockClock) -> None:
    consumer = Selective()
    consumer.pause = 1
    pubsub = with_broker(MemoryPubSub(), consumer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pubsub.subscribe, "a", "t")
        await settle()
        with trio.move_on_after(0.5) as scope:
            await pubsub.subscribe("b", "t")
        assert scope.cancelled_caught
        await pubsub.subscribe("c", "t")
    assert list(pubsub.local_subscribers("t")) == ["a", "c"]
    assert consumer.calls == ["follow t", "follow t done"]
    assert pubsub._turns == {}


async def test_a_consumer_that_is_told_hears_nothing_else(autojump_clock: MockClock) -> None:
    heard: list[str] = []
    broker = MemoryBroker()
    consumer = broker.selective_consumer()

    def note(envelope: PublishEnvelope) -> bool:
        heard.append(envelope.topic)
        return True

    async with open_houses(broker, 1) as (publisher,):
        async with open_house(pubsub=with_broker(broker.driver(), consumer, accept=note)) as house:
            client = await listener(house, "t", TopicPattern("room:*"))
            assert consumer.followed == {"t", "room:*"}
            for topic in ("t", "u", "room:1", "room"):
                await publisher.app.publish(topic, Said(topic))
            assert await client.texts() == ["t", "room:1"]
        assert heard == ["t", "room:1"]
        assert consumer.followed == frozenset()


# --- making one ------------------------------------------------------------------------------------------------------


def test_it_fits_the_seams() -> None:
    broker = MemoryBroker()
    brokered: BrokeredDriver = with_broker(broker.driver(), broker.consumer())
    consumer: BrokerConsumer = broker.consumer()
    selective: SelectiveConsumer = broker.selective_consumer()
    assert isinstance(brokered, BrokeredDriver)
    assert not isinstance(broker.driver(), BrokeredDriver)
    assert not isinstance(consumer, SelectiveConsumer)
    assert isinstance(selective, SelectiveConsumer)


WRONG: list[tuple[str, Callable[[], object]]] = [
    ("at least one consumer", lambda: with_broker(MemoryPubSub())),
    ("has no run", lambda: with_broker(MemoryPubSub(), MemoryPubSub())),  # type: ignore[arg-type]
    ("without a broker", lambda: with_broker(with_broker(MemoryPubSub(), Feed()), Feed())),
    ("accept=…", lambda: with_broker(MemoryPubSub(), Feed(), accept=["x"])),  # type: ignore[list-item]
    ("transform=…", lambda: with_broker(MemoryPubSub(), Feed(), transform=[None])),  # type: ignore[list-item]
    ("restart=…", lambda: with_broker(MemoryPubSub(), Feed(), restart=3)),  # type: ignore[arg-type]
    ("remember=…", lambda: with_broker(MemoryPubSub(), Feed(), remember=0)),
    ("remember=…", lambda: with_broker(MemoryPubSub(), Feed(), remember=True)),
    ("buffer=…", lambda: MemoryBroker(0)),
    ("buffer=…", lambda: MemoryBroker(None)),  # type: ignore[arg-type]
    ("max_payload_bytes=…", lambda: MemoryBroker(max_payload_bytes=0)),
    ("when_full=…", lambda: MemoryBroker(when_full="wait")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("words", "make"), WRONG)
def test_what_cannot_work_is_refused_at_once(words: str, make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
