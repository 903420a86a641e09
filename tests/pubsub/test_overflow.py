"""What policies do to a subscriber that is behind: an app, and clients on links in memory."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from tests.sessions import NOW, Client, House, Said, open_house, settle
from trio_wskit import ConfigError, LimitExceeded, Limits, PublishResult, Router, TopicPattern, TopicRules, message
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit.pubsub import History, block, conflate

QUEUE: Final = 3  # messages that fit into an outbox
TAKEN: Final = 2 + QUEUE  # one is on the link, one is being written
LIMITS: Final = Limits(ping_interval=math.inf, write_timeout=math.inf, outbox_messages=QUEUE)


@message("PRICE")
class Price:
    symbol: str
    n: int


async def subscriber(house: House, *topics: str, capacity: int = 65536, **terms: Any) -> Client:
    client = await house.connect(capacity=capacity)
    for topic in topics or ("t",):
        await client.session.topics.subscribe(topic, **terms)
    return client


async def fill(house: House, client: Client, topic: str = "t", count: int = TAKEN) -> None:
    """Have the client take what fits, numbered from 1."""
    for n in range(1, count + 1):
        result = await house.app.publish(topic, Said(str(n)))
        assert (result.delivered, result.dropped) == (1, 0)
        await settle()


@asynccontextmanager
async def stuck(*topics: str, overflow: Any = "disconnect", **terms: Any) -> AsyncGenerator[tuple[House, Client]]:
    """A subscriber who does not read, with room for `TAKEN` messages."""
    async with open_house(limits=LIMITS, overflow=overflow) as house:
        client = await subscriber(house, *topics, capacity=1, **terms)
        client.peer.stall()
        yield house, client


async def heard(client: Client) -> list[str]:
    """The texts that came, and the notices as ``t:6-7``."""
    client.peer.resume()
    found: list[str] = []
    for one in await client.heard():
        payload = one["payload"]
        if one["type"] == "$ws:gap":
            assert one["meta"] == {"timestamp": NOW}
            found.append(f"{payload['topic']}:{payload['from']}-{payload['to']}")
        elif one["type"] == "PRICE":
            found.append(f"{payload['symbol']}{payload['n']}")
        else:
            found.append(payload["text"])
    return found


def figures(result: PublishResult) -> tuple[int, int, int, int]:
    assert result.ok
    return result.delivered, result.dropped, result.conflated, result.blocked


# --- conflate --------------------------------------------------------------------------------------------------------


async def test_of_each_key_a_client_that_is_behind_gets_the_newest_message(autojump_clock: MockClock) -> None:
    async with stuck(overflow=conflate(lambda m: m.payload["symbol"])) as (house, client):
        results: list[PublishResult] = []
        for n in range(20):
            for symbol in "AB":
                results.append(await house.app.publish("t", Price(symbol, n)))
                assert results[-1].delivered == 1
                await settle()
        assert figures(results[-1]) == (1, 0, 1, 0)
        outbox = client.session.outbox
        assert (outbox.dropped, outbox.conflated) == (0, 36)
        assert house.app.backpressure.conflated == 36
        # One is on the link, one is being written, and two are queued.
        assert await heard(client) == ["A0", "B0", "A19", "B19"]


async def test_a_client_that_keeps_up_gets_every_message(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS, overflow=conflate()) as house:
        client = await subscriber(house)
        for n in range(3 * QUEUE):
            assert figures(await house.app.publish("t", Said(str(n)))) == (1, 0, 0, 0)
        assert await client.texts() == [str(n) for n in range(3 * QUEUE)]


async def test_a_message_that_replaces_another_stands_at_the_end_and_nothing_is_reordered(
    autojump_clock: MockClock,
) -> None:
    async with stuck(overflow=conflate(lambda m: m.payload["symbol"])) as (house, client):
        for symbol in "xxAB":
            await house.app.publish("t", Price(symbol, 1))
            await settle()
        await house.app.publish("t", Price("A", 2))
        assert await heard(client) == ["x1", "x1", "B1", "A2"]


async def test_replies_and_other_topics_are_left_alone(autojump_clock: MockClock) -> None:
    async with stuck("t", "u", overflow=conflate()) as (house, client):
        for text in "12":
            await house.app.publish("u", Said(text))
            await settle()
        await house.app.publish("t", Said("old"))
        await house.app.publish("u", Said("other"))
        await client.session.send(Said("reply"))
        await house.app.publish("t", Said("new"))
        assert await heard(client) == ["1", "2", "other", "reply", "new"]


async def test_where_no_key_is_the_same_the_oldest_makes_room(autojump_clock: MockClock) -> None:
    async with stuck(overflow=conflate(lambda m: m.payload["n"])) as (house, client):
        for n in range(TAKEN):
            await house.app.publish("t", Price("A", n))
            await settle()
        assert figures(await house.app.publish("t", Price("A", 99))) == (1, 1, 0, 0)
        assert await heard(client) == ["A0", "A1", "A3", "A4", "A99"]


async def test_where_only_replies_are_queued_the_newest_is_lost(autojump_clock: MockClock) -> None:
    async with stuck(overflow=conflate()) as (house, client):
        for n in range(TAKEN):
            await client.session.send(Said(str(n)))
            await settle()
        assert figures(await house.app.publish("t", Said("lost"))) == (0, 1, 0, 0)
        assert await heard(client) == [str(n) for n in range(TAKEN)]


async def test_a_key_that_fails_is_logged_once_for_a_message_and_the_message_is_like_no_other(
    autojump_clock: MockClock,
) -> None:
    async with open_house(limits=LIMITS, overflow=conflate(lambda m: m.payload["nothing"])) as house:
        clients = [await subscriber(house, capacity=1) for _ in range(3)]
        for client in clients:
            client.peer.stall()
        for n in range(TAKEN):
            assert (await house.app.publish("t", Said(str(n)))).delivered == 3
            await settle()
        lines = house.logged()
        assert 0 < len(lines) <= TAKEN
        assert {*lines} == {"the key of a message of topic t failed"}
        for client in clients:
            assert await heard(client) == [str(n) for n in range(TAKEN)]


# --- block -----------------------------------------------------------------------------------------------------------


async def test_a_publish_waits_for_room_and_then_goes_on_at_once(autojump_clock: MockClock) -> None:
    async with stuck(overflow=block(5)) as (house, client):
        await fill(house, client)
        results: list[tuple[float, PublishResult]] = []

        async def publish() -> None:
            result = await house.app.publish("t", Said("6"))
            results.append((trio.current_time(), result))

        house.nursery.start_soon(publish)
        await trio.sleep(2)
        assert results == []
        client.peer.resume()
        assert await client.peer.receive()
        await trio.lowlevel.checkpoint()
        texts = await client.texts()
        ((at, result),) = results
        assert (at, figures(result)) == (2, (1, 0, 0, 1))
        assert texts == ["2", "3", "4", "5", "6"]
        counts = house.app.backpressure
        assert (counts.blocked, counts.dropped, client.session.outbox.blocked) == (1, 0, 1)


@pytest.mark.parametrize("then", ["drop_newest", "disconnect"])
async def test_where_there_is_no_room_in_time_the_rest_of_the_policy_decides(
    autojump_clock: MockClock, then: Any
) -> None:
    async with stuck(overflow=block(5, then)) as (house, client):
        await fill(house, client)
        assert figures(await house.app.publish("t", Said("6"))) == (0, 1, 0, 1)
        assert trio.current_time() == 5
        counts = house.app.backpressure
        assert (counts.dropped, counts.disconnected) == (1, then == "disconnect")
        if then == "disconnect":
            await client.served.wait()
            assert client.session.close_code == 1013
        else:
            assert await heard(client) == ["1", "2", "3", "4", "5"]


async def test_all_that_are_slow_are_waited_for_at_the_same_time_and_the_others_do_not_wait(
    autojump_clock: MockClock,
) -> None:
    async with open_house(limits=LIMITS, overflow=block(5)) as house:
        slow = [await subscriber(house, capacity=1) for _ in range(4)]
        quick = await subscriber(house)
        for client in slow:
            client.peer.stall()
        for n in range(TAKEN):
            await house.app.publish("t", Said(str(n)))
            await settle()
        assert len(await quick.texts()) == TAKEN
        house.nursery.start_soon(house.app.publish, "t", Said("last"))
        await settle()
        assert trio.current_time() == 0
        assert await quick.texts() == ["last"]
        slow[0].peer.resume()
        assert (await slow[0].texts())[-1] == "last"
        await trio.sleep(10)
        assert [client.session.outbox.dropped for client in slow] == [0, 1, 1, 1]


async def test_a_second_publish_reaches_the_others_while_the_first_waits_and_nobody_sees_another_order(
    autojump_clock: MockClock,
) -> None:
    async with stuck(overflow=block(5)) as (house, slow):
        await fill(house, slow)
        quick = await subscriber(house)
        for text in "67":
            house.nursery.start_soon(house.app.publish, "t", Said(text))
            await settle()
        assert await quick.texts() == ["6", "7"]
        assert await heard(slow) == ["1", "2", "3", "4", "5", "6", "7"]


async def test_a_sender_and_a_publish_that_wait_get_in_as_they_came(autojump_clock: MockClock) -> None:
    async with stuck(overflow=block(5)) as (house, client):
        await fill(house, client)
        house.nursery.start_soon(client.session.send, Said("reply"))
        await settle()
        house.nursery.start_soon(house.app.publish, "t", Said("6"))
        await settle()
        house.nursery.start_soon(client.session.send, Said("another"))
        await settle()
        assert (await heard(client))[TAKEN:] == ["reply", "6", "another"]


async def test_who_leaves_while_it_is_waited_for_neither_counts_nor_holds_anybody_up(
    autojump_clock: MockClock,
) -> None:
    async with stuck(overflow=block(5)) as (house, client):
        await fill(house, client)
        results: list[PublishResult] = []

        async def publish() -> None:
            results.append(await house.app.publish("t", Said("6")))

        house.nursery.start_soon(publish)
        await trio.sleep(1)
        client.peer.cut()
        await settle()
        (result,) = results
        assert trio.current_time() == 1
        assert figures(result) == (0, 0, 0, 1)


async def test_a_publish_that_is_cancelled_while_it_waits_has_reached_those_who_had_room(
    autojump_clock: MockClock,
) -> None:
    async with stuck(overflow=block(5)) as (house, slow):
        await fill(house, slow)
        quick = await subscriber(house)
        with trio.move_on_after(1) as scope:
            await house.app.publish("t", Said("6"))
        assert scope.cancelled_caught
        assert (slow.session.outbox.dropped, house.app.backpressure.dropped) == (1, 1)
        assert await quick.texts() == ["6"]
        assert await heard(slow) == ["1", "2", "3", "4", "5"]
        assert figures(await house.app.publish("t", Said("7"))) == (2, 0, 0, 0)


async def test_publishes_that_wait_are_bounded(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS, overflow=block(5), topics=TopicRules(max_publishing=2)) as house:
        client = await subscriber(house, capacity=1)
        client.peer.stall()
        await fill(house, client)
        for text in "67":
            house.nursery.start_soon(house.app.publish, "t", Said(text))
        await settle()
        result = await house.app.publish("t", Said("8"))
        assert (result.ok, result.error, result.retryable) == (False, "BACKPRESSURE", True)
        assert sorted(await heard(client)) == ["1", "2", "3", "4", "5", "6", "7"]


async def test_who_is_sent_away_may_take_another_along_that_is_waited_for(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on_limit_exceeded
    def away(info: LimitExceeded) -> None:
        for client in clients:
            if client.client_id != info.client_id:
                client.session.connection.abort()

    async with open_house(router, limits=LIMITS, overflow=block(5, "disconnect")) as house:
        clients = [await subscriber(house, capacity=1) for _ in range(2)]
        for client in clients:
            client.peer.stall()
        for n in range(TAKEN):
            await house.app.publish("t", Said(str(n)))
            await settle()
        assert figures(await house.app.publish("t", Said("last"))) == (0, 1, 0, 2)


async def test_what_comes_from_elsewhere_waits_as_well(autojump_clock: MockClock) -> None:
    async with stuck(overflow=block(5), gaps=True) as (house, client):
        await fill(house, client)
        envelope = PublishEnvelope("t", "SAID")
        await house.app._hub.spread(envelope, b'{"type":"SAID","payload":{"text":"6"}}')
        assert trio.current_time() == 5
        assert await heard(client) == ["1", "2", "3", "4", "5", "t:6-6"]


async def test_a_topic_with_a_history_has_policies_quorums_and_its_own_positions(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS, overflow=block(5), history={"t": History()}) as house:
        slow, quick = await subscriber(house, capacity=1, gaps=True), await subscriber(house)
        slow.peer.stall()
        for n in range(1, TAKEN + 1):
            result = await house.app.publish("t", Said(str(n)), quorum=0.5, within=1)
            assert (result.delivered, result.written) == (2, 2 if n == 1 else 1)
            await settle()
        result = await house.app.publish("t", Said("6"))
        assert (result.delivered, result.dropped, result.blocked) == (1, 1, 1)
        assert result.position is not None
        assert result.position.offset == 6
        assert trio.current_time() == 5
        assert await heard(slow) == ["1", "2", "3", "4", "5", "t:6-6"]
        assert (await heard(quick))[-1] == "6"


# --- subscriptions with a policy of their own ------------------------------------------------------------------------


async def test_a_subscription_may_have_a_policy_of_its_own(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS, overflow="drop_newest") as house:
        newest = await subscriber(house, capacity=1)
        oldest = await subscriber(house, capacity=1, overflow="drop_oldest")
        latest = await subscriber(house, capacity=1, overflow=conflate())
        clients = (newest, oldest, latest)
        for client in clients:
            client.peer.stall()
        for n in range(1, TAKEN + 3):
            await house.app.publish("t", Said(str(n)))
            await settle()
        assert [await heard(client) for client in clients] == [
            ["1", "2", "3", "4", "5"],
            ["1", "2", "5", "6", "7"],
            ["1", "2", "7"],
        ]


async def test_a_pattern_may_have_one_for_all_its_topics(autojump_clock: MockClock) -> None:
    async with stuck(TopicPattern("room:*"), overflow="drop_newest") as (house, client):
        await client.session.topics.subscribe(TopicPattern("room:*"), overflow="drop_oldest")
        await fill(house, client, "room:1")
        assert figures(await house.app.publish("room:1", Said("6"))) == (1, 1, 0, 0)
        assert await heard(client) == ["1", "2", "4", "5", "6"]


async def test_terms_end_with_the_subscription(autojump_clock: MockClock) -> None:
    async with stuck(overflow="drop_newest", gaps=True) as (house, client):
        topics = client.session.topics
        await topics.unsubscribe("t")
        await topics.subscribe("t")
        await fill(house, client)
        assert figures(await house.app.publish("t", Said("6"))) == (0, 1, 0, 0)
        assert await heard(client) == ["1", "2", "3", "4", "5"]
        await client.leave()
        assert len(house.app._hub._terms) == 0


async def test_a_subscription_that_fails_leaves_the_terms_as_they_were(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        client = await house.connect()
        driver.failing = {"subscribe"}
        with pytest.raises(Exception, match="did not subscribe"):
            await client.session.topics.subscribe("t", gaps=True)
        assert len(house.app._hub._terms) == 0
        driver.failing = set()
        await client.session.topics.subscribe("t", overflow="drop_oldest")
        await client.session.topics.subscribe("t")
        terms = house.app._hub._terms
        assert terms.overflow_of(client.client_id, "t") == "drop_oldest"
        await client.session.topics.subscribe("t", gaps=True)
        assert terms.overflow_of(client.client_id, "t") is None
        assert terms.wants_gaps(client.client_id, "t")


async def test_a_policy_that_is_none_is_refused_before_anything_happens(autojump_clock: MockClock) -> None:
    wrong: Any = "drop_all"
    async with open_house() as house:
        client = await house.connect()
        with pytest.raises(ConfigError, match="'drop_all'"):
            await client.session.topics.subscribe("t", overflow=wrong)
        assert len(client.session.topics) == 0


# --- gaps ------------------------------------------------------------------------------------------------------------


async def test_the_notice_stands_where_the_oldest_are_missing(autojump_clock: MockClock) -> None:
    async with stuck(overflow="drop_oldest", gaps=True) as (house, client):
        await fill(house, client)
        for n in (6, 7):
            assert figures(await house.app.publish("t", Said(str(n)))) == (1, 1, 0, 0)
        assert (client.session.outbox.gaps, house.app.backpressure.gaps) == (1, 1)
        assert await heard(client) == ["1", "2", "t:3-4", "5", "6", "7"]


async def test_the_notice_stands_where_the_newest_are_missing(autojump_clock: MockClock) -> None:
    async with stuck(overflow="drop_newest", gaps=True) as (house, client):
        await fill(house, client)
        for n in (6, 7):
            assert figures(await house.app.publish("t", Said(str(n)))) == (0, 1, 0, 0)
        assert await heard(client) == ["1", "2", "3", "4", "5", "t:6-7"]
        client.peer.stall()
        await fill(house, client, count=TAKEN)
        await house.app.publish("t", Said("lost"))
        assert (await heard(client))[-1] == "t:13-13"
        assert house.app.backpressure.gaps == 2


async def test_the_notice_comes_though_nothing_more_is_published(autojump_clock: MockClock) -> None:
    async with stuck(overflow=block(1), gaps=True) as (house, client):
        await fill(house, client)
        await house.app.publish("t", Said("6"))
        assert await heard(client) == ["1", "2", "3", "4", "5", "t:6-6"]


async def test_a_publish_that_gives_up_leaves_its_notice_before_those_that_wait_behind_it(
    autojump_clock: MockClock,
) -> None:
    async with stuck(overflow=block(5), gaps=True) as (house, client):
        await fill(house, client)
        for text in "678":
            house.nursery.start_soon(house.app.publish, "t", Said(text))
            await trio.sleep(1)
        with trio.move_on_after(0.5):
            await house.app.publish("t", Said("9"))  # cancelled, behind the others
        await trio.sleep(3)  # two of them have given up
        assert await heard(client) == ["1", "2", "3", "4", "5", "t:6-7", "8", "t:9-9"]


async def test_who_did_not_ask_gets_no_notice(autojump_clock: MockClock) -> None:
    async with stuck(overflow="drop_newest") as (house, client):
        await fill(house, client)
        await house.app.publish("t", Said("6"))
        assert await heard(client) == ["1", "2", "3", "4", "5"]


async def test_a_notice_is_no_reason_to_drop_and_is_never_dropped(autojump_clock: MockClock) -> None:
    async with stuck("t", "u", overflow="drop_oldest", gaps=True) as (house, client):
        for n in range(1, 40):
            await house.app.publish("tu"[n % 2], Said(str(n)))
            await settle()
        outbox = client.session.outbox
        assert outbox.dropped == 39 - TAKEN
        assert len(outbox._frames) <= QUEUE + 2
        assert await heard(client) == ["1", "2", "u:2-18", "t:2-18", "37", "38", "39"]


async def test_what_was_replaced_by_a_newer_message_is_not_missing(autojump_clock: MockClock) -> None:
    async with stuck(overflow=conflate(), gaps=True) as (house, client):
        for n in range(1, 20):
            await house.app.publish("t", Said(str(n)))
            await settle()
        assert await heard(client) == ["1", "2", "19"]


async def test_a_pattern_is_told_of_the_topic_that_is_meant(autojump_clock: MockClock) -> None:
    async with stuck(TopicPattern("room:*"), overflow="drop_newest", gaps=True) as (house, client):
        await fill(house, client, "room:1")
        await house.app.publish("room:1", Said("6"))
        await house.app.publish("room:2", Said("1"))
        assert (await heard(client))[TAKEN:] == ["room:1:6-6", "room:2:1-1"]


async def test_a_gap_is_announced_to_those_who_asked_in_the_place_where_it_is(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        asked, other = await subscriber(house, gaps=True), await subscriber(house)
        elsewhere = await subscriber(house, "u", gaps=True)
        hub = house.app._hub
        await house.app.publish("t", Said("before"))
        await hub.announce_gap("t", 3, 5)
        await hub.announce_gap("t", 6, 6)
        await house.app.publish("t", Said("after"))
        assert await heard(asked) == ["before", "t:3-6", "after"]
        assert await heard(other) == ["before", "after"]
        assert await heard(elsewhere) == []
        assert house.app.backpressure.gaps == 1


async def test_a_gap_of_all_topics_is_announced_by_the_names_that_were_subscribed_to(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await subscriber(house, "t", "u", TopicPattern("room:*"), gaps=True)
        await subscriber(house, "t")
        await house.app._hub.announce_gap(None, 1, 2)
        assert sorted(await heard(client)) == ["room:*:None-None", "t:None-None", "u:None-None"]


async def test_a_gap_is_announced_behind_who_waits_for_room_with_a_message_of_the_topic(
    autojump_clock: MockClock,
) -> None:
    async with stuck(overflow=block(50), gaps=True) as (house, client):
        await fill(house, client)
        house.nursery.start_soon(house.app.publish, "t", Said("6"))
        await settle()
        hub = house.app._hub
        await hub.announce_gap("t", 7, 8)
        await hub.announce_gap("t", 9, 9)
        assert await heard(client) == ["1", "2", "3", "4", "5", "6", "t:7-9"]


async def test_a_gap_waits_for_its_turn(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await subscriber(house, gaps=True)
        hub = house.app._hub
        hub._turns.take("t")
        house.nursery.start_soon(hub.announce_gap, "t", 1, 1)
        await settle()
        assert await heard(client) == []
        hub._turns.end("t")
        assert await heard(client) == ["t:1-1"]
        assert hub._turns._lots == {}


async def test_many_are_told_of_a_gap_while_others_run(autojump_clock: MockClock) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_house() as house, trio.open_nursery() as nursery:
        client = await house.connect()
        for n in range(200):
            await client.session.topics.subscribe(f"t{n}", gaps=True)
        nursery.start_soon(other)
        await settle_once()
        turns = 0
        await house.app._hub.announce_gap(None)
        assert turns >= 2
        nursery.cancel_scope.cancel()


async def settle_once() -> None:
    await trio.lowlevel.checkpoint()


async def test_nothing_is_counted_where_nobody_asks(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await subscriber(house)
        positions = house.app._hub._positions
        await house.app.publish("t", Said())
        assert len(positions) == 0
        asking = await subscriber(house, "u", gaps=True)
        await house.app.publish("u", Said())
        assert len(positions) == 1
        await asking.leave()
        await house.app.publish("t", Said())
        assert len(positions) == 0
        await client.heard()
