from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import trio

from tests.pubsub.drivers import ScriptedDriver, SlowStore
from tests.sessions import Client, House, Said, open_house
from trio_wskit import (
    App,
    ConfigError,
    Limits,
    PubSubError,
    PubSubPolicy,
    Router,
    Session,
    TopicPattern,
    TopicRules,
    WsKitError,
)
from trio_wskit._core.frames import text_frame
from trio_wskit._core.history import NOT_KEPT, History, Position, Recovery
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._outbox import Frame
from trio_wskit.pubsub.history import MemoryHistory

KEEP = {"kept:*": History(size=5, ttl=60)}
T = "kept:1"


async def say(house: House, *texts: str, topic: str = T, **options: Any) -> Position:
    """Publish some, and give the position of the last."""
    position = None
    for text in texts:
        result = await house.app.publish(topic, Said(text), **options)
        assert result.ok, result
        position = result.position
    assert position is not None
    return position


async def offsets(client: Client) -> list[int]:
    """Of each message among what was heard."""
    return [one["meta"]["offset"] for one in await client.heard()]


# On the wire.


async def test_each_message_carries_its_epoch_and_an_offset_without_holes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        begun = await client.session.topics.subscribe(T)
        last = await say(house, "a", "b", "c")
        heard = await client.heard()
        assert [one["payload"]["text"] for one in heard] == ["a", "b", "c"]
        assert [one["meta"]["offset"] for one in heard] == [1, 2, 3]
        assert {one["meta"]["epoch"] for one in heard} == {last.epoch}
        assert begun == Recovery(False, Position(last.epoch, 0))
        assert last.offset == 3


async def test_other_topics_are_as_they_were(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        assert await client.session.topics.subscribe("other") is NOT_KEPT
        result = await house.app.publish("other", Said("a"), meta={"epoch": "mine", "offset": 7})
        assert result.position is None
        (heard,) = await client.heard()
        assert heard["meta"].keys() == {"timestamp", "epoch", "offset"}
        assert (heard["meta"]["epoch"], heard["meta"]["offset"]) == ("mine", 7)


async def test_nobody_but_the_history_sets_epoch_and_offset(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        await client.session.topics.subscribe(T)
        position = await say(house, "a", meta={"epoch": "mine", "offset": 7, "by": "me"})
        (heard,) = await client.heard()
        assert heard["meta"] == {
            "timestamp": heard["meta"]["timestamp"],
            "epoch": position.epoch,
            "offset": 1,
            "by": "me",
        }


# Resuming.


async def test_a_resume_gives_exactly_what_was_missed_and_then_what_is_new(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_house(history=KEEP) as house:
        first = await say(house, "1")
        await say(house, "2", "3")
        client = await house.connect()
        recovery = await client.session.topics.subscribe(T, since=first)
        await say(house, "4")
        assert recovery == Recovery(True, Position(first.epoch, 3), 2)
        assert await client.texts() == ["2", "3", "4"]


async def test_a_resume_with_no_message_in_between_is_recovered(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        first = await house.connect()
        begun = (await first.session.topics.subscribe(T)).position
        assert begun is not None
        await first.leave()
        second = await house.connect()
        assert await second.session.topics.subscribe(T, since=begun) == Recovery(True, begun, 0)
        await say(house, "1")
        assert await second.texts() == ["1"]


async def test_recovery_works_when_no_message_came_before_the_disconnect(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Socket.IO's fails there: its client has no offset yet."""
    async with open_house(history=KEEP) as house:
        first = await house.connect()
        begun = (await first.session.topics.subscribe(T)).position
        await first.leave()
        await say(house, "missed")
        second = await house.connect()
        assert (await second.session.topics.subscribe(T, since=begun)).recovered
        assert await second.texts() == ["missed"]


async def test_recovery_works_more_than_once(autojump_clock: trio.testing.MockClock) -> None:
    """Socket.IO's works once."""
    async with open_house(history=KEEP) as house:
        position: Position | None = await say(house, "0")
        for round_ in range(5):
            await say(house, f"{round_}a", f"{round_}b")
            client = await house.connect()
            recovery = await client.session.topics.subscribe(T, since=position)
            assert recovery.recovered
            assert await client.texts() == [f"{round_}a", f"{round_}b"]
            position = recovery.position
            await client.leave()


async def test_the_same_resume_again_gives_the_same_again(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        first = await say(house, "1")
        await say(house, "2")
        client = await house.connect()
        for _ in range(3):
            assert await client.session.topics.subscribe(T, since=first) == Recovery(True, Position(first.epoch, 2), 1)
            assert await client.texts() == ["2"]


async def test_concurrent_resumes_of_one_client_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        first = await say(house, "1")
        await say(house, "2", "3")
        client = await house.connect()
        async with trio.open_nursery() as nursery:
            for since in (first, Position(first.epoch, 2)):
                nursery.start_soon(partial(client.session.topics.subscribe, T, since=since))
        assert sorted([(await client.texts())]) in ([["2", "3", "3"]], [["3", "2", "3"]])


@pytest.mark.parametrize("offset", [4, 10_000, 2**53 - 1])
async def test_an_offset_from_the_future_is_not_recovered(offset: int, autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        newest = await say(house, "1", "2", "3")
        client = await house.connect()
        recovery = await client.session.topics.subscribe(T, since=Position(newest.epoch, offset))
        assert recovery == Recovery(False, newest)
        await say(house, "4")
        assert await client.texts() == ["4"]


async def test_another_epoch_is_not_recovered(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        newest = await say(house, "1", "2", "3")
        client = await house.connect()
        assert await client.session.topics.subscribe(T, since=Position("other", 1)) == Recovery(False, newest)
        assert await client.heard() == []


async def test_what_was_trimmed_is_not_recovered_not_even_in_part(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        first = await say(house, "1")
        newest = await say(house, *"234567")  # 3 to 7 are kept
        client = await house.connect()
        assert await client.session.topics.subscribe(T, since=first) == Recovery(False, newest)
        assert await client.heard() == []
        assert (await client.session.topics.subscribe(T, since=Position(first.epoch, 2))).recovered
        assert await offsets(client) == [3, 4, 5, 6, 7]


async def test_messages_go_after_their_ttl_and_the_position_stays(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(
        history={T: History(ttl=60, keep_position=600)}, limits=Limits(ping_interval=math.inf)
    ) as house:
        first = await say(house, "1")
        newest = await say(house, "2")
        await trio.sleep(60)
        client = await house.connect()
        assert await client.session.topics.subscribe(T, since=first) == Recovery(False, newest)
        assert await client.session.topics.subscribe(T, since=newest) == Recovery(True, newest, 0)
        await client.leave()
        await trio.sleep(600)
        client = await house.connect()
        late = await client.session.topics.subscribe(T, since=newest)
        assert not late.recovered
        assert late.position is not None
        assert late.position.epoch != newest.epoch


async def test_a_store_that_was_restarted_begins_another_epoch(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryHistory()
    async with open_house(history=KEEP, history_store=store) as house:
        first = await say(house, "1")
        store.clear()
        second = await say(house, "2")
        assert second.epoch != first.epoch
        assert second.offset == 1
        client = await house.connect()
        assert await client.session.topics.subscribe(T, since=first) == Recovery(False, second)
        assert await client.heard() == []


async def test_a_replay_that_finds_no_room_in_the_outbox_is_not_recovered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = Limits(ping_interval=math.inf, outbox_messages=3)
    async with open_house(history={T: History(10)}, limits=limits) as house:
        first = await say(house, "1")
        newest = await say(house, *"2345")
        client = await house.connect()
        assert await client.session.topics.subscribe(T, since=first) == Recovery(False, newest)
        assert await client.session.topics.subscribe(T, since=Position(first.epoch, 2)) == Recovery(True, newest, 3)
        assert await client.texts() == ["3", "4", "5"]


async def test_a_client_that_does_not_read_gets_all_or_nothing(autojump_clock: trio.testing.MockClock) -> None:
    limits = Limits(ping_interval=math.inf, outbox_bytes=2000)
    async with open_house(history={T: History(100)}, limits=limits) as house:
        begun = await say(house, "0")
        newest = await say(house, *["x" * 50] * 10)
        client = await house.connect(capacity=10)
        for _ in range(10):
            client.session.outbox.send_nowait(
                Frame(text_frame(b'{"type":"SAID","payload":{"text":"%b"}}' % (b"y" * 100)))
            )
        assert await client.session.topics.subscribe(T, since=begun) == Recovery(False, newest)
        client.peer.resume()
        assert await client.texts() == ["y" * 100] * 10


# The last ones, and snapshots.


async def test_the_last_messages_come_first(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        newest = await say(house, *"12345678")
        for asked, given in ((1, 1), (3, 3), (5, 5), (6, 5), (10_000, 5)):
            client = await house.connect()
            recovery = await client.session.topics.subscribe(T, last=asked)
            assert recovery == Recovery(True, newest, given)
            assert recovery.start == Position(newest.epoch, 8 - given)
            assert await client.texts() == list("12345678")[8 - given :]


async def test_the_last_of_a_topic_that_nobody_published_to_are_none(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        recovery = await client.session.topics.subscribe(T, last=3)
        assert recovery.recovered
        assert recovery.replayed == 0


async def test_a_snapshot_comes_first_and_then_what_is_newer_than_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        asked: list[tuple[Session, str]] = []

        async def snapshot(who: Session, topic: str) -> tuple[object, Position]:
            asked.append((who, topic))
            position = await say(house, "1")
            await trio.sleep(1)
            await say(house, "2", "3")
            return Said("all up to 1"), position

        recovery = await client.session.topics.subscribe(T, snapshot=snapshot)
        assert asked == [(client.session, T)]
        await say(house, "4")
        assert (recovery.recovered, recovery.replayed) == (True, 2)
        heard = await client.heard()
        assert [one["payload"]["text"] for one in heard] == ["all up to 1", "2", "3", "4"]
        assert heard[0]["meta"].keys() == {"timestamp"}


async def test_a_snapshot_that_fails_leaves_no_subscription(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()

        async def snapshot(who: Session, topic: str) -> tuple[object, Position]:
            await say(house, "1")
            raise WsKitError("NOT_FOUND", "no such room")

        with pytest.raises(WsKitError, match="no such room"):
            await client.session.topics.subscribe(T, snapshot=snapshot)
        assert T not in client.session.topics
        await say(house, "2")
        assert await client.heard() == []


async def test_a_snapshot_without_a_position_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()

        async def snapshot(who: Session, topic: str) -> Any:
            return Said("all"), None

        with pytest.raises(WsKitError, match="since takes a Position, not a NoneType"):
            await client.session.topics.subscribe(T, snapshot=snapshot)
        assert T not in client.session.topics


async def test_a_snapshot_for_a_client_that_leaves_is_not_sent(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()

        async def snapshot(who: Session, topic: str) -> tuple[object, Position]:
            await client.leave()
            return Said("all"), Position("e", 0)

        with pytest.raises(PubSubError, match="the client has left"):
            await client.session.topics.subscribe(T, snapshot=snapshot)


# Bad input.


@pytest.mark.parametrize("ask", [{"since": Position("e", 1)}, {"last": 1}, {"snapshot": len}])
@pytest.mark.parametrize("history", [None, KEEP])
async def test_a_topic_without_history_says_so(ask: Any, history: Any, autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=history) as house:
        client = await house.connect()
        for topic in ("other", TopicPattern("kept:*")):
            with pytest.raises(WsKitError, match="keeps no history") as refused:
                await client.session.topics.subscribe(topic, **ask)
            assert refused.value.code == "FAILED_PRECONDITION"
        assert len(client.session.topics) == 0


@pytest.mark.parametrize(
    "ask", [{"since": 5}, {"since": ("e", 1)}, {"since": {"epoch": "e"}}, {"last": 0}, {"last": True}, {"last": 1.5}]
)
async def test_what_is_no_position_is_refused(ask: Any, autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        with pytest.raises(WsKitError, match="takes a") as refused:
            await client.session.topics.subscribe(T, **ask)
        assert refused.value.code == "INVALID_ARGUMENT"
        assert len(client.session.topics) == 0


async def test_only_one_way_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history=KEEP) as house:
        client = await house.connect()
        with pytest.raises(TypeError, match="one of since, last and snapshot"):
            await client.session.topics.subscribe(T, since=Position("e", 1), last=2)


async def test_a_name_that_is_none_is_refused_as_ever(autojump_clock: trio.testing.MockClock) -> None:
    async with open_house(history={"**": History()}) as house:
        client = await house.connect()
        with pytest.raises(PubSubError, match="a topic matches"):
            await client.session.topics.subscribe("no topic", last=1)


def test_a_store_without_topics_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="say which topics keep one"):
        App(Router(), history_store=MemoryHistory())


async def test_a_rule_that_fails_is_told(autojump_clock: trio.testing.MockClock) -> None:
    def keep(topic: str) -> Any:
        return 100

    async with open_house(history=keep) as house:
        client = await house.connect()
        with pytest.raises(TypeError, match="history\\('t'\\) gives a History or None, not 100"):
            await client.session.topics.subscribe("t")
        result = await house.app.publish("t", Said("a"))
        assert (result.ok, result.error) == (False, "ADAPTER_ERROR")


async def test_the_name_is_normalised_once(autojump_clock: trio.testing.MockClock) -> None:
    policy = PubSubPolicy(normalise=lambda topic: topic + "!")
    rules = TopicRules(pattern="[a-z:0-9]+!")
    async with open_house(history={"kept:1!": History()}, policy=policy, topics=rules) as house:
        client = await house.connect()
        await say(house, "1", "2")
        assert (await client.session.topics.subscribe(T, last=1)).replayed == 1
        assert list(client.session.topics) == ["kept:1!"]
        await client.session.topics.subscribe("other")
        assert "other!" in client.session.topics


# What is published meanwhile.


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
