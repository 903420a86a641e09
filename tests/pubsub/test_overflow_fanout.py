"""Fan-out to many, and quorums: who is served when, and what other tasks may do meanwhile."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, cast, final

import pytest
import trio
from trio.testing import MockClock

from tests.pubsub.drivers import ScriptedDriver
from tests.sessions import Client, House, Said, Say, open_house, settle
from trio_wskit import ConfigError, Context, Limits, PublishResult, Router
from trio_wskit._core.publishing import PublishEnvelope
from trio_wskit._flusher import Flusher
from trio_wskit._outbox import Outbox
from trio_wskit.abc import Transport
from trio_wskit.pubsub import MemoryPubSub, TopicPattern, block
from trio_wskit.pubsub import _hub as hub_module
from trio_wskit.pubsub._hub import Hub

MANY: Final = 10_000
SOME: Final = 500
PASSES: Final = MANY // 2048  # checkpoints between the passes of one fan-out


@final
class Taker:
    """A subscriber whose transport takes everything, or nothing."""

    def __init__(self, flusher: Flusher, room: bool = True) -> None:
        self.got: list[bytes] = []
        self.room = room
        self.slow = 0
        self.outbox = Outbox(cast("Transport", self), Limits(), flusher, lambda: True, lambda _: None)

    def write_nowait(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        if not self.room:
            return frames
        self.got += frames
        return ()

    def texts(self) -> str:
        return b"".join(frame[2:] for frame in self.got).decode()

    def too_slow(self) -> None:
        self.slow += 1

    def evicted(self, used: int, limit: float) -> None:
        raise AssertionError("the budget is large")


@final
class Crowd:
    def __init__(self, count: int, overflow: Any = "disconnect") -> None:
        self.driver = MemoryPubSub()
        self.hub = Hub(self.driver, overflow)
        self.flusher = Flusher()
        self.takers: list[Taker] = []
        self.steps = 0  # of another task
        for _ in range(count):
            self.add()

    def add(self, topic: str = "t", *, room: bool = True) -> Taker:
        taker = Taker(self.flusher, room)
        name = str(len(self.takers))
        self.takers.append(taker)
        self.hub.join(name, taker)
        self.driver._index.add(name, topic)
        return taker

    def flush(self) -> None:
        for taker in self.takers:
            taker.outbox.flush()

    async def publish(self, text: str, topic: str = "t") -> PublishResult:
        return await self.hub.publish(PublishEnvelope(topic, "X"), text.encode())

    async def begun(self) -> None:
        """Wait until a fan-out to "t" lets others run."""
        while "t" not in self.hub._turns:
            await trio.lowlevel.checkpoint()

    async def count(self) -> None:
        """Run for ever, and count the passes of the scheduler."""
        while True:
            await trio.lowlevel.checkpoint()
            self.steps += 1


@pytest.fixture
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_DELIVERIES_PER_PASS", SOME // 5)


# --- many ------------------------------------------------------------------------------------------------------------


async def test_a_fan_out_to_ten_thousand_lets_others_run_in_between() -> None:
    crowd = Crowd(MANY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.count)
        await trio.lowlevel.checkpoint()
        crowd.steps = 0
        result = await crowd.publish("a")
        assert crowd.steps >= PASSES - 1
        assert (result.matched_local, result.delivered, result.dropped) == (MANY, MANY, 0)
        nursery.cancel_scope.cancel()
    crowd.flush()
    assert {taker.texts() for taker in crowd.takers} == {"a"}


async def test_a_fan_out_to_a_thousand_does_not_wait_for_anybody() -> None:
    crowd = Crowd(1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.count)
        await trio.lowlevel.checkpoint()
        crowd.steps = 0
        await crowd.publish("a")
        assert crowd.steps == 0
        nursery.cancel_scope.cancel()


async def test_many_that_are_behind_let_others_run_too() -> None:
    crowd = Crowd(0)
    for _ in range(640):
        crowd.add(room=False).outbox._limits = Limits(outbox_messages=1)
    await crowd.publish("a")
    crowd.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.count)
        await trio.lowlevel.checkpoint()
        crowd.steps = 0
        result = await crowd.publish("b")
        assert crowd.steps >= 640 // 64 - 2
        assert (result.delivered, result.dropped) == (0, 640)
        nursery.cancel_scope.cancel()
    assert {taker.slow for taker in crowd.takers} == {1}
    assert crowd.hub.counts.disconnected == 640


async def test_two_publishes_to_one_topic_reach_all_subscribers_in_one_order(small_passes: None) -> None:
    crowd = Crowd(SOME)
    async with trio.open_nursery() as nursery:
        for text in "abcdef":
            nursery.start_soon(crowd.publish, text)
    crowd.flush()
    (order,) = {taker.texts() for taker in crowd.takers}
    assert sorted(order) == list("abcdef")
    assert crowd.hub._turns._lots == {}


async def test_a_small_publish_waits_for_its_turn_behind_a_great_one_of_the_same_topic(small_passes: None) -> None:
    crowd = Crowd(SOME)
    log: list[str] = []

    async def publish(text: str, topic: str) -> None:
        await crowd.publish(text, topic)
        log.append(text)

    crowd.add("u")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish, "a", "t")
        await crowd.begun()
        for n in range(SOME - 10):
            crowd.driver._index.remove(str(n), "t")
        nursery.start_soon(publish, "b", "t")
        nursery.start_soon(publish, "c", "u")
    assert log.index("a") < log.index("b")
    crowd.flush()
    assert {taker.texts() for taker in crowd.takers[-11:-1]} == {"ab"}
    assert crowd.takers[-1].texts() == "c"


async def test_who_gives_up_its_turn_holds_up_nobody(small_passes: None) -> None:
    crowd = Crowd(SOME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.publish, "a")
        await crowd.begun()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(crowd.publish, "b")
                await trio.lowlevel.checkpoint()
                scope.cancel()
        nursery.start_soon(crowd.publish, "c")
    crowd.flush()
    assert {taker.texts() for taker in crowd.takers} == {"ac"}
    assert crowd.hub._turns._lots == {}


async def test_a_publish_that_is_cancelled_in_the_middle_has_reached_everybody(small_passes: None) -> None:
    crowd = Crowd(SOME)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.publish, "a")
            await crowd.begun()
            scope.cancel()
    crowd.flush()
    assert {taker.texts() for taker in crowd.takers} == {"a"}


async def test_who_leaves_in_the_middle_gets_nothing_more_and_who_comes_gets_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "_DELIVERIES_PER_PASS", 10)
    crowd = Crowd(30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.publish, "a")
        await crowd.begun()
        crowd.driver._index.remove("25", "t")  # unsubscribes
        crowd.hub.leave("26")  # is gone
        crowd.driver._index.remove("27", "t")  # and comes back
        crowd.driver._index.add("27", "t")
        late = crowd.add()
    await crowd.publish("b")
    crowd.flush()
    texts = [taker.texts() for taker in crowd.takers]
    assert texts[25:] == ["", "", "ab", "ab", "ab", "b"]
    assert {*texts[:25]} == {"ab"}
    assert late.texts() == "b"


async def test_who_is_behind_and_leaves_in_the_middle_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_CLOSE_LOOKS_PER_PASS", 2)
    crowd = Crowd(0)
    for _ in range(6):
        crowd.add(room=False).outbox._limits = Limits(outbox_messages=1)
    await crowd.publish("a")
    crowd.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.publish, "b")
        await crowd.begun()
        crowd.driver._index.remove("4", "t")
        crowd.hub.leave("5")
    assert [taker.slow for taker in crowd.takers] == [1, 1, 1, 1, 0, 0]


async def test_a_pattern_brings_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_DELIVERIES_PER_PASS", 10)
    crowd = Crowd(0)
    for _ in range(30):
        crowd.add(TopicPattern("room:*"))
    result = await crowd.publish("a", "room:1")
    assert (result.delivered, result.matching) == (30, "pattern")


async def test_what_comes_from_elsewhere_takes_its_turn_too(small_passes: None) -> None:
    crowd = Crowd(SOME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.publish, "a")
        await crowd.begun()
        nursery.start_soon(crowd.hub.spread, PublishEnvelope("t", "X"), b"b")
    crowd.flush()
    assert {taker.texts() for taker in crowd.takers} == {"ab"}


# --- quorum ----------------------------------------------------------------------------------------------------------

LIMITS: Final = Limits(ping_interval=math.inf, write_timeout=math.inf, outbox_messages=3)


async def crowded(house: House, quick: int, slow: int) -> list[Client]:
    """Subscribers, of whom the last do not read: two messages fit their links."""
    clients: list[Client] = []
    for n in range(quick + slow):
        client = await house.connect(capacity=65536 if n < quick else 1)
        await client.session.topics.subscribe("t")
        if n >= quick:
            client.peer.stall()
        clients.append(client)
    for text in "12":
        await house.app.publish("t", Said(text))
        await settle()
    return clients


async def test_with_a_quorum_publish_returns_as_soon_as_the_system_has_enough(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS) as house:
        await crowded(house, 9, 1)
        result = await house.app.publish("t", Said("3"), quorum=0.9, within=5)
        assert (result.matched_local, result.delivered, result.written) == (10, 10, 9)
        assert trio.current_time() == 0


async def test_the_time_ends_a_quorum_that_is_not_reached(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS) as house:
        await crowded(house, 9, 1)
        result = await house.app.publish("t", Said("3"), quorum=1, within=5)
        assert (result.delivered, result.written) == (10, 9)
        assert trio.current_time() == 5


async def test_a_quorum_is_reached_when_a_slow_one_reads_on(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS) as house:
        clients = await crowded(house, 1, 2)
        results: list[tuple[float, int | None]] = []

        async def publish() -> None:
            result = await house.app.publish("t", Said("3"), quorum=0.6, within=5)
            results.append((trio.current_time(), result.written))

        house.nursery.start_soon(publish)
        await trio.sleep(1)
        assert results == []
        clients[-1].peer.resume()
        assert await clients[-1].texts() == ["1", "2", "3"]
        assert results == [(1, 2)]


@pytest.mark.parametrize("how", ["leaves", "is told to go", "drops it"])
async def test_a_quorum_that_can_be_reached_no_more_ends_at_once(autojump_clock: MockClock, how: str) -> None:
    async with open_house(limits=LIMITS, overflow="drop_oldest") as house:
        clients = await crowded(house, 1, 1)
        results: list[tuple[float, int | None]] = []

        async def publish() -> None:
            result = await house.app.publish("t", Said("3"), quorum=1, within=50)
            results.append((trio.current_time(), result.written))

        house.nursery.start_soon(publish)
        await trio.sleep(1)
        if how == "leaves":
            clients[-1].peer.cut()
        elif how == "is told to go":
            clients[-1].session.too_slow()
        else:
            for n in range(4):
                await house.app.publish("t", Said(str(n)))
        await settle()
        assert results == [(1, 1)]


async def test_a_quorum_counts_who_was_waited_for(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS, overflow=block(5)) as house:
        clients = await crowded(house, 1, 1)
        for text in "345":
            await house.app.publish("t", Said(text))
            await settle()
        results: list[PublishResult] = []

        async def publish() -> None:
            results.append(await house.app.publish("t", Said("6"), quorum=1, within=10))

        house.nursery.start_soon(publish)
        await trio.sleep(1)
        assert results == []
        clients[-1].peer.resume()
        assert (await clients[-1].texts())[-1] == "6"
        (result,) = results
        assert (result.delivered, result.blocked, result.written) == (2, 1, 2)
        assert trio.current_time() == 1


async def test_those_who_are_dropped_count_as_matched_and_never_as_written(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS, overflow="drop_newest") as house:
        await crowded(house, 1, 1)
        for text in "345":
            await house.app.publish("t", Said(text))
            await settle()
        result = await house.app.publish("t", Said("6"), quorum=1, within=5)
        assert (result.matched_local, result.delivered, result.dropped, result.written) == (2, 1, 1, 1)
        assert trio.current_time() == 0  # nobody else can have it any more


async def test_a_quorum_of_nobody_is_there_at_once(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        result = await house.app.publish("t", Said(), quorum=1, within=5)
        assert (result.ok, result.matched_local, result.written) == (True, 0, 0)
        client = await house.connect()
        await client.session.topics.subscribe("t")
        result = await client.session.publish("t", Said(), exclude_self=True, quorum=1, within=5)
        assert (result.matched_local, result.written) == (0, 0)
        assert trio.current_time() == 0


async def test_without_a_quorum_nobody_counts(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        client = await house.connect()
        await client.session.topics.subscribe("t")
        assert (await house.app.publish("t", Said())).written is None
        assert client.session.outbox._watched is None
        assert await client.texts() == [""]


async def test_a_publish_that_fails_has_no_quorum(autojump_clock: MockClock) -> None:
    driver = ScriptedDriver()
    async with open_house(pubsub=driver) as house:
        driver.failing = {"publish"}
        result = await house.app.publish("t", Said(), quorum=1, within=5)
        assert (result.ok, result.written) == (False, None)


async def test_a_cancelled_wait_for_a_quorum_undoes_nothing(autojump_clock: MockClock) -> None:
    async with open_house(limits=LIMITS) as house:
        clients = await crowded(house, 1, 1)
        with trio.move_on_after(1) as scope:
            await house.app.publish("t", Said("3"), quorum=1, within=5)
        assert scope.cancelled_caught
        clients[-1].peer.resume()
        assert [await client.texts() for client in clients] == [["1", "2", "3"]] * 2


async def test_a_handler_may_ask_for_a_quorum_that_it_belongs_to(autojump_clock: MockClock) -> None:
    router = Router()
    results: list[PublishResult] = []

    @router.on(Say)
    async def say(ctx: Context[Say]) -> None:
        await ctx.send(Said("before"))
        results.append(await ctx.publish("t", Said(ctx.payload.text), quorum=1, within=5))

    async with open_house(router) as house:
        client = await house.connect()
        await client.session.topics.subscribe("t")
        client.say("hello")
        assert await client.texts() == ["before", "hello"]
        assert results[0].written == 1
        assert trio.current_time() == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"quorum": 0, "within": 1}, "quorum=…"),
        ({"quorum": 1.1, "within": 1}, "quorum=…"),
        ({"quorum": True, "within": 1}, "quorum=…"),
        ({"quorum": "1", "within": 1}, "quorum=…"),
        ({"within": 1}, "quorum=…"),
        ({"quorum": 1}, "within=…"),
        ({"quorum": 1, "within": 0}, "within=…"),
        ({"quorum": 1, "within": math.inf}, "within=…"),
        ({"quorum": 1, "within": math.nan}, "within=…"),
    ],
)
async def test_a_quorum_that_is_none_is_a_bug_and_raised_at_once(arguments: dict[str, Any], complaint: str) -> None:
    async with open_house() as house:
        with pytest.raises(ConfigError, match=complaint):
            await house.app.publish("t", Said(), **arguments)
