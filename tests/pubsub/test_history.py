"""A topic with a history: its messages on the wire, resumes, the last ones, snapshots."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.pubsub.histories import KEEP, T, offsets, say
from tests.sessions import Said, open_house
from trio_wskit import (
    Limits,
    PubSubError,
    Session,
    WsKitError,
)
from trio_wskit._core.frames import text_frame
from trio_wskit._core.history import NOT_KEPT, History, Position, Recovery
from trio_wskit._outbox import Frame
from trio_wskit.pubsub.history import MemoryHistory

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
